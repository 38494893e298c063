//! Progress of commands that take long: for a person at a terminal, and for nobody else.

mod binary;
mod history;

use binary::{drawn, file, said, seen_on_a_terminal};
use history::{decision, rlp, week};
use kubeocean_hostile_policies::{digest, guest, place_guest};
use rstest::rstest;
use serde_json::json;
use tempfile::TempDir;

const LIMITS: &str = "{limits: [{resource: cpu, percent: 50}]}";

/// The percentages a bar with this verb showed, each once.
fn shown(seen: &str, verb: &str) -> Vec<u8> {
    drawn(seen, verb, '%').into_iter().filter_map(|percent| percent.parse().ok()).collect()
}

/// A module that only places, in a folder that lives as long as the test.
fn placing(directory: &TempDir) -> String {
    file(directory, "m.wasm", &place_guest('a').with("PLACE", "(return (i32.const 272))").bytes())
}

#[test]
fn check_counts_what_it_has_asked() {
    let directory = tempfile::tempdir().unwrap();
    for module in ["builtin:cpu-percentage", &placing(&directory)] {
        let seen = seen_on_a_terminal(&["policy", "check", module, "--settings", LIMITS]);
        assert_eq!(shown(&seen, "compiling"), [0], "{seen}");
        // Not every step is drawn, but many are, up to the end.
        let percents = shown(&seen, "checking");
        assert!(percents.first() == Some(&0) && percents.is_sorted(), "{module}: {percents:?}");
        assert!(percents.last() > Some(&50), "{module}: {percents:?}");
    }
}

#[test]
fn bench_counts_what_it_has_measured() {
    let directory = tempfile::tempdir().unwrap();
    for (module, percents) in [
        // A load, four figures of a lease, and once more what was compiled before it could be measured.
        ("builtin:cpu-percentage", &[0, 17, 33, 50, 67, 83, 100][..]),
        // A load, two figures of a place.
        (&placing(&directory), &[0, 33, 67, 100][..]),
    ] {
        let seen = seen_on_a_terminal(&["policy", "bench", module, "--settings", LIMITS]);
        assert_eq!(shown(&seen, "compiling"), [0], "{seen}");
        assert_eq!(shown(&seen, "measuring"), percents, "{seen}");
    }
}

#[test]
fn simulate_and_diff_count_the_time_they_have_decided() {
    let directory = tempfile::tempdir().unwrap();
    let windows = json!({
        "cluster": "gpu-binding", "timeZone": "Asia/Shanghai", "timeWindows": [{"start": "18:00", "end": "07:59"}]
    });
    let (snapshot, policy) = (week(&directory), rlp(&directory, "w.yaml", &windows));
    // Both versions that are compared decide the whole week.
    for (args, verb, bars) in [
        (&["policy", "simulate", "-f", &policy, "--snapshot", &snapshot][..], "simulating", 1),
        (&["policy", "diff", &policy, &policy, "--snapshot", &snapshot][..], "deciding", 2),
    ] {
        let percents = shown(&seen_on_a_terminal(args), verb);
        let (begin, after) = percents.split_first().unwrap();
        let parts: Vec<&[u8]> = after.split(|percent| percent == begin).collect();
        assert_eq!((*begin, parts.len()), (0, bars), "{verb}: {percents:?}");
        assert!(parts.iter().all(|part| part.is_sorted() && part.last() > Some(&30)), "{verb}: {percents:?}");
        let (code, _, error) = said(args);
        assert_eq!((code, error.as_str()), (0, ""), "{verb} into a pipe");
    }
}

#[test]
fn replay_and_diff_count_many_records_and_not_a_few() {
    let directory = tempfile::tempdir().unwrap();
    let module = guest().cap(7).bytes();
    let ours = digest(&module);
    let module = file(&directory, "m.wasm", &module);
    let records = |name: &str, count: i64| {
        let lines: String = (0..count).map(|created| decision(created, &ours)).collect();
        file(&directory, name, lines.as_bytes())
    };
    let (few, many) = (records("few.jsonl", 49), records("many.jsonl", 100));
    for (args, verb) in [
        (&["policy", "replay", "--module", &module][..], "replaying"),
        (&["policy", "diff", &module, &module, "--records"][..], "comparing"),
    ] {
        let percents = shown(&seen_on_a_terminal(&[args, &[&many]].concat()), verb);
        assert!(percents.is_sorted() && percents.last() >= Some(&10), "{verb}: {percents:?}");
        assert_eq!(seen_on_a_terminal(&[args, &[&few]].concat()), "", "{verb} a few");
        let (code, _, error) = said(&[args, &[&many]].concat());
        assert_eq!((code, error.as_str()), (0, ""), "{verb} into a pipe");
    }
}

#[rstest]
#[case::check("check")]
#[case::bench("bench")]
fn who_reads_json_or_a_pipe_sees_no_bar(#[case] command: &str) {
    let args = ["policy", command, "builtin:cpu-percentage", "--settings", LIMITS];
    assert_eq!(seen_on_a_terminal(&[&args[..], &["-o", "json"]].concat()), "");
    let (code, _, error) = said(&args);
    assert_eq!((code, error.as_str()), (0, ""));
}
