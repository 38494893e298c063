//! Whether a Syncer did only what the charts' roles allow, read from the audit logs of both clusters; and Syncers that may do
//! less.

use kubeocean_harness::site::SYSTEM_NAMESPACE;
use kubeocean_harness::{AuditEvent, AuditMark, Binding, Cluster};
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

/// What a binding's Syncer wrote since these marks, of the computing and of the worker cluster's log, without Leases.
///
/// # Panics
/// There is no audit log.
pub fn writes_since(binding: &Binding<'_>, computing: AuditMark, worker: AuditMark) -> Vec<String> {
    let vnodes = format!("vnode-{}-", binding.cluster_id());
    let ours = |event: &AuditEvent| {
        let object = &event.object_ref;
        event.user.username.ends_with("kubeocean-syncer")
            && object.resource != "leases"
            && (object.name.starts_with(&vnodes) || object.name == binding.name())
    };
    let since = |cluster: &Cluster, mark: AuditMark| cluster.audit_events_since(mark).expect("an audit log");
    let account = format!("system:serviceaccount:{}:", binding.mount_namespace());
    let computing = since(binding.computing(), computing).into_iter().filter(ours);
    let worker = since(binding.worker(), worker).into_iter();
    computing
        .chain(worker.filter(|event| event.user.username.starts_with(&account)))
        .filter(AuditEvent::is_write)
        .map(|event| format!("{} {} {}", event.verb, event.uri, event.response_status.code))
        .collect()
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

/// What a binding is told that it does without, for want of a right: events of the computing cluster.
pub async fn features_off(computing: &Objects, binding: &str) -> Vec<Value> {
    let of = format!("involvedObject.name%3D{binding},reason%3DFeatureDisabled");
    computing.list(&format!("/api/v1/namespaces/default/events?fieldSelector={of}")).await
}

/// Takes a kind or a subresource, in the plural, out of the role that a binding's Syncer has in its mount namespace.
///
/// # Panics
/// The role says nothing of it.
pub async fn take_from_role(binding: &Binding<'_>, resource: &str) {
    let worker = Objects::of(binding.worker()).await;
    let role = format!("{RBAC}/namespaces/{}/roles/kubeocean-syncer", binding.mount_namespace());
    let full = worker.get(&role).await.expect("the chart's role");
    let mut rules = full["rules"].as_array().cloned().expect("rules");
    for resources in rules.iter_mut().filter_map(|rule| rule["resources"].as_array_mut()) {
        resources.retain(|one| one != resource);
    }
    // A rule about nothing is none.
    rules.retain(|rule| rule["resources"] != json!([]));
    assert_ne!(full["rules"], json!(rules));
    worker.merge(&role, &json!({"rules": rules})).await;
}

/// An account of a cluster that may do what a Syncer does there, but for kinds of the cluster's role that are hidden from it.
#[derive(Debug)]
pub struct LimitedAccount {
    pub kubeconfig: String,
    /// As audit logs have it.
    pub username: String,
    cluster: Objects,
    /// Of all that makes it.
    name: String,
    subjects: Value,
    all: Value,
}

impl LimitedAccount {
    /// One of the worker cluster. Nothing is hidden yet.
    ///
    /// # Panics
    /// The cluster refuses an object.
    pub async fn new(binding: &Binding<'_>) -> Self {
        let mount = binding.mount_namespace();
        Self::like_the_syncer(binding.worker(), mount, format!("limited-{mount}"), &[mount]).await
    }

    /// One of the worker cluster that never had the right. `hidden` is the kind, in the plural.
    ///
    /// # Panics
    /// The cluster refuses an object.
    pub async fn without(binding: &Binding<'_>, hidden: &str) -> Self {
        let account = Self::new(binding).await;
        account.hide(hidden).await;
        account
    }

    /// One of the computing cluster. Nothing is hidden yet.
    ///
    /// # Panics
    /// The cluster refuses an object.
    pub async fn in_computing(binding: &Binding<'_>) -> Self {
        let name = format!("limited-{}", binding.name());
        let with_leases = [SYSTEM_NAMESPACE, "kube-node-lease"];
        Self::like_the_syncer(binding.computing(), SYSTEM_NAMESPACE, name, &with_leases).await
    }

    /// An account in the namespace `home`, with the chart's roles of the cluster and of some namespaces.
    async fn like_the_syncer(cluster: &Cluster, home: &str, name: String, namespaces: &[&str]) -> Self {
        let objects = Objects::of(cluster).await;
        let role = objects.get(&format!("{RBAC}/clusterroles/kubeocean-syncer")).await;
        let all = role.expect("the chart's role")["rules"].clone();
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        objects.create(&format!("/api/v1/namespaces/{home}/serviceaccounts"), &account).await;
        let role = json!({"metadata": {"name": name}, "rules": all});
        objects.create(&format!("{RBAC}/clusterroles"), &role).await;
        let kubeconfig = cluster.service_account_kubeconfig(home, &name).await.expect("a kubeconfig");
        let username = format!("system:serviceaccount:{home}:{name}");
        let subjects = json!([{"kind": "ServiceAccount", "name": name, "namespace": home}]);
        let account = Self { kubeconfig, username, cluster: objects, name, subjects, all };
        account.bind("clusterrolebindings", "ClusterRole", &account.name).await;
        for namespace in namespaces {
            account.bind(&format!("namespaces/{namespace}/rolebindings"), "Role", "kubeocean-syncer").await;
        }
        account
    }

    /// Gives it a role, by a binding in a collection.
    async fn bind(&self, collection: &str, kind: &str, role: &str) {
        let bound = json!({
            "metadata": {"name": self.name}, "subjects": self.subjects,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        });
        self.cluster.create(&format!("{RBAC}/{collection}"), &bound).await;
    }

    /// Takes the rule about a kind, in the plural, away.
    ///
    /// # Panics
    /// The cluster refuses it.
    pub async fn hide(&self, kind: &str) {
        let kinds = json!([kind]);
        self.keep(|rule| rule["resources"] != kinds).await;
    }

    /// Takes one verb of the rules about a kind, in the plural, away.
    ///
    /// # Panics
    /// The cluster refuses it.
    pub async fn hide_verb(&self, verb: &str, kind: &str) {
        let kinds = json!([kind]);
        let mut rules = self.all.clone();
        let about = rules.as_array_mut().into_iter().flatten().filter(|rule| rule["resources"] == kinds);
        for verbs in about.filter_map(|rule| rule["verbs"].as_array_mut()) {
            verbs.retain(|one| one != verb);
        }
        assert_ne!(self.all, rules);
        self.write(&rules).await;
    }

    /// The same as [`LimitedAccount::hide`], but for one namespace.
    ///
    /// # Panics
    /// The cluster refuses it.
    pub async fn hide_but_in(&self, kind: &str, namespace: &str) {
        self.hide(kind).await;
        let kinds = json!([kind]);
        let rules: Vec<&Value> = self.rules().filter(|rule| rule["resources"] == kinds).collect();
        let role = json!({"metadata": {"name": self.name}, "rules": rules});
        self.cluster.create(&format!("{RBAC}/namespaces/{namespace}/roles"), &role).await;
        self.bind(&format!("namespaces/{namespace}/rolebindings"), "Role", &self.name).await;
    }

    /// Takes the rules about an API group away.
    ///
    /// # Panics
    /// The cluster refuses it.
    pub async fn hide_group(&self, group: &str) {
        let groups = json!([group]);
        self.keep(|rule| rule["apiGroups"] != groups).await;
    }

    /// Nothing is hidden any more, but from what [`LimitedAccount::hide_but_in`] left.
    ///
    /// # Panics
    /// The cluster refuses it.
    pub async fn may_everything(&self) {
        self.write(&self.all).await;
    }

    fn rules(&self) -> impl Iterator<Item = &Value> {
        self.all.as_array().into_iter().flatten()
    }

    /// Takes all rules of the cluster's role away but these.
    async fn keep(&self, is_kept: impl Fn(&Value) -> bool) {
        let rules: Vec<&Value> = self.rules().filter(|rule| is_kept(rule)).collect();
        assert_ne!(self.all, json!(rules));
        self.write(&json!(rules)).await;
    }

    async fn write(&self, rules: &Value) {
        let role = format!("{RBAC}/clusterroles/{}", self.name);
        self.cluster.merge(&role, &json!({"rules": rules})).await;
    }
}
