//! The life of a lease in stages: users act, and everything must come to rest before they act again.

use std::{sync::Arc, time::Duration};

use kube::Client;
use kubeocean_harness::{
    Binding, BindingSpec, NodeShape, shared_site, site::SYNCER_ACCOUNT, site::SYSTEM_NAMESPACE, wait_until,
};
use kubeocean_runtime::request::{DeleteOptions, create_json, delete_json, get_json, merge_patch, paths};
use serde_json::{Value, json};

use crate::{
    door::{Door, Trouble, Write},
    picture::picture,
    syncer::Syncer,
};

/// For a stage, a crash in it included, on a machine that runs some of them side by side.
const DEADLINE: Duration = Duration::from_mins(1);
/// Seconds between the end of a lease and the eviction of its pods.
const GRACE: u32 = 2;

const STAGES: [Stage; 8] = [
    Stage::Leased,
    Stage::PodRuns,
    Stage::LessIsFree,
    Stage::Closed,
    Stage::Opened,
    Stage::PodRunsAgain,
    Stage::PolicyGone,
    Stage::BindingGone,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Leased,
    PodRuns,
    LessIsFree,
    Closed,
    Opened,
    PodRunsAgain,
    PolicyGone,
    BindingGone,
}

pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) computing: Client,
    pub(crate) worker: Client,
    pub(crate) pnode: String,
    pub(crate) vnode: String,
    pub(crate) namespace: String,
    pub(crate) mount: String,
    binding: Binding<'static>,
    /// The Syncer's own clients of both clusters.
    accounts: (Client, Client),
}

/// What came of a run.
pub(crate) struct Run {
    /// What the first Syncer wrote.
    pub(crate) writes: Vec<Write>,
    /// It was made to die.
    pub(crate) died: bool,
    /// What [`Door::told`] says of the first Syncer.
    pub(crate) told: Vec<String>,
    /// After each stage.
    pub(crate) pictures: Vec<Value>,
}

impl Scenario {
    pub(crate) async fn new(name: &str) -> Self {
        let site = shared_site().await;
        let binding = site.bind(BindingSpec::new(name)).await.unwrap();
        let pnodes =
            binding.worker().create_nodes(name, 1, &NodeShape::default().label("colour", "red")).await;
        let pnode = pnodes.unwrap().remove(0);
        let (computing, worker) = (site.computing(), binding.worker());
        let namespace = format!("team-{name}");
        computing.create_namespace(&namespace).await.unwrap();
        let mount = binding.mount_namespace().to_owned();
        Self {
            name: name.to_owned(),
            computing: computing.client().await.unwrap(),
            worker: worker.client().await.unwrap(),
            vnode: format!("vnode-{name}-{pnode}"),
            pnode,
            namespace,
            accounts: (
                computing.service_account_client(SYSTEM_NAMESPACE, SYNCER_ACCOUNT).await.unwrap(),
                worker.service_account_client(&mount, SYNCER_ACCOUNT).await.unwrap(),
            ),
            mount,
            binding,
        }
    }

    /// Goes through all stages with a Syncer that has `trouble`, and one that follows it when it dies. Every stage must end
    /// as it does in `expected`.
    pub(crate) async fn run(self, trouble: Trouble, expected: Option<&Vec<Value>>) -> Run {
        let (door, next) = (Door::new(trouble), Door::new(Trouble::None));
        let first = self.syncer(&door).await;
        let succession = async {
            door.shut().await;
            drop(first);
            let _second = self.syncer(&next).await;
            std::future::pending::<()>().await;
        };
        let pictures = tokio::select! {
            pictures = self.stages(expected) => pictures,
            () = succession => unreachable!("the second Syncer stays"),
        };
        let (writes, more) = (door.writes().await, next.writes().await);
        for (kind, times) in [("computing POST nodes", 1), ("worker POST pods", 2)] {
            let made = writes.iter().chain(&more).filter(|(other, _)| other == kind).count();
            assert_eq!(made, times, "{kind} in {}: {writes:?}, then {more:?}", self.name);
        }
        Run { writes, died: door.is_shut(), told: door.told(), pictures }
    }

