//! API servers, and ways to them, that fail while pods begin, change and end (see [`kubeocean_e2e::storm`]).
//!
//! Each test is one kind of trouble, first with the computing cluster's server, then with the worker's. Everything is whole
//! again within [`RECOVERED`], 15 s, after the trouble ended.

use std::collections::HashMap;
use std::time::Duration;

use http::Method;
use kubeocean_e2e::storm::{Shelter, Side};
use kubeocean_harness::faults::{Fault, Refusal, Requests, Rule, Served};
use kubeocean_harness::shared_site;

const SIDES: [Side; 2] = [Side::Computing, Side::Worker];
const SECONDS: Duration = Duration::from_secs(8);

async fn shelter(name: &str) -> Shelter {
    Shelter::start(shared_site().await, name, &[]).await
}

fn each(requests: Requests, fault: Fault) -> Vec<Rule> {
    vec![Rule::new(requests, fault)]
}

#[tokio::test]
async fn slow_answers() {
    let shelter = shelter("slow").await;
    for side in SIDES {
        let slow = each(Requests::all(), Fault::Slow(Duration::from_millis(700)));
        shelter.weather("slow", side, slow, SECONDS).await;
    }
}

#[tokio::test]
async fn connections_that_break_in_the_middle_of_an_answer() {
    let shelter = shelter("cut").await;
    for side in SIDES {
        let cut = vec![
            Rule::new(Requests::watches(), Fault::CutAfter(700)).every(3),
            Rule::new(Requests::reads(), Fault::CutAfter(100)).every(3),
            Rule::new(Requests::writes(), Fault::CutAfter(100)).every(4),
        ];
        shelter.weather("cut", side, cut, SECONDS).await;
    }
}

#[tokio::test]
async fn answers_that_get_lost() {
    let shelter = shelter("lost").await;
    for side in SIDES {
        let lost = vec![Rule::new(Requests::writes(), Fault::LoseAnswer).every(2)];
        shelter.weather("lost", side, lost, SECONDS).await;
    }
}

#[tokio::test]
async fn conflicts() {
    let shelter = shelter("conflicts").await;
    for side in SIDES {
        let conflict = each(Requests::writes(), Fault::Refuse(Refusal::Conflict));
        shelter.weather("conflicts", side, conflict, SECONDS).await;
    }
}

#[tokio::test]
async fn versions_that_are_gone() {
    let shelter = shelter("gone").await;
    for side in SIDES {
        let gone = vec![
            Rule::new(Requests::watches(), Fault::Refuse(Refusal::Gone)).every(2),
            Rule::new(Requests::watches(), Fault::ExpireWatch),
            Rule::new(Requests::reads().about("continue="), Fault::Refuse(Refusal::Gone)),
        ];
        shelter.weather("gone", side, gone, SECONDS).await;
    }
}

#[tokio::test]
async fn a_server_that_is_too_busy() {
    let shelter = shelter("busy").await;
    for side in SIDES {
        let busy = each(Requests::all(), Fault::Refuse(Refusal::TooManyRequests(2)));
        let asked = shelter.weather("busy", side, busy, SECONDS).await;
        assert_patient(&asked, Duration::from_secs(2));
    }
}

/// The same is asked again no sooner than the server said. Of creations the path does not tell whether they are the same.
fn assert_patient(asked: &[Served], wait: Duration) {
    let mut last = HashMap::new();
    for request in asked.iter().filter(|request| request.is_write() && request.method != Method::POST) {
        let same = (&request.method, &request.path);
        if let Some(before) = last.insert(same, request.at) {
            let pause = request.at.duration_since(before);
            assert!(pause >= wait, "{} {} after {pause:?}", request.method, request.path);
        }
    }
}

#[tokio::test]
async fn a_server_that_fails() {
    let shelter = shelter("fails").await;
    for side in SIDES {
        // Long: pauses between attempts must not have grown so far that recovery takes minutes.
        let fails = each(Requests::all(), Fault::Refuse(Refusal::InternalError));
        shelter.weather("fails", side, fails, Duration::from_secs(40)).await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_yet() {
    let shelter = shelter("unavailable").await;
    for side in SIDES {
        let unavailable = each(Requests::all(), Fault::Refuse(Refusal::Unavailable));
        shelter.weather("unavailable", side, unavailable, Duration::from_secs(20)).await;
    }
}
