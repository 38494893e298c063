//! Policy modules in ConfigMaps of a worker cluster: good ones decide, bad ones harm nobody but themselves.
//!
//! Every test has a binding, nodes and a Syncer of its own on the shared fleet. Modules come from three places: the
//! built-in ones, `examples/policies/night-gpu` built as its author would, and hostile ones written by hand.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::time::{Duration, Instant};

use jiff::{Timestamp, tz::TimeZone};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use kubeocean_api::keys::{annotation, condition_type, namespace, taint};
use kubeocean_e2e::leasing::{
    DEADLINE, Leasing, amount, condition, entry, entry_error, entry_state, generous, is_offered, is_ready,
    is_withheld_gently, percent, policy_condition, summary, taint_of,
};
use kubeocean_e2e::modules::{publish, publish_in};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_engine::builtin;
use kubeocean_harness::NodeShape;
use kubeocean_harness::author::example_module;
use kubeocean_hostile_policies::{Guest, digest, guest};
use serde_json::{Value, json};

const GPU: &str = "nvidia.com/gpu";

/// A legacy-free policy of these entries.
fn entries(entries: impl IntoIterator<Item = Value>) -> Value {
    json!({"policies": entries.into_iter().collect::<Vec<_>>()})
}

/// Half of the cpu by the built-in module.
fn half() -> Value {
    half_by(&json!({"builtin": "cpu-percentage"}))
}

fn half_by(module: &Value) -> Value {
    json!({"name": "half", "module": module, "settings": {"limits": [{"resource": "cpu", "percent": 50}]}})
}

/// What must not change when only the place a module comes from does. Left out is what the control plane of the
/// computing cluster adds to any node, and the generation of the edit.
fn essence(vnode: &Node) -> Value {
    let mut annotations = vnode.annotations().clone();
    for key in [annotation::EXPECTED_METADATA, annotation::LAST_SYNC_TIME, "node.alpha.kubernetes.io/ttl"] {
        annotations.remove(key);
    }
    let decision = annotations.remove(annotation::POLICY_DECISION).unwrap_or_default();
    let mut decision: Value = serde_json::from_str(&decision).unwrap();
    decision.as_object_mut().unwrap().remove("generation");
    let taints: Vec<Taint> =
        vnode.spec.iter().flat_map(|spec| spec.taints.iter().flatten().cloned()).collect();
    let taints: Vec<_> =
        taints.iter().filter(|taint| !taint.key.starts_with("node.kubernetes.io/")).collect();
    json!({
        "decision": decision,
        "name": vnode.name_any(), "uid": vnode.uid(), "labels": vnode.labels(), "annotations": annotations,
        "taints": taints,
        "allocatable": vnode.status.as_ref().and_then(|status| status.allocatable.clone()),
        "capacity": vnode.status.as_ref().and_then(|status| status.capacity.clone()),
        "lease": condition(vnode, condition_type::LEASE),
    })
}

fn is_half(vnode: &Node) -> bool {
    is_ready(vnode) && is_offered(vnode) && amount(vnode, "cpu") == Some("16")
}

/// Waits until the entry runs the module with this digest.
async fn runs(leasing: &Leasing, name: &str, digest: &Value) {
    let expected = digest.clone();
    leasing
        .policy_until(leasing.binding.name(), &format!("{name} to run {digest}"), |policy| {
            entry_state(policy, name) == "Active"
                && (expected.is_null() || entry(policy, name)["digest"] == expected)
        })
        .await;
}

