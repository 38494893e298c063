//! Settings of one process's Proxier. The CLI fills them from flags (PX-102, PX-1307); nothing else reads flags or
//! environment.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use kubeocean_api::keys::namespace;
use kubeocean_runtime::binding::KubeconfigRules;

/// What callers may (PX-417).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuthorizationMode {
    /// The computing cluster decides.
    #[default]
    Webhook,
    /// Everybody who is authenticated may do everything.
    AlwaysAllow,
}

/// Everything a Proxier can be told.
#[derive(Debug, Clone)]
pub struct ProxierConfig {
    /// Address of all listeners. The unspecified IPv6 address also takes IPv4.
    pub bind_address: IpAddr,
    /// Address by which the computing API server reaches this process: in the serving certificate, and, in-process, the
    /// vnodes' InternalIP (MC-133).
    pub advertise_address: IpAddr,
    /// Port shared by all vnodes: probes, and any vnode's pods.
    pub listen_port: u16,
    /// Namespace of the components in the computing cluster (MC-132).
    pub system_namespace: String,
    /// More client authorities, as a PEM file.
    pub client_ca_file: Option<PathBuf>,
    /// Whether callers without credentials are let through (PX-417).
    pub anonymous_auth: bool,
    /// What callers may.
    pub authorization_mode: AuthorizationMode,
    /// How long an accepted token is believed.
    pub token_cache_ttl: Duration,
    /// How long a permission is believed.
    pub authorized_cache_ttl: Duration,
    /// How long a denial is believed.
    pub unauthorized_cache_ttl: Duration,
    /// A stream without a byte for so long is closed; zero keeps it.
    pub stream_idle_timeout: Duration,
    /// How long a stream whose one side ended may be silent.
    pub stream_linger: Duration,
    /// Streams of the process at a time.
    pub max_streams: usize,
    /// Streams to one pod at a time.
    pub max_streams_per_pod: usize,
    /// How long after the order to stop callers are still served, so that the vnodes can be pointed elsewhere.
    pub drain_delay: Duration,
    /// How long after the order to stop running streams are left alone.
    pub stream_grace: Duration,
    /// Which kubeconfig Secrets may be used.
    pub kubeconfig_rules: KubeconfigRules,
    /// Whether `/readyz` waits for every binding: right for a process of one binding, wrong for one of many (MC-137).
    pub ready_with_bindings: bool,
}

impl ProxierConfig {
    /// The defaults of the flags for a process at `address`.
    pub fn new(address: IpAddr) -> Self {
        Self {
            bind_address: IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            advertise_address: address,
            listen_port: 10250,
            system_namespace: namespace::SYSTEM.to_owned(),
            client_ca_file: None,
            anonymous_auth: false,
            authorization_mode: AuthorizationMode::default(),
            token_cache_ttl: Duration::from_mins(2),
            authorized_cache_ttl: Duration::from_mins(5),
            unauthorized_cache_ttl: Duration::from_secs(30),
            stream_idle_timeout: Duration::from_hours(4),
            stream_linger: Duration::from_secs(30),
            max_streams: 1000,
            max_streams_per_pod: 64,
            drain_delay: Duration::from_secs(10),
            stream_grace: Duration::from_secs(55),
            kubeconfig_rules: KubeconfigRules::default(),
            ready_with_bindings: true,
        }
    }
}
