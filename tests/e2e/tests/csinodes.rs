//! CSINodes of worker nodes and their copies (acceptance check 16 of bottomup.md): before and after the vnode, changed,
//! replaced, removed, somebody else's, and a worker that does not let us see them.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kubeocean_api::keys::{annotation, label};
use kubeocean_e2e::leasing::{DEADLINE, Leasing, amount, is_ready, percent};
use kubeocean_e2e::pods::{Objects, core_path, text};
use kubeocean_e2e::rights::{LimitedAccount, assert_rights};
use kubeocean_harness::{AuditEvent, NodeShape, shared_site, wait_until};
use serde_json::{Value, json};

const ALL: &str = "/apis/storage.k8s.io/v1/csinodes";

fn path(name: &str) -> String {
    format!("{ALL}/{name}")
}

fn csi_node(name: &str, drivers: Value) -> Value {
    let mut node = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSINode",
        "metadata": {"name": name, "labels": {"zone": "a"}, "annotations": {"team": "storage"}},
        "spec": {},
    });
    node["spec"]["drivers"] = drivers;
    node
}

fn disk(node_id: &str) -> Value {
    json!({"name": "disk.csi", "nodeID": node_id, "topologyKeys": ["zone"], "allocatable": {"count": 16}})
}

fn file() -> Value {
    json!({"name": "file.csi", "nodeID": "f", "topologyKeys": ["zone"]})
}

fn lease(share: i64) -> Value {
    json!({"resourceLimits": [percent("cpu", share)]})
}

/// Both clusters as their administrator sees them.
struct World<'a> {
    leasing: &'a Leasing,
    worker: Objects,
    computing: Objects,
}

impl<'a> World<'a> {
    async fn of(leasing: &'a Leasing) -> Self {
        Self {
            leasing,
            worker: Objects::of(leasing.binding.worker()).await,
            computing: Objects::of(leasing.binding.computing()).await,
        }
    }

    fn copy(&self, node: &str) -> String {
        path(&self.leasing.vnode_name(node))
    }

    /// Waits until the copy names these drivers by their node IDs.
    async fn mirrored(&self, node: &str, node_ids: &[&str]) -> Value {
        let look = |copy: &Value| {
            let drivers = copy["spec"]["drivers"].as_array().cloned().unwrap_or_default();
            let shown: Vec<_> = drivers.iter().map(|driver| text(&driver["nodeID"])).collect();
            (shown == node_ids).then(|| copy.clone())
        };
        self.computing.wait(&format!("a copy with {node_ids:?}"), &self.copy(node), look).await
    }

    /// A driver cannot be changed, so whoever runs it makes the CSINode anew.
    async fn replace(&self, node: &str, drivers: Value) {
        self.worker.delete(&path(node), None).await;
        self.worker.create(ALL, &csi_node(node, drivers)).await;
    }

    async fn told(&self, reason: &str, words: &str) {
        let binding = self.leasing.binding.name();
        let events =
            format!("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{binding}");
        wait_until(&format!("the event {reason}"), DEADLINE, async || {
            let events = self.computing.list(&events).await;
            let told = events
                .iter()
                .any(|event| event["reason"] == reason && text(&event["message"]).contains(words));
            if told {
                Ok(())
            } else {
                Err(events.iter().map(|event| event["message"].clone()).collect::<Vec<_>>())
            }
        })
        .await;
    }
}

fn uid(object: &Value) -> String {
    text(&object["metadata"]["uid"]).to_owned()
}

