//! When the policy finalizer is needed (BU section 13 *Do better*, TD-1104).
//!
//! Pure. It is needed exactly while a vnode is, or is about to be, built from the policy; so a policy can always be
//! deleted, and never vanishes under a vnode.

use serde_json::{Value, json};

use super::view::PolicyView;
use crate::nodes::index::Identity;
use kubeocean_api::keys::{annotation, finalizer};

/// What to do with the finalizer.
#[derive(Clone, Debug, PartialEq)]
pub enum FinalizerChange {
    /// Merge patch that adds finalizer and holder.
    Hold(Value),
    /// Merge patch that removes both.
    Release(Value),
}

fn patch(policy: &PolicyView, finalizers: &[&String], holder: Option<&Identity>) -> Value {
    json!({"metadata": {
        "uid": policy.metadata.uid,
        "resourceVersion": policy.metadata.resource_version,
        "finalizers": finalizers,
        "annotations": {
            annotation::COMPUTING_CLUSTER_UID: holder.map(|holder| &holder.computing_uid),
            annotation::CLUSTER_BINDING: holder.map(|holder| &holder.binding),
        },
    }})
}

/// Before a vnode is built: `None` if the policy is held already, or is not ours to hold.
pub fn hold(policy: &PolicyView, us: &Identity) -> Option<FinalizerChange> {
    if is_held(policy, us) || policy.deleting() || policy.taken(&us.computing_uid) {
        return None;
    }
    let ours = finalizer::POLICY.to_owned();
    let others = policy.metadata.finalizers.iter().flatten().filter(|name| **name != ours);
    let all: Vec<&String> = others.chain([&ours]).collect();
    Some(FinalizerChange::Hold(patch(policy, &all, Some(us))))
}

/// The policy carries the finalizer, our cluster's UID and our binding's name. One of the original has neither and is
/// taken over.
pub fn is_held(policy: &PolicyView, us: &Identity) -> bool {
    policy.has_finalizer()
        && policy.holder() == Some(&us.computing_uid)
        && policy.held_for() == Some(&us.binding)
}

/// After the last vnode. `ours`: the policy names our binding, or did while we looked.
pub fn release(
    policy: &PolicyView,
    computing_uid: &str,
    ours: bool,
    built: usize,
) -> Option<FinalizerChange> {
    if built > 0 || !ours || !policy.has_finalizer() || policy.taken(computing_uid) {
        return None;
    }
    let kept: Vec<&String> =
        policy.metadata.finalizers.iter().flatten().filter(|name| *name != finalizer::POLICY).collect();
    Some(FinalizerChange::Release(patch(policy, &kept, None)))
}
