//! One connection of a caller: handshake, then requests one after another, until an upgrade takes it over (PX-1302).

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{handle::handle, keep_alive::tune, proxier::Shared};

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest wait for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Largest head: commands travel in the request target.
const BUFFER: usize = 128 * 1024;
/// Pause after the system refused to accept, for want of file descriptors mostly.
const BREATH: Duration = Duration::from_millis(100);

/// Which listener a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// The port of all vnodes.
    Shared,
    /// The port of one vnode.
    Vnode(u16),
}

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) door: Door,
    /// Certificates shown in the handshake, whose key the caller has; not yet believed.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// Accepts connections until `cancel`.
pub(crate) async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    door: Door,
    cancel: CancellationToken,
) {
    loop {
        // The permit comes first: callers beyond the limit wait in the system's queue.
        let permit = tokio::select! {
            () = cancel.cancelled() => return,
            permit = Arc::clone(&shared.connections).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, _)) => {
                let shared = Arc::clone(&shared);
                let tasks = shared.tasks.clone();
                tasks.spawn(async move {
                    shared.metrics.connections.inc();
                    serve(&shared, tcp, door).await;
                    shared.metrics.connections.dec();
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, ?door, "a connection could not be accepted");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

async fn serve(shared: &Arc<Shared>, tcp: TcpStream, door: Door) {
    if let Err(error) = tune(&tcp) {
        tracing::debug!(%error, "a connection's options could not be set");
    }
    let tls = match tokio::time::timeout(HANDSHAKE, shared.tls.accept(tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%error, ?door, "a handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates =
        tls.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned());
    let caller = Arc::new(Caller { door, certificates: certificates.collect() });
    let service = service_fn(|request| {
        let (shared, caller) = (Arc::clone(shared), Arc::clone(&caller));
        async move { Ok::<_, Infallible>(handle(shared, caller, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(tls), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shared.refusing.cancelled() => {
            // What is under way goes on; an idle connection ends.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = shared.stop.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, ?door, "a connection ended early");
    }
}
