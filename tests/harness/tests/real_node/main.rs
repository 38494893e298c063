//! A real kubelet with real containers: what runs on it behaves as in production ([`pods`]), and nothing of it stays
//! ([`traces`], [`killed`]).
//!
//! Where a real node cannot run, each test says why in one line and does nothing; `KUBEOCEAN_REAL_NODE=required` makes that
//! a failure.

mod killed;
mod pods;
mod traces;

use std::process::Output;
use std::time::Duration;

use kubeocean_harness::exec::{Protocol, Target};
use kubeocean_harness::kubelet::BUSYBOX_IMAGE;
use kubeocean_harness::{Cluster, ClusterSpec, RealNode, wait_until};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Two busy cores start a container in seconds; a test machine may be busier.
const DEADLINE: Duration = Duration::from_mins(1);

/// The cluster and its node that the tests of this process share, if this machine can run it.
async fn shared() -> Option<&'static (Cluster, RealNode)> {
    static SHARED: OnceCell<Option<(Cluster, RealNode)>> = OnceCell::const_new();
    let start = async || {
        let cluster =
            Cluster::start(ClusterSpec::worker("real").real_nodes()).await.expect("a cluster starts");
        let node = cluster.real_node_or_reason("real-0").await?;
        println!("cluster ready in {:?}, real node in {:?}", cluster.start_time(), node.start_time());
        Some((cluster, node))
    };
    SHARED.get_or_init(start).await.as_ref()
}

/// Starts a pod of one busybox container that runs `script`, in a namespace of its own, and waits until it runs. `fields`
/// are more ones of the pod's `spec`, or `volumeMounts` and `ports` of the container.
async fn run_pod(cluster: &Cluster, node: &str, namespace: &str, script: &str, mut fields: Value) {
    cluster.create_namespace(namespace).await.expect("a new namespace");
    let mut container = json!({
        "name": "c", "image": BUSYBOX_IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", script],
    });
    for of_container in ["volumeMounts", "ports"] {
        container[of_container] = fields[of_container].take();
    }
    let mut spec = json!({"nodeName": node, "containers": [container]});
    for (name, value) in fields.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        spec[name] = value.clone();
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace}, "spec": spec,
    });
    cluster.apply_objects(vec![pod]).await.expect("a valid pod");
    wait_until("the pod to run", DEADLINE, async || {
        let get = ["get", "pod", "p", "-n", namespace, "-o", "jsonpath={.status.phase} {.status.conditions}"];
        let status = cluster.kubectl_text(&get).await.map_err(|error| format!("{error:#}"))?;
        if status.starts_with("Running") { Ok(()) } else { Err(status) }
    })
    .await;
}

/// `kubectl exec` of a command in the pod, with the input and then its end if there is one.
async fn exec(
    cluster: &Cluster,
    protocol: Protocol,
    namespace: &str,
    command: &[&str],
    input: Option<&[u8]>,
) -> Output {
    let target = Target { namespace, pod: "p" };
    cluster.exec(protocol, target, command, input).await.expect("kubectl ends")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}
