//! A Syncer as a process would be: its tasks in a runtime of their own, which can be dropped at any moment.

use std::sync::{Arc, OnceLock};

use kube::{Client, Config};
use kubeocean_engine::{Engine, EngineConfig};
use kubeocean_runtime::{client::client, clock::SystemClock};
use kubeocean_syncer::{
    config::SyncerConfig,
    leader::{ProxierSource, Surroundings},
    metrics::SyncerMetrics,
    process::{Service, Standby, serve_binding},
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

pub(crate) struct Syncer(Option<Runtime>);

/// Compiled once: what a policy decides does not depend on who asks.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::start(EngineConfig { threads: 2, ..EngineConfig::default() }).unwrap())
}

impl Syncer {
    /// Serves a binding through the address of its computing cluster.
    pub(crate) fn start(binding: &str, computing: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut config = SyncerConfig::new(binding);
        config.proxier_addresses = vec!["192.0.2.1".parse().unwrap()];
        let (config, address) = (Arc::new(config), computing.parse::<http::Uri>().unwrap());
        runtime.spawn(async move {
            let service = Service {
                engine: engine().clone(),
                election: None,
                standby: Standby::Ready,
                computing: computing_client(address.clone()),
                surroundings: Surroundings {
                    leases: computing_client(address),
                    clock: Arc::new(SystemClock),
                    health: Arc::default(),
                    metrics: Arc::new(SyncerMetrics::new(&config.binding_name)),
                    ports: Arc::default(),
                    placement: kubeocean_syncer::placement::slot::DeskSlot::default(),
                    proxiers: ProxierSource::Pods,
                },
                config,
            };
            serve_binding(service, &CancellationToken::new()).await.unwrap();
        });
        Self(Some(runtime))
    }
}

fn computing_client(address: http::Uri) -> Client {
    client(Config::new(address), None).unwrap()
}

impl Drop for Syncer {
    /// Dead: nothing is finished, nothing is said.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
