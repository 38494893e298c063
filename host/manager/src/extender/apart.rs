//! Syncers of other processes, asked over their policy servers (PO-608).
//!
//! Where one is stands on its leader Lease, which is read when it is first asked and again when it does not answer: Leases
//! are renewed every two seconds, so nobody watches them. Invariant: a Syncer that stays silent costs one read a second at most.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use axum::body::{Body, to_bytes};
use http::{
    HeaderValue, Request, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use kube::Client;
use kubeocean_api::{
    keys::annotation,
    place::{Answer, Endpoint, PLACE_PATH, Question, syncer_lease},
};
use kubeocean_runtime::{
    request::{get_json, paths},
    tls::PinnedClient,
};
use parking_lot::Mutex;
use serde_json::Value;

use super::own_token::OwnToken;

/// Largest answer: tens of thousands of rows with reasons.
const ANSWER_BYTES: usize = 32 << 20;
/// Pause between two reads of a Lease.
const READ_EVERY: Duration = Duration::from_secs(1);
/// Of the time there is, what the Syncer gets; the rest is for the way.
const SYNCERS_SHARE: f64 = 0.9;

/// See the module documentation.
pub struct SyncersApart {
    computing: Client,
    token: OwnToken,
    /// Where the Leases are.
    namespace: String,
    /// By clusterID.
    known: Mutex<HashMap<String, Known>>,
}

/// What a Lease said.
#[derive(Debug, Clone)]
struct Known {
    read: Instant,
    server: Option<(Endpoint, PinnedClient)>,
    /// It has answered since.
    answered: bool,
    /// The last call there got no answer.
    doubtful: bool,
}

impl std::fmt::Debug for SyncersApart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncersApart").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl SyncersApart {
    /// Reads Leases of `namespace` through `computing`.
    pub fn new(computing: Client, namespace: String) -> Self {
        let token = OwnToken::new(computing.clone());
        Self { computing, token, namespace, known: Mutex::default() }
    }

    /// Asks the Syncer that leads for a clusterID; `None`: it is silent. Whoever calls sets the deadline.
    pub async fn ask(&self, cluster_id: &str, question: &Question) -> Option<Answer> {
        let mut failed = None;
        // A Lease read before may name a Syncer of the past.
        for _ in 0..2 {
            let (endpoint, client) = self.server(cluster_id, failed.as_ref()).await?;
            let doubt = Doubt { of: self, cluster_id };
            let token = self.token.get().await?;
            match self.call(&client, token, question).await {
                Ok(answer) => {
                    doubt.dispel();
                    return Some(answer);
                }
                Err(error) => {
                    tracing::debug!(cluster_id, error, "a Syncer does not say what its policies say");
                    failed = Some(endpoint);
                }
            }
        }
        None
    }

    /// Where the Syncer is; after a failure there, only if it is elsewhere by now.
    async fn server(&self, cluster_id: &str, failed: Option<&Endpoint>) -> Option<(Endpoint, PinnedClient)> {
        let known = self.known.lock().get(cluster_id).cloned();
        let known = match known {
            Some(known) if known.holds() => known,
            before => {
                let known = self.read(cluster_id, before.and_then(|known| known.server)).await;
                self.known.lock().insert(cluster_id.to_owned(), known.clone());
                known
            }
        };
        known.server.filter(|(endpoint, _)| Some(endpoint) != failed)
    }

    async fn call(
        &self,
        client: &PinnedClient,
        token: HeaderValue,
        question: &Question,
    ) -> Result<Answer, String> {
        let within = Duration::from_millis(question.timeout_milliseconds).mul_f64(SYNCERS_SHARE);
        let question = Question {
            timeout_milliseconds: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
            ..question.clone()
        };
        let body = serde_json::to_vec(&question).map_err(|error| error.to_string())?;
        let request = Request::post(PLACE_PATH)
            .header(CONTENT_TYPE, "application/json")
            .header(AUTHORIZATION, token)
            .body(Body::from(body))
            .map_err(|error| error.to_string())?;
        let answer = client.send(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = to_bytes(answer.into_body(), ANSWER_BYTES).await.map_err(|error| error.to_string())?;
        if status == StatusCode::UNAUTHORIZED {
            self.token.refused().await;
        }
        if status != StatusCode::OK {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
        }
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }

    async fn read(&self, cluster_id: &str, before: Option<(Endpoint, PinnedClient)>) -> Known {
        let read = Instant::now();
        let lease =
            get_json(&self.computing, &paths::lease(&self.namespace, &syncer_lease(cluster_id))).await;
        let endpoint = match lease {
            Ok(lease) => lease.as_ref().and_then(endpoint),
            Err(error) => {
                tracing::warn!(cluster_id, error = error.chain(), "where a Syncer is cannot be read");
                None
            }
        };
        let server = endpoint.and_then(|endpoint| match before {
            Some((same, client)) if same == endpoint => Some((same, client)),
            _ => match PinnedClient::new(&endpoint, None) {
                Ok(client) => Some((endpoint, client)),
                Err(error) => {
                    tracing::warn!(cluster_id, %error, "a Syncer cannot be asked");
                    None
                }
            },
        });
        Known { read, answered: false, doubtful: server.is_none(), server }
    }
}

impl Known {
    /// Whether it is too early to read the Lease again. Whoever answered and is silent now may be gone to another place, and
    /// is looked for at once: a pod that is told "not now" may wait long before its scheduler asks again.
    fn holds(&self) -> bool {
        !self.doubtful || (!self.answered && self.read.elapsed() < READ_EVERY)
    }
}

/// Nobody knows whether the Syncer is where it was, until it answers. A caller that gives up leaves the doubt behind.
struct Doubt<'a> {
    of: &'a SyncersApart,
    cluster_id: &'a str,
}

impl Doubt<'_> {
    fn is(&self, doubtful: bool) {
        if let Some(known) = self.of.known.lock().get_mut(self.cluster_id) {
            known.doubtful = doubtful;
            known.answered |= !doubtful;
        }
    }

    fn dispel(self) {
        self.is(false);
        std::mem::forget(self);
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        self.is(true);
    }
}

fn endpoint(lease: &Value) -> Option<Endpoint> {
    lease["metadata"]["annotations"][annotation::POLICY_ENDPOINT].as_str()?.parse().ok()
}
