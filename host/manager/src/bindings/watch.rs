//! The watch of all bindings.

use std::sync::Arc;

use kube::{Api, Client, runtime::watcher};
use kubeocean_api::ClusterBinding;
use kubeocean_runtime::watch::{WatchHealth, WatchSpec, watch_into};
use tokio_util::sync::CancellationToken;

use super::index::Index;

/// Feeds the index until `cancel`.
pub async fn watch_bindings(
    computing: Client,
    index: Arc<Index>,
    health: Arc<WatchHealth>,
    cancel: CancellationToken,
) {
    let api = Api::<ClusterBinding>::all(computing);
    let spec = WatchSpec { name: "bindings", api, config: watcher::Config::default() };
    watch_into(spec, index, health, cancel).await;
}
