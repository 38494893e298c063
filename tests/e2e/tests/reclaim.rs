//! Taking back what was leased: forced reclaim with and without grace, withdrawal with pods, bindings that end, are given
//! up, or share a worker.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::time::{Duration, Instant};

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use kubeocean_api::keys::{annotation, condition_type, finalizer, label, namespace, taint};
use kubeocean_e2e::exposition::Page;
use kubeocean_e2e::leasing::{
    DEADLINE, Leasing, amount, condition, generous, is_offered, is_withheld_gently, merge, percent, taint_of,
};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_e2e::users::{Users, told};
use kubeocean_harness::{BindingSpec, Cluster, NodeShape, second_computing, shared_site, wait_until};
use serde_json::{Value, json};

/// Half of the cpu, with what is said besides.
fn half(mut fields: Value) -> Value {
    fields["resourceLimits"] = json!([percent("cpu", 50)]);
    fields
}

/// A policy that is closed today and reclaims.
fn closed(grace: Option<u32>) -> Value {
    let day = (Timestamp::now().to_zoned(TimeZone::UTC) + 3.days()).strftime("%A").to_string();
    let mut policy = half(json!({
        "timeZone": "UTC", "forceReclaim": true,
        "timeWindows": [{"start": "00:00", "end": "23:59", "days": [day]}],
    }));
    if let Some(seconds) = grace {
        policy["gracefulReclaimPeriodSeconds"] = json!(seconds);
    }
    policy
}

fn effect<'n>(vnode: &'n Node, key: &str) -> Option<&'n str> {
    taint_of(vnode, key).map(|taint| taint.effect.as_str())
}

/// Pods that the Syncer's process took from their vnodes, in one mode.
async fn reclaimed_pods(leasing: &Leasing, mode: &str) -> Option<f64> {
    let page = Page::parse(&leasing.syncer.metrics().await.unwrap());
    let labels = [("clusterbinding", leasing.binding.name()), ("mode", mode)];
    page.value("kubeocean_syncer_reclaim_pods_total", &labels)
}

#[tokio::test]
async fn a_forced_reclaim_waits_for_its_grace_and_spares_what_tolerates_it() {
    const GRACE: u32 = 20;
    let shape = NodeShape::new("8", "16Gi");
    let mut leasing = Leasing::start("reclaim-force", 1, &shape, half(json!({}))).await;
    let node = leasing.nodes[0].clone();
    let vnode = leasing.vnode_name(&node);
    leasing.one(&node, "an open vnode", is_offered).await;
    let users = Users::of(&leasing).await;
    let batch = users.run("batch", &vnode, &[]).await;
    let patient = users.run("patient", &vnode, &[taint::OUT_OF_TIME_WINDOWS]).await;

    // Graceful: no new pods at once, eviction after the grace period, also when the Syncer starts anew in between.
    leasing.edit(closed(Some(GRACE))).await;
    let shown = leasing.one(&node, "a closing vnode", is_withheld_gently).await;
    let since: Timestamp = shown.annotations()[annotation::RECLAIM_SINCE].parse().unwrap();
    assert!(users.stays("batch", &batch).await);
    drop(users);
    leasing.syncer.restart().unwrap();
    leasing.syncer.wait_ready().await;
    let users = Users::of(&leasing).await;
    let execute = |vnode: &Node| effect(vnode, taint::OUT_OF_TIME_WINDOWS) == Some("NoExecute");
    let shown = leasing
        .until("eviction", DEADLINE, async || {
            let shown = leasing.vnode(&node).await.ok_or("no vnode")?;
            if execute(&shown) {
                return Ok(shown);
            }
            let stays = users.stays("batch", &batch).await;
            let early = Timestamp::now() < since + jiff::SignedDuration::from_secs(i64::from(GRACE));
            assert!(!early || stays, "evicted within the grace period");
            Err("still within the grace period")
        })
        .await;
    let waited = Timestamp::now().duration_since(since).as_secs_f64();
    println!("evicted {waited:.1} s after the window closed, the grace period is {GRACE} s");
    assert!(waited >= f64::from(GRACE) - 1.0, "{waited}");
    let late = Duration::from_secs_f64((waited - f64::from(GRACE)).max(0.0));
    assert!(late < generous(Duration::from_secs(2)), "{late:?} late");
    assert_eq!(shown.annotations()[annotation::RECLAIM_SINCE], since.to_string(), "kept over the restart");
    users.gone("batch").await;
    assert!(users.stays("patient", &patient).await, "it tolerates the taint");
    told(&leasing, "default", &vnode, "LeaseReclaimed").await;
    told(&leasing, &users.home, "batch", "LeaseReclaimed").await;

    // Open again: no trace is left, and pods run again.
    leasing.edit(half(json!({}))).await;
    let shown = leasing.one(&node, "an open vnode", is_offered).await;
    assert!(!shown.annotations().contains_key(annotation::RECLAIM_SINCE));
    users.run("batch", &vnode, &[]).await;

    // By force: at once.
    leasing.edit(closed(None)).await;
    leasing.one(&node, "a closed vnode", execute).await;
    users.gone("batch").await;
    assert!(users.stays("patient", &patient).await);
    // Of the process that was started within the grace period: `batch` twice, and nobody else.
    assert_eq!(reclaimed_pods(&leasing, "reclaimed").await, Some(2.0));
    assert_eq!(reclaimed_pods(&leasing, "drained").await, Some(0.0));
    assert_rights(&leasing.binding);
}

