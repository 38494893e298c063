//! `kubeocean policy test`: cases of a file, decided as the Syncer decides.

mod binary;

use binary::{file, json, said};
use kubeocean_harness::author::{example_module, repository, scripted_module};
use kubeocean_hostile_policies::{digest, guest};
use rstest::rstest;
use serde_json::json as value;

const NIGHT: &str = r#"module: night_gpu.wasm
settings: {from: 22, until: 7, percent: 50}
timeZone: Asia/Shanghai
cases:
- name: day-has-no-gpus
  at: "2026-03-07T14:00"
  node: {allocatable: {nvidia.com/gpu: 8}, used: {nvidia.com/gpu: 2}}
  expect: {verdict: offer, caps: {nvidia.com/gpu: 0}, validUntil: "2026-03-07T22:00", reason: NightGpu}
- name: half-at-night
  at: "2026-03-07T23:30"
  node: {labels: {pool: online}, allocatable: {nvidia.com/gpu: 8}, used: {nvidia.com/gpu: 2}}
  expect: {verdict: offer, caps: {nvidia.com/gpu: 3}, validUntil: "2026-03-08T07:00", reason: NightGpu}
- name: a-quarter-with-other-settings
  at: "2026-03-07T15:30:00Z"
  settings: {from: 22, until: 7, percent: 25}
  node: {available: {nvidia.com/gpu: 8, cpu: 16}}
  expect:
    reason: "NightGpu: GPUs are leased at night only"
    decision: {verdict: offer, amounts: {nvidia.com/gpu: 2, cpu: 16}, limitedBy: {nvidia.com/gpu: module}}
"#;

#[tokio::test]
async fn cases_of_a_module_pass_or_say_what_differs() {
    let directory = tempfile::tempdir().unwrap();
    file(&directory, "night_gpu.wasm", &example_module("night-gpu").await.unwrap());
    let cases = file(&directory, "tests.yaml", NIGHT.as_bytes());
    let (code, out, error) = said(&["policy", "test", &cases]);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("ok    night-gpu/half-at-night\n") && out.contains("3 passed, 0 failed, "), "{out}");
    assert!(!out.contains('\u{1b}'), "colours are for terminals");

    let wrong = NIGHT
        .replace("{nvidia.com/gpu: 3}", "{nvidia.com/gpu: 4, cpu: 1}")
        .replace("03-08T07:00", "03-08T08:00");
    let cases = file(&directory, "wrong.yaml", wrong.as_bytes());
    let (code, out, error) = said(&["policy", "test", &cases]);
    assert_eq!(code, 1, "{out}{error}");
    assert!(error.contains("1 of 3 cases failed"), "{error}");
    let lines: Vec<&str> = out.lines().map(str::trim_end).collect();
    let place = format!("({cases}:12)");
    for expected in [
        "caps.nvidia.com/gpu: expected 4, got 3",
        "caps.cpu: expected 1, got no cap",
        "validUntil: expected 2026-03-08T08:00, got 2026-03-08T07:00",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(expected) && line.ends_with(&place)),
            "{expected}: {out}"
        );
    }
    let (code, report) = json(&["policy", "test", &cases, "-o", "json"]);
    assert_eq!((code, &report["passed"], &report["failed"]), (1, &2.into(), &1.into()));
    assert_eq!(report["cases"][1]["mismatches"][1]["got"], "3");
}

