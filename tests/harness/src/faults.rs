//! A proxy in front of an API server that does what networks and servers do on bad days.
//!
//! In: a cluster, and while a test runs [`Rule`]s. Out: a URL whose server passes every request on, with the caller's own
//! bearer token, unless a rule says otherwise, and a record of what was asked. Callers: fault tests.
//!
//! ```text
//! client ── TLS, HTTP/2 or 1.1 ──► FaultProxy ── TLS, HTTP/1.1 ──► kube-apiserver
//!                                 rules, record
//! ```
//!
//! The client sees the cluster's own authority and may speak HTTP/2 as it would with the API server: one connection that
//! carries everything. A fault of the connection therefore hits every request and watch on it. Rules change at any time;
//! one that is removed stops acting on answers that are under way. A server that cannot be reached behind the proxy
//! appears as a connection that breaks.
//!
//! - `rule`: which requests, and what happens to them.
//! - `serve`: connections, and the way to the server and back.
//! - `answer`: answers, whole and spoiled.

mod answer;
mod rule;
mod serve;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use http::Method;
use kube::{Client, Config};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cluster::Cluster;

use rule::Active;
pub use rule::{Fault, Refusal, Requests, Rule};

/// A proxy that can be made to fail. Dropping it ends all its connections.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    direct: String,
    server: String,
    _stop: DropGuard,
}

/// What all connections of a proxy share.
#[derive(Debug)]
struct Shared {
    rules: Mutex<Vec<Arc<Active>>>,
    record: Mutex<Vec<Served>>,
    /// Parent of the tokens of all open connections.
    connections: Mutex<CancellationToken>,
}

/// A request that came by.
#[derive(Clone, Debug)]
pub struct Served {
    pub at: Instant,
    /// Number of the client's connection.
    pub connection: usize,
    pub method: Method,
    /// Without query.
    pub path: String,
    /// What a POST makes: the name of an object, or the whole body of what has none. Empty for other methods.
    pub made: String,
    pub watch: bool,
    /// In which form the answer may be; empty if any will do.
    pub accept: String,
    /// A rule had it.
    pub spoiled: bool,
}

impl Served {
    /// Neither a read nor a Lease, which is written on a clock.
    pub fn is_write(&self) -> bool {
        self.method != Method::GET && !self.path.contains("/leases/")
    }
}

impl FaultProxy {
    /// Starts a proxy in front of a cluster's API server, on 127.0.0.1, in the current runtime.
    ///
    /// # Errors
    /// No certificate can be made, or there is no free port.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pair = cluster.pki().proxy_serving()?;
        let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes())
            .map_err(|error| anyhow!("a certificate: {error}"))?;
        let key =
            PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).map_err(|error| anyhow!("a key: {error}"))?;
        let mut tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .context("serving with a new certificate")?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let mut config = Config::new(cluster.server().parse().context("a cluster's URL")?);
        config.root_cert = Some(vec![cluster.pki().authority_der()]);
        // What the server says is the client's business.
        config.default_retry = false;
        (config.read_timeout, config.write_timeout) = (None, None);
        let upstream = Client::try_from(config).context("a client of the server")?;

        let listener = TcpListener::bind("127.0.0.1:0").await.context("listening")?;
        let server = format!("https://{}", listener.local_addr().context("listening")?);
        let shared = Arc::new(Shared {
            rules: Mutex::default(),
            record: Mutex::default(),
            connections: Mutex::new(CancellationToken::new()),
        });
        let stop = CancellationToken::new();
        let accepting =
            serve::accept(listener, TlsAcceptor::from(Arc::new(tls)), Arc::clone(&shared), upstream);
        tokio::spawn(stop.clone().run_until_cancelled_owned(accepting));
        Ok(Self { shared, direct: cluster.server().to_owned(), server, _stop: stop.drop_guard() })
    }

    /// A kubeconfig of the cluster, changed to go through this proxy. It must authenticate with a token: client
    /// certificates end here.
    pub fn through(&self, kubeconfig: &str) -> String {
        kubeconfig.replace(&self.direct, &self.server)
    }

    /// Adds a rule. Of several that want the same request the first one has it.
    pub fn inject(&self, rule: Rule) {
        self.shared.rules.lock().push(Arc::new(Active::new(rule)));
    }

    /// The rules that have had no request so far.
    pub fn unmet(&self) -> Vec<Rule> {
        self.shared.rules.lock().iter().filter_map(|rule| rule.unmet()).cloned().collect()
    }

    /// Removes all rules. What they did to answers that are still under way ends as well.
    pub fn heal(&self) {
        for rule in self.shared.rules.lock().drain(..) {
            rule.end();
        }
    }

    /// Breaks all connections now.
    pub fn break_connections(&self) {
        std::mem::take(&mut *self.shared.connections.lock()).cancel();
    }

    /// What was asked so far, in order.
    pub fn served(&self) -> Vec<Served> {
        self.shared.record.lock().clone()
    }

    /// Forgets what was asked so far.
    pub fn forget(&self) {
        self.shared.record.lock().clear();
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.break_connections();
    }
}
