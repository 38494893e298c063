//! `kubeocean policy explain`: what the policies of a worker cluster decide about one node, step by step.
//!
//! Reads with the user's own rights what the Syncer reads with its, and decides here with the same engine. Nothing is
//! written.

mod evaluate;
mod gather;
mod place;
mod recorded;
mod recorded_table;
mod table;

use clap::Args as ClapArgs;
use jiff::{Timestamp, tz::TimeZone};
use kubeocean_api::keys::namespace;
use kubeocean_engine::Recorded;
use kubeocean_syncer::policies::view::PolicyView;

use self::evaluate::Evaluation;
use super::{
    gather::{BindingFlags, bindings, policies},
    module, moment,
};
use crate::{
    cluster,
    failure::{Failure, OrFailure},
    output::Format,
    sources::SourceFlags,
};

/// Which node, and from where.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy explain node-7 --context east --at 2026-03-07T23:30
  kubeocean policy explain node-7 --context east --computing-context main --pod shop/web-0
  kubeocean policy explain node-7 --context east --computing-context main --recorded -o json > decisions.jsonl

Decides here, with your rights to read nodes, pods, policies and modules; only --recorded asks the Syncer what it decided.")]
pub(crate) struct Args {
    /// Name of a node of the worker cluster
    node: String,
    /// Moment to decide for: 2026-03-07T14:02:00Z, or 2026-03-07T14:02 in the policies' time zone [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Explain what placement policies say about a pod of the computing cluster on the node
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Option<String>,
    /// Print what the Syncer itself decided last, of its last 1,000 decisions; -o json prints JSON lines for `replay`
    #[arg(long, conflicts_with = "at")]
    recorded: bool,
    #[command(flatten)]
    binding: BindingFlags,
    /// Namespace of Kubeocean's components in the computing cluster
    #[arg(long, default_value = namespace::SYSTEM)]
    system_namespace: String,
    /// Namespace of policy modules in the worker cluster
    #[arg(long, default_value = namespace::POLICIES)]
    policy_namespace: String,
    #[command(flatten)]
    sources: SourceFlags,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if args.recorded {
        let decisions = cluster::block_on(recorded(args))?;
        return recorded_table::show(&decisions, args.output);
    }
    match cluster::block_on(explain(args))? {
        Explained::Node(report) => args.output.show(&*report, table::text),
        Explained::Pod(report) => args.output.show(&*report, place::text),
    }
}

/// What was asked for.
enum Explained {
    Node(Box<evaluate::Report>),
    Pod(Box<place::Report>),
}

/// The Syncer's own decisions about the node, and with `--pod` only those about that pod.
async fn recorded(args: &Args) -> Result<Vec<Recorded>, Failure> {
    let clusters = args.binding.connect().await?;
    gather::check_name(&args.node)?;
    let (Some(client), Some(config)) = (&clusters.computing, &clusters.computing_config) else {
        return Err(needs_computing("--recorded asks the Syncer, which is in the computing cluster"));
    };
    let policies = policies(&clusters.worker).await?.unwrap_or_default();
    let names = bindings(&policies, args.binding.binding.as_deref());
    let [binding] = names.as_slice() else {
        let which = if names.is_empty() { "no policy names a binding".to_owned() } else { names.join(", ") };
        return Err(Failure::unusable(format!(
            "there is more than one Syncer, or none: {which}; choose a binding with --binding"
        )));
    };
    let computing = clusters.computing_of(binding).await?;
    let computing = computing
        .ok_or_else(|| Failure::unusable(format!("the computing cluster has no ClusterBinding {binding}")))?;
    let asked =
        recorded::Asked { client, config, namespace: &args.system_namespace, binding, computing: &computing };
    let mut decisions = asked.decisions(&args.node).await?;
    if let Some(pod) = &args.pod {
        decisions.retain(|one| matches!(one, Recorded::Place(record) if record.pod == *pod));
    }
    Ok(decisions)
}

fn needs_computing(why: &str) -> Failure {
    Failure::unusable(format!("{why}: give --computing-context or --computing-kubeconfig"))
}

