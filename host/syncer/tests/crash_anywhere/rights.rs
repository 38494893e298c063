//! Which writes the charts' roles permit a Syncer, read from the clusters that have them.

use std::collections::BTreeSet;

use kube::Client;
use kubeocean_harness::{shared_site, site::SYNCER_ACCOUNT};
use serde_json::Value;

use crate::life::list;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Rights to write that are not for the writes of a binding's Syncer.
const ASIDE: [&str; 8] = [
    // Who asks the policy server, and may he.
    "computing POST subjectaccessreviews",
    "computing POST tokenreviews",
    // What the API server wants of who refers to an owner that waits for its dependents.
    "computing PUT clusterbindings/finalizers",
    "worker PUT resourceleasingpolicies/finalizers",
    // The Proxier has the same account.
    "worker POST pods/attach",
    "worker POST pods/exec",
    "worker POST pods/portforward",
    // Renewal of the account's own credential.
    "worker POST serviceaccounts/token",
];

/// Of Leases, every ten seconds: a story may not last as long.
const RENEWAL: &str = "computing PATCH leases";

/// Every permitted write is among these kinds, or for something else.
pub(crate) async fn assert_used(made: BTreeSet<String>) {
    let site = shared_site().await;
    let made: BTreeSet<String> = made.iter().map(|kind| kind.replace(" APPLY ", " PATCH ")).collect();
    let mut permitted = BTreeSet::new();
    for (server, cluster) in [("computing", site.computing()), ("worker", &site.fleet().workers[0])] {
        let client = cluster.client().await.unwrap();
        permitted.extend(permitted_by(&client).await.into_iter().map(|write| format!("{server} {write}")));
    }
    println!(
        "{} of {} permitted kinds of writes were made",
        permitted.intersection(&made).count(),
        permitted.len()
    );
    let mut unused: BTreeSet<&str> = permitted.difference(&made).map(String::as_str).collect();
    unused.remove(RENEWAL);
    assert_eq!(unused, ASIDE.into(), "no story makes these; all are {made:?}");
}

/// `PATCH nodes` and the like, of the Syncer's accounts.
async fn permitted_by(client: &Client) -> BTreeSet<String> {
    let mut writes = BTreeSet::new();
    for kind in ["clusterrolebindings", "rolebindings"] {
        for binding in list(client, &format!("{RBAC}/{kind}")).await {
            let subjects = binding["subjects"].as_array().into_iter().flatten();
            if subjects.into_iter().any(|subject| subject["name"] == SYNCER_ACCOUNT) {
                for rule in rules(client, &binding).await {
                    writes.extend(writes_of(&rule));
                }
            }
        }
    }
    writes
}

/// Of the role that is bound.
async fn rules(client: &Client, binding: &Value) -> Vec<Value> {
    let role = &binding["roleRef"];
    let collection = match role["kind"].as_str().unwrap() {
        "ClusterRole" => format!("{RBAC}/clusterroles"),
        _ => format!("{RBAC}/namespaces/{}/roles", binding["metadata"]["namespace"].as_str().unwrap()),
    };
    let found =
        list(client, &collection).await.into_iter().find(|one| one["metadata"]["name"] == role["name"]);
    found.unwrap()["rules"].as_array().cloned().unwrap_or_default()
}

fn writes_of(rule: &Value) -> Vec<String> {
    let texts = |field: &str| rule[field].as_array().cloned().unwrap_or_default();
    let methods: Vec<&str> = texts("verbs")
        .iter()
        .filter_map(|verb| match verb.as_str().unwrap() {
            "create" => Some("POST"),
            "update" => Some("PUT"),
            "patch" => Some("PATCH"),
            "delete" => Some("DELETE"),
            _ => None,
        })
        .collect();
    let of = |resource: Value| {
        let methods = methods.clone();
        methods.into_iter().map(move |method| format!("{method} {}", resource.as_str().unwrap()))
    };
    texts("resources").into_iter().flat_map(of).collect()
}
