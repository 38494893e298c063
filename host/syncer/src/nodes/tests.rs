//! Planner tests: a plan is applied to a model in memory, so that what follows can be planned as well.

mod amounts;
mod crash;
mod lease;
mod mirrored;
pub(super) mod model;
mod policy_decision;
mod reclaim;
mod simulation;
mod week;
mod withdrawal;

/// A vnode of this binding, for worker node `n1`, as other concerns see it.
pub(crate) fn our_vnode(name: &str) -> super::store::VnodeRef {
    super::store::VnodeRef {
        name: name.to_owned(),
        uid: "v-1".to_owned(),
        worker_node: Some("n1".to_owned()),
        deleting: false,
        ours: true,
    }
}