async fn explain(args: &Args) -> Result<Explained, Failure> {
    let clusters = args.binding.connect().await?;
    if args.pod.is_some() && clusters.computing.is_none() {
        return Err(needs_computing("--pod is a pod of the computing cluster"));
    }
    let worker = gather::worker(&clusters.worker, &args.node).await?;
    let engine = module::engine()?;
    let sources = args.sources.sources(Vec::new()).or_unusable()?;
    let names = bindings(&worker.policies, args.binding.binding.as_deref());
    if names.is_empty() {
        return Err(Failure::unusable(
            "the worker cluster has no ResourceLeasingPolicy, so no node is leased",
        ));
    }
    let mut reports = Vec::new();
    let mut places = Vec::new();
    for name in &names {
        let of: Vec<&PolicyView> =
            worker.policies.iter().filter(|policy| policy.spec.spec.cluster == *name).collect();
        let at = moment(args.at.as_deref(), &of)?;
        let computing = clusters.computing_of(name).await?;
        let vnode = match (&clusters.computing, &computing) {
            (Some(client), Some(of)) => gather::vnode(client, &of.binding.cluster_id, &args.node).await?,
            _ => None,
        };
        let evaluation = Evaluation {
            engine: &engine,
            client: &clusters.worker,
            worker: &worker,
            computing: computing.as_ref(),
            vnode,
            binding: name,
            policy_namespace: &args.policy_namespace,
            sources: &sources,
            at,
        };
        if let (Some(pod), Some(client), Some(vnode)) = (&args.pod, &clusters.computing, &evaluation.vnode) {
            let candidate = place::candidate(client, pod, vnode.name()).await?;
            places.push(evaluation.place(vnode, &candidate).await?);
        }
        if args.pod.is_none() {
            reports.push(evaluation.run().await?);
        }
    }
    match &args.pod {
        None => choose(reports).map(|report| Explained::Node(Box::new(report))),
        Some(pod) => {
            let report = places.pop().filter(|_| places.is_empty());
            report.map(|report| Explained::Pod(Box::new(report))).ok_or_else(|| {
                Failure::unusable(format!(
                    "node {} has no virtual node to which {pod} could go, or several; choose one with --binding",
                    args.node
                ))
            })
        }
    }
}

/// The only binding, or the only one that takes the node.
fn choose(mut reports: Vec<evaluate::Report>) -> Result<evaluate::Report, Failure> {
    if reports.len() > 1 {
        let names = |all: &[evaluate::Report]| {
            all.iter().map(|report| report.binding.clone()).collect::<Vec<_>>().join(", ")
        };
        let all = names(&reports);
        reports.retain(|report| report.decision.governed_by.is_some());
        if reports.len() != 1 {
            let which = if reports.is_empty() {
                format!("no policy governs the node, for none of the bindings {all}")
            } else {
                format!("policies of several bindings govern the node: {}", names(&reports))
            };
            return Err(Failure::unusable(format!("{which}; choose one with --binding")));
        }
    }
    reports.pop().ok_or_else(|| Failure::unusable("there is no binding to explain"))
}

/// `--at`, which without an offset is local time of the policies.
fn moment(text: Option<&str>, policies: &[&PolicyView]) -> Result<Timestamp, Failure> {
    let Some(text) = text else { return Ok(Timestamp::now()) };
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Ok(instant);
    }
    let wrong = |why: String| Failure::unusable(format!("--at {text}: {why}"));
    let zones: std::collections::BTreeSet<Option<&str>> =
        policies.iter().map(|policy| policy.spec.spec.time_zone.as_deref()).collect();
    let zone = match zones.into_iter().collect::<Vec<_>>().as_slice() {
        [] | [None] => TimeZone::system(),
        [Some(name)] => TimeZone::get(name).map_err(|error| wrong(error.to_string()))?,
        _ => return Err(wrong("the policies have several time zones, give an offset, such as Z".to_owned())),
    };
    moment::instant(text, &zone).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &serde_json::Value) -> PolicyView {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn at(text: &str, policies: &[&PolicyView]) -> Result<String, String> {
        moment(Some(text), policies).map(|at| at.to_string()).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn a_local_time_is_the_policies() {
        let (rome, shanghai) = (
            policy(&serde_json::json!({"cluster": "b", "timeZone": "Europe/Rome"})),
            policy(&serde_json::json!({"cluster": "b", "timeZone": "Asia/Shanghai"})),
        );
        assert_eq!(at("2026-03-07T14:02", &[&rome]).as_deref(), Ok("2026-03-07T13:02:00Z"));
        assert_eq!(at("2026-03-07 14:02", &[&shanghai]).as_deref(), Ok("2026-03-07T06:02:00Z"));
        assert_eq!(at("2026-03-07T14:02:00Z", &[&rome, &shanghai]).as_deref(), Ok("2026-03-07T14:02:00Z"));
        assert!(at("2026-03-07T14:02", &[&rome, &shanghai]).unwrap_err().contains("several time zones"));
        assert!(at("tomorrow", &[&rome]).unwrap_err().contains("expected a time"));
    }
}
