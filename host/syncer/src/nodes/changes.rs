//! What of a vnode the status endpoint does not take: taints, cordon, finalizer, and keys that go.
//!
//! Pure. In: the vnode and its wanted content. Out: [`NodeChanges`] for one patch.

use kubeocean_api::keys::{annotation, finalizer};

use super::{
    action::NodeChanges,
    metadata::{ExpectedMetadata, same_taints, stale_keys},
    view::{NO_EXECUTE, NO_SCHEDULE, NodeView, Taint},
    vnode::Content,
};

/// What the status endpoint does not take, taints, cordon, finalizer, and keys of ours that are wanted no more. The start
/// of a reclaim is written together with its taint.
pub(super) fn changes(vnode: &NodeView, wanted: &Content) -> NodeChanges {
    let mut changes = NodeChanges::of(vnode);
    let before = ExpectedMetadata::decode(vnode.annotation(annotation::EXPECTED_METADATA));
    for key in stale_keys(&before.labels, &wanted.labels, &vnode.labels) {
        changes.labels.insert(key, None);
    }
    for key in stale_keys(&before.annotations, &wanted.annotations, &vnode.annotations) {
        changes.annotations.insert(key, None);
    }
    if !same_taints(&wanted.taints, &vnode.spec.taints) {
        changes.taints = Some(wanted.taints.clone());
        // Known as ours from this write on: if it is the last one, they must not pass for a user's.
        let ours = ExpectedMetadata::decode(
            wanted.annotations.get(annotation::EXPECTED_METADATA).map(String::as_str),
        );
        know_taints(&mut changes, &before, &ours.taints);
    }
    let since = wanted.annotations.get(annotation::RECLAIM_SINCE);
    if let Some(since) = since
        && vnode.annotation(annotation::RECLAIM_SINCE) != Some(since)
    {
        changes.annotations.insert(annotation::RECLAIM_SINCE.to_owned(), Some(since.clone()));
    }
    // A cordon by a user stays; ours is known by the time we left with it.
    if vnode.spec.unschedulable && vnode.annotation(annotation::DELETION_TAINT_TIME).is_some() {
        changes.unschedulable = Some(false);
    }
    let finalizers = &vnode.metadata.finalizers;
    if !finalizers.iter().any(|name| name == finalizer::VNODE) {
        let ours = std::iter::once(finalizer::VNODE.to_owned());
        changes.finalizers = Some(finalizers.iter().cloned().chain(ours).collect());
    }
    changes
}

/// Whether the vnode would take pods after the changes that it does not take now.
pub(super) fn admits_pods(changes: &NodeChanges, vnode: &NodeView) -> bool {
    let keeps_away = |taint: &&Taint| matches!(taint.effect.as_str(), NO_SCHEDULE | NO_EXECUTE);
    let opens = |taints: &Vec<Taint>| {
        let stays = |key: &str| taints.iter().filter(keeps_away).any(|taint| taint.key == key);
        vnode.spec.taints.iter().filter(keeps_away).any(|taint| !stays(&taint.key))
    };
    changes.unschedulable == Some(false) || changes.taints.as_ref().is_some_and(opens)
}

/// Taints that are set are remembered as ours by the same write.
pub(super) fn know_taints(changes: &mut NodeChanges, before: &ExpectedMetadata, ours: &[Taint]) {
    if let Some(known) = before.with_taints(ours) {
        changes.annotations.insert(annotation::EXPECTED_METADATA.to_owned(), Some(known.encode()));
    }
}