#[tokio::test]
async fn cases_of_a_policy_see_all_its_entries() {
    let directory = tempfile::tempdir().unwrap();
    let module = example_module("night-gpu").await.unwrap();
    file(&directory, "night.wasm", &module);
    let rlp = value!({
        "kind": "ResourceLeasingPolicy", "metadata": {"name": "half-and-night"},
        "spec": {
            "cluster": "c", "timeZone": "Asia/Shanghai",
            "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["online"]}]}]},
            "policies": [
                {"name": "half", "module": {"builtin": "cpu-percentage"}, "settings": {"cpuPercent": 50}},
                {"name": "night", "module": {"configMap": {"name": "night"}, "digest": digest(&module)},
                 "settings": {"from": 22, "until": 7, "percent": 50}, "enforcement": "Audit"},
            ],
        },
    });
    file(&directory, "rlp.yaml", rlp.to_string().as_bytes());
    let cases = r#"policy: rlp.yaml
modules: {night: night.wasm}
cases:
- name: audit-changes-nothing
  at: "2026-03-07T14:00"
  node: {labels: {pool: online}, allocatable: {cpu: 16, nvidia.com/gpu: 8}, used: {cpu: 4200m}}
  expect:
    entries:
      night: {verdict: offer, caps: {nvidia.com/gpu: 0}}
      legacy-node-selector: {verdict: offer}
    decision: {verdict: offer, amounts: {cpu: 5.9, nvidia.com/gpu: 8}, limitedBy: {cpu: half, nvidia.com/gpu: nobody}, governedBy: half-and-night}
- name: other-nodes-are-not-governed
  at: "2026-03-07T14:00"
  node: {labels: {pool: batch}, allocatable: {cpu: 16}}
  expect: {decision: {governedBy: null}}
"#;
    let path = file(&directory, "cases.yaml", cases.as_bytes());
    let (code, out, error) = said(&["policy", "test", &path]);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("rlp/audit-changes-nothing"), "{out}");
    let missing =
        file(&directory, "missing.yaml", cases.replace("modules: {night: night.wasm}", "").as_bytes());
    let (code, _, error) = said(&["policy", "test", &missing]);
    assert!(code == 2 && error.contains("--module night=FILE"), "{code}: {error}");
    let wrong = cases.replace("    entries:\n", "    verdict: offer\n    entries:\n");
    let (code, _, error) = said(&["policy", "test", &file(&directory, "wrong.yaml", wrong.as_bytes())]);
    assert!(code == 2 && error.contains("of a policy expect decision and entries"), "{code}: {error}");
}

#[rstest]
#[case("night-gpu")]
#[case("tidal-usage")]
#[case("price-window")]
#[case("maintenance-calendar")]
#[case("keep-headroom")]
#[case("drain-window")]
#[case("bin-packing")]
#[case("namespace-tenancy")]
#[tokio::test]
async fn the_cases_of_an_example_pass(#[case] name: &str) {
    let directory = tempfile::tempdir().unwrap();
    let cases = repository().unwrap().join("examples/policies").join(name).join("cases.yaml");
    let cases = std::fs::read_to_string(cases).unwrap();
    let module = format!("target/wasm32-unknown-unknown/release/{}.wasm", name.replace('-', "_"));
    assert!(cases.contains(&module), "{cases}");
    file(&directory, "m.wasm", &example_module(name).await.unwrap());
    let path = file(&directory, "cases.yaml", cases.replace(&module, "m.wasm").as_bytes());
    let (code, out, error) = said(&["policy", "test", &path]);
    assert_eq!(code, 0, "{out}{error}");
}

/// Acceptance check 16.
#[tokio::test]
async fn a_module_in_c_loads_is_pure_keeps_its_promises_and_passes_the_cases_of_its_twin_in_rust() {
    let Some(module) = scripted_module("night-gpu-c").await.unwrap() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "night_gpu.wasm", &module);
    let (code, shown) = json(&["policy", "inspect", &path, "-o", "json"]);
    assert_eq!(
        (code, &shown["name"], &shown["world"]),
        (0, &"night-gpu-c".into(), &"lease-policy".into()),
        "{shown:#}"
    );
    let settings = "{from: 22, until: 7, percent: 50}";
    for seed in ["1", "2"] {
        let (code, out, error) = said(&["policy", "check", &path, "--settings", settings, "--seed", seed]);
        assert_eq!(code, 0, "{out}{error}");
        assert!(out.contains("caps nvidia.com/gpu") && out.contains("promises"), "{out}");
    }
    let rlp = repository().unwrap().join("examples/policies/night-gpu-c/rlp.yaml");
    let (code, out, error) = said(&["policy", "check", &path, "-f", rlp.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}{error}");
    let refused = said(&["policy", "check", &path, "--settings", "{from: 24, until: 7, percent: 50}"]);
    assert!(refused.0 == 2 && refused.2.contains("SettingsInvalid"), "{refused:?}");
    for cases in ["night-gpu", "night-gpu-c"] {
        let cases = repository().unwrap().join("examples/policies").join(cases).join("cases.yaml");
        let cases = std::fs::read_to_string(cases).unwrap();
        let (_, rest) = cases.split_once("settings:").unwrap();
        let cases = format!("module: night_gpu.wasm\nsettings:{rest}");
        let (code, out, error) = said(&["policy", "test", &file(&directory, "cases.yaml", cases.as_bytes())]);
        assert!(code == 0 && out.contains("2 passed, 0 failed"), "{out}{error}");
    }
    let (code, out, error) = said(&["policy", "test", &file(&directory, "night.yaml", NIGHT.as_bytes())]);
    assert!(code == 0 && out.contains("3 passed, 0 failed"), "{out}{error}");
}

