//! `kubeocean policy bench`: figures, and the gate of a CI.

mod binary;

use binary::{file, json, said};
use kubeocean_hostile_policies::{guest, place_guest};

const LIMITS: &str = "{limits: [{resource: cpu, percent: 50}]}";

#[test]
fn a_module_is_measured_and_held_against_what_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let baseline = directory.path().join("baseline.json");
    let baseline = baseline.to_str().unwrap();
    let bench = ["policy", "bench", "builtin:cpu-percentage", "--settings", LIMITS];
    let (code, out, error) = said(&[&bench[..], &["--save", baseline]].concat());
    println!("{out}");
    assert_eq!(code, 0, "{error}");
    for part in [
        "size ",
        "compile ",
        "cached load ",
        "fresh unit ",
        "lease 1 row ",
        "256 rows ",
        "fuel/row ",
        "memory ",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let gate = [&bench[..], &["--baseline", baseline, "-o", "json"]].concat();
    let (code, report) = json(&gate);
    assert_eq!(code, 0, "{report:#}");
    let exact = report["compared"].as_array().unwrap().iter().take(4);
    assert!(exact.clone().all(|one| one["change"] == 0.0), "fuel, memory and size are exact: {report:#}");
    assert_eq!(exact.count(), 4);
    assert!(
        report["lease"]["fuelPerRow"].as_u64() > Some(100) && report["compile"].as_f64() > Some(1000.0),
        "{report:#}"
    );

    // More limits are more work.
    let more = "{limits: [{resource: cpu, percent: 50}, {resource: memory, percent: 50}, {resource: pods, percent: 50}]}";
    let worse = ["policy", "bench", "builtin:cpu-percentage", "--settings", more, "--baseline", baseline];
    let (code, out, error) = said(&worse);
    assert!(
        code == 1 && error.contains("fuel/row") && out.contains("FAIL  fuel/row"),
        "{code}: {out}{error}"
    );
    let (code, out, _) = said(&[&worse[..], &["--max-regression", "500%"]].concat());
    assert_eq!(code, 0, "{out}");
    let (code, out, _) = said(&[&bench[..], &["--baseline", baseline, "--max-slowdown", "100000%"]].concat());
    assert_eq!(code, 0, "{out}");
}

/// Also a module that only places has figures that are the same on every machine.
#[test]
fn a_module_that_places_is_held_against_what_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let accepts =
        |work: &str| place_guest('a').with("PLACE", &format!("{work}(return (i32.const 272))")).bytes();
    let module = file(&directory, "m.wasm", &accepts(""));
    let baseline = directory.path().join("baseline.json");
    let baseline = baseline.to_str().unwrap();
    let (code, out, error) = said(&["policy", "bench", &module, "--save", baseline]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("fuel/candidate "), "{out}");
    let (code, report) = json(&["policy", "bench", &module, "--baseline", baseline, "-o", "json"]);
    assert_eq!(code, 0, "{report:#}");
    let exact: Vec<_> = report["compared"].as_array().unwrap().iter().take(4).collect();
    let names: Vec<_> = exact.iter().map(|one| one["figure"].as_str().unwrap()).collect();
    assert_eq!(names, ["fuel/candidate", "place fuel fresh", "place memory", "size"]);
    assert!(exact.iter().all(|one| one["change"] == 0.0), "{report:#}");
    assert!(report["place"]["fuelPerCandidate"].as_u64() > Some(10), "{report:#}");

    // One that counts to a hundred for each candidate.
    let counts =
        "(local.set $score (i64.mul (i64.const 100) (i64.extend_i32_u (call $rows (local.get $args)))))
        (loop $count
          (local.set $score (i64.sub (local.get $score) (i64.const 1)))
          (br_if $count (i64.ne (local.get $score) (i64.const 0))))";
    let slow = file(&directory, "slow.wasm", &accepts(counts));
    let (code, out, error) = said(&["policy", "bench", &slow, "--baseline", baseline]);
    assert!(code == 1 && error.contains("fuel/candidate"), "{code}: {out}{error}");
}

#[test]
fn what_cannot_be_measured_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let (code, _, error) =
        said(&["policy", "bench", "builtin:cpu-percentage", "--settings", "{cpuPercent: 150}"]);
    assert!(code == 2 && error.contains("SettingsInvalid"), "{code}: {error}");
    let trap = guest().with("LEASE", "(if (i64.gt_s (call $number (local.get $args) (i32.const 0)) (i64.const 1700000001)) (then (unreachable)))");
    let module = file(&directory, "m.wasm", &trap.bytes());
    let (code, _, error) = said(&["policy", "bench", &module]);
    assert!(code == 1 && error.contains("Trap"), "{code}: {error}");
    let broken = file(&directory, "b.json", b"{}");
    let (code, _, error) = said(&["policy", "bench", "builtin:time-windows", "--baseline", &broken]);
    assert!(code == 2 && error.contains("was not made by --save"), "{code}: {error}");
    let (code, _, error) = said(&["policy", "bench", "builtin:time-windows", "--max-regression", "little"]);
    assert!(code == 2 && error.contains("expected for example 10%"), "{code}: {error}");
}