#[tokio::test]
async fn a_builtin_from_a_config_map_changes_no_vnode() {
    let leasing = Leasing::start("pol-swap", 3, &NodeShape::new("32", "64Gi"), entries([half()])).await;
    leasing.all("half of three nodes", DEADLINE, is_half).await;
    runs(&leasing, "half", &Value::Null).await;
    let recording = leasing.record().await;
    let before: Vec<_> = leasing.vnodes().await.iter().map(essence).collect();
    let versions: Vec<_> = leasing.vnodes().await.iter().map(ResourceExt::resource_version).collect();

    // The same code under another digest, so that it can be seen which of the two runs.
    let module = [builtin("cpu-percentage").unwrap(), b"\x00\x05\x04copy"].concat();
    let reference = publish(leasing.binding.worker(), "pol-swap-cpu", &module).await;
    leasing.edit(entries([half_by(&reference)])).await;
    let policy = leasing
        .policy_until("pol-swap", "the module from the ConfigMap", |policy| {
            entry_state(policy, "half") == "Active" && entry(policy, "half")["digest"] == reference["digest"]
        })
        .await;
    assert_eq!(entry(&policy, "half")["module"], "cpu-percentage");
    assert_eq!(policy_condition(&policy, "PoliciesReady").unwrap().0, "True");
    assert_eq!(policy_condition(&policy, "Pinned").unwrap().0, "True");
    // It decides: another share, from the same module, with other settings.
    leasing.all("half of three nodes", DEADLINE, is_half).await;
    let vnodes = leasing.vnodes().await;
    assert_eq!(before, vnodes.iter().map(essence).collect::<Vec<_>>());
    for state in recording.states() {
        assert!(before.contains(&essence(&state)), "in between: {}", summary(&state));
    }
    let after: Vec<_> = vnodes.iter().map(ResourceExt::resource_version).collect();
    println!("vnodes written by the swap: {}", versions.iter().zip(&after).filter(|(a, b)| a != b).count());

    let quarter = json!({
        "name": "half", "module": reference,
        "settings": {"limits": [{"resource": "cpu", "percent": 25}]},
    });
    leasing.edit(entries([quarter])).await;
    leasing
        .all("a quarter by the module from the ConfigMap", DEADLINE, |v| amount(v, "cpu") == Some("8"))
        .await;
    // Settings the module refuses: the last good version keeps deciding.
    let nonsense = json!({"name": "half", "module": reference, "settings": {"limits": "all of it"}});
    leasing.edit(entries([nonsense])).await;
    let policy = leasing
        .policy_until("pol-swap", "the settings to be refused", |policy| {
            policy_condition(policy, "Valid")
                .is_some_and(|(status, reason, _)| (status, reason) == ("False", "SettingsInvalid"))
        })
        .await;
    assert_eq!(entry_state(&policy, "half"), "Degraded");
    assert_eq!(entry_error(&policy, "half"), "SettingsInvalid");
    let vnodes = leasing.vnodes().await;
    assert!(vnodes.iter().all(|v| is_offered(v) && amount(v, "cpu") == Some("8")), "{vnodes:#?}");
    assert_rights(&leasing.binding);
}

/// Settings of night-gpu whose night began `since` hours ago (negative: begins) and lasts for six hours, in UTC.
fn night(since: i32) -> Value {
    let hour = i32::from(Timestamp::now().to_zoned(TimeZone::UTC).hour());
    let from = (hour - since).rem_euclid(24);
    json!({"from": from, "until": (from + 6).rem_euclid(24), "percent": 50})
}

#[tokio::test]
async fn a_module_built_by_its_author_decides_within_two_seconds() {
    let module = example_module("night-gpu").await.unwrap();
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
    assert_rights(&leasing.binding);
}

/// An entry that is skipped while it fails, so that what is left is the other entries' decision.
fn ignored(name: &str, module: &Value) -> Value {
    json!({"name": name, "module": module, "onError": "Ignore"})
}

#[tokio::test]
async fn hostile_modules_harm_nobody_else() {
    let mut leasing =
        Leasing::start("pol-hostile", 3, &NodeShape::new("32", "64Gi"), entries([half()])).await;
    leasing.all("half of three nodes", DEADLINE, is_half).await;
    let worker = leasing.binding.worker();
    let process = leasing.syncer.process().id();

    // Bad from the first call: refused at load, each with its code.
    let bad = [
        ("loops", guest().with("LEASE", "(call $forever)"), "TrialFailed"),
        ("traps", guest().with("LEASE", "(unreachable)"), "TrialFailed"),
        ("grows", guest().with("LEASE", "(call $grow_forever)"), "TrialFailed"),
        ("start-loops", guest().with("START", "(start $forever)"), "DescribeFailed"),
        (
            "wasi",
            guest().with("IMPORTS", "(import \"wasi:random/random@0.2.0\" \"get\" (func))"),
            "WrongWorld",
        ),
    ];
    let mut list = vec![half()];
    for (name, module, _) in &bad {
        let reference = publish(worker, &format!("pol-hostile-{name}"), &module.bytes()).await;
        list.push(ignored(name, &reference));
    }
    leasing.edit(entries(list)).await;
    let policy = leasing
        .policy_until("pol-hostile", "all bad modules to be refused", |policy| {
            bad.iter().all(|(name, ..)| entry_state(policy, name) == "Invalid")
        })
        .await;
    for (name, _, code) in &bad {
        assert_eq!(entry_error(&policy, name), *code, "{}", entry(&policy, name)["lastError"]);
    }
    assert_eq!(entry_state(&policy, "half"), "Active");
    let (status, reason, message) = policy_condition(&policy, "PoliciesReady").unwrap();
    assert_eq!((status, reason), ("False", "EntryFailed"));
    assert!(message.contains("loops (Invalid)"), "{message}");
    leasing.all("the good entry's half", DEADLINE, is_half).await;

    quarantined_for_two_nodes(&leasing).await;

    let recovered = Instant::now();
    leasing.edit(entries([half()])).await;
    leasing.all("half of three nodes", DEADLINE, is_half).await;
    println!("3 vnodes open {:?} after the bad module was removed", recovered.elapsed());
    assert_eq!(leasing.syncer.process().id(), process, "the same process all the time");
    let (code, _) = leasing.syncer.health("/healthz").await.unwrap();
    assert_eq!(code, 200);
    assert_rights(&leasing.binding);
}

