//! `kubeocean proxier`: flags of PX-102 and PX-1307, and the process around the Proxier.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::{ArgAction, Args as ClapArgs, ValueEnum};
use kubeocean_proxier::{AuthorizationMode, Proxier, ProxierConfig};
use kubeocean_runtime::{
    binding::{KubeconfigRules, watch::follow_binding},
    server::{listen, serve_metrics},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{computing, logging, process, program::duration};

/// What of the grace period is kept for the end of the process itself (PX-1202).
const LAST_SECONDS: Duration = Duration::from_secs(5);

/// Flags of the Proxier. Each is also an environment variable `KUBEOCEAN_<FLAG>`; the flag wins.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Name of the ClusterBinding to serve
    #[arg(long)]
    cluster_binding_name: Option<String>,
    /// Kubeconfig of the computing cluster [default: KUBECONFIG, then the pod's ServiceAccount]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    serving: ServingArgs,
    /// Namespace of Kubeocean's components in the computing cluster
    #[arg(long, env = "POD_NAMESPACE", default_value = "kubeocean-system")]
    system_namespace: String,
    /// Accept a worker kubeconfig that refers to files
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    allow_unsafe_kubeconfig: bool,
    /// Address of the metrics listener; 0 turns it off
    #[arg(long, default_value = "0")]
    metrics_bind_address: String,
    #[command(flatten)]
    later: LaterArgs,
    #[command(flatten)]
    log: logging::LogFlags,
}

/// What concerns the kubelet API itself, whatever process serves it.
#[derive(Debug, ClapArgs)]
pub(crate) struct ServingArgs {
    /// Port shared by all virtual nodes: probes, and any node's pods
    #[arg(long, default_value_t = 10250)]
    listen_port: u16,
    /// Address of all listeners of the kubelet API [default: `::`, in a Manager the advertised address]
    #[arg(long, value_parser = address)]
    bind_address: Option<IpAddr>,
    /// Address by which the computing API server reaches this process [default: that of the way to it]
    #[arg(long, env = "POD_IP", value_parser = address)]
    advertise_address: Option<IpAddr>,
    /// Where the serving certificate comes from
    #[arg(long, default_value = "auto")]
    serving_certificate: Certificate,
    /// More authorities of client certificates, beside the cluster's own
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    /// Let callers through that do not say who they are. Whoever reaches this process then runs commands in all pods
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    anonymous_auth: bool,
    /// Who decides what callers may
    #[arg(long, default_value = "Webhook")]
    authorization_mode: Mode,
    /// How long an accepted token is believed
    #[arg(long, default_value = "2m", value_parser = duration)]
    authentication_token_webhook_cache_ttl: Duration,
    /// How long a permission is believed
    #[arg(long, default_value = "5m", value_parser = duration)]
    authorization_webhook_cache_authorized_ttl: Duration,
    /// How long a denial is believed
    #[arg(long, default_value = "30s", value_parser = duration)]
    authorization_webhook_cache_unauthorized_ttl: Duration,
    /// A stream without a byte for so long is closed; 0 keeps it
    #[arg(long, default_value = "4h", value_parser = duration)]
    streaming_connection_idle_timeout: Duration,
    /// How long a stream may be silent after one side ended
    #[arg(long, default_value = "30s", value_parser = duration)]
    stream_linger: Duration,
    /// How long after the order to stop callers are still served [default: 10s, in a Manager 0]
    #[arg(long, value_parser = duration)]
    drain_delay: Option<Duration>,
    /// Grace period of the process; streams are cut 5 s before its end [default: 60s, in a Manager 5s]
    #[arg(long, value_parser = duration)]
    termination_grace_period: Option<Duration>,
    /// Streams at a time
    #[arg(long, default_value_t = 1000)]
    max_streams: usize,
    /// Streams to one pod at a time
    #[arg(long, default_value_t = 64)]
    max_streams_per_pod: usize,
}

/// What other flags of the process say, and what holds where those of the kubelet API say nothing.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Namespace of Kubeocean's components in the computing cluster.
    pub(crate) system_namespace: String,
    /// Which kubeconfig Secrets may be used.
    pub(crate) kubeconfig_rules: KubeconfigRules,
    /// Where to listen; `None` is the advertised address.
    pub(crate) bind_address: Option<IpAddr>,
    /// How long after the order to stop callers are still served.
    pub(crate) drain_delay: Duration,
    /// Grace period of the process.
    pub(crate) termination_grace_period: Duration,
    /// Whether the shared port says that it is not ready while a binding is not served.
    pub(crate) ready_with_bindings: bool,
}

