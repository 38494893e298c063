//! The fault proxy: what passes through it is what the server says, and each fault is what its name says.

use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt, TryStreamExt};
use http::Request;
use kube::Client;
use kubeocean_harness::cluster::client_of;
use kubeocean_harness::faults::{Fault, Refusal, Requests, Rule};
use kubeocean_harness::{FaultProxy, shared};
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/faults/configmaps";

async fn code(client: &Client, request: http::request::Builder, body: &str) -> Result<u16, kube::Error> {
    match client.request::<Value>(request.body(body.as_bytes().to_vec()).expect("a request")).await {
        Ok(_) => Ok(200),
        Err(kube::Error::Api(status)) => Ok(status.code),
        Err(error) => Err(error),
    }
}

fn get(path: &str) -> http::request::Builder {
    Request::get(path)
}

#[tokio::test]
async fn each_fault_is_what_its_name_says() {
    let cluster = &shared().await.computing;
    cluster.create_namespace("faults").await.unwrap();
    let proxy = FaultProxy::start(cluster).await.unwrap();
    // Any account: what it may not do is answered by the server all the same.
    let admin = cluster.client().await.unwrap();
    let rights = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "faults"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "faults"}],
    });
    cluster.apply_objects(vec![rights]).await.unwrap();
    let kubeconfig = proxy.through(&cluster.service_account_kubeconfig("faults", "default").await.unwrap());
    assert!(!kubeconfig.contains(cluster.server()));
    let client = client_of(&kubeconfig).await.unwrap();
    let object = |name: &str| json!({"metadata": {"name": name}}).to_string();
    let post = || Request::post(CONFIG_MAPS).header("content-type", "application/json");

    // Nothing injected: the caller is the caller, and nothing gets lost.
    assert_eq!(code(&client, post(), &object("a")).await.unwrap(), 200);
    assert_eq!(code(&client, get(&format!("{CONFIG_MAPS}/a")), "").await.unwrap(), 200);
    assert_eq!(code(&client, get(&format!("{CONFIG_MAPS}/b")), "").await.unwrap(), 404);
    assert_eq!(proxy.served().iter().filter(|it| it.is_write()).count(), 1);

    // The server did it, and nobody learnt of it.
    proxy.inject(Rule::new(Requests::writes(), Fault::LoseAnswer));
    code(&client, post(), &object("lost")).await.unwrap_err();
    assert_eq!(code(&admin, get(&format!("{CONFIG_MAPS}/lost")), "").await.unwrap(), 200);
    proxy.heal();

    for (refusal, wanted) in
        [(Refusal::Conflict, 409), (Refusal::InternalError, 500), (Refusal::Unauthorized, 401)]
    {
        proxy.inject(Rule::new(Requests::writes(), Fault::Refuse(refusal)).times(1));
        assert_eq!(code(&client, post(), &object("refused")).await.unwrap(), wanted);
    }
    assert_eq!(
        code(&admin, get(&format!("{CONFIG_MAPS}/refused")), "").await.unwrap(),
        404,
        "it was not asked"
    );
    proxy.heal();

    // The client waits as long as it is told to.
    let asked = Instant::now();
    proxy.inject(Rule::new(Requests::reads(), Fault::Refuse(Refusal::TooManyRequests(1))).times(1));
    assert_eq!(code(&client, get(CONFIG_MAPS), "").await.unwrap(), 200);
    assert!(asked.elapsed() >= Duration::from_secs(1));
    proxy.heal();

    // Half an answer is none.
    proxy.inject(Rule::new(Requests::reads(), Fault::CutAfter(10)));
    code(&client, get(CONFIG_MAPS), "").await.unwrap_err();
    proxy.heal();
    assert_eq!(code(&client, get(CONFIG_MAPS), "").await.unwrap(), 200);

    // A watch that is slow, until it is not; then one that is too old.
    let watch = || {
        get(&format!("{CONFIG_MAPS}?watch=true&fieldSelector=metadata.name%3Da")).body(Vec::new()).unwrap()
    };
    proxy.inject(Rule::new(Requests::watches(), Fault::Slow(Duration::from_millis(300))));
    let began = Instant::now();
    let mut events = client.request_stream(watch()).await.unwrap().lines();
    assert!(events.try_next().await.unwrap().unwrap().contains("ADDED"));
    assert!(began.elapsed() >= Duration::from_millis(300));
    proxy.heal();
    proxy.inject(Rule::new(Requests::watches(), Fault::ExpireWatch));
    let mut events = client.request_stream(watch()).await.unwrap().lines();
    let event: Value = serde_json::from_str(&events.try_next().await.unwrap().unwrap()).unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(events.try_next().await.unwrap(), None);
}
