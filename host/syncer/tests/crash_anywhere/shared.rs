//! The life of what the bindings of a cluster share: LogConfigs, which all of them map (TD section 15), the PriorityClass of
//! ppods (TD-509) and the namespace of host port reservations (BU section 11), which the first of them makes.

use std::{ops::Deref, time::Duration};

use kubeocean_api::keys::{DEFAULT_PRIORITY_CLASS, label, namespace};
use kubeocean_harness::{log_config, shared_site, wait_until};
use kubeocean_runtime::request::{create_json, merge_patch, paths};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{
    lease::picture::{reserved, texts},
    life::{Place, Run, Story, delete, get, list},
};

/// For a controller of the cluster.
const DEADLINE: Duration = Duration::from_secs(30);
const KINDS: [&str; 7] = [
    "computing PATCH logconfigs",
    "computing PATCH pods",
    "computing POST namespaces",
    "worker DELETE logconfigs",
    "worker PATCH logconfigs",
    "worker POST logconfigs",
    "worker POST priorityclasses",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Leased,
    Reserved,
    Adopted,
    Runs,
    Mapped,
    Edited,
    Unmapped,
    MappedAgain,
    BindingGone,
    CleanedUp,
}

pub(crate) struct Shared(Place);

impl Deref for Shared {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.0
    }
}

