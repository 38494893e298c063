//! `kubeocean policy check` of modules that place: the same pod and vnode get the same answer, whoever else is asked about.

mod binary;

use binary::{file, json, said};
use kubeocean_hostile_policies::{Guest, place_guest};
use rstest::rstest;

/// Accepts all candidates, whatever their amounts are.
const ACCEPTS: &str = "(local.set $row (call $rows (local.get $args)))";

/// Rejects the first candidate, accepts all others.
const REJECTS_FIRST: &str = "(i32.store8 (local.get $at) (i32.const 1)) \
    (i32.store8 offset=12 (local.get $at) (i32.const 1)) (local.set $row (call $rows (local.get $args)))";

/// Loading asks about two vnodes, so it cannot notice; fewer are all accepted.
fn if_many(code: &str) -> String {
    format!(
        "(if (i32.gt_u (call $rows (local.get $args)) (i32.const 2)) (then {code})) \
         (local.set $row (call $rows (local.get $args)))"
    )
}

#[rstest]
#[case::places_by_order(
    &place_guest('f').with("PLACE", REJECTS_FIRST),
    2, "NotPure: the same candidates in another order", "trial"
)]
#[case::places_many_by_order(
    &place_guest('f').with("PLACE", &if_many(REJECTS_FIRST)),
    1, "NotPure: asked in another order", "purity"
)]
#[case::places_by_number_of_candidates(
    &place_guest('f').with("PLACE", "(if (i32.eq (call $rows (local.get $args)) (i32.const 1)) (then (i32.store8 offset=8 (local.get $at) (i32.const 1))))(local.set $row (call $rows (local.get $args)))"),
    1, "NotPure: asked alone", "purity"
)]
#[case::fails_for_some_pods(
    &place_guest('f').with("PLACE", "(local.set $row (call $rows (local.get $args))) (if (i64.lt_s (call $priority (local.get $args)) (i64.const 0)) (then (unreachable)))"),
    1, "TrialFailed: Trap", "purity"
)]
// What its loop makes of random amounts is no answer: a later of zero seconds, a score above 100.
#[case::answers_what_is_no_answer(&place_guest('f'), 1, "TrialFailed: Invalid", "purity")]
fn a_module_that_is_not_pure_is_found(
    #[case] guest: &Guest,
    #[case] code: i32,
    #[case] error: &str,
    #[case] step: &str,
) {
    let directory = tempfile::tempdir().unwrap();
    let module = file(&directory, "module.wasm", &guest.bytes());
    let (found, out, told) = said(&["policy", "check", &module]);
    assert_eq!(found, code, "{out}{told}");
    assert!(told.contains(error), "{told}");
    assert!(out.lines().any(|line| line.starts_with("FAIL") && line.contains(step)), "{out}");
    let (found, report) = json(&["policy", "check", &module, "-o", "json"]);
    assert_eq!(found, code);
    let last = report["steps"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["ok"], &last["step"]), (&false.into(), &step.into()));
}

#[test]
fn a_module_that_only_places_shows_its_facts_and_is_tried() {
    let directory = tempfile::tempdir().unwrap();
    let module = file(&directory, "module.wasm", &place_guest('f').with("PLACE", ACCEPTS).bytes());
    let (code, report) = json(&["policy", "check", &module, "-o", "json"]);
    assert_eq!(code, 0, "{report:#}");
    let steps = report["steps"].as_array().unwrap();
    let names: Vec<&str> = steps.iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(names, ["module", "world", "schema", "settings", "facts", "purity"]);
    assert_eq!(
        steps[4]["detail"],
        "placing reads node.name, label/pool, label/zone, allocatable/f.test/fit, allocatable/f.test/score, \
         available/cpu of vnodes, pod.priority of pods"
    );
}
