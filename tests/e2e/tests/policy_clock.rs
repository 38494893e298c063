//! What a vnode publishes changes when an author's module said that it would, by the clock alone (PO-106).
//!
//! The module is a project of `kubeocean policy new` with nothing but the SDK, whose settings name an instant: the example
//! night-gpu knows whole hours, for which no test waits.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kubeocean_api::keys::annotation;
use kubeocean_e2e::commands::printed;
use kubeocean_e2e::leasing::{DEADLINE, Leasing, amount, generous, is_offered, is_ready};
use kubeocean_e2e::modules::publish;
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::NodeShape;
use kubeocean_harness::author::{PolicyProject, lock_of_new, repository};
use serde_json::{Value, json};

const GPU: &str = "nvidia.com/gpu";
/// A name of its own: projects are built in one folder.
const NAME: &str = "opens-at";
const SOURCE: &str = r#"//! Half of the free GPUs is leased from an instant on.

use kubeocean_policy_sdk::prelude::*;

const GPU: &str = "nvidia.com/gpu";

/// Half of the free GPUs is leased from an instant on, and none before.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OpensAt {
    /// When leasing starts
    from: Instant,
}

impl LeasePolicy for OpensAt {
    fn needs(&self) -> Needs {
        Needs::new().available(GPU).cap(GPU)
    }

    fn lease(&self, now: &Now, node: Node<'_>) -> Lease {
        let from = self.from.unix_seconds();
        let open = now.unix_seconds() >= from;
        Lease::offer()
            .cap(GPU, if open { node.available(GPU) / 2 } else { 0 })
            .until((!open).then_some(from))
            .because("OpensAt", "GPUs are leased from an instant on")
    }
}

export_policy!(OpensAt: lease);
"#;

/// The module, made as an author makes it.
async fn built() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join(NAME);
    let sdk = repository().unwrap().join("policy-sdk");
    let new = ["policy", "new", NAME, "--path", folder.to_str().unwrap(), "--sdk", sdk.to_str().unwrap()];
    printed(&new).await;
    std::fs::write(folder.join("src/lib.rs"), SOURCE).unwrap();
    std::fs::write(folder.join("Cargo.lock"), lock_of_new(NAME).unwrap()).unwrap();
    let module = PolicyProject::in_folder(NAME, &folder).build().await.unwrap();
    std::fs::read(module).unwrap()
}

/// Until when a vnode's decision holds, as its annotation says.
fn holds_until(vnode: &Node) -> Option<Timestamp> {
    let decision = vnode.annotations().get(annotation::POLICY_DECISION)?;
    let decision: Value = serde_json::from_str(decision).ok()?;
    decision["validUntil"].as_str()?.parse().ok()
}

#[tokio::test]
async fn an_authors_module_changes_an_amount_at_its_instant_without_any_other_event() {
    let module = built().await;
    let shape = NodeShape::new("32", "64Gi").gpus(6);
    let leasing = Leasing::start("pol-clock", 2, &shape, json!({})).await;
    leasing
        .all("all GPUs without the module", DEADLINE, |v| is_ready(v) && amount(v, GPU) == Some("6"))
        .await;
    let reference = publish(leasing.binding.worker(), "pol-clock-opens", &module).await;

    // Time enough for a busy machine to attach the module and to see what holds before.
    let opens = Timestamp::from_second(Timestamp::now().as_second() + 30).unwrap();
    let settings = json!({"from": opens.to_string()});
    let entry = json!({"name": NAME, "module": reference, "decisions": ["lease"], "settings": settings});
    leasing.edit(json!({"policies": [entry]})).await;
    let closed = |vnode: &Node| amount(vnode, GPU) == Some("0") && holds_until(vnode) == Some(opens);
    leasing.all("no GPUs until the instant", DEADLINE, closed).await;
    let recording = leasing.record().await;
    let seen = Timestamp::now();
    assert!(seen < opens, "this machine took {:?} longer to attach a module", seen.duration_since(opens));

    // Nothing is edited from here on.
    let left = Duration::try_from(opens.duration_since(Timestamp::now())).unwrap_or_default();
    leasing
        .all("half of the GPUs from the instant on", left + DEADLINE, |v| amount(v, GPU) == Some("3"))
        .await;
    let late = Timestamp::now().duration_since(opens);
    println!("2 vnodes followed {late:?} after the instant (bound 2 s)");
    assert!(late >= SignedDuration::ZERO, "they followed {late:?} after it, which is before");
    assert!(late.as_secs_f64() < generous(Duration::from_secs(2)).as_secs_f64(), "{late:?}");
    let states = recording.states();
    let amounts: Vec<_> = states.iter().map(|vnode| amount(vnode, GPU)).collect();
    let expected = [Some("0"), Some("3")];
    assert!(amounts.iter().all(|amount| expected.contains(amount)), "nothing in between: {amounts:?}");
    let open = |vnode: &Node| is_offered(vnode) && holds_until(vnode).is_none();
    leasing.all("an answer without an end", DEADLINE, open).await;
    assert_rights(&leasing.binding);
}