/// A condition of the binding: status and reason.
async fn binding_condition(leasing: &Leasing, of_type: &str) -> Option<(String, String)> {
    let binding = leasing.bindings().await.get_opt(leasing.binding.name()).await.unwrap()?;
    let conditions = binding.data["status"]["conditions"].as_array()?.clone();
    let found = conditions.into_iter().find(|condition| condition["type"] == of_type)?;
    Some((found["status"].as_str()?.to_owned(), found["reason"].as_str()?.to_owned()))
}

async fn binding_says(leasing: &Leasing, status: &str, reason: &str) {
    leasing
        .until(&format!("PoliciesResolved {status} {reason}"), DEADLINE, async || {
            let shown = binding_condition(leasing, "PoliciesResolved").await;
            if shown == Some((status.to_owned(), reason.to_owned())) { Ok(()) } else { Err(shown) }
        })
        .await;
}

/// API-109: our finalizer was on the binding before the first vnode was made.
fn held_first(leasing: &Leasing, vnode: &str) {
    let events = leasing.binding.computing().audit_events().unwrap();
    let first = |verb: &str, resource: &str, name: &str| {
        let ours = events.iter().filter(|event| {
            let object = &event.object_ref;
            event.verb == verb
                && object.resource == resource
                && object.name == name
                && event.response_status.code < 300
        });
        ours.map(|event| event.request_received_timestamp.clone()).min().unwrap()
    };
    let held = first("patch", "clusterbindings", leasing.binding.name());
    assert!(held < first("create", "nodes", vnode), "the binding could have gone before its vnode");
}

