//! The process-wide part: one shared port, one listener per vnode port, TLS, authentication, authorization and limits for
//! all bindings; and the order of start and end (PX-1202, MC-134).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use kube::Client;
use kubeocean_runtime::{
    binding::watch::BindingState,
    clock::{Clock, SystemClock},
    events::EventRecorder,
    server::MetricsText,
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    authn::Authenticator,
    authz::Authorizer,
    binding::{BindingHealth, BindingPart},
    config::{AuthorizationMode, ProxierConfig},
    listen::{
        certificate::{ServingCertificate, server_config},
        connection::{Door, accept},
        gate::Gate,
        keep_listeners,
        socket::bind,
    },
    metrics::ProxierMetrics,
    pods::Lists,
    readiness::NotReady,
    stream::slots::Slots,
    vnodes::Vnodes,
};

/// How often switched off protections are mentioned (PX-417).
const WARN_EVERY: Duration = Duration::from_hours(1);
/// How long the last connections may take to end after they were told.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why a Proxier did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The shared port cannot be opened.
    #[error(
        "cannot listen on {address} for the kubelet API: {source}; free the port or choose another with --listen-port or --bind-address"
    )]
    Listen {
        /// What was tried.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// No certificate could be made.
    #[error("cannot make a serving certificate: {0}")]
    Certificate(Box<dyn std::error::Error + Send + Sync>),
}

/// A task of the Proxier ended by itself or panicked: the process must be replaced.
#[derive(Debug, thiserror::Error)]
#[error("a task of the Proxier ended unexpectedly: {0}")]
pub struct TaskEnded(String);

/// What all parts share.
pub(crate) struct Shared {
    pub(crate) config: ProxierConfig,
    pub(crate) computing: Client,
    pub(crate) authn: Authenticator,
    pub(crate) authz: Authorizer,
    pub(crate) vnodes: Arc<Vnodes>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) metrics: Arc<ProxierMetrics>,
    pub(crate) tls: TlsAcceptor,
    pub(crate) events: EventRecorder,
    pub(crate) gate: Gate,
    pub(crate) lists: Lists,
    /// `/readyz` says no from now on.
    pub(crate) draining: CancellationToken,
    /// Nothing new is taken from now on.
    pub(crate) refusing: CancellationToken,
    /// What is left ends now.
    pub(crate) stop: CancellationToken,
    /// Connections and tunnels.
    pub(crate) tasks: TaskTracker,
    bindings: Mutex<BTreeMap<String, Arc<BindingPart>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Shared {
    /// Why the process is not ready; empty if it is.
    pub(crate) fn not_ready(&self) -> Vec<NotReady> {
        let mut reasons = Vec::new();
        if self.draining.is_cancelled() {
            reasons.push(NotReady::ShuttingDown);
        }
        if !self.authn.authorities.is_known() {
            reasons.push(NotReady::NoAuthorities);
        }
        if self.config.ready_with_bindings {
            for (name, part) in &*self.bindings.lock() {
                if let BindingHealth::Waiting(why) = &*part.health().borrow() {
                    reasons.push(NotReady::Binding { name: name.clone(), why: why.clone() });
                }
            }
        }
        reasons
    }
}

/// The kubelet API of the vnodes of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Proxier {
    shared: Arc<Shared>,
    listener: Arc<Mutex<Option<TcpListener>>>,
}

impl Proxier {
    /// Opens the shared port, so that a port in use ends the start with a clear message. Nothing is served before
    /// [`Proxier::run`].
    pub fn start(
        config: ProxierConfig,
        computing: Client,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), StartError> {
        let address = SocketAddr::new(config.bind_address, config.listen_port);
        let listener = bind(config.bind_address, config.listen_port)
            .map_err(|source| StartError::Listen { address, source })?;
        let metrics = Arc::new(ProxierMetrics::new());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let mut addresses = vec![config.advertise_address, IpAddr::V4(Ipv4Addr::LOCALHOST)];
        addresses.dedup();
        let certificate =
            ServingCertificate::self_signed(&addresses, clock.now()).map_err(StartError::Certificate)?;
        metrics.certificate("self-signed", certificate.expires);
        let tls = server_config(Arc::new(certificate)).map_err(StartError::Certificate)?;
        let stop = CancellationToken::new();
        let (events, sending) =
            EventRecorder::new(computing.clone(), "kubeocean-proxier".to_owned(), clock, stop.clone());
        let shared = Shared {
            authn: Authenticator::new(&config, computing.clone(), Arc::clone(&metrics)),
            authz: Authorizer::new(&config, computing.clone(), Arc::clone(&metrics)),
            vnodes: Arc::new(Vnodes::new(config.listen_port)),
            slots: Arc::new(Slots::new(config.max_streams, config.max_streams_per_pod, Arc::clone(&metrics))),
            tls: TlsAcceptor::from(Arc::new(tls)),
            events,
            gate: Gate::default(),
            lists: Lists::default(),
            draining: CancellationToken::new(),
            refusing: CancellationToken::new(),
            stop,
            tasks: TaskTracker::new(),
            bindings: Mutex::default(),
            metrics,
            computing,
            config,
        };
        let proxier = Self { shared: Arc::new(shared), listener: Arc::new(Mutex::new(Some(listener))) };
        Ok((proxier, sending))
    }

