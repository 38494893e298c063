//! The tunnel between real sockets, and between in-memory pipes with random chunks.

use std::time::Duration;

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::*;

const LIMITS: TunnelLimits = TunnelLimits { idle: None, linger: Duration::from_secs(30) };

/// Both ends of a TCP connection.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// The caller's and the worker's end of a running tunnel.
async fn tunnelled(limits: TunnelLimits) -> (TcpStream, TcpStream, JoinHandle<Summary>) {
    let ((caller, near), (far, worker)) = (connection().await, connection().await);
    let running = tokio::spawn(tunnel(near, far, limits, std::future::pending()));
    (caller, worker, running)
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn the_end_of_input_is_passed_on_and_the_answer_still_comes() {
    let (mut caller, mut worker, running) = tunnelled(LIMITS).await;
    caller.write_all(b"sort these").await.unwrap();
    caller.shutdown().await.unwrap();
    assert_eq!(read_all(&mut worker).await, b"sort these", "the worker sees the end");
    worker.write_all(b"sorted").await.unwrap();
    worker.shutdown().await.unwrap();
    assert_eq!(read_all(&mut caller).await, b"sorted");
    assert_eq!(running.await.unwrap(), Summary { up: 10, down: 6, end: End::Finished });
}

#[tokio::test]
async fn the_other_direction_works_alike() {
    let (mut caller, mut worker, running) = tunnelled(LIMITS).await;
    worker.write_all(b"last words").await.unwrap();
    worker.shutdown().await.unwrap();
    assert_eq!(read_all(&mut caller).await, b"last words");
    caller.write_all(b"goodbye").await.unwrap();
    caller.shutdown().await.unwrap();
    assert_eq!(read_all(&mut worker).await, b"goodbye");
    assert_eq!(running.await.unwrap().end, End::Finished);
}

#[tokio::test]
async fn a_side_that_stays_silent_after_the_other_ended_is_left() {
    let limits = TunnelLimits { linger: Duration::from_millis(50), ..LIMITS };
    let (mut caller, mut worker, running) = tunnelled(limits).await;
    caller.shutdown().await.unwrap();
    assert_eq!(running.await.unwrap().end, End::Lingered);
    assert!(read_all(&mut worker).await.is_empty());
    assert!(read_all(&mut caller).await.is_empty());
}

#[tokio::test]
async fn a_broken_connection_ends_both_at_once() {
    let (caller, mut worker, running) = tunnelled(LIMITS).await;
    socket2::SockRef::from(&caller).set_linger(Some(Duration::ZERO)).unwrap();
    drop(caller);
    assert_eq!(running.await.unwrap().end, End::Broken);
    let mut byte = [0];
    assert!(matches!(worker.read(&mut byte).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn silence_ends_it_only_if_there_is_a_limit() {
    let limits = TunnelLimits { idle: Some(Duration::from_millis(200)), ..LIMITS };
    let (mut caller, mut worker, running) = tunnelled(limits).await;
    let mut byte = [0];
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        caller.write_all(b"x").await.unwrap();
        worker.read_exact(&mut byte).await.unwrap();
    }
    let quiet = Instant::now();
    assert_eq!(running.await.unwrap().end, End::Idle);
    assert!(quiet.elapsed() >= Duration::from_millis(150), "counted from the last byte");
}

#[tokio::test]
async fn it_ends_when_told_and_says_goodbye() {
    let ((mut caller, near), (far, mut worker)) = (connection().await, connection().await);
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(tunnel(near, far, LIMITS, async move { told.await.unwrap() }));
    tell.send(()).unwrap();
    assert_eq!(running.await.unwrap().end, End::Told);
    assert!(read_all(&mut caller).await.is_empty() && read_all(&mut worker).await.is_empty());
}

#[tokio::test]
async fn a_reader_that_stops_holds_the_writer_up() {
    let ((mut caller, near), (far, worker)) = (duplex(64), duplex(64));
    let _running = tokio::spawn(tunnel(near, far, LIMITS, std::future::pending()));
    let sent = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&sent);
    let _writer = tokio::spawn(async move {
        while caller.write_all(&[0; 64]).await.is_ok() {
            counting.fetch_add(64, Ordering::Relaxed);
        }
    });
    // Both pipes and one buffer, and not a byte more, however long it takes.
    let full = (BUFFER + 2 * 64) as u64;
    let mut seen = 0;
    for _ in 0..2000 {
        tokio::task::yield_now().await;
        seen = sent.load(Ordering::Relaxed);
    }
    assert!(seen <= full, "{seen} bytes were taken while nobody read");
    drop(worker);
}

async fn feed(mut into: tokio::io::WriteHalf<DuplexStream>, chunks: Vec<Vec<u8>>) {
    for chunk in chunks {
        into.write_all(&chunk).await.unwrap();
        into.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    into.shutdown().await.unwrap();
}

async fn drain(mut from: tokio::io::ReadHalf<DuplexStream>) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).await.unwrap();
    bytes
}

fn chunks() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_byte_arrives_once_and_in_order(up in chunks(), down in chunks(), size in 1..5000_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let ((caller, near), (far, worker)) = (duplex(size), duplex(size));
            let running = tokio::spawn(tunnel(near, far, LIMITS, std::future::pending()));
            let ((caller_in, caller_out), (worker_in, worker_out)) =
                (tokio::io::split(caller), tokio::io::split(worker));
            let ((), (), at_worker, at_caller) = tokio::join!(
                feed(caller_out, up.clone()), feed(worker_out, down.clone()), drain(worker_in), drain(caller_in),
            );
            assert_eq!(at_worker, up.concat());
            assert_eq!(at_caller, down.concat());
            assert_eq!(running.await.unwrap().end, End::Finished);
        });
    }
}
