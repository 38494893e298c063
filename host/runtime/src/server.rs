//! The two plain HTTP listeners: metrics, and health probes (MC-701). A bind address `0` switches one off (MC-109).

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {purpose}: {source}; free the port or choose another with {flag}")]
pub struct ListenError {
    address: String,
    purpose: &'static str,
    flag: &'static str,
    source: std::io::Error,
}

/// The two listeners of a process. Opened before anything else, so that a port in use ends the start with a clear message.
#[derive(Debug)]
pub struct Listeners {
    metrics: Option<TcpListener>,
    health: Option<TcpListener>,
}

impl Listeners {
    /// Opens both; `0` turns one off.
    pub async fn open(metrics: &str, health: &str) -> Result<Self, ListenError> {
        Ok(Self {
            metrics: listen(metrics, "metrics", "--metrics-bind-address").await?,
            health: listen(health, "health probes", "--health-probe-bind-address").await?,
        })
    }

    /// Serves both until `cancel`.
    pub async fn serve(self, metrics: MetricsText, health: Arc<Health>, cancel: CancellationToken) {
        let metrics = async {
            if let Some(listener) = self.metrics {
                serve_metrics(listener, metrics, cancel.clone()).await;
            }
        };
        let health = async {
            if let Some(listener) = self.health {
                serve_health(listener, health, cancel.clone()).await;
            }
        };
        tokio::join!(metrics, health);
    }
}

/// Opens a listener. `:8080` means port 8080 of every address; `0` opens none.
pub async fn listen(
    address: &str,
    purpose: &'static str,
    flag: &'static str,
) -> Result<Option<TcpListener>, ListenError> {
    if address == "0" || address.is_empty() {
        return Ok(None);
    }
    let failed = |source| ListenError { address: address.to_owned(), purpose, flag, source };
    let socket: SocketAddr = match address.strip_prefix(':') {
        Some(port) => format!("[::]:{port}").parse(),
        None => address.parse(),
    }
    .map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, error)))?;
    match TcpListener::bind(socket).await {
        Ok(listener) => Ok(Some(listener)),
        // A machine without IPv6.
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse && address.starts_with(':') => {
            TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], socket.port()))).await.map(Some).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The text of a program's metrics, made anew for each scrape.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// Serves `/metrics` until `cancel`.
pub async fn serve_metrics(listener: TcpListener, metrics: MetricsText, cancel: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(|State(metrics): State<MetricsText>| async move { metrics() }))
        .with_state(metrics);
    serve(listener, router, cancel).await;
}

/// Serves `/healthz` and `/readyz` until `cancel`.
async fn serve_health(listener: TcpListener, health: Arc<Health>, cancel: CancellationToken) {
    let answer =
        |good: bool| if good { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ok") };
    let router = Router::new()
        .route(
            "/healthz",
            get(move |State(health): State<Arc<Health>>| async move { answer(health.is_alive()) }),
        )
        .route(
            "/readyz",
            get(move |State(health): State<Arc<Health>>| async move { answer(health.is_ready()) }),
        )
        .with_state(health);
    serve(listener, router, cancel).await;
}

async fn serve(listener: TcpListener, router: Router, cancel: CancellationToken) {
    let server =
        axum::serve(listener, router).with_graceful_shutdown(async move { cancel.cancelled().await });
    if let Err(error) = server.await {
        tracing::error!(%error, "listener ended");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// The status line's code.
    async fn get(address: SocketAddr, path: &str) -> u16 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }

    #[tokio::test(start_paused = true)]
    async fn probes_tell_that_a_loop_stands_still() {
        let listeners = Listeners::open("0", "127.0.0.1:0").await.unwrap();
        let address = listeners.health.as_ref().unwrap().local_addr().unwrap();
        let (health, cancel) = (Arc::new(Health::default()), CancellationToken::new());
        let serving =
            tokio::spawn(listeners.serve(Arc::new(String::new), Arc::clone(&health), cancel.clone()));
        assert_eq!((get(address, "/healthz").await, get(address, "/readyz").await), (200, 503));
        health.set_ready(true);
        health.answered();
        assert_eq!(get(address, "/readyz").await, 200);

        let stuck = health.begin("stuck");
        tokio::time::advance(Duration::from_mins(5)).await;
        health.progress();
        health.answered();
        assert_eq!((get(address, "/healthz").await, get(address, "/readyz").await), (503, 503));
        drop(stuck);
        assert_eq!((get(address, "/healthz").await, get(address, "/readyz").await), (200, 200));
        tokio::time::advance(Duration::from_mins(5)).await;
        assert_eq!(get(address, "/healthz").await, 503, "the main loop");
        assert_eq!(get(address, "/nothing").await, 404);
        cancel.cancel();
        serving.await.unwrap();
    }
}
