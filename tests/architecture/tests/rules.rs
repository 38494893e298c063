//! Rules of ARCHITECTURE.md about the source itself.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use kubeocean_architecture::{root, sources};
use serde_json::Value;

/// What each crate that ships may depend on in this workspace. A crate that needs more is cut wrong.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("kubeocean-api", &[]),
    ("kubeocean-runtime", &["api"]),
    ("kubeocean-private-folder", &[]),
    ("kubeocean-engine", &["api", "private-folder"]),
    ("kubeocean-registry", &["private-folder"]),
    ("kubeocean-syncer", &["api", "runtime", "engine", "registry"]),
    ("kubeocean-manager", &["api", "runtime", "engine"]),
    ("kubeocean-proxier", &["api", "runtime"]),
    ("kubeocean", &["api", "runtime", "engine", "registry", "syncer", "manager", "proxier"]),
    ("kubeocean-policy-sdk", &[]),
];

/// Files of the controllers outside `apply.rs` and `watch.rs` that talk to an API server, each with the reason.
const TALKS: &[(&str, &str)] = &[
    ("host/runtime/", "requests, watches, events and elections themselves"),
    ("host/cli/src/", "commands of a person, and the wiring of programs"),
    ("host/syncer/src/leader.rs", "wiring"),
    ("host/syncer/src/session.rs", "wiring"),
    ("host/syncer/src/process.rs", "wiring"),
    ("host/syncer/src/nodes/decide.rs", "carries the clients of the node loop to its apply stage"),
    ("host/syncer/src/bindings/", "marks on the one binding: too small for stages"),
    ("host/syncer/src/objects/mod.rs", "the pair of clients that the stages are given"),
    ("host/syncer/src/pods/priority_class.rs", "makes sure of one object before a creation"),
    ("host/syncer/src/pods/workload.rs", "looks up one ReplicaSet before a creation"),
    ("host/syncer/src/pods/create.rs", "the part of apply that creates"),
    ("host/syncer/src/policies/fetch.rs", "a watch and a read of one ConfigMap or Secret per module"),
    ("host/syncer/src/policies/oci.rs", "a read of one Secret per module"),
    ("host/syncer/src/nodes/measuring.rs", "a read once a minute: metrics cannot be watched"),
    ("host/syncer/src/policy_server/callers.rs", "has callers judged; changes nothing"),
    ("host/manager/src/detach.rs", "walks once over what a worker that is gone left behind"),
    ("host/manager/src/extender/apart.rs", "reads where a Syncer is, once, to ask it"),
    ("host/manager/src/extender/own_token.rs", "asks for the token that is shown to Syncers"),
    ("host/manager/src/process.rs", "wiring"),
    ("host/manager/src/worker/ask.rs", "asks a worker what it grants; changes nothing"),
    ("host/manager/src/worker/attend.rs", "the loop around those questions"),
    ("proxier/src/", "relays requests between clusters; that is its work"),
];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn dependencies_between_crates_point_one_way() {
    let metadata = metadata();
    let allowed: BTreeMap<_, _> = MAY_KNOW.iter().copied().collect();
    let mut seen = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let Some(allowed) = allowed.get(name) else { continue };
        seen.insert(name);
        for dependency in package["dependencies"].as_array().unwrap() {
            let of = dependency["name"].as_str().unwrap();
            let ours = of.strip_prefix("kubeocean-").filter(|_| dependency["kind"].is_null());
            if let Some(of) = ours {
                assert!(allowed.contains(&of), "{name} must not know {of}");
            }
        }
    }
    assert_eq!(seen.len(), MAY_KNOW.len(), "only {seen:?} exist");
}

#[test]
fn the_engine_knows_no_client() {
    let metadata = metadata();
    let engine = metadata["packages"].as_array().unwrap().iter().find(|p| p["name"] == "kubeocean-engine");
    let names: Vec<_> =
        engine.unwrap()["dependencies"].as_array().unwrap().iter().map(|d| &d["name"]).collect();
    assert!(!names.iter().any(|name| *name == "kube" || *name == "tokio"), "{names:?}");
}