/// Flags of the original for what this version does not do yet. They are taken, so that old templates start.
#[derive(Debug, ClapArgs)]
struct LaterArgs {
    /// Secret with an external serving certificate; not used by this version
    #[arg(long, default_value = "", hide_short_help = true)]
    tls_secret_name: String,
    /// Namespace of that Secret; not used by this version
    #[arg(long, default_value = "", hide_short_help = true)]
    tls_secret_namespace: String,
    /// Metrics of pods; not served by this version
    #[arg(long, default_value_t = true, action = ArgAction::Set, hide_short_help = true)]
    metrics_enabled: bool,
    /// Accepted for compatibility
    #[arg(long, default_value_t = 60, hide_short_help = true)]
    metrics_collect_interval: u32,
    /// Accepted for compatibility
    #[arg(long, default_value = "", hide_short_help = true)]
    metrics_target_namespace: String,
    /// Accepted for compatibility
    #[arg(long, default_value_t = 9006, hide_short_help = true)]
    prometheus_vnode_base_port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Certificate {
    /// Of our own making, until the cluster signs one
    Auto,
    /// Of our own making
    SelfSigned,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    #[value(name = "Webhook")]
    Webhook,
    #[value(name = "AlwaysAllow")]
    AlwaysAllow,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Some(binding) = args.cluster_binding_name.as_deref().filter(|name| !name.is_empty()) else {
        anyhow::bail!("--cluster-binding-name is required: name the ClusterBinding this Proxier serves");
    };
    logging::start(&args.log)?;
    process::block_on(serve(args, binding))
}

async fn serve(args: &Args, binding: &str) -> anyhow::Result<()> {
    let metrics = listen(&args.metrics_bind_address, "metrics", "--metrics-bind-address").await?;
    let config = computing::config(args.kubeconfig.as_deref()).await?;
    let server = config.cluster_url.clone();
    let computing = computing::client(config, None)?;
    if !args.later.tls_secret_name.is_empty() && !args.later.tls_secret_namespace.is_empty() {
        tracing::warn!(
            "--tls-secret-name is not used by this version: the serving certificate is self-signed"
        );
    }
    let cancel = CancellationToken::new();
    process::stop_on_signal(cancel.clone())?;
    let surroundings = Surroundings {
        system_namespace: args.system_namespace.clone(),
        kubeconfig_rules: KubeconfigRules {
            allow_unsafe: args.allow_unsafe_kubeconfig,
            ..KubeconfigRules::default()
        },
        bind_address: Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        drain_delay: Duration::from_secs(10),
        termination_grace_period: Duration::from_mins(1),
        ready_with_bindings: true,
    };
    let config = args.serving.config(&server, surroundings)?;
    let (proxier, events) = Proxier::start(config, computing.clone())?;
    // What feeds the Proxier lives until it has drained.
    let ended = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(events);
    if let Some(listener) = metrics {
        tasks.spawn(serve_metrics(listener, proxier.metrics(), ended.clone()));
    }
    let (states, following) = follow_binding(&computing, binding, Arc::default(), ended.clone());
    tasks.spawn(following);
    let (_, serving) = proxier.serve(binding, states, ended.clone());
    tasks.spawn(serving);
    let stopping = cancel.clone();
    let unexpected = async {
        // Some of them end while the Proxier drains.
        while tasks.join_next().await.is_some() {
            if !stopping.is_cancelled() {
                return;
            }
        }
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = proxier.run(cancel) => result.map_err(Into::into),
        () = unexpected => Err(anyhow::anyhow!("a task of the Proxier ended unexpectedly")),
    };
    ended.cancel();
    while tasks.join_next().await.is_some() {}
    result
}

impl ServingArgs {
    /// The configuration; `server` is the computing API server's URL.
    pub(crate) fn config(&self, server: &http::Uri, around: Surroundings) -> anyhow::Result<ProxierConfig> {
        let advertise_address = match self.advertise_address {
            Some(address) => address,
            None => local_address(server)
                .context("cannot tell the address of this machine; give it with --advertise-address")?,
        };
        let grace = self.termination_grace_period.unwrap_or(around.termination_grace_period);
        Ok(ProxierConfig {
            bind_address: self.bind_address.or(around.bind_address).unwrap_or(advertise_address),
            listen_port: self.listen_port,
            system_namespace: around.system_namespace,
            client_ca_file: self.client_ca_file.clone(),
            anonymous_auth: self.anonymous_auth,
            authorization_mode: match self.authorization_mode {
                Mode::Webhook => AuthorizationMode::Webhook,
                Mode::AlwaysAllow => AuthorizationMode::AlwaysAllow,
            },
            token_cache_ttl: self.authentication_token_webhook_cache_ttl,
            authorized_cache_ttl: self.authorization_webhook_cache_authorized_ttl,
            unauthorized_cache_ttl: self.authorization_webhook_cache_unauthorized_ttl,
            stream_idle_timeout: self.streaming_connection_idle_timeout,
            stream_linger: self.stream_linger,
            max_streams: self.max_streams,
            max_streams_per_pod: self.max_streams_per_pod,
            drain_delay: self.drain_delay.unwrap_or(around.drain_delay),
            stream_grace: grace.saturating_sub(LAST_SECONDS),
            kubeconfig_rules: around.kubeconfig_rules,
            ready_with_bindings: around.ready_with_bindings,
            ..ProxierConfig::new(advertise_address)
        })
    }
}

/// The address this machine has on its way to a server (MC-133). Nothing is sent.
pub(crate) fn local_address(server: &http::Uri) -> anyhow::Result<IpAddr> {
    let host = server.host().context("the API server's URL has no host")?.trim_matches(['[', ']']);
    let port = server.port_u16().unwrap_or(443);
    let target = (host, port).to_socket_addrs()?.next().context("the API server's name has no address")?;
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

/// An IP address, IPv6 with or without brackets.
pub(crate) fn address(text: &str) -> Result<IpAddr, String> {
    let plain = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    plain.parse().map_err(|_| format!("{text:?} is no IP address, expected for example 10.0.0.7 or [::]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(address("[::]"), Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
        assert_eq!(address("::1"), Ok(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        assert_eq!(address("127.0.0.2"), Ok(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2))));
        assert!(address("localhost").is_err() && address("").is_err());
    }

    #[test]
    fn the_own_address_is_that_of_the_way_to_the_server() {
        let url = "https://127.0.0.1:6443".parse().unwrap();
        assert_eq!(local_address(&url).unwrap(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
}
