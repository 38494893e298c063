//! What goes on in both clusters during a storm, and what must come of it.
//!
//! Called by [`super::storm`], in this order: it begins before the trouble, goes on in it, is whole after it, and ends.

use std::collections::BTreeMap;

use kubeocean_api::keys::{annotation, label};
use kubeocean_harness::wait_until;
use serde_json::{Value, json};

use super::PODS;
use crate::pod_events::{events, said_of, say};
use crate::pods::{DEADLINE, Scene, text};
use crate::volumes::{CLAIMS, create_claim, create_volume, volume_copy, volume_path};

/// The worker says something of one of the pods that stay, for this reason.
const SPOKEN_OF: &str = "stays-0";
const REASON: &str = "Unhealthy";

/// What users do, and what must come of it.
pub(super) struct Story<'a> {
    scene: &'a Scene<'a>,
    /// UIDs of pods and of their copies, of those that ran before.
    before: BTreeMap<String, (String, String)>,
}

/// What the worker says of a pod, which it calls by the name of the copy.
fn sick(pod: &str) -> String {
    format!("Liveness probe of {pod} failed")
}

fn names(fate: &str) -> impl Iterator<Item = String> {
    (0..PODS).map(move |number| format!("{fate}-{number}"))
}

impl<'a> Story<'a> {
    pub(super) async fn begin(scene: &'a Scene<'a>) -> Self {
        scene.create_object("configmaps", "settings", json!({"data": {"weather": "fair"}})).await;
        scene.create_object("secrets", "password", json!({"stringData": {"word": "sun"}})).await;
        let story = Self { scene, before: BTreeMap::new() };
        story.create_claim("settings").await;
        let mut before = BTreeMap::new();
        for name in names("stays").chain(names("goes")) {
            scene.create_pod(&scene.pod(&name, Self::spec("settings"))).await;
        }
        for name in names("stays").chain(names("goes")) {
            let (vpod, ppod) = scene.wait_running(&name).await;
            let uid = |pod: &Value| text(&pod["metadata"]["uid"]).to_owned();
            before.insert(name, (uid(&vpod), uid(&ppod)));
        }
        Self { before, ..story }
    }

    /// Name of the volume behind a claim; volumes have no namespace.
    fn volume(&self, claim: &str) -> String {
        format!("{}-{claim}", self.scene.namespace)
    }

    async fn create_claim(&self, name: &str) {
        let volume = self.volume(name);
        create_volume(&self.scene.computing, &volume, json!({})).await;
        create_claim(&self.scene.computing, &self.scene.namespace, name, &volume, json!({})).await;
    }

    /// A pod with a ConfigMap and a claim of this name.
    fn spec(settings: &str) -> Value {
        let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
        json!({
            "terminationGracePeriodSeconds": 1,
            "volumes": [
                {"name": "settings", "configMap": {"name": settings}},
                {"name": "password", "secret": {"secretName": "password"}},
                {"name": "identity", "projected": {"sources": [token]}},
                {"name": "data", "persistentVolumeClaim": {"claimName": settings}},
            ],
        })
    }

    /// What users and the worker do meanwhile. They reach both clusters.
    pub(super) async fn go_on(&self) {
        let Scene { computing, worker, .. } = self.scene;
        self.scene.create_object("configmaps", "late", json!({"data": {"weather": "foul"}})).await;
        self.create_claim("late").await;
        for name in names("comes") {
            self.scene.create_pod(&self.scene.pod(&name, Self::spec("late"))).await;
        }
        computing
            .merge(&self.scene.object("configmaps", "settings"), &json!({"data": {"weather": "foul"}}))
            .await;
        computing
            .merge(&self.scene.object("secrets", "password"), &json!({"stringData": {"word": "rain"}}))
            .await;
        for name in names("stays") {
            let colour = json!({"metadata": {"labels": {"colour": "grey"}}});
            computing.merge(&self.scene.vpod(&name), &colour).await;
            let news = json!({"status": {"message": "the worker says so"}});
            worker.merge(&format!("{}/status", self.scene.ppod(&name)), &news).await;
        }
        for name in names("goes") {
            computing.delete(&self.scene.vpod(&name), None).await;
        }
        let ppod = worker.get(&self.scene.ppod(SPOKEN_OF)).await.expect("the copy of a pod that stays");
        let words = sick(&self.scene.copy_name(SPOKEN_OF));
        say(worker, &said_of(&ppod, REASON, &words)).await;
    }

