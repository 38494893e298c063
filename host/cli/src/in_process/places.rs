//! The scheduler extender's way to the Syncers (PO-608): a function call to one of this process; the policy server of the
//! process that leads a binding instead.
//!
//! A binding whose Syncer decides nowhere, because it is starting, is silent.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Instant,
};

use futures::{FutureExt, future::BoxFuture};
use kubeocean_api::place::{Answer, Question};
use kubeocean_manager::extender::{
    apart::SyncersApart,
    known::KnownBindings,
    places::{Served, Syncers},
};
use kubeocean_syncer::{placement::desk::PlaceDesk, policy_server::answer};

use super::InProcess;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct AllSyncers {
    all: Weak<InProcess>,
    known: KnownBindings,
    apart: Arc<SyncersApart>,
}

impl AllSyncers {
    pub(crate) fn new(all: &Arc<InProcess>, known: KnownBindings, apart: SyncersApart) -> Arc<Self> {
        Arc::new(Self { all: Arc::downgrade(all), known, apart: Arc::new(apart) })
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
        let known = self.known.served()?;
        let serving = all.serving.lock();
        let running = serving.iter().map(|(binding, one)| Served {
            binding: binding.clone(),
            cluster_id: one.identity.cluster_id.clone(),
        });
        Some(with_running(known, running))
    }

    fn uid(&self, binding: &str) -> Option<String> {
        self.known.uid(binding)
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

/// Whoever may have vnodes; those of a running one are named after the clusterID it was started with.
fn with_running(known: Vec<Served>, running: impl Iterator<Item = Served>) -> Vec<Served> {
    let mut all: BTreeMap<String, Served> = BTreeMap::new();
    for one in known.into_iter().chain(running) {
        all.insert(one.binding.clone(), one);
    }
    all.into_values().collect()
}

async fn here(desk: Arc<PlaceDesk>, question: Arc<Question>, deadline: Instant) -> Option<Answer> {
    tokio::task::spawn_blocking(move || answer(&desk, &question, deadline)).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_whose_syncer_does_not_run_is_asked_about_too() {
        let served = |binding: &str, cluster_id: &str| Served {
            binding: binding.to_owned(),
            cluster_id: cluster_id.to_owned(),
        };
        let known = vec![served("starting", "a"), served("changed", "c")];
        let running = vec![served("changed", "b"), served("new", "d")];
        let all = with_running(known, running.into_iter());
        assert_eq!(all, [served("changed", "b"), served("new", "d"), served("starting", "a")]);
    }
}