#[tokio::test]
async fn a_withdrawal_drains_is_called_off_and_ends() {
    let shape = NodeShape::new("8", "16Gi");
    // Announces five minutes of grace for the case that the lease ends.
    let policy = half(json!({"forceReclaim": true, "gracefulReclaimPeriodSeconds": 300}));
    let leasing = Leasing::start("reclaim-drain", 1, &shape, policy.clone()).await;
    let node = leasing.nodes[0].clone();
    let vnode = leasing.vnode_name(&node);
    let first = leasing.one(&node, "an open vnode", is_offered).await;
    let users = Users::of(&leasing).await;
    let batch = users.run("batch", &vnode, &[]).await;
    binding_says(&leasing, "True", "Resolved").await;
    leasing
        .until("the binding's numbers", Duration::from_secs(90), async || {
            let binding = leasing.bindings().await.get("reclaim-drain").await.unwrap();
            let status = &binding.data["status"];
            if status["nodes"] == 1 && status["pods"] == 1 { Ok(()) } else { Err(status.to_string()) }
        })
        .await;

    held_first(&leasing, &vnode);

    // The policy goes at once, its node waits for the grace period it promised.
    let deleted = Instant::now();
    leasing.delete_policy("reclaim-drain").await;
    let draining =
        |vnode: &Node| condition(vnode, condition_type::DRAINING).map(|(_, reason)| reason.to_owned());
    let shown = leasing
        .one(&node, "a draining vnode", |vnode| draining(vnode).as_deref() == Some("PolicyLost"))
        .await;
    let took = deleted.elapsed();
    println!("a vnode with pods was tainted {took:?} after its policy was deleted (bound 2 s)");
    assert!(took < generous(Duration::from_secs(2)), "{took:?}");
    assert_eq!(effect(&shown, taint::VNODE_DELETING), Some("NoSchedule"));
    assert_eq!(shown.spec.as_ref().unwrap().unschedulable, Some(true));
    leasing
        .until("the policy to go", DEADLINE, async || leasing.policy("reclaim-drain").await.is_none())
        .await;
    binding_says(&leasing, "False", "NoPolicy").await;
    assert!(users.stays("batch", &batch).await);
    assert!(shown.metadata.deletion_timestamp.is_none());

    // Somebody takes off the labels it is watched by meanwhile: they come back, and it is the same vnode.
    let marks = json!({"metadata": {"labels": {label::MANAGED_BY: null, label::CLUSTER_BINDING: null}}});
    merge(&leasing.virtual_nodes().await, &vnode, marks).await;
    let marked = |vnode: &Node| {
        let shown = vnode.labels();
        shown.contains_key(label::MANAGED_BY) && shown.contains_key(label::CLUSTER_BINDING)
    };
    let shown = leasing.one(&node, "its labels", marked).await;
    assert_eq!((shown.uid(), draining(&shown).as_deref()), (first.uid(), Some("PolicyLost")));

    // Called off.
    leasing.edit(policy).await;
    let shown =
        leasing.one(&node, "an open vnode", |vnode| is_offered(vnode) && draining(vnode).is_none()).await;
    assert_eq!((shown.uid(), effect(&shown, taint::VNODE_DELETING)), (first.uid(), None));
    assert!(users.stays("batch", &batch).await);

    // A user deletes the vnode: its pods end, it goes, and it comes back because the node is still leased.
    leasing.binding.computing().kubectl_text(&["delete", "node", "--wait=false", &vnode]).await.unwrap();
    users.gone("batch").await;
    assert_eq!(reclaimed_pods(&leasing, "drained").await, Some(1.0));
    let second =
        leasing.one(&node, "a new vnode", |vnode| vnode.uid() != first.uid() && is_offered(vnode)).await;

    // The worker node is made anew under its name: so is the vnode.
    let workers = leasing.worker_nodes().await;
    workers.delete(&node, &DeleteParams::default()).await.unwrap();
    leasing.withdrawn(&node).await;
    leasing.binding.worker().create_nodes("reclaim-drain", 1, &shape).await.unwrap();
    let third = leasing.one(&node, "a vnode of the new node", is_offered).await;
    assert_ne!(third.uid(), second.uid());
    let made_anew = workers.get(&node).await.unwrap().uid();
    assert_eq!(third.labels().get(label::PHYSICAL_NODE_UID), made_anew.as_ref());

    // It becomes a vnode of somebody else: it is leased no more, and loses our mark.
    merge(&workers, &node, json!({"metadata": {"labels": {label::TYPE: "virtual-kubelet"}}})).await;
    leasing.withdrawn(&node).await;
    leasing
        .until("the worker node to lose its mark", DEADLINE, async || {
            !workers.get(&node).await.unwrap().labels().contains_key(label::POLICY_APPLIED)
        })
        .await;
    assert_eq!(reclaimed_pods(&leasing, "drained").await, Some(1.0), "nobody else ran there");
    assert_eq!(reclaimed_pods(&leasing, "reclaimed").await, Some(0.0));
    let log = leasing.syncer.log();
    for line in ["create vnode", "patch taints", "delete vnode", "release vnode"] {
        assert!(log.contains(line), "the log names what was done: {line}");
    }
    assert_rights(&leasing.binding);
}

