//! The PriorityClass of ppods when the binding names none (TD-509).
//!
//! It is made once per process, before the first ppod, and again when the worker says that it is missing. Its content
//! belongs to the worker's owner: an existing class is never changed.

use kube::Client;
use kubeocean_api::keys::{DEFAULT_PRIORITY, DEFAULT_PRIORITY_CLASS, label};
use serde_json::json;
use tokio::sync::Mutex;

use kubeocean_runtime::{
    error::ApplyError,
    request::{create_json, get_json, paths},
};

/// Sees to it that the default class exists.
#[derive(Debug, Default)]
pub struct DefaultPriorityClass {
    present: Mutex<bool>,
}

impl DefaultPriorityClass {
    /// Creates the class unless it exists. A role that does not allow it is no error here: the creation of the ppod
    /// tells.
    pub async fn ensure(&self, worker: &Client) -> Result<(), ApplyError> {
        let mut present = self.present.lock().await;
        if *present {
            return Ok(());
        }
        let all = paths::priority_classes();
        let found = match get_json(worker, &format!("{all}/{DEFAULT_PRIORITY_CLASS}")).await {
            Err(ApplyError::Forbidden { .. }) => None,
            answer => answer?,
        };
        if found.is_none() {
            match create_json(worker, &all, &manifest()).await {
                Ok(_) => tracing::info!(
                    class = DEFAULT_PRIORITY_CLASS,
                    "PriorityClass created in the worker cluster"
                ),
                Err(ApplyError::AlreadyExists { .. }) => {}
                Err(error @ ApplyError::Forbidden { .. }) => {
                    tracing::warn!(error = error.chain(), "the worker cluster must have this PriorityClass");
                }
                Err(error) => return Err(error),
            }
        }
        *present = true;
        Ok(())
    }

    /// The worker refused a ppod: look again before the next one.
    pub async fn forget(&self) {
        *self.present.lock().await = false;
    }
}

fn manifest() -> serde_json::Value {
    json!({
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {
            "name": DEFAULT_PRIORITY_CLASS,
            "labels": { label::MANAGED_BY: label::MANAGED_BY_VALUE },
        },
        "value": DEFAULT_PRIORITY,
        "preemptionPolicy": "PreemptLowerPriority",
        "globalDefault": false,
        "description": "Pods that Kubeocean runs here for other clusters; this cluster's own pods come first.",
    })
}