/// The resource that makes [`touchy`] trap.
const POISON: &str = "a.b/c";

/// A module that is good until a node has [`POISON`], which no node of a trial has.
fn touchy() -> Guest {
    // The fact it reads instead of `node.created`, written where the guest has that name.
    let fact = format!("available/{POISON}");
    let mut name = [0; 16];
    name[..fact.len()].copy_from_slice(fact.as_bytes());
    let halves = [&name[..8], &name[8..]].map(|half| i64::from_le_bytes(half.try_into().unwrap()));
    let needs = format!(
        "(i64.store (i32.const 1088) (i64.const {})) (i64.store (i32.const 1096) (i64.const {})) \
         (i32.store (i32.const 132) (i32.const {}))",
        halves[0],
        halves[1],
        fact.len()
    );
    let lease = "(if (call $any (local.get $args)) (then (unreachable)))";
    let search = "(func $any (param $args i32) (result i32) (local $row i32) (block $no (loop $next \
         (br_if $no (i32.ge_u (local.get $row) (call $rows (local.get $args)))) \
         (if (i64.gt_s (call $number (local.get $args) (local.get $row)) (i64.const 0)) (then (return (i32.const 1)))) \
         (local.set $row (i32.add (local.get $row) (i32.const 1))) (br $next))) (i32.const 0))";
    guest().with("NEEDS", &needs).with("LEASE", lease).with("START", search)
}

/// A module that begins to trap: the nodes it traps for keep what they publish and are not emptied; the others stay open.
async fn quarantined_for_two_nodes(leasing: &Leasing) {
    let reference = publish(leasing.binding.worker(), "pol-hostile-touchy", &touchy().bytes()).await;
    // No onError: LastKnown.
    leasing.edit(entries([half(), json!({"name": "touchy", "module": reference})])).await;
    runs(leasing, "touchy", &reference["digest"]).await;
    leasing.all("half of three nodes", DEADLINE, is_half).await;

    let workers = leasing.worker_nodes().await;
    let poisoned = json!({"status": {"capacity": {POISON: "1"}, "allocatable": {POISON: "1"}}});
    for node in &leasing.nodes[..2] {
        let patch = Patch::Merge(&poisoned);
        workers.patch_status(node, &PatchParams::default(), &patch).await.expect("a poisoned node");
    }
    let policy = leasing
        .policy_until("pol-hostile", "quarantine after three faults", |policy| {
            entry_state(policy, "touchy") == "Quarantined"
        })
        .await;
    assert_eq!(entry_error(&policy, "touchy"), "Trap");
    assert!(entry(&policy, "touchy")["errors"].as_i64().unwrap() > 0);
    assert_eq!(policy_condition(&policy, "PoliciesReady").unwrap().0, "False");
    for node in &leasing.nodes[..2] {
        let vnode = leasing
            .one(node, "a condition that tells of the failure", |v| {
                condition(v, condition_type::LEASE).is_some_and(|(_, reason)| reason == "ModuleFailed")
            })
            .await;
        assert_eq!(amount(&vnode, "cpu"), Some("16"), "{}", summary(&vnode));
        let closed = taint_of(&vnode, taint::OUT_OF_TIME_WINDOWS);
        assert!(
            closed.is_none() || is_withheld_gently(&vnode),
            "an error evicts nobody: {}",
            summary(&vnode)
        );
    }
    // `onError` holds for every node of an entry in quarantine (PO-802): here the last good answer stands, open and whole.
    let other = leasing.vnode(&leasing.nodes[2]).await.unwrap();
    assert_eq!(amount(&other, "cpu"), Some("16"), "{}", summary(&other));
    assert!(taint_of(&other, taint::OUT_OF_TIME_WINDOWS).is_none(), "{}", summary(&other));
}

