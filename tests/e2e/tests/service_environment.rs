//! How a pod finds the computing cluster's API server and DNS (TD-701 to TD-704, acceptance check 10).
//!
//! In: the two Services of TD-105, which this file has for itself, so it may change them. Out: what copies are told.

use kubeocean_api::keys::condition_type;
use kubeocean_e2e::pods::{Scene, Stage, condition, text};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::BindingSpec;
use serde_json::{Value, json};

const API_SERVICE: &str = "/api/v1/namespaces/default/services/kubernetes-intranet";
const DNS_SERVICE: &str = "/api/v1/namespaces/kube-system/services/kube-dns-intranet";

/// Says where a load balancer reaches a Service; nowhere for want of one.
async fn lead(scene: &Scene<'_>, service: &str, ingress: Value) {
    let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
    scene.computing.merge(&format!("{service}/status"), &status).await;
}

fn variables(container: &Value) -> Vec<(&str, &str)> {
    let all = container["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().map(|variable| (text(&variable["name"]), text(&variable["value"]))).collect()
}

/// What a pod that was just created is told: API server, then DNS.
async fn told(scene: &Scene<'_>, name: &str) -> (String, String) {
    let (_, copy) = scene.run_pod(name, json!({})).await;
    let variables = variables(&copy["spec"]["containers"][0]);
    let host = variables.iter().find(|(name, _)| *name == "KUBERNETES_SERVICE_HOST").expect("an address").1;
    assert_eq!(text(&copy["spec"]["hostAliases"][0]["ip"]), host);
    (host.to_owned(), text(&copy["spec"]["dnsConfig"]["nameservers"][0]).to_owned())
}

#[tokio::test]
async fn pods_are_told_where_the_computing_cluster_is_and_the_next_one_where_it_went() {
    let stage = Stage::start(BindingSpec::new("told"), 1).await;
    let scene = stage.scene("told").await;
    let port = scene.stage.binding.computing().port().to_string();

    // The user's own words about the API server do not count, in no container; about anything else they do.
    let env = json!([
        {"name": "KUBERNETES_SERVICE_HOST", "value": "203.0.113.9"},
        {"name": "KUBERNETES_SERVICE_PORT", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "HOSTNAME", "value": "mine"},
    ]);
    let container = |name: &str| json!({"name": name, "image": "example.test/image", "env": env});
    let spec = json!({"containers": [container("main")], "initContainers": [container("first")]});
    let (_, copy) = scene.run_pod("overrides", spec).await;
    for container in [&copy["spec"]["containers"][0], &copy["spec"]["initContainers"][0]] {
        let variables = variables(container);
        let all = |name: &str| -> Vec<&str> {
            variables.iter().filter(|(known, _)| *known == name).map(|(_, value)| *value).collect()
        };
        assert_eq!(all("KUBERNETES_SERVICE_HOST"), ["127.0.0.1"]);
        assert_eq!(all("KUBERNETES_SERVICE_PORT"), [port.as_str()]);
        assert_eq!(all("KUBERNETES_PORT_443_TCP_ADDR"), ["127.0.0.1"]);
        assert_eq!(all("HOSTNAME"), ["mine"]);
        assert!(!container["env"].to_string().contains("metadata.name"));
    }
    let names = json!([
        "kubernetes.default.svc",
        "kubernetes.default",
        "kubernetes",
        "kubernetes.default.svc.cluster.local",
    ]);
    assert_eq!(copy["spec"]["hostAliases"], json!([{"ip": "127.0.0.1", "hostnames": names}]));
    let dns = json!({
        "nameservers": ["127.0.0.1"],
        "searches": ["told.svc.cluster.local", "svc.cluster.local", "cluster.local"],
        "options": [{"name": "ndots", "value": "5"}],
    });
    assert_eq!((&copy["spec"]["dnsPolicy"], &copy["spec"]["dnsConfig"]), (&json!("None"), &dns));
    let (_, copy) = scene.run_pod("of-the-node", json!({"dnsPolicy": "Default"})).await;
    assert_eq!((&copy["spec"]["dnsPolicy"], &copy["spec"]["dnsConfig"]), (&json!("Default"), &Value::Null));

    // Both move: the next pod is told, without a restart, and one that runs is not touched.
    assert_eq!(told(&scene, "before").await, ("127.0.0.1".to_owned(), "127.0.0.1".to_owned()));
    lead(&scene, API_SERVICE, json!([{"ip": "192.0.2.7"}, {"ip": "192.0.2.8"}])).await;
    lead(&scene, DNS_SERVICE, json!([{"ip": "192.0.2.53"}])).await;
    // News of a Service and of a pod come by different watches.
    let mut attempts = 0;
    while told(&scene, &format!("after-{attempts}")).await
        != ("192.0.2.7".to_owned(), "192.0.2.53".to_owned())
    {
        attempts += 1;
        assert!(attempts < 20, "the new addresses are not used");
    }
    let before = scene.worker.get(&scene.ppod("before")).await.expect("it runs");
    assert_eq!(text(&before["spec"]["hostAliases"][0]["ip"]), "127.0.0.1");

    // A cloud that gives names instead of addresses.
    lead(&scene, API_SERVICE, json!([{"hostname": "localhost"}])).await;
    let mut attempts = 0;
    while !["127.0.0.1", "::1"].contains(&told(&scene, &format!("named-{attempts}")).await.0.as_str()) {
        attempts += 1;
        assert!(attempts < 20, "the name is not resolved");
    }

    // Nowhere: pods wait and are told for what; those that run or do not ask go on, and an address is enough.
    lead(&scene, DNS_SERVICE, Value::Null).await;
    let refused = |pod: &Value| {
        let created = condition(pod, condition_type::WORKER_POD_CREATED);
        (created["reason"] == "DependencyMissing").then(|| text(&created["message"]).to_owned())
    };
    let mut attempts = 0;
    let waiting = loop {
        let name = format!("waits-{attempts}");
        scene.create_pod(&scene.pod(&name, json!({}))).await;
        let settled =
            |pod: &Value| refused(pod).or_else(|| (pod["status"]["phase"] == "Running").then(String::new));
        let message = scene.computing.wait("it to wait or run", &scene.vpod(&name), settled).await;
        if !message.is_empty() {
            assert!(message.contains("kube-system/kube-dns-intranet"), "{message}");
            break name;
        }
        attempts += 1;
        assert!(attempts < 20, "pods run without DNS");
    };
    scene.run_pod("asks-its-node", json!({"dnsPolicy": "Default"})).await;
    lead(&scene, DNS_SERVICE, json!([{"ip": "192.0.2.54"}])).await;
    let (_, copy) = scene.wait_running(&waiting).await;
    assert_eq!(text(&copy["spec"]["dnsConfig"]["nameservers"][0]), "192.0.2.54");
    assert_rights(&stage.binding);
}
