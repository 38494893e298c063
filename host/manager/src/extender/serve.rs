//! `/scheduler/filter` and `/scheduler/prioritize` over HTTPS.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{
    Place, Places,
    answer::{filter, prioritize},
    wire::Asked,
};

/// Largest question: a pod of 1.5 MiB and the names of tens of thousands of nodes.
const BODY_BYTES: usize = 8 << 20;
/// Time a caller has for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Extender {
    places: Arc<dyn Places>,
    /// How long an answer may take.
    within: Duration,
}

/// Serves until `cancel`. `timeout` is what the scheduler's configuration says (`httpTimeout`).
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    places: Arc<dyn Places>,
    timeout: Duration,
    cancel: CancellationToken,
) {
    let (router, acceptor) = (router(places, timeout), TlsAcceptor::from(tls));
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = cancel.cancelled() => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the scheduler extender cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        connections.spawn(async move {
            // Answers are small and somebody waits for them.
            let _ = stream.set_nodelay(true);
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
                return;
            };
            let service = service_fn(move |request| router.clone().oneshot(request));
            let serving =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            if let Err(error) = serving.await {
                tracing::debug!(%error, "a connection of the scheduler extender ended");
            }
        });
    }
}

fn router(places: Arc<dyn Places>, timeout: Duration) -> Router {
    Router::new()
        .route("/scheduler/filter", post(on_filter))
        .route("/scheduler/prioritize", post(on_prioritize))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(Extender { places, within: timeout.mul_f64(0.8) })
}

async fn on_filter(State(extender): State<Extender>, body: axum::body::Bytes) -> Response {
    match extender.ask(&body).await {
        Ok((nodes, places)) => json(&filter(&nodes, places)),
        Err(refused) => refused,
    }
}

async fn on_prioritize(State(extender): State<Extender>, body: axum::body::Bytes) -> Response {
    match extender.ask(&body).await {
        Ok((nodes, places)) => json(&prioritize(&nodes, &places)),
        Err(refused) => refused,
    }
}

fn json(answer: &impl Serialize) -> Response {
    match serde_json::to_vec(answer) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

impl Extender {
    async fn ask(&self, body: &[u8]) -> Result<(Arc<[String]>, Vec<Place>), Response> {
        let deadline = Instant::now() + self.within;
        let refuse = |why: String| (StatusCode::BAD_REQUEST, why).into_response();
        let asked: Asked = serde_json::from_slice(body).map_err(|error| refuse(error.to_string()))?;
        let Some(names) = asked.node_names else {
            return Err(refuse(
                "NodeNames is missing: set nodeCacheCapable: true for this extender".to_owned(),
            ));
        };
        let nodes: Arc<[String]> = names.into();
        match self.places.ask(Arc::new(asked.pod), Arc::clone(&nodes), deadline).await {
            Some(places) => Ok((nodes, places)),
            None => Err((StatusCode::SERVICE_UNAVAILABLE, "another replica leads").into_response()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use futures::{FutureExt, future::BoxFuture};
    use serde_json::Value;

    use super::*;

    /// Nothing is ours; or, elsewhere, nobody decides here.
    #[derive(Debug)]
    struct Nothing {
        leads: bool,
    }

    impl Places for Nothing {
        fn ask(&self, _: Arc<Value>, _: Arc<[String]>, _: Instant) -> BoxFuture<'static, Option<Vec<Place>>> {
            let answer = self.leads.then(Vec::new);
            async move { answer }.boxed()
        }
    }

    async fn post(leads: bool, path: &str, body: &str) -> StatusCode {
        let router = router(Arc::new(Nothing { leads }), Duration::from_secs(1));
        let request = Request::post(path).body(Body::from(body.to_owned())).unwrap();
        router.oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn whole_nodes_are_refused_and_a_standby_says_so() {
        let named = r#"{"Pod": {}, "Nodes": null, "NodeNames": ["a"]}"#;
        for path in ["/scheduler/filter", "/scheduler/prioritize"] {
            assert_eq!(post(true, path, named).await, StatusCode::OK);
            assert_eq!(post(false, path, named).await, StatusCode::SERVICE_UNAVAILABLE);
            let whole = r#"{"Pod": {}, "Nodes": {"items": []}, "NodeNames": null}"#;
            assert_eq!(post(true, path, whole).await, StatusCode::BAD_REQUEST);
            assert_eq!(post(true, path, "{").await, StatusCode::BAD_REQUEST);
        }
    }
}
