//! Sums, news and what is kept of vnodes.

use super::*;
use crate::nodes::{
    host_ports::HostPort,
    view::{Stamp, WorkerPod},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubeocean_api::keys::annotation;
use proptest::prelude::*;

fn index() -> Index {
    Index::new(Identity {
        binding: "dc-east".into(),
        cluster_id: "cls-a".into(),
        computing_uid: "c-1".into(),
    })
}

fn pod(uid: &str, node: &str, cpu: i64, stamp: Stamp) -> WorkerPod {
    WorkerPod {
        metadata: ObjectMeta { uid: Some(uid.into()), ..ObjectMeta::default() },
        node: node.into(),
        terminal: false,
        requests: [("cpu", cpu)].into_iter().collect(),
        host_ports: Box::default(),
        stamp,
    }
}

fn with_ports(pod: WorkerPod, ports: &[i32]) -> WorkerPod {
    let port = |port: &i32| HostPort { ip: "0.0.0.0".into(), protocol: "TCP".into(), port: *port };
    WorkerPod { host_ports: ports.iter().map(port).collect(), ..pod }
}

fn numbers(index: &Index) -> Vec<i32> {
    index.host_ports("vnode-cls-a-n").iter().map(|port| port.port).collect()
}

#[test]
fn host_ports_of_others_are_held_and_those_of_our_own_pods_are_not() {
    let mut index = index();
    index.set_pnode(node(serde_json::json!({"metadata": {"name": "n"}})));
    index.set_pod(with_ports(pod("1", "n", 1, Stamp::None), &[80, 443]));
    index.set_pod(with_ports(pod("2", "n", 1, stamped("dc-east", "c-1")), &[8080]));
    index.set_pod(with_ports(pod("3", "n", 1, stamped("dc-west", "c-1")), &[443, 9000]));
    index.set_pod(with_ports(pod("4", "other", 1, Stamp::None), &[22]));
    assert_eq!(numbers(&index), [80, 443, 9000]);
    index.remove_pod("1");
    assert_eq!(numbers(&index), [443, 9000]);
}

#[test]
fn only_a_port_that_was_taken_or_became_free_is_news() {
    let mut index = index();
    index.set_pnode(node(serde_json::json!({"metadata": {"name": "n"}})));
    let news = |index: &mut Index| index.take_port_news().len();
    index.set_pod(with_ports(pod("1", "n", 1, Stamp::None), &[80]));
    assert_eq!(news(&mut index), 1);
    index.set_pod(with_ports(pod("2", "n", 1, Stamp::None), &[80]));
    index.remove_pod("1");
    index.set_pod(pod("3", "n", 1, Stamp::None));
    assert_eq!(news(&mut index), 0, "somebody holds it all the time");
    index.reset_pods(vec![with_ports(pod("4", "n", 1, Stamp::None), &[80])]);
    assert_eq!(news(&mut index), 0, "also over a relist");
    index.reset_pods(vec![]);
    assert_eq!((news(&mut index), numbers(&index).len()), (1, 0));
}

fn stamped(binding: &str, cluster_uid: &str) -> Stamp {
    Stamp::Stamped { binding: binding.into(), cluster_uid: cluster_uid.into() }
}

fn node(json: serde_json::Value) -> NodeView {
    serde_json::from_value(json).unwrap()
}

#[test]
fn only_pods_stamped_for_this_binding_are_own() {
    let mut index = index();
    index.set_pod(pod("1", "n", 100, Stamp::None));
    index.set_pod(pod("2", "n", 10, stamped("dc-east", "c-1")));
    index.set_pod(pod("3", "n", 1000, stamped("dc-east", "c-2")));
    index.set_pod(pod("4", "n", 1000, stamped("dc-west", "c-1")));
    index.set_pod(pod("5", "n", 1, Stamp::Legacy { vnode: "vnode-cls-a-n".into() }));
    index.set_pod(pod("6", "n", 1000, Stamp::Legacy { vnode: "vnode-cls-a-other".into() }));
    let usage = index.usage("n");
    assert_eq!((usage.own["cpu"], usage.own["pods"]), (11, 2));
    assert_eq!((usage.others["cpu"], usage.others["pods"]), (3100, 4));
}

#[test]
fn changes_of_leased_pods_alone_are_told_apart() {
    let mut index = index();
    let ours = || stamped("dc-east", "c-1");
    let mut after = |change: &dyn Fn(&mut Index) -> Option<VnodeName>| {
        let changed = change(&mut index);
        (changed.is_some(), !index.take_leased_news().is_empty())
    };
    assert_eq!(after(&|index| index.set_pod(pod("1", "n", 100, Stamp::None))), (true, false));
    assert_eq!(after(&|index| index.set_pod(pod("2", "n", 10, ours()))), (true, true));
    assert_eq!(after(&|index| index.set_pod(pod("2", "n", 10, ours()))), (false, false));
    assert_eq!(after(&|index| index.set_pod(pod("2", "n", 20, ours()))), (true, true));
    assert_eq!(after(&|index| index.set_pod(pod("2", "n", 20, Stamp::None))), (true, false), "it was ours");
    assert_eq!(after(&|index| index.set_pod(pod("2", "n", 20, ours()))), (true, false), "it was not ours");
    assert_eq!(after(&|index| index.remove_pod("2")), (true, true));
    assert_eq!(after(&|index| index.remove_pod("1")), (true, false));
}

#[test]
fn a_recount_mends_and_names_what_was_wrong() {
    let mut index = index();
    for node in ["n1", "n2"] {
        index.set_pod(pod(node, node, 100, Stamp::None));
    }
    index.miscount("n1");
    assert_eq!(index.usage("n1").others["cpu"], 700);
    let named: Vec<String> = index.recount().iter().map(ToString::to_string).collect();
    assert_eq!(named, ["vnode-cls-a-n1"]);
    assert_eq!(index.usage("n1").others["cpu"], 100);
    assert!(index.recount().is_empty());
}

#[test]
fn an_event_without_a_change_of_requests_wakes_nobody() {
    let mut index = index();
    assert_eq!(index.set_pod(pod("1", "n", 100, Stamp::None)).as_deref(), Some("vnode-cls-a-n"));
    assert_eq!(index.set_pod(pod("1", "n", 100, Stamp::None)), None);
    let done = WorkerPod { terminal: true, ..pod("1", "n", 100, Stamp::None) };
    assert_eq!(index.set_pod(done).as_deref(), Some("vnode-cls-a-n"));
    assert_eq!(index.usage("n"), Usage::default());
}

#[test]
fn a_pod_elsewhere_does_not_hide_from_the_accounts() {
    let mut index = index();
    index.own_pods_are_in("lease-area");
    let in_namespace = |uid: &str, namespace: &str, stamp: Stamp| {
        let mut pod = pod(uid, "n", 100, stamp);
        pod.metadata.namespace = Some(namespace.into());
        pod
    };
    index.set_pod(in_namespace("1", "lease-area", stamped("dc-east", "c-1")));
    index.set_pod(in_namespace("2", "tenant", stamped("dc-east", "c-1")));
    index.set_pod(in_namespace("3", "tenant", Stamp::Legacy { vnode: "vnode-cls-a-n".into() }));
    let usage = index.usage("n");
    assert_eq!((usage.own["pods"], usage.others["pods"]), (1, 2));
}

#[test]
fn the_mark_of_a_policy_alone_wakes_nobody() {
    let mut index = index();
    let marked = |version: &str, labels: serde_json::Value| {
        node(serde_json::json!({"metadata": {"name": "n", "resourceVersion": version, "labels": labels}}))
    };
    let mark = label::POLICY_APPLIED;
    assert!(index.set_pnode(marked("1", serde_json::json!({"a": "b"}))).is_some());
    assert_eq!(index.set_pnode(marked("2", serde_json::json!({"a": "b", mark: "p"}))), None);
    assert_eq!(index.snapshot("vnode-cls-a-n").pnode.unwrap().label(mark), Some("p"), "but it is known");
    assert_eq!(index.set_pnode(marked("3", serde_json::json!({"a": "b", mark: "q"}))), None);
    assert!(index.set_pnode(marked("4", serde_json::json!({mark: "q"}))).is_some());
    assert_eq!(index.set_pnode(marked("5", serde_json::json!({}))), None);
}

#[test]
fn the_answer_to_a_label_is_known_before_the_watch_shows_it() {
    let mut index = index();
    let seen = |version: &str, uid: &str, labels: serde_json::Value| {
        node(
            serde_json::json!({"metadata": {"name": "n", "uid": uid, "resourceVersion": version, "labels": labels}}),
        )
    };
    let marked = || serde_json::json!({label::POLICY_APPLIED: "p"});
    assert_eq!(index.answered_pnode(seen("6", "u", marked())), None, "it may have gone");
    assert!(index.labelled(&|_| true).is_empty());
    index.set_pnode(seen("5", "u", serde_json::json!({})));
    assert_eq!(index.answered_pnode(seen("7", "u", marked())), None, "our mark wakes nobody");
    assert_eq!(index.set_pnode(seen("6", "u", serde_json::json!({"a": "b"}))), None, "an older version");
    assert_eq!(index.set_pnode(seen("7", "u", marked())), None, "the watch shows the answer");
    assert!(index.labelled(&|policy| policy == "p").iter().map(|node| node.name()).eq(["n"]));
    assert!(index.set_pnode(seen("8", "u", serde_json::json!({"a": "b"}))).is_some());
    assert_eq!(index.answered_pnode(seen("9", "other", marked())), None, "of another node of this name");
    assert!(index.labelled(&|_| true).is_empty());
}

#[test]
fn sums_beyond_every_amount_come_down_again() {
    let mut index = index();
    index.set_pod(pod("1", "n", i64::MAX, Stamp::None));
    index.set_pod(pod("2", "n", i64::MAX, Stamp::None));
    index.set_pod(pod("3", "n", 100, Stamp::None));
    assert_eq!(index.usage("n").others["cpu"], i64::MAX);
    index.remove_pod("1");
    index.remove_pod("2");
    assert_eq!(index.usage("n").others["cpu"], 100);
}

#[test]
fn a_relist_of_pods_wakes_only_what_changed() {
    let mut index = index();
    index.set_pod(pod("1", "n1", 1, Stamp::None));
    index.set_pod(pod("2", "n2", 1, Stamp::None));
    let dirty = index.reset_pods(vec![pod("1", "n1", 1, Stamp::None), pod("3", "n3", 1, Stamp::None)]);
    assert_eq!(dirty.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["vnode-cls-a-n2", "vnode-cls-a-n3"]);
}

#[test]
fn a_real_node_with_our_labels_is_not_ours() {
    let mut index = index();
    let labels = serde_json::json!({label::MANAGED_BY: "kubeocean", label::CLUSTER_BINDING: "dc-east"});
    let real = node(serde_json::json!({"metadata": {"name": "master-1", "labels": labels}}));
    assert_eq!(index.set_vnode(real), None);
}

#[test]
fn old_news_about_a_vnode_is_ignored() {
    let mut index = index();
    let version = |rv: &str| {
        node(serde_json::json!({"metadata": {"name": "vnode-cls-a-n", "uid": "u", "resourceVersion": rv}}))
    };
    assert!(index.set_vnode(version("10")).is_some());
    assert_eq!(index.set_vnode(version("9")), None);
    assert_eq!(index.set_vnode(version("10")), None, "our own write comes back");
    assert!(index.set_vnode(version("11")).is_some());
    assert_eq!(index.remove_vnode("vnode-cls-a-n", "other", 12), None);
    assert!(index.remove_vnode("vnode-cls-a-n", "u", 13).is_some());
    assert_eq!(index.set_vnode(version("12")), None, "a late answer revives nothing");
    assert!(index.set_vnode(version("14")).is_some(), "it had lost a label and has it again");
    index.reset_vnodes(Vec::new());
    assert_eq!(index.set_vnode(version("13")), None, "nor after a list");
}

#[test]
fn a_lease_is_renewed_for_the_ready_and_for_those_whose_lease_ran_out_while_ready() {
    let mut index = index();
    let mut renewed = |status: &str, reason: &str, written: bool| {
        let ready = serde_json::json!({"type": "Ready", "status": status, "reason": reason});
        index.set_vnode(node(serde_json::json!({
            "metadata": {"name": "vnode-cls-a-n", "uid": "u"}, "status": {"conditions": [ready]},
        })));
        index.set_written("vnode-cls-a-n", Written { ready: written, ..Written::default() });
        index.renewable().count() == 1
    };
    assert!(renewed("True", "KubeletReady", false));
    assert!(renewed("Unknown", "NodeStatusUnknown", true));
    assert!(!renewed("Unknown", "NodeStatusUnknown", false));
    assert!(!renewed("False", "KubeletNotReady", true), "the answer to the write that says so was lost");
}

#[test]
fn a_policy_is_used_by_what_is_there_and_what_is_coming() {
    let mut index = index();
    let annotations = serde_json::json!({annotation::POLICIES_APPLIED: "p"});
    index.set_vnode(node(
        serde_json::json!({"metadata": {"name": "vnode-cls-a-1", "annotations": annotations}}),
    ));
    let leased = Decided { leased_by: Some("p".into()), ..Decided::default() };
    for name in ["vnode-cls-a-1", "vnode-cls-a-2"] {
        assert_eq!(index.set_decided(&name.into(), Some(leased.clone())), BTreeSet::from(["p".to_owned()]));
    }
    assert!(index.set_decided(&"vnode-cls-a-2".into(), Some(leased)).is_empty());
    assert_eq!(index.built_from("p"), 2);
}

proptest! {
    /// A recount takes from each pod what was made of it; what that must be is told by the last word about each.
    #[test]
    fn sums_are_those_of_what_was_last_said_of_each_pod(
        events in proptest::collection::vec((0_u8..12, 0_u8..4, 0_i64..500, 0_u8..5), 0..200),
    ) {
        let (mut index, mut last) = (index(), std::collections::BTreeMap::new());
        for node in 0..4 {
            index.set_pnode(super::tests::node(serde_json::json!({"metadata": {"name": format!("n{node}")}})));
        }
        for (uid, node, cpu, what) in events {
            let stamp = match what {
                0 => Stamp::None,
                1 => stamped("dc-east", "c-1"),
                2 => stamped("dc-west", "c-1"),
                3 => stamped("dc-east", "c-2"),
                _ => Stamp::Legacy { vnode: format!("vnode-cls-a-n{node}") },
            };
            index.set_pod(pod(&uid.to_string(), &format!("n{node}"), cpu, stamp));
            last.insert(uid, (node, cpu, what == 1 || what == 4));
        }
        for node in 0..4 {
            let sum = |own: bool| -> (i64, i64) {
                let here = last.values().filter(|(at, _, is_own)| *at == node && *is_own == own);
                here.fold((0, 0), |(cpu, pods), (_, more, _)| (cpu + more, pods + 1))
            };
            let usage = index.usage(&format!("n{node}"));
            let shown = |side: &crate::nodes::snapshot::Amounts| {
                let of = |key: &str| side.get(key).copied().unwrap_or(0);
                (of("cpu"), of("pods"))
            };
            prop_assert_eq!((shown(&usage.own), shown(&usage.others)), (sum(true), sum(false)));
        }
        prop_assert_eq!(index.recount(), BTreeSet::new());
    }

    #[test]
    fn sums_equal_a_recount(events in proptest::collection::vec((0_u8..12, 0_u8..4, 0_i64..500, 0_u8..4), 0..200)) {
        let mut index = index();
        for (uid, node, cpu, what) in events {
            let (uid, node) = (uid.to_string(), format!("n{node}"));
            match what {
                0 => { index.remove_pod(&uid); }
                1 => { index.set_pod(with_ports(pod(&uid, &node, cpu, stamped("dc-east", "c-1")), &[80])); }
                2 => { index.set_pod(WorkerPod { terminal: true, ..pod(&uid, &node, cpu, Stamp::None) }); }
                _ => {
                    let ports = [80, i32::try_from(cpu % 3).unwrap() + 1];
                    index.set_pod(with_ports(pod(&uid, &node, cpu, Stamp::None), &ports));
                }
            }
        }
        prop_assert_eq!(index.recount(), BTreeSet::new());
    }
}
