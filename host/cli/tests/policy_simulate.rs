//! `kubeocean policy simulate` and `diff`: policies over recorded nodes, without any cluster.

mod binary;
mod history;

use binary::{file, json, said};
use history::{rlp, week};
use kubeocean_harness::author::{example_module, scripted_module};
use kubeocean_hostile_policies::guest;
use serde_json::json as value;
use tempfile::TempDir;

fn night(directory: &TempDir) -> String {
    let spec = value!({
        "cluster": "gpu-binding", "timeZone": "Asia/Shanghai",
        "policies": [{"name": "night-gpu", "module": {"configMap": {"name": "night-gpu"}},
                      "settings": {"from": 22, "until": 7, "percent": 50}}],
    });
    rlp(directory, "rlp.yaml", &spec)
}

#[tokio::test]
async fn a_week_is_simulated_drawn_and_summed_up() {
    let directory = tempfile::tempdir().unwrap();
    let (snapshot, policy) = (week(&directory), night(&directory));
    let module = file(&directory, "night_gpu.wasm", &example_module("night-gpu").await.unwrap());
    let (code, _, error) = said(&["policy", "simulate", "-f", &policy, "--snapshot", &snapshot]);
    assert!(code == 2 && error.contains("--module night-gpu=FILE"), "{code}: {error}");

    let module = format!("night-gpu={module}");
    let simulate = ["policy", "simulate", "-f", &policy, "--snapshot", &snapshot, "--module", &module];
    let (code, out, error) =
        said(&[&simulate[..], &["--from", "2026-03-07", "--for", "7d", "--plot"]].concat());
    assert_eq!(code, 0, "{out}{error}");
    let out: String = out.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    insta::assert_snapshot!(out, @r"
    nvidia.com/gpu offered (64 nodes)  0        96       192
    Sat 03-07 00:00-07:00              ####################  192
    Sat 03-07 07:00-22:00                                    0
    Sat 03-07 22:00-24:00              ####################  192
    Sun 03-08 00:00-07:00              ####################  192
    Sun 03-08 07:00-22:00                                    0
    Sun 03-08 22:00-24:00              ####################  192
    Mon 03-09 00:00-07:00              ####################  192
    Mon 03-09 07:00-22:00                                    0
    Mon 03-09 22:00-24:00              ##############        132
    Tue 03-10 00:00-07:00              ##############        132
    Tue 03-10 07:00-22:00                                    0
    Tue 03-10 22:00-24:00              ##############        132
    Wed 03-11 00:00-07:00              ##############        132
    Wed 03-11 07:00-22:00                                    0
    Wed 03-11 22:00-24:00              ##############        132
    Thu 03-12 00:00-07:00              ##############        132
    Thu 03-12 07:00-22:00                                    0
    Thu 03-12 22:00-24:00              ##############        132
    Fri 03-13 00:00-07:00              ##############        132
    Fri 03-13 07:00-22:00                                    0
    Fri 03-13 22:00-24:00              ##############        132
    leased 9 816 gpu-hours   node changes 716   pods reclaimed 0   undecided 0
    ");
    let (code, report) = json(&[&simulate[..], &["-o", "json"]].concat());
    assert_eq!(code, 0);
    // 25 hours of the night in which 64 nodes offer 3, then 38 in which 44 do.
    assert_eq!(
        report["hours"]["nvidia.com/gpu"],
        value!(25.0 * 192.0 + 38.0 * 132.0),
        "{:#}",
        report["hours"]
    );
    assert_eq!(report["undecided"], 0);
    assert_eq!(report["atEnd"]["node-63"]["limitedBy"]["nvidia.com/gpu"], "night-gpu");

    let svg = directory.path().join("week.svg");
    let file = svg.to_str().unwrap();
    let plot = ["--plot", file, "--resource", "nvidia.com/gpu,cpu"];
    let (code, out, _) = said(&[&simulate[..], &plot].concat());
    assert_eq!((code, out.lines().count()), (0, 1), "{out}");
    let picture = std::fs::read_to_string(&svg).unwrap();
    std::fs::remove_file(&svg).unwrap();
    let joined = format!("--plot={file}");
    let (code, ..) = said(&[&simulate[..], &[&joined, "--resource", "nvidia.com/gpu,cpu"]].concat());
    assert_eq!((code, std::fs::read_to_string(&svg).unwrap().as_str()), (0, picture.as_str()));
    assert!(picture.starts_with("<svg") && picture.contains("nvidia.com/gpu of 64 nodes"), "{picture}");
    assert_eq!(picture.matches("left by others").count(), 2, "one chart per resource");
}

#[test]
fn windows_close_take_pods_and_open_again() {
    let directory = tempfile::tempdir().unwrap();
    let windows = value!({
        "cluster": "gpu-binding", "timeZone": "Asia/Shanghai", "forceReclaim": true, "gracefulReclaimPeriodSeconds": 60,
        "timeWindows": [{"start": "18:00", "end": "07:59"}],
    });
    let (snapshot, policy) = (week(&directory), rlp(&directory, "w.yaml", &windows));
    let (code, report) = json(&["policy", "simulate", "-f", &policy, "--snapshot", &snapshot, "-ojson"]);
    assert_eq!(code, 0, "{report:#}");
    // Each morning and each evening of a week; the pod of each node goes each morning.
    assert_eq!(
        (&report["nodeChanges"], &report["podsReclaimed"]),
        (&(64 * 14 + 20).into(), &(64 * 7).into())
    );
    assert_eq!(report["hours"]["cpu"], value!(64.0 * 64.0 * 14.0 * 7.0));
}

#[test]
fn decisions_without_an_answer_are_counted_and_fail() {
    let directory = tempfile::tempdir().unwrap();
    // Traps for 8 GPUs in use, so from Monday noon on for 20 nodes.
    let module = guest().with(
        "LEASE",
        "(if (i64.eq (call $number (local.get $args) (i32.const 0)) (i64.const 7)) (then (unreachable)))",
    );
    file(&directory, "m.wasm", &module.bytes());
    let spec = value!({"cluster": "gpu-binding", "policies": [{"name": "m", "module": {"file": {"path": "m.wasm"}}}]});
    let (snapshot, policy) = (week(&directory), rlp(&directory, "m.yaml", &spec));
    let simulate = ["policy", "simulate", "-f", &policy, "--snapshot", &snapshot];
    let (code, out, _) = said(&simulate);
    assert!(code == 0 && out.contains("undecided 0") && out.contains("names no timeZone"), "{code}: {out}");
    let text = std::fs::read_to_string(&snapshot).unwrap();
    let text = text.replace("\"used\":{\"nvidia.com/gpu\":8}", "\"createdUnix\":7");
    std::fs::write(&snapshot, text).unwrap();
    let (code, out, error) = said(&simulate);
    assert!(code == 1 && out.contains("undecided 20"), "{code}: {out}");
    assert!(error.contains("20 decisions had no answer"), "{error}");
}

#[test]
fn what_is_no_snapshot_or_no_time_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (snapshot, policy) = (week(&directory), rlp(&directory, "p.yaml", &value!({"cluster": "other"})));
    let simulate = ["policy", "simulate", "-f", &policy, "--snapshot"];
    for (args, expected) in [
        (vec!["/nowhere/week.snap"], "/nowhere/week.snap"),
        (vec![policy.as_str()], "does not begin as a snapshot"),
        (vec![snapshot.as_str(), "--from", "someday"], "--from someday: expected a time"),
        (vec![snapshot.as_str(), "--for", "7"], "expected for example 7d"),
        (vec![snapshot.as_str(), "--module", "x=y"], "the file has no such entry"),
    ] {
        let (code, _, error) = said(&[&simulate[..], &args].concat());
        assert!(code == 2 && error.contains(expected), "{expected}: {code}: {error}");
    }
    let (code, out, _) = said(&[&simulate[..], &[snapshot.as_str(), "--from", "2026-03-01"]].concat());
    assert!(
        code == 0 && out.contains("outside of that") && out.contains("is for binding other"),
        "{code}: {out}"
    );
}

