//! Vectors of BU-301, BU-302, TD-301 and TD-302, and properties of the derived names.

use super::*;
use proptest::prelude::*;
use rstest::rstest;

#[rstest]
#[case::short("cluster-123", "worker-node-1", "vnode-cluster-123-worker-node-1")]
#[case::hashed(
    "cluster-with-24-characte",
    "ip-10-0-0-1.eu-central-1.compute.internal",
    "vnode-cluster-with-24-characte-00fc4e9800aa037ec8f4696508b07af6"
)]
fn vnode_names(#[case] id: &str, #[case] node: &str, #[case] expected: &str) {
    assert_eq!(vnode_name(id, node), expected);
}

#[test]
fn a_vnode_name_of_63_bytes_is_kept_and_of_64_is_hashed() {
    let node = "n".repeat(63 - "vnode-a-".len());
    assert_eq!(vnode_name("a", &node), format!("vnode-a-{node}"));
    assert!(vnode_name("a", &format!("{node}n")).starts_with(&format!("vnode-a-{}-", "n".repeat(22))));
}

#[rstest]
#[case("test-pod", "default", "test-pod-49d2ec05688689cc55230ecf7101f2de")]
#[case("test-pv", "", "test-pv-14c15d9b072115b6e7aae77aa7f1732d")]
#[case("kube-root-ca.crt", "kube-system", "kube-root-ca.crt-d0671b3388a26ceb0c0ac02f8166b4b9")]
fn copy_names(#[case] name: &str, #[case] namespace: &str, #[case] expected: &str) {
    assert_eq!(phys_name(name, namespace), expected);
}

#[test]
fn token_secret_names() {
    assert_eq!(
        token_secret_name("test-pod", "kube-api-access-xyz", "test-uid-123", "test-ns"),
        "test-pod-kube-api-access-xyz-t-b70a6c2e342892263f296b4f4deaa821"
    );
}

/// TD-301: thirty bytes are kept whole, whatever follows.
#[rstest]
#[case::thirty("abcdefghijklmnopqrstuvwxyz0123", "abcdefghijklmnopqrstuvwxyz0123")]
#[case::thirty_one("abcdefghijklmnopqrstuvwxyz01234", "abcdefghijklmnopqrstuvwxyz0123")]
fn a_copy_keeps_thirty_bytes_of_a_name(#[case] name: &str, #[case] prefix: &str) {
    let derived = phys_name(name, "ns");
    assert_eq!(derived.rsplit_once('-').unwrap().0, prefix);
    assert_eq!(derived.len(), 63);
    assert_ne!(derived, phys_name(prefix, "other"));
}

/// API section 6.
#[test]
fn component_names() {
    assert_eq!(syncer_name("cls-a"), "kubeocean-syncer-cls-a");
    assert_eq!(proxier_name("cls-a"), "kubeocean-proxier-cls-a");
    assert_eq!(proxier_service_name("cls-a"), "kubeocean-proxier-cls-a-svc");
    assert_eq!(proxier_tls_secret_name("cls-a"), "cls-a-logs-proxy-tls");
    assert_eq!(proxier_csr_name("dc-east", "pod-0", 17), "kubeocean-proxier-dc-east-pod-0-17");
    assert!(proxier_csr_name("dc-east", "pod-0", 17).starts_with(&proxier_csr_prefix("dc-east")));
}

#[test]
fn a_prefix_that_ends_in_a_dot_ends_in_a_dash_instead() {
    let name = format!("{}.b", "a".repeat(29));
    assert!(phys_name(&name, "ns").starts_with(&format!("{}--", "a".repeat(29))));
    // BU-304: `vnode-cls-` and 19 bytes, then a dot.
    let node = format!("{}.{}", "n".repeat(19), "x".repeat(40));
    let vnode = vnode_name("cls", &node);
    assert!(vnode.starts_with(&format!("vnode-cls-{}--", "n".repeat(19))), "{vnode}");
    assert_eq!(vnode.len(), 63);
}

#[rstest]
#[case("vnode-cls-a-worker-1", 19_389)]
#[case("vnode-cls-worker1-kubeocean-worker1-worker", 45_149)]
fn preferred_ports(#[case] vnode: &str, #[case] port: u16) {
    assert_eq!(preferred_port(vnode), port);
}

#[test]
fn a_taken_port_gives_the_next_and_a_kept_one_stays() {
    let mut table = PortTable::default();
    table.adopt("other", 19_389, 1);
    assert_eq!(table.assign("vnode-cls-a-worker-1"), Ok(19_390));
    table.release("other");
    assert_eq!(table.assign("vnode-cls-a-worker-1"), Ok(19_390), "a vnode keeps its port for life");
}

