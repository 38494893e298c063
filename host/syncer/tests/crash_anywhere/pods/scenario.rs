//! The life of pods in stages: one that uses everything that is copied, and one that is lost.

use std::{ops::Deref, time::Duration};

use kubeocean_api::name::phys_name;
use kubeocean_harness::wait_until;
use kubeocean_runtime::request::{
    DeleteOptions, create_json, delete_json, get_json, merge_patch, paths, strategic_patch,
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::picture::picture;
use crate::{
    door::Write,
    life::{Place, Run, Story, delete, get},
};

/// For a controller of the cluster.
const DEADLINE: Duration = Duration::from_secs(30);
/// What a Syncer writes for the sake of pods, all of which the story meets.
const KINDS: [&str; 26] = [
    "computing PATCH pods/status",
    "computing DELETE pods",
    "computing POST serviceaccounts/token",
    "computing POST events",
    "computing PATCH events",
    "computing PATCH configmaps",
    "computing PATCH secrets",
    "computing PATCH persistentvolumeclaims",
    "computing PATCH persistentvolumes",
    "worker POST pods",
    "worker PATCH pods",
    "worker PATCH pods/ephemeralcontainers",
    "worker PATCH pods/resize",
    "worker DELETE pods",
    "worker POST configmaps",
    "worker PATCH configmaps",
    "worker DELETE configmaps",
    "worker POST secrets",
    "worker PATCH secrets",
    "worker DELETE secrets",
    "worker POST persistentvolumeclaims",
    "worker PATCH persistentvolumeclaims",
    "worker DELETE persistentvolumeclaims",
    "worker POST persistentvolumes",
    "worker PATCH persistentvolumes",
    "worker DELETE persistentvolumes",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Leased,
    Runs,
    Changed,
    Said,
    SaidAgain,
    OtherRuns,
    Lost,
    Gone,
}

pub(crate) struct Pods(Place);

impl Deref for Pods {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.0
    }
}