async fn lease(leasing: &Leasing, node: &str) -> Option<Lease> {
    let client = leasing.binding.computing().client().await.unwrap();
    let leases: Api<Lease> = Api::namespaced(client, namespace::NODE_LEASE);
    leases.get_opt(&leasing.vnode_name(node)).await.unwrap()
}

/// Waits until the vnode's Lease was renewed after `since`.
async fn renewed_since(leasing: &Leasing, node: &str, since: Timestamp) -> Lease {
    leasing
        .until("a renewed Lease", DEADLINE, async || {
            let lease = lease(leasing, node).await.ok_or("no Lease")?;
            let at = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
            if at.is_some_and(|at| at > since) { Ok(lease) } else { Err("not renewed") }
        })
        .await
}

/// Puts a Lease of this name there that is somebody else's, in place of one that may be there.
async fn plant_lease(computing: &Cluster, vnode: &str) -> Lease {
    let client = computing.client().await.unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    // An owner that lives: the garbage collector leaves the Lease alone.
    let owner = namespaces.get(namespace::NODE_LEASE).await.unwrap();
    let foreign: Lease = serde_json::from_value(json!({
        "metadata": {"name": vnode, "ownerReferences": [
            {"apiVersion": "v1", "kind": "Namespace", "name": owner.name_any(), "uid": owner.uid()},
        ]},
        "spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": 3600},
    }))
    .unwrap();
    let leases: Api<Lease> = Api::namespaced(client, namespace::NODE_LEASE);
    wait_until("a Lease of somebody else", DEADLINE, async || {
        match leases.delete(vnode, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if !status.is_not_found() => return Err(status.to_string()),
            _ => {}
        }
        leases.create(&PostParams::default(), &foreign).await.map_err(|error| error.to_string())
    })
    .await
}

/// Waits until a planted Lease names its vnode as the holder, and looks whether it is wholly the vnode's.
async fn taken_over(leasing: &Leasing, vnode: &Node, planted: &Lease) {
    let held = leasing
        .until("the Lease to be held by the vnode", DEADLINE, async || {
            let held = lease(leasing, &leasing.nodes[0]).await.ok_or(None)?;
            let holder = held.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
            if holder == vnode.metadata.name { Ok(held) } else { Err(holder) }
        })
        .await;
    assert_eq!(held.uid(), planted.uid(), "put right, not made anew");
    let spec = held.spec.unwrap();
    assert_eq!(spec.lease_duration_seconds, Some(40));
    assert!(spec.renew_time.is_some());
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": vnode.name_any(), "uid": vnode.uid()});
    assert_eq!(json!(held.metadata.owner_references), json!([owner]));
}

/// BU section 10: with another's owner a Lease would go with that one, or at once if that one is gone.
#[tokio::test]
async fn a_lease_of_somebody_else_becomes_the_vnodes() {
    let (shape, all) = (NodeShape::new("8", "16Gi"), json!({"resourceLimits": [percent("cpu", 100)]}));
    let vnode = "vnode-reclaim-lease-reclaim-lease-0";
    let planted = plant_lease(shared_site().await.computing(), vnode).await;
    let leasing = Leasing::start("reclaim-lease", 1, &shape, all).await;
    let node = leasing.nodes[0].clone();
    assert_eq!(leasing.vnode_name(&node), vnode);
    let first = leasing.one(&node, "an open vnode", is_offered).await;
    taken_over(&leasing, &first, &planted).await;

    // The same Syncer knows the Lease of the vnode's first life when it finds another one in the second.
    leasing.worker_nodes().await.delete(&node, &DeleteParams::default()).await.unwrap();
    leasing.withdrawn(&node).await;
    let planted = plant_lease(leasing.binding.computing(), vnode).await;
    leasing.binding.worker().create_nodes("reclaim-lease", 1, &shape).await.unwrap();
    let second = leasing.one(&node, "a vnode of the new node", is_offered).await;
    assert_ne!(second.uid(), first.uid());
    taken_over(&leasing, &second, &planted).await;
    assert_rights(&leasing.binding);
}

