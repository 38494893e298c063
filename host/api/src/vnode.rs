//! How a vnode is known: by the labels its binding's vnodes are watched by, and, should somebody take those off, by the name
//! and finalizer we gave it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{
    keys::{annotation, finalizer, label},
    name::{fit_label_value, vnode_name},
};

/// The labels by which the vnodes of a binding are watched.
pub fn marks(binding: &str) -> [(&'static str, String); 2] {
    [
        (label::MANAGED_BY, label::MANAGED_BY_VALUE.to_owned()),
        (label::CLUSTER_BINDING, fit_label_value(binding)),
    ]
}

/// The label selector of that watch.
pub fn selector(binding: &str) -> String {
    marks(binding).map(|(key, value)| format!("{key}={value}")).join(",")
}

/// What a vnode lacks of these labels, as changes to it. `label` gives its labels.
pub fn missing_marks<'n>(
    label: impl Fn(&str) -> Option<&'n str>,
    binding: &str,
) -> BTreeMap<String, Option<String>> {
    let lacking = marks(binding).into_iter().filter(|(key, value)| label(key) != Some(value));
    lacking.map(|(key, value)| (key.to_owned(), Some(value))).collect()
}

/// Whether the watch shows it. `label` gives its labels.
pub fn is_marked<'n>(label: impl Fn(&str) -> Option<&'n str>, binding: &str) -> bool {
    missing_marks(label, binding).is_empty()
}

/// Whether a node is a vnode of this binding, whatever became of the labels it is watched by: it carries our finalizer and
/// the name we gave it, and no label says that it is another binding's.
pub fn is_left(node: &ObjectMeta, binding: &str, cluster_id: &str) -> bool {
    let label = |key: &str| label_of(node, key);
    let annotation = |key: &str| node.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str);
    let of_another = label(label::CLUSTER_BINDING).is_some_and(|named| named != fit_label_value(binding))
        || label(label::PHYSICAL_CLUSTER_ID).is_some_and(|cluster| cluster != cluster_id);
    let held = node.finalizers.iter().flatten().any(|one| one == finalizer::VNODE);
    let pnode = annotation(annotation::PHYSICAL_NODE_NAME).or_else(|| label(annotation::PHYSICAL_NODE_NAME));
    let named =
        pnode.is_some_and(|pnode| node.name.as_deref() == Some(vnode_name(cluster_id, pnode).as_str()));
    held && named && !of_another
}

/// A label.
pub fn label_of<'n>(node: &'n ObjectMeta, key: &str) -> Option<&'n str> {
    node.labels.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn left(change: &Value) -> (bool, bool) {
        let mut meta = json!({
            "name": "vnode-cls-a-n1", "uid": "u", "finalizers": [finalizer::VNODE],
            "labels": {label::PHYSICAL_CLUSTER_ID: "cls-a"},
            "annotations": {annotation::PHYSICAL_NODE_NAME: "n1"},
        });
        for (field, value) in change.as_object().unwrap() {
            meta[field.as_str()] = value.clone();
        }
        let node = serde_json::from_value(meta).unwrap();
        (is_left(&node, "dc-east", "cls-a"), is_marked(|key| label_of(&node, key), "dc-east"))
    }

    #[rstest]
    #[case::lost_both(json!({}), true)]
    #[case::lost_all_labels(json!({"labels": {}}), true)]
    #[case::lost_one(json!({"labels": {label::CLUSTER_BINDING: "dc-east"}}), true)]
    #[case::without_a_name(json!({"annotations": {}}), false)]
    #[case::of_another_binding(json!({"labels": {label::CLUSTER_BINDING: "dc-west"}}), false)]
    #[case::of_another_cluster(json!({"labels": {label::PHYSICAL_CLUSTER_ID: "cls-b"}}), false)]
    #[case::without_our_finalizer(json!({"finalizers": ["other"]}), false)]
    #[case::with_another_name(json!({"name": "vnode-cls-a-n2"}), false)]
    fn which_nodes_are_vnodes_that_lost_their_labels(#[case] change: Value, #[case] expected: bool) {
        assert_eq!(left(&change), (expected, false));
    }

    #[test]
    fn a_vnode_with_its_labels_is_left_and_will_be_seen() {
        let labels = json!({label::CLUSTER_BINDING: "dc-east", label::MANAGED_BY: label::MANAGED_BY_VALUE});
        assert_eq!(left(&json!({"labels": labels})), (true, true));
    }
}
