//! What is tried on random nodes: the same inputs give the same answers, and an answer holds as long as it says.

use jiff::{Timestamp, tz::TimeZone};
use kubeocean_engine::{CallFailed, FaultKind, LEASE_ROWS, Module, NodeFacts, RowAnswer};

use super::rows::Random;
use crate::progress::Steps;

/// Nodes each module is tried on.
pub(super) const ROWS: usize = 1000;
/// Each node is a step of both trials.
pub(super) const STEPS: usize = 2 * ROWS;
/// Attempts at a call.
const ATTEMPTS: u32 = 5;
/// Moments of a year the nodes are spread over.
const MOMENTS: i64 = 8;
/// 2026-01-01T00:00:00Z.
pub(super) const FIRST_MOMENT: i64 = 1_767_225_600;
/// A day in seconds.
pub(super) const DAY: i64 = 24 * 3600;
/// An answer without an end is looked at again within this time.
const HORIZON: i64 = 8 * DAY;

/// The module does not behave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Misbehaviour {
    /// `TrialFailed` or `NotPure`.
    pub(super) code: &'static str,
    /// What it did, with the node and the moment.
    pub(super) message: String,
}

/// A node and when it is decided about.
#[derive(Clone, Debug)]
pub(super) struct Case {
    at: Timestamp,
    node: NodeFacts,
    answer: RowAnswer,
}

/// A module under trial.
pub(super) struct Trial<'t> {
    pub(super) module: &'t Module,
    pub(super) zone: &'t TimeZone,
    /// Counts questions: [`STEPS`] of leases, [`super::places::STEPS`] of places.
    pub(super) bar: &'t Steps,
}

impl Trial<'_> {
    /// Decides about all nodes, each at one of some moments of a year, and again in another order and each node alone.
    pub(super) fn purity(&self, random: &mut Random, nodes: &[NodeFacts]) -> Result<Vec<Case>, Misbehaviour> {
        let moments: Vec<Timestamp> =
            (0..MOMENTS).map(|_| moment(FIRST_MOMENT + random.below(365 * DAY))).collect();
        let share = nodes.len().div_ceil(moments.len()).clamp(1, LEASE_ROWS);
        let mut cases = Vec::with_capacity(nodes.len());
        for (chunk, at) in nodes.chunks(share).zip(moments.iter().cycle()) {
            let forwards = self.ask(*at, chunk)?;
            let reversed: Vec<NodeFacts> = chunk.iter().rev().cloned().collect();
            let mut backwards = self.ask(*at, &reversed)?;
            backwards.reverse();
            for ((node, answer), again) in chunk.iter().zip(forwards).zip(backwards) {
                compare(self.zone, *at, node, &answer, &again, "in another order")?;
                let alone = self.ask(*at, std::slice::from_ref(node))?;
                if let Some(alone) = alone.first() {
                    compare(self.zone, *at, node, &answer, alone, "alone")?;
                }
                cases.push(Case { at: *at, node: node.clone(), answer });
                self.bar.step();
            }
        }
        Ok(cases)
    }

    /// Asks again at a random moment before each answer's end and in its last second. Returns how many were asked.
    pub(super) fn promises(&self, random: &mut Random, cases: &[Case]) -> Result<usize, Misbehaviour> {
        let mut asked = 0;
        for case in cases {
            let start = case.at.as_second();
            let end = case.answer.valid_until.unwrap_or(i64::MAX);
            let last = end.min(start + HORIZON) - 1;
            for later in [start + random.below(last - start + 1), last] {
                if later <= start {
                    continue;
                }
                asked += 1;
                let later = moment(later);
                let answers = self.ask(later, std::slice::from_ref(&case.node))?;
                let Some(again) = answers.first() else { continue };
                if !same_decision(&case.answer, again) {
                    return Err(self.broken(case, later, again));
                }
            }
            self.bar.step();
        }
        Ok(asked)
    }

    fn ask(&self, at: Timestamp, nodes: &[NodeFacts]) -> Result<Vec<RowAnswer>, Misbehaviour> {
        let Self { module, zone, .. } = *self;
        attempted(|| module.lease(at, zone, nodes), || format!("at {} for {}", local(zone, at), json(nodes)))
    }

    /// The answer of `case` was to hold, but `later` it is another.
    fn broken(&self, case: &Case, later: Timestamp, again: &RowAnswer) -> Misbehaviour {
        let local = |at| local(self.zone, at);
        let end = case.answer.valid_until;
        Misbehaviour {
            code: "NotPure",
            message: format!(
                "the answer given at {} was to hold {}, but at {} it is another: {}; {}",
                local(case.at),
                end.map_or("for ever".to_owned(), |end| format!("until {}", local(moment(end)))),
                local(later),
                difference(&case.answer, again),
                json(&case.node)
            ),
        }
    }
}

/// A call that takes too long is made again: the limit is of real time, and the machine may have had other things to do.
/// `asked` says what it was about.
pub(super) fn attempted<T>(
    call: impl Fn() -> Result<T, CallFailed>,
    asked: impl FnOnce() -> String,
) -> Result<T, Misbehaviour> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match call() {
            Ok(answers) => return Ok(answers),
            Err(error) if left > 0 && error.0.starts_with(FaultKind::Timeout.as_str()) => {}
            Err(error) => {
                let message = format!("{error}, {}", asked());
                return Err(Misbehaviour { code: "TrialFailed", message });
            }
        }
    }
}