#[tokio::test]
async fn a_binding_given_up_is_left_alone_and_its_successor_is_served() {
    let shape = NodeShape::new("8", "16Gi");
    let leasing = Leasing::start("reclaim-detach", 1, &shape, half(json!({}))).await;
    let node = leasing.nodes[0].clone();
    let first = leasing.one(&node, "an open vnode", is_offered).await;
    let held = renewed_since(&leasing, &node, Timestamp::UNIX_EPOCH).await;
    let spec = held.spec.as_ref().unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some(first.name_any().as_str()));
    assert_eq!(spec.lease_duration_seconds, Some(40));
    let owner = &held.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), Some(owner.uid.clone())), ("Node", first.uid()));
    // A Lease that somebody deletes comes back with the next renewal.
    let client = leasing.binding.computing().client().await.unwrap();
    let leases: Api<Lease> = Api::namespaced(client, namespace::NODE_LEASE);
    leases.delete(&first.name_any(), &DeleteParams::default()).await.unwrap();
    let again = renewed_since(&leasing, &node, Timestamp::UNIX_EPOCH).await;
    assert_eq!(again.metadata.owner_references, held.metadata.owner_references);

    // A user gives the worker up. From then on the Syncer writes nothing; another finalizer keeps the binding.
    let bindings = leasing.bindings().await;
    let held_by = json!({"metadata": {
        "annotations": {annotation::FORCE_DETACH: "true"},
        "finalizers": [finalizer::BINDING_SYNCER, "e2e.test/keep"],
    }});
    merge(&bindings, "reclaim-detach", held_by).await;
    bindings.delete("reclaim-detach", &DeleteParams::default()).await.unwrap();
    leasing.syncer.wait_log("detached by force", DEADLINE).await;
    let mark = leasing.binding.computing().audit_mark().unwrap();
    let quiet = Instant::now();
    leasing.until("two missed renewals", DEADLINE, async || quiet.elapsed() > Duration::from_secs(21)).await;
    let writes: Vec<String> = leasing
        .binding
        .computing()
        .audit_events_since(mark)
        .unwrap()
        .into_iter()
        .filter(|event| event.is_write() && event.object_ref.name.contains("reclaim-detach"))
        .filter(|event| event.user.username.ends_with("kubeocean-syncer"))
        .map(|event| format!("{} {}", event.verb, event.uri))
        .collect();
    assert_eq!(writes, Vec::<String>::new());
    assert_eq!(leasing.vnode(&node).await.unwrap().uid(), first.uid());
    assert_eq!(leasing.syncer.health("/healthz").await.unwrap().0, 200);

    // The binding goes and is made anew: the same Syncer serves it, and takes over what is there.
    merge(&bindings, "reclaim-detach", json!({"metadata": {"finalizers": null}})).await;
    leasing
        .until("the binding to go", DEADLINE, async || {
            bindings.get_opt("reclaim-detach").await.unwrap().is_none()
        })
        .await;
    let born = Timestamp::now();
    let spec = BindingSpec::new("reclaim-detach").mount_namespace(leasing.binding.mount_namespace());
    shared_site().await.bind(spec).await.unwrap();
    renewed_since(&leasing, &node, born).await;
    leasing.edit(json!({"resourceLimits": [percent("cpu", 25)]})).await;
    let shown = leasing.one(&node, "cpu 2", |vnode| amount(vnode, "cpu") == Some("2")).await;
    assert_eq!(shown.uid(), first.uid());
    let binding = bindings.get("reclaim-detach").await.unwrap();
    assert!(binding.finalizers().iter().any(|held| held == finalizer::BINDING_SYNCER));
    assert_rights(&leasing.binding);
}

