//! How many connections callers may have (PX-1302): of all, and of those whose caller did not prove yet who it is.
//!
//! Strangers have few places, so that they take neither the memory nor the places of running streams. A connection that
//! is beyond a limit is accepted and waits: a listener without callers holds nothing.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

/// Most connections at a time.
const CONNECTIONS: usize = 4096;
/// Most of them whose caller is not known. Each may hold a request head of 128 KiB.
const STRANGERS: usize = 256;
/// Pause after the system refused to accept, for want of file descriptors mostly.
const BREATH: Duration = Duration::from_millis(100);

/// The places of the process, shared by all listeners.
#[derive(Debug)]
pub(crate) struct Gate {
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::of(CONNECTIONS, STRANGERS)
    }
}

/// The place of one connection. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    _one_of_all: OwnedSemaphorePermit,
    stranger: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Place {
    /// The caller proved who it is: the place among strangers is free again.
    pub(crate) fn known(&self) {
        self.stranger.lock().take();
    }
}

impl Gate {
    fn of(all: usize, strangers: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), strangers: Arc::new(Semaphore::new(strangers)) }
    }

    /// Waits for a place. `None` never happens: nobody closes the gate.
    async fn enter(&self) -> Option<Place> {
        let stranger = Arc::clone(&self.strangers).acquire_owned().await.ok()?;
        let one_of_all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Place { _one_of_all: one_of_all, stranger: Mutex::new(Some(stranger)) })
    }

    /// Accepts connections until `cancel`, and hands each over with its place.
    pub(crate) async fn accept(
        &self,
        listener: TcpListener,
        cancel: CancellationToken,
        mut take: impl FnMut(TcpStream, Place),
    ) {
        let accepting = async {
            loop {
                match listener.accept().await {
                    Ok((tcp, _)) => match self.enter().await {
                        Some(place) => take(tcp, place),
                        None => return,
                    },
                    Err(error) => {
                        let address = listener.local_addr().ok();
                        tracing::warn!(%error, ?address, "a connection could not be accepted");
                        tokio::time::sleep(BREATH).await;
                    }
                }
            }
        };
        cancel.run_until_cancelled(accepting).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::{sync::mpsc, task::JoinSet};

    type Taken = mpsc::UnboundedReceiver<(TcpStream, Place)>;

    /// Listeners at one gate, and what they let in. Dropping the tasks ends them.
    async fn listeners(gate: Gate, count: usize) -> (Vec<SocketAddr>, Taken, JoinSet<()>) {
        let (gate, mut tasks) = (Arc::new(gate), JoinSet::new());
        let (sender, taken) = mpsc::unbounded_channel();
        let mut addresses = Vec::new();
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let (gate, sender) = (Arc::clone(&gate), sender.clone());
            tasks.spawn(async move {
                let take = |tcp, place| sender.send((tcp, place)).unwrap();
                gate.accept(listener, CancellationToken::new(), take).await;
            });
        }
        (addresses, taken, tasks)
    }

    /// The next one that is let in, if there is one in time.
    async fn next(taken: &mut Taken) -> Option<(TcpStream, Place)> {
        tokio::time::timeout(Duration::from_secs(10), taken.recv()).await.ok().flatten()
    }

    /// Whether the gate lets nobody in, once all that can happen has happened.
    async fn is_shut(taken: &mut Taken) -> bool {
        tokio::time::timeout(Duration::from_millis(200), taken.recv()).await.is_err()
    }

    #[tokio::test]
    async fn a_listener_without_callers_takes_no_place() {
        let (addresses, mut taken, _tasks) = listeners(Gate::of(2, 2), 6).await;
        for address in addresses.into_iter().rev() {
            let _caller = TcpStream::connect(address).await.unwrap();
            assert!(next(&mut taken).await.is_some(), "more listeners than places: {address} answers nobody");
        }
    }

    #[tokio::test]
    async fn beyond_the_limit_callers_wait_for_a_place() {
        let (addresses, mut taken, _tasks) = listeners(Gate::of(1, 8), 2).await;
        let _callers = (
            TcpStream::connect(addresses[0]).await.unwrap(),
            TcpStream::connect(addresses[1]).await.unwrap(),
        );
        let first = next(&mut taken).await.unwrap();
        first.1.known();
        assert!(is_shut(&mut taken).await);
        drop(first);
        assert!(next(&mut taken).await.is_some());
    }

    #[tokio::test]
    async fn strangers_have_few_places_and_leave_theirs_when_they_are_known() {
        let (addresses, mut taken, _tasks) = listeners(Gate::of(8, 1), 1).await;
        let _callers = (
            TcpStream::connect(addresses[0]).await.unwrap(),
            TcpStream::connect(addresses[0]).await.unwrap(),
        );
        let first = next(&mut taken).await.unwrap();
        assert!(is_shut(&mut taken).await);
        first.1.known();
        assert!(next(&mut taken).await.is_some(), "the first one is open still");
    }
}
