//! Asks the worker cluster what is used on its nodes, once a minute and only while a policy reads it (PO-405).
//!
//! In: `metrics.k8s.io`, whether a policy reads it. Out: means in the [`NodeStore`]. Nodes whose usage changed are decided
//! again. The first decisions of a policy that reads it wait for the first answer: without it, more would be leased for a
//! moment than is free.

use std::{sync::Arc, time::Duration};

use kube::Client;
use kubeocean_engine::PolicyHost;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    measured::{Measured, PATH},
    store::NodeStore,
};
use crate::pods::features::{Feature, Features};
use kubeocean_runtime::{clock::Clock, error::ApplyError, request::get_json, sink::Refusals};

/// Time between two questions; in debug builds soon enough for tests to see another answer.
const EVERY: Duration = if cfg!(debug_assertions) { Duration::from_secs(2) } else { Duration::from_mins(1) };

/// What the task works with.
pub struct Measuring {
    /// Client of the worker cluster.
    pub worker: Client,
    /// Where the means go.
    pub store: Arc<NodeStore>,
    /// Knows whether a policy reads them.
    pub host: Arc<PolicyHost>,
    /// Is turned off when the role does not allow to read them.
    pub features: Arc<Features>,
    /// Clock.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Measuring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Measuring").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Measures until cancelled. `news` counts the changes of the engine: a policy that reads usage may have come.
pub async fn run(measuring: Measuring, mut news: watch::Receiver<u64>, cancel: CancellationToken) {
    let mut measured = Measured::default();
    let refusals = Refusals::default();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut asked = false;
    // What was measured over an earlier connection is of no age that anybody knows.
    measuring.store.measured(&measured.means(0), asked);
    loop {
        let due = tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => true,
            changed = news.changed() => {
                if changed.is_err() {
                    return;
                }
                false
            }
        };
        let Measuring { store, host, clock, .. } = &measuring;
        if !host.reads_usage() {
            measured.clear();
            asked = false;
        } else if due || !asked {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = sample(&measuring, &refusals, &mut measured) => asked = true,
            }
        }
        store.measured(&measured.means(clock.now().as_second()), asked);
    }
}

/// Takes what there is. Samples of before count until they are too old, unless the API is not served or not allowed.
async fn sample(measuring: &Measuring, refusals: &Refusals, measured: &mut Measured) {
    let features = &measuring.features;
    if features.is_off(Feature::MeasuredUsage) {
        return;
    }
    let answer = get_json(&measuring.worker, PATH).await;
    if answer.is_ok() {
        refusals.ended();
    }
    match answer {
        Ok(Some(list)) => measured.take(&list),
        Ok(None) => measured.clear(),
        Err(ApplyError::Forbidden { .. }) => {
            measured.clear();
            if refusals.last() {
                features.turn_off(Feature::MeasuredUsage);
            }
        }
        Err(error) => tracing::debug!(error = error.chain(), "usage of the worker's nodes not read"),
    }
}
