//! A listener that speaks HTTPS.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::server::accept;

/// Time a caller has for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time it has for its next request's head. Longer than clients in Go keep an idle connection, so that they end it, not we
/// in the middle of their next request.
const HEAD: Duration = Duration::from_mins(2);

/// Serves until `cancel`. `purpose` names the listener in the log.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    purpose: &'static str,
    cancel: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let serve_one = |stream: TcpStream| {
        let (acceptor, router) = (acceptor.clone(), router.clone());
        async move {
            // Answers are small and somebody waits for them.
            let _ = stream.set_nodelay(true);
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
                return;
            };
            let service = service_fn(move |request| router.clone().oneshot(request));
            let serving = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = serving.await {
                tracing::debug!(%error, "a connection of {purpose} ended");
            }
        }
    };
    let left = accept(listener, purpose, &cancel, serve_one).await;
    // Connections end with their tasks.
    drop(left);
}
