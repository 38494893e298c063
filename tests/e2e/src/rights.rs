//! Whether a Syncer did only what the charts' roles allow, read from the audit logs of both clusters.

use kubeocean_harness::{AuditEvent, Binding, Cluster};
use serde_json::{Value, json};

use crate::pods::Objects;

/// The requests of a binding's Syncer so far: in the computing cluster, where its account is every Syncer's, and in the
/// worker cluster.
///
/// # Panics
/// There is no audit log.
pub fn requests(binding: &Binding<'_>) -> (Vec<AuditEvent>, Vec<AuditEvent>) {
    let of = |cluster: &Cluster, account: &str| {
        let events = cluster.audit_events().expect("an audit log");
        events.into_iter().filter(|event| event.user.username == account).collect()
    };
    let worker_account = format!("system:serviceaccount:{}:kubeocean-syncer", binding.mount_namespace());
    (
        of(binding.computing(), "system:serviceaccount:kubeocean-system:kubeocean-syncer"),
        of(binding.worker(), &worker_account),
    )
}

/// No request of the Syncer was forbidden or malformed, and each was allowed by a role of the charts.
///
/// # Panics
/// One was.
pub fn assert_rights(binding: &Binding<'_>) {
    let (computing, worker) = requests(binding);
    assert!(!computing.is_empty() && !worker.is_empty(), "the audit log has the Syncer's requests");
    assert_allowed(computing.iter().chain(&worker), &[]);
}

/// The cluster's own roles for whoever authenticates callers in its name, as Proxiers do.
const DELEGATED: [&str; 2] =
    ["of ClusterRole \"system:auth-delegator\"", "of Role \"extension-apiserver-authentication-reader\""];

/// The same of a Manager that serves bindings in its own process, with its own account.
///
/// # Panics
/// One was.
pub fn assert_manager_rights(computing: &Cluster) {
    assert_account(computing, "system:serviceaccount:kubeocean-system:kubeocean-manager");
}

/// The same of the Proxiers of the computing cluster. In the worker cluster a Proxier is its binding's Syncer: see
/// [`assert_rights`].
///
/// # Panics
/// One was.
pub fn assert_proxier_rights(binding: &Binding<'_>) {
    assert_account(binding.computing(), "system:serviceaccount:kubeocean-system:kubeocean-proxier");
}

fn assert_account(computing: &Cluster, account: &str) {
    let events = computing.audit_events().expect("an audit log");
    let mine: Vec<_> = events.iter().filter(|event| event.user.username == account).collect();
    assert!(!mine.is_empty(), "the audit log has requests of {account}");
    assert_allowed(mine, &DELEGATED);
}

fn assert_allowed<'a>(events: impl IntoIterator<Item = &'a AuditEvent>, more: &[&str]) {
    for event in events {
        let code = event.response_status.code;
        // What admission refuses was allowed. A namespace may take no events.
        let allowed = event.annotations.get("authorization.k8s.io/decision").is_some_and(|it| it == "allow");
        if code == 403 && allowed && event.object_ref.resource == "events" {
            continue;
        }
        assert!(![400, 401, 403, 405, 422].contains(&code), "{code} {}: {event:#?}", event.uri);
        let reason = event.annotations.get("authorization.k8s.io/reason").map_or("", String::as_str);
        let by_chart =
            reason.contains("of ClusterRole \"kubeocean-") || reason.contains("of Role \"kubeocean-");
        let by_chart = by_chart || more.iter().any(|role| reason.contains(role));
        // Every authenticated user may ask what the server is and serves, and who he is and what he may do himself.
        let about_itself =
            ["selfsubjectreviews", "selfsubjectaccessreviews"].contains(&event.object_ref.resource.as_str());
        let by_everyone = about_itself || event.verb == "get" && event.object_ref.resource.is_empty();
        assert!(by_chart || by_everyone, "{} {} is allowed by {reason:?}", event.verb, event.uri);
    }
}

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// An account of the worker cluster that may do what a Syncer does, but for kinds of the cluster's role that are hidden
/// from it.
#[derive(Debug)]
pub struct LimitedAccount {
    pub kubeconfig: String,
    worker: Objects,
    role: String,
    all: Value,
}

impl LimitedAccount {
    /// Nothing is hidden yet.
    ///
    /// # Panics
    /// The worker cluster refuses an object.
    pub async fn new(binding: &Binding<'_>) -> Self {
        let worker = Objects::of(binding.worker()).await;
        let mount = binding.mount_namespace();
        let role =
            worker.get(&format!("{RBAC}/clusterroles/kubeocean-syncer")).await.expect("the chart's role");
        let all = role["rules"].clone();
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "limited"}});
        worker.create(&format!("/api/v1/namespaces/{mount}/serviceaccounts"), &account).await;
        let name = format!("limited-{mount}");
        worker
            .create(&format!("{RBAC}/clusterroles"), &json!({"metadata": {"name": name}, "rules": all}))
            .await;
        let subjects = json!([{"kind": "ServiceAccount", "name": "limited", "namespace": mount}]);
        let bound = |kind: &str, role: &str| {
            json!({
                "metadata": {"name": name}, "subjects": subjects,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            })
        };
        worker.create(&format!("{RBAC}/clusterrolebindings"), &bound("ClusterRole", &name)).await;
        let of_mount = format!("{RBAC}/namespaces/{mount}/rolebindings");
        worker.create(&of_mount, &bound("Role", "kubeocean-syncer")).await;
        let kubeconfig = binding.worker().service_account_kubeconfig(mount, "limited").await;
        let role = format!("{RBAC}/clusterroles/{name}");
        Self { kubeconfig: kubeconfig.expect("a kubeconfig"), worker, role, all }
    }

    /// An account that never had the right. `hidden` is the kind, in the plural.
    ///
    /// # Panics
    /// The worker cluster refuses an object.
    pub async fn without(binding: &Binding<'_>, hidden: &str) -> Self {
        let account = Self::new(binding).await;
        account.hide(hidden).await;
        account
    }

    /// Takes the rule about a kind, in the plural, away.
    ///
    /// # Panics
    /// The worker cluster refuses it.
    pub async fn hide(&self, kind: &str) {
        let mut rules = self.all.as_array().cloned().expect("rules");
        rules.retain(|rule| rule["resources"] != json!([kind]));
        assert_ne!(self.all, json!(rules));
        self.worker.merge(&self.role, &json!({"rules": rules})).await;
    }

    /// Takes the rules about an API group away.
    ///
    /// # Panics
    /// The worker cluster refuses it.
    pub async fn hide_group(&self, group: &str) {
        let mut rules = self.all.as_array().cloned().expect("rules");
        rules.retain(|rule| rule["apiGroups"] != json!([group]));
        assert_ne!(self.all, json!(rules));
        self.worker.merge(&self.role, &json!({"rules": rules})).await;
    }

    /// Nothing is hidden any more.
    ///
    /// # Panics
    /// The worker cluster refuses it.
    pub async fn may_everything(&self) {
        self.worker.merge(&self.role, &json!({"rules": self.all})).await;
    }
}