impl Story for Pods {
    const NAME: &'static str = "pods";
    const KINDS: &'static [&'static str] = &KINDS;
    const REPEATED: &'static [&'static str] = &["computing PATCH events"];
    const SIDE_BY_SIDE: usize = 16;
    type Stage = Stage;
    const STAGES: &'static [Stage] = &[
        Stage::Leased,
        Stage::Runs,
        Stage::Changed,
        Stage::Said,
        Stage::SaidAgain,
        Stage::OtherRuns,
        Stage::Lost,
        Stage::Gone,
    ];
    // The Secrets are the copy of the story's own, and that of the one token.
    const ONCE: &'static [(&'static str, usize)] = &[("worker POST pods", 2), ("worker POST secrets", 2)];

    async fn new(name: String) -> Self {
        Self(Place::new(&name).await)
    }

    /// A token that was stored is used: one is asked for only to make its Secret, which comes after the copy of the other.
    fn goes_on(writes: &[Write]) -> Result<(), &'static str> {
        let made = |kind: &str| writes.iter().filter(|(other, _)| other == kind).count();
        let tokens = made("computing POST serviceaccounts/token");
        if tokens == made("worker POST secrets").min(1) { Ok(()) } else { Err("a stored token was not used") }
    }

    fn whole() -> &'static OnceCell<Run> {
        static WHOLE: OnceCell<Run> = OnceCell::const_new();
        &WHOLE
    }

    async fn act(&self, stage: Stage) {
        let web = paths::pod(&self.namespace, "web");
        match stage {
            Stage::Leased => {
                let all = json!({"resourceLimits": [{"resource": "cpu", "percent": 100}]});
                self.binding.policy(&self.name, all).await.unwrap();
            }
            Stage::Runs => {
                self.create_objects().await;
                create_json(&self.computing, &paths::pods(&self.namespace), &self.web()).await.unwrap();
            }
            Stage::Changed => self.change(&web).await,
            Stage::Said => self.say().await,
            Stage::SaidAgain => self.say_again().await,
            Stage::OtherRuns => {
                let lost = self.pod("lost", &json!({"automountServiceAccountToken": false}));
                create_json(&self.computing, &paths::pods(&self.namespace), &lost).await.unwrap();
            }
            Stage::Lost => {
                let copy = paths::pod(&self.mount, &phys_name("lost", &self.namespace));
                let force = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
                delete_json(&self.worker, &copy, &force).await.unwrap();
            }
            Stage::Gone => {
                for pod in ["web", "lost"] {
                    delete(&self.computing, &paths::pod(&self.namespace, pod)).await;
                }
                for (kind, name) in
                    [("configmaps", "settings"), ("secrets", "password"), ("persistentvolumeclaims", "data")]
                {
                    delete(&self.computing, &paths::core(kind, &self.namespace, name)).await;
                }
                delete(&self.computing, &self.volume()).await;
            }
        }
    }

    async fn picture(&self) -> Value {
        picture(self).await
    }

    async fn is_over(&self, stage: Stage, shown: &Value) -> bool {
        let (web, lost) = (&shown["web"], &shown["lost"]);
        match stage {
            Stage::Leased => get(&self.computing, &paths::node(&self.vnode)).await["status"]["conditions"]
                .as_array()
                .is_some_and(|all| all.iter().any(|it| it["type"] == "Ready" && it["status"] == "True")),
            Stage::Runs => {
                web["paired"] == true
                    && web["vpod"]["phase"] == "Running"
                    && shown["persistentvolumeclaims/data"]["copy"]["phase"] == "Bound"
                    && shown["volume"]["copy"]["phase"] == "Bound"
                    && shown["tokens"] == json!(["web"])
            }
            Stage::Changed => {
                web["ppod"]["labels"]["colour"] == "grey"
                    && web["ppod"]["cpu"] == "20m"
                    && web["ppod"]["debug"] == json!(["debug"])
                    && shown["configmaps/settings"]["copy"]["data"]["a"] == "2"
                    && shown["secrets/password"]["copy"]["data"]["b"] == "Mg=="
                    && shown["persistentvolumeclaims/data"]["copy"]["labels"]["colour"] == "grey"
                    && shown["volume"]["copy"]["labels"]["colour"] == "grey"
            }
            Stage::Said => shown["said"] == json!([["the worker says so", 1]]),
            Stage::SaidAgain => shown["said"] == json!([["the worker says so", 2]]),
            Stage::OtherRuns => lost["paired"] == true && lost["vpod"]["phase"] == "Running",
            Stage::Lost => {
                lost["ppod"].is_null()
                    && lost["vpod"]["phase"] == "Failed"
                    && lost["vpod"]["reason"] == "PhysicalPodLost"
            }
            Stage::Gone => {
                let kinds =
                    ["configmaps/settings", "secrets/password", "persistentvolumeclaims/data", "volume"];
                let gone = |pair: &Value| pair["original"].is_null() && pair["copy"].is_null();
                web["vpod"].is_null()
                    && lost["vpod"].is_null()
                    && shown["copies of pods"] == 0
                    && shown["tokens"] == json!([])
                    // The copy of the cluster's authority stays for a while, for the next pod.
                    && kinds.iter().all(|kind| gone(&shown[*kind]))
            }
        }
    }
}

impl Pods {
    fn volume(&self) -> String {
        paths::cluster_core("persistentvolumes", &self.name)
    }

    async fn create(&self, kind: &str, object: Value) {
        create_json(&self.computing, &paths::core_all(kind, &self.namespace), &object).await.unwrap();
    }

    async fn create_objects(&self) {
        let metadata = |name: &str| json!({"name": name});
        self.create("configmaps", json!({"metadata": metadata("settings"), "data": {"a": "1"}})).await;
        self.create("secrets", json!({"metadata": metadata("password"), "data": {"b": "MQ=="}})).await;
        let (modes, size) = (json!(["ReadWriteMany"]), json!({"storage": "1Gi"}));
        let volume = json!({"metadata": metadata(&self.name), "spec": {
            "capacity": size, "accessModes": modes, "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "", "hostPath": {"path": format!("/volumes/{}", self.name)},
        }});
        let volumes = paths::cluster_core_all("persistentvolumes");
        create_json(&self.computing, &volumes, &volume).await.unwrap();
        wait_until("the binder to see the volume", DEADLINE, async || {
            let phase = get(&self.computing, &self.volume()).await["status"]["phase"].clone();
            if phase == "Available" { Ok(()) } else { Err(phase) }
        })
        .await;
        let claim = json!({"metadata": metadata("data"), "spec": {
            "accessModes": modes, "storageClassName": "", "volumeName": self.name,
            "resources": {"requests": size},
        }});
        self.create("persistentvolumeclaims", claim).await;
    }

