//! Our finalizer on the binding (API-109): there before the first vnode, gone after the last trace of ours.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::leader::Leader;
use kubeocean_api::keys::{finalizer::BINDING_SYNCER, manager};
use kubeocean_runtime::{
    error::ApplyError,
    request::{get_json, merge_patch, paths},
};

/// Puts the finalizer on a binding that is not being deleted, whenever it is missing.
pub(crate) async fn keep_finalizer(leader: &Leader, cancel: CancellationToken) {
    let mut binding = leader.binding.clone();
    loop {
        let current = binding.borrow_and_update().clone();
        let mut failed = false;
        if !current.deleting && !current.has_finalizer {
            let added = change(leader, &current.name, &current.uid, Change::Add).await;
            if let Err(error) = &added {
                tracing::warn!(
                    binding = current.name,
                    error = error.chain(),
                    "finalizer not added, retrying"
                );
            }
            failed = added.is_err();
        }
        let pause = std::time::Duration::from_secs(if failed { 2 } else { 36_000 });
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = binding.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What to do with the finalizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Put it on.
    Add,
    /// Take it off.
    Remove,
}

/// Adds or removes our finalizer on a fresh copy of the binding, so that others' finalizers stay.
pub(crate) async fn change(leader: &Leader, name: &str, uid: &str, change: Change) -> Result<(), ApplyError> {
    let path = paths::binding(name);
    let Some(object) = get_json(&leader.computing, &path).await? else { return Ok(()) };
    if object.pointer("/metadata/uid").and_then(Value::as_str) != Some(uid) {
        return Ok(());
    }
    let mut finalizers: Vec<Value> =
        object.pointer("/metadata/finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    let present = finalizers.iter().any(|one| one == BINDING_SYNCER);
    match change {
        Change::Add if !present => finalizers.push(BINDING_SYNCER.into()),
        Change::Remove if present => finalizers.retain(|one| one != BINDING_SYNCER),
        Change::Add | Change::Remove => return Ok(()),
    }
    let patch = json!({"metadata": {
        "uid": uid,
        "resourceVersion": object.pointer("/metadata/resourceVersion"),
        "finalizers": finalizers,
    }});
    let path = format!("{path}?fieldManager={}", manager::SYNCER);
    merge_patch(&leader.computing, &path, &patch).await.map(drop)
}
