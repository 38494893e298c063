//! The pods that are measured: many at once, one at a time, and none left.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use kubeocean_api::keys;
use kubeocean_harness::wait::try_wait_until;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::APART;

/// Enough to keep an API server busy, few enough not to be what is measured.
pub(crate) const CREATED_AT_A_TIME: usize = 16;
const ONE_POD: Duration = Duration::from_mins(1);
const ALL_GONE: Duration = Duration::from_mins(15);

/// A pod of a user who knows the one taint of vnodes.
fn pod(name: &str) -> Result<Pod> {
    serde_json::from_value(pod_value(name)).context("building a pod")
}

/// The same for the node whose kubelet has no other: as on a real node, no queue of other nodes' pods is before it.
fn pod_apart(name: &str) -> Result<Pod> {
    let mut pod = pod_value(name);
    pod["spec"]["nodeSelector"] = json!({APART: "true"});
    // As many as a burst leaves time for.
    pod["spec"]["containers"][0]["resources"]["requests"] = json!({"cpu": "1m", "memory": "1Mi"});
    serde_json::from_value(pod).context("building a pod")
}

fn pod_value(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            // The budgets are those of pods without a token: one costs three requests more.
            "automountServiceAccountToken": false,
            "tolerations": [{"key": keys::taint::VNODE, "operator": "Exists", "effect": "NoSchedule"}],
            "containers": [{
                "name": "work",
                "image": "registry.example/work:1",
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            }],
        },
    })
}

pub(crate) fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

pub(crate) fn is_scheduled(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

/// Creates pods side by side.
pub(crate) async fn create_many(pods: &Api<Pod>, count: u32) -> Result<()> {
    stream::iter(0..count)
        .map(|index| async move {
            let pod = pod(&format!("burst-{index}"))?;
            pods.create(&PostParams::default(), &pod).await.map(drop).context("creating a pod")
        })
        .buffer_unordered(CREATED_AT_A_TIME)
        .try_collect()
        .await
}

/// Runs pods one after the other while `more` says so of their number; of each, how long after the scheduler's choice it
/// was Running, sorted.
pub(crate) async fn one_by_one(pods: &Api<Pod>, more: impl Fn(usize) -> bool) -> Result<Vec<Duration>> {
    let (sender, mut seen) = mpsc::unbounded_channel();
    // Beside the loop, so that each change gets its time when it arrives.
    let watch = tokio::spawn({
        let pods = pods.clone();
        async move {
            let changes = watcher(pods, watcher::Config::default()).default_backoff().applied_objects();
            let mut changes = pin!(changes);
            while let Some(change) = changes.next().await {
                if let Ok(pod) = change
                    && sender.send((Instant::now(), pod)).is_err()
                {
                    return;
                }
            }
        }
    });
    let mut times = Vec::new();
    while more(times.len()) {
        let name = format!("single-{}", times.len());
        pods.create(&PostParams::default(), &pod_apart(&name)?).await.context("creating a pod")?;
        let time = tokio::time::timeout(ONE_POD, time_of(&name, &mut seen));
        times.push(time.await.with_context(|| format!("{name} was not Running after {ONE_POD:?}"))??);
    }
    watch.abort();
    times.sort_unstable();
    Ok(times)
}

async fn time_of(name: &str, seen: &mut mpsc::UnboundedReceiver<(Instant, Pod)>) -> Result<Duration> {
    let mut scheduled = None;
    while let Some((when, pod)) = seen.recv().await {
        if pod.name_any() != name {
            continue;
        }
        if is_scheduled(&pod) {
            let scheduled = *scheduled.get_or_insert(when);
            if is_running(&pod) {
                return Ok(when.duration_since(scheduled));
            }
        }
    }
    bail!("the watch of pods ended")
}

/// Deletes all pods of a namespace, as a user does, and waits until they are gone in both clusters.
pub(crate) async fn delete_all(pods: &Api<Pod>, copies: &Api<Pod>) -> Result<()> {
    pods.delete_collection(&DeleteParams::default(), &ListParams::default())
        .await
        .context("deleting the pods")?;
    for (what, pods) in [("the pods to be gone", pods), ("their copies to be gone", copies)] {
        let mut reported = Instant::now();
        try_wait_until(what, ALL_GONE, async || {
            // One pod and the number of others: the cheapest question about all of them.
            let list = pods.list(&ListParams::default().limit(1)).await.map_err(|error| error.to_string())?;
            let others = list.metadata.remaining_item_count.unwrap_or_default();
            if list.items.is_empty() {
                return Ok(());
            }
            if reported.elapsed() >= Duration::from_secs(2) {
                reported = Instant::now();
                eprintln!("  waiting for {what}: {} left", others + 1);
            }
            Err(format!("{} left", others + 1))
        })
        .await?;
    }
    Ok(())
}
