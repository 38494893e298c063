//! How many connections callers may have (PX-1302): of all, and of those whose caller did not prove yet that it may ask.
//!
//! Strangers have few places, so that they take neither the memory nor the places of running streams. When theirs are taken
//! the one that has been a stranger for longest is turned out, if it had time to become known: who only holds a place must
//! not keep others out, and a burst of honest callers waits for its turn. Beyond the limit of all, a connection is accepted and waits: a listener without callers
//! holds nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Most connections at a time.
const CONNECTIONS: usize = 4096;
/// Most of them whose caller is not known. Each may hold a request head of 128 KiB.
const STRANGERS: usize = 256;
/// How long a stranger may take to become known before it can be turned out.
const GRACE: Duration = Duration::from_secs(1);
/// Pause after the system refused to accept, for want of file descriptors mostly.
const BREATH: Duration = Duration::from_millis(100);

/// The places of the process, shared by all listeners.
#[derive(Debug)]
pub(crate) struct Gate {
    all: Arc<Semaphore>,
    strangers: Arc<Strangers>,
    most_strangers: usize,
}

/// The connections whose caller is not known, the oldest first.
#[derive(Debug, Default)]
struct Strangers {
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, (Instant, CancellationToken)>>,
    /// Told when one left.
    left: Notify,
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
    strangers: Arc<Strangers>,
    number: u64,
    turned_out: CancellationToken,
}

impl Place {
    /// The caller proved that it may ask: the place among strangers is free again.
    pub(crate) fn known(&self) {
        if self.strangers.waiting.lock().remove(&self.number).is_some() {
            self.strangers.left.notify_one();
        }
    }

    /// Is cancelled when the place is needed for another stranger.
    pub(crate) fn turned_out(&self) -> &CancellationToken {
        &self.turned_out
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.known();
    }
}

impl Strangers {
    /// Takes one more in and says its number, if there is room or can be made; else says the age of the oldest.
    fn admit(&self, turned_out: &CancellationToken, most: usize) -> Result<u64, Duration> {
        let mut waiting = self.waiting.lock();
        while waiting.len() >= most
            && let Some(oldest) = waiting.first_entry()
        {
            let age = oldest.get().0.elapsed();
            if age < GRACE {
                return Err(age);
            }
            oldest.remove().1.cancel();
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        waiting.insert(number, (Instant::now(), turned_out.clone()));
        Ok(number)
    }
}

impl Gate {
    pub(crate) fn of(all: usize, strangers: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), strangers: Arc::default(), most_strangers: strangers }
    }

    /// Waits for a place. `None` never happens: nobody closes the gate.
    async fn enter(&self) -> Option<Place> {
        let one_of_all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        let turned_out = CancellationToken::new();
        let number = loop {
            match self.strangers.admit(&turned_out, self.most_strangers) {
                Ok(number) => break number,
                Err(age) => {
                    tokio::select! {
                        () = tokio::time::sleep(GRACE.saturating_sub(age)) => {}
                        () = self.strangers.left.notified() => {}
                    }
                }
            }
        };
        Some(Place { _one_of_all: one_of_all, strangers: Arc::clone(&self.strangers), number, turned_out })
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
    async fn of_too_many_strangers_the_oldest_is_turned_out_and_nobody_who_is_known() {
        let (addresses, mut taken, _tasks) = listeners(Gate::of(8, 2), 1).await;
        let mut callers = Vec::new();
        let mut places = Vec::new();
        for caller in 0..5 {
            callers.push(TcpStream::connect(addresses[0]).await.unwrap());
            let (_, place) = next(&mut taken).await.expect("nobody waits for strangers");
            if caller == 0 {
                place.known();
            }
            places.push(place);
        }
        let turned_out: Vec<_> = places.iter().map(|place| place.turned_out().is_cancelled()).collect();
        assert_eq!(turned_out, [false, true, true, false, false]);
        // Who goes by itself leaves room too.
        drop(places.pop());
        callers.push(TcpStream::connect(addresses[0]).await.unwrap());
        let _last = next(&mut taken).await.unwrap();
        assert!(!places[3].turned_out().is_cancelled());
    }
}
