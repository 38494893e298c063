//! Callers that pause in the middle of an answer, and one that does not.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::stream;
use http::StatusCode;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{Notify, Semaphore},
};
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    answer::{BodyError, empty},
    pods,
};

/// Bytes of a frame of the endless log, as large as what one read of the worker's connection gives.
const FRAME: usize = 16 * 1024;
/// Bytes of a list of pods, more than a connection takes ahead of its reader.
const LIST: usize = 4 * BUFFER;
/// Bytes between the two ends of the test's connection.
const PIPE: usize = 64;

/// A log without end that a caller asked for and does not read.
struct Paused {
    caller: DuplexStream,
    cut: CancellationToken,
    refusing: CancellationToken,
    taken: Arc<AtomicUsize>,
    /// Told when the answer is let go.
    dropped: Arc<Notify>,
    running: tokio::task::JoinHandle<hyper::Result<()>>,
}

/// Tells that it was dropped, after what it came with.
struct Tell(Arc<Notify>);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

async fn paused() -> Paused {
    let (mut caller, stream) = duplex(PIPE);
    let (token, refusing) = (CancellationToken::new(), CancellationToken::new());
    let (taken, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (cut, counting, telling) = (Arc::<Cut>::default(), Arc::clone(&taken), Arc::clone(&dropped));
    let (ending, stopping) = (token.clone(), refusing.clone());
    let running = tokio::spawn(async move {
        let answer = |_| {
            let tell = Tell(Arc::clone(&telling));
            let (guard, counting) = (CutGuard::new(&cut, ending.clone()), Arc::clone(&counting));
            let log = stream::repeat_with(move || {
                let _held = (&guard, &tell);
                counting.fetch_add(FRAME, Ordering::Relaxed);
                Ok::<_, BodyError>(Frame::data(Bytes::from_static(&[b'x'; FRAME])))
            });
            std::future::ready(empty(StatusCode::OK).map(|_| StreamBody::new(log).boxed_unsync()))
        };
        converse(stream, answer, &cut, &stopping).await
    });
    caller.write_all(b"GET / HTTP/1.1\r\nhost: v\r\n\r\n").await.unwrap();
    let mut begun = [0; 15];
    caller.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200 OK");
    Paused { caller, cut: token, refusing, taken, dropped, running }
}

#[tokio::test]
async fn a_reader_that_pauses_is_cut_with_its_vnode() {
    let mut paused = paused().await;
    paused.refusing.cancel();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!paused.running.is_finished(), "what is under way goes on");
    paused.cut.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), paused.dropped.notified()).await;
    assert!(ended.is_ok(), "the answer is kept for a reader that does not come");
    paused.running.await.unwrap().unwrap();
    let mut rest = Vec::new();
    paused.caller.read_to_end(&mut rest).await.unwrap();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a cut log has no mark of a complete one");
}

#[tokio::test]
async fn little_is_taken_for_a_reader_that_pauses() {
    let paused = paused().await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let taken = paused.taken.load(Ordering::Relaxed);
    assert!(taken > 0 && taken <= BUFFER + 2 * FRAME, "{taken} bytes");
    assert!(!paused.running.is_finished());
}

#[tokio::test]
async fn a_token_counts_while_its_answer_lasts() {
    let (cut, token) = (Arc::<Cut>::default(), CancellationToken::new());
    token.cancel();
    drop(CutGuard::new(&cut, token.clone()));
    let told = tokio::time::timeout(Duration::from_millis(50), cut.told()).await;
    assert!(told.is_err(), "the answer was over before");
    let _guard = CutGuard::new(&cut, token);
    cut.told().await;
}

/// A list of pods that a caller asked for, and how its connection ends.
struct Listed {
    caller: DuplexStream,
    /// One, which the list takes.
    places: Arc<Semaphore>,
    running: tokio::task::JoinHandle<hyper::Result<()>>,
}

async fn listed() -> Listed {
    let (mut caller, stream) = duplex(PIPE);
    let places = Arc::new(Semaphore::new(1));
    let taking = Arc::clone(&places);
    let running = tokio::spawn(async move {
        let (cut, tasks, refusing) = (Arc::<Cut>::default(), TaskTracker::new(), CancellationToken::new());
        let answer = |_| {
            let place = Arc::clone(&taking).try_acquire_owned().unwrap();
            let list = Bytes::from(vec![b'x'; LIST]);
            let body = pods::sending(list, place, &tasks, |token| CutGuard::new(&cut, token));
            std::future::ready(empty(StatusCode::OK).map(|_| body))
        };
        converse(stream, answer, &cut, &refusing).await
    });
    caller.write_all(b"GET /pods HTTP/1.1\r\nhost: v\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut begun = [0; 15];
    caller.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200 OK");
    Listed { caller, places, running }
}

#[tokio::test(start_paused = true)]
async fn a_list_is_not_kept_for_a_reader_that_pauses() {
    let mut listed = listed().await;
    assert_eq!(listed.places.available_permits(), 0, "it waits for its reader");
    let ended = tokio::time::timeout(Duration::from_mins(2), listed.running).await;
    ended.expect("nobody waits for ever").unwrap().unwrap();
    assert_eq!(listed.places.available_permits(), 1);
    let mut rest = Vec::new();
    listed.caller.read_to_end(&mut rest).await.unwrap();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a cut list has no mark of a complete one");
}

#[tokio::test(start_paused = true)]
async fn who_reads_a_list_gets_all_of_it_and_leaves_its_place() {
    let mut listed = listed().await;
    let mut rest = Vec::new();
    listed.caller.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(b"0\r\n\r\n"));
    assert!(rest.len() > LIST, "{} bytes", rest.len());
    listed.running.await.unwrap().unwrap();
    assert_eq!(listed.places.available_permits(), 1);
}
