//! From where a volume can be reached.
//!
//! A pod is on the node that the computing cluster's scheduler chose, which looked at the affinity of the volume, and its
//! copy is bound to the worker node behind it. To repeat in the worker cluster which *nodes* may use the volume would only
//! do harm: the affinity of a volume can never be changed, but the copy outlives the vnodes that exist when it is made, and
//! may serve bindings that have others.

use kubeocean_api::keys::label;
use serde_json::{Map, Value, json};

/// The places of an expression that names nodes: list, key.
const NODES: [(&str, &str); 2] = [("matchExpressions", label::HOSTNAME), ("matchFields", "metadata.name")];

/// Takes nodes out of the affinity in the `spec` of a volume. What is said of labels, such as zones, stays; a vnode has those
/// of its worker node.
pub(super) fn generalise(spec: &mut Map<String, Value>) {
    let Some(affinity) = spec.get_mut("nodeAffinity") else { return };
    let terms = affinity.pointer_mut("/required/nodeSelectorTerms").and_then(Value::as_array_mut);
    let mut everywhere = false;
    for term in terms.into_iter().flatten().filter_map(Value::as_object_mut) {
        let named_any = !term.is_empty();
        for (list, key) in NODES {
            if let Some(expressions) = term.get_mut(list).and_then(Value::as_array_mut) {
                expressions.retain(|expression| expression["key"] != key);
                if expressions.is_empty() {
                    term.remove(list);
                }
            }
        }
        everywhere |= named_any && term.is_empty();
    }
    if !everywhere {
        return;
    }
    // Of a local volume the API server wants an affinity. Every node has this label.
    if spec.contains_key("local") {
        let any = json!({"key": label::HOSTNAME, "operator": "Exists"});
        let required = json!({"nodeSelectorTerms": [{"matchExpressions": [any]}]});
        spec.insert("nodeAffinity".to_owned(), json!({"required": required}));
    } else {
        spec.remove("nodeAffinity");
    }
}

/// Whether an affinity names vnodes, as copies of the original Kubeocean do: no pod can use such a volume.
pub(super) fn names_vnodes(affinity: &Value) -> bool {
    let terms = affinity.pointer("/required/nodeSelectorTerms").and_then(Value::as_array);
    terms.into_iter().flatten().any(|term| {
        NODES.iter().any(|(list, key)| {
            let expressions = term.get(list).and_then(Value::as_array).into_iter().flatten();
            let values = expressions
                .filter(|expression| expression["key"] == *key)
                .filter_map(|expression| expression["values"].as_array());
            values.flatten().filter_map(Value::as_str).any(|name| name.starts_with("vnode-"))
        })
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn hosts(names: &[&str]) -> Value {
        json!({"key": label::HOSTNAME, "operator": "In", "values": names})
    }

    fn zone() -> Value {
        json!({"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a"]})
    }

    #[rstest]
    #[case::a_node(json!([{"matchExpressions": [hosts(&["vnode-a"])]}]), Value::Null)]
    #[case::by_field(
        json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]), Value::Null)]
    #[case::a_node_or_a_zone(
        json!([{"matchExpressions": [hosts(&["vnode-a"])]}, {"matchExpressions": [zone()]}]), Value::Null)]
    #[case::a_node_in_a_zone(
        json!([{"matchExpressions": [hosts(&["vnode-a"]), zone()]}]), json!([{"matchExpressions": [zone()]}]))]
    #[case::a_zone(json!([{"matchExpressions": [zone()]}]), json!([{"matchExpressions": [zone()]}]))]
    fn nodes_are_not_repeated_and_labels_are(#[case] terms: Value, #[case] expected: Value) {
        let affinity = |terms: &Value| json!({"required": {"nodeSelectorTerms": terms}});
        let generalised = |source: &str| {
            let mut spec = Map::from_iter([
                (source.to_owned(), json!({})),
                ("nodeAffinity".to_owned(), affinity(&terms)),
            ]);
            generalise(&mut spec);
            spec.remove("nodeAffinity")
        };
        let of_any = (!expected.is_null()).then(|| affinity(&expected));
        assert_eq!(generalised("nfs"), of_any);
        let anywhere = json!([{"matchExpressions": [{"key": label::HOSTNAME, "operator": "Exists"}]}]);
        assert_eq!(generalised("local"), Some(of_any.unwrap_or_else(|| affinity(&anywhere))));
    }

    #[test]
    fn vnodes_are_recognised() {
        let of = |names: &[&str]| {
            names_vnodes(
                &json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [zone(), hosts(names)]}]}}),
            )
        };
        assert!(of(&["n1", "vnode-a-n1"]) && !of(&["n1"]));
    }
}
