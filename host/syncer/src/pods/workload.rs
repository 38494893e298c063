//! Type and name of the workload a vpod belongs to, for the labels of its ppod (TD-508).
//!
//! Only a ReplicaSet costs a request, once per ReplicaSet: its Deployment is what people know. A ReplicaSet that is
//! gone already gives its own name. What is remembered is for the whole reference of a pod, its namespace included: whose
//! ReplicaSet it is, is the pod's word, and a UID may be another tenant's. Invariant: the result is always a valid label value.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use ahash::RandomState;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kubeocean_api::name::{distinct_label_value, fit_label_value};
use parking_lot::Mutex;

use super::view::{Owner, Vpod};
use kubeocean_runtime::{
    error::ApplyError,
    request::{get_metadata, paths},
};

/// ReplicaSets whose Deployment is remembered.
const REMEMBERED: usize = 10_000;
/// Lookups that may run at the same time. Pods of one ReplicaSet share a lane, so only the first one asks.
const LANES: usize = 16;

/// A workload in the terms of the labels `workload-type` and `workload-name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Lower-case kind.
    pub kind: String,
    /// Name, cut to a label value; empty for a pod without an owner.
    pub name: String,
}

/// Finds the workloads of vpods.
#[derive(Debug)]
pub struct Workloads {
    known: Mutex<Known>,
    lanes: [tokio::sync::Mutex<()>; LANES],
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Known {
    by_reference: HashMap<Reference, Workload, RandomState>,
    order: VecDeque<Reference>,
}

/// What a pod says owns it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reference {
    namespace: Arc<str>,
    name: Box<str>,
    uid: Box<str>,
}

impl Workloads {
    /// Nothing known yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { known: Mutex::default(), lanes: Default::default(), hasher: RandomState::new() })
    }

    /// The workload of a vpod of the cluster `computing`. A look-up that fails holds up no pod: its ReplicaSet counts.
    pub async fn of(&self, computing: &Client, vpod: &Vpod) -> Workload {
        match vpod.owner.as_ref() {
            Some(owner) if &*owner.kind == "ReplicaSet" => {
                let found = self.of_replica_set(computing, &vpod.key.namespace, owner).await;
                found.unwrap_or_else(|error| {
                    tracing::debug!(vpod = %vpod.key, error = error.chain(), "ReplicaSet not read");
                    plain(Some(owner))
                })
            }
            owner => plain(owner),
        }
    }

    async fn of_replica_set(
        &self,
        computing: &Client,
        namespace: &Arc<str>,
        owner: &Owner,
    ) -> Result<Workload, ApplyError> {
        let reference =
            Reference { namespace: namespace.clone(), name: owner.name.clone(), uid: owner.uid.clone() };
        let lane = self.hasher.hash_one(&reference) % LANES as u64;
        let lane = usize::try_from(lane).unwrap_or_default();
        let _one_at_a_time = self.lanes[lane].lock().await;
        if let Some(workload) = self.known.lock().by_reference.get(&reference) {
            return Ok(workload.clone());
        }
        let replica_set = get_metadata(computing, &paths::replica_set(namespace, &owner.name)).await?;
        let workload = replica_set
            .filter(|found| found.uid.as_deref() == Some(&*owner.uid))
            .and_then(|found| deployment(&found))
            .unwrap_or_else(|| plain(Some(owner)));
        self.known.lock().remember(reference, &workload);
        Ok(workload)
    }
}

impl Known {
    fn remember(&mut self, reference: Reference, workload: &Workload) {
        if self.by_reference.insert(reference.clone(), workload.clone()).is_none() {
            self.order.push_back(reference);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.by_reference.remove(&oldest);
            }
        }
    }
}

/// The Deployment that owns a ReplicaSet.
fn deployment(replica_set: &ObjectMeta) -> Option<Workload> {
    let owner = replica_set.owner_references.iter().flatten().find(|owner| owner.kind == "Deployment")?;
    Some(Workload { kind: "deployment".to_owned(), name: distinct_label_value(&owner.name) })
}

fn plain(owner: Option<&Owner>) -> Workload {
    match owner {
        Some(owner) => Workload {
            kind: fit_label_value(&owner.kind.to_lowercase()),
            name: distinct_label_value(&owner.name),
        },
        None => Workload { kind: "pod".to_owned(), name: String::new() },
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    #[test]
    fn a_replica_set_of_a_deployment_counts_as_the_deployment() {
        let owner = OwnerReference { kind: "Deployment".into(), name: "web".into(), ..Default::default() };
        let found = ObjectMeta { owner_references: Some(vec![owner]), ..ObjectMeta::default() };
        assert_eq!(deployment(&found), Some(Workload { kind: "deployment".into(), name: "web".into() }));
        assert_eq!(deployment(&ObjectMeta::default()), None);
    }

    /// A tenant may write the UID of another's ReplicaSet, whose pods must not be called what he says, nor his as they are.
    #[test]
    fn what_one_pod_says_of_a_uid_holds_for_its_namespace_and_name_only() {
        let reference = |namespace: &str, name: &str| Reference {
            namespace: namespace.into(),
            name: name.into(),
            uid: "u".into(),
        };
        let workload = Workload { kind: "replicaset".into(), name: "forged".into() };
        let mut known = Known::default();
        known.remember(reference("attacker", "web-1"), &workload);
        assert_eq!(known.by_reference.get(&reference("attacker", "web-1")), Some(&workload));
        for (namespace, name) in [("victim", "web-1"), ("attacker", "web-2")] {
            assert_eq!(known.by_reference.get(&reference(namespace, name)), None);
        }
    }

    #[test]
    fn other_owners_keep_kind_and_name_and_long_names_stay_distinct() {
        let owner = Owner { kind: "SparkApplication".into(), name: "x".repeat(80).into(), uid: "u".into() };
        let workload = plain(Some(&owner));
        assert_eq!((workload.kind.as_str(), workload.name.len()), ("sparkapplication", 63));
        let other = Owner { name: format!("{}y", "x".repeat(79)).into(), ..owner };
        assert_ne!(workload.name, plain(Some(&other)).name, "they differ behind the cut only");
        assert_eq!(plain(None), Workload { kind: "pod".into(), name: String::new() });
    }
}
