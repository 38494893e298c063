//! How long pods take from being scheduled to running, seen from a watch of the computing cluster.

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Error, anyhow};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};

use super::scene::NAMESPACE;

/// Times of pods, by UID.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    scheduled: RefCell<HashMap<String, Instant>>,
    took: RefCell<Vec<Duration>>,
}

impl Latency {
    /// Follows the demo's pods until dropped.
    pub(crate) async fn follow(&self, computing: Client) -> Error {
        let pods: Api<Pod> = Api::namespaced(computing, NAMESPACE);
        let mut changes = pin!(watcher(pods, watcher::Config::default()).default_backoff().applied_objects());
        while let Some(change) = changes.next().await {
            // The stream recovers from errors by itself.
            if let Ok(pod) = change {
                self.saw(&pod);
            }
        }
        anyhow!("the watch of pods ended")
    }

    fn saw(&self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        match phase {
            "Running" | "Succeeded" => {
                if let Some(since) = self.scheduled.borrow_mut().remove(&uid) {
                    self.took.borrow_mut().push(since.elapsed());
                }
            }
            _ if bound => {
                self.scheduled.borrow_mut().entry(uid).or_insert_with(Instant::now);
            }
            _ => {}
        }
    }

    /// Median and number of pods measured.
    pub(crate) fn median(&self) -> Option<(Duration, usize)> {
        let mut took = self.took.borrow().clone();
        took.sort();
        Some((*took.get(took.len() / 2)?, took.len()))
    }
}
