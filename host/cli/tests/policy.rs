//! `kubeocean policy` without any cluster, as an author of policies uses it: from `new` to a module that passed `check`.
//!
//! Exit codes are the interface of scripts: 1 the module misbehaves, 2 it does not load or the command is wrong.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod binary;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use binary::{file, json, said};
use kubeocean_harness::author::{PolicyProject, example_module, lock_of_new, repository};
use kubeocean_hostile_policies::{Guest, digest, guest};
use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

fn module_file(directory: &TempDir, guest: &Guest) -> String {
    file(directory, "module.wasm", &guest.bytes())
}

fn new(directory: &TempDir, name: &str, kind: &str) -> PathBuf {
    let folder = directory.path().join(name);
    let sdk = repository().unwrap().join("policy-sdk");
    let (code, out, error) = said(&[
        "policy",
        "new",
        name,
        "--kind",
        kind,
        "--path",
        folder.to_str().unwrap(),
        "--sdk",
        sdk.to_str().unwrap(),
    ]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("cargo test"), "{out}");
    std::fs::write(folder.join("Cargo.lock"), lock_of_new(name).unwrap()).unwrap();
    folder
}

#[tokio::test]
async fn a_new_policy_builds_passes_its_tests_and_is_a_module_that_checks() {
    let directory = tempfile::tempdir().unwrap();
    let folder = new(&directory, "cheap-nights", "lease");
    let project = PolicyProject::in_folder("cheap-nights", &folder);
    project.cargo(&["fmt", "--check"]).await.unwrap();
    let tests = project.test().await.unwrap();
    assert!(tests.contains("3 passed"), "{tests}");
    let module = project.build().await.unwrap();
    let module = module.to_str().unwrap();
    let rlp = folder.join("rlp.yaml");
    let rlp = rlp.to_str().unwrap();

    let (code, out, error) = said(&["policy", "check", module, "-f", rlp]);
    assert_eq!(code, 0, "{out}{error}");
    for part in [
        "cheap-nights 0.1.0",
        "reads available/cpu; caps cpu",
        "1000 random nodes",
        "pin the module with digest: sha256:",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert!(!out.contains("FAIL"), "{out}");

    let cases = std::fs::read_to_string(folder.join("cases.yaml")).unwrap();
    let cases = cases.replace("target/wasm32-unknown-unknown/release/cheap_nights.wasm", module);
    let (code, out, error) = said(&["policy", "test", &file(&directory, "cases.yaml", cases.as_bytes())]);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("cheap-nights/nothing-by-day") && out.contains("2 passed, 0 failed"), "{out}");

    let (code, _, error) = said(&["policy", "check", module]);
    assert_eq!(code, 2);
    assert!(error.contains("SettingsInvalid") && error.contains("-f rlp.yaml or --settings"), "{error}");

    // Pinned to its digest the same file is complete, and with another digest it is refused.
    let bytes = std::fs::read(module).unwrap();
    let text = std::fs::read_to_string(rlp).unwrap();
    let pinned = text.replace("# digest: sha256:...", &format!("digest: {}", digest(&bytes)));
    let (code, out, _) =
        said(&["policy", "check", module, "-f", &file(&directory, "pinned.yaml", pinned.as_bytes())]);
    assert_eq!((code, out.contains("note")), (0, false), "{out}");
    let other = text.replace("# digest: sha256:...", &format!("digest: {}", digest(b"other")));
    let (code, _, error) =
        said(&["policy", "check", module, "-f", &file(&directory, "other.yaml", other.as_bytes())]);
    assert_eq!(code, 2);
    assert!(error.contains("DigestMismatch"), "{error}");

    let (code, shown) =
        json(&["policy", "inspect", module, "-ojson", "--settings", "{percent: 5, from: 0, until: 0}"]);
    assert_eq!(code, 0);
    assert_eq!((&shown["name"], &shown["world"]), (&"cheap-nights".into(), &"lease-policy".into()));
    assert_eq!(shown["digest"], digest(&bytes));
    assert_eq!(shown["reads"]["facts"], serde_json::json!(["available/cpu"]));
    assert_eq!(shown["settingsSchema"]["properties"]["percent"]["maximum"], 100);
    let (code, text, _) = said(&["policy", "inspect", module]);
    assert_eq!(code, 0);
    assert!(text.contains("kubeocean:policy/lease-policy") && text.contains("give --settings"), "{text}");

    // A second time nobody's work is overwritten.
    let (code, _, error) = said(&["policy", "new", "cheap-nights", "--path", folder.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(error.contains("exists already"), "{error}");
}

/// The SDK as `cargo publish` would upload it, unpacked.
fn packaged_sdk() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("published-sdk");
    let packed = Command::new(env!("CARGO"))
        .args(["package", "--quiet", "--package", "kubeocean-policy-sdk", "--no-verify", "--allow-dirty"])
        .args(["--offline", "--locked", "--target-dir"])
        .arg(&target)
        .current_dir(repository().unwrap())
        .output()
        .unwrap();
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let name = concat!("kubeocean-policy-sdk-", env!("CARGO_PKG_VERSION"));
    let folder = target.join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    // Files of a package have a date of long ago: cargo would take what it built of others before.
    let unpacked = Command::new("tar")
        .args(["--extract", "--gzip", "--touch", "--file"])
        .arg(target.join("package").join(format!("{name}.crate")))
        .current_dir(&target)
        .status()
        .unwrap();
    assert!(unpacked.success());
    folder
}

#[tokio::test]
async fn a_new_policy_builds_with_the_sdk_that_is_published() {
    let directory = tempfile::tempdir().unwrap();
    // A name of its own: projects are built in one folder, and another test builds cheap-nights.
    let folder = directory.path().join("shared-nights");
    let (code, _, error) = said(&["policy", "new", "shared-nights", "--path", folder.to_str().unwrap()]);
    assert_eq!(code, 0, "{error}");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let named = concat!("kubeocean-policy-sdk = \"", env!("CARGO_PKG_VERSION"), "\"");
    assert!(manifest.contains(named), "{manifest}");
    // Instead of the registry: the package itself, with nothing of the repository around it.
    let patch = format!("[patch.crates-io]\nkubeocean-policy-sdk = {{ path = {:?} }}\n", packaged_sdk());
    std::fs::create_dir(folder.join(".cargo")).unwrap();
    std::fs::write(folder.join(".cargo/config.toml"), patch).unwrap();
    std::fs::write(folder.join("Cargo.lock"), lock_of_new("shared-nights").unwrap()).unwrap();
    let project = PolicyProject::in_folder("shared-nights", &folder);
    let tests = project.test().await.unwrap();
    assert!(tests.contains("3 passed"), "{tests}");
    let module = project.build().await.unwrap();
    let rlp = folder.join("rlp.yaml");
    let (code, out, error) =
        said(&["policy", "check", module.to_str().unwrap(), "-f", rlp.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}{error}");
}

#[tokio::test]
async fn policies_for_placement_build_and_load() {
    for (name, kind, world) in [("own-pods", "place", "place-policy"), ("own-nights", "both", "policy")] {
        let directory = tempfile::tempdir().unwrap();
        let folder = new(&directory, name, kind);
        let project = PolicyProject::in_folder(name, &folder);
        project.cargo(&["fmt", "--check"]).await.unwrap();
        project.test().await.unwrap();
        let module = project.build().await.unwrap();
        let module = module.to_str().unwrap();
        let rlp = folder.join("rlp.yaml");
        let (code, out, error) = said(&["policy", "check", module, "-f", rlp.to_str().unwrap()]);
        assert_eq!(code, 0, "{out}{error}");
        assert!(out.contains("placing reads none of vnodes, pod.namespace of pods"), "{out}");
        assert!(out.contains("1000 random vnodes for 40 random pods"), "{out}");
        assert_eq!(out.contains("promises"), kind == "both", "{out}");
        let (code, shown) = json(&["policy", "inspect", module, "-o", "json"]);
        assert_eq!((code, &shown["world"]), (0, &world.into()));
        let cases = std::fs::read_to_string(folder.join("cases.yaml")).unwrap();
        let written = format!("target/wasm32-unknown-unknown/release/{}.wasm", name.replace('-', "_"));
        let cases = cases.replace(&written, module);
        let path = file(&directory, "cases.yaml", cases.as_bytes());
        let (code, out, error) = said(&["policy", "test", &path]);
        assert!(code == 0 && out.contains("2 passed, 0 failed"), "{code}: {out}{error}");
        let other = cases.replace("namespace: default", "namespace: ci");
        let (code, out, _) = said(&["policy", "test", &file(&directory, "other.yaml", other.as_bytes())]);
        assert!(code == 1 && out.contains("place.fit: expected reject, got accept"), "{code}: {out}");
        let (code, out, error) =
            said(&["policy", "bench", module, "--settings", "{percent: 50, namespaces: [ci]}"]);
        // The policy that only places knows no percent.
        let settings = if kind == "place" { "{namespaces: [ci]}" } else { "{percent: 50, namespaces: [ci]}" };
        assert_eq!(code, if kind == "place" { 2 } else { 0 }, "{out}{error}");
        let (code, out, error) = said(&["policy", "bench", module, "--settings", settings]);
        assert!(code == 0 && out.contains("place 5000 candidates "), "{code}: {out}{error}");
        assert_eq!(out.contains("lease -"), kind == "place", "{out}");
    }
}

#[test]
fn what_a_new_policy_consists_of_is_also_told_as_json() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("cheap-nights");
    let (code, made) =
        json(&["policy", "new", "cheap-nights", "--path", folder.to_str().unwrap(), "-o", "json"]);
    assert_eq!((code, &made["folder"]), (0, &folder.to_str().unwrap().into()), "{made:#}");
    let files: Vec<&str> =
        made["files"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert!(files.contains(&"src/lib.rs") && files.contains(&"cases.yaml"), "{files:?}");
    for path in files {
        assert!(folder.join(path).is_file(), "{path}");
    }
    let (code, out, error) =
        said(&["policy", "new", "cheap-nights", "--path", folder.to_str().unwrap(), "-o", "json"]);
    assert_eq!((code, out.as_str()), (2, ""), "{error}");
}

#[rstest]
#[case("night-gpu", "{from: 22, until: 7, percent: 50}", "caps nvidia.com/gpu")]
#[case(
    "keep-headroom",
    "{reserve: [{resource: cpu, percent: 10}, {resource: memory, quantity: 4Gi}], closeAbovePercent: 60}",
    "used/memory"
)]
#[case("drain-window", "{aheadMinutes: 30}", "annotation/maintenance/from")]
#[case("tidal-usage", "{headroomPercent: 10}", "usage/cpu")]
#[case(
    "price-window",
    "{below: 3, hourly: [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4]}",
    "reads none"
)]
#[case(
    "maintenance-calendar",
    "{windows: [{name: patching, cron: '0 2 * * SUN', minutes: 240}]}",
    "reads none"
)]
#[tokio::test]
async fn the_examples_load_are_pure_and_keep_their_promises(
    #[case] name: &str,
    #[case] settings: &str,
    #[case] shown: &str,
) {
    let directory = tempfile::tempdir().unwrap();
    let module = file(&directory, "example.wasm", &example_module(name).await.unwrap());
    for seed in ["1", "2"] {
        let (code, out, error) = said(&["policy", "check", &module, "--settings", settings, "--seed", seed]);
        assert_eq!(code, 0, "{out}{error}");
        assert!(out.contains(shown) && out.contains("promises"), "{out}");
    }
    attaches(name, &module);
}

