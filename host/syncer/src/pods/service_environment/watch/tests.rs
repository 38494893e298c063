use serde_json::json;

use super::*;
use crate::config::CLUSTER_DOMAIN;
use crate::objects::Woken;

#[expect(clippy::needless_pass_by_value, reason = "callers write JSON in place")]
fn service(ingress: serde_json::Value) -> ServiceView {
    serde_json::from_value(json!({
        "metadata": {"name": "kubernetes-intranet"},
        "spec": {"ports": [{"port": 443}, {"port": 80}]},
        "status": {"loadBalancer": {"ingress": ingress}},
    }))
    .unwrap()
}

#[tokio::test]
async fn waiting_pods_learn_when_the_address_appears_and_the_next_pod_uses_a_changed_one() {
    let pods = Pods::default();
    let woken = Arc::new(Woken::default());
    pods.connect(woken.clone());
    let store = Arc::new(ServiceStore::new(pods, CLUSTER_DOMAIN));
    let sink = ServiceSink { store: Arc::clone(&store), which: Which::Api };
    let pod = ObjectKey::new("team-a", "web");

    let error = store.environment(&pod, DnsNeed::Own).await.unwrap_err();
    assert!(
        error.to_string().starts_with("Service default/kubernetes-intranet has not been read yet"),
        "{error}"
    );
    sink.reset(vec![]);
    assert_eq!(woken.0.lock().len(), 1, "the reason changed");
    let error = store.environment(&pod, DnsNeed::Own).await.unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
    let short_lived = ObjectKey::new("team-a", "short-lived");
    store.environment(&short_lived, DnsNeed::Own).await.unwrap_err();
    store.pod_gone(&short_lived);

    sink.apply(service(json!([{"ip": "10.0.0.1"}])));
    assert_eq!(woken.0.lock().len(), 2);
    let environment = store.environment(&pod, DnsNeed::Node).await.unwrap();
    assert_eq!((environment.api_address.to_string().as_str(), environment.api_port), ("10.0.0.1", 443));
    assert_eq!(environment.dns_address, None);

    sink.apply(service(json!([{"ip": "10.0.0.2"}])));
    let environment = store.environment(&pod, DnsNeed::Own).await.unwrap();
    assert_eq!(environment.api_address.to_string(), "10.0.0.2");
    assert_eq!(woken.0.lock().len(), 2, "nobody waits any more");
}

#[tokio::test]
async fn only_pods_that_ask_cluster_dns_wait_for_it() {
    let store = Arc::new(ServiceStore::new(Pods::default(), CLUSTER_DOMAIN));
    ServiceSink { store: Arc::clone(&store), which: Which::Api }.apply(service(json!([{"ip": "fd00::1"}])));
    let pod = ObjectKey::new("team-a", "web");
    let error = store.environment(&pod, DnsNeed::Cluster).await.unwrap_err();
    assert_eq!((error.namespace, error.name), DNS_SERVICE);
    ServiceSink { store: Arc::clone(&store), which: Which::Dns }
        .apply(service(json!([{"hostname": "localhost"}])));
    let environment = store.environment(&pod, DnsNeed::Cluster).await.unwrap();
    assert!(environment.dns_address.unwrap().is_loopback(), "the host name is resolved");
    let url = environment.variables().into_iter().find(|(name, _)| *name == "KUBERNETES_PORT").unwrap().1;
    assert_eq!(url, "tcp://[fd00::1]:443");
}

#[tokio::test(start_paused = true)]
async fn an_address_stands_for_minutes_while_its_name_cannot_be_resolved() {
    const NAME: &str = "load-balancer.invalid";
    let store = Arc::new(ServiceStore::new(Pods::default(), CLUSTER_DOMAIN));
    ServiceSink { store: Arc::clone(&store), which: Which::Api }.apply(service(json!([{"hostname": NAME}])));
    let pod = ObjectKey::new("team-a", "web");
    store.environment(&pod, DnsNeed::Own).await.unwrap_err();

    let (address, answered) = ("10.0.0.9".parse().unwrap(), Instant::now());
    let resolved = Resolved { address, answered, asked: answered };
    store.state.lock().resolved.insert(NAME.to_owned(), resolved);
    tokio::time::advance(Duration::from_mins(9)).await;
    assert_eq!(store.environment(&pod, DnsNeed::Own).await.unwrap().api_address, address);
    tokio::time::advance(Duration::from_mins(1)).await;
    let error = store.environment(&pod, DnsNeed::Own).await.unwrap_err();
    assert!(error.to_string().contains("cannot be resolved"), "{error}");
}

/// TD-701. Of `localhost` any resolver says where it is.
#[tokio::test(start_paused = true)]
async fn a_host_name_is_resolved_at_most_once_a_minute() {
    const NAME: &str = "localhost";
    let store = Arc::new(ServiceStore::new(Pods::default(), CLUSTER_DOMAIN));
    ServiceSink { store: Arc::clone(&store), which: Which::Api }.apply(service(json!([{"hostname": NAME}])));
    let pod = ObjectKey::new("team-a", "web");

    let (address, answered) = ("10.0.0.9".parse().unwrap(), Instant::now());
    let resolved = Resolved { address, answered, asked: answered };
    store.state.lock().resolved.insert(NAME.to_owned(), resolved);
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(store.environment(&pod, DnsNeed::Own).await.unwrap().api_address, address);
    tokio::time::advance(Duration::from_secs(2)).await;
    let now = store.environment(&pod, DnsNeed::Own).await.unwrap().api_address;
    assert!(now.is_loopback(), "{now}");
}