#[test]
fn only_watch_apply_and_named_files_talk_to_an_api_server() {
    let mut wrong = Vec::new();
    for source in ["host", "proxier"].iter().flat_map(|folder| sources(folder)) {
        let stage = source.path.ends_with("/apply.rs")
            || source.path.contains("/apply/")
            || source.path.ends_with("/watch.rs");
        if !source.path.contains("/src/") || source.path.contains("/tests") || stage {
            continue;
        }
        let words = ["kube::Client", "kube::Api", "Client,", "Client}", " Client;", "{Api,", "{Api}"];
        let talks = source.code().find(|(_, line)| {
            let import =
                line.trim_start().starts_with("use kube::") && words.iter().any(|w| line.contains(w));
            import || line.contains("kube::Client") || line.contains("kube::Api")
        });
        if let Some((line, _)) = talks
            && !TALKS.iter().any(|(path, _)| source.path.starts_with(path))
        {
            wrong.push(format!("{}:{line}", source.path));
        }
    }
    assert!(wrong.is_empty(), "requests belong into apply.rs and watch.rs: {wrong:#?}");
}

#[test]
fn planners_have_no_hash_order_clock_or_log() {
    let words =
        ["HashMap", "HashSet", "Timestamp::now", "Instant::now", "SystemTime", "tracing::", "async fn"];
    let mut wrong = Vec::new();
    for source in sources("host").iter().filter(|source| source.path.ends_with("/plan.rs")) {
        for (line, text) in source.code() {
            wrong.extend(
                words
                    .iter()
                    .filter(|word| text.contains(**word))
                    .map(|w| format!("{}:{line}: {w}", source.path)),
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// API-1104. Tests write keys out, so that a constant with a slip in it is noticed.
#[test]
fn keys_are_written_in_one_crate() {
    let prefix = format!("{}/", "kubeocean.io");
    let mut wrong = Vec::new();
    for source in ["host", "proxier", "xtask"].iter().flat_map(|folder| sources(folder)) {
        let own = source.path.starts_with("host/api/");
        let test = source.path.contains("/tests/") || source.path.ends_with("/tests.rs");
        if own || test {
            continue;
        }
        let literals = source.code().filter(|(_, line)| line.contains(&prefix));
        wrong.extend(literals.map(|(line, text)| format!("{}:{line}: {}", source.path, text.trim())));
    }
    assert!(wrong.is_empty(), "keys belong into kubeocean_api::keys: {wrong:#?}");
}

#[test]
fn every_file_is_compiled() {
    let folders = ["host", "proxier", "policy-sdk", "builtin-policies", "xtask", "tests"];
    let all: BTreeMap<String, String> =
        folders.iter().flat_map(|folder| sources(folder)).map(|source| (source.path, source.text)).collect();
    let mut orphans = Vec::new();
    for path in all.keys().filter(|path| path.contains("/src/")) {
        let (folder, file) = path.rsplit_once('/').unwrap();
        let stem = file.trim_end_matches(".rs");
        if matches!(stem, "lib" | "main") {
            continue;
        }
        let (folder, module) = match stem {
            "mod" => folder.rsplit_once('/').unwrap(),
            _ => (folder, stem),
        };
        // The parent of src/a/b.rs is src/a.rs, src/a/mod.rs, or in src/ the root of the crate.
        let parents = [
            format!("{folder}.rs"),
            format!("{folder}/mod.rs"),
            format!("{folder}/lib.rs"),
            format!("{folder}/main.rs"),
        ];
        let declared = parents
            .iter()
            .filter_map(|parent| all.get(parent))
            .any(|text| text.lines().any(|line| line.trim_end().ends_with(&format!("mod {module};"))));
        if !declared {
            orphans.push(path);
        }
    }
    assert!(orphans.is_empty(), "no module declares {orphans:#?}");
}

/// What strangers depend on: a crates.io page of one of these says what it is, and `cargo publish` takes it as it is.
const PUBLISHED: &[&str] = &["kubeocean-policy-sdk"];

#[test]
fn published_crates_can_be_published_and_no_other_is() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    // `[]` is `publish = false`.
    let public = packages.iter().filter(|package| package["publish"] != serde_json::json!([]));
    let names: Vec<_> = public.clone().map(|package| package["name"].as_str().unwrap()).collect();
    assert_eq!(names, PUBLISHED);
    for package in public {
        let name = package["name"].as_str().unwrap();
        for field in ["description", "license", "repository", "documentation", "readme", "rust_version"] {
            assert!(package[field].as_str().is_some_and(|text| !text.is_empty()), "{name} has no {field}");
        }
        let texts = |field: &str| -> Vec<String> {
            package[field].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        // What crates.io accepts.
        let keywords = texts("keywords");
        assert!((1..=5).contains(&keywords.len()), "{name}: {keywords:?}");
        assert!(keywords.iter().all(|keyword| keyword.len() <= 20), "{name}: {keywords:?}");
        assert!((1..=5).contains(&texts("categories").len()), "{name} has no category");
        for dependency in package["dependencies"].as_array().unwrap() {
            // Those of tests are left out if they have no version.
            if dependency["kind"] == "dev" {
                continue;
            }
            let of = dependency["name"].as_str().unwrap();
            assert_ne!(dependency["req"], "*", "{name} needs {of} of any version");
            let elsewhere =
                dependency["source"].as_str().is_some_and(|source| source.starts_with("registry+"));
            assert!(elsewhere || PUBLISHED.contains(&of), "{name} needs {of}, which is not published");
        }
    }
}

#[test]
fn a_published_crate_holds_what_its_users_need_and_no_more() {
    for name in PUBLISHED {
        let output = Command::new(env!("CARGO"))
            .args(["package", "--list", "--allow-dirty", "--offline", "--locked", "--package", name])
            .current_dir(root())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let list = String::from_utf8(output.stdout).unwrap();
        let files: BTreeSet<&str> = list.lines().collect();
        for needed in
            ["Cargo.toml", "LICENSE", "README.md", "src/lib.rs", "wit/policy.wit", "bindings/policy.rs"]
        {
            assert!(files.contains(needed), "{name} lacks {needed}: {list}");
        }
        let folders = ["src/", "wit/", "bindings/", "component-types/"];
        let more =
            files.iter().filter(|file| file.contains('/') && !folders.iter().any(|of| file.starts_with(of)));
        assert_eq!(more.count(), 0, "{name} holds more than it needs: {list}");
    }
}

/// First cells of the rows of the first table in a section of a specification.
fn first_cells(text: &str) -> impl Iterator<Item = &str> {
    let table =
        text.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    table.skip(2).filter_map(|row| row.trim_start_matches('|').split('|').next()).map(str::trim)
}

/// The tables of the specifications that say which test makes which acceptance check, and which one a row of the recovery
/// matrix.
#[test]
fn acceptance_checks_name_tests_that_exist() {
    let (mut files, mut tests) = (0, 0);
    for (name, recovery) in
        [("bottomup", Some("18. Recovery")), ("topdown", Some("16. Recovery")), ("policy", None)]
    {
        let path = format!("docs/spec/{name}.md");
        let text = std::fs::read_to_string(root().join(&path)).unwrap();
        let (checks, table) = text.split_once("Where the acceptance checks are made").expect("its table");
        let (_, checks) = checks.rsplit_once("Acceptance checks\n").expect("its checks");
        let numbers: Vec<&str> = checks.lines().filter_map(number_of_item).collect();
        assert!(numbers.len() > 10, "{path}: {numbers:?}");
        for number in numbers {
            assert!(table.contains(&format!("\n| {number} | ")), "{path}: check {number} names no test");
        }
        if let Some(recovery) = recovery {
            let (_, matrix) = text.split_once(recovery).expect("its recovery matrix");
            let (_, made) = table.split_once("| Row of section").expect("the tests of its rows");
            let rows: Vec<&str> = first_cells(matrix).collect();
            assert!(rows.len() >= 10, "{path}: {rows:?}");
            for row in rows {
                let named = |line: &str| line.starts_with(&format!("| {row} |")) && line.contains(".rs");
                assert!(made.lines().any(named), "{path}: nothing tests the recovery from {row:?}");
            }
        }
        let mut file = String::new();
        for named in table.split('`').skip(1).step_by(2) {
            let is_test = named.contains('_')
                && named.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_test {
                tests += 1;
                assert!(
                    file.contains(&format!("fn {named}(")),
                    "{path}: no test {named} in the file named before it"
                );
            } else if std::path::Path::new(named).extension().is_some_and(|of| of == "rs") {
                files += 1;
                let place =
                    if named.contains('/') { named.to_owned() } else { format!("tests/e2e/tests/{named}") };
                file = std::fs::read_to_string(root().join(&place))
                    .unwrap_or_else(|error| panic!("{path}: {place}: {error}"));
            }
        }
    }
    assert!(files > 60 && tests > 80, "{files} files and {tests} tests are named");
}

/// `12` of `12. text`.
fn number_of_item(line: &str) -> Option<&str> {
    let (number, _) = line.split_once(". ")?;
    (!number.is_empty() && number.chars().all(|c| c.is_ascii_digit())).then_some(number)
}
