//! Progress of commands that take long: for a person at a terminal, and for nobody else.

mod binary;

use binary::{file, said, seen_on_a_terminal};
use kubeocean_hostile_policies::place_guest;
use rstest::rstest;
use tempfile::TempDir;

const LIMITS: &str = "{limits: [{resource: cpu, percent: 50}]}";

/// The percentages a bar with this verb showed, each once.
fn shown(seen: &str, verb: &str) -> Vec<u8> {
    let begin = format!("{verb} [");
    let bars = seen.split(&begin).skip(1);
    let percents = bars.filter_map(|bar| bar.split_once("] ")?.1.split_once('%')?.0.parse().ok());
    let mut percents: Vec<u8> = percents.collect();
    percents.dedup();
    percents
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

#[rstest]
#[case::check("check")]
#[case::bench("bench")]
fn who_reads_json_or_a_pipe_sees_no_bar(#[case] command: &str) {
    let args = ["policy", command, "builtin:cpu-percentage", "--settings", LIMITS];
    assert_eq!(seen_on_a_terminal(&[&args[..], &["-o", "json"]].concat()), "");
    let (code, _, error) = said(&args);
    assert_eq!((code, error.as_str()), (0, ""));
}
