//! `kubeocean syncer`: flags of MC-701 and MC-705, and the process around the Syncer.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use kubeocean_engine::MAX_MODULE_BYTES;
use kubeocean_runtime::{binding::KubeconfigRules, rate::RequestRate, server::listen};
use kubeocean_syncer::{
    config::{
        CLUSTER_DOMAIN, HOSTPORT_IMAGE, LogConfigs, PodEvents, PolicySources, StatusMessages, SyncerConfig,
    },
    policy_server::serve::PolicyListener,
    process::{LeaseName, ProcessConfig},
};
use tokio_util::sync::CancellationToken;

use crate::{
    computing, logging, process,
    program::{ProgramFlags, duration, non_empty},
    proxier::{address, local_address},
    sources::SourceFlags,
};

/// Flags of a Syncer that runs as a process of its own. Each is also an environment variable `KUBEOCEAN_<FLAG>`; the flag
/// wins.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Name of the ClusterBinding to serve
    #[arg(long)]
    cluster_binding_name: Option<String>,
    #[command(flatten)]
    program: ProgramFlags,
    /// Name of the leader Lease [default: kubeocean-syncer-BINDING]
    #[arg(long, default_value = "")]
    leader_election_id: String,
    /// Address of the policy server (HTTPS), which a Manager and `kubeocean policy explain --recorded` ask; 0 turns it off
    #[arg(long, default_value = ":9443")]
    policy_bind_address: String,
    /// Address by which they reach it [default: that of the listener, else that of the way to the API server]
    #[arg(long, env = "POD_IP", value_parser = address)]
    policy_advertise_address: Option<IpAddr>,
    #[command(flatten)]
    syncer: SyncerFlags,
    #[command(flatten)]
    log: logging::LogFlags,
}

/// What a Syncer can be told wherever it runs; in a Manager's process it holds for all bindings (MC-109).
#[derive(Debug, ClapArgs)]
pub(crate) struct SyncerFlags {
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
    /// Folder that keeps fetched and compiled policy modules [default: /var/cache/kubeocean, else the user's cache folder]
    #[arg(long, value_name = "DIR")]
    policy_cache_dir: Option<PathBuf>,
    #[command(flatten)]
    sources: SourceFlags,
    /// Load policy modules that are not pinned by digest
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    allow_unpinned_policies: bool,
    /// Accept a worker kubeconfig that refers to files
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) allow_unsafe_kubeconfig: bool,
    /// Prefixes of node labels and annotations that are not shown on virtual nodes, beside the built-in ones
    #[arg(long, value_delimiter = ',', value_name = "PREFIX,...")]
    vnode_metadata_deny: Vec<String>,
    /// Image named by the pods that reserve host ports on virtual nodes; nothing runs it, so it is never pulled
    #[arg(long, default_value = HOSTPORT_IMAGE)]
    hostport_image: String,
    /// Nodes taken back per minute at most; 0 is unlimited
    #[arg(long, default_value_t = 0)]
    reclaim_max_nodes_per_minute: u32,
    /// What of the worker's status texts users see
    #[arg(long, default_value = "full")]
    pod_status_messages: Messages,
    /// Which events appear on pods
    #[arg(long, default_value = "warning")]
    pod_events: Events,
    /// Domain of the computing cluster, in which its pods look up names
    #[arg(long, default_value = CLUSTER_DOMAIN, value_parser = domain)]
    cluster_domain: String,
    /// Whether LogConfigs are mapped: while both clusters serve them, or never
    #[arg(long = "logconfig", default_value = "auto")]
    log_configs: LogConfigMapping,
    /// How long a pod may stay unscheduled in the worker cluster
    #[arg(long, default_value = "5m", value_parser = duration)]
    scheduling_timeout: Duration,
    /// Remove copies of ConfigMaps and Secrets that nobody used for this time; 0 keeps them
    #[arg(long, default_value = "10m", value_parser = duration)]
    gc_idle_objects: Duration,
    /// Remove copies of volumes and their claims that nobody used for this time; 0 keeps them
    #[arg(long, default_value = "1h", value_parser = duration)]
    gc_idle_volumes: Duration,
    /// Nodes, their CSINodes and their port reservations worked on at a time, each
    #[arg(long, default_value_t = 50)]
    node_workers: usize,
    /// Pods worked on at a time; of one namespace a fiftieth of them, and an eighth where servers are far or busy
    #[arg(long, default_value_t = 100)]
    pod_workers: usize,
    /// Copied ConfigMaps, Secrets and volumes worked on at a time; of one namespace as of pods
    #[arg(long, default_value_t = 50)]
    object_workers: usize,
    /// Requests per second to the computing cluster, Leases apart; 0 is unlimited
    #[arg(long, default_value_t = 0.0, hide_short_help = true)]
    virtual_client_qps: f64,
    /// Requests to the computing cluster at once, where their rate is limited; 0 is 10
    #[arg(long, default_value_t = 0, hide_short_help = true)]
    virtual_client_burst: u32,
    /// Requests per second to the worker cluster; 0 is unlimited
    #[arg(long, default_value_t = 0.0, hide_short_help = true)]
    physical_client_qps: f64,
    /// Requests to the worker cluster at once, where their rate is limited; 0 is 10
    #[arg(long, default_value_t = 0, hide_short_help = true)]
    physical_client_burst: u32,
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

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogConfigMapping {
    Auto,
    Off,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Some(binding) = args.cluster_binding_name.as_deref().filter(|name| !name.is_empty()) else {
        anyhow::bail!("--cluster-binding-name is required: name the ClusterBinding this Syncer serves");
    };
    logging::start(&args.log)?;
    process::block_on(serve(args, binding))
}