/// The `rlp.yaml` of an example runs the module, and names all that it decides: an entry that does not counts as one that
/// places while its module has never run.
fn attaches(name: &str, module: &str) {
    let rlp = repository().unwrap().join("examples/policies").join(name).join("rlp.yaml");
    let (code, out, error) = said(&["policy", "check", module, "-f", rlp.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}{error}");
    let policy: Value = serde_saphyr::from_str(&std::fs::read_to_string(&rlp).unwrap()).unwrap();
    let entry = &policy["spec"]["policies"][0];
    assert_eq!(entry["module"]["configMap"]["name"], name);
    let (code, shown) = json(&["policy", "inspect", module, "-o", "json"]);
    assert_eq!((code, &entry["decisions"]), (0, &shown["decisions"]));
}

#[rstest]
#[case(
    "bin-packing",
    "{resources: [cpu, nvidia.com/gpu], upToPercent: 90}",
    "request/nvidia.com/gpu",
    "allocatable/nvidia.com/gpu, available/nvidia.com/gpu of vnodes, request/cpu, request/nvidia.com/gpu of pods"
)]
#[case(
    "namespace-tenancy",
    "{label: team, tenants: {ci: platform, builds: platform}}",
    "label/team",
    "placing reads label/team of vnodes, pod.namespace of pods"
)]
#[tokio::test]
async fn the_examples_that_only_place_load_and_read_what_their_settings_name(
    #[case] name: &str,
    #[case] settings: &str,
    #[case] fact: &str,
    #[case] read: &str,
) {
    let directory = tempfile::tempdir().unwrap();
    let module = file(&directory, "example.wasm", &example_module(name).await.unwrap());
    for seed in ["1", "2"] {
        let (code, out, error) = said(&["policy", "check", &module, "--settings", settings, "--seed", seed]);
        assert_eq!(code, 0, "{out}{error}");
        assert!(out.contains(name) && out.contains(read), "{read}: {out}");
        assert!(out.contains("1000 random vnodes for 40 random pods, at both stages"), "{out}");
    }
    let (code, shown) = json(&["policy", "inspect", &module, "-o", "json", "--settings", settings]);
    assert_eq!((code, &shown["world"]), (0, &"place-policy".into()), "{shown:#}");
    let facts = shown["reads"]["facts"].as_array().unwrap();
    assert!(facts.iter().any(|read| read == fact), "{fact}: {shown:#}");
    attaches(name, &module);
}

