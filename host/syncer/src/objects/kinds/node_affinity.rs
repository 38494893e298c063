//! Where a volume can be reached from: a local volume names a node, which is a vnode here and a worker node there.

use kubeocean_api::keys::label;
use serde_json::Value;

use super::WorkerNode;

/// Translates the names of vnodes of this binding in the `nodeAffinity` of a volume. An expression that names none of
/// them stays as it is: no pod of this binding can be there because of it. Names of other nodes beside ours are dropped,
/// since a node of the worker cluster may have the same name by chance.
pub(super) fn translate(affinity: &mut Value, worker_node: &dyn Fn(&str) -> Option<WorkerNode>) {
    let terms = affinity.pointer_mut("/required/nodeSelectorTerms").and_then(Value::as_array_mut);
    for term in terms.into_iter().flatten() {
        let hostname: fn(WorkerNode) -> String = |node| node.hostname;
        for (list, key, part) in [
            ("matchExpressions", label::HOSTNAME, hostname),
            ("matchFields", "metadata.name", |node| node.name),
        ] {
            let expressions = term.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
            for expression in expressions.filter(|expression| expression["key"] == key) {
                let Some(values) = expression.get_mut("values").and_then(Value::as_array_mut) else {
                    continue;
                };
                let nodes = values.iter().filter_map(|name| worker_node(name.as_str()?));
                let ours: Vec<Value> = nodes.map(|node| part(node).into()).collect();
                if !ours.is_empty() {
                    *values = ours;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::ours(&["vnode-a"], &["host-a"], &["a"])]
    #[case::ours_and_others(&["node-9", "vnode-a", "vnode-b"], &["host-a", "host-b"], &["a", "b"])]
    #[case::none_of_ours(&["node-9"], &["node-9"], &["node-9"])]
    fn vnodes_become_worker_nodes(
        #[case] vnodes: &[&str],
        #[case] hostnames: &[&str],
        #[case] names: &[&str],
    ) {
        let affinity = |hostnames: &[&str], names: &[&str]| {
            json!({"required": {"nodeSelectorTerms": [{
                "matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": hostnames},
                    {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["vnode-a"]},
                ],
                "matchFields": [{"key": "metadata.name", "operator": "In", "values": names}],
            }]}})
        };
        let mut translated = affinity(vnodes, vnodes);
        translate(&mut translated, &|vnode| {
            let name = vnode.strip_prefix("vnode-")?;
            Some(WorkerNode { name: name.to_owned(), hostname: format!("host-{name}") })
        });
        assert_eq!(translated, affinity(hostnames, names));
    }
}