#[tokio::test]
async fn two_bindings_share_a_node_and_one_leaves_without_the_other() {
    let shape = NodeShape::new("8", "16Gi");
    let all = json!({"resourceLimits": [percent("cpu", 100)]});
    let one = Leasing::start("reclaim-one", 1, &shape, all.clone()).await;
    let node = one.nodes[0].clone();
    let selector = json!({"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "harness.test/node-set", "operator": "In", "values": ["reclaim-one"]}]},
    ]});
    let spec = BindingSpec::new("reclaim-two")
        .field("nodeSelector", selector)
        .mount_namespace(one.binding.mount_namespace());
    let binding = shared_site().await.bind(spec).await.unwrap();
    binding.policy("reclaim-two", all).await.unwrap();
    let started = Instant::now();
    let mut syncer = binding.syncer(&[]).await.unwrap();
    syncer.wait_ready().await;
    let two = Leasing { binding, syncer, nodes: vec![node.clone()], started };
    for leasing in [&one, &two] {
        leasing.one(&node, "cpu 8", |vnode| amount(vnode, "cpu") == Some("8")).await;
    }

    // Each counts the other's pods as used, and not its own.
    let (ones, twos) = (Users::of(&one).await, Users::of(&two).await);
    ones.run("batch", &one.vnode_name(&node), &[]).await;
    let kept = twos.run("batch", &two.vnode_name(&node), &[]).await;
    for leasing in [&one, &two] {
        leasing.one(&node, "cpu 7", |vnode| amount(vnode, "cpu") == Some("7")).await;
    }
    foreign_pods(&one, &node).await;

    // The node has one mark: who is first keeps it, and neither overwrites the other's, even if both saw none (409).
    let marks = marks_written(&one, &node);
    assert_eq!(marks.len(), 1, "{marks:#?}");

    // One leaves: the other's pod in the same mount namespace neither goes nor keeps it.
    let bindings = one.bindings().await;
    bindings.delete("reclaim-one", &DeleteParams::default()).await.unwrap();
    one.until("the binding to go", Duration::from_mins(2), async || {
        match bindings.get_opt("reclaim-one").await.unwrap() {
            None => Ok(()),
            Some(binding) => Err(binding.data["status"].to_string()),
        }
    })
    .await;
    ones.gone("batch").await;
    assert!(twos.stays("batch", &kept).await);
    two.one(&node, "cpu 8", |vnode| amount(vnode, "cpu") == Some("8")).await;

    // Its vnode and marks are gone, its policy can be deleted; the other's are as they were.
    assert!(one.vnode(&node).await.is_none());
    let marked = one.worker_nodes().await.get(&node).await.unwrap();
    assert_ne!(marked.labels().get(label::POLICY_APPLIED).map(String::as_str), Some("reclaim-one"));
    one.delete_policy("reclaim-one").await;
    one.until("its policy to go", DEADLINE, async || match one.policy("reclaim-one").await {
        None => Ok(()),
        Some(policy) => Err(policy["metadata"]["finalizers"].to_string()),
    })
    .await;
    let kept = two.policy("reclaim-two").await.unwrap();
    assert_eq!(kept["metadata"]["finalizers"], json!([finalizer::POLICY]));
    assert!(two.vnode(&node).await.unwrap().finalizers().contains(&finalizer::VNODE.to_owned()));
    assert_rights(&two.binding);
}