async fn serve(args: &Args, binding: &str) -> anyhow::Result<()> {
    let program = &args.program;
    let config = args.syncer.config(binding, &program.system_namespace)?;
    let listeners = program.listeners().await?;
    let connection = computing::config(program.kubeconfig.as_deref()).await?;
    let policy_server = args.policy_server(&connection.cluster_url).await?;
    let leases = computing::client(connection.clone(), None)?;
    let computing = computing::client(connection, args.syncer.computing_rate())?;
    let cancel = CancellationToken::new();
    process::stop_on_signal(cancel.clone())?;
    let lease = non_empty(&args.leader_election_id, &format!("kubeocean-syncer-{binding}"));
    let surroundings = ProcessConfig {
        election: program.election(&lease),
        listeners,
        policy_server,
        lease: LeaseName { namespace: program.lease_namespace(), name: lease },
    };
    kubeocean_syncer::process::run(Arc::new(config), surroundings, computing, leases, cancel)
        .await
        .map_err(Into::into)
}

impl Args {
    /// Opens the policy server, if it is on; `server` is the computing API server's URL.
    async fn policy_server(&self, server: &http::Uri) -> anyhow::Result<Option<PolicyListener>> {
        let opened = listen(&self.policy_bind_address, "the policy server", "--policy-bind-address").await?;
        let Some(listener) = opened else { return Ok(None) };
        let bound = listener.local_addr()?;
        let address = match self.policy_advertise_address {
            Some(address) => address,
            None if !bound.ip().is_unspecified() => bound.ip(),
            None => local_address(server).context(
                "cannot tell the address of this machine; give it with --policy-advertise-address",
            )?,
        };
        Ok(Some(PolicyListener::new(listener, SocketAddr::new(address, bound.port()))?))
    }
}

impl SyncerFlags {
    /// How many requests the computing cluster gets from each Syncer.
    pub(crate) fn computing_rate(&self) -> Option<RequestRate> {
        RequestRate::of(self.virtual_client_qps, self.virtual_client_burst)
    }

    fn policy_sources(&self) -> anyhow::Result<PolicySources> {
        self.sources.sources(self.cache_folders(MODULES))
    }

    /// Where one of the caches may be.
    fn cache_folders(&self, cache: &str) -> Vec<PathBuf> {
        let parents = match &self.policy_cache_dir {
            Some(folder) => vec![folder.clone()],
            None => default_cache_folders(),
        };
        parents.into_iter().map(|parent| parent.join(cache)).collect()
    }

