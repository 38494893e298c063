//! `/scheduler/filter` and `/scheduler/prioritize` over HTTPS.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use kubeocean_runtime::tls;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    answer::{filter, prioritize},
    places::{Place, Places},
    wire::Asked,
};

/// Largest question: a pod of 1.5 MiB and the names of tens of thousands of nodes.
const BODY_BYTES: usize = 8 << 20;

#[derive(Clone)]
struct Extender {
    places: Arc<Places>,
    /// How long an answer may take.
    within: Duration,
}

/// Serves until `cancel`. `timeout` is what the scheduler's configuration says (`httpTimeout`).
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    places: Arc<Places>,
    timeout: Duration,
    cancel: CancellationToken,
) {
    tls::serve(listener, tls, router(places, timeout), "the scheduler extender", cancel).await;
}

fn router(places: Arc<Places>, timeout: Duration) -> Router {
    Router::new()
        .route("/scheduler/filter", post(on_filter))
        .route("/scheduler/prioritize", post(on_prioritize))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(Extender { places, within: timeout.mul_f64(0.8) })
}

async fn on_filter(State(extender): State<Extender>, question: Request) -> Response {
    match extender.ask(question).await {
        Ok((nodes, places)) => json(&filter(&nodes, places)),
        Err(refused) => refused,
    }
}

async fn on_prioritize(State(extender): State<Extender>, question: Request) -> Response {
    match extender.ask(question).await {
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
    /// All within the time there is, which begins with the question and not with its end.
    async fn ask(&self, question: Request) -> Result<(Vec<String>, Vec<Place>), Response> {
        let deadline = Instant::now() + self.within;
        let Ok(body) = tokio::time::timeout(self.within, Bytes::from_request(question, &())).await else {
            return Err((StatusCode::REQUEST_TIMEOUT, "the question is too slow").into_response());
        };
        let body = body.map_err(IntoResponse::into_response)?;
        let refuse = |why: String| (StatusCode::BAD_REQUEST, why).into_response();
        let asked: Asked = serde_json::from_slice(&body).map_err(|error| refuse(error.to_string()))?;
        let Some(names) = asked.node_names else {
            return Err(refuse(
                "NodeNames is missing: set nodeCacheCapable: true for this extender".to_owned(),
            ));
        };
        let places = self.places.ask(asked.pod, &names, deadline).await.ok_or_else(|| {
            let why = "another replica leads, or this one has not seen all bindings yet";
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        })?;
        Ok((names, places))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use axum::{body::Body, http::Request};
    use futures::future::BoxFuture;
    use kubeocean_api::place::{Answer, Question};
    use rstest::rstest;
    use tower::ServiceExt;

    use super::*;
    use crate::extender::places::{Served, Syncers};

    /// Nothing is ours; or, elsewhere, nobody decides here.
    #[derive(Debug)]
    pub(in crate::extender) struct Nothing {
        pub(in crate::extender) leads: bool,
    }

    impl Syncers for Nothing {
        fn served(&self) -> Option<Vec<Served>> {
            self.leads.then(Vec::new)
        }

        fn ask(&self, _: Served, _: Arc<Question>, _: Instant) -> BoxFuture<'static, Option<Answer>> {
            Box::pin(async { None })
        }
    }

    /// A Syncer that never answers.
    #[derive(Debug)]
    struct Silent;

    impl Syncers for Silent {
        fn served(&self) -> Option<Vec<Served>> {
            Some(vec![Served { binding: "b".to_owned(), cluster_id: "c".to_owned() }])
        }

        fn ask(&self, _: Served, _: Arc<Question>, _: Instant) -> BoxFuture<'static, Option<Answer>> {
            Box::pin(std::future::pending())
        }
    }

    /// What the scheduler's configuration says. The deadline is one of the machine's clock, which goes on while that of a
    /// test stands still, so it is long.
    const TIMEOUT: Duration = Duration::from_secs(1000);

    async fn ask(syncers: impl Syncers, path: &str, body: &str) -> (StatusCode, String) {
        let router = router(Arc::new(Places::new(Arc::new(syncers))), TIMEOUT);
        let request = Request::post(path).body(Body::from(body.to_owned())).unwrap();
        let answer = router.oneshot(request).await.unwrap();
        let status = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn post(leads: bool, path: &str, body: &str) -> StatusCode {
        ask(Nothing { leads }, path, body).await.0
    }

    /// PO-605: four fifths of the scheduler's time; after all of it, it would have given up.
    #[rstest]
    #[case::filter("/scheduler/filter", "PolicyUnavailable")]
    #[case::prioritize("/scheduler/prioritize", r#"[{"Host":"vnode-c-n","Score":0}]"#)]
    #[tokio::test(start_paused = true)]
    async fn a_silent_syncer_costs_four_fifths_of_the_time_a_scheduler_has(
        #[case] path: &str,
        #[case] expected: &str,
    ) {
        let begun = tokio::time::Instant::now();
        let (status, body) = ask(Silent, path, r#"{"Pod": {}, "NodeNames": ["vnode-c-n"]}"#).await;
        let took = begun.elapsed().as_secs();
        assert!(status == StatusCode::OK && body.contains(expected), "{status} {body}");
        assert!((800..810).contains(&took), "{took} s of {TIMEOUT:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_never_ends_costs_no_more_time_than_an_answer() {
        let router = router(Arc::new(Places::new(Arc::new(Nothing { leads: true }))), TIMEOUT);
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let question = Request::post("/scheduler/filter").body(body).unwrap();
        let begun = tokio::time::Instant::now();
        let answer = router.oneshot(question).await.unwrap();
        let took = begun.elapsed().as_secs();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
        assert!((800..810).contains(&took), "{took} s of {TIMEOUT:?}");
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
