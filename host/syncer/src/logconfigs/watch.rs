//! Finds out whether LogConfigs are served, and follows them while they are (API-701).

use std::{sync::Arc, time::Duration};

use kube::{Api, Client, runtime::watcher::Config};
use kubeocean_api::keys::label;
use kubeocean_runtime::{
    error::ApplyError,
    queue::drive,
    request::get_json,
    sink::{Denial, Refusals, Sink},
    watch::{WatchHealth, WatchSpec, watch_into},
};
use tokio_util::sync::CancellationToken;

use super::{
    apply::{LogConfigSync, release},
    index::Side,
    view::{API, LogConfig},
};
use crate::{config::LogConfigs, pods::features::Feature};

/// How often a cluster is asked whether it serves the kind.
const LOOK_AGAIN: Duration = Duration::from_mins(10);
/// The same when it did not answer.
const NO_ANSWER: Duration = Duration::from_secs(30);

/// LogConfigs of one cluster. A role that does not show them turns the mapping off.
struct Seen {
    sync: Arc<LogConfigSync>,
    side: Side,
    refusals: Refusals,
    off: CancellationToken,
}

impl Sink<LogConfig> for Seen {
    fn apply(&self, config: LogConfig) {
        self.sync.store.seen(self.side, config);
    }
    fn delete(&self, config: LogConfig) {
        self.sync.store.gone(self.side, &config);
    }
    fn reset(&self, all: Vec<LogConfig>) {
        self.refusals.ended();
        self.sync.store.reset(self.side, all);
    }
    fn denied(&self, why: Denial) {
        if why == Denial::Forbidden && self.refusals.last() {
            self.sync.features.turn_off(Feature::LogConfigs);
            self.off.cancel();
        }
    }
}

/// Maps LogConfigs until `cancel`, as far as both clusters serve and allow it. Where they do not, nothing is held: the
/// deletion of a LogConfig never waits for a Syncer that does not follow it.
pub async fn run(sync: Arc<LogConfigSync>, wanted: LogConfigs, cancel: CancellationToken) {
    let mut mapped_before = true;
    loop {
        let is_on = wanted == LogConfigs::Auto && !sync.features.is_off(Feature::LogConfigs);
        let pause = match served(&sync).await {
            Ok([true, true]) if is_on => {
                mapped_before = true;
                map(&sync, &cancel).await;
                Duration::ZERO
            }
            Ok([true, _]) if mapped_before => {
                mapped_before = false;
                if let Err(error) = release(&sync.clusters).await {
                    tracing::warn!(error = error.chain(), "LogConfigs not released");
                    mapped_before = true;
                }
                LOOK_AGAIN
            }
            Ok(_) => LOOK_AGAIN,
            Err(error) => {
                tracing::debug!(error = error.chain(), "unknown whether LogConfigs are served");
                NO_ANSWER
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether the computing and the worker cluster serve the kind.
async fn served(sync: &LogConfigSync) -> Result<[bool; 2], ApplyError> {
    let ask = async |client: &Client| -> Result<bool, ApplyError> {
        let list = get_json(client, API).await?;
        let kinds = list.as_ref().and_then(|list| list["resources"].as_array()).into_iter().flatten();
        Ok(kinds.into_iter().any(|kind| kind["name"] == "logconfigs"))
    };
    let here = ask(&sync.clusters.computing).await?;
    // Without the kind here there is nothing to ask there for.
    Ok([here, here && ask(&sync.clusters.worker).await?])
}

/// Follows both clusters until one of them ceases to serve or to show LogConfigs.
async fn map(sync: &Arc<LogConfigSync>, cancel: &CancellationToken) {
    let stop = cancel.child_token();
    let lists = [Arc::<WatchHealth>::default(), Arc::default()];
    let watch = |side: Side| {
        let (client, config, list) = match side {
            Side::Original => (&sync.clusters.computing, Config::default(), &lists[0]),
            Side::Copy => {
                let managed = format!("{}={}", label::MANAGED_BY, label::MANAGED_BY_VALUE);
                (&sync.clusters.worker, Config::default().labels(&managed), &lists[1])
            }
        };
        let spec = WatchSpec { name: "LogConfigs", api: Api::<LogConfig>::all(client.clone()), config };
        let refusals = Refusals::default();
        let sink = Seen { sync: Arc::clone(sync), side, refusals, off: stop.clone() };
        watch_into(spec, Arc::new(sink), Arc::clone(list), stop.clone())
    };
    let work = async {
        tokio::select! {
            () = stop.cancelled() => return,
            // Before both lists are complete absence proves nothing.
            () = async { for list in &lists { list.synced().await } } => {}
        }
        let heart = sync.health.begin("logconfigs");
        let sync = Arc::clone(sync);
        drive(Arc::clone(&sync.clone().store.queue), 1, stop.clone(), heart, move |name: String| {
            let sync = Arc::clone(&sync);
            async move { sync.reconcile(&name).await }
        })
        .await;
    };
    let checks = async {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            if matches!(served(sync).await, Ok([here, there]) if !(here && there)) {
                stop.cancel();
            }
        }
    };
    tokio::join!(watch(Side::Original), watch(Side::Copy), work, checks);
}