#[tokio::test]
async fn a_module_in_c_decides_a_week_as_its_twin_in_rust() {
    let Some(twin) = scripted_module("night-gpu-c").await.unwrap() else { return };
    let directory = tempfile::tempdir().unwrap();
    let snapshot = week(&directory);
    let rust = file(&directory, "night_gpu.wasm", &example_module("night-gpu").await.unwrap());
    let c = file(&directory, "night_gpu_c.wasm", &twin);
    for settings in [
        "{from: 22, until: 7, percent: 50}",
        "{from: 3, until: 4, percent: 33}",
        "{from: 5, until: 5, percent: 100}",
    ] {
        for zone in ["Asia/Shanghai", "America/New_York"] {
            let diff = ["policy", "diff", &rust, &c, "--snapshot", &snapshot, "--exit-code"];
            let (code, out, error) =
                said(&[&diff[..], &["--settings", settings, "--time-zone", zone]].concat());
            assert!(code == 0 && out.contains("0 of 64 nodes differ"), "{settings} {zone}: {out}{error}");
        }
    }
}

#[tokio::test]
async fn two_versions_are_compared_over_a_week() {
    let directory = tempfile::tempdir().unwrap();
    let (snapshot, policy) = (week(&directory), night(&directory));
    let module = file(&directory, "night_gpu.wasm", &example_module("night-gpu").await.unwrap());
    let text = std::fs::read_to_string(&policy).unwrap().replace("\"until\":7", "\"until\":5");
    let shorter = file(&directory, "shorter.yaml", text.as_bytes());
    let given = format!("night-gpu={module}");
    let diff = ["policy", "diff", &policy, &shorter, "--snapshot", &snapshot, "--module", &given];
    let (code, out, error) = said(&diff);
    assert_eq!(code, 0, "{error}");
    for expected in [
        "Sat 03-07 05:00 - Sat 03-07 07:00  nvidia.com/gpu 3 -> 0",
        "... and ",
        // 64 nodes on three mornings, then 44 on four: the others have none.
        "64 of 64 nodes differ, in 368 spans of time",
        "leased 9 816 -> 7 608 gpu-hours",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let (code, report) = json(&[&diff[..], &["--exit-code", "-ojson"]].concat());
    assert_eq!((code, report["differences"].as_array().unwrap().len()), (1, 368));

    let settings = ["--settings", "{from: 22, until: 7, percent: 50}", "--time-zone", "Asia/Shanghai"];
    let modules = [&["policy", "diff", &module, &module, "--snapshot", &snapshot], &settings[..]].concat();
    let (code, out, error) = said(&[&modules[..], &["--exit-code"]].concat());
    assert!(code == 0 && out.contains("0 of 64 nodes differ"), "{code}: {out}{error}");
    let (_, out, _) =
        said(&[&modules[..], &["--new-settings", "{from: 22, until: 5, percent: 50}"]].concat());
    assert!(out.contains("leased 9 816 -> 7 608 gpu-hours"), "{out}");
    let (code, _, error) = said(&[&diff[..3], &["/nowhere/new.yaml"], &diff[4..]].concat());
    assert!(code == 2 && error.contains("/nowhere/new.yaml"), "{code}: {error}");
}
