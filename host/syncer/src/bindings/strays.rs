//! Vnodes of ours that no watch shows (BU section 14): one that lost the labels by which they are watched, while nobody
//! looked, or one whose creation was not answered a moment ago. At the end of the binding's deletion they are looked for
//! once, and get the labels back: then they are withdrawn as all others. Left alone they would keep our finalizer for
//! ever.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kubeocean_api::{
    keys::{annotation, finalizer, label, manager},
    name::{fit_label_value, vnode_name},
};
use serde_json::json;

use crate::nodes::index::Identity;
use kubeocean_runtime::{
    error::ApplyError,
    request::{PAGE, list_metadata, merge_patch, paths},
};

/// Gives such vnodes their labels back; returns how many vnodes are left, with those that have their labels.
pub(super) async fn label_anew(computing: &Client, identity: &Identity) -> Result<usize, ApplyError> {
    let all = list_metadata(computing, &paths::nodes(), PAGE).await?;
    let mut found = 0;
    for vnode in all.iter().filter(|node| is_left(node, identity)) {
        if is_watched(vnode, identity) {
            found += 1;
            continue;
        }
        let name = vnode.name.as_deref().unwrap_or_default();
        tracing::info!(vnode = name, "a vnode has lost its labels, restored");
        let labels = json!({
            label::MANAGED_BY: label::MANAGED_BY_VALUE,
            label::CLUSTER_BINDING: fit_label_value(&identity.binding),
        });
        let patch = json!({"metadata": {"uid": vnode.uid, "labels": labels}});
        let path = format!("{}?fieldManager={}", paths::node(name), manager::SYNCER);
        match merge_patch(computing, &path, &patch).await {
            Ok(_) => found += 1,
            Err(ApplyError::NotFound { .. } | ApplyError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn label_of<'n>(node: &'n ObjectMeta, key: &str) -> Option<&'n str> {
    node.labels.as_ref()?.get(key).map(String::as_str)
}

/// It has the labels that the watch of vnodes selects.
fn is_watched(node: &ObjectMeta, identity: &Identity) -> bool {
    label_of(node, label::MANAGED_BY) == Some(label::MANAGED_BY_VALUE)
        && label_of(node, label::CLUSTER_BINDING) == Some(&fit_label_value(&identity.binding))
}

/// It carries our finalizer and the name we gave it, and no label says that it is another binding's.
fn is_left(node: &ObjectMeta, identity: &Identity) -> bool {
    let label = |key: &str| label_of(node, key);
    let annotation = |key: &str| node.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str);
    let of_another = label(label::CLUSTER_BINDING)
        .is_some_and(|binding| binding != fit_label_value(&identity.binding))
        || label(label::PHYSICAL_CLUSTER_ID).is_some_and(|cluster| cluster != identity.cluster_id);
    let held = node.finalizers.iter().flatten().any(|one| one == finalizer::VNODE);
    let pnode = annotation(annotation::PHYSICAL_NODE_NAME).or_else(|| label(annotation::PHYSICAL_NODE_NAME));
    let named = pnode
        .is_some_and(|pnode| node.name.as_deref() == Some(vnode_name(&identity.cluster_id, pnode).as_str()));
    held && named && !of_another
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::Value;

    fn left(change: &Value) -> (bool, bool) {
        let mut meta = json!({
            "name": "vnode-cls-a-n1", "uid": "u", "finalizers": [finalizer::VNODE],
            "labels": {label::PHYSICAL_CLUSTER_ID: "cls-a"},
            "annotations": {annotation::PHYSICAL_NODE_NAME: "n1"},
        });
        for (field, value) in change.as_object().unwrap() {
            meta[field.as_str()] = value.clone();
        }
        let identity =
            Identity { binding: "dc-east".into(), cluster_id: "cls-a".into(), computing_uid: "c".into() };
        let node = serde_json::from_value(meta).unwrap();
        (is_left(&node, &identity), is_watched(&node, &identity))
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
