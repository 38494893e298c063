//! `kubeocean policy explain`: what the policies of a worker cluster decide about one node, step by step.
//!
//! Reads with the user's own rights what the Syncer reads with its, and decides here with the same engine. Nothing is
//! written.

mod evaluate;
mod gather;
mod table;

use std::path::PathBuf;

use clap::Args as ClapArgs;
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use kubeocean_api::keys::namespace;
use kubeocean_syncer::{config::PolicySources, policies::view::PolicyView};

use self::evaluate::Evaluation;
use super::module;
use crate::{
    cluster::{self, ClusterFlags},
    failure::{Failure, OrFailure},
    output::{Format, print, print_json},
    registry::RegistryFlags,
};

/// Which node, and from where.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Name of a node of the worker cluster
    node: String,
    /// Moment to decide for: 2026-03-07T14:02:00Z, or 2026-03-07T14:02 in the policies' time zone [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    #[command(flatten)]
    worker: ClusterFlags,
    /// Context of the computing cluster, to add the binding's selector and what the virtual node publishes
    #[arg(long, value_name = "NAME")]
    computing_context: Option<String>,
    /// Kubeconfig of the computing cluster [default: that of the worker cluster]
    #[arg(long, value_name = "FILE")]
    computing_kubeconfig: Option<PathBuf>,
    /// ClusterBinding to explain for [default: the one whose policy governs the node]
    #[arg(long, value_name = "NAME")]
    binding: Option<String>,
    /// Namespace of policy modules in the worker cluster
    #[arg(long, default_value = namespace::POLICIES)]
    policy_namespace: String,
    /// Folder with trust.yaml and public keys, as the Syncer has it
    #[arg(long, value_name = "DIR")]
    policy_trust_dir: Option<PathBuf>,
    /// Folder of modules under development, as the Syncer has it
    #[arg(long, value_name = "DIR")]
    policy_dev_dir: Option<PathBuf>,
    #[command(flatten)]
    registries: RegistryFlags,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let report = cluster::block_on(explain(args))?;
    match args.output {
        Format::Text => print(&table::text(&report)),
        Format::Json => print_json(&report),
    }
}

async fn explain(args: &Args) -> Result<evaluate::Report, Failure> {
    let kubeconfig = cluster::read_kubeconfig(args.worker.kubeconfig.as_deref())?;
    let (client, _) = cluster::connect(kubeconfig.clone(), args.worker.context.as_deref()).await?;
    let worker = gather::worker(&client, &args.node).await?;
    let computing = if args.computing_context.is_some() || args.computing_kubeconfig.is_some() {
        let kubeconfig = match &args.computing_kubeconfig {
            Some(path) => cluster::read_kubeconfig(Some(path))?,
            None => kubeconfig,
        };
        Some(cluster::connect(kubeconfig, args.computing_context.as_deref()).await?.0)
    } else {
        None
    };
    let engine = module::engine()?;
    let sources = PolicySources {
        registries: args.registries.config().or_unusable()?,
        trust_folder: args.policy_trust_dir.clone(),
        cache_folders: Vec::new(),
        dev_folder: args.policy_dev_dir.clone(),
    };
    let names = bindings(&worker.policies, args.binding.as_deref())?;
    let mut reports = Vec::new();
    for name in &names {
        let of: Vec<&PolicyView> =
            worker.policies.iter().filter(|policy| policy.spec.spec.cluster == *name).collect();
        let at = moment(args.at.as_deref(), &of)?;
        let computing = match &computing {
            Some(client) => gather::computing(client, name, &args.node).await?,
            None => None,
        };
        let evaluation = Evaluation {
            engine: &engine,
            client: &client,
            worker: &worker,
            computing: computing.as_ref(),
            binding: name,
            policy_namespace: &args.policy_namespace,
            sources: &sources,
            at,
        };
        reports.push(evaluation.run().await?);
    }
    choose(reports)
}

/// Bindings whose policies may govern the node.
fn bindings(policies: &[PolicyView], wanted: Option<&str>) -> Result<Vec<String>, Failure> {
    if let Some(name) = wanted {
        return Ok(vec![name.to_owned()]);
    }
    let names: std::collections::BTreeSet<String> =
        policies.iter().map(|policy| policy.spec.spec.cluster.clone()).collect();
    if names.is_empty() {
        return Err(Failure::unusable(
            "the worker cluster has no ResourceLeasingPolicy, so no node is leased",
        ));
    }
    Ok(names.into_iter().collect())
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
    let local: DateTime = text
        .parse()
        .map_err(|_| wrong("expected a time such as 2026-03-07T14:02:00Z or 2026-03-07T14:02".to_owned()))?;
    let zones: std::collections::BTreeSet<Option<&str>> =
        policies.iter().map(|policy| policy.spec.spec.time_zone.as_deref()).collect();
    let zone = match zones.into_iter().collect::<Vec<_>>().as_slice() {
        [] | [None] => TimeZone::system(),
        [Some(name)] => TimeZone::get(name).map_err(|error| wrong(error.to_string()))?,
        _ => return Err(wrong("the policies have several time zones, give an offset, such as Z".to_owned())),
    };
    local.to_zoned(zone).map(|zoned| zoned.timestamp()).map_err(|error| wrong(error.to_string()))
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

    #[test]
    fn bindings_come_from_the_policies() {
        let all =
            [policy(&serde_json::json!({"cluster": "b"})), policy(&serde_json::json!({"cluster": "a"}))];
        assert_eq!(bindings(&all, None).unwrap(), ["a", "b"]);
        assert_eq!(bindings(&all, Some("c")).unwrap(), ["c"]);
        assert!(bindings(&[], None).is_err());
    }
}