    /// Bound to the vnode; more members of its spec.
    fn pod(&self, name: &str, more: &Value) -> Value {
        let mut pod = json!({"metadata": {"name": name}, "spec": {
            "nodeName": self.vnode, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "c", "resources": {"requests": {"cpu": "10m"}}}],
        }});
        for (member, value) in more.as_object().unwrap() {
            pod["spec"][member] = value.clone();
        }
        pod
    }

    /// Uses all kinds of objects, and has a token.
    fn web(&self) -> Value {
        self.pod(
            "web",
            &json!({"volumes": [
                {"name": "settings", "configMap": {"name": "settings"}},
                {"name": "password", "secret": {"secretName": "password"}},
                {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            ]}),
        )
    }

    /// API servers resize only where a kubelet says what containers have.
    async fn report_resources(&self, web: &str) {
        let copy = paths::pod(&self.mount, &phys_name("web", &self.namespace));
        let ppod = get(&self.worker, &copy).await;
        let mut statuses = ppod["status"]["containerStatuses"].clone();
        statuses[0]["resources"] = ppod["spec"]["containers"][0]["resources"].clone();
        let has = json!({"status": {"containerStatuses": statuses}});
        merge_patch(&self.worker, &format!("{copy}/status"), &has).await.unwrap();
        wait_until("what the container has", DEADLINE, async || {
            let status = get(&self.computing, web).await["status"].clone();
            if status["containerStatuses"][0]["resources"].is_object() { Ok(()) } else { Err(status) }
        })
        .await;
    }

    async fn change(&self, web: &str) {
        self.report_resources(web).await;
        let computing = &self.computing;
        let object = |kind: &str, name: &str| paths::core(kind, &self.namespace, name);
        merge_patch(computing, &object("configmaps", "settings"), &json!({"data": {"a": "2"}}))
            .await
            .unwrap();
        merge_patch(computing, &object("secrets", "password"), &json!({"data": {"b": "Mg=="}}))
            .await
            .unwrap();
        let grey = json!({"metadata": {"labels": {"colour": "grey"}}});
        for object in [web, &object("persistentvolumeclaims", "data"), &self.volume()] {
            merge_patch(computing, object, &grey).await.unwrap();
        }
        let more =
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "20m"}}}]}});
        strategic_patch(computing, &format!("{web}/resize"), &more).await.unwrap();
        let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "d"}]}});
        strategic_patch(computing, &format!("{web}/ephemeralcontainers"), &debug).await.unwrap();
    }

    /// As a kubelet of the worker would.
    async fn say(&self) {
        let name = phys_name("web", &self.namespace);
        let ppod = get_json(&self.worker, &paths::pod(&self.mount, &name)).await.unwrap().unwrap();
        let now = kubeocean_runtime::clock::rfc3339(jiff::Timestamp::now());
        let event = json!({
            "metadata": {"name": "said", "namespace": self.mount},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": self.mount, "name": name,
                "uid": ppod["metadata"]["uid"],
            },
            "type": "Warning", "reason": "FailedMount", "message": "the worker says so", "count": 1,
            "firstTimestamp": now, "lastTimestamp": now, "source": {"component": "kubelet"},
        });
        create_json(&self.worker, &paths::events(&self.mount), &event).await.unwrap();
    }

    async fn say_again(&self) {
        let now = kubeocean_runtime::clock::rfc3339(jiff::Timestamp::now());
        let again = json!({"count": 2, "lastTimestamp": now});
        let said = paths::core("events", &self.mount, "said");
        merge_patch(&self.worker, &said, &again).await.unwrap();
    }
}
