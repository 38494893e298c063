//! DNS settings of a ppod (TD-704): the computing cluster's DNS, merged with the pod's own wishes as a kubelet would.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::ServiceEnvironment;

/// The API server accepts no more name servers.
const MAX_NAMESERVERS: usize = 3;
/// The API server accepts no more search domains.
const MAX_SEARCHES: usize = 32;
/// The API server accepts no longer search list, counted with separators.
const MAX_SEARCH_CHARS: usize = 2048;

/// Whether a pod resolves names of the computing cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsNeed {
    /// It asks the computing cluster's DNS.
    Cluster,
    /// It asks its node's resolver: policy `Default`, or `ClusterFirst` on the host network.
    Node,
    /// It brings its own settings.
    Own,
}

/// What DNS the pod with this `spec` uses.
pub fn dns_need(spec: &Value) -> DnsNeed {
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    match spec.get("dnsPolicy").and_then(Value::as_str).unwrap_or("ClusterFirst") {
        // A kubelet treats this combination as `Default`; the other policy exists to ask for cluster DNS.
        "ClusterFirst" if host_network => DnsNeed::Node,
        "ClusterFirst" | "ClusterFirstWithHostNet" => DnsNeed::Cluster,
        "Default" => DnsNeed::Node,
        _ => DnsNeed::Own,
    }
}

/// Sets `dnsPolicy` and `dnsConfig` for a pod of `namespace`.
pub(in super::super) fn set_dns(
    spec: &mut Map<String, Value>,
    namespace: &str,
    need: DnsNeed,
    services: &ServiceEnvironment,
) {
    match (need, services.dns_address) {
        (DnsNeed::Own, _) | (DnsNeed::Cluster, None) => {}
        (DnsNeed::Node, _) => {
            spec.insert("dnsPolicy".to_owned(), "Default".into());
        }
        (DnsNeed::Cluster, Some(address)) => {
            let own = spec.remove("dnsConfig").unwrap_or_default();
            spec.insert("dnsPolicy".to_owned(), "None".into());
            spec.insert("dnsConfig".to_owned(), merged(namespace, address, &services.cluster_domain, own));
        }
    }
}

fn merged(namespace: &str, dns_address: IpAddr, domain: &str, own: Value) -> Value {
    let strings = |field: &str| -> Vec<String> {
        let items = own.get(field).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let cluster_searches = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];

    let mut nameservers = unique([dns_address.to_string()].into_iter().chain(strings("nameservers")));
    nameservers.truncate(MAX_NAMESERVERS);
    let mut searches = unique(cluster_searches.into_iter().chain(strings("searches")));
    searches.truncate(MAX_SEARCHES);
    while searches.join(" ").len() > MAX_SEARCH_CHARS {
        searches.pop();
    }
    // The pod's own options win over the generated one of the same name.
    let mut options = own.get("options").and_then(Value::as_array).cloned().unwrap_or_default();
    if !options.iter().any(|option| option.get("name").and_then(Value::as_str) == Some("ndots")) {
        options.insert(0, json!({"name": "ndots", "value": "5"}));
    }

    // Fields of `dnsConfig` newer than this code survive.
    let mut config = own;
    if !config.is_object() {
        config = json!({});
    }
    config["nameservers"] = json!(nameservers);
    config["searches"] = json!(searches);
    config["options"] = options.into();
    config
}

fn unique(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = Vec::new();
    for item in items {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::config::CLUSTER_DOMAIN;

    fn services(cluster_domain: &str) -> ServiceEnvironment {
        ServiceEnvironment {
            api_address: "10.0.0.1".parse().unwrap(),
            api_port: 443,
            dns_address: Some("10.0.0.53".parse().unwrap()),
            cluster_domain: cluster_domain.into(),
        }
    }

    #[rstest]
    #[case::unset_is_cluster_first(json!({}), DnsNeed::Cluster)]
    #[case::cluster_first(json!({"dnsPolicy": "ClusterFirst"}), DnsNeed::Cluster)]
    #[case::host_network_uses_the_node(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), DnsNeed::Node)]
    #[case::host_network_can_ask(json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}), DnsNeed::Cluster)]
    #[case::node(json!({"dnsPolicy": "Default"}), DnsNeed::Node)]
    #[case::own(json!({"dnsPolicy": "None"}), DnsNeed::Own)]
    fn need_follows_the_policy(#[case] spec: Value, #[case] expect: DnsNeed) {
        assert_eq!(dns_need(&spec), expect);
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers write JSON in place")]
    fn check(spec: Value, expect: Value) {
        let need = dns_need(&spec);
        let Value::Object(mut spec) = spec else { panic!("a spec is an object") };
        set_dns(&mut spec, "team-a", need, &services(CLUSTER_DOMAIN));
        spec.remove("hostNetwork");
        assert_eq!(Value::Object(spec), expect);
    }

    #[test]
    fn cluster_dns_has_three_searches_and_five_dots() {
        check(
            json!({}),
            json!({"dnsPolicy": "None", "dnsConfig": {
                "nameservers": ["10.0.0.53"],
                "searches": ["team-a.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                "options": [{"name": "ndots", "value": "5"}],
            }}),
        );
    }

    /// Defect 7(a): the domain is what the computing cluster's administrators chose.
    #[test]
    fn names_are_looked_up_in_the_domain_of_the_cluster() {
        let mut spec = Map::new();
        set_dns(&mut spec, "team-a", DnsNeed::Cluster, &services("corp.example"));
        assert_eq!(
            spec["dnsConfig"]["searches"],
            json!(["team-a.svc.corp.example", "svc.corp.example", "corp.example"])
        );
        let alias = services("corp.example").host_alias();
        assert_eq!(
            alias["hostnames"],
            json!([
                "kubernetes.default.svc",
                "kubernetes.default",
                "kubernetes",
                "kubernetes.default.svc.corp.example"
            ])
        );
    }

    #[test]
    fn own_settings_are_merged_without_duplicates_and_within_the_limits() {
        check(
            json!({"dnsConfig": {
                "nameservers": ["10.0.0.53", "1.1.1.1", "8.8.8.8", "9.9.9.9"],
                "searches": ["corp.example", "cluster.local"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
            }}),
            json!({"dnsPolicy": "None", "dnsConfig": {
                "nameservers": ["10.0.0.53", "1.1.1.1", "8.8.8.8"],
                "searches": ["team-a.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
            }}),
        );
    }

    #[test]
    fn search_lists_never_exceed_what_the_server_takes() {
        let searches: Vec<String> = (0..60).map(|number| format!("{}{number}", "x".repeat(60))).collect();
        let mut spec = Map::from_iter([("dnsConfig".to_owned(), json!({"searches": searches}))]);
        set_dns(&mut spec, "team-a", DnsNeed::Cluster, &services(CLUSTER_DOMAIN));
        let kept: Vec<&str> =
            spec["dnsConfig"]["searches"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        assert!(kept.len() <= MAX_SEARCHES && kept.join(" ").len() <= MAX_SEARCH_CHARS);
        assert_eq!(kept[0], "team-a.svc.cluster.local");
    }

    #[test]
    fn host_network_pods_and_own_settings_keep_what_they_said() {
        check(
            json!({"hostNetwork": true, "dnsConfig": {"searches": ["a"]}}),
            json!({"dnsPolicy": "Default", "dnsConfig": {"searches": ["a"]}}),
        );
        check(json!({"dnsPolicy": "Default"}), json!({"dnsPolicy": "Default"}));
        let own = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}});
        check(own.clone(), own);
    }
}
