//! Request paths.
//!
//! Many names are a tenant's words: a volume may name its Secret `../../kube-system/secrets/x`, and a proxy in front of an API
//! server may make of that what the tenant hopes for. Every name is therefore one step of the path or stands for nobody.

use kubeocean_api::{GROUP, VERSION};

/// No object has this name, since none may begin with an underscore.
const NOBODY: &str = "_";

/// The name as one step of a path. What cannot be the name of an object is nobody's.
fn step(name: &str) -> &str {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    let is_name = !["", ".", ".."].contains(&name) && name.bytes().all(is_plain);
    if is_name { name } else { NOBODY }
}

/// Where an account asks for its own rights.
pub const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// A pod.
pub fn pod(namespace: &str, name: &str) -> String {
    let (namespace, name) = (step(namespace), step(name));
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}
/// The pods of a namespace.
pub fn pods(namespace: &str) -> String {
    let namespace = step(namespace);
    format!("/api/v1/namespaces/{namespace}/pods")
}
/// A pod's status subresource.
pub fn pod_status(namespace: &str, name: &str) -> String {
    format!("{}/status", pod(namespace, name))
}
/// A pod's ephemeral containers.
pub fn pod_ephemeral_containers(namespace: &str, name: &str) -> String {
    format!("{}/ephemeralcontainers", pod(namespace, name))
}
/// A pod's subresource for changes of its containers' resources.
pub fn pod_resize(namespace: &str, name: &str) -> String {
    format!("{}/resize", pod(namespace, name))
}
/// A node.
pub fn node(name: &str) -> String {
    let name = step(name);
    format!("/api/v1/nodes/{name}")
}
/// All nodes.
pub fn nodes() -> String {
    "/api/v1/nodes".to_owned()
}
/// A node's status subresource.
pub fn node_status(name: &str) -> String {
    format!("{}/status", node(name))
}
/// A namespaced core object; `plural` is for example `configmaps`.
pub fn core(plural: &str, namespace: &str, name: &str) -> String {
    let (namespace, name) = (step(namespace), step(name));
    format!("/api/v1/namespaces/{namespace}/{plural}/{name}")
}
/// The core objects of a kind in a namespace.
pub fn core_all(plural: &str, namespace: &str) -> String {
    let namespace = step(namespace);
    format!("/api/v1/namespaces/{namespace}/{plural}")
}
/// A core object without namespace; `plural` is for example `persistentvolumes`.
pub fn cluster_core(plural: &str, name: &str) -> String {
    let name = step(name);
    format!("/api/v1/{plural}/{name}")
}
/// The core objects of a kind without namespace.
pub fn cluster_core_all(plural: &str) -> String {
    format!("/api/v1/{plural}")
}
/// All CSINodes.
pub fn csi_nodes() -> String {
    "/apis/storage.k8s.io/v1/csinodes".to_owned()
}
/// A CSINode.
pub fn csi_node(name: &str) -> String {
    let name = step(name);
    format!("{}/{name}", csi_nodes())
}
/// All namespaces.
pub fn namespaces() -> String {
    "/api/v1/namespaces".to_owned()
}
/// A namespace.
pub fn namespace(name: &str) -> String {
    let name = step(name);
    format!("/api/v1/namespaces/{name}")
}
/// Token requests of a ServiceAccount.
pub fn service_account_token(namespace: &str, service_account: &str) -> String {
    let (namespace, service_account) = (step(namespace), step(service_account));
    format!("/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token")
}
/// A coordination Lease.
pub fn lease(namespace: &str, name: &str) -> String {
    let name = step(name);
    format!("{}/{name}", leases(namespace))
}
/// The coordination Leases of a namespace.
pub fn leases(namespace: &str) -> String {
    let namespace = step(namespace);
    format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
}
/// A ReplicaSet.
pub fn replica_set(namespace: &str, name: &str) -> String {
    let (namespace, name) = (step(namespace), step(name));
    format!("/apis/apps/v1/namespaces/{namespace}/replicasets/{name}")
}
/// All PriorityClasses.
pub fn priority_classes() -> String {
    "/apis/scheduling.k8s.io/v1/priorityclasses".to_owned()
}
/// All ResourceLeasingPolicies.
pub fn policies() -> String {
    format!("/apis/{GROUP}/{VERSION}/resourceleasingpolicies")
}
/// A ResourceLeasingPolicy.
pub fn policy(name: &str) -> String {
    let name = step(name);
    format!("{}/{name}", policies())
}
/// A ResourceLeasingPolicy's status subresource.
pub fn policy_status(name: &str) -> String {
    format!("{}/status", policy(name))
}
/// A ClusterBinding.
pub fn binding(name: &str) -> String {
    let name = step(name);
    format!("/apis/{GROUP}/{VERSION}/clusterbindings/{name}")
}
/// A ClusterBinding's status subresource.
pub fn binding_status(name: &str) -> String {
    format!("{}/status", binding(name))
}
/// The events of a namespace.
pub fn events(namespace: &str) -> String {
    core_all("events", namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_step_of_a_path_or_nobodys() {
        for name in ["a", "kube-root-ca.crt", "system:node", "0.a-b", "..."] {
            assert_eq!(core("secrets", "team", name), format!("/api/v1/namespaces/team/secrets/{name}"));
        }
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a?watch=true",
            "?",
            "a#b",
            "a%2fb",
            "a b",
            "a\nb",
            "\u{e4}",
            "a;b",
        ] {
            assert_eq!(core("secrets", "team", name), "/api/v1/namespaces/team/secrets/_");
            assert_eq!(cluster_core("persistentvolumes", name), "/api/v1/persistentvolumes/_");
            assert_eq!(replica_set("team", name), "/apis/apps/v1/namespaces/team/replicasets/_");
            assert_eq!(pod_status(name, "p"), "/api/v1/namespaces/_/pods/p/status");
        }
    }
}
