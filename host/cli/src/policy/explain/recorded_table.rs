//! Recorded decisions as people read them: of each entry the last one, with a pod the last one about that pod.
//!
//! Pure.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::Offset};
use kubeocean_api::resource::from_base_units;
use kubeocean_engine::{PlaceRecord, Record, Recorded};

use crate::{
    failure::Failure,
    output::{Format, columns, print},
};

/// Prints all of them as JSON lines, or the last ones as a table.
pub(super) fn show(decisions: &[Recorded], form: Format) -> Result<(), Failure> {
    match form {
        Format::Text => print(&text(decisions)),
        Format::Json => {
            let mut out = String::new();
            for decision in decisions {
                let line = serde_json::to_string(decision);
                out.push_str(&line.map_err(|error| Failure::unusable(error.to_string()))?);
                out.push('\n');
            }
            print(&out)
        }
    }
}

fn text(decisions: &[Recorded]) -> String {
    let mut last: BTreeMap<(&str, Option<&str>), Vec<String>> = BTreeMap::new();
    for decision in decisions {
        match decision {
            Recorded::Lease(record) => last.insert((&record.entry, None), lease(record)),
            Recorded::Place(record) => last.insert((&record.entry, Some(&record.pod)), place(record)),
        };
    }
    if last.is_empty() {
        return "none of the decisions that the Syncer keeps is about it\n".to_owned();
    }
    columns(&last.into_values().collect::<Vec<_>>())
}

fn lease(record: &Record) -> Vec<String> {
    let verdict = serde_json::to_value(record.verdict).ok();
    let verdict = verdict.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let caps = record.caps.iter().map(|(name, cap)| format!("{name} {}", from_base_units(name, *cap)));
    let caps = caps.collect::<Vec<_>>().join(", ");
    let mut why = Vec::new();
    why.extend(record.reason.as_ref().map(|reason| format!("{}: {}", reason.code, reason.message)));
    why.extend(record.valid_until.map(|until| format!("until {}", local(until, record.utc_offset_seconds))));
    vec![
        local(record.at, record.utc_offset_seconds),
        record.entry.clone(),
        String::new(),
        verdict,
        caps,
        why.join(", "),
    ]
}

fn place(record: &PlaceRecord) -> Vec<String> {
    let answer = &record.answer;
    let reason = answer.reason.as_ref().map(|reason| format!("{}: {}", reason.code, reason.message));
    vec![
        local(record.at, record.utc_offset_seconds),
        record.entry.clone(),
        record.pod.clone(),
        answer.fit.to_string(),
        answer.score.map(|score| format!("score {score}")).unwrap_or_default(),
        reason.unwrap_or_default(),
    ]
}

/// A time as the policy's zone had it.
fn local(unix: i64, offset: i32) -> String {
    let offset = Offset::from_seconds(offset).unwrap_or(Offset::UTC);
    let at = Timestamp::from_second(unix).unwrap_or_default();
    offset.to_datetime(at).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_entry_the_last_decision_is_shown() {
        let lease = |at: i64, cap: i64| {
            format!(
                r#"{{"entry":"p/half","digest":"sha256:1","settings":"{{}}","nodes":["n"],"at":{at},"utcOffsetSeconds":3600,
                "facts":{{}},"verdict":"offer","reclaim":"keep","caps":{{"cpu":{cap}}},"validUntil":7200,"reason":null}}"#
            )
        };
        let place = r#"{"entry":"p/where","digest":"sha256:2","settings":"{}","stage":"admit","pod":"ns/p","vnode":"v","at":60,
            "utcOffsetSeconds":0,"podFacts":{},"facts":{},"fit":{"later":5},"score":null,
            "reason":{"code":"Full","message":"no room"}}"#;
        let lines = [lease(0, 1000), lease(30, 1500), place.to_owned()];
        let decisions: Vec<Recorded> = lines.iter().map(|line| Recorded::from_json(line).unwrap()).collect();
        let told = text(&decisions);
        assert_eq!(
            told,
            "1970-01-01 01:00:30  p/half         offer      cpu 1500m  until 1970-01-01 03:00:00\n\
             1970-01-01 00:01:00  p/where  ns/p  later 5 s             Full: no room\n"
        );
        assert!(text(&[]).contains("none of the decisions"));
    }
}
