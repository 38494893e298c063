//! Vnodes of ours that no watch shows (BU section 14): one that lost the labels by which they are watched, while nobody
//! looked, or one whose creation was not answered a moment ago. At the start of a leader and at the end of the binding's
//! deletion they are looked for once, and get the labels back: then they are treated as all others. Left alone they would
//! keep our finalizer, and their pods, for ever.

use std::time::Duration;

use kube::Client;
use kubeocean_api::{
    keys::manager,
    vnode::{is_left, is_marked, label_of, missing_marks},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    leader::Leader,
    nodes::{store::NodeStore, view::NodeView},
};
use kubeocean_runtime::{
    error::ApplyError,
    request::{PAGE, list_metadata, merge_patch, paths},
};

/// Pause between two attempts to list the nodes.
const RETRY: Duration = Duration::from_secs(2);

/// Gives such vnodes their labels back; returns how many vnodes are left, with those that have their labels.
pub(super) async fn label_anew(computing: &Client, nodes: &NodeStore) -> Result<usize, ApplyError> {
    let identity = nodes.identity();
    let all = list_metadata(computing, &paths::nodes(), PAGE).await?;
    let mut found = 0;
    for vnode in all.iter().filter(|node| is_left(node, &identity.binding, &identity.cluster_id)) {
        if is_marked(|key| label_of(vnode, key), &identity.binding) {
            found += 1;
            continue;
        }
        let name = vnode.name.as_deref().unwrap_or_default();
        tracing::info!(vnode = name, "a vnode has lost its labels, restored");
        let labels = missing_marks(|key| label_of(vnode, key), &identity.binding);
        let patch = json!({"metadata": {"uid": vnode.uid, "labels": labels}});
        let path = format!("{}?fieldManager={}", paths::node(name), manager::SYNCER);
        match merge_patch(computing, &path, &patch).await {
            Ok(answer) => {
                // Known at once: until its watch shows it, its policy must not seem to lease nothing.
                if let Ok(vnode) = serde_json::from_value::<NodeView>(answer) {
                    nodes.saw_vnode(vnode);
                }
                found += 1;
            }
            Err(ApplyError::NotFound { .. } | ApplyError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Looks for them once, after the first list of vnodes: what is missing in it lost its labels before, and what loses them
/// later is missed by the watch. Nothing is decided before that.
pub(crate) async fn look_once(leader: &Leader, cancel: CancellationToken) {
    let looking = async {
        leader.stores.vnodes_listed.synced().await;
        while let Err(error) = label_anew(&leader.computing, &leader.stores.nodes).await {
            tracing::warn!(error = error.chain(), "cannot look for vnodes without labels, retrying");
            tokio::time::sleep(RETRY).await;
        }
        // The only one who says so.
        let _ = leader.stores.strays_found.set(());
        std::future::pending::<()>().await;
    };
    cancel.run_until_cancelled(looking).await;
}
