//! The scheduler extender's way to the Syncers of this process (PO-608): a function call.
//!
//! A binding whose Syncer does not decide here, because it is starting or another process holds its Lease, is silent: what
//! its entries said last about that stands (PO-605).

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Instant,
};

use futures::{FutureExt, future::BoxFuture};
use kubeocean_api::name::vnode_name_prefix;
use kubeocean_engine::{Fit as EngineFit, OnError, PodFacts, Stage};
use kubeocean_manager::extender::{Fit, Place, Places};
use kubeocean_syncer::placement::{
    desk::{PlaceDesk, PlaceRow},
    facts_of_pod,
};
use parking_lot::Mutex;
use serde_json::Value;

use super::InProcess;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct LocalPlaces {
    all: Weak<InProcess>,
    /// What each binding said last about not being asked.
    on_error: Arc<Mutex<BTreeMap<String, OnError>>>,
}

/// A binding as the extender asks it.
struct Asked {
    binding: String,
    names: Vec<String>,
    desk: Option<Arc<PlaceDesk>>,
}

impl LocalPlaces {
    pub(crate) fn new(all: &Arc<InProcess>) -> Arc<Self> {
        Arc::new(Self { all: Arc::downgrade(all), on_error: Arc::default() })
    }

    /// Candidates by binding; `None` while this process does not lead.
    fn bindings(&self, nodes: &[String]) -> Option<Vec<Asked>> {
        let all = self.all.upgrade()?;
        all.told.get()?;
        let serving = all.serving.lock();
        let asked = serving.iter().map(|(binding, one)| {
            let prefix = vnode_name_prefix(&one.identity.cluster_id);
            Asked {
                binding: binding.clone(),
                names: nodes.iter().filter(|name| name.starts_with(&prefix)).cloned().collect(),
                desk: one.syncer.as_ref().and_then(|syncer| syncer.placement.get()),
            }
        });
        Some(asked.filter(|asked| !asked.names.is_empty()).collect())
    }
}

impl Places for LocalPlaces {
    fn ask(
        &self,
        pod: Arc<Value>,
        nodes: Arc<[String]>,
        deadline: Instant,
    ) -> BoxFuture<'static, Option<Vec<Place>>> {
        let (bindings, on_error) = (self.bindings(&nodes), Arc::clone(&self.on_error));
        async move {
            let facts = Arc::new(facts_of_pod(&pod));
            let asking = bindings?.into_iter().map(|asked| ask_one(asked, &facts, deadline, &on_error));
            Some(futures::future::join_all(asking).await.into_iter().flatten().collect())
        }
        .boxed()
    }
}

async fn ask_one(
    asked: Asked,
    pod: &Arc<PodFacts>,
    deadline: Instant,
    on_error: &Mutex<BTreeMap<String, OnError>>,
) -> Vec<Place> {
    let Asked { binding, names, desk } = asked;
    let (pod, asked) = (Arc::clone(pod), names.clone());
    let answer = match desk {
        Some(desk) => {
            let asking =
                tokio::task::spawn_blocking(move || desk.place(Stage::Schedule, &pod, &asked, deadline));
            tokio::time::timeout_at(deadline.into(), asking).await.ok().and_then(Result::ok)
        }
        None => None,
    };
    if let Some(answer) = answer {
        on_error.lock().insert(binding, answer.on_error);
        return answer.rows.into_iter().map(place).collect();
    }
    let stands = on_error.lock().get(&binding).copied().unwrap_or(OnError::Deny);
    if stands == OnError::Ignore {
        return Vec::new();
    }
    let why = format!("PolicyUnavailable: the policies of binding {binding} cannot be asked");
    let silent = |node| Place { node, fit: Fit::Later, score: 0, why: why.clone() };
    names.into_iter().map(silent).collect()
}

fn place(row: PlaceRow) -> Place {
    let PlaceRow { node, placement } = row;
    let fit = match placement.fit {
        EngineFit::Accept => Fit::Accept,
        EngineFit::Reject => Fit::Reject,
        EngineFit::Later(_) => Fit::Later,
    };
    let said = placement.reason.as_ref();
    let why = said
        .map(|said| format!("{}: {} (policy {})", said.reason.code, said.reason.message, said.entry))
        .unwrap_or_default();
    Place { node, fit, score: placement.score, why }
}
