//! The worker cluster of a binding, as the Proxier speaks to it.

pub(crate) mod dial;
pub(crate) mod translate;

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use kube::{Client, client::Body};
use kubeocean_runtime::{binding::connection::Connection, error::chain};

use crate::{answer::Refusal, resolve::Resolved, route::PodRoute};
use dial::Dialer;

/// Longest wait for the worker's answer to an upgrade, and to a request that does not wait for news.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest wait for the text of a refusal, and its length.
const REFUSAL: (Duration, usize) = (Duration::from_secs(5), 64 * 1024);

/// A connected worker cluster. A changed kubeconfig makes a new one; streams keep theirs.
pub(crate) struct WorkerLink {
    client: Client,
    dialer: Dialer,
    server: Uri,
    mount_namespace: Arc<str>,
}

/// A request about a proven ppod.
#[derive(Debug)]
pub(crate) struct PodRequest<'a> {
    /// What the caller asked.
    pub(crate) route: &'a PodRoute,
    /// Whom it is about.
    pub(crate) resolved: &'a Resolved,
    /// `GET` or `POST`.
    pub(crate) method: Method,
    /// Encoded.
    pub(crate) query: String,
    /// Without credentials.
    pub(crate) headers: HeaderMap,
    /// Whether the answer may take as long as it likes.
    pub(crate) patient: bool,
}

impl std::fmt::Debug for WorkerLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerLink").field("mount_namespace", &self.mount_namespace).finish_non_exhaustive()
    }
}

impl WorkerLink {
    /// A link over a proven connection; ppods are in `mount_namespace`.
    pub(crate) fn new(
        connection: &Connection,
        mount_namespace: &str,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self {
            client: connection.client.clone(),
            dialer: Dialer::new(&connection.config)?,
            server: connection.config.cluster_url.clone(),
            mount_namespace: mount_namespace.into(),
        })
    }

    /// Whether both lead to the same pods.
    pub(crate) fn is_same_cluster(&self, other: &Self) -> bool {
        self.server == other.server && self.mount_namespace == other.mount_namespace
    }

    /// For short requests.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Where the binding's ppods are.
    pub(crate) fn mount_namespace(&self) -> &str {
        &self.mount_namespace
    }

    /// Sends a request about a ppod over a connection of its own; an answer other than `wanted` is a refusal.
    pub(crate) async fn open(
        &self,
        request: PodRequest<'_>,
        wanted: StatusCode,
    ) -> Result<Response<Incoming>, Refusal> {
        let PodRequest { route, resolved, method, query, headers, patient } = request;
        // PX-817: SPDY and WebSocket need different rights.
        let verb = if method == Method::POST { "create" } else { "get" };
        let path = format!("{}/{}?{query}", resolved.path(), route.operation.subresource());
        let mut request =
            Request::builder().method(method).uri(path).body(Body::empty()).map_err(|error| {
                tracing::error!(%error, "a request to the worker cluster cannot be built");
                Refusal::new(StatusCode::BAD_REQUEST, "the request cannot be passed on")
            })?;
        *request.headers_mut() = headers;
        let sending = self.dialer.send(request);
        let answered = if patient {
            sending.await
        } else {
            tokio::time::timeout(ANSWER, sending).await.map_err(|_| Refusal::worker_timeout())?
        };
        let response = answered.map_err(|error| {
            tracing::warn!(error = chain(error.as_ref()), "the worker cluster does not answer");
            let slow = error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut);
            if slow { Refusal::worker_timeout() } else { Refusal::unreachable() }
        })?;
        if response.status() == wanted {
            return Ok(response);
        }
        let (code, protocols) =
            (response.status(), response.headers().get(crate::answer::ACCEPTED_PROTOCOLS).cloned());
        let body =
            tokio::time::timeout(REFUSAL.0, Limited::new(response.into_body(), REFUSAL.1).collect()).await;
        let body =
            body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(translate::refusal(route, resolved, verb, code, protocols, &body))
    }
}
