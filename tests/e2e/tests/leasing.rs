//! Leasing as the owner of a worker cluster and the users of the computing cluster see it: worker nodes become vnodes
//! with the amounts, names, labels and taints that the policies say, follow every edit, and go when they shall go.
//!
//! Every test has a binding, nodes and a Syncer of its own on the shared fleet. What is bounded in time is measured and
//! printed.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::time::{Duration, Instant};

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use kubeocean_api::keys::{annotation, condition_type, finalizer, label, namespace, taint};
use kubeocean_e2e::leasing::{
    DEADLINE, Leasing, amount, condition, generous, is_offered, is_ready, is_withheld_gently, merge, percent,
    policy_condition, summary, taint_of,
};
use kubeocean_e2e::rights::{assert_rights, writes_since};
use kubeocean_e2e::storm::pass;
use kubeocean_e2e::users::Users;
use kubeocean_harness::audit::AuditMark;
use kubeocean_harness::{AuditEvent, NodeShape};
use serde_json::{Value, json};

/// The amount of cpu that all vnodes must show after the spec of the policy changed to `policy`; returns how long it took.
async fn reaches_all(leasing: &Leasing, policy: Value, cpu: &str) -> Duration {
    let edited = Instant::now();
    leasing.edit(policy).await;
    leasing
        .all(&format!("cpu {cpu} on all vnodes"), DEADLINE, |vnode| amount(vnode, "cpu") == Some(cpu))
        .await;
    edited.elapsed()
}

/// When each vnode's Lease was renewed last, by vnode.
async fn renewals(leasing: &Leasing) -> Vec<Timestamp> {
    let client = leasing.binding.computing().client().await.unwrap();
    let leases: Api<Lease> = Api::namespaced(client, namespace::NODE_LEASE);
    let mut renewed = Vec::new();
    for node in &leasing.nodes {
        let lease = leases.get_opt(&leasing.vnode_name(node)).await.unwrap();
        renewed.extend(lease.and_then(|lease| lease.spec?.renew_time).map(|time| time.0));
    }
    renewed
}

/// Waits until every vnode's Lease was renewed `times` more.
async fn renewed_again(leasing: &Leasing, times: usize) {
    for _ in 0..times {
        let before = renewals(leasing).await;
        leasing
            .until("all Leases to be renewed", DEADLINE, async || {
                let now = renewals(leasing).await;
                now.len() == leasing.nodes.len() && now.iter().zip(&before).all(|(now, then)| now > then)
            })
            .await;
    }
}

fn versions(vnodes: &[Node]) -> Vec<Option<String>> {
    vnodes.iter().map(ResourceExt::resource_version).collect()
}