#[rstest]
#[case::time_windows("builtin:time-windows", r#"{"windows": [{"start": "22:00", "end": "06:00"}]}"#)]
#[case::cpu_percentage("builtin:cpu-percentage", r#"{"limits": [{"resource": "cpu", "percent": 50}]}"#)]
fn built_in_modules_check(#[case] module: &str, #[case] settings: &str) {
    let (code, report) = json(&["policy", "check", module, "--settings", settings, "-o", "json"]);
    assert_eq!(code, 0, "{report:#}");
    let steps = report["steps"].as_array().unwrap();
    assert!(steps.len() >= 6 && steps.iter().all(|step| step["ok"] == true), "{report:#}");
}

#[rstest]
#[case::no_module(None, "{}", 2, "NotAPolicy", "module")]
#[case::wasi(
    Some(guest().with("IMPORTS", "(import \"wasi:clocks/wall-clock@0.2.0\" \"now\" (func (param i32)))")),
    "{}", 2, "WrongWorld: import wasi:clocks/wall-clock@0.2.0 is not allowed", "module"
)]
#[case::describe_traps(Some(guest().with("DESCRIBE", "(unreachable)")), "{}", 2, "DescribeFailed", "module")]
#[case::rejects_settings(
    Some(guest().with("CREATE", "(unreachable)")), "{}", 2, "SettingsRejected", "settings"
)]
#[case::unknown_fact(
    Some(guest().with("NEEDS", "(i32.store8 (i32.const 1088) (i32.const 120))")), "{}", 2, "UnknownFact", "facts"
)]
#[case::loops(Some(guest().with("LEASE", "(call $forever)")), "{}", 2, "TrialFailed: Timeout", "trial")]
#[case::impure(
    Some(guest().with("LEASE", "(call $cap_all (local.get $args) (i64.extend_i32_u (call $rows (local.get $args))))")),
    "{}", 1, "NotPure", "purity"
)]
#[case::breaks_its_promise(
    Some(guest().with("LEASE", "(call $cap_all (local.get $args) (i64.div_s (i64.load offset=8 (local.get $args)) (i64.const 3600)))")),
    "{}", 1, "NotPure", "promises"
)]
fn a_bad_module_fails_at_its_step_with_its_code(
    #[case] guest: Option<Guest>,
    #[case] settings: &str,
    #[case] code: i32,
    #[case] error: &str,
    #[case] step: &str,
) {
    let directory = tempfile::tempdir().unwrap();
    let module = match &guest {
        Some(guest) => module_file(&directory, guest),
        None => file(&directory, "module.wasm", b"#!/bin/sh\n"),
    };
    let args = ["policy", "check", module.as_str(), "--settings", settings];
    let (found, out, told) = said(&args);
    assert_eq!(found, code, "{out}{told}");
    assert!(told.contains(error), "{told}");
    assert!(out.lines().any(|line| line.starts_with("FAIL") && line.contains(step)), "{out}");
    let (found, report) = json(&[&args[..], &["-o", "json"]].concat());
    assert_eq!(found, code);
    let last = report["steps"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["ok"], &last["step"]), (&false.into(), &step.into()));
}

