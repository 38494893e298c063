//! Policy modules in ConfigMaps of a worker cluster: good ones decide, bad ones harm nobody but themselves.
//!
//! Every test has a binding, nodes and a Syncer of its own on the shared fleet. Modules come from three places: the
//! built-in ones, `examples/policies/night-gpu` built as its author would, and hostile ones written by hand.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{Timestamp, tz::TimeZone};
use k8s_openapi::api::core::v1::Node;
use kubeocean_api::keys::namespace;
use kubeocean_e2e::leasing::{
    DEADLINE, Leasing, amount, entry, entry_state, generous, is_offered, is_ready, percent,
};
use kubeocean_harness::{Cluster, NodeShape};
use serde_json::{Value, json};
use sha2::Digest as _;

const GPU: &str = "nvidia.com/gpu";

fn is_half(vnode: &Node) -> bool {
    is_ready(vnode) && is_offered(vnode) && amount(vnode, "cpu") == Some("16")
}

/// Puts a module where policies are read from, and returns how an entry names it.
async fn publish(worker: &Cluster, name: &str, module: &[u8]) -> Value {
    publish_in(worker, namespace::POLICIES, name, module).await
}

async fn publish_in(worker: &Cluster, home: &str, name: &str, module: &[u8]) -> Value {
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": home},
        "binaryData": {"policy.wasm": STANDARD.encode(module)},
    });
    worker.apply_objects(vec![config_map]).await.unwrap();
    json!({"configMap": {"name": name}, "digest": format!("sha256:{}", hex::encode(sha2::Sha256::digest(module)))})
}

/// Builds `examples/policies/night-gpu` outside the workspace, as its author would, and returns the module. What was
/// compiled is kept in the user's cache, so that only the first time is slow.
async fn night_gpu() -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let example = root.join("examples/policies/night-gpu");
    let project = tempfile::tempdir().unwrap();
    let sdk = root.join("policy-sdk");
    let manifest = std::fs::read_to_string(example.join("Cargo.toml")).unwrap();
    let manifest = manifest.replace("../../../policy-sdk", sdk.to_str().unwrap());
    assert!(manifest.contains(sdk.to_str().unwrap()), "the example no longer names the SDK by path");
    std::fs::write(project.path().join("Cargo.toml"), manifest).unwrap();
    std::fs::copy(example.join("Cargo.lock"), project.path().join("Cargo.lock")).unwrap();
    std::fs::create_dir(project.path().join("src")).unwrap();
    std::fs::copy(example.join("src/lib.rs"), project.path().join("src/lib.rs")).unwrap();
    // The workspace's toolchain has the target; a project elsewhere would get the user's default one.
    std::fs::copy(root.join("rust-toolchain.toml"), project.path().join("rust-toolchain.toml")).unwrap();

    let target = cache().join("kubeocean/example-policies");
    let mut command = tokio::process::Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let registry = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];
        if (text.starts_with("CARGO") || text.starts_with("RUST"))
            && !registry.iter().any(|kept| text.starts_with(kept))
            && text != "RUSTUP_HOME"
        {
            command.env_remove(&name);
        }
    }
    let started = Instant::now();
    let output = command
        .args(["build", "--quiet", "--target", "wasm32-unknown-unknown", "--release"])
        .env("CARGO_TARGET_DIR", &target)
        .current_dir(project.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("night-gpu built in {:?}", started.elapsed());
    std::fs::read(target.join("wasm32-unknown-unknown/release/night_gpu.wasm")).unwrap()
}

fn cache() -> PathBuf {
    let set = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    set.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"))
}

/// Settings of night-gpu whose night began `since` hours ago (negative: begins) and lasts for six hours, in UTC.
fn night(since: i32) -> Value {
    let hour = i32::from(Timestamp::now().to_zoned(TimeZone::UTC).hour());
    let from = (hour - since).rem_euclid(24);
    json!({"from": from, "until": (from + 6).rem_euclid(24), "percent": 50})
}

#[tokio::test]
async fn a_module_built_by_its_author_decides_within_two_seconds() {
    let module = night_gpu().await;
    println!("night-gpu has {} KiB", module.len() / 1024);
    let shape = NodeShape::new("32", "64Gi").gpus(6);
    let policy = json!({"timeZone": "UTC", "resourceLimits": [percent("cpu", 50)]});
    let leasing = Leasing::start("pol-custom", 3, &shape, policy.clone()).await;
    leasing.all("all GPUs without the module", DEADLINE, |v| is_half(v) && amount(v, GPU) == Some("6")).await;
    let reference = publish(leasing.binding.worker(), "pol-custom-night", &module).await;
    let with = |settings: Value| {
        let mut policy = policy.clone();
        policy["policies"] = json!([{"name": "night-gpu", "module": reference, "settings": settings}]);
        policy
    };

    let attached = Instant::now();
    leasing.edit(with(night(3))).await;
    leasing.all("half of the GPUs at night", DEADLINE, |v| amount(v, GPU) == Some("3")).await;
    let took = attached.elapsed();
    println!("3 vnodes followed a new module {took:?} after it was attached (bound 2 s)");
    assert!(took < generous(Duration::from_secs(2)));
    let policy = leasing
        .policy_until("pol-custom", "night-gpu to be active", |policy| {
            entry_state(policy, "night-gpu") == "Active"
        })
        .await;
    let told = entry(&policy, "night-gpu");
    assert_eq!((&told["module"], &told["version"]), (&json!("night-gpu"), &json!("1.2.0")));
    assert_eq!(told["digest"], reference["digest"]);
    assert_eq!(told["decisions"], json!(["lease"]));

    let edited = Instant::now();
    leasing.edit(with(night(-3))).await;
    leasing.all("no GPUs by day", DEADLINE, |v| amount(v, GPU) == Some("0")).await;
    println!("3 vnodes followed new settings {:?} after the edit", edited.elapsed());
    assert!(leasing.vnodes().await.iter().all(is_half), "cpu is not the module's business");
}