    /// Everything is where it belongs.
    pub(super) async fn is_whole(&self) -> Result<(), String> {
        let Scene { computing, worker, .. } = self.scene;
        let vpods = by_name(self.scene.vpods().await, |pod| text(&pod["metadata"]["name"]).to_owned());
        let mut wanted: Vec<String> = names("comes").chain(names("stays")).collect();
        wanted.sort();
        let present: Vec<String> = vpods.keys().cloned().collect();
        if present != wanted {
            return Err(format!("the pods are {present:?}"));
        }
        let of_ours = |pod: &Value| {
            pod["metadata"]["annotations"][annotation::VIRTUAL_POD_NAMESPACE] == *self.scene.namespace
        };
        let copies: Vec<Value> = self.scene.copies("pods").await.into_iter().filter(of_ours).collect();
        if copies.len() != wanted.len() {
            return Err(format!("{} copies of {} pods", copies.len(), wanted.len()));
        }
        let original =
            |pod: &Value| text(&pod["metadata"]["annotations"][annotation::VIRTUAL_POD_NAME]).to_owned();
        let copies = by_name(copies, original);
        for (name, vpod) in &vpods {
            let ppod = copies.get(name).ok_or_else(|| format!("{name} has no copy"))?;
            self.is_copy(name, vpod, ppod)?;
        }
        for name in ["settings", "late"] {
            let copy = worker.get(&self.scene.copy("configmaps", name)).await.unwrap_or_default();
            if copy["data"]["weather"] != "foul" {
                return Err(format!("the copy of {name} is {copy}"));
            }
            let claim = worker.get(&self.scene.copy(CLAIMS, name)).await.unwrap_or_default();
            let volume = worker.get(&volume_copy(&self.volume(name))).await.unwrap_or_default();
            let pair = (&claim["status"]["phase"], &volume["spec"]["claimRef"]["uid"]);
            if pair != (&json!("Bound"), &claim["metadata"]["uid"]) {
                return Err(format!("the copy of the claim {name} is {claim}, that of its volume {volume}"));
            }
        }
        self.are_identified(&copies).await?;
        self.is_told().await?;
        let secret = |object: Option<Value>| object.unwrap_or_default()["data"].clone();
        let original = secret(computing.get(&self.scene.object("secrets", "password")).await);
        let copy = secret(worker.get(&self.scene.copy("secrets", "password")).await);
        if copy == original { Ok(()) } else { Err("the copy of the Secret is old".to_owned()) }
    }

    /// Each pod has one Secret with its token, and its copy uses that.
    async fn are_identified(&self, copies: &BTreeMap<String, Value>) -> Result<(), String> {
        let secrets = self.tokens().await;
        let owner = |secret: &Value| {
            text(&secret["metadata"]["annotations"][annotation::VIRTUAL_POD_NAME]).to_owned()
        };
        let mut owners: Vec<String> = secrets.iter().map(owner).collect();
        owners.sort();
        if !owners.iter().eq(copies.keys()) {
            return Err(format!("there are tokens of {owners:?}"));
        }
        for secret in &secrets {
            let name = text(&secret["metadata"]["name"]);
            let uses = copies[&owner(secret)]["spec"]["volumes"].to_string().contains(&format!("\"{name}\""));
            assert!(uses, "{} does not use {name}", owner(secret));
            if secret["data"].as_object().is_none_or(serde_json::Map::is_empty) {
                return Err(format!("{name} is empty"));
            }
        }
        Ok(())
    }