#[tokio::test]
async fn half_of_five_nodes_follows_every_change() {
    let shape = NodeShape::new("32", "64Gi").gpus(3).label("pool", "online");
    let limits = json!({"resourceLimits": [percent("cpu", 50), percent("nvidia.com/gpu", 50)]});
    let mut leasing = Leasing::start("lease-half", 5, &shape, limits.clone()).await;
    let vnodes = leasing
        .all("five Ready vnodes with half the cpu", DEADLINE, |vnode| {
            is_ready(vnode) && amount(vnode, "cpu") == Some("16")
        })
        .await;
    let took = leasing.started.elapsed();
    println!("5 vnodes Ready {took:?} after the start of the Syncer (bound 3 s)");
    assert!(took < generous(Duration::from_secs(3)));
    check_identity(&leasing, &vnodes).await;
    renewed_again(&leasing, 1).await;

    let took = reaches_all(
        &leasing,
        json!({"resourceLimits": [percent("cpu", 25), percent("nvidia.com/gpu", 50)]}),
        "8",
    )
    .await;
    println!("25 % on 5 vnodes {took:?} after the edit (bound 2 s)");
    assert!(took < generous(Duration::from_secs(2)));
    reaches_all(&leasing, limits.clone(), "16").await;

    leasing.foreign_pod(&leasing.nodes[1], "12").await;
    leasing.one(&leasing.nodes[1], "cpu 10 beside a pod of 12", |v| amount(v, "cpu") == Some("10")).await;
    let others = leasing.vnodes().await;
    assert_eq!(others.iter().filter(|vnode| amount(vnode, "cpu") == Some("16")).count(), 4);

    let zero = json!({"resourceLimits": [percent("cpu", 0)]});
    reaches_all(&leasing, zero, "0").await;
    let policy = leasing
        .policy_until("lease-half", "the zero to be told", |policy| {
            policy_condition(policy, "Valid")
                .is_some_and(|(_, _, message)| message.contains("leases nothing"))
        })
        .await;
    assert_eq!(policy["status"]["phase"], "Active");
    let full = leasing.vnode(&leasing.nodes[0]).await.unwrap();
    assert_eq!(amount(&full, "nvidia.com/gpu"), Some("3"), "what is not limited is leased in whole");
    assert!(is_offered(&full));
    leasing.edit(limits).await;
    leasing.one(&leasing.nodes[0], "cpu 16 again", |vnode| amount(vnode, "cpu") == Some("16")).await;

    users_marks_stay(&leasing).await;
    nothing_is_written_at_rest(&leasing).await;
    a_restart_is_not_seen(&mut leasing).await;
    assert_rights(&leasing.binding);
}

/// Names, labels, annotations, finalizer and taint of fresh vnodes, and the marks in the worker cluster.
async fn check_identity(leasing: &Leasing, vnodes: &[Node]) {
    let workers = leasing.worker_nodes().await;
    for (name, vnode) in leasing.nodes.iter().zip(vnodes) {
        let worker = workers.get(name).await.unwrap();
        let uid = worker.uid().unwrap();
        let vnode_name = format!("vnode-lease-half-{name}");
        assert_eq!(vnode.name_any(), vnode_name);
        let labels = vnode.labels();
        for (key, value) in [
            (label::MANAGED_BY, "kubeocean"),
            (label::CLUSTER_BINDING, "lease-half"),
            (label::PHYSICAL_CLUSTER_ID, "lease-half"),
            (label::PHYSICAL_NODE_NAME, name.as_str()),
            (label::PHYSICAL_NODE_UID, uid.as_str()),
            (label::PHYSICAL_NODE_INNER_IP, "127.0.0.1"),
            (label::TYPE, "virtual-kubelet"),
            (label::INSTANCE_TYPE, "vnode"),
            (label::HOSTNAME, vnode_name.as_str()),
            (label::EXCLUDE_FROM_LOAD_BALANCERS, "true"),
            ("pool", "online"),
        ] {
            assert_eq!(labels.get(key).map(String::as_str), Some(value), "label {key} of {vnode_name}");
        }
        let port: u16 = labels[label::PROXIER_PORT].parse().unwrap();
        let published = vnode.status.as_ref().unwrap().daemon_endpoints.as_ref().unwrap();
        assert_eq!(published.kubelet_endpoint.as_ref().unwrap().port, i32::from(port));
        assert_eq!(vnode.annotations()[annotation::POLICIES_APPLIED], "lease-half");
        assert!(vnode.annotations()[annotation::POLICY_DETAILS].contains("cpu=/50%"));
        assert!(vnode.finalizers().iter().any(|held| held == finalizer::VNODE));
        let default = taint_of(vnode, taint::VNODE).unwrap();
        assert_eq!((default.effect.as_str(), default.value.as_deref()), ("NoSchedule", None));
        assert!(is_offered(vnode), "{}", summary(vnode));
        assert_eq!(amount(vnode, "nvidia.com/gpu"), Some("1"), "3 GPUs at 50 % are whole ones");
        assert_eq!(amount(vnode, "memory"), Some("64Gi"));
        let lease = condition(vnode, condition_type::LEASE).unwrap();
        assert_eq!(lease.0, "True");
    }
    marked_with(leasing, "lease-half").await;
    let policy = leasing
        .policy_until("lease-half", "the policy to tell its nodes", |policy| {
            policy_condition(policy, "Applied").is_some_and(|(status, ..)| status == "True")
                && policy["status"]["nodes"] == 5
        })
        .await;
    assert_eq!(policy["status"]["phase"], "Active");
    assert_eq!(policy["status"]["activeTimeWindow"], true);
    let held = policy["metadata"]["finalizers"].as_array().unwrap();
    assert!(held.iter().any(|held| held == finalizer::POLICY));
}

