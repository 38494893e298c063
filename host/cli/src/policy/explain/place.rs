//! `explain --pod`: what the policy that governs a node says about one pod there, entry by entry (PO-604).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use jiff::Timestamp;
use kube::Client;
use kubeocean_engine::{NodeFacts, PlaceNode, PlaceRequest, PlaceStep, Placement, PodFacts, Stage};
use kubeocean_runtime::request::paths;
use kubeocean_syncer::{
    nodes::view::NodeView,
    placement::{facts_of_pod, vnode_facts},
};
use serde::Serialize;
use serde_json::Value;

use super::evaluate::Evaluation;
use crate::{
    cluster::{get, list},
    failure::{Failure, OrFailure},
    output::columns,
    policy::local::NotRunning,
};

/// How long the entries may take together.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pod of the computing cluster, and what else is bound to the vnode.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) pod: Value,
    pub(super) beside: Vec<Value>,
}

/// Reads them.
pub(super) async fn candidate(client: &Client, name: &str, vnode: &str) -> Result<Candidate, Failure> {
    let (namespace, pod) = name
        .split_once('/')
        .ok_or_else(|| Failure::unusable(format!("--pod {name}: expected NAMESPACE/NAME")))?;
    let found = get(client, &paths::pod(namespace, pod)).await?;
    let found = found.ok_or_else(|| Failure::unusable(format!("the computing cluster has no pod {name}")))?;
    let running = "status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";
    let bound = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{vnode}%2C{running}");
    let mut beside = list(client, &bound).await?.unwrap_or_default();
    beside.retain(|other| other["metadata"]["uid"] != found["metadata"]["uid"]);
    Ok(Candidate { pod: found, beside })
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    node: String,
    vnode: String,
    pod: String,
    binding: String,
    at: Timestamp,
    /// As whom the policies are asked: of a scheduler, or before the copy is made.
    stage: Stage,
    /// What was decided from.
    pod_facts: PodFacts,
    facts: NodeFacts,
    governed_by: Option<String>,
    steps: Vec<PlaceStep>,
    #[serde(flatten)]
    placement: Said,
    not_running: Vec<NotRunning>,
    notes: Vec<String>,
}

/// What holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    fit: kubeocean_engine::Fit,
    score: u8,
    reason: Option<String>,
}

impl From<Placement> for Said {
    fn from(placement: Placement) -> Self {
        let reason = placement
            .reason
            .map(|said| format!("{}: {} (policy {})", said.reason.code, said.reason.message, said.entry));
        Self { fit: placement.fit, score: placement.score, reason }
    }
}

impl Evaluation<'_> {
    /// Asks about a pod on the vnode of the node.
    pub(super) async fn place(&self, vnode: &NodeView, candidate: &Candidate) -> Result<Report, Failure> {
        let (local, policies, node) = self.prepare().await;
        let pod = Arc::new(facts_of_pod(&candidate.pod));
        let mut used = std::collections::BTreeMap::new();
        for (resource, amount) in candidate.beside.iter().flat_map(|other| facts_of_pod(other).requests) {
            *used.entry(resource).or_default() += amount;
        }
        let bound = candidate.pod["spec"]["nodeName"].as_str();
        let stage = if bound.is_some() { Stage::Admit } else { Stage::Schedule };
        let facts = Arc::new(vnode_facts(vnode, used, node.usage.clone()));
        let mut request = PlaceRequest {
            stage,
            pod: Arc::clone(&pod),
            nodes: vec![PlaceNode { facts: Arc::clone(&facts), policy: None }],
            deadline: Instant::now(),
        };
        let at = self.at;
        let asking = tokio::task::spawn_blocking(move || {
            local.set(policies);
            let governed_by = local.host.explain(at, &node).decision.governed_by;
            for node in &mut request.nodes {
                node.policy = governed_by.as_deref().map(Arc::from);
            }
            request.deadline = Instant::now() + PATIENCE;
            let (placement, steps) = local.host.explain_place(at, request);
            (governed_by, placement, steps, local.not_running(at))
        });
        let (governed_by, placement, steps, not_running) =
            asking.await.context("the policy engine failed").or_unusable()?;
        let mut notes = Vec::new();
        if bound.is_some_and(|bound| bound != vnode.name()) {
            notes.push(format!("the pod is bound to {}", bound.unwrap_or_default()));
        }
        if governed_by.is_none() {
            notes.push("no policy governs the node, so nobody has a say".to_owned());
        }
        Ok(Report {
            node: facts.node_name.clone(),
            vnode: facts.vnode_name.clone(),
            pod: format!("{}/{}", pod.namespace, pod.name),
            binding: self.binding.to_owned(),
            at,
            stage,
            pod_facts: PodFacts::clone(&pod),
            facts: NodeFacts::clone(&facts),
            governed_by,
            steps,
            placement: placement.into(),
            not_running,
            notes,
        })
    }
}

/// The report as people read it.
pub(super) fn text(report: &Report) -> String {
    let stage = match report.stage {
        Stage::Schedule => "for the scheduler",
        Stage::Admit => "bound, before its copy is made",
    };
    let governed = report.governed_by.as_ref().map_or_else(String::new, |by| format!("   governed by {by}"));
    let mut out = format!(
        "pod {} on {} (binding {}, node {})  {stage}{governed}\n",
        report.pod, report.vnode, report.binding, report.node
    );
    let mut rows: Vec<Vec<String>> = report.steps.iter().map(step).collect();
    let said = &report.placement;
    rows.push(vec![
        "  = place".to_owned(),
        said.fit.to_string(),
        format!("score {}", said.score),
        said.reason.clone().unwrap_or_default(),
    ]);
    out.push_str(&columns(&rows));
    for entry in &report.not_running {
        out.extend([format!("{entry}\n")]);
    }
    for note in &report.notes {
        out.extend(["note: ", note, "\n"]);
    }
    out
}

fn step(step: &PlaceStep) -> Vec<String> {
    let audit = if step.audit { "  (audit)" } else { "" };
    let score = match step.score {
        Some(score) => format!("score {score} x{}", step.weight),
        None => ".".to_owned(),
    };
    let reason = step.reason.as_ref().map(|reason| format!("{}: {}", reason.code, reason.message));
    vec![
        format!("  {}{audit}", step.entry),
        step.fit.map_or_else(|| "no answer".to_owned(), |fit| fit.to_string()),
        score,
        reason.or_else(|| step.error.clone()).unwrap_or_default(),
    ]
}