#[test]
fn ports_wrap_and_run_out_with_a_message_that_names_the_vnode() {
    let mut table = PortTable::default();
    for port in preferred_port("v")..=PORT_MAX {
        table.adopt(&format!("n{port}"), port, 1);
    }
    assert_eq!(table.assign("v"), Ok(PORT_MIN));
    for port in PORT_MIN..=PORT_MAX {
        table.adopt(&format!("n{port}"), port, 1);
    }
    assert_eq!(table.assign("w").unwrap_err().to_string(), "no available ports for node w");
}

#[rstest]
#[case::of_a_vnode_that_has_one("a", 20_001, 20_000)]
#[case::out_of_range("b", 80, preferred_port("b"))]
#[case::of_another_vnode_of_the_same_age("b", 20_000, preferred_port("b"))]
#[case::free("b", 20_001, 20_001)]
fn an_edited_label_is_only_taken_when_the_port_could_be_ours(
    #[case] vnode: &str,
    #[case] label: u16,
    #[case] port: u16,
) {
    let mut table = PortTable::default();
    table.adopt("a", 20_000, 1);
    assert_eq!(table.adopt(vnode, label, 1), None);
    assert_eq!(table.assign(vnode), Ok(port));
    assert_eq!(table.assign("a"), Ok(20_000));
}

/// MC-134: whoever is seen first, the older vnode keeps a port that two bring.
#[rstest]
#[case::older_first([("a", 1), ("b", 2)], None)]
#[case::younger_first([("b", 2), ("a", 1)], Some("b"))]
#[case::equal_age_goes_by_name([("b", 1), ("a", 1)], Some("b"))]
fn the_older_of_two_vnodes_keeps_their_port(#[case] seen: [(&str, i64); 2], #[case] displaced: Option<&str>) {
    let mut table = PortTable::default();
    assert_eq!(table.adopt(seen[0].0, 20_000, seen[0].1), None);
    assert_eq!(table.adopt(seen[1].0, 20_000, seen[1].1).as_deref(), displaced);
    assert_eq!(table.holder(20_000), Some("a"));
    assert_eq!(table.assign("a"), Ok(20_000));
    assert_eq!(table.assign("b"), Ok(preferred_port("b")));
    table.release("a");
    assert_eq!(table.holder(20_000), None);
}

#[test]
fn a_port_that_was_only_planned_goes_to_the_vnode_that_carries_it() {
    let mut table = PortTable::default();
    let planned = table.assign("new").unwrap();
    assert_eq!(table.adopt("there", planned, 7).as_deref(), Some("new"));
    assert_ne!(table.assign("new"), Ok(planned));
}

#[rstest]
#[case("cls-dc-east", true)]
#[case("", false)]
#[case("a-", false)]
#[case("A", false)]
#[case("abcdefghijklmnopqrstuvwxy", false)]
fn cluster_ids(#[case] value: &str, #[case] valid: bool) {
    assert_eq!(value.parse::<ClusterId>().is_ok(), valid);
}

proptest! {
    /// BU-301, BU-304: whatever node there is, the API server takes the name of its vnode.
    #[test]
    fn vnode_names_are_short_subdomains(id in "[a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?", node in "[a-z0-9]{1,20}([-.][a-z0-9]{1,20}){0,9}") {
        let derived = vnode_name(&id, &node);
        prop_assert!(check("vnode", &derived, 63, Syntax::Dns1123Subdomain).is_ok(), "{}", derived);
        prop_assert!(derived.starts_with(&vnode_name_prefix(&id)));
    }

    #[test]
    fn copy_names_are_short_stable_subdomains(name in "[a-z0-9]{1,10}([-.][a-z0-9]{1,10}){0,8}", ns in "[a-z]{1,20}") {
        let derived = phys_name(&name, &ns);
        prop_assert!(derived.len() <= 63);
        prop_assert!(!derived.contains(".-"));
        prop_assert_eq!(&derived, &phys_name(&name, &ns));
    }

    #[test]
    fn fitted_label_values_are_valid(value in "[a-z0-9]([-a-z0-9.]{0,200}[a-z0-9])?") {
        let fitted = fit_label_value(&value);
        prop_assert!(fitted.len() <= 63);
        prop_assert!(fitted.ends_with(|c: char| c.is_ascii_alphanumeric()));
    }
}
