//! A Syncer that is killed and started again: how soon all Leases are renewed, and whether a vnode was lost meanwhile.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use kubeocean_bench::Figure;
use tokio::sync::Mutex;

use crate::goal::Goal;
use crate::run::{Run, is_ready};

/// What the node controller waits for a Lease, in seconds.
const GRACE_SECONDS: f64 = 40.0;

impl Run<'_> {
    pub(crate) async fn restart(&mut self) -> Result<Vec<Figure>> {
        self.quiet().await?;
        eprintln!("killing the Syncer and starting it again");
        let client = self.binding.computing().client().await?;
        let lost = Arc::new(Mutex::new(BTreeSet::new()));
        let watch = tokio::spawn(watch_lost(Api::all(client.clone()), Arc::clone(&lost)));
        self.syncer.kill();
        let killed = Timestamp::now();
        let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
        let goal = Goal::start("Leases renewed", leases, self.scale.nodes, move |lease| {
            let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
            renewed.is_some_and(|renewed| renewed.0 > killed)
        });
        let started = Instant::now();
        self.syncer.restart()?;
        let renewed = goal.reached().await?.saturating_duration_since(started);
        self.quiet().await?;
        watch.abort();
        let lost = lost.lock().await;
        if let Some(vnode) = lost.first() {
            eprintln!("  not Ready meanwhile: {} vnodes, for example {vnode}", lost.len());
        }
        let lost = f64::from(u32::try_from(lost.len()).context("too many vnodes")?);
        Ok(vec![
            Figure::new("all Leases renewed after a restart", renewed.as_secs_f64(), "s")
                .budget(GRACE_SECONDS),
            Figure::new("vnodes not Ready meanwhile", lost, "").budget(0.0),
        ])
    }
}

async fn watch_lost(nodes: Api<Node>, lost: Arc<Mutex<BTreeSet<String>>>) {
    let changes = watcher(nodes, watcher::Config::default()).default_backoff().applied_objects();
    let mut changes = pin!(changes);
    while let Some(change) = changes.next().await {
        if let Ok(node) = change
            && !is_ready(&node)
        {
            lost.lock().await.insert(node.name_any());
        }
    }
}