impl Story for Shared {
    const NAME: &'static str = "shared";
    const KINDS: &'static [&'static str] = &KINDS;
    const SIDE_BY_SIDE: usize = 1;
    type Stage = Stage;
    const STAGES: &'static [Stage] = &[
        Stage::Leased,
        Stage::Reserved,
        Stage::Adopted,
        Stage::Runs,
        Stage::Mapped,
        Stage::Edited,
        Stage::Unmapped,
        Stage::MappedAgain,
        Stage::BindingGone,
        Stage::CleanedUp,
    ];
    const ONCE: &'static [(&'static str, usize)] = &[
        ("computing POST namespaces", 1),
        ("worker POST priorityclasses", 1),
        ("worker POST logconfigs", 2),
        ("worker DELETE logconfigs", 2),
    ];

    async fn new(name: String) -> Self {
        let site = shared_site().await;
        for cluster in [site.computing(), &site.fleet().workers[0]] {
            cluster.serve_log_configs().await.unwrap();
        }
        let story = Self(Place::new(&name).await);
        story.forget_what_is_made_once().await;
        story
    }

    fn whole() -> &'static OnceCell<Run> {
        static WHOLE: OnceCell<Run> = OnceCell::const_new();
        &WHOLE
    }

    async fn act(&self, stage: Stage) {
        let original = log_config::path(&self.name);
        match stage {
            Stage::Leased => {
                // An event tells the policy's owner that nothing is leased of memory.
                let all = json!({"resourceLimits": [
                    {"resource": "cpu", "percent": 100}, {"resource": "memory", "percent": 0},
                ]});
                self.binding.policy(&self.name, all).await.unwrap();
            }
            Stage::Reserved => {
                let container = json!({
                    "name": "c", "image": "c", "ports": [{"containerPort": 8080, "hostPort": 8080}],
                });
                let foreign = json!({
                    "metadata": {"name": self.name}, "spec": {"nodeName": self.pnode, "containers": [container]},
                });
                create_json(&self.worker, &paths::pods("default"), &foreign).await.unwrap();
            }
            Stage::Adopted => {
                let owners = json!({"metadata": {"ownerReferences": null}});
                for fake in self.reservations().await {
                    let name = fake["metadata"]["name"].as_str().unwrap();
                    merge_patch(&self.computing, &paths::pod(namespace::FAKE, name), &owners).await.unwrap();
                }
            }
            Stage::Runs => {
                let pod = json!({"metadata": {"name": "web"}, "spec": {
                    "nodeName": self.vnode, "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "c"}],
                }});
                create_json(&self.computing, &paths::pods(&self.namespace), &pod).await.unwrap();
            }
            Stage::Mapped | Stage::MappedAgain => {
                let config = json!({
                    "apiVersion": "cls.cloud.tencent.com/v1", "kind": "LogConfig", "metadata": {"name": self.name},
                    "spec": {
                        "inputDetail": {"type": "container_stdout", "containerStdout": {"namespace": "team-a"}},
                        "clsDetail": {"topicId": "1"},
                    },
                });
                create_json(&self.computing, &log_config::all(), &config).await.unwrap();
            }
            Stage::Edited => {
                let edit = json!({"spec": {"clsDetail": {"topicId": "2"}}});
                merge_patch(&self.computing, &original, &edit).await.unwrap();
            }
            Stage::Unmapped | Stage::CleanedUp => delete(&self.computing, &original).await,
            Stage::BindingGone => delete(&self.computing, &paths::binding(&self.name)).await,
        }
    }

    async fn picture(&self) -> Value {
        let class = get(&self.worker, &priority_class()).await;
        let made = get(&self.computing, &paths::namespace(namespace::FAKE)).await;
        let original = get(&self.computing, &log_config::path(&self.name)).await;
        let of_ours = |copy: &Value| copy["metadata"]["labels"][label::CLUSTER_BINDING] == *self.name;
        let copies = list(&self.worker, &log_config::all()).await.into_iter().filter(of_ours);
        let reservations = self.reservations().await;
        let vnode = get(&self.computing, &paths::node(&self.vnode)).await;
        let ready = vnode["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|it| it["type"] == "Ready" && it["status"] == "True"));
        let picture = json!({
            "ready": ready,
            "binding": get(&self.computing, &paths::binding(&self.name)).await["metadata"]["finalizers"],
            "class": {"labels": texts(&class["metadata"]["labels"]), "value": class["value"]},
            "namespace": texts(&made["metadata"]["labels"]),
            "reserved": reserved(&reservations, &self.vnode),
            "owners": reservations
                .iter()
                .map(|fake| fake["metadata"]["ownerReferences"][0]["kind"].clone())
                .collect::<Vec<_>>(),
            "pod": get(&self.computing, &paths::pod(&self.namespace, "web")).await["status"]["phase"],
            "original": {"finalizers": original["metadata"]["finalizers"], "spec": original["spec"]},
            "copies": copies
                .map(|copy| json!({
                    "labels": texts(&copy["metadata"]["labels"]),
                    "annotations": texts(&copy["metadata"]["annotations"]),
                    "spec": copy["spec"],
                }))
                .collect::<Vec<_>>(),
        });
        let text = picture.to_string().replace(&self.mount, "MOUNT").replace(self.name.as_str(), "NAME");
        serde_json::from_str(&text).unwrap()
    }

    async fn is_over(&self, stage: Stage, shown: &Value) -> bool {
        let topic = |topic: &str| {
            shown["copies"].as_array().is_some_and(|copies| copies.len() == 1)
                && shown["copies"][0]["spec"]["clsDetail"]["topicId"] == topic
                && shown["original"]["finalizers"].is_array()
        };
        match stage {
            Stage::Leased => {
                let events = list(&self.worker, &paths::events("default")).await;
                let told = events.iter().any(|event| event["involvedObject"]["name"] == *self.name);
                told && shown["ready"] == true && shown["namespace"].is_null()
            }
            Stage::Reserved | Stage::Adopted => {
                shown["namespace"].is_object()
                    && shown["reserved"] == json!([[[8080], "True"]])
                    && shown["owners"] == json!(["Node"])
            }
            Stage::Runs => shown["pod"] == "Running" && shown["class"]["value"].is_number(),
            Stage::Mapped | Stage::MappedAgain => topic("1"),
            Stage::Edited => topic("2"),
            Stage::Unmapped => shown["copies"] == json!([]) && shown["original"]["spec"].is_null(),
            Stage::BindingGone => {
                shown["binding"].is_null()
                    && shown["copies"] == json!([])
                    && shown["original"]["spec"].is_object()
                    && shown["original"]["finalizers"].is_null()
                    && shown["reserved"] == json!([])
                    && shown["pod"].is_null()
            }
            Stage::CleanedUp => shown["original"]["spec"].is_null(),
        }
    }
}

fn priority_class() -> String {
    format!("{}/{DEFAULT_PRIORITY_CLASS}", paths::priority_classes())
}

impl Shared {
    async fn reservations(&self) -> Vec<Value> {
        let mut fakes = list(&self.computing, &paths::pods(namespace::FAKE)).await;
        fakes.retain(|fake| fake["spec"]["nodeName"] == *self.vnode);
        fakes
    }

    /// The Syncer of this run is the first one of both clusters again.
    async fn forget_what_is_made_once(&self) {
        delete(&self.worker, &priority_class()).await;
        let made = paths::namespace(namespace::FAKE);
        delete(&self.computing, &made).await;
        wait_until("the namespace of reservations to be gone", DEADLINE, async || {
            let left = get(&self.computing, &made).await;
            if left.is_null() { Ok(()) } else { Err(left["status"].clone()) }
        })
        .await;
    }
}