/// The binding's owner learns of it too, by condition and event.
async fn told_on_the_binding(leasing: &Leasing) {
    use k8s_openapi::api::core::v1::Event;
    use kube::{Api, api::ListParams};
    let events: Api<Event> = Api::namespaced(leasing.binding.computing().client().await.unwrap(), "default");
    let name = leasing.binding.name();
    let fields = format!("involvedObject.kind=ClusterBinding,involvedObject.name={name},reason=ModuleFailed");
    let message = leasing
        .until("an event on the binding", DEADLINE, async || {
            events.list(&ListParams::default().fields(&fields)).await.unwrap().items.pop()?.message
        })
        .await;
    assert!(message.contains(name), "{message}");
    let binding = leasing.bindings().await.get(name).await.unwrap();
    let conditions = binding.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let resolved = conditions.into_iter().find(|one| one["type"] == "PoliciesResolved").unwrap();
    assert_eq!((&resolved["status"], &resolved["reason"]), (&json!("False"), &json!("ModuleNotFound")));
}

#[tokio::test]
async fn modules_that_cannot_be_had_are_named() {
    let leasing = Leasing::start("pol-missing", 2, &NodeShape::new("32", "64Gi"), entries([half()])).await;
    leasing.all("half of two nodes", DEADLINE, is_half).await;
    let worker = leasing.binding.worker();
    let module = guest().cap(4000).bytes();
    let there = publish(worker, "pol-missing-there", &module).await;
    let mount = leasing.binding.mount_namespace();
    publish_in(worker, mount, "pol-missing-users", &module).await;
    let right = digest(&module);
    let wrong = digest(b"another module");
    let list = [
        half(),
        ignored("absent", &json!({"configMap": {"name": "pol-missing-absent"}, "digest": right})),
        ignored("other-bytes", &json!({"configMap": there["configMap"], "digest": wrong})),
        ignored(
            "users",
            &json!({"configMap": {"name": "pol-missing-users", "namespace": mount}, "digest": right}),
        ),
        ignored("no-such", &json!({"builtin": "no-such-module"})),
        ignored("unpinned", &json!({"configMap": there["configMap"]})),
    ];
    leasing.edit(entries(list.clone())).await;
    let codes = [
        ("absent", "ModuleNotFound"),
        ("other-bytes", "DigestMismatch"),
        ("users", "FetchForbidden"),
        ("no-such", "ModuleNotFound"),
        ("unpinned", "DigestMismatch"),
    ];
    let policy = leasing
        .policy_until("pol-missing", "all to be named", |policy| {
            codes.iter().all(|(name, _)| !entry_error(policy, name).is_empty())
        })
        .await;
    for (name, code) in codes {
        assert_eq!(entry_error(&policy, name), code, "{}", entry(&policy, name));
        assert_ne!(entry_state(&policy, name), "Active");
    }
    assert_eq!(entry(&policy, "other-bytes")["desiredDigest"], wrong);
    let (status, reason, message) = policy_condition(&policy, "PoliciesReady").unwrap();
    assert_eq!((status, reason), ("False", "EntryFailed"));
    assert!(codes.iter().all(|(name, _)| message.contains(name)), "{message}");
    assert_eq!(policy_condition(&policy, "Valid").unwrap().0, "True");
    leasing.all("the good entry's half", DEADLINE, is_half).await;
    told_on_the_binding(&leasing).await;

    // The ConfigMap appears: one watch event, and the entry decides.
    publish(worker, "pol-missing-absent", &module).await;
    let appeared = Instant::now();
    runs(&leasing, "absent", &json!(right)).await;
    leasing.all("the late module's cap", DEADLINE, |v| is_offered(v) && amount(v, "cpu") == Some("4")).await;
    println!("2 vnodes followed a late module {:?} after it appeared", appeared.elapsed());
    // And goes: what is pinned runs on.
    worker
        .kubectl_text(&["delete", "configmap", "pol-missing-absent", "-n", namespace::POLICIES])
        .await
        .unwrap();
    let mut deny = list;
    deny[2]["onError"] = json!("Deny");
    leasing.edit(entries(deny)).await;
    // An entry that must decide and cannot closes the nodes, with what they publish, and evicts nobody.
    let closed = leasing
        .all("closed vnodes", DEADLINE, |v| {
            is_withheld_gently(v) && condition(v, condition_type::LEASE) == Some(("False", "ModuleFailed"))
        })
        .await;
    for vnode in &closed {
        assert_eq!(amount(vnode, "cpu"), Some("4"), "{}", summary(vnode));
    }
    let policy = leasing
        .policy_until("pol-missing", "the failure to be told", |policy| {
            policy_condition(policy, "Applied")
                .is_some_and(|(status, reason, _)| (status, reason) == ("False", "ModuleFailed"))
        })
        .await;
    assert_eq!(entry_state(&policy, "absent"), "Active", "{}", entry(&policy, "absent"));
    assert_rights(&leasing.binding);
}
