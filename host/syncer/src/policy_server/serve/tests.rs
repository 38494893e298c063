//! How long an answer may take.

use rstest::rstest;
use serde_json::{Value, json};

use super::*;

fn question(timeout_milliseconds: u64) -> Value {
    json!({
        "stage": "schedule", "pod": {}, "nodes": ["vnode-c-n"], "timeoutMilliseconds": timeout_milliseconds,
    })
}

/// PO-608: however patient a caller is, its question holds a thread for ten seconds at most.
#[rstest]
#[case::as_asked(300, 300)]
#[case::at_most_ten_seconds(60_000, 10_000)]
#[case::of_any_size(u64::MAX, 10_000)]
fn an_answer_is_due_when_the_caller_says_but_after_ten_seconds(#[case] asked: u64, #[case] due: u64) {
    let arrived = Instant::now();
    let question: Question = serde_json::from_value(question(asked)).unwrap();
    assert_eq!(deadline(arrived, &question) - arrived, Duration::from_millis(due));
}
