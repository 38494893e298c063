use tokio_util::sync::CancellationToken;

use super::{
    pauses::{BACKOFF_FIRST, SOON_MAX, STALE_FIRST},
    *,
};
use crate::health::Health;

#[tokio::test(start_paused = true)]
async fn a_key_waits_once_and_never_runs_twice_at_a_time() {
    let queue = Queue::new("test");
    queue.add("a");
    queue.add("a");
    queue.add("b");
    assert_eq!(queue.next().await, "a");
    queue.add("a");
    assert_eq!(queue.next().await, "b");
    assert!(tokio::time::timeout(Duration::from_secs(1), queue.next()).await.is_err(), "a is running");
    queue.done(&"a", Outcome::Done);
    assert_eq!(queue.next().await, "a", "it was added while running");
}

#[tokio::test(start_paused = true)]
async fn a_full_flow_delays_a_key_of_another_by_one_turn() {
    let queue = Queue::with_flows("test", |(flow, _): &(&str, u32)| flow_of(flow));
    queue.add_all((0..1000).map(|key| ("full", key)));
    queue.add(("other", 0));
    assert_eq!(queue.next().await, ("full", 0));
    assert_eq!(queue.next().await, ("other", 0));
    assert_eq!(queue.next().await, ("full", 1));
}

#[tokio::test(start_paused = true)]
async fn a_flow_has_a_share_of_the_workers_and_leaves_the_others_free() {
    let queue = Queue::with_flows("test", |(flow, _): &(&str, u32)| flow_of(flow));
    queue.share_out(100);
    queue.add_all((0..1000).map(|key| ("full", key)));
    for key in 0..2 {
        assert_eq!(queue.next().await, ("full", key));
    }
    let soon = Duration::from_millis(100);
    assert!(tokio::time::timeout(soon, queue.next()).await.is_err(), "it has its share");
    queue.add(("other", 0));
    assert_eq!(queue.next().await, ("other", 0));
    queue.done(&("other", 0), Outcome::Done);
    assert!(tokio::time::timeout(soon, queue.next()).await.is_err(), "that was not one of its own");
    queue.done(&("full", 1), Outcome::Done);
    assert_eq!(queue.next().await, ("full", 2));
    assert_eq!(queue.len(), 1000 - 1);
}

/// A server that says when it may be asked again, or is far, holds up keys, but not those behind them.
#[tokio::test(start_paused = true)]
async fn keys_that_wait_for_long_do_not_hold_up_their_flow() {
    let queue = Queue::with_flows("test", |(flow, _): &(&str, u32)| flow_of(flow));
    queue.share_out(100);
    queue.add_all((0..1000).map(|key| ("full", key)));
    let start = Instant::now();
    let mut taken = Vec::new();
    while let Ok(key) = tokio::time::timeout(Duration::from_secs(1), queue.next()).await {
        taken.push((key.1, start.elapsed().as_millis()));
    }
    let expected: Vec<_> = (0..12).map(|key| (key, u128::from(key / 2) * 250)).collect();
    assert_eq!(taken, expected, "two more each quarter of a second, and no more than an eighth of all");
    queue.add(("other", 0));
    assert_eq!(queue.next().await, ("other", 0));
    queue.done(&("full", 7), Outcome::Done);
    assert_eq!(queue.next().await, ("full", 12));
}

#[tokio::test(start_paused = true)]
async fn what_a_key_waited_is_told_without_its_delay() {
    let queue = Queue::new("test");
    queue.add("a");
    queue.add_after("b", Duration::from_mins(1));
    tokio::time::advance(Duration::from_secs(3)).await;
    assert_eq!(queue.next().await, "a");
    assert_eq!(queue.next().await, "b");
    let QueueNumbers { depth, waits, .. } = queue.numbers();
    assert_eq!((depth, waits.count), (2, 2));
    assert!((waits.sum_seconds - 3.0).abs() < 0.1, "{}", waits.sum_seconds);
}

#[tokio::test(start_paused = true)]
async fn the_earliest_of_several_delays_wins() {
    let queue = Queue::new("test");
    let start = Instant::now();
    queue.add_after("a", Duration::from_mins(1));
    queue.add_after("a", Duration::from_secs(5));
    queue.add_after("a", Duration::from_secs(30));
    assert_eq!(queue.next().await, "a");
    assert_eq!(start.elapsed().as_secs(), 5);
    queue.done(&"a", Outcome::Done);
    assert!(tokio::time::timeout(Duration::from_mins(2), queue.next()).await.is_err(), "nothing is left");
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_and_success_resets_them() {
    let queue = Queue::new("test");
    queue.add("a");
    let mut waits = Vec::new();
    for _ in 0..4 {
        let start = Instant::now();
        queue.next().await;
        waits.push(start.elapsed().as_millis());
        queue.done(&"a", Outcome::Retry);
    }
    assert!(waits.windows(2).all(|pair| pair[1] > pair[0]), "{waits:?}");
    queue.next().await;
    queue.done(&"a", Outcome::Done);
    queue.add("a");
    queue.next().await;
    queue.done(&"a", Outcome::Retry);
    let start = Instant::now();
    queue.next().await;
    assert!(start.elapsed() <= BACKOFF_FIRST);
}

#[tokio::test(start_paused = true)]
async fn a_key_comes_back_soon_after_a_server_that_failed_for_long() {
    let queue = Queue::new("test");
    queue.add("a");
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let start = Instant::now();
        queue.next().await;
        longest = longest.max(start.elapsed());
        queue.done(&"a", Outcome::Unanswered);
    }
    assert!(longest > SOON_MAX / 2 && longest <= SOON_MAX, "{longest:?}");
}