#[tokio::test]
async fn a_copy_follows_its_original_while_there_is_a_vnode() {
    let site = shared_site().await;
    let (worker, computing) = (Objects::of(site.fleet().worker()).await, Objects::of(site.computing()).await);
    worker.create(ALL, &csi_node("mirror-0", json!([disk("i-0")]))).await;
    worker.create(ALL, &csi_node("mirror-2", json!([disk("i-2")]))).await;
    let foreign = computing.create(ALL, &csi_node("vnode-mirror-mirror-2", json!([file()]))).await;
    let mut leasing = Leasing::start("mirror", 3, &NodeShape::new("8", "16Gi"), lease(50)).await;
    let vnodes = leasing.all("three vnodes", DEADLINE, is_ready).await;
    let world = World::of(&leasing).await;

    // There before the vnode.
    let copy = world.mirrored("mirror-0", &["i-0"]).await;
    let vnode: &Node =
        vnodes.iter().find(|vnode| vnode.name_any() == "vnode-mirror-mirror-0").expect("a vnode");
    let original = worker.get(&path("mirror-0")).await.expect("the original");
    assert_eq!(copy["spec"], original["spec"]);
    let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": vnode.name_any(), "uid": vnode.uid()}]);
    assert_eq!(copy["metadata"]["ownerReferences"], owner);
    let labels = json!({
        "zone": "a", label::MANAGED_BY: "kubeocean", label::CLUSTER_BINDING: "mirror",
        label::PHYSICAL_CLUSTER_ID: "mirror", label::PHYSICAL_NODE_NAME: "mirror-0",
    });
    assert_eq!(copy["metadata"]["labels"], labels);
    let annotations = &copy["metadata"]["annotations"];
    assert_eq!(annotations[annotation::PHYSICAL_CSINODE_UID], original["metadata"]["uid"]);
    assert_eq!(
        (text(&annotations["team"]), text(&annotations[annotation::PHYSICAL_NODE_NAME])),
        ("storage", "mirror-0")
    );

    // Made after the vnode.
    assert_eq!(computing.get(&world.copy("mirror-1")).await, None);
    worker.create(ALL, &csi_node("mirror-1", json!([disk("i-1")]))).await;
    world.mirrored("mirror-1", &["i-1"]).await;

    // Somebody else's CSINode has the name.
    world.told("VirtualNodeConflict", "vnode-mirror-mirror-2").await;

    // A driver more is an update, a changed one makes the copy anew, whether we see it happen or not.
    worker.merge(&path("mirror-0"), &json!({"spec": {"drivers": [disk("i-0"), file()]}})).await;
    let updated = world.mirrored("mirror-0", &["i-0", "f"]).await;
    assert_eq!(uid(&updated), uid(&copy));
    world.replace("mirror-0", json!([disk("i-9")])).await;
    let before = world.mirrored("mirror-0", &["i-9"]).await;
    drop(world);
    leasing.syncer.kill();
    worker.delete(&path("mirror-0"), None).await;
    worker.create(ALL, &csi_node("mirror-0", json!([disk("i-10")]))).await;
    leasing.syncer.restart().expect("a restarted Syncer");
    leasing.syncer.wait_ready().await;
    let world = World::of(&leasing).await;
    let after = world.mirrored("mirror-0", &["i-10"]).await;
    assert_ne!(uid(&after), uid(&before));

    // What is changed by hand is put right, also the label it is watched by.
    let by_syncer = |event: &AuditEvent| {
        event.is_write()
            && event.object_ref.resource == "csinodes"
            && event.user.username.ends_with("kubeocean-syncer")
            && event.object_ref.name.starts_with("vnode-mirror-mirror-")
    };
    let log = leasing.binding.computing();
    let mark = log.audit_mark().expect("an audit log");
    let edit = json!({"metadata": {"labels": {label::CLUSTER_BINDING: null, "zone": "b", "users": "x"}}});
    computing.merge(&world.copy("mirror-0"), &edit).await;
    let right = |copy: &Value| (copy["metadata"]["labels"] == labels).then(|| copy.clone());
    let healed = computing.wait("labels to be restored", &world.copy("mirror-0"), right).await;
    assert_eq!(uid(&healed), uid(&after));

    // An event that changes nothing we show costs no write.
    log.audit_events_until(mark, 1, by_syncer).await.expect("an audit log");
    let mark = log.audit_mark().expect("an audit log");
    worker
        .merge(&path("mirror-0"), &json!({"metadata": {"annotations": {"projectcalico.org/x": "y"}}}))
        .await;
    worker.merge(&path("mirror-1"), &json!({"metadata": {"labels": {"zone": "c"}}})).await;
    let moved = |copy: &Value| (copy["metadata"]["labels"]["zone"] == "c").then_some(());
    computing.wait("the next change", &world.copy("mirror-1"), moved).await;
    let written = log.audit_events_until(mark, 1, by_syncer).await.expect("an audit log");
    let written: Vec<_> = written.iter().map(|event| event.object_ref.name.as_str()).collect();
    assert_eq!(written, ["vnode-mirror-mirror-1"]);

    // The original goes, and then the vnodes. What is not ours is as it was.
    worker.delete(&path("mirror-1"), None).await;
    computing.wait_gone(&world.copy("mirror-1")).await;
    leasing.delete_policy("mirror").await;
    leasing.withdrawn("mirror-0").await;
    computing.wait_gone(&world.copy("mirror-0")).await;
    assert!(worker.get(&path("mirror-0")).await.is_some());
    leasing.withdrawn("mirror-2").await;
    let untouched = computing.get(&path("vnode-mirror-mirror-2")).await.expect("the foreign CSINode");
    assert_eq!(untouched["metadata"]["resourceVersion"], foreign["metadata"]["resourceVersion"]);
    assert_rights(&leasing.binding);
}