    /// The settings these flags make, for one binding.
    pub(crate) fn config(&self, binding: &str, system_namespace: &str) -> anyhow::Result<SyncerConfig> {
        // Policy modules are compiled by a process of its own, which is this program again (PO-906).
        let compiler = std::env::current_exe().context("the path of this program is unknown")?;
        Ok(SyncerConfig {
            policy_compiler: Some(compiler),
            policy_code_folders: self.cache_folders(CODE),
            system_namespace: system_namespace.to_owned(),
            policy_namespace: self.policy_namespace.clone(),
            prometheus_vnode_base_port: self.prometheus_vnode_base_port,
            proxier_addresses: self.proxier_address.clone(),
            vnode_metadata_deny: self.vnode_metadata_deny.clone(),
            pod_status_messages: match self.pod_status_messages {
                Messages::Full => StatusMessages::Full,
                Messages::ReasonOnly => StatusMessages::ReasonOnly,
            },
            pod_events: match self.pod_events {
                Events::Warning => PodEvents::Warning,
                Events::All => PodEvents::All,
            },
            cluster_domain: self.cluster_domain.clone(),
            log_configs: match self.log_configs {
                LogConfigMapping::Auto => LogConfigs::Auto,
                LogConfigMapping::Off => LogConfigs::Off,
            },
            scheduling_timeout: self.scheduling_timeout,
            gc_idle_objects: self.gc_idle_objects,
            gc_idle_volumes: self.gc_idle_volumes,
            hostport_image: self.hostport_image.clone(),
            reclaim_max_nodes_per_minute: self.reclaim_max_nodes_per_minute,
            node_workers: self.node_workers,
            pod_workers: self.pod_workers,
            object_workers: self.object_workers,
            policy_max_module_bytes: self.policy_max_module_size,
            policy_sources: self.policy_sources()?,
            allow_unpinned_policies: self.allow_unpinned_policies,
            kubeconfig_rules: KubeconfigRules {
                allow_unsafe: self.allow_unsafe_kubeconfig,
                ..KubeconfigRules::default()
            },
            worker_rate: RequestRate::of(self.physical_client_qps, self.physical_client_burst),
            ..SyncerConfig::new(binding)
        })
    }
}

/// Folder of fetched modules within the cache folder.
const MODULES: &str = "modules";
/// Folder of compiled modules within the cache folder.
const CODE: &str = "code";

/// A pod has the first; a process a person started, the second.
fn default_cache_folders() -> Vec<PathBuf> {
    let home = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")));
    let parents = [Some(PathBuf::from("/var/cache")), home.filter(|home| home.is_absolute())];
    parents.into_iter().flatten().map(|parent| parent.join("kubeocean")).collect()
}

/// A domain as a kubelet's `clusterDomain`.
fn domain(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&label.len())
            && label.chars().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let domain = text.strip_suffix('.').unwrap_or(text);
    if domain.len() > 253 || !domain.split('.').all(is_label) {
        return Err(
            "a domain has parts of lower-case letters, digits and `-`, and `.` between them".to_owned()
        );
    }
    Ok(domain.to_owned())
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
    fn domains() {
        assert_eq!(domain("cluster.local"), Ok("cluster.local".to_owned()));
        assert_eq!(domain("k8s-1.corp.example."), Ok("k8s-1.corp.example".to_owned()));
        for wrong in ["", ".", "a..b", "-a", "a-", "Corp.example", "a_b", "a b"] {
            assert!(domain(wrong).is_err(), "{wrong:?}");
        }
        assert!(domain(&"a".repeat(64)).is_err() && domain(&["a"; 127].join(".")).is_ok());
        assert!(domain(&["a"; 128].join(".")).is_err());
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("8Mi"), Ok(8 << 20));
        assert!(bytes("-1").is_err() && bytes("x").is_err());
        assert_eq!(module_size("64Mi"), Ok(64 << 20));
        assert!(module_size("65Mi").unwrap_err().contains("64Mi") && module_size("0").is_err());
    }
}
