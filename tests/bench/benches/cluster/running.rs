//! How long each of many pods took from the scheduler's choice to Running, seen by one watch.

use std::collections::HashMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::task::JoinHandle;

use crate::pods::{is_running, is_scheduled};

/// A full run on a busy machine stays far below.
const DEADLINE: Duration = Duration::from_mins(15);
const PROGRESS: Duration = Duration::from_secs(2);

/// A watch that runs beside what it measures.
pub(crate) struct Running {
    task: JoinHandle<Result<Times>>,
}

/// What it saw.
pub(crate) struct Times {
    /// The moment at which the last pod was Running.
    pub(crate) all: Instant,
    /// Sorted.
    pub(crate) each: Vec<Duration>,
}

/// The time that this part of the pods did not exceed, in seconds; `sorted` are the times of all.
pub(crate) fn quantile(sorted: &[Duration], part: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a list of some thousands"
    )]
    let place = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(place.saturating_sub(1)).map_or(0.0, Duration::as_secs_f64)
}

impl Running {
    /// Starts to watch until `count` pods have been Running. Pods must not be there yet.
    pub(crate) fn start(pods: Api<Pod>, count: u32) -> Self {
        let task = tokio::spawn(async move {
            let mut each = Vec::new();
            match tokio::time::timeout(DEADLINE, watch(pods, count, &mut each)).await {
                Ok(outcome) => {
                    let all = outcome?;
                    each.sort_unstable();
                    Ok(Times { all, each })
                }
                Err(_) => bail!("after {DEADLINE:?} only {} of {count} pods were Running", each.len()),
            }
        });
        Self { task }
    }

    /// When all have been Running.
    pub(crate) async fn reached(self) -> Result<Times> {
        self.task.await.context("watching pods")?
    }
}

async fn watch(pods: Api<Pod>, count: u32, each: &mut Vec<Duration>) -> Result<Instant> {
    let wanted = usize::try_from(count)?;
    let mut scheduled: HashMap<String, Option<Instant>> = HashMap::new();
    let mut reported = Instant::now();
    let mut changes = pin!(watcher(pods, watcher::Config::default()).default_backoff().applied_objects());
    while let Some(change) = changes.next().await {
        let Ok(pod) = change else { continue };
        let now = Instant::now();
        if is_scheduled(&pod) {
            let since = scheduled.entry(pod.name_any()).or_insert(Some(now));
            if is_running(&pod)
                && let Some(since) = since.take()
            {
                each.push(now.duration_since(since));
            }
        }
        if each.len() >= wanted {
            return Ok(now);
        }
        if reported.elapsed() >= PROGRESS {
            reported = now;
            eprintln!("  pods Running: {} of {count}", each.len());
        }
    }
    bail!("the watch of pods ended")
}