/// What only a policy with raised limits, or a Syncer with another bound, can run is work for an author like any other.
#[test]
fn a_module_that_needs_more_than_usual_is_checked_with_the_limits_of_its_entry() {
    let directory = tempfile::tempdir().unwrap();
    let pages = r#"(memory (export "memory") 1024)"#;
    let module = module_file(&directory, &guest().with("MEMORY", pages));
    let (code, out, error) = said(&["policy", "check", &module]);
    assert_eq!(code, 2, "{out}");
    assert!(error.contains("Memory: ") && error.contains("--limits"), "{error}");
    let limits = "{memoryMiB: 128}";
    for command in ["check", "bench"] {
        let (code, out, error) = said(&["policy", command, &module, "--limits", limits]);
        assert_eq!(code, 0, "{command}: {out}{error}");
    }
    let entry = format!(
        "{{name: large, module: {{configMap: {{name: m, key: m}}, digest: {}}}, limits: {limits}}}",
        digest(&std::fs::read(&module).unwrap())
    );
    let policy = format!(
        "{{apiVersion: cloud.tencent.com/v1beta1, kind: ResourceLeasingPolicy, metadata: {{name: p}}, \
         spec: {{cluster: c, policies: [{entry}]}}}}"
    );
    let policy = file(&directory, "rlp.yaml", policy.as_bytes());
    let (code, out, error) = said(&["policy", "check", &module, "-f", &policy]);
    assert_eq!(code, 0, "{out}{error}");
    let (code, out, error) = said(&["policy", "inspect", &module]);
    assert_eq!(code, 0, "{out}{error}");
    let (code, _, error) = said(&["policy", "check", &module, "--limits", "{memoryMiB: 129}"]);
    assert!(code == 2 && error.contains("memoryMiB is 1 to 128"), "{error}");

    // A custom section of 9 MiB, whose length takes four bytes.
    let length = 9_u32 << 20;
    let leb = [length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128, length >> 21];
    let mut large = guest().bytes().to_vec();
    large.push(0);
    large.extend(leb.map(|byte| u8::try_from(byte).unwrap()));
    large.extend([1, b'n']);
    large.resize(large.len() + (9 << 20) - 2, 0);
    let large = file(&directory, "large.wasm", &large);
    let (code, out, error) = said(&["policy", "check", &large]);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("--policy-max-module-size"), "{out}");
}

