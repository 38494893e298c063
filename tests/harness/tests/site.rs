//! An installed pair: the charts apply, accounts exist, bindings do not share namespaces.

use k8s_openapi::api::core::v1::{Secret, Service};
use kube::Api;
use kube::api::ListParams;
use kubeocean_harness::site::SYSTEM_NAMESPACE;
use kubeocean_harness::{BindingSpec, shared_site};
use serde_json::json;

#[tokio::test]
async fn two_bindings_have_a_secret_and_a_mount_namespace_each() {
    let site = shared_site().await;
    let a = site.bind(BindingSpec::new("site-a")).await.unwrap();
    let b = site.bind(BindingSpec::new("site-b").field("directScheduling", json!(true))).await.unwrap();
    assert_ne!(a.mount_namespace(), b.mount_namespace());
    for binding in [&a, &b] {
        let secrets: Api<Secret> =
            Api::namespaced(site.computing().client().await.unwrap(), SYSTEM_NAMESPACE);
        let secret = secrets.get(&binding.secret_name()).await.unwrap();
        let kubeconfig = String::from_utf8(secret.data.unwrap()["kubeconfig"].0.clone()).unwrap();
        let client = kubeocean_harness::cluster::client_of(&kubeconfig).await.unwrap();
        // The chart's Role, through the token in the Secret: its own mount namespace and no other.
        let own: Api<Secret> = Api::namespaced(client.clone(), binding.mount_namespace());
        own.list(&ListParams::default()).await.unwrap();
        let other: Api<Secret> = Api::namespaced(client, "kube-system");
        other.list(&ListParams::default()).await.unwrap_err();
    }
    let direct = ["get", "clusterbinding", "site-b", "--output", "jsonpath={.spec.directScheduling}"];
    assert_eq!(site.computing().kubectl_text(&direct).await.unwrap(), "true");
    a.policy("site-a", json!({"resourceLimits": [{"resource": "cpu", "percent": 50}]})).await.unwrap();
}

#[tokio::test]
async fn the_intranet_services_have_an_address() {
    let site = shared_site().await;
    for (namespace, name) in [("default", "kubernetes-intranet"), ("kube-system", "kube-dns-intranet")] {
        let services: Api<Service> = Api::namespaced(site.computing().client().await.unwrap(), namespace);
        let status = services.get(name).await.unwrap().status.unwrap();
        let ingress = status.load_balancer.unwrap().ingress.unwrap();
        assert_eq!(ingress[0].ip.as_deref(), Some("127.0.0.1"), "{name}");
    }
}
