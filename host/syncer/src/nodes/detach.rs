//! The bottom-up share of a binding's deletion (BU section 14).
//!
//! Caller: the binding's own deletion, repeatedly, until nothing is left. While the binding is deleted every vnode is
//! withdrawn by the ordinary plan; this file removes what hangs on no vnode.

use kube::Client;

use super::{apply::remove_labels, store::NodeStore};
use crate::policies::store::PolicyStore;

/// What is left of a binding on the side of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Vnodes that still exist, sorted.
    pub vnodes: Vec<String>,
    /// Labels and finalizers in the worker cluster that could not be removed.
    pub failed_writes: usize,
}

impl Remains {
    /// Whether everything is gone.
    pub fn is_empty(&self) -> bool {
        self.vnodes.is_empty() && self.failed_writes == 0
    }
}

/// Removes labels of worker nodes and finalizers of policies once no vnode is left. Call again when a vnode went.
pub async fn detach(worker: &Client, nodes: &NodeStore, policies: &PolicyStore) -> Remains {
    let vnodes: Vec<String> = nodes.vnode_names().into_iter().collect();
    if !vnodes.is_empty() {
        return Remains { vnodes, failed_writes: 0 };
    }
    let labels = remove_labels(worker, nodes, &|value| policies.may_clean_label(value)).await;
    Remains { vnodes, failed_writes: labels + policies.release_all(worker).await }
}
