//! One connection of a caller: handshake, then requests one after another, until an upgrade takes it over (PX-1302).

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::gate::Place;
use crate::{answer::Answer, handle::handle, keep_alive::tune, proxier::Shared};

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest wait for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Largest head: commands travel in the request target. hyper has one limit for both ways, so this is also what is taken
/// of a log whose reader pauses.
const BUFFER: usize = 128 * 1024;

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
    place: Place,
    cut: Arc<Cut>,
}

impl Caller {
    /// It proved that it may do what it asks.
    pub(crate) fn known(&self) {
        self.place.known();
    }

    /// Ends the connection when `token` is cancelled, for as long as the guard lives. Requests come one after another.
    pub(crate) fn ends_with(&self, token: CancellationToken) -> CutGuard {
        CutGuard::new(&self.cut, token)
    }
}

/// What ends a connection in the middle of an answer. The answer's own body cannot: it is not asked for more while its
/// reader pauses.
#[derive(Debug, Default)]
struct Cut(watch::Sender<Option<CancellationToken>>);

/// See [`Caller::ends_with`].
#[derive(Debug)]
pub(crate) struct CutGuard(Arc<Cut>);

impl CutGuard {
    fn new(cut: &Arc<Cut>, token: CancellationToken) -> Self {
        cut.0.send_replace(Some(token));
        Self(Arc::clone(cut))
    }
}

impl Drop for CutGuard {
    fn drop(&mut self) {
        self.0.0.send_replace(None);
    }
}

impl Cut {
    /// Waits until the token of the moment is cancelled.
    async fn told(&self) {
        let mut tokens = self.0.subscribe();
        loop {
            let token = tokens.borrow_and_update().clone();
            let cancelled = async {
                match token {
                    Some(token) => token.cancelled_owned().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancelled => return,
                // The sender lives in `self`.
                _ = tokens.changed() => {}
            }
        }
    }
}

/// Accepts connections until `cancel`.
pub(crate) async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    door: Door,
    cancel: CancellationToken,
) {
    let take = |tcp, place| {
        let (tasks, shared) = (shared.tasks.clone(), Arc::clone(&shared));
        tasks.spawn(async move {
            shared.metrics.connections.inc();
            serve(&shared, tcp, door, place).await;
            shared.metrics.connections.dec();
        });
    };
    shared.gate.accept(listener, cancel, take).await;
}

async fn serve(shared: &Arc<Shared>, tcp: TcpStream, door: Door, place: Place) {
    if let Err(error) = tune(&tcp) {
        tracing::debug!(%error, "a connection's options could not be set");
    }
    let turned_out = place.turned_out().clone();
    let shaking = tokio::time::timeout(HANDSHAKE, shared.tls.accept(tcp));
    let Some(shaken) = turned_out.run_until_cancelled(shaking).await else { return };
    let tls = match shaken {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%error, ?door, "a handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates =
        tls.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned());
    let cut = Arc::<Cut>::default();
    let caller =
        Arc::new(Caller { door, certificates: certificates.collect(), place, cut: Arc::clone(&cut) });
    let answer = |request| handle(Arc::clone(shared), Arc::clone(&caller), request);
    let ended = tokio::select! {
        ended = converse(tls, answer, &cut, &shared.refusing) => ended,
        () = shared.stop.cancelled() => return,
        () = turned_out.cancelled() => return,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, ?door, "a connection ended early");
    }
}

/// Answers requests until the caller has no more, the connection is cut, or nothing is under way after `refusing`.
async fn converse<S, F>(
    stream: S,
    answer: impl Fn(Request<Incoming>) -> F,
    cut: &Cut,
    refusing: &CancellationToken,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Answer>,
{
    let service = service_fn(|request| {
        let answering = answer(request);
        async move { Ok::<_, Infallible>(answering.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let conversation = async {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = refusing.cancelled() => {}
        }
        // What is under way goes on; an idle connection ends.
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    tokio::select! {
        ended = conversation => ended,
        () = cut.told() => Ok(()),
    }
}

#[cfg(test)]
mod tests;