    /// What the worker said of a pod is read on it, once.
    async fn is_told(&self) -> Result<(), String> {
        match events(self.scene, SPOKEN_OF, &[REASON]).await.as_slice() {
            [event] if event["count"] == 1 && text(&event["message"]) == sick(SPOKEN_OF) => Ok(()),
            other => Err(format!("{SPOKEN_OF} is told {}", json!(other))),
        }
    }

    /// The Secrets with tokens of this story's pods.
    async fn tokens(&self) -> Vec<Value> {
        let mut secrets = self.scene.copies("secrets").await;
        secrets.retain(|secret| {
            let metadata = &secret["metadata"];
            metadata["labels"][label::SERVICE_ACCOUNT_TOKEN] == "true"
                && metadata["annotations"][annotation::VIRTUAL_POD_NAMESPACE] == *self.scene.namespace
        });
        secrets
    }

    fn is_copy(&self, name: &str, vpod: &Value, ppod: &Value) -> Result<(), String> {
        let uid = |pod: &Value| text(&pod["metadata"]["uid"]).to_owned();
        let uids = (uid(vpod), uid(ppod));
        let annotations = |pod: &Value, key: &str| text(&pod["metadata"]["annotations"][key]).to_owned();
        assert!(self.before.get(name).is_none_or(|before| *before == uids), "{name} is another one");
        assert_ne!(vpod["status"]["phase"], "Failed", "{name} was given up: {vpod}");
        if annotations(ppod, annotation::VIRTUAL_POD_UID) != uids.0 {
            return Err(format!("the copy of {name} is another pod's"));
        }
        if annotations(vpod, annotation::PHYSICAL_POD_UID) != uids.1 {
            return Err(format!("{name} does not name its copy"));
        }
        let stays = name.starts_with("stays");
        if stays && ppod["metadata"]["labels"]["colour"] != "grey" {
            return Err(format!("the copy of {name} has not followed"));
        }
        for field in ["phase", "podIP", "hostIP", "startTime", "containerStatuses", "message"] {
            if vpod["status"][field] != ppod["status"][field] {
                return Err(format!(
                    "{field} of {name}: {} here, {} there",
                    vpod["status"][field], ppod["status"][field]
                ));
            }
        }
        let told = !stays || vpod["status"]["message"] == "the worker says so";
        if vpod["status"]["phase"] == "Running" && told {
            Ok(())
        } else {
            Err(format!("{name}: {}", vpod["status"]))
        }
    }

    /// All goes, and nothing is left.
    pub(super) async fn end(&self) {
        let Scene { computing, worker, namespace, .. } = self.scene;
        let deadline = DEADLINE;
        computing.delete(&format!("/api/v1/namespaces/{namespace}/pods"), None).await;
        wait_until("all pods to be gone", deadline, async || self.scene.vpods().await.is_empty()).await;
        let objects = [
            ("configmaps", "settings"),
            ("configmaps", "late"),
            ("secrets", "password"),
            (CLAIMS, "settings"),
            (CLAIMS, "late"),
        ];
        for (kind, name) in objects {
            computing.delete(&self.scene.object(kind, name), None).await;
        }
        for (kind, name) in objects {
            computing.wait_gone(&self.scene.object(kind, name)).await;
            worker.wait_gone(&self.scene.copy(kind, name)).await;
        }
        for volume in ["settings", "late"].map(|claim| self.volume(claim)) {
            computing.delete(&volume_path(&volume), None).await;
            computing.wait_gone(&volume_path(&volume)).await;
            worker.wait_gone(&volume_copy(&volume)).await;
        }
        for name in names("stays").chain(names("goes")).chain(names("comes")) {
            worker.wait_gone(&self.scene.ppod(&name)).await;
        }
        wait_until("all tokens to be gone", deadline, async || {
            let left = self.tokens().await;
            if left.is_empty() { Ok(()) } else { Err(format!("{} Secrets", left.len())) }
        })
        .await;
    }
}

fn by_name(pods: Vec<Value>, name: impl Fn(&Value) -> String) -> BTreeMap<String, Value> {
    pods.into_iter().map(|pod| (name(&pod), pod)).collect()
}
