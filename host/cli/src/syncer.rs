//! `kubeocean syncer`: flags of MC-701 and MC-705, and the process around the Syncer.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use kubeocean_engine::MAX_MODULE_BYTES;
use kubeocean_syncer::{
    config::{PodEvents, StatusMessages, SyncerConfig},
    process::{Listeners, ProcessConfig},
};
use tokio_util::sync::CancellationToken;

use crate::{computing, logging};

/// Flags of the Syncer. Each is also an environment variable `KUBEOCEAN_<FLAG>`; the flag wins.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Name of the ClusterBinding to serve
    #[arg(long)]
    cluster_binding_name: Option<String>,
    /// Kubeconfig of the computing cluster [default: KUBECONFIG, then the pod's ServiceAccount]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Address of the metrics listener; 0 turns it off
    #[arg(long, default_value = ":8080")]
    metrics_bind_address: String,
    /// Address of the health listener; 0 turns it off
    #[arg(long, default_value = ":8081")]
    health_probe_bind_address: String,
    /// Whether only the holder of a Lease acts, so that several replicas can run
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    leader_elect: bool,
    /// Name of the leader Lease [default: kubeocean-syncer-<binding>]
    #[arg(long, default_value = "")]
    leader_election_id: String,
    /// Namespace of the leader Lease [default: the system namespace]
    #[arg(long, default_value = "")]
    leader_election_namespace: String,
    /// How long others wait after the leader's last renewal
    #[arg(long, default_value = "15s", value_parser = duration)]
    leader_election_lease_duration: Duration,
    /// How long a leader goes on without a successful renewal
    #[arg(long, default_value = "10s", value_parser = duration)]
    leader_election_renew_deadline: Duration,
    /// Pause between attempts to lead or to renew
    #[arg(long, default_value = "2s", value_parser = duration)]
    leader_election_retry_period: Duration,
    /// Namespace of Kubeocean's components in the computing cluster
    #[arg(long, env = "POD_NAMESPACE", default_value = "kubeocean-system")]
    system_namespace: String,
    /// Port in the metrics address of virtual nodes
    #[arg(long, default_value_t = 9006)]
    prometheus_vnode_base_port: u16,
    /// Addresses of Proxiers, when none runs as pods of the computing cluster
    #[arg(long, value_delimiter = ',', value_name = "IP,...")]
    proxier_address: Vec<IpAddr>,
    /// Namespace of policy modules in the worker cluster
    #[arg(long, default_value = "kubeocean-worker-system")]
    policy_namespace: String,
    /// Largest policy module, for example 8Mi
    #[arg(long, default_value = "8Mi", value_parser = module_size)]
    policy_max_module_size: usize,
    /// Load policy modules that are not pinned by digest
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    allow_unpinned_policies: bool,
    /// Accept a worker kubeconfig that refers to files
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    allow_unsafe_kubeconfig: bool,
    /// Prefixes of node labels and annotations that are not shown on virtual nodes, beside the built-in ones
    #[arg(long, value_delimiter = ',', value_name = "PREFIX,...")]
    vnode_metadata_deny: Vec<String>,
    /// Nodes taken back per minute at most; 0 is unlimited
    #[arg(long, default_value_t = 0)]
    reclaim_max_nodes_per_minute: u32,
    /// What of the worker's status texts users see
    #[arg(long, default_value = "full")]
    pod_status_messages: Messages,
    /// Which events appear on pods
    #[arg(long, default_value = "warning")]
    pod_events: Events,
    /// How long a pod may stay unscheduled in the worker cluster
    #[arg(long, default_value = "5m", value_parser = duration)]
    scheduling_timeout: Duration,
    /// Remove copies of ConfigMaps and Secrets that nobody used for this time; 0 keeps them
    #[arg(long, default_value = "10m", value_parser = duration)]
    gc_idle_objects: Duration,
    /// Nodes worked on at a time
    #[arg(long, default_value_t = 50)]
    node_workers: usize,
    /// Pods worked on at a time
    #[arg(long, default_value_t = 100)]
    pod_workers: usize,
    /// ConfigMaps and Secrets worked on at a time, per kind
    #[arg(long, default_value_t = 50)]
    object_workers: usize,
    /// Requests per second to the computing cluster; accepted for compatibility, 0 is unlimited
    #[arg(long, default_value_t = 0.0, hide_short_help = true)]
    virtual_client_qps: f64,
    /// Accepted for compatibility
    #[arg(long, default_value_t = 0, hide_short_help = true)]
    virtual_client_burst: u32,
    /// Requests per second to the worker cluster; accepted for compatibility, 0 is unlimited
    #[arg(long, default_value_t = 0.0, hide_short_help = true)]
    physical_client_qps: f64,
    /// Accepted for compatibility
    #[arg(long, default_value_t = 0, hide_short_help = true)]
    physical_client_burst: u32,
    #[command(flatten)]
    log: logging::LogFlags,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Messages {
    Full,
    ReasonOnly,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Events {
    Warning,
    All,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Some(binding) = args.cluster_binding_name.as_deref().filter(|name| !name.is_empty()) else {
        anyhow::bail!("--cluster-binding-name is required: name the ClusterBinding this Syncer serves");
    };
    logging::start(&args.log)?;
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider is installed already");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(std::thread::available_parallelism().map_or(2, |cores| cores.get().min(4)))
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(serve(args, binding));
    // Blocking work that is left (a policy call, a name look-up) must not hold up the end of the process.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

async fn serve(args: &Args, binding: &str) -> anyhow::Result<()> {
    let compiler = std::env::current_exe().context("the path of this program is unknown")?;
    let config = SyncerConfig { policy_compiler: Some(compiler), ..syncer_config(args, binding) };
    let listeners = Listeners::open(&args.metrics_bind_address, &args.health_probe_bind_address).await?;
    let computing = computing::connect(args.kubeconfig.as_deref()).await?;
    let cancel = CancellationToken::new();
    stop_on_signal(cancel.clone())?;
    let process = ProcessConfig {
        election: args.leader_elect.then(|| kubeocean_runtime::election::ElectionConfig {
            namespace: non_empty(&args.leader_election_namespace, &args.system_namespace),
            lease: non_empty(&args.leader_election_id, &format!("kubeocean-syncer-{binding}")),
            identity: identity(),
            lease_duration: args.leader_election_lease_duration,
            renew_deadline: args.leader_election_renew_deadline,
            retry_period: args.leader_election_retry_period,
        }),
        listeners,
    };
    kubeocean_syncer::process::run(Arc::new(config), process, computing, cancel).await.map_err(Into::into)
}

fn syncer_config(args: &Args, binding: &str) -> SyncerConfig {
    SyncerConfig {
        system_namespace: args.system_namespace.clone(),
        policy_namespace: args.policy_namespace.clone(),
        prometheus_vnode_base_port: args.prometheus_vnode_base_port,
        proxier_addresses: args.proxier_address.clone(),
        vnode_metadata_deny: args.vnode_metadata_deny.clone(),
        pod_status_messages: match args.pod_status_messages {
            Messages::Full => StatusMessages::Full,
            Messages::ReasonOnly => StatusMessages::ReasonOnly,
        },
        pod_events: match args.pod_events {
            Events::Warning => PodEvents::Warning,
            Events::All => PodEvents::All,
        },
        scheduling_timeout: args.scheduling_timeout,
        gc_idle_objects: args.gc_idle_objects,
        reclaim_max_nodes_per_minute: args.reclaim_max_nodes_per_minute,
        node_workers: args.node_workers,
        pod_workers: args.pod_workers,
        object_workers: args.object_workers,
        policy_max_module_bytes: args.policy_max_module_size,
        allow_unpinned_policies: args.allow_unpinned_policies,
        allow_unsafe_kubeconfig: args.allow_unsafe_kubeconfig,
        ..SyncerConfig::new(binding)
    }
}

fn non_empty(value: &str, default: &str) -> String {
    if value.is_empty() { default.to_owned() } else { value.to_owned() }
}

/// Lease identity: the pod or host, and something no other process has.
fn identity() -> String {
    let host = std::env::var("POD_NAME")
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_else(|_| "kubeocean".into());
    let started = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    format!("{host}_{started:x}-{:x}", std::process::id())
}

fn stop_on_signal(cancel: CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        cancel.cancel();
    });
    Ok(())
}

/// A Go duration: `15s`, `1m30s`, `500ms`, `0`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration, expected for example 15s, 1m30s or 500ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// A size as Kubernetes quantity.
fn bytes(text: &str) -> Result<usize, String> {
    use kubeocean_api::quantity::{Quantity, Rounding};
    let quantity: Quantity = text.parse().map_err(|error| format!("{error}"))?;
    usize::try_from(quantity.units(Rounding::Down)).map_err(|_| format!("{text} is out of range"))
}

/// A size a policy module may have.
fn module_size(text: &str) -> Result<usize, String> {
    match bytes(text)? {
        size @ 1..=MAX_MODULE_BYTES => Ok(size),
        _ => Err(format!("{text} is out of range, expected up to {}Mi", MAX_MODULE_BYTES >> 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(duration("15").is_err() && duration("").is_err() && duration("s").is_err());
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("8Mi"), Ok(8 << 20));
        assert!(bytes("-1").is_err() && bytes("x").is_err());
        assert_eq!(module_size("64Mi"), Ok(64 << 20));
        assert!(module_size("65Mi").unwrap_err().contains("64Mi") && module_size("0").is_err());
    }
}