/// An API server that has just started says no to whom it does not know yet.
#[tokio::test(start_paused = true)]
async fn a_key_that_is_refused_after_an_outage_is_tried_again_soon_and_then_less_often() {
    let queue = Queue::new("test");
    queue.add("a");
    for _ in 0..20 {
        queue.next().await;
        queue.done(&"a", Outcome::Unanswered);
    }
    queue.next().await;
    let mut waits = Vec::new();
    for _ in 0..5 {
        queue.done(&"a", Outcome::Retry);
        let start = Instant::now();
        queue.next().await;
        waits.push(start.elapsed());
    }
    assert!(waits[0] <= BACKOFF_FIRST, "{waits:?}");
    assert!(waits.windows(2).all(|pair| pair[1] > pair[0]) && waits[4] > 10 * BACKOFF_FIRST, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_takes_what_arrives_while_it_lingers() {
    let queue = Queue::new("test");
    queue.add_all(["a", "b"]);
    queue.add_after("c", Duration::from_millis(3));
    queue.add_after("d", Duration::from_millis(30));
    assert_eq!(queue.next_batch(10, Duration::from_millis(5)).await, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_nobody_waits_for_stays_in_the_queue() {
    let queue = Queue::new("test");
    queue.add_all(["a", "b"]);
    let gave_up =
        tokio::time::timeout(Duration::from_secs(1), queue.next_batch(10, Duration::from_secs(5))).await;
    assert!(gave_up.is_err());
    queue.add("a");
    let again = tokio::time::timeout(Duration::from_secs(1), queue.next_batch(10, Duration::ZERO)).await;
    assert_eq!(again.unwrap(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_outdated_again_and_again_comes_back_less_often() {
    let queue = Queue::new("test");
    queue.add("a");
    let start = Instant::now();
    for _ in 0..8 {
        queue.next().await;
        queue.done(&"a", Outcome::Stale);
    }
    assert!(start.elapsed() > Duration::from_secs(5), "{:?}", start.elapsed());
    queue.next().await;
    queue.done(&"a", Outcome::Done);
    queue.add("a");
    queue.next().await;
    queue.done(&"a", Outcome::Stale);
    let start = Instant::now();
    queue.next().await;
    assert!(start.elapsed() < 2 * STALE_FIRST);
}

#[tokio::test]
async fn a_panic_in_a_reconcile_ends_the_loop() {
    let queue = Queue::new("test");
    queue.add_all(["good", "bad"]);
    let heart = Arc::new(Health::default()).begin("test");
    let driver = tokio::spawn(drive(queue, 8, CancellationToken::new(), heart, |key| async move {
        assert_ne!(key, "bad");
        Outcome::Done
    }));
    let ended = tokio::time::timeout(Duration::from_secs(30), driver).await.unwrap();
    assert!(ended.unwrap_err().is_panic());
}

/// BU section 1: what does no work any more is not alive, whatever else still turns.
#[tokio::test(start_paused = true)]
async fn a_loop_whose_workers_all_hang_is_not_alive() {
    let health = Arc::new(Health::default());
    for hangs in [false, true] {
        let queue = Queue::new("test");
        queue.add_all([1, 2, 3]);
        let cancel = CancellationToken::new();
        let reconcile = move |key| async move {
            if hangs && key < 3 {
                std::future::pending::<()>().await;
            }
            Outcome::Done
        };
        let heart = health.begin("test");
        let driver = tokio::spawn(drive(queue, 2, cancel.clone(), heart, reconcile));
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_mins(1)).await;
            health.progress();
        }
        assert_eq!(health.is_alive(), !hangs);
        driver.abort();
        assert!(driver.await.is_err());
    }
    assert!(health.is_alive(), "nobody waits for a loop that ended");
}

/// The same of the share of one flow, while the others are served.
#[tokio::test(start_paused = true)]
async fn a_flow_whose_workers_all_hang_is_not_alive_and_a_slow_one_is() {
    let health = Arc::new(Health::default());
    for hangs in [false, true] {
        let queue = Queue::with_flows("test", |(flow, _): &(&str, u32)| flow_of(flow));
        queue.add_all((0..100).map(|key| ("full", key)));
        let reconcile = move |(flow, _)| async move {
            match flow {
                "full" if hangs => std::future::pending().await,
                "full" => tokio::time::sleep(Duration::from_mins(4)).await,
                _ => {}
            }
            Outcome::Done
        };
        let heart = health.begin("test");
        let driver = tokio::spawn(drive(Arc::clone(&queue), 100, CancellationToken::new(), heart, reconcile));
        for minute in 0..15 {
            queue.add(("other", minute));
            tokio::time::sleep(Duration::from_mins(1)).await;
            health.progress();
            assert!(health.is_alive() || minute >= 5, "{minute}");
        }
        assert_eq!(health.is_alive(), !hangs);
        driver.abort();
        assert!(driver.await.is_err());
    }
}

#[tokio::test]
async fn driving_works_on_all_keys_and_ends_on_cancel() {
    let queue = Queue::new("test");
    queue.add_all(0..100);
    let cancel = CancellationToken::new();
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let heart = Arc::new(Health::default()).begin("test");
    let driver = tokio::spawn(drive(Arc::clone(&queue), 8, cancel.clone(), heart, move |key| {
        let sender = sender.clone();
        async move {
            sender.send(key).unwrap();
            Outcome::Done
        }
    }));
    let mut seen = HashSet::new();
    while seen.len() < 100 {
        seen.insert(receiver.recv().await.unwrap());
    }
    cancel.cancel();
    driver.await.unwrap();
}
