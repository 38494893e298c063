//! When the last of many objects has come to a state, seen by a watch: polling lists of thousands would take the CPU
//! that is to be measured.

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

/// A full run on a busy machine stays far below.
const DEADLINE: Duration = Duration::from_mins(15);
const PROGRESS: Duration = Duration::from_secs(2);

/// A watch that runs beside what it waits for.
pub(crate) struct Goal {
    what: String,
    task: JoinHandle<Result<Instant>>,
}

impl Goal {
    /// Starts to watch until `holds` is true of `count` objects of `api` at once.
    pub(crate) fn start<K, F>(what: &str, api: Api<K>, count: u32, holds: F) -> Self
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        F: Fn(&K) -> bool + Send + Sync + 'static,
    {
        let task = tokio::spawn(watch(what.to_owned(), api, count, holds));
        Self { what: what.to_owned(), task }
    }

    /// The moment at which the last object came to the state.
    pub(crate) async fn reached(self) -> Result<Instant> {
        self.task.await.with_context(|| format!("watching {}", self.what))?
    }
}

async fn watch<K, F>(what: String, api: Api<K>, count: u32, holds: F) -> Result<Instant>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    F: Fn(&K) -> bool + Send + Sync,
{
    let mut holding = HashSet::new();
    let mut reported = Instant::now();
    let wanted = usize::try_from(count)?;
    let counting = async {
        let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(object) | Event::InitApply(object)) if holds(&object) => {
                    holding.insert(object.name_any());
                }
                Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => {
                    holding.remove(&object.name_any());
                }
                Ok(Event::Init | Event::InitDone) => {}
                // The watcher tries again by itself.
                Err(error) => eprintln!("  {what}: {error}"),
            }
            if holding.len() >= wanted {
                return Ok(Instant::now());
            }
            if reported.elapsed() >= PROGRESS {
                reported = Instant::now();
                eprintln!("  {what}: {} of {count}", holding.len());
            }
        }
        bail!("the watch ended")
    };
    match tokio::time::timeout(DEADLINE, counting).await {
        Ok(outcome) => outcome,
        Err(_) => bail!("after {DEADLINE:?} only {} of {count} {what}", holding.len()),
    }
}
