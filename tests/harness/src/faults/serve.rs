//! Connections of clients, and the way to the server and back.

use std::sync::Arc;
use std::time::Instant;

use http::header::{ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Method, Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::Client;
use kube::client::Body;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::answer::{AnyBody, refuse, spoil};
use super::rule::{Active, Fault, is_watch};
use super::{Served, Shared};

pub(super) async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>, upstream: Client) {
    let mut number = 0;
    while let Ok((stream, _)) = listener.accept().await {
        number += 1;
        let connection = Connection {
            number,
            broken: shared.connections.lock().child_token(),
            shared: Arc::clone(&shared),
            upstream: upstream.clone(),
        };
        tokio::spawn(serve(stream, tls.clone(), connection));
    }
}

/// One connection of a client.
#[derive(Clone)]
struct Connection {
    number: usize,
    shared: Arc<Shared>,
    upstream: Client,
    broken: CancellationToken,
}

/// Serves a connection until the client ends it or something breaks it.
async fn serve(stream: TcpStream, tls: TlsAcceptor, connection: Connection) {
    let broken = connection.broken.clone();
    let served = async {
        // Small answers must not wait for each other.
        let _ = stream.set_nodelay(true);
        let Ok(stream) = tls.accept(stream).await else { return };
        let service = service_fn(|request| {
            let connection = connection.clone();
            async move { connection.answer(request).await }
        });
        let speaks_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = TokioIo::new(stream);
        // A client that goes away is an ordinary end.
        if speaks_http2 {
            let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await;
        } else {
            let _ = http1::Builder::new().serve_connection(stream, service).await;
        }
    };
    broken.run_until_cancelled(served).await;
}

impl Connection {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<AnyBody>, kube::Error> {
        let at = Instant::now();
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(kube::Error::HyperError)?.to_bytes();
        let rule = self.shared.rules.lock().iter().find(|rule| rule.takes(&parts)).map(Arc::clone);
        self.shared.record.lock().push(Served {
            at,
            connection: self.number,
            method: parts.method.clone(),
            path: parts.uri.path().to_owned(),
            made: if parts.method == Method::POST { made(&body) } else { String::new() },
            watch: is_watch(&parts),
            accept: accepted(&parts),
            spoiled: rule.is_some(),
        });
        if let Some(Fault::Refuse(refusal)) = rule.as_deref().map(Active::fault) {
            return Ok(refuse(refusal));
        }
        let Ok(answer) = self.upstream.send(upstream_request(parts, body.to_vec())).await else {
            return self.break_off().await;
        };
        let answer = downstream_answer(answer);
        match rule {
            None => Ok(answer.map(BodyExt::boxed_unsync)),
            Some(rule) if rule.fault() == Fault::LoseAnswer => {
                // The whole answer: by then the server has done it.
                let _ = answer.into_body().collect().await;
                self.break_off().await
            }
            Some(rule) => Ok(spoil(answer, rule, self.broken.clone())),
        }
    }

    async fn break_off<T>(&self) -> T {
        self.broken.cancel();
        std::future::pending().await
    }
}

fn made(body: &[u8]) -> String {
    let object: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    match object["metadata"]["name"].as_str() {
        Some(name) => name.to_owned(),
        None => String::from_utf8_lossy(body).into_owned(),
    }
}

fn accepted(request: &http::request::Parts) -> String {
    let accept = request.headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accept.unwrap_or_default().to_owned()
}

/// The same request for another connection, with the caller's credentials.
fn upstream_request(mut parts: http::request::Parts, body: Vec<u8>) -> Request<Body> {
    let target = parts.uri.path_and_query().cloned();
    parts.uri = target.map_or_else(http::Uri::default, http::Uri::from);
    parts.version = Version::HTTP_11;
    for hop in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        parts.headers.remove(hop);
    }
    Request::from_parts(parts, Body::from(body))
}

fn downstream_answer(answer: Response<Body>) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    for hop in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        parts.headers.remove(hop);
    }
    Response::from_parts(parts, body)
}
