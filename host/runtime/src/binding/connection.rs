//! The connection to the worker cluster: made from the kubeconfig Secret, retried for ever, made anew when the
//! Secret changes (MC section 7, BU section 1).

use std::time::Duration;

use kube::{Client, config::KubeConfigOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    kubeconfig::{self, KubeconfigError},
    watch::SecretState,
};
use crate::{client::client, queue::spread, rate::RequestRate};

/// Limit of the version request that proves a connection.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// First pause after a failed attempt.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest pause after failed attempts.
const RETRY_MAX: Duration = Duration::from_mins(5);

/// Why there is no connection at the moment.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The Secret or its content.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// The kubeconfig's data cannot be used.
    #[error("invalid kubeconfig format in secret {secret}: {source}")]
    Config {
        /// Which Secret.
        secret: String,
        /// What the loader says; it names fields, not content.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The worker does not answer.
    #[error(
        "cluster connectivity test failed: failed to connect to cluster {server}: {detail}; check the address, the network and the CA in secret {secret}"
    )]
    Unreachable {
        /// Which Secret.
        secret: String,
        /// Server address.
        server: String,
        /// What happened.
        detail: String,
    },
}

/// A proven connection: a client, and what further connections of another kind are made from.
#[derive(Clone)]
pub struct Connection {
    /// The client that was proven.
    pub client: Client,
    /// What it was made from.
    pub config: kube::Config,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("server", &self.config.cluster_url).finish_non_exhaustive()
    }
}

/// What connections may be like.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ConnectOptions {
    /// Whether a kubeconfig may name files of this machine.
    pub allow_unsafe: bool,
    /// How many requests are sent; `None` is no limit.
    pub rate: Option<RequestRate>,
}

/// Connects to the worker, or says why not. `secret` is `namespace/name`.
async fn connect(
    secret: &str,
    state: &SecretState,
    options: ConnectOptions,
) -> Result<Connection, ConnectError> {
    let data = match state {
        SecretState::Unknown | SecretState::Missing => {
            return Err(KubeconfigError::NotFound(secret.to_owned()).into());
        }
        SecretState::Forbidden => return Err(KubeconfigError::Forbidden(secret.to_owned()).into()),
        SecretState::NotPermitted(namespace) => {
            return Err(KubeconfigError::NotPermitted(namespace.clone()).into());
        }
        SecretState::Present(data) => data.as_deref(),
    };
    let kubeconfig = kubeconfig::parse(secret, data, options.allow_unsafe)?;
    let invalid = |source: Box<dyn std::error::Error + Send + Sync>| ConnectError::Config {
        secret: secret.to_owned(),
        source,
    };
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| invalid(Box::new(error)))?;
    let server = config.cluster_url.to_string();
    let client = client(config.clone(), options.rate).map_err(|error| invalid(Box::new(error)))?;
    let unreachable =
        |detail: String| ConnectError::Unreachable { secret: secret.to_owned(), server, detail };
    match tokio::time::timeout(PROBE_TIMEOUT, client.apiserver_version()).await {
        Ok(Ok(version)) => {
            tracing::info!(version = version.git_version, "connected to the worker cluster");
            Ok(Connection { client, config })
        }
        Ok(Err(error)) => Err(unreachable(root_cause(&error))),
        Err(_) => Err(unreachable(format!("no answer within {} s", PROBE_TIMEOUT.as_secs()))),
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Waits until the Secret gives a working connection; calls `failed` for every failed attempt. `None` when cancelled.
pub async fn connected(
    secret: &str,
    states: &mut watch::Receiver<SecretState>,
    options: ConnectOptions,
    cancel: &CancellationToken,
    failed: impl FnMut(&ConnectError),
) -> Option<Client> {
    connection(secret, states, options, cancel, failed).await.map(|connection| connection.client)
}

/// As [`connected`], with what is needed to open connections of one's own.
pub async fn connection(
    secret: &str,
    states: &mut watch::Receiver<SecretState>,
    options: ConnectOptions,
    cancel: &CancellationToken,
    mut failed: impl FnMut(&ConnectError),
) -> Option<Connection> {
    let mut pause = RETRY_FIRST;
    loop {
        let state = states.borrow_and_update().clone();
        if state != SecretState::Unknown {
            match connect(secret, &state, options).await {
                Ok(connection) => return Some(connection),
                Err(error) => failed(&error),
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return None,
            changed = states.changed() => {
                if changed.is_err() {
                    return None;
                }
                pause = RETRY_FIRST;
            }
            () = tokio::time::sleep(spread(pause, &(secret, pause))) => pause = (pause * 2).min(RETRY_MAX),
        }
    }
}