    /// The address by which the API server reaches this process: what the vnodes' InternalIP is (MC-133).
    pub fn advertised(&self) -> IpAddr {
        self.shared.config.advertise_address
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> MetricsText {
        let metrics = Arc::clone(&self.shared.metrics);
        Arc::new(move || metrics.encode())
    }

    /// Adds a binding: its health, and the task that serves it until `cancel`. The binding's state is the caller's to
    /// follow, because a process of many bindings follows all of them at once.
    pub fn serve(
        &self,
        name: &str,
        states: watch::Receiver<BindingState>,
        cancel: CancellationToken,
    ) -> (watch::Receiver<BindingHealth>, impl Future<Output = ()> + Send + use<>) {
        let part = Arc::new(BindingPart::new(name));
        let health = part.health();
        let shared = Arc::clone(&self.shared);
        shared.bindings.lock().insert(name.to_owned(), Arc::clone(&part));
        shared.metrics.serves(name);
        let name = name.to_owned();
        let task = async move {
            let rules = shared.config.kubeconfig_rules.clone();
            let authorities = Arc::clone(&shared.authn.authorities);
            let (computing, vnodes) = (shared.computing.clone(), Arc::clone(&shared.vnodes));
            Box::pin(Arc::clone(&part).serve(computing, vnodes, states, rules, authorities, cancel)).await;
            let mut bindings = shared.bindings.lock();
            if bindings.get(&name).is_some_and(|current| Arc::ptr_eq(current, &part)) {
                bindings.remove(&name);
                shared.metrics.forget(&name);
            }
        };
        (health, task)
    }

    /// Serves until `cancel`, then drains: unready at once, no new streams after the drain delay, the end when no stream
    /// is left or their grace is over. Called once.
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), TaskEnded> {
        let shared = &self.shared;
        let Some(listener) = self.listener.lock().take() else { return Ok(()) };
        let mut tasks = JoinSet::new();
        let open = shared.refusing.clone();
        tasks.spawn(accept(Arc::clone(shared), listener, Door::Shared, open.clone()));
        tasks.spawn(keep_listeners(Arc::clone(shared), open));
        let authorities = Arc::clone(&shared.authn.authorities);
        tasks.spawn(Arc::clone(&authorities).follow(shared.computing.clone(), shared.stop.clone()));
        if let Some(file) = shared.config.client_ca_file.clone() {
            tasks.spawn(authorities.follow_file(file, shared.stop.clone()));
        }
        tasks.spawn(warn_of_insecurity(Arc::clone(shared), shared.stop.clone()));
        let result = tokio::select! {
            ended = tasks.join_next() => Err(TaskEnded(match ended {
                Some(Err(error)) => format!("a task panicked: {error}"),
                _ => "a task ended".to_owned(),
            })),
            () = cancel.cancelled() => Ok(()),
        };
        if result.is_ok() {
            self.drain().await;
        }
        shared.draining.cancel();
        shared.refusing.cancel();
        shared.stop.cancel();
        shared.tasks.close();
        if tokio::time::timeout(LAST_WORDS, shared.tasks.wait()).await.is_err() {
            tracing::debug!("some connections did not end in time");
        }
        result
    }

    async fn drain(&self) {
        let (shared, config) = (&self.shared, &self.shared.config);
        shared.draining.cancel();
        tracing::info!(delay = ?config.drain_delay, "draining");
        tokio::time::sleep(config.drain_delay).await;
        shared.refusing.cancel();
        let left = config.stream_grace.saturating_sub(config.drain_delay);
        if tokio::time::timeout(left, shared.slots.none_open()).await.is_err() {
            tracing::info!("streams are cut: their grace is over");
        }
    }
}

/// Says again and again what is switched off.
async fn warn_of_insecurity(shared: Arc<Shared>, cancel: CancellationToken) {
    let config = &shared.config;
    let mut options = Vec::new();
    if config.anonymous_auth {
        options.push("anonymous-auth");
    }
    if config.authorization_mode == AuthorizationMode::AlwaysAllow {
        options.push("authorization-mode");
    }
    for option in &options {
        shared.metrics.insecure(option);
    }
    let mut ticks = tokio::time::interval(WARN_EVERY);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        for option in &options {
            tracing::warn!(
                option,
                "callers are not checked as they should be: whoever reaches this process runs commands"
            );
        }
    }
}

#[cfg(test)]
mod tests;