/// Acceptance check 8 of bottomup.md: each computing cluster counts the other's pods as used, so that shares which add up
/// to the whole are never more than what pods of neither leave.
#[tokio::test]
async fn two_computing_clusters_share_a_node_and_never_lease_more_than_there_is() {
    let shape = NodeShape::new("8", "16Gi");
    let half = json!({"resourceLimits": [percent("cpu", 50)]});
    let (one, computing) =
        tokio::join!(Leasing::start("reclaim-east", 1, &shape, half.clone()), second_computing());
    let node = one.nodes[0].clone();
    let selector = json!({"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "harness.test/node-set", "operator": "In", "values": ["reclaim-east"]}]},
    ]});
    let spec = BindingSpec::new("reclaim-west").field("nodeSelector", selector);
    let binding = shared_site().await.bind_at(computing, spec).await.unwrap();
    binding.policy("reclaim-west", half).await.unwrap();
    let started = Instant::now();
    let mut syncer = binding.syncer(&[]).await.unwrap();
    syncer.wait_ready().await;
    let two = Leasing { binding, syncer, nodes: vec![node.clone()], started };
    let both = async |ones: &str, twos: &str| {
        for (leasing, cpu) in [(&one, ones), (&two, twos)] {
            leasing.one(&node, &format!("cpu {cpu}"), |vnode| amount(vnode, "cpu") == Some(cpu)).await;
        }
    };
    both("4", "4").await;
    one.foreign_pod(&node, "2").await;
    both("3", "3").await;

    // A pod is others' for the cluster it is not of: the sum only falls.
    let recordings = (one.record().await, two.record().await);
    let (ones, twos) = (Users::of(&one).await, Users::of(&two).await);
    let placed = Instant::now();
    let easts = one.vnode_name(&node);
    let (east, ()) = tokio::join!(ones.run("batch", &easts, &[]), async {
        both("3", "2500m").await;
        println!("the other cluster knew {:?} after a pod was made", placed.elapsed());
        assert!(placed.elapsed() < generous(Duration::from_secs(2)), "{:?}", placed.elapsed());
    });
    let west = twos.run("batch", &two.vnode_name(&node), &[]).await;
    both("2500m", "2500m").await;
    for recording in [&recordings.0, &recordings.1] {
        let states = recording.states();
        assert!(states.iter().all(|vnode| ["3", "2500m"].contains(&amount(vnode, "cpu").unwrap())));
    }

    // Shares that overlap: each is bounded by what others ask for, the other cluster's pods included.
    let all = json!({"resourceLimits": [percent("cpu", 100)]});
    one.edit(all.clone()).await;
    two.edit(all).await;
    both("5", "5").await;
    let marks = marks_written(&one, &node);
    // One at least; two if both looked at the node before either had marked it.
    assert!((1..=2).contains(&marks.len()), "neither overwrites the other's mark: {marks:#?}");

    // One cluster's pod goes; the other's stays, and is not mistaken for a stray.
    ones.pods.delete("batch", &DeleteParams::default()).await.unwrap();
    ones.gone("batch").await;
    both("5", "6").await;
    assert!(twos.stays("batch", &west).await && east != west);
    let bindings = one.bindings().await;
    bindings.delete("reclaim-east", &DeleteParams::default()).await.unwrap();
    one.until("the binding to go", Duration::from_mins(2), async || {
        bindings.get_opt("reclaim-east").await.unwrap().is_none()
    })
    .await;
    assert!(one.vnode(&node).await.is_none());
    assert!(twos.stays("batch", &west).await);
    two.one(&node, "cpu 6", |vnode| amount(vnode, "cpu") == Some("6") && is_offered(vnode)).await;
    assert_rights(&one.binding);
    assert_rights(&two.binding);
}

/// What anybody but the test wrote to the worker node itself.
fn marks_written(leasing: &Leasing, node: &str) -> Vec<String> {
    let events = leasing.binding.worker().audit_events().unwrap().into_iter();
    events
        .filter(|event| event.is_write() && event.user.username.ends_with(":kubeocean-syncer"))
        .filter(|event| event.object_ref.resource == "nodes" && event.object_ref.name == node)
        .filter(|event| event.response_status.code == 200)
        .map(|event| format!("{} {} {}", event.user.username, event.verb, event.uri))
        .collect()
}

/// A pod of the worker's users counts with what its largest phase asks for, until it has completed.
async fn foreign_pods(leasing: &Leasing, node: &str) {
    let worker = leasing.binding.worker();
    let home = "reclaim-foreign";
    worker.create_namespace(home).await.unwrap();
    let requests = |cpu: &str| json!({"requests": {"cpu": cpu}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "online", "namespace": home},
        "spec": {
            "nodeName": node, "restartPolicy": "Never",
            "initContainers": [
                {"name": "s", "image": "s:1", "restartPolicy": "Always", "resources": requests("500m")},
                {"name": "i", "image": "i:1", "resources": requests("3")},
            ],
            "containers": [{"name": "c", "image": "c:1", "resources": requests("1")}],
        },
    });
    worker.apply_objects(vec![pod]).await.unwrap();
    leasing.one(node, "cpu 3500m", |vnode| amount(vnode, "cpu") == Some("3500m")).await;
    let pods: Api<Pod> = Api::namespaced(worker.client().await.unwrap(), home);
    let done = json!({"status": {"phase": "Succeeded"}});
    let parameters = kube::api::PatchParams::default();
    pods.patch_status("online", &parameters, &kube::api::Patch::Merge(&done)).await.unwrap();
    leasing.one(node, "cpu 7 again", |vnode| amount(vnode, "cpu") == Some("7")).await;
}
