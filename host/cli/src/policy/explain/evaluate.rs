//! From what was gathered to a decision with its steps, by the Syncer's own index, store and engine.

use std::sync::Arc;

use anyhow::Context;
use jiff::{Timestamp, tz::TimeZone};
use kube::Client;
use kubeocean_api::name::vnode_name;
use kubeocean_engine::{
    BindingFacts, Engine, Explanation, MAX_MODULE_BYTES, NodeDecision, NodeFacts, PolicySpec, Step,
};
use kubeocean_syncer::{
    config::PolicySources,
    nodes::{
        index::{Identity, Index},
        measured::Measured,
        snapshot::{available, facts},
        view::NodeView,
    },
    policies::{fetch::Sources, modules::ModulePlaces, store::PolicyStore, view::PolicyView},
};
use serde::Serialize;

use super::gather::Worker;
use crate::{
    failure::{Failure, OrFailure},
    policy::{
        gather::{Computing, identity},
        local::{LocalHost, NotRunning},
    },
};

/// One node, one binding, one moment.
pub(super) struct Evaluation<'a> {
    pub(super) engine: &'a Engine,
    pub(super) client: &'a Client,
    pub(super) worker: &'a Worker,
    pub(super) computing: Option<&'a Computing>,
    pub(super) vnode: Option<NodeView>,
    pub(super) binding: &'a str,
    pub(super) policy_namespace: &'a str,
    pub(super) sources: &'a PolicySources,
    pub(super) at: Timestamp,
}

/// Steps of one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PolicySteps {
    /// Empty for the binding's selector.
    pub(super) policy: String,
    pub(super) steps: Vec<Step>,
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) node: String,
    pub(super) binding: String,
    /// Known only with the computing cluster.
    pub(super) vnode: Option<String>,
    pub(super) at: Timestamp,
    /// IANA name of the zone of the policy that governs.
    pub(super) zone: String,
    /// What was decided from.
    pub(super) facts: NodeFacts,
    pub(super) available: std::collections::BTreeMap<String, i64>,
    pub(super) policies: Vec<PolicySteps>,
    pub(super) decision: NodeDecision,
    pub(super) not_running: Vec<NotRunning>,
    /// What a reader has to know about this explanation.
    pub(super) notes: Vec<String>,
}

