//! Settings of one Syncer. The CLI fills them from flags (MC-701, MC-705); nothing else reads flags or environment.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use kubeocean_api::keys::namespace;
use kubeocean_runtime::{binding::KubeconfigRules, rate::RequestRate};

/// How much of the worker's status texts reaches the computing cluster (BU section 15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatusMessages {
    /// Reasons and messages.
    #[default]
    Full,
    /// Reasons only, for tenants that must not see the worker's texts.
    ReasonOnly,
}

/// Which events appear on vpods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodEvents {
    /// Trouble only, also what the worker cluster says about the ppod.
    #[default]
    Warning,
    /// Also the Normal ones: those of the worker cluster, and one when the ppod is created.
    All,
}

/// Whether LogConfigs are mapped (TD section 15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogConfigs {
    /// While both clusters serve and allow it.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Hidden subcommand of the binary: compiles one policy module for its parent (PO-906).
pub const COMPILE_POLICY: &str = "compile-policy";

/// Default of [`SyncerConfig::hostport_image`] (MC-705).
pub const HOSTPORT_IMAGE: &str = "registry.k8s.io/pause:3.10";

/// Default of [`SyncerConfig::cluster_domain`]: that of a cluster whose administrators chose no other.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Where modules come from that no ConfigMap holds, and whom to trust with them (PO-706, PO-708, PO-1203, PO-1204).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicySources {
    /// Registries without TLS, and authorities beside the machine's.
    pub registries: kubeocean_registry::ClientConfig,
    /// Folder with `trust.yaml` and keys; without one no signature is asked for.
    pub trust_folder: Option<PathBuf>,
    /// Folders for fetched modules; the first one that can be used is. Without any a restart fetches again.
    pub cache_folders: Vec<PathBuf>,
    /// Folder of modules under development.
    pub dev_folder: Option<PathBuf>,
}

/// Everything a Syncer can be told.
#[derive(Debug, Clone)]
pub struct SyncerConfig {
    /// Name of the ClusterBinding this Syncer serves.
    pub binding_name: String,
    /// Namespace of the components in the computing cluster (MC-132).
    pub system_namespace: String,
    /// Default namespace of policy modules in the worker cluster (PO-707).
    pub policy_namespace: String,
    /// Port in vnodes' metrics URL.
    pub prometheus_vnode_base_port: u16,
    /// Addresses of Proxiers for a Syncer that runs outside a cluster (MC-133).
    pub proxier_addresses: Vec<IpAddr>,
    /// Prefixes of labels and annotations that are not mirrored, beside the built-in list (BU section 6).
    pub vnode_metadata_deny: Vec<String>,
    /// What of a ppod's status texts goes up.
    pub pod_status_messages: StatusMessages,
    /// Which events vpods get.
    pub pod_events: PodEvents,
    /// Domain of the computing cluster, in which pods look up names (TD-703, TD-704).
    pub cluster_domain: String,
    /// Whether LogConfigs are mapped.
    pub log_configs: LogConfigs,
    /// How long a ppod may stay unscheduled before it is given up (TD-804).
    pub scheduling_timeout: Duration,
    /// Copies of ConfigMaps and Secrets nobody uses are removed after this time; zero keeps them (TD section 12).
    pub gc_idle_objects: Duration,
    /// The same for copies of PersistentVolumeClaims and PersistentVolumes.
    pub gc_idle_volumes: Duration,
    /// Image that port reservations name; nothing runs it, so it is never pulled (BU-1202).
    pub hostport_image: String,
    /// Nodes withdrawn per minute at most; 0 is unlimited (BU section 9).
    pub reclaim_max_nodes_per_minute: u32,
    /// Nodes worked on at a time; as many CSINodes, and as many port reservations.
    pub node_workers: usize,
    /// Pods worked on at a time.
    pub pod_workers: usize,
    /// Copied objects worked on at a time.
    pub object_workers: usize,
    /// Largest policy module in bytes (PO section 8).
    pub policy_max_module_bytes: usize,
    /// Program that compiles policy modules with argument [`COMPILE_POLICY`], normally this one; `None` compiles them in
    /// this process, which trusts whoever may write policies.
    pub policy_compiler: Option<PathBuf>,
    /// Where compiled modules are kept: the first of these folders that is this user's alone (PO-905).
    pub policy_code_folders: Vec<PathBuf>,
    /// Where modules that are not in ConfigMaps come from.
    pub policy_sources: PolicySources,
    /// Whether modules without a digest are loaded (PO-706).
    pub allow_unpinned_policies: bool,
    /// Which kubeconfig Secrets may be used.
    pub kubeconfig_rules: KubeconfigRules,
    /// How many requests the worker cluster gets; `None` is no limit (TD-106).
    pub worker_rate: Option<RequestRate>,
}

impl SyncerConfig {
    /// The defaults of the flags for one binding.
    pub fn new(binding_name: impl Into<String>) -> Self {
        Self {
            binding_name: binding_name.into(),
            system_namespace: namespace::SYSTEM.to_owned(),
            policy_namespace: namespace::POLICIES.to_owned(),
            prometheus_vnode_base_port: 9006,
            proxier_addresses: Vec::new(),
            vnode_metadata_deny: Vec::new(),
            pod_status_messages: StatusMessages::default(),
            pod_events: PodEvents::default(),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            log_configs: LogConfigs::default(),
            scheduling_timeout: Duration::from_mins(5),
            gc_idle_objects: Duration::from_mins(10),
            gc_idle_volumes: Duration::from_hours(1),
            hostport_image: HOSTPORT_IMAGE.to_owned(),
            reclaim_max_nodes_per_minute: 0,
            node_workers: 50,
            pod_workers: 100,
            object_workers: 50,
            policy_max_module_bytes: kubeocean_engine::DEFAULT_MAX_MODULE_BYTES,
            policy_compiler: None,
            policy_code_folders: Vec::new(),
            policy_sources: PolicySources::default(),
            allow_unpinned_policies: false,
            kubeconfig_rules: KubeconfigRules::default(),
            worker_rate: None,
        }
    }
}