#[tokio::test]
async fn a_worker_that_hides_its_csinodes_is_leased_all_the_same() {
    let leasing = Leasing::start("mirror-rights", 1, &NodeShape::new("8", "16Gi"), lease(50)).await;
    let world = World::of(&leasing).await;
    world.worker.create(ALL, &csi_node("mirror-rights-0", json!([disk("i-0")]))).await;
    world.mirrored("mirror-rights-0", &["i-0"]).await;

    let limited = LimitedAccount::without(&leasing.binding, "csinodes").await;
    let mount = leasing.binding.mount_namespace();
    let full = leasing.binding.worker().service_account_kubeconfig(mount, "kubeocean-syncer").await;
    leasing.binding.write_kubeconfig(&limited.kubeconfig).await.expect("a changed Secret");
    world.told("FeatureDisabled", "csinodes").await;
    world.replace("mirror-rights-0", json!([disk("i-1")])).await;
    // Its vnode is looked at after that, and with it the copy.
    leasing.edit(lease(25)).await;
    leasing.one("mirror-rights-0", "cpu 2", |vnode| amount(vnode, "cpu") == Some("2")).await;
    let (mark, began) = (leasing.binding.computing().audit_mark().expect("an audit log"), Instant::now());
    wait_until("two rounds of renewed Leases", DEADLINE, async || began.elapsed() > Duration::from_secs(21))
        .await;
    let events = leasing.binding.computing().audit_events_since(mark).expect("an audit log");
    let touched = |event: &&AuditEvent| {
        event.is_write()
            && event.object_ref.resource == "csinodes"
            && event.object_ref.name.contains("mirror-rights")
    };
    assert_eq!(events.iter().filter(touched).count(), 0);
    let copy = world.computing.get(&world.copy("mirror-rights-0")).await.expect("the copy stays");
    assert_eq!(copy["spec"]["drivers"][0]["nodeID"], "i-0");

    // With the right it goes on, and what happened meanwhile is caught up with.
    leasing.binding.write_kubeconfig(&full.expect("a kubeconfig")).await.expect("a changed Secret");
    world.mirrored("mirror-rights-0", &["i-1"]).await;
    let secret = core_path("kubeocean-system", "secrets", &leasing.binding.secret_name());
    assert!(world.computing.get(&secret).await.is_some());
    assert_rights(&leasing.binding);
}
