//! The two plain HTTP listeners: metrics, and health probes (MC-701). A bind address `0` switches one off (MC-109).

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::health::Health;

/// Connections of one listener at a time. One more takes the place of the oldest: who holds many open uses up neither
/// memory nor files, and locks out no probe.
const CONNECTIONS: usize = 256;
/// What answers that are under way at the end have left.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

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
    let serve_one = |stream: TcpStream| {
        let (router, cancel) = (router.clone(), cancel.clone());
        async move {
            let service = service_fn(move |request| router.clone().oneshot(request));
            let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::pin!(serving);
            let ended = tokio::select! {
                ended = serving.as_mut() => ended,
                () = cancel.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
        }
    };
    let mut last = accept(listener, "a listener", &cancel, serve_one).await;
    let answering = async { while last.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_ANSWERS, answering).await.is_err() {
        tracing::debug!("somebody did not take an answer");
    }
}

/// Takes connections until `cancel`, each for a task of its own; returns those that still run. `purpose` names the
/// listener in the log.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    purpose: &'static str,
    cancel: &CancellationToken,
    serve: impl Fn(TcpStream) -> F,
) -> JoinSet<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = tokio::select! {
            () = cancel.cancelled() => return connections,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "{purpose} cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        oldest_first.push_back(connections.spawn(serve(stream)));
        if oldest_first.len() > CONNECTIONS {
            oldest_first.retain(|connection| !connection.is_finished());
        }
        if oldest_first.len() > CONNECTIONS
            && let Some(oldest) = oldest_first.pop_front()
        {
            tracing::debug!("{purpose} has too many connections");
            oldest.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

    #[tokio::test]
    async fn whoever_holds_connections_open_locks_out_no_probe_and_the_oldest_goes() {
        let listeners = Listeners::open("0", "127.0.0.1:0").await.unwrap();
        let address = listeners.health.as_ref().unwrap().local_addr().unwrap();
        let cancel = CancellationToken::new();
        let serving = tokio::spawn(listeners.serve(Arc::new(String::new), Arc::default(), cancel.clone()));
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        assert_eq!(get(address, "/healthz").await, 200);
        // Closed: an end or a reset, not silence.
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_secs(30), held[0].read(&mut byte)).await.unwrap();
        assert!(!matches!(read, Ok(1..)), "{read:?}");
        cancel.cancel();
        serving.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_no_caller_who_takes_no_answer() {
        /// Much more than the buffers of a connection hold.
        const LONG: usize = 128 << 20;
        let listeners = Listeners::open("127.0.0.1:0", "0").await.unwrap();
        let address = listeners.metrics.as_ref().unwrap().local_addr().unwrap();
        let cancel = CancellationToken::new();
        let text: MetricsText = Arc::new(|| "x".repeat(LONG));
        let serving = tokio::spawn(listeners.serve(text, Arc::default(), cancel.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        cancel.cancel();
        serving.await.unwrap();
        let mut rest = Vec::new();
        // An end or a reset, after what was on its way.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.len() < LONG / 2, "{}", rest.len());
    }
}
