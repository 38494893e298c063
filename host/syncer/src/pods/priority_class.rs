//! The PriorityClass of ppods: the one the binding names, or a default that is made here (TD-509).
//!
//! The default is made once per process, before the first ppod, and again when the worker says that it is missing. Its
//! content belongs to the worker's owner: an existing class is never changed. A named class is looked up only after the
//! worker refused a ppod; while it is missing one look in [`LOOK_AGAIN`] serves all pods that wait for it.

use std::time::Duration;

use kube::Client;
use kubeocean_api::keys::{DEFAULT_PRIORITY, DEFAULT_PRIORITY_CLASS, label};
use serde_json::json;
use tokio::{sync::Mutex, time::Instant};

use super::features::{Feature, Features};
use kubeocean_runtime::{
    error::ApplyError,
    request::{create_json, get_json, paths},
};

/// How soon a missing class is looked for again. The worker's role allows no watch of classes.
pub const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What is known of the worker's PriorityClasses.
#[derive(Debug, Default)]
pub struct PriorityClasses {
    default_present: Mutex<bool>,
    missing: Mutex<Option<Missing>>,
}

/// A class that the binding names and the worker does not have.
#[derive(Debug)]
struct Missing {
    class: String,
    seen: Instant,
}

impl Missing {
    /// Whether it is known of this class without another look.
    fn holds(&self, class: &str, now: Instant) -> bool {
        self.class == class && now.duration_since(self.seen) < LOOK_AGAIN
    }
}

impl PriorityClasses {
    /// The class of a new ppod; `None` if it is known to be missing. `configured` is the binding's, empty for the
    /// default.
    pub async fn name<'a>(
        &self,
        worker: &Client,
        features: &Features,
        configured: &'a str,
    ) -> Result<Option<&'a str>, ApplyError> {
        if configured.is_empty() {
            self.ensure_default(worker, features).await?;
            return Ok(Some(DEFAULT_PRIORITY_CLASS));
        }
        let suspect = self.missing.lock().await.as_ref().is_some_and(|missing| missing.class == configured);
        let missing = suspect && self.is_missing(worker, configured).await?;
        Ok((!missing).then_some(configured))
    }

    /// The worker refused a ppod: says whether because of a class that does not exist.
    pub async fn explains_refusal(&self, worker: &Client, configured: &str) -> Result<bool, ApplyError> {
        if configured.is_empty() {
            // It may have been deleted; look again before the next one.
            *self.default_present.lock().await = false;
            return Ok(false);
        }
        self.is_missing(worker, configured).await
    }

    async fn is_missing(&self, worker: &Client, class: &str) -> Result<bool, ApplyError> {
        let mut missing = self.missing.lock().await;
        if missing.as_ref().is_some_and(|missing| missing.holds(class, Instant::now())) {
            return Ok(true);
        }
        let found = match get_json(worker, &format!("{}/{class}", paths::priority_classes())).await {
            Err(ApplyError::Forbidden { .. }) => true,
            answer => answer?.is_some(),
        };
        *missing = (!found).then(|| Missing { class: class.to_owned(), seen: Instant::now() });
        Ok(!found)
    }

    /// Creates the default class unless it exists. A role that does not allow it is no error here: the creation of the
    /// ppod tells.
    async fn ensure_default(&self, worker: &Client, features: &Features) -> Result<(), ApplyError> {
        let mut present = self.default_present.lock().await;
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
                Err(ApplyError::Forbidden { .. }) => {
                    features.turn_off(Feature::DefaultPriorityClass);
                }
                Err(error) => return Err(error),
            }
        }
        *present = true;
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_class_is_looked_for_again_and_another_one_at_once() {
        let now = Instant::now();
        let missing = Missing { class: "batch".to_owned(), seen: now };
        assert!(missing.holds("batch", now + LOOK_AGAIN / 2));
        assert!(!missing.holds("batch", now + LOOK_AGAIN));
        assert!(!missing.holds("other", now));
    }
}
