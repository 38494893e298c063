//! Users of the computing cluster whose pods run on one binding's vnodes.

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use kubeocean_api::keys::taint;
use serde_json::{Value, json};

use crate::leasing::{DEADLINE, Leasing};

/// Pods of a user of the computing cluster, on the vnodes of one binding.
#[derive(Debug)]
pub struct Users<'a> {
    leasing: &'a Leasing,
    /// Their namespace.
    pub home: String,
    pub pods: Api<Pod>,
}

impl<'a> Users<'a> {
    /// With a namespace of their own.
    ///
    /// # Panics
    /// The server refuses it.
    pub async fn of(leasing: &'a Leasing) -> Self {
        let home = format!("{}-users", leasing.binding.name());
        let computing = leasing.binding.computing();
        computing.create_namespace(&home).await.expect("a namespace");
        let pods = Api::namespaced(computing.client().await.expect("a client"), &home);
        Self { leasing, home, pods }
    }

    /// A running pod that tolerates vnodes, and `more` taints with every effect. Returns its UID.
    ///
    /// # Panics
    /// The server refuses it, or it does not run.
    pub async fn run(&self, name: &str, vnode: &str, more: &[&str]) -> String {
        let tolerations: Vec<Value> = [&[taint::VNODE], more]
            .concat()
            .iter()
            .map(|key| json!({"key": key, "operator": "Exists"}))
            .collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": self.home},
            "spec": {
                "nodeName": vnode, "tolerations": tolerations, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": "batch:1", "resources": {"requests": {"cpu": "1"}}}],
            },
        });
        self.leasing.binding.computing().apply_objects(vec![pod]).await.expect("a pod");
        self.leasing
            .until(&format!("the pod {name} to run"), DEADLINE, async || match self.pods.get(name).await {
                Ok(pod) if phase(&pod) == "Running" => Ok(pod.uid().unwrap_or_default()),
                Ok(pod) => Err(format!("{:?}", pod.status)),
                Err(error) => Err(error.to_string()),
            })
            .await
    }

    /// Whether the pod of this UID is there and nobody asked it to go.
    ///
    /// # Panics
    /// The server does not answer.
    pub async fn stays(&self, name: &str, uid: &str) -> bool {
        let pod = self.pods.get_opt(name).await.expect("an answer");
        pod.is_some_and(|pod| pod.uid().as_deref() == Some(uid) && pod.metadata.deletion_timestamp.is_none())
    }

    /// Waits until the pod is gone.
    pub async fn gone(&self, name: &str) {
        self.leasing
            .until(&format!("the pod {name} to go"), DEADLINE, async || match self.pods.get_opt(name).await {
                Ok(None) => Ok(()),
                other => Err(format!("{:?}", other.map(|pod| pod.map(|pod| pod.metadata)))),
            })
            .await;
    }
}

/// Waits for an event of this reason on an object.
///
/// # Panics
/// It does not come.
pub async fn told(leasing: &Leasing, home: &str, object: &str, reason: &str) {
    let events: Api<Event> =
        Api::namespaced(leasing.binding.computing().client().await.expect("a client"), home);
    let of = ListParams::default().fields(&format!("involvedObject.name={object}"));
    leasing
        .until(&format!("the event {reason} on {object}"), DEADLINE, async || {
            let all = events.list(&of).await.map_err(|error| error.to_string())?;
            let reasons: Vec<_> = all.into_iter().filter_map(|event| event.reason).collect();
            if reasons.iter().any(|one| one == reason) { Ok(()) } else { Err(reasons.join(", ")) }
        })
        .await;
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}