/// A module that traps for nodes made at second 666.
#[rstest]
#[case::deny(
    "Deny",
    "{verdict: withhold, reclaim: keep, mayCreate: true, reason: ModuleFailed, amounts: {cpu: 3}}"
)]
#[case::ignore("Ignore", "{verdict: offer, amounts: {cpu: 16}}")]
#[case::last_known(
    "LastKnown",
    "{verdict: held, withheld: false, amounts: {cpu: 1m}, limitedBy: {cpu: module}}"
)]
fn what_holds_without_an_answer_is_what_the_entry_says(#[case] on_error: &str, #[case] decision: &str) {
    let directory = tempfile::tempdir().unwrap();
    let module = guest()
        .with("LEASE", "(call $cap_all (local.get $args) (i64.const 1))")
        .with("POISONED", "(unreachable)");
    file(&directory, "m.wasm", &module.bytes());
    let cases = format!(
        "module: m.wasm\nonError: {on_error}\ncases:\n- name: traps\n  at: '2026-03-07T14:00'\n  \
         earlier: [{{at: '2026-03-07T13:00', node: {{allocatable: {{cpu: 16}}}}}}]\n  \
         node: {{created: 666, allocatable: {{cpu: 16}}, published: {{amounts: {{cpu: 3}}}}}}\n  \
         expect: {{error: Trap, decision: {decision}}}\n"
    );
    let (code, out, error) = said(&["policy", "test", &file(&directory, "c.yaml", cases.as_bytes())]);
    assert_eq!(code, 0, "{out}{error}");
    let unexpected = cases.replace("error: Trap, ", "");
    let (code, out, _) = said(&["policy", "test", &file(&directory, "u.yaml", unexpected.as_bytes())]);
    assert_eq!(code, 0, "only what is expected is compared: {out}");
    let answer = cases.replace("error: Trap", "verdict: offer");
    let (code, out, _) = said(&["policy", "test", &file(&directory, "a.yaml", answer.as_bytes())]);
    assert!(code == 1 && out.contains("error: expected an answer, got Trap"), "{code}: {out}");
}

#[test]
fn what_does_not_load_ends_with_2() {
    let directory = tempfile::tempdir().unwrap();
    let bad = "module: builtin:cpu-percentage\nsettings: {cpuPercent: 150}\ncases:\n- {name: n, at: '2026-03-07', expect: {verdict: offer}}\n";
    let (code, _, error) = said(&["policy", "test", &file(&directory, "bad.yaml", bad.as_bytes())]);
    assert!(code == 2 && error.contains("SettingsInvalid") && error.contains("bad.yaml"), "{code}: {error}");
    let expected = bad.replace("verdict: offer", "error: SettingsInvalid");
    let (code, out, error) = said(&["policy", "test", &file(&directory, "good.yaml", expected.as_bytes())]);
    assert_eq!(code, 0, "it was expected: {out}{error}");
    let (code, _, error) = said(&["policy", "test", "/nowhere/tests.yaml"]);
    assert!(code == 2 && error.contains("/nowhere/tests.yaml"), "{code}: {error}");
    let misspelt = bad.replace("expect: {verdict", "expect: {verdikt");
    let (code, _, error) = said(&["policy", "test", &file(&directory, "m.yaml", misspelt.as_bytes())]);
    assert!(code == 2 && error.contains("verdikt"), "{code}: {error}");
}
