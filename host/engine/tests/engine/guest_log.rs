//! What modules log, as whoever runs the process gets it (policy spec section 14, PO-1504).

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, Once};

use kubeocean_engine::EntryState;
use kubeocean_hostile_policies::guest;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::support::*;

/// Entries whose lines are kept; other tests of the program log as well.
const OURS: &str = "p/logging-";

#[derive(Clone, Debug)]
struct Line {
    target: &'static str,
    level: Level,
    fields: BTreeMap<&'static str, String>,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// Of the whole process, because guests run on threads of the engine.
struct Collector;

impl Subscriber for Collector {
    /// Whatever tells the words of a guest, under any target.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.fields().field("policy.message").is_some()
    }

    fn event(&self, event: &Event<'_>) {
        let (target, level) = (event.metadata().target(), *event.metadata().level());
        let mut line = Line { target, level, fields: BTreeMap::new() };
        event.record(&mut line);
        if line.fields.values().any(|value| value.starts_with(OURS)) {
            LINES.lock().unwrap().push(line);
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Collector).unwrap());
}

/// Level and text of what an entry has logged so far, in order. Each line is one, short, and says of which entry it is.
fn logged(entry: &str) -> Vec<(Level, String)> {
    let lines = LINES.lock().unwrap().clone();
    let of_entry = lines.into_iter().filter(|line| line.fields.values().any(|value| value == entry));
    of_entry
        .map(|line| {
            assert_eq!(line.target, "kubeocean::policy");
            let names: Vec<&str> = line.fields.keys().copied().collect();
            assert_eq!(names, ["entry", "message", "policy.message"]);
            assert_eq!((line.fields["entry"].as_str(), line.fields["message"].as_str()), (entry, "guest"));
            let text = line.fields["policy.message"].clone();
            assert!(text.len() <= 512, "{} bytes", text.len());
            assert!(!text.chars().any(char::is_control), "{text:?}");
            (line.level, text)
        })
        .collect()
}

#[test]
fn a_log_flood_is_32_short_lines_a_call_that_name_their_entry() {
    collect();
    // Line breaks and letters of two bytes, one of them across byte 512.
    let long = format!("(data (i32.const 2000) \"x{}\")", "\u{e9}\\n".repeat(300));
    let floods = guest()
        .with("LEASE", "(call $log (i32.const 4) (i32.const 2000) (i32.const 901)) (call $flood)")
        .with("START", &long);
    let speaks = guest().with("LEASE", "(call $log (i32.const 2) (i32.const 1152) (i32.const 13))");
    let spec = policy(json!({})).guest("logging-floods", &floods).guest("logging-speaks", &speaks);
    let host = host(vec![spec]);
    for name in ["logging-floods", "logging-speaks"] {
        assert_eq!(host.state(name), EntryState::Active, "{}", host.error(name));
    }
    let cut = (Level::ERROR, format!("x{}", "\u{e9} ".repeat(170)));
    let line = |level| (level, "a line of two".to_owned());
    let mut call = vec![line(Level::WARN); 32];
    call[0] = cut;
    // Two trial calls and one decision, of 101 lines each.
    assert_eq!(logged("p/logging-floods"), vec![call.clone(); 2].concat());
    host.one(noon(), node("a"));
    assert_eq!(logged("p/logging-floods"), vec![call; 3].concat());
    assert_eq!(host.numbers("p/logging-floods").counters.log_dropped, 3 * 69);
    assert_eq!(logged("p/logging-speaks"), vec![line(Level::INFO); 3]);
    assert_eq!(host.numbers("p/logging-speaks").counters.log_dropped, 0);
}
