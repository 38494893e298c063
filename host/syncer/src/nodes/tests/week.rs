//! A week of windows and grace periods in a blink (BU-801 to BU-808): the real engine and planner are woken when the plan
//! says so and at no other time, and the taint on the vnode must be right in every half minute, on both days on which a
//! zone changes its clock. Some of the wake-ups find a Syncer that has just started.

use jiff::{Timestamp, tz::TimeZone};
use kubeocean_engine::{BindingFacts, PolicyHost, PolicySpec};
use rstest::rstest;
use serde_json::{Value, json};
use std::sync::Arc;

use super::{
    model::{Model, VNODE, at, engine},
    simulation::oracle::is_open,
};
use crate::{
    nodes::{
        decision::Decision,
        snapshot::{Usage, facts},
        view::NodeView,
    },
    simulation::Random,
};
use kubeocean_api::keys::taint;

const WEEK: i64 = 7 * 24 * 3600;
const HALF_MINUTE: i64 = 30;
/// Sets of windows of each case.
const SETS: u64 = 4;

/// What the taint must be at an instant, given since when the windows are closed.
fn wanted(closed: Option<i64>, now: i64, grace: Option<i64>) -> Option<&'static str> {
    let over = grace.is_some_and(|grace| closed.is_some_and(|since| now >= since + grace));
    closed.map(|_| if over { "NoExecute" } else { "NoSchedule" })
}

fn windows(random: &mut Random) -> Value {
    const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    let time = |random: &mut Random| match random.below(3) {
        0 => {
            random.pick(&["00:00", "01:59", "02:00", "02:30", "03:00", "08:00", "08:01", "23:59"]).to_owned()
        }
        _ => format!("{:02}:{:02}", random.below(24), random.below(60)),
    };
    let windows: Vec<Value> = (0..=random.below(3))
        .map(|_| {
            let days: Vec<&str> = (0..random.below(4)).map(|_| random.pick(&DAYS)).collect();
            json!({"start": time(random), "end": time(random), "days": days})
        })
        .collect();
    windows.into()
}

fn host(spec: &Value) -> PolicyHost {
    let facts = BindingFacts { name: "dc-east".into(), cluster_id: "cls-a".into() };
    let host = PolicyHost::new(engine(), facts, TimeZone::UTC, Box::new(|| {}));
    host.set_policies(vec![PolicySpec {
        name: "p".into(),
        uid: "u".into(),
        created_unix: 1,
        generation: 1,
        spec: serde_json::from_value(spec.clone()).unwrap(),
        modules: std::collections::BTreeMap::new(),
    }]);
    host
}

fn decide(host: &PolicyHost, model: &Model) -> Decision {
    let view = |value: &Value| serde_json::from_value::<NodeView>(value.clone()).unwrap();
    let vnode = model.vnode.as_ref().map(view);
    let facts = facts(&view(model.pnode.as_ref().unwrap()), VNODE, vnode.as_ref(), &Usage::default());
    let decision = host.decide(at(model.now), &[Arc::new(facts)]).pop().unwrap();
    // Without the refresh of every ten minutes, which would mend a promise that is too long.
    Decision { wake_at: decision.valid_until, ..decision }
}

#[rstest]
#[case::berlin_into_summer("Europe/Berlin", "2027-03-22T00:00:00Z")]
#[case::berlin_out_of_it("Europe/Berlin", "2027-10-25T00:00:00Z")]
#[case::new_york_into_summer("America/New_York", "2027-03-08T00:00:00Z")]
#[case::half_an_hour_back("Australia/Lord_Howe", "2027-03-29T00:00:00Z")]
#[case::half_an_hour_off("Asia/Kolkata", "2027-03-22T00:00:00Z")]
fn every_half_minute_of_a_week_has_the_right_taint(
    #[case] zone: &str,
    #[case] from: Timestamp,
    #[values(None, Some(0), Some(90), Some(7200))] grace: Option<i64>,
) {
    let rules = TimeZone::get(zone).unwrap();
    let start = from.as_second() - at(0).as_second();
    for seed in 0..SETS {
        let mut random = Random(seed);
        let windows = windows(&mut random);
        let host = host(&json!({
            "timeZone": zone, "timeWindows": windows,
            "forceReclaim": grace.is_some(), "gracefulReclaimPeriodSeconds": grace.unwrap_or(60),
        }));
        let mut model = Model { now: start, ..Model::new() };
        let mut wakes = 0;
        let mut closed = None;
        let mut now = start;
        while now < start + WEEK {
            model.now = now;
            if random.once_in(3) {
                model.written = None;
            }
            model.decision = Some(decide(&host, &model));
            model.settle();
            wakes += 1;
            let wake =
                model.plan().next_wake.map_or(start + WEEK, |wake| wake.as_second() - at(0).as_second());
            assert!(wake > now, "seed {seed}: woken at {} for {}", at(now), at(wake));
            let shown = model.taint(taint::OUT_OF_TIME_WINDOWS);
            while now < wake.min(start + WEEK) {
                let open = is_open(&windows, &at(now).to_zoned(rules.clone()));
                closed = if open { None } else { closed.or(Some(now)) };
                let context = || format!("seed {seed} at {} {zone} grace {grace:?}: {windows}", at(now));
                assert_eq!(shown.as_deref(), wanted(closed, now, grace), "{}", context());
                now += HALF_MINUTE - now.rem_euclid(HALF_MINUTE);
            }
            now = wake;
        }
        assert!(wakes < 150, "seed {seed}: {wakes} wake-ups in a week of {windows}");
    }
}