/// Waits until every worker node names `policy`.
async fn marked_with(leasing: &Leasing, policy: &str) {
    let workers = leasing.worker_nodes().await;
    leasing
        .until("the worker nodes to name their policy", DEADLINE, async || {
            let mut others = Vec::new();
            for name in &leasing.nodes {
                let node = workers.get(name).await.unwrap();
                let marked = node.labels().get(label::POLICY_APPLIED).cloned();
                if marked.as_deref() != Some(policy) {
                    others.push((name.clone(), marked));
                }
            }
            if others.is_empty() { Ok(()) } else { Err(others) }
        })
        .await;
}

/// While many vnodes are made, labels on worker nodes wait; every node gets its own, once (BU-408).
#[tokio::test]
async fn of_a_hundred_and_fifty_nodes_each_names_its_policy_once() {
    let leasing = Leasing::start("lease-many", 150, &NodeShape::new("4", "8Gi"), json!({})).await;
    leasing.all("150 Ready vnodes", DEADLINE, is_ready).await;
    println!("150 vnodes Ready {:?} after the start of the Syncer", leasing.started.elapsed());
    marked_with(&leasing, "lease-many").await;
    println!("150 worker nodes labelled {:?} after the start of the Syncer", leasing.started.elapsed());
    let account = format!("system:serviceaccount:{}:", leasing.binding.mount_namespace());
    let labels = |event: &AuditEvent| {
        event.verb == "patch"
            && event.object_ref.resource == "nodes"
            && event.user.username.starts_with(&account)
    };
    let ours = leasing.binding.worker().audit_events_until(AuditMark::default(), 150, labels).await.unwrap();
    assert_eq!(ours.len(), 150, "patches of worker nodes");
}

/// Labels and taints of users on a vnode stay, ours come back.
async fn users_marks_stay(leasing: &Leasing) {
    let name = leasing.vnode_name(&leasing.nodes[2]);
    let nodes = leasing.virtual_nodes().await;
    let marks = json!({
        "metadata": {"labels": {"team": "red", label::TYPE: "tampered"}},
        "spec": {"taints": [{"key": "team", "value": "red", "effect": "NoSchedule"}]},
    });
    merge(&nodes, &name, marks).await;
    let vnode = leasing
        .one(&leasing.nodes[2], "its managed label and taint back", |vnode| {
            vnode.labels().get(label::TYPE).is_some_and(|value| value == "virtual-kubelet")
                && taint_of(vnode, taint::VNODE).is_some()
        })
        .await;
    assert_eq!(vnode.labels()["team"], "red");
    // An edit of the policy rewrites what is ours, and only that.
    leasing.edit(json!({"resourceLimits": [percent("cpu", 40), percent("nvidia.com/gpu", 50)]})).await;
    let vnode =
        leasing.one(&leasing.nodes[2], "cpu 12800m", |vnode| amount(vnode, "cpu") == Some("12800m")).await;
    assert_eq!(vnode.labels()["team"], "red");
    assert!(taint_of(&vnode, "team").is_some_and(|taint| taint.value.as_deref() == Some("red")));
}

/// What is done each minute is done in it once; a heartbeat is passed on after five (BU section 6).
const REST: Duration = Duration::from_secs(65);

