//! The scheduler extender's way to the Syncers (PO-608): a function call to one of this process; the policy server of the
//! process that leads a binding instead.
//!
//! A binding whose Syncer decides nowhere, because it is starting, is silent.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use futures::{FutureExt, future::BoxFuture};
use kubeocean_api::place::{Answer, Question};
use kubeocean_manager::extender::{
    apart::SyncersApart,
    places::{Served, Syncers},
};
use kubeocean_syncer::{placement::desk::PlaceDesk, policy_server::answer};

use super::InProcess;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct AllSyncers {
    all: Weak<InProcess>,
    apart: Arc<SyncersApart>,
}

impl AllSyncers {
    pub(crate) fn new(all: &Arc<InProcess>, apart: SyncersApart) -> Arc<Self> {
        Arc::new(Self { all: Arc::downgrade(all), apart: Arc::new(apart) })
    }

    /// Who decides for a binding, if it does so here.
    fn desk(&self, binding: &str) -> Option<Arc<PlaceDesk>> {
        let all = self.all.upgrade()?;
        let serving = all.serving.lock();
        serving.get(binding)?.syncer.as_ref()?.placement.get()
    }
}

impl Syncers for AllSyncers {
    fn served(&self) -> Option<Vec<Served>> {
        let all = self.all.upgrade()?;
        all.told.get()?;
        let serving = all.serving.lock();
        let served = serving.iter().map(|(binding, one)| Served {
            binding: binding.clone(),
            cluster_id: one.identity.cluster_id.clone(),
        });
        Some(served.collect())
    }

    fn ask(
        &self,
        served: Served,
        question: Arc<Question>,
        deadline: Instant,
    ) -> BoxFuture<'static, Option<Answer>> {
        if let Some(desk) = self.desk(&served.binding) {
            return here(desk, question, deadline).boxed();
        }
        let apart = Arc::clone(&self.apart);
        async move { apart.ask(&served.cluster_id, &question).await }.boxed()
    }
}

async fn here(desk: Arc<PlaceDesk>, question: Arc<Question>, deadline: Instant) -> Option<Answer> {
    tokio::task::spawn_blocking(move || answer(&desk, &question, deadline)).await.ok().flatten()
}