#[test]
fn bad_settings_are_refused_by_member() {
    let settings = r#"{"limits": [{"resource": "cpu", "percent": 150}]}"#;
    let (code, out, error) = said(&["policy", "check", "builtin:cpu-percentage", "--settings", settings]);
    assert_eq!(code, 2, "{out}");
    assert!(error.contains("SettingsInvalid") && error.contains("150"), "{error}");
    let (code, _, error) = said(&["policy", "inspect", "builtin:cpu-percentage", "--settings", settings]);
    assert_eq!(code, 2);
    assert!(error.contains("SettingsInvalid"), "{error}");
}

#[rstest]
#[case::no_such_file(&["check", "/nowhere/m.wasm"], "ModuleNotFound: cannot read /nowhere/m.wasm")]
#[case::no_such_builtin(&["inspect", "builtin:x"], "cpu-percentage, time-windows, node-labels")]
#[case::registry(&["check", "oci://policies/p:1"], "must begin with the registry's host")]
#[case::no_such_policy_file(&["check", "builtin:node-labels", "-f", "/nowhere/rlp.yaml"], "/nowhere/rlp.yaml")]
#[case::bad_name(&["new", "Night_GPU"], "Night_GPU")]
#[case::no_sdk(&["new", "p", "--sdk", "/nowhere"], "no SDK in /nowhere")]
#[case::unknown_flag(&["check", "builtin:node-labels", "--sttings", "{}"], "--sttings")]
#[case::no_module(&["check"], "MODULE")]
#[case::no_kubeconfig(&["explain", "n"], "/nowhere/kubeconfig")]
#[case::kind(&["new", "p", "--kind", "both-of-them"], "both-of-them")]
fn a_wrong_command_ends_with_2_and_says_what_is_wrong(#[case] args: &[&str], #[case] expected: &str) {
    let (code, out, error) = said(&[&["policy"], args].concat());
    assert_eq!(code, 2, "{out}{error}");
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_cluster_that_does_not_answer_ends_with_3() {
    let directory = tempfile::tempdir().unwrap();
    // Bound and not listening: nothing else can take the port, and nobody answers.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    drop(taken);
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: c}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}'}}}}]\nusers: [{{name: c, user: {{token: t}}}}]\n"
    );
    let kubeconfig = file(&directory, "kubeconfig", kubeconfig.as_bytes());
    let (code, _, error) = said(&["policy", "explain", "n", "--kubeconfig", &kubeconfig]);
    assert_eq!(code, 3, "{error}");
    let (code, _, error) = said(&["worker", "kubeconfig", "--kubeconfig", &kubeconfig, "--secret", "s"]);
    assert_eq!(code, 3, "{error}");
    let (code, _, error) =
        said(&["policy", "explain", "n", "--kubeconfig", &kubeconfig, "--context", "other"]);
    assert_eq!(code, 2);
    assert!(error.contains("no context \"other\"") && error.contains(": c"), "{error}");
}

#[test]
fn as_a_kubectl_plugin_it_is_the_same_program() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = directory.path().join("kubectl-kubeocean");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kubeocean"), &plugin).unwrap();
    let output = Command::new(&plugin).args(["policy", "check", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && help.contains("Usage: kubectl kubeocean policy check"), "{help}");
}

#[test]
fn a_kubeconfig_for_nobody_is_not_made() {
    let (code, _, error) = said(&["worker", "kubeconfig"]);
    assert_eq!(code, 2);
    assert!(error.contains("--binding-name"), "{error}");
    let plain = ["worker", "kubeconfig", "--secret", "s", "--server", "http://203.0.113.7"];
    let (code, _, error) = said(&plain);
    assert_eq!(code, 2);
    assert!(error.contains("https://"), "{error}");
}
