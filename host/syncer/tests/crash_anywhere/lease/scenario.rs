//! The life of a lease in stages: users act, and everything must come to rest before they act again.

use std::ops::Deref;

use kubeocean_runtime::request::{DeleteOptions, create_json, delete_json, merge_patch, paths};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::picture::picture;
use crate::life::{Place, Run, Story, delete};

/// Seconds between the end of a lease and the eviction of its pods.
const GRACE: u32 = 2;

/// Every kind of write a lease and its pods need, but for a namespace that only the first Syncer of a cluster makes.
const KINDS: [&str; 24] = [
    "computing APPLY clusterbindings/status",
    "computing DELETE csinodes",
    "computing DELETE nodes",
    "computing DELETE pods",
    "computing PATCH clusterbindings",
    "computing PATCH configmaps",
    "computing PATCH csinodes",
    "computing PATCH nodes",
    "computing PATCH nodes/status",
    "computing PATCH pods/status",
    "computing PATCH secrets",
    "computing POST csinodes",
    "computing POST leases",
    "computing POST nodes",
    "computing POST pods",
    "worker DELETE configmaps",
    "worker DELETE pods",
    "worker DELETE secrets",
    "worker PATCH nodes",
    "worker PATCH resourceleasingpolicies",
    "worker PATCH resourceleasingpolicies/status",
    "worker POST configmaps",
    "worker POST pods",
    "worker POST secrets",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Leased,
    PodRuns,
    LessIsFree,
    Closed,
    Opened,
    PodRunsAgain,
    PolicyGone,
    BindingGone,
}

pub(crate) struct Lease(Place);

impl Deref for Lease {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.0
    }
}

impl Story for Lease {
    const NAME: &'static str = "lease";
    const KINDS: &'static [&'static str] = &KINDS;
    const SIDE_BY_SIDE: usize = 16;
    type Stage = Stage;
    const STAGES: &'static [Stage] = &[
        Stage::Leased,
        Stage::PodRuns,
        Stage::LessIsFree,
        Stage::Closed,
        Stage::Opened,
        Stage::PodRunsAgain,
        Stage::PolicyGone,
        Stage::BindingGone,
    ];
    const ONCE: &'static [(&'static str, usize)] = &[("computing POST nodes", 1), ("worker POST pods", 2)];

    async fn new(name: String) -> Self {
        Self(Place::new(&name).await)
    }

    fn whole() -> &'static OnceCell<Run> {
        static WHOLE: OnceCell<Run> = OnceCell::const_new();
        &WHOLE
    }

    /// Not those that say nothing about the state of a cluster, or that only the first Syncer of a cluster makes.
    fn counts(kind: &str) -> bool {
        let aside = ["events", "reviews", "PATCH leases", "priorityclasses", "POST namespaces"];
        aside.iter().all(|aside| !kind.ends_with(aside))
    }

    async fn picture(&self) -> Value {
        picture(self).await
    }

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
            Stage::PolicyGone => delete(&self.worker, &paths::policy(&self.name)).await,
            Stage::BindingGone => delete(&self.computing, &paths::binding(&self.name)).await,
        }
    }

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
                policy["phase"].is_null()
                    && vnode.is_null()
                    && shown["pnode"].is_null()
                    && shown["vpods"] == json!([])
                    && shown["ppods"] == json!([])
            }
            Stage::BindingGone => {
                // Asking once more would tell what came after the picture.
                shown["binding"].is_null() && shown["copies"] == json!([])
            }
        }
    }
}

impl Lease {
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
}
