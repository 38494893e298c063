//! `POST /policy/place` and `GET /policy/decisions` over HTTPS.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{RawQuery, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kubeocean_api::place::{DECISIONS_PATH, Endpoint, PLACE_PATH, Question};
use kubeocean_runtime::tls::{self, SelfSigned, TlsError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{answer::answer, callers::Callers};
use crate::placement::{desk::PlaceDesk, slot::DeskSlot};

/// Largest question: a pod of 1.5 MiB and the names of tens of thousands of nodes.
const BODY_BYTES: usize = 8 << 20;
/// Longest time a question may take.
const LONGEST: Duration = Duration::from_secs(10);

/// An opened policy server that does not serve yet.
#[derive(Debug)]
pub struct PolicyListener {
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    /// Where callers find it.
    pub endpoint: Endpoint,
}

impl PolicyListener {
    /// `address` is where callers reach the listener.
    pub fn new(listener: TcpListener, address: SocketAddr) -> Result<Self, TlsError> {
        let certificate = SelfSigned::new(address.ip())?;
        let endpoint = Endpoint { address, sha256: certificate.sha256() };
        Ok(Self { listener, tls: Arc::new(certificate.server_config()?), endpoint })
    }

    /// Serves until `cancel`; `desk` has the decisions while this process leads.
    pub async fn serve(self, callers: Callers, desk: DeskSlot, cancel: CancellationToken) {
        let server = Arc::new(PolicyServer { callers, desk });
        tls::serve(self.listener, self.tls, router(server), "the policy server", cancel).await;
    }
}

struct PolicyServer {
    callers: Callers,
    desk: DeskSlot,
}

impl PolicyServer {
    /// The leader's desk, for a caller who may see it.
    async fn desk(
        &self,
        headers: &HeaderMap,
        verb: &'static str,
        path: &'static str,
    ) -> Result<Arc<PlaceDesk>, (StatusCode, String)> {
        self.callers.check(headers, verb, path).await?;
        self.desk.get().ok_or((StatusCode::SERVICE_UNAVAILABLE, "another process leads\n".to_owned()))
    }
}

fn router(server: Arc<PolicyServer>) -> Router {
    Router::new().route(PLACE_PATH, post(place)).route(DECISIONS_PATH, get(decisions)).with_state(server)
}

async fn place(State(server): State<Arc<PolicyServer>>, request: Request) -> Response {
    let arrived = Instant::now();
    let desk = match server.desk(request.headers(), "post", PLACE_PATH).await {
        Ok(desk) => desk,
        Err(refused) => return refused.into_response(),
    };
    // What strangers send is not read.
    let question = match to_bytes(request.into_body(), BODY_BYTES).await {
        Ok(body) => serde_json::from_slice::<Question>(&body).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let question = match question {
        Ok(question) => question,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    let deadline = deadline(arrived, &question);
    let asking = tokio::task::spawn_blocking(move || {
        answer(&desk, &question, deadline).map(|answer| serde_json::to_vec(&answer))
    });
    let failed = |error: &dyn std::fmt::Display| {
        (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
    };
    match asking.await {
        Ok(Some(Ok(text))) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Ok(Some(Err(error))) => failed(&error),
        Ok(None) => {
            (StatusCode::SERVICE_UNAVAILABLE, "this Syncer still reads its first lists\n").into_response()
        }
        Err(error) => failed(&error),
    }
}

/// When the answer to a question that came at `arrived` must be there.
fn deadline(arrived: Instant, question: &Question) -> Instant {
    arrived + Duration::from_millis(question.timeout_milliseconds).min(LONGEST)
}

async fn decisions(
    State(server): State<Arc<PolicyServer>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let desk = match server.desk(&headers, "get", DECISIONS_PATH).await {
        Ok(desk) => desk,
        Err(refused) => return refused.into_response(),
    };
    let query = query.unwrap_or_default();
    let node = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "node");
    let lines = desk.decisions(node.as_ref().map(|(_, node)| &**node)).into_iter().map(|decision| {
        serde_json::to_vec(&decision).map(|mut line| {
            line.push(b'\n');
            line
        })
    });
    let body = Body::from_stream(futures::stream::iter(lines));
    ([(header::CONTENT_TYPE, "application/jsonl")], body).into_response()
}

#[cfg(test)]
mod tests;