/// Writes since then, but for those about worker nodes of other bindings: where one ends, whoever sees a label that names no
/// policy takes it off.
fn own_writes(leasing: &Leasing, marks: (AuditMark, AuditMark)) -> Vec<String> {
    let is_own = |write: &String| {
        let node = write
            .split_once("/api/v1/nodes/")
            .map(|(_, rest)| rest.split(['?', '/', ' ']).next().unwrap_or(rest));
        node.is_none_or(|node| node.starts_with("vnode-") || leasing.nodes.iter().any(|own| own == node))
    };
    writes_since(&leasing.binding, marks.0, marks.1).into_iter().filter(is_own).collect()
}

/// A converged Syncer renews Leases and does nothing else.
async fn nothing_is_written_at_rest(leasing: &Leasing) {
    // The binding's numbers come at most twice a minute (API-804).
    let bindings = leasing.bindings().await;
    leasing
        .until("the binding's numbers", Duration::from_mins(1), async || {
            let status = bindings.get(leasing.binding.name()).await.unwrap().data["status"].clone();
            if status["nodes"] == leasing.nodes.len() { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    leasing
        .until("a converged Syncer", Duration::from_mins(2), async || {
            let marks = log_ends(leasing);
            renewed_again(leasing, 1).await;
            let writes = own_writes(leasing, marks);
            if writes.is_empty() { Ok(()) } else { Err(writes) }
        })
        .await;
    // Once it rests, it rests.
    let (before, marks) = (leasing.vnodes().await, log_ends(leasing));
    pass(REST).await;
    let writes = own_writes(leasing, marks);
    assert!(writes.is_empty(), "at rest: {writes:#?}");
    assert_eq!(versions(&before), versions(&leasing.vnodes().await));
}

/// The ends of the audit logs of the computing and of the worker cluster.
fn log_ends(leasing: &Leasing) -> (AuditMark, AuditMark) {
    let binding = &leasing.binding;
    (binding.computing().audit_mark().unwrap(), binding.worker().audit_mark().unwrap())
}

/// Killed and started again: no vnode is ever NotReady, and nothing is written that was right before.
async fn a_restart_is_not_seen(leasing: &mut Leasing) {
    let recording = leasing.record().await;
    let before = leasing.vnodes().await;
    let marks = log_ends(leasing);
    leasing.syncer.restart().unwrap();
    leasing.syncer.wait_ready().await;
    renewed_again(leasing, 1).await;
    let writes = writes_since(&leasing.binding, marks.0, marks.1);
    assert!(writes.is_empty(), "after a restart: {writes:#?}");
    assert_eq!(versions(&before), versions(&leasing.vnodes().await));
    for state in recording.states() {
        assert!(is_ready(&state), "{}", summary(&state));
    }
    // It is back at work.
    reaches_all(leasing, json!({"resourceLimits": [json!({"resource": "cpu", "quantity": "4"})]}), "4").await;
}

/// A window that is open now and closes at the start of a minute that is 55 to 115 s away; and that moment.
fn closing_window() -> (Value, Timestamp) {
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    // The end is inclusive (API-403). Too little of a minute would be over before anything was leased.
    let last = if now.second() >= 5 { &now + 1.minute() } else { now.clone() };
    let edge = (&last + 1.minute()).with().second(0).subsec_nanosecond(0).build().unwrap().timestamp();
    let start = (&now - 1.hour()).strftime("%H:%M").to_string();
    (json!([{"start": start, "end": last.strftime("%H:%M").to_string()}]), edge)
}

#[tokio::test]
async fn a_window_closes_on_time_and_a_typo_evicts_nobody() {
    // The clusters' start is not part of the window's time.
    kubeocean_harness::shared_site().await;
    let (windows, edge) = closing_window();
    let shape = NodeShape::new("32", "64Gi");
    let limits = json!([percent("cpu", 50)]);
    let policy = json!({"timeZone": "UTC", "timeWindows": windows, "resourceLimits": limits});
    let leasing = Leasing::start("lease-window", 3, &shape, policy).await;
    let half = |vnode: &Node| is_ready(vnode) && amount(vnode, "cpu") == Some("16");
    leasing.all("open vnodes", DEADLINE, |vnode| half(vnode) && is_offered(vnode)).await;
    let opened = Timestamp::now();
    assert!(
        opened < edge,
        "this machine took {:?} longer than the window was open",
        opened.duration_since(edge)
    );
    let users = Users::of(&leasing).await;
    let batch = users.run("batch", &leasing.vnode_name(&leasing.nodes[0]), &[]).await;

    let left = Duration::try_from(edge.duration_since(Timestamp::now())).unwrap_or_default();
    leasing.all("closed vnodes", left + DEADLINE, |vnode| is_withheld_gently(vnode) && half(vnode)).await;
    let late = Timestamp::now().duration_since(edge);
    println!("3 vnodes tainted {late:?} after the end of the window (bound 2 s)");
    assert!(late.as_secs_f64() > -0.2, "tainted {late:?} after the end");
    assert!(late.as_secs_f64() < generous(Duration::from_secs(2)).as_secs_f64());
    leasing
        .policy_until("lease-window", "an inactive policy", |policy| {
            policy["status"]["phase"] == "Inactive"
                && policy_condition(policy, "Active")
                    .is_some_and(|(status, reason, _)| (status, reason) == ("False", "InactiveTimeWindow"))
        })
        .await;
    // The taint is of the spec, so the condition comes with a write of its own.
    let closed = Some(("False", "OutsideTimeWindow"));
    leasing.all("the reason", DEADLINE, |vnode| condition(vnode, condition_type::LEASE) == closed).await;

    // Open again, so that what follows is seen.
    let open = json!({"resourceLimits": limits});
    leasing.edit(open.clone()).await;
    leasing.all("open vnodes", DEADLINE, is_offered).await;

    // With forceReclaim, a typo in the original evicted everything. Admission would refuse these: it is switched off, as
    // `admissionPolicy.enabled: false` does, to see what the Syncer makes of them.
    let bad_percent = json!({"resourceLimits": [percent("cpu", 101)], "forceReclaim": true});
    edit_without_admission(&leasing, bad_percent).await;
    let policy = failed_policy(&leasing).await;
    let (status, reason, message) = policy_condition(&policy, "Valid").unwrap();
    assert_eq!((status, reason), ("False", "ValidationError"));
    assert!(message.contains("percent") && message.contains("101"), "{message}");
    leasing.all("held vnodes", DEADLINE, |vnode| is_withheld_gently(vnode) && half(vnode)).await;

    let bad_window = json!({
        "timeWindows": [{"start": "25:00", "end": "08:00"}],
        "resourceLimits": limits, "forceReclaim": true,
    });
    edit_without_admission(&leasing, bad_window).await;
    leasing
        .policy_until("lease-window", "the new mistake to be told", |policy| {
            policy["status"]["phase"] == "Failed"
                && policy_condition(policy, "Valid").is_some_and(|(_, _, message)| {
                    message.contains(
                        "invalid start time format in time window 0: \"25:00\", expected HH:MM format",
                    )
                })
        })
        .await;
    leasing.all("held vnodes", DEADLINE, |vnode| is_withheld_gently(vnode) && half(vnode)).await;
    renewed_again(&leasing, 1).await;
    assert!(users.stays("batch", &batch).await, "a typo evicts nobody");

    leasing.edit(open).await;
    leasing.all("open vnodes", DEADLINE, |vnode| is_offered(vnode) && half(vnode)).await;
    leasing
        .policy_until("lease-window", "a valid policy", |policy| {
            policy_condition(policy, "Valid").is_some_and(|(status, ..)| status == "True")
                && policy["status"]["phase"] == "Active"
        })
        .await;
    assert_rights(&leasing.binding);
}

async fn failed_policy(leasing: &Leasing) -> Value {
    leasing
        .policy_until(leasing.binding.name(), "a failed policy", |policy| {
            policy["status"]["phase"] == "Failed"
        })
        .await
}

/// The chart's admission policy refuses `policy`; without it, the server takes it.
async fn edit_without_admission(leasing: &Leasing, policy: Value) {
    const BINDING: &str = "validatingadmissionpolicybinding/kubeocean-resourceleasingpolicies";
    let (worker, name) = (leasing.binding.worker(), leasing.binding.name());
    leasing
        .until("the server to take a policy with a mistake", DEADLINE, async || {
            // Other tests may install the chart again.
            worker
                .kubectl_text(&["delete", "--ignore-not-found", BINDING])
                .await
                .map_err(|e| e.to_string())?;
            leasing.binding.policy(name, policy.clone()).await.map_err(|error| format!("{error:#}"))
        })
        .await;
}

/// What an edit may take to reach vnodes without pods (acceptance check 6).
const BOUND: Duration = Duration::from_secs(2);

/// What `edit` led to came in time.
fn in_time(edit: &str, edited: Instant) {
    let took = edited.elapsed();
    println!("{edit}: {took:?} (bound {BOUND:?})");
    assert!(took < generous(BOUND), "{edit}: {took:?}");
}

/// Nodes whose label `tier` has this value.
fn tier(value: &str) -> Value {
    json!({"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "tier", "operator": "In", "values": [value]}]},
    ]})
}

#[tokio::test]
async fn nodes_come_and_go_with_selectors_policies_and_the_binding() {
    let shape = NodeShape::new("32", "64Gi").label("tier", "a");
    let policy = |selector: Value| json!({"nodeSelector": selector, "resourceLimits": [percent("cpu", 50)]});
    let leasing = Leasing::start("lease-select", 2, &shape, policy(tier("a"))).await;
    let half = |vnode: &Node| is_ready(vnode) && amount(vnode, "cpu") == Some("16");
    leasing.all("two vnodes", DEADLINE, half).await;
    let (stays, leaves) = (&leasing.nodes[0], &leasing.nodes[1]);
    let workers = leasing.worker_nodes().await;

    // The label of a node, then the selector of the policy.
    let edited = Instant::now();
    merge(&workers, leaves, json!({"metadata": {"labels": {"tier": "b"}}})).await;
    leasing.withdrawn(leaves).await;
    in_time("a vnode went with its node's label", edited);
    assert!(leasing.vnode(stays).await.is_some_and(|vnode| half(&vnode)));
    let edited = Instant::now();
    leasing.edit(policy(tier("b"))).await;
    leasing.withdrawn(stays).await;
    leasing.one(leaves, "to be leased again", half).await;
    in_time("one vnode went and one came with the policy's selector", edited);
    let edited = Instant::now();
    leasing.edit(policy(json!({"nodeSelectorTerms": []}))).await;
    leasing.all("two vnodes", DEADLINE, half).await;
    in_time("a vnode came with the policy's selector", edited);

    // A younger policy that covers the same nodes decides nothing until the older one is gone.
    let younger = json!({"resourceLimits": [percent("cpu", 25)]});
    later_than(&leasing, "lease-select").await;
    leasing.binding.policy("lease-younger", younger.clone()).await.unwrap();
    leasing.binding.policy("lease-youngest", json!({"resourceLimits": [percent("cpu", 75)]})).await.unwrap();
    for name in ["lease-younger", "lease-youngest"] {
        let shadowed = leasing
            .policy_until(name, "the younger policy to be shadowed", |policy| {
                policy_condition(policy, "Applied")
                    .is_some_and(|(status, reason, _)| (status, reason) == ("False", "ShadowedByOlderPolicy"))
            })
            .await;
        assert!(policy_condition(&shadowed, "Applied").unwrap().2.contains("lease-select"));
    }
    leasing.delete_policy("lease-youngest").await;
    gone(&leasing, "lease-youngest").await;
    assert!(leasing.vnodes().await.iter().all(half));
    let uids: Vec<_> = leasing.vnodes().await.iter().map(ResourceExt::uid).collect();
    let deleted = Instant::now();
    leasing.delete_policy("lease-select").await;
    let vnodes =
        leasing.all("the younger policy's amounts", DEADLINE, |v| amount(v, "cpu") == Some("8")).await;
    in_time("two vnodes were handed over when the older policy was deleted", deleted);
    assert_eq!(uids, vnodes.iter().map(ResourceExt::uid).collect::<Vec<_>>(), "handed over, not made anew");
    gone(&leasing, "lease-select").await;

    // The last policy: vnodes are withdrawn, then the policy goes.
    let deleted = Instant::now();
    leasing.delete_policy("lease-younger").await;
    for node in &leasing.nodes {
        leasing.withdrawn(node).await;
    }
    in_time("two vnodes went with the last policy", deleted);
    gone(&leasing, "lease-younger").await;
    unmarked(&leasing).await;

    // The binding: everything goes, the policy stays and can be deleted without a Syncer.
    leasing.edit(policy(json!({"nodeSelectorTerms": []}))).await;
    leasing.all("two vnodes", DEADLINE, half).await;
    leasing
        .policy_until("lease-select", "the policy to be held", |policy| {
            policy["metadata"]["finalizers"].is_array()
        })
        .await;
    let bindings = leasing.bindings().await;
    bindings.delete("lease-select", &DeleteParams::default()).await.unwrap();
    for node in &leasing.nodes {
        leasing.withdrawn(node).await;
    }
    leasing
        .until("the binding to go", DEADLINE, async || match bindings.get_opt("lease-select").await {
            Ok(None) => Ok(()),
            Ok(Some(binding)) => Err(format!("{:?} {}", binding.finalizers(), binding.data["status"])),
            Err(error) => Err(error.to_string()),
        })
        .await;
    unmarked(&leasing).await;
    let policy = leasing.policy("lease-select").await.unwrap();
    assert!(policy["metadata"]["finalizers"].is_null(), "{policy}");
    leasing.delete_policy("lease-select").await;
    gone(&leasing, "lease-select").await;
    assert_rights(&leasing.binding);
}

async fn gone(leasing: &Leasing, policy: &str) {
    leasing
        .until(&format!("the policy {policy} to go"), DEADLINE, async || match leasing.policy(policy).await {
            None => Ok(()),
            Some(policy) => Err(policy["metadata"]["finalizers"].to_string()),
        })
        .await;
}

/// No worker node of this binding names a policy.
async fn unmarked(leasing: &Leasing) {
    let workers = leasing.worker_nodes().await;
    leasing
        .until("the worker nodes to lose their marks", DEADLINE, async || {
            for name in &leasing.nodes {
                let node = workers.get(name).await.unwrap();
                if let Some(policy) = node.labels().get(label::POLICY_APPLIED) {
                    return Err(format!("{name}: {policy}"));
                }
            }
            Ok(())
        })
        .await;
}

/// Creation times have whole seconds: waits until the server would give a later one than this policy's.
async fn later_than(leasing: &Leasing, policy: &str) {
    use k8s_openapi::api::core::v1::ConfigMap;
    let created = leasing.policy(policy).await.unwrap()["metadata"]["creationTimestamp"].clone();
    let created: Timestamp = created.as_str().unwrap().parse().unwrap();
    let client = leasing.binding.worker().client().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let probe = ConfigMap {
        metadata: ObjectMeta { name: Some(format!("{policy}-clock")), ..ObjectMeta::default() },
        ..ConfigMap::default()
    };
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    leasing
        .until("the server's clock to move on", DEADLINE, async || {
            let made = maps.create(&dry, &probe).await.map_err(|error| error.to_string())?;
            let now = made.metadata.creation_timestamp.map(|time| time.0);
            if now.is_some_and(|now| now > created) { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
}