fn compare(
    zone: &TimeZone,
    at: Timestamp,
    node: &NodeFacts,
    answer: &RowAnswer,
    again: &RowAnswer,
    how: &str,
) -> Result<(), Misbehaviour> {
    if answer == again {
        return Ok(());
    }
    Err(Misbehaviour {
        code: "NotPure",
        message: format!(
            "asked {how} at {}, the same node gets another answer: {}; {}",
            local(zone, at),
            difference(answer, again),
            json(node)
        ),
    })
}

/// Everything a promise covers (PO-1006).
fn same_decision(a: &RowAnswer, b: &RowAnswer) -> bool {
    a.verdict == b.verdict && a.reclaim == b.reclaim && a.caps == b.caps && a.reason == b.reason
}

/// The first member that differs.
fn difference(a: &RowAnswer, b: &RowAnswer) -> String {
    if a.verdict != b.verdict {
        format!("verdict {:?}, then {:?}", a.verdict, b.verdict)
    } else if a.reclaim != b.reclaim {
        format!("reclaim {:?}, then {:?}", a.reclaim, b.reclaim)
    } else if a.caps != b.caps {
        format!("caps {:?}, then {:?}", a.caps, b.caps)
    } else if a.reason == b.reason {
        format!("valid until {:?}, then {:?}", a.valid_until, b.valid_until)
    } else {
        format!("reason {}, then {}", json(&a.reason), json(&b.reason))
    }
}

/// At most some lines, for a message.
pub(super) fn json(value: &(impl serde::Serialize + ?Sized)) -> String {
    const SHOWN: usize = 2000;
    let text = serde_json::to_string(value).unwrap_or_default();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

pub(super) fn moment(unix: i64) -> Timestamp {
    Timestamp::from_second(unix).unwrap_or(Timestamp::MAX)
}

pub(super) fn local(zone: &TimeZone, at: Timestamp) -> String {
    at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{check::rows, module};
    use kubeocean_engine::{ModuleLimits, builtin};
    use kubeocean_hostile_policies::guest;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn tried(bytes: &[u8], settings: &Value) -> Result<usize, Misbehaviour> {
        let engine = module::engine().unwrap();
        let module = engine.load_module(&Arc::from(bytes), settings, ModuleLimits::default(), &[]).unwrap();
        let said = module.describe();
        let zone = TimeZone::get("Europe/Rome").unwrap();
        let mut random = Random::new(1);
        let nodes = rows::nodes(&mut random, &rows::Vocabulary::new(&said.facts, &said.caps, settings), ROWS);
        let trial = Trial { module: &module, zone: &zone, bar: &Steps::new("checking", 0) };
        let cases = trial.purity(&mut random, &nodes)?;
        assert_eq!(cases.len(), ROWS);
        trial.promises(&mut random, &cases)
    }

    #[test]
    fn the_built_in_modules_keep_their_promises() {
        let windows = json!({"windows": [{"start": "22:00", "end": "06:30", "days": ["Monday", "Sunday"]}]});
        let asked = tried(builtin("time-windows").unwrap(), &windows).unwrap();
        assert!(asked > ROWS, "{asked}");
        let limits = json!({"limits": [{"resource": "cpu", "percent": 50}, {"resource": "memory", "quantity": "4Gi"}]});
        tried(builtin("cpu-percentage").unwrap(), &limits).unwrap();
    }

    /// The cap of every row is what `amount` computes from the call's arguments.
    fn capped_by(amount: &str) -> Arc<[u8]> {
        guest().with("LEASE", &format!("(call $cap_all (local.get $args) {amount})")).bytes()
    }

    #[test]
    fn a_module_that_answers_by_the_size_of_the_call_is_found() {
        assert!(tried(&guest().bytes(), &json!({})).unwrap() > ROWS);
        // Loading asks about two nodes each time, so it cannot notice.
        let found = tried(&capped_by("(i64.extend_i32_u (call $rows (local.get $args)))"), &json!({}));
        let found = found.unwrap_err();
        assert_eq!(found.code, "NotPure");
        assert!(found.message.contains("asked alone") && found.message.contains("caps"), "{}", found.message);
    }

    #[test]
    fn a_module_that_looks_at_the_order_of_rows_is_found() {
        // Loading asks about five nodes at most, so it cannot notice.
        let first = "(call $cap_all (local.get $args) (i64.const 9)) \
            (if (i32.gt_u (call $rows (local.get $args)) (i32.const 5)) \
            (then (i64.store (i32.load (i32.const 284)) (i64.const 1))))";
        let found = tried(&guest().with("LEASE", first).bytes(), &json!({})).unwrap_err();
        assert_eq!(found.code, "NotPure");
        let (order, caps) = ("asked in another order", r#"caps {"cpu": 1}, then {"cpu": 9}"#);
        assert!(found.message.contains(order) && found.message.contains(caps), "{}", found.message);
    }

    #[test]
    fn a_module_that_looks_at_the_clock_and_promises_for_ever_is_found() {
        let hour = "(i64.div_s (i64.load offset=8 (local.get $args)) (i64.const 3600))";
        let found = tried(&capped_by(hour), &json!({})).unwrap_err();
        assert_eq!(found.code, "NotPure");
        assert!(found.message.contains("hold for ever"), "{}", found.message);
    }

    #[test]
    fn a_module_that_fails_for_some_nodes_is_found() {
        // The fact `node.created` of random nodes is never what the loader tries.
        let odd = "(if (i64.ne (i64.rem_s (call $number (local.get $args) (i32.const 0)) (i64.const 100000)) (i64.const 0)) (then (unreachable)))";
        let found = tried(&guest().with("LEASE", odd).bytes(), &json!({})).unwrap_err();
        assert_eq!(found.code, "TrialFailed");
        assert!(found.message.contains("Trap"), "{}", found.message);
    }
}
