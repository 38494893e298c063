//! A door between a Syncer and its API servers: counts writes over all of them, and shuts for good after a given one, or
//! loses answers.
//!
//! In: clients of the servers. Out: addresses on loopback that pass requests on, and what the last write was. Requests
//! after the last write are never answered, as if the process had died with them on the wire.
//! Invariant: writes pass one at a time, so that nothing is under way behind the last one.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use http::{Method, header};
use kube::Client;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Larger than any object.
const MAX_BODY: usize = 4 << 20;

/// A write: its kind, and how many of that kind there were with it.
pub(crate) type Write = (String, usize);

/// What a door does beside passing requests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// Nothing is answered after this write.
    DeathAfter(Write),
    /// The first write of each kind is done, and its answer lost.
    FirstAnswersLost,
}

/// One life of a Syncer, as the API servers see it.
pub(crate) struct Door {
    trouble: Trouble,
    counts: fn(&str) -> bool,
    writes: Mutex<Vec<String>>,
    /// Kinds of all writes, also those that do not count.
    made: parking_lot::Mutex<BTreeSet<String>>,
    /// Objects that were read by name, lists of a node's pods, and all writes, in order; a lost answer is told after its
    /// write.
    told: parking_lot::Mutex<Vec<String>>,
    shut: watch::Sender<bool>,
    stop: CancellationToken,
    _stop: DropGuard,
}

#[derive(Clone)]
struct Way {
    door: Arc<Door>,
    server: &'static str,
    client: Client,
}

impl Door {
    /// Writes of kinds that do not count pass by the way.
    pub(crate) fn new(trouble: Trouble, counts: fn(&str) -> bool) -> Arc<Self> {
        let stop = CancellationToken::new();
        Arc::new(Self {
            trouble,
            counts,
            writes: Mutex::default(),
            made: parking_lot::Mutex::default(),
            told: parking_lot::Mutex::default(),
            shut: watch::Sender::new(false),
            _stop: stop.clone().drop_guard(),
            stop,
        })
    }

    /// The address of a way to a server.
    pub(crate) async fn to(self: &Arc<Self>, server: &'static str, client: Client) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let way = Way { door: Arc::clone(self), server, client };
        let router = axum::Router::new().fallback(pass).with_state(way);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                served = axum::serve(listener, router) => served.unwrap(),
            }
        });
        address
    }

    pub(crate) fn trouble(&self) -> &Trouble {
        &self.trouble
    }

    /// Waits until the last write was done.
    pub(crate) async fn shut(&self) {
        // The sender lives in `self`.
        let _ = self.shut.subscribe().wait_for(|shut| *shut).await;
    }

    /// The last write was done.
    pub(crate) fn is_shut(&self) -> bool {
        *self.shut.borrow()
    }

    /// Reads of single objects and of a node's pods, as `GET <path>`, the latter with the query, writes, as
    /// `<method> <path>`, and lost answers, as `lost <kind of write>`, in order.
    pub(crate) fn told(&self) -> Vec<String> {
        self.told.lock().clone()
    }

    /// Kinds of what was written, whether or not it counts.
    pub(crate) fn made(&self) -> BTreeSet<String> {
        self.made.lock().clone()
    }

    /// What was written and counts, in order.
    pub(crate) async fn writes(&self) -> Vec<Write> {
        let kinds = self.writes.lock().await.clone();
        let so_far = |at: usize| kinds[..=at].iter().filter(|kind| **kind == kinds[at]).count();
        (0..kinds.len()).map(|at| (kinds[at].clone(), so_far(at))).collect()
    }
}

async fn pass(State(way): State<Way>, request: Request) -> Response {
    let door = Arc::clone(&way.door);
    if *request.method() == Method::GET {
        if *door.shut.borrow() {
            std::future::pending::<()>().await;
        }
        let of_a_node = |query: &str| query.starts_with("fieldSelector=spec.nodeName%3D");
        if request.uri().query().is_none_or(of_a_node) {
            door.told.lock().push(format!("GET {}", request.uri().path_and_query().unwrap()));
        }
        return way.forward(request).await;
    }
    let mut writes = door.writes.lock().await;
    if *door.shut.borrow() {
        drop(writes);
        std::future::pending::<()>().await;
        unreachable!("nothing answers behind a shut door");
    }
    let kind = kind(way.server, &request);
    door.told.lock().push(format!("{} {}", request.method(), request.uri().path()));
    let answer = way.forward(request).await;
    if !answer.status().is_success() {
        return answer;
    }
    door.made.lock().insert(kind.clone());
    if !(door.counts)(&kind) {
        return answer;
    }
    let so_far = 1 + writes.iter().filter(|other| **other == kind).count();
    writes.push(kind.clone());
    match &door.trouble {
        Trouble::DeathAfter((last, number)) if *last == kind && *number == so_far => {
            door.shut.send_replace(true);
            answer
        }
        Trouble::FirstAnswersLost if so_far == 1 => {
            door.told.lock().push(format!("lost {kind}"));
            // Not 503 or 504: of those the client makes another request by itself.
            Response::builder().status(500).body(Body::from("the answer is lost")).unwrap()
        }
        _ => answer,
    }
}

impl Way {
    async fn forward(&self, request: Request) -> Response {
        let (mut parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().unwrap().as_str().parse().unwrap();
        parts.uri = target;
        for hop in [header::HOST, header::CONNECTION, header::AUTHORIZATION, header::CONTENT_LENGTH] {
            parts.headers.remove(hop);
        }
        let body = to_bytes(body, MAX_BODY).await.unwrap();
        let request = http::Request::from_parts(parts, kube::client::Body::from(body.to_vec()));
        match self.client.send(request).await {
            Ok(answer) => {
                let (mut parts, body) = answer.into_parts();
                parts.headers.remove(header::TRANSFER_ENCODING);
                Response::from_parts(parts, Body::new(body))
            }
            Err(error) => {
                let text = format!("{}: {error}", self.server);
                Response::builder().status(502).body(Body::from(text)).unwrap()
            }
        }
    }
}

/// `computing PATCH nodes/status`: cluster, method, resource.
fn kind(server: &str, request: &Request) -> String {
    let applies = |value: &http::HeaderValue| value.as_bytes().starts_with(b"application/apply-patch");
    let method = match request.headers().get(header::CONTENT_TYPE) {
        Some(value) if applies(value) => "APPLY",
        _ => request.method().as_str(),
    };
    let parts: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
    let rest = if parts.first() == Some(&"api") { parts.get(2..) } else { parts.get(3..) };
    let rest = match rest.unwrap_or_default() {
        ["namespaces", _, rest @ ..] if !rest.is_empty() && !["status", "finalize"].contains(&rest[0]) => {
            rest
        }
        rest => rest,
    };
    let resource = rest.first().copied().unwrap_or_default();
    match rest.get(2) {
        Some(part) => format!("{server} {method} {resource}/{part}"),
        None => format!("{server} {method} {resource}"),
    }
}