    /// A Syncer behind a door.
    async fn syncer(&self, door: &Arc<Door>) -> Syncer {
        let (computing, worker) = self.accounts.clone();
        let (computing, worker) = (door.to("computing", computing).await, door.to("worker", worker).await);
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": worker}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            "users": [{"name": "c", "user": {}}],
        });
        if get_json(&self.computing, &paths::binding(&self.name)).await.unwrap().is_some() {
            self.binding.write_kubeconfig(&kubeconfig.to_string()).await.unwrap();
        }
        Syncer::start(&self.name, &computing)
    }

    async fn stages(&self, expected: Option<&Vec<Value>>) -> Vec<Value> {
        let mut pictures = Vec::new();
        for (number, stage) in STAGES.into_iter().enumerate() {
            self.act(stage).await;
            let what = format!("the end of stage {stage:?} of {}", self.name);
            let shown = wait_until(&what, DEADLINE, async || {
                let shown = picture(self).await;
                match expected {
                    Some(expected) if shown != expected[number] => {
                        Err(differences(&shown, &expected[number]))
                    }
                    None if !self.is_over(stage, &shown).await => Err(shown.to_string()),
                    _ => Ok(shown),
                }
            })
            .await;
            pictures.push(shown);
        }
        pictures
    }

    /// What a user does.
    async fn act(&self, stage: Stage) {
        let limits = json!([{"resource": "cpu", "percent": 50}]);
        let open = json!({
            "resourceLimits": limits, "timeWindows": [], "timeZone": "UTC",
            "forceReclaim": true, "gracefulReclaimPeriodSeconds": GRACE,
        });
        match stage {
            Stage::Leased => {
                self.csi_node(&["disk.csi"]).await;
                self.binding.policy(&self.name, open).await.unwrap();
            }
            Stage::Opened => {
                delete_json(&self.worker, &paths::csi_node(&self.pnode), &DeleteOptions::default())
                    .await
                    .unwrap();
                self.foreign_pod("other", "0", 8081).await;
                self.binding.policy(&self.name, open).await.unwrap();
            }
            Stage::PodRuns | Stage::PodRunsAgain => {
                for (kind, of) in [("ConfigMap", "configmaps"), ("Secret", "secrets")] {
                    let settings =
                        json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "settings"}});
                    let place = paths::core_all(of, &self.namespace);
                    if stage == Stage::PodRuns {
                        create_json(&self.computing, &place, &settings).await.unwrap();
                    }
                }
                create_json(&self.computing, &paths::pods(&self.namespace), &self.vpod()).await.unwrap();
            }
            Stage::LessIsFree => {
                self.foreign_pod("online", "2", 8080).await;
                self.csi_node(&["disk.csi", "file.csi"]).await;
                let change = json!({"metadata": {"labels": {"colour": null}}});
                merge_patch(&self.worker, &paths::node(&self.pnode), &change).await.unwrap();
            }
            Stage::Closed => {
                let mut closed = open;
                // A minute that is not now, nor while this runs.
                let away =
                    jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC) + jiff::Span::new().hours(12);
                let minute = away.strftime("%H:%M").to_string();
                closed["timeWindows"] = json!([{"start": minute, "end": minute}]);
                self.binding.policy(&self.name, closed).await.unwrap();
            }
            Stage::PolicyGone => self.delete(&self.worker, &paths::policy(&self.name)).await,
            Stage::BindingGone => self.delete(&self.computing, &paths::binding(&self.name)).await,
        }
    }

    /// A pod of the worker's own users that holds a port of the node.
    async fn foreign_pod(&self, name: &str, cpu: &str, port: u16) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("{name}-{}", self.name)},
            "spec": {"nodeName": self.pnode, "containers": [{
                "name": "c", "image": "c", "resources": {"requests": {"cpu": cpu}},
                "ports": [{"containerPort": port, "hostPort": port}],
            }]},
        });
        create_json(&self.worker, &paths::pods("default"), &pod).await.unwrap();
    }

    /// What the storage drivers of the node say: the first of them, or some more.
    async fn csi_node(&self, drivers: &[&str]) {
        let drivers: Vec<Value> =
            drivers.iter().map(|name| json!({"name": name, "nodeID": "i-1", "topologyKeys": []})).collect();
        let node = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": self.pnode},
            "spec": {"drivers": drivers},
        });
        if drivers.len() > 1 {
            merge_patch(&self.worker, &paths::csi_node(&self.pnode), &node).await.unwrap();
        } else {
            create_json(&self.worker, &paths::csi_nodes(), &node).await.unwrap();
        }
    }

    async fn delete(&self, client: &Client, path: &str) {
        delete_json(client, path, &DeleteOptions::default()).await.unwrap();
    }

    fn vpod(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
            "spec": {
                "nodeName": self.vnode, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": "c", "envFrom": [
                    {"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "settings"}},
                ]}],
            },
        })
    }

    /// Whether an uninterrupted run has come to the end of a stage.
    async fn is_over(&self, stage: Stage, shown: &Value) -> bool {
        let (vnode, policy) = (&shown["vnode"], &shown["policy"]);
        let effect = vnode["taints"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|it| it[0] == "kubeocean.io/out-of-time-windows");
        let applied = policy["conditions"].as_array().is_some_and(|all| {
            let is = |type_: &str| all.iter().find(|it| it[0] == type_).map(|it| it[1].clone());
            is("Applied") == Some("True".into())
                && is("Active") == Some(if stage == Stage::Closed { "False" } else { "True" }.into())
        });
        let settled = vnode["taints"]
            .as_array()
            .is_some_and(|all| all.iter().all(|it| !it[0].as_str().unwrap().starts_with("node.")));
        match stage {
            Stage::Leased | Stage::Opened => {
                let mirrored = if stage == Stage::Leased { json!(["disk.csi"]) } else { Value::Null };
                let reserved =
                    if stage == Stage::Leased { json!([]) } else { json!([[[8080, 8081], "True"]]) };
                shown["csinode"]["drivers"] == mirrored
                    && shown["reserved"] == reserved
                    && vnode["ready"] == "True"
                    && vnode["offered"] == "True"
                    && effect.is_none()
                    && applied
                    && settled
                    && !shown["lease"].is_null()
                    && shown["pnode"].is_string()
            }
            Stage::PodRuns | Stage::PodRunsAgain => {
                shown["vpods"][0]["phase"] == "Running" && shown["vpods"][0]["address"] == true
            }
            Stage::LessIsFree => {
                vnode["allocatable"]["cpu"] == "3"
                    && vnode["labels"].get("colour").is_none()
                    && shown["csinode"]["drivers"] == json!(["disk.csi", "file.csi"])
                    && shown["reserved"] == json!([[[8080], "True"]])
            }
            Stage::Closed => {
                let evicted =
                    vnode["offered"] == "False" && shown["vpods"] == json!([]) && shown["ppods"] == json!([]);
                evicted && effect.is_some_and(|it| it[1] == "NoExecute") && applied
            }
            Stage::PolicyGone => {
                let gone = get_json(&self.worker, &paths::policy(&self.name)).await.unwrap().is_none();
                gone && vnode.is_null()
                    && shown["pnode"].is_null()
                    && shown["vpods"] == json!([])
                    && shown["ppods"] == json!([])
            }
            Stage::BindingGone => {
                get_json(&self.computing, &paths::binding(&self.name)).await.unwrap().is_none()
                    && shown["copies"] == json!([])
            }
        }
    }
}

/// The parts of two pictures that differ.
fn differences(shown: &Value, expected: &Value) -> String {
    let keys = expected.as_object().unwrap().iter().filter(|(key, value)| shown[key.as_str()] != **value);
    let told: Vec<String> =
        keys.map(|(key, value)| format!("{key}: {} instead of {value}", shown[key.as_str()])).collect();
    told.join("\n")
}