impl Evaluation<'_> {
    pub(super) async fn run(&self) -> Result<Report, Failure> {
        let (local, policies, node) = self.prepare().await;
        let at = self.at;
        let (node, explanation, not_running) = tokio::task::spawn_blocking(move || {
            local.set(policies);
            let explanation = local.host.explain(at, &node);
            let not_running = local.not_running(at);
            (node, explanation, not_running)
        })
        .await
        .context("the policy engine failed")
        .or_unusable()?;
        Ok(self.report(&self.identity(), &node, explanation, not_running))
    }

    fn identity(&self) -> Identity {
        identity(self.binding, self.computing, &self.worker.policies, &self.worker.pods)
    }

    /// A host without policies yet, the policies with their modules, and what it is told about the node.
    pub(super) async fn prepare(&self) -> (LocalHost, Vec<PolicySpec>, Arc<NodeFacts>) {
        let identity = self.identity();
        let mount = self.computing.map(|computing| computing.binding.mount_namespace.clone());
        let places = ModulePlaces {
            default: self.policy_namespace.to_owned(),
            mount: mount.unwrap_or_default(),
            files: self.sources.dev_folder.is_some(),
        };
        let store = PolicyStore::new(identity.clone(), places);
        let sources = Sources::new(self.client.clone(), self.sources, MAX_MODULE_BYTES);
        for policy in &self.worker.policies {
            store.saw(policy.clone());
        }
        for key in store.wanted().into_keys() {
            let (fetched, _) = sources.read(&key).await;
            store.fetched(&key, fetched);
        }
        (self.host(&identity), store.engine_list(), self.facts(&identity))
    }

    /// What the engine is told about the node, summed up as the Syncer does.
    fn facts(&self, identity: &Identity) -> Arc<NodeFacts> {
        let mut index = Index::new(identity.clone());
        if let Some(computing) = self.computing {
            index.own_pods_are_in(&computing.binding.mount_namespace);
        }
        let key = vnode_name(&identity.cluster_id, self.worker.node.name());
        index.set_pnode(self.worker.node.clone());
        for pod in &self.worker.pods {
            index.set_pod(pod.clone());
        }
        if let Some(vnode) = self.vnode.clone() {
            index.set_vnode(vnode);
        }
        let mut measured = Measured::default();
        self.worker.usage.iter().for_each(|list| measured.take(list));
        index.set_measured(&measured.means(Timestamp::now().as_second()));
        let snapshot = index.snapshot(&key);
        let name = if identity.cluster_id.is_empty() { "" } else { key.as_str() };
        Arc::new(facts(&self.worker.node, name, snapshot.vnode.as_deref(), &snapshot.usage))
    }

    fn host(&self, identity: &Identity) -> LocalHost {
        let binding =
            BindingFacts { name: identity.binding.clone(), cluster_id: identity.cluster_id.clone() };
        let local = LocalHost::new(self.engine, binding, TimeZone::system());
        local.host.set_binding_selector(
            self.computing.and_then(|computing| computing.binding.node_selector.as_ref()),
        );
        local
    }

    fn report(
        &self,
        identity: &Identity,
        node: &Arc<NodeFacts>,
        explanation: Explanation,
        not_running: Vec<NotRunning>,
    ) -> Report {
        let governing = explanation.decision.governed_by.as_deref();
        let policy = self.worker.policies.iter().find(|policy| Some(policy.name()) == governing);
        let named = policy.and_then(|policy| policy.spec.spec.time_zone.clone());
        let mut notes = self.notes(node);
        if policy.is_some() && named.is_none() {
            notes.push(
                "the policy names no timeZone, so the Syncer's own decides; here it is this machine's"
                    .to_owned(),
            );
        }
        let zone = named.filter(|name| TimeZone::get(name).is_ok()).unwrap_or_else(local_zone);
        Report {
            node: node.node_name.clone(),
            binding: identity.binding.clone(),
            vnode: (!node.vnode_name.is_empty()).then(|| node.vnode_name.clone()),
            at: self.at,
            zone,
            available: available(&node.allocatable, &node.used),
            facts: NodeFacts::clone(node),
            policies: explanation
                .policies
                .into_iter()
                .map(|(policy, steps)| PolicySteps { policy, steps })
                .collect(),
            decision: explanation.decision,
            not_running,
            notes,
        }
    }

    fn notes(&self, node: &NodeFacts) -> Vec<String> {
        let mut notes = Vec::new();
        if self.worker.node.terminating() {
            notes.push("the node is being deleted, so it is withdrawn whatever a policy says".to_owned());
        }
        if self.worker.node.excluded() {
            notes.push("nodes of this type are never leased, whatever a policy says".to_owned());
        }
        let named = |policy: &&PolicyView| policy.spec.spec.cluster == self.binding;
        match self.computing {
            None => {
                notes.push(
                    "without --computing-context the binding's selector is left out, and what the virtual node publishes"
                        .to_owned(),
                );
                if node.leased.is_empty()
                    && !self.worker.policies.iter().filter(named).any(|p| p.holder().is_some())
                {
                    notes.push(
                        "no computing cluster holds the policies yet, so all pods count as others'"
                            .to_owned(),
                    );
                }
            }
            Some(computing) => {
                for policy in self.worker.policies.iter().filter(named).filter(|p| p.taken(&computing.uid)) {
                    notes
                        .push(format!("{} is held by another computing cluster and not used", policy.name()));
                }
            }
        }
        for policy in self.worker.policies.iter().filter(named).filter(|policy| policy.deleting()) {
            notes.push(format!("{} is being deleted and not used", policy.name()));
        }
        for policy in self.worker.policies.iter().filter(named) {
            if let Some(error) = &policy.spec.unreadable {
                notes.push(format!("{} cannot be read: {error}", policy.name()));
            }
        }
        notes
    }
}

fn local_zone() -> String {
    TimeZone::system().iana_name().unwrap_or("UTC").to_owned()
}
