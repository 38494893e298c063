//! What the API server refuses of bindings and policies, and what it must not (API section 12, checks 1 to 5).
//!
//! In: the shipped CRDs and the admission policies of both charts, in a cluster of their own. No program runs.
//! The worst that validation can do is to lock somebody out of an object stored before it, so that comes first.

use std::time::Duration;

use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kubeocean_api::{
    ClusterBindingSpec, ResourceLeasingPolicySpec, crd,
    keys::{finalizer, namespace},
    validate,
};
use kubeocean_harness::chart::{Chart, helm_template};
use kubeocean_harness::{Cluster, ClusterSpec, wait_until};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);
const BINDING: &str = "ClusterBinding";
const POLICY: &str = "ResourceLeasingPolicy";

/// A definition as the original shipped it: no rules, none of our fields and columns, conditions a plain list.
fn original(mut crd: Value) -> Value {
    fn strip(schema: &mut Value) {
        match schema {
            Value::Object(map) => {
                map.remove("x-kubernetes-validations");
                map.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let version = &mut crd["spec"]["versions"][0];
    strip(&mut version["schema"]);
    if let Some(columns) = version["additionalPrinterColumns"].as_array_mut() {
        columns.retain(|column| column.get("priority").is_none());
    }
    let root = &mut version["schema"]["openAPIV3Schema"]["properties"];
    for (part, added) in [
        ("spec", ["policies", "timeZone"].as_slice()),
        (
            "status",
            &["observedGeneration", "nodes", "pods", "policies", "workerVersion", "credentialsExpireAt"],
        ),
    ] {
        if let Some(properties) = root[part]["properties"].as_object_mut() {
            added.iter().for_each(|name| drop(properties.remove(*name)));
        }
    }
    if let Some(conditions) = root["status"]["properties"]["conditions"].as_object_mut() {
        conditions.retain(|key, _| !key.starts_with("x-kubernetes-list"));
    }
    crd
}

fn object(kind: &str, name: &str, spec: Option<&Value>) -> Value {
    let held = if kind == BINDING { finalizer::BINDING_MANAGER } else { finalizer::POLICY };
    let mut object = json!({
        "apiVersion": "cloud.tencent.com/v1beta1", "kind": kind,
        "metadata": {"name": name, "finalizers": [held]},
    });
    if let Some(spec) = spec {
        object["spec"] = spec.clone();
    }
    object
}

/// One cluster and its two kinds.
struct Server {
    cluster: Cluster,
    bindings: Api<DynamicObject>,
    policies: Api<DynamicObject>,
}

impl Server {
    async fn start() -> Self {
        let spec = ClusterSpec { name: "admission".to_owned(), audit: false, ..ClusterSpec::computing() };
        let cluster = Cluster::start(spec).await.expect("a cluster");
        let client = cluster.client().await.expect("a client");
        let api = |kind, plural| {
            let gvk = GroupVersionKind::gvk("cloud.tencent.com", "v1beta1", kind);
            Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&gvk, plural))
        };
        let bindings = api(BINDING, "clusterbindings");
        let policies = api(POLICY, "resourceleasingpolicies");
        Self { cluster, bindings, policies }
    }

    fn api(&self, kind: &str) -> &Api<DynamicObject> {
        if kind == BINDING { &self.bindings } else { &self.policies }
    }

    /// What the server says against creating an object.
    async fn create(&self, object: &Value, dry_run: bool) -> Option<String> {
        let kind = object["kind"].as_str().expect("a kind");
        let parsed: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
        let parameters = PostParams { dry_run, ..PostParams::default() };
        refusal(self.api(kind).create(&parameters, &parsed).await)
    }

    /// What the server says against a merge patch.
    async fn patch(&self, kind: &str, name: &str, patch: &Value, dry_run: bool) -> Option<String> {
        let parameters = PatchParams { dry_run, ..PatchParams::default() };
        refusal(self.api(kind).patch(name, &parameters, &Patch::Merge(patch)).await)
    }
}

fn refusal<T>(result: kube::Result<T>) -> Option<String> {
    match result {
        Ok(_) => None,
        Err(kube::Error::Api(status)) if [400, 403, 422].contains(&status.code) => {
            Some(status.message.clone())
        }
        #[expect(clippy::panic, reason = "a server that does not answer is a failed test")]
        Err(error) => panic!("{error}"),
    }
}

fn assert_refusal(what: &str, refused: Option<&str>, expected: Option<&str>) {
    match (refused, expected) {
        (None, None) => {}
        (Some(text), Some(part)) if text.contains(part) => {}
        _ => assert_eq!(refused, expected, "{what}"),
    }
}

/// Objects the original's definitions accept, however odd.
fn stored() -> Vec<Value> {
    let odd_policy = json!({
        "cluster": "", "timeWindows": [{"start": "9:00", "end": "10:00", "days": ["Foo"]}],
        "resourceLimits": [{"resource": "cpu", "percent": 150, "quantity": "-1"}],
        "gracefulReclaimPeriodSeconds": -5,
        "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Near"}]}]},
    });
    let good = json!({
        "clusterID": "cls-a", "mountNamespace": "lease-area", "secretRef": {"name": "n", "namespace": "m"},
    });
    vec![
        object(BINDING, "good", Some(&good)),
        object(BINDING, "without-mount", Some(&json!({"clusterID": "cls-b", "secretRef": {}}))),
        object(BINDING, "without-spec", None),
        object(POLICY, "plain", Some(&json!({"cluster": "a", "gracefulReclaimPeriodSeconds": 600}))),
        object(POLICY, "odd", Some(&odd_policy)),
        object(POLICY, "without-spec", None),
    ]
}

/// Changes of stored objects that the definitions alone judge: kind, name, patch of the spec, refusal.
fn transitions() -> Vec<(&'static str, &'static str, Value, Option<&'static str>)> {
    let fixed = Some("mountNamespace cannot be changed once set");
    let secret = Some("secretRef.name and secretRef.namespace are required");
    let negative = Some("gracefulReclaimPeriodSeconds must not be negative");
    vec![
        (BINDING, "good", json!({"clusterID": "cls-c"}), Some("clusterID is immutable")),
        (BINDING, "good", json!({"mountNamespace": "other"}), fixed),
        (BINDING, "good", json!({"mountNamespace": null}), fixed),
        (BINDING, "good", json!({"mountNamespace": ""}), fixed),
        (BINDING, "good", Value::Null, Some("spec cannot be removed")),
        (BINDING, "good", json!({"secretRef": {"name": ""}}), secret),
        (BINDING, "good", json!({"secretRef": {"namespace": null}}), secret),
        (BINDING, "good", json!({"secretRef": {"name": "other"}}), None),
        (BINDING, "good", json!({"directScheduling": true}), None),
        (BINDING, "without-mount", json!({"mountNamespace": "lease-area"}), None),
        (
            BINDING,
            "without-mount",
            json!({"mountNamespace": "Lease_Area"}),
            Some("mountNamespace must be a DNS-1123 label"),
        ),
        (BINDING, "without-mount", json!({"directScheduling": true}), None),
        (POLICY, "plain", json!({"cluster": "b"}), None),
        (POLICY, "plain", json!({"cluster": ""}), Some("cluster cannot be emptied")),
        (POLICY, "plain", json!({"gracefulReclaimPeriodSeconds": null}), None),
        (POLICY, "plain", json!({"gracefulReclaimPeriodSeconds": 0}), None),
        (POLICY, "plain", json!({"gracefulReclaimPeriodSeconds": -1}), negative),
        (POLICY, "odd", json!({"gracefulReclaimPeriodSeconds": -6}), negative),
        (POLICY, "odd", json!({"gracefulReclaimPeriodSeconds": null}), None),
        (POLICY, "odd", json!({"forceReclaim": true}), None),
        (
            POLICY,
            "plain",
            json!({"policies": [{"name": "legacy-x", "module": {"builtin": "time-windows"}}]}),
            Some("the names binding-selector and legacy-* are reserved"),
        ),
        (
            POLICY,
            "plain",
            json!({"policies": [{"name": "x", "module": {}}]}),
            Some("exactly one of builtin, configMap, oci and file is required"),
        ),
        (POLICY, "plain", json!({"policies": [{"name": "x", "module": {"builtin": "time-windows"}}]}), None),
    ]
}

/// New objects the admission policies judge: object, refusal.
fn creations() -> Vec<(Value, Option<&'static str>)> {
    let long = "a123456789b123456789c123456789d123456789e123456789f123456789abcd";
    let binding = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut spec = json!({
            "clusterID": "cls-n", "mountNamespace": "lease-area", "secretRef": {"name": "n", "namespace": "m"},
        });
        change(&mut spec);
        object(BINDING, name, Some(&spec))
    };
    let policy = |name: &str, more: Value| {
        let mut spec = json!({"cluster": "a"});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        object(POLICY, name, Some(&spec))
    };
    let window =
        |start: &str, day: &str| json!({"timeWindows": [{"start": start, "end": "10:00", "days": [day]}]});
    let limit = |limit: Value| json!({"resourceLimits": [limit]});
    let operator = |operator: &str| json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": operator, "values": ["b"]}]}]}});
    vec![
        (binding("new", &|_| {}), None),
        (binding(long, &|_| {}), Some("at most 63 characters")),
        (binding("new", &|spec| spec["mountNamespace"] = Value::Null), Some("mountNamespace is required")),
        (binding("new", &|spec| spec["mountNamespace"] = "".into()), Some("mountNamespace is required")),
        (binding("new", &|spec| spec["secretRef"]["name"] = "".into()), Some("secretRef.name is required")),
        (
            binding("new", &|spec| spec["secretRef"]["namespace"] = Value::Null),
            Some("secretRef.namespace is required"),
        ),
        (
            binding("new", &|spec| spec["serviceNamespaces"] = json!(["x", ""])),
            Some("must not have empty entries"),
        ),
        (policy("new", json!({})), None),
        (policy(long, json!({})), Some("at most 63 characters")),
        (policy("new", json!({"cluster": ""})), Some("cluster is required")),
        (policy("new", window("09:00", "mOnDaY")), None),
        (policy("new", window("9:00", "Monday")), Some("in the form HH:MM")),
        (policy("new", window("24:00", "Monday")), Some("in the form HH:MM")),
        (policy("new", window("09:00", "Foo")), Some("English names of days")),
        (policy("new", limit(json!({"resource": "cpu", "percent": 100, "quantity": 0}))), None),
        (policy("new", limit(json!({"resource": "cpu", "percent": 150}))), Some("between 0 and 100")),
        (policy("new", limit(json!({"resource": "cpu", "percent": -1}))), Some("between 0 and 100")),
        (policy("new", limit(json!({"resource": "cpu", "quantity": "-1"}))), Some("must not be negative")),
        (policy("new", limit(json!({"resource": "cpu", "quantity": -1}))), Some("must not be negative")),
        (policy("new", json!({"gracefulReclaimPeriodSeconds": -1})), Some("must not be negative")),
        (policy("new", operator("In")), None),
        (policy("new", operator("Near")), Some("operators of nodeSelector")),
    ]
}

/// The first problem that our own validation finds: the same code says what a stored object lacks (API-906).
fn own_judgement(object: &Value) -> Result<(), String> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let mut spec = object["spec"].clone();
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    if object["kind"] == BINDING {
        if let Some(secret) = spec["secretRef"].as_object_mut() {
            secret.retain(|_, value| !value.is_null());
        }
        let spec: ClusterBindingSpec = serde_json::from_value(spec).expect("a spec");
        validate::new_binding(name, &spec)
    } else {
        let spec: ResourceLeasingPolicySpec = serde_json::from_value(spec).expect("a spec");
        validate::new_policy(name, &spec)
    }
}

/// The admission policies about our kinds, of both charts.
async fn admission_policies() -> Vec<Value> {
    const NAMES: [&str; 2] = ["kubeocean-clusterbindings", "kubeocean-resourceleasingpolicies"];
    let mut found = Vec::new();
    for (chart, place) in
        [(Chart::Kubeocean, namespace::SYSTEM), (Chart::KubeoceanWorker, namespace::POLICIES)]
    {
        let text = helm_template(chart, "admission", place, &json!({})).await.expect("the chart renders");
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
        found.extend(objects.into_iter().filter(|object| {
            let ours = object["metadata"]["name"].as_str().is_some_and(|name| NAMES.contains(&name));
            ours && object["kind"].as_str().is_some_and(|kind| kind.starts_with("ValidatingAdmissionPolicy"))
        }));
    }
    assert_eq!(found.len(), 4, "two policies with their bindings: {found:#?}");
    found
}

/// Labels, finalizers and deletion of every object that was stored before our rules.
async fn stored_objects_are_nobodys_prisoners(server: &Server) {
    for object in stored() {
        let (kind, name) = (object["kind"].as_str().expect("a kind"), object["metadata"]["name"].as_str());
        let name = name.expect("a name");
        for patch in
            [json!({"metadata": {"labels": {"seen": "yes"}}}), json!({"metadata": {"finalizers": []}})]
        {
            let refused = server.patch(kind, name, &patch, true).await;
            assert_refusal(&format!("{patch} of {kind} {name}"), refused.as_deref(), None);
        }
    }
}

async fn columns(server: &Server, kind: &str) -> Vec<String> {
    let text = server.cluster.kubectl_text(&["get", kind]).await.expect("kubectl get");
    text.lines().next().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

#[tokio::test]
async fn stored_objects_live_on_under_rules_that_new_ones_obey() {
    let server = Server::start().await;
    let definitions = || vec![crd::cluster_binding(), crd::resource_leasing_policy()];
    let originals = || definitions().into_iter().map(original).collect::<Vec<_>>();
    server.cluster.apply_objects(originals()).await.expect("the original definitions");
    for object in stored() {
        assert_refusal(&object.to_string(), server.create(&object, false).await.as_deref(), None);
    }

    // Check 1 and 2: an upgrade of the definitions.
    server.cluster.apply_objects(definitions()).await.expect("our definitions over the original ones");
    for (kind, name, patch) in [
        (BINDING, "good", json!({"spec": {"clusterID": "cls-c"}})),
        (POLICY, "plain", json!({"spec": {"cluster": ""}})),
    ] {
        wait_until("the rules to be in force", DEADLINE, async || {
            server.patch(kind, name, &patch, true).await.is_some()
        })
        .await;
    }
    stored_objects_are_nobodys_prisoners(&server).await;
    for (kind, name, spec, expected) in transitions() {
        let refused = server.patch(kind, name, &json!({ "spec": spec }), true).await;
        assert_refusal(&format!("{spec} on {kind} {name}"), refused.as_deref(), expected);
    }

    // Check 4: what people see.
    assert_eq!(columns(&server, "cb").await, ["NAME", "CLUSTERID", "PHASE", "AGE"]);
    assert_eq!(columns(&server, "rlp").await, ["NAME", "CLUSTER", "PHASE", "ACTIVE", "AGE"]);
    let explained = server
        .cluster
        .kubectl_text(&["explain", "clusterbinding.spec.mountNamespace"])
        .await
        .expect("an explanation");
    assert!(explained.contains("DESCRIPTION") && !explained.contains("<empty>"), "{explained}");

    // Check 3: the charts' admission policies.
    server.cluster.apply_objects(admission_policies().await).await.expect("the admission policies");
    for (object, expected) in creations() {
        if expected.is_some() {
            wait_until("the admission policies to be in force", DEADLINE, async || {
                server.create(&object, true).await.is_some()
            })
            .await;
        }
        let refused = server.create(&object, true).await;
        assert_refusal(&object.to_string(), refused.as_deref(), expected);
        let judged = own_judgement(&object);
        assert_eq!(judged.is_err(), expected.is_some(), "our own validation says {judged:?} of {object}");
    }
    stored_objects_are_nobodys_prisoners(&server).await;
    let still_odd = server.patch(POLICY, "odd", &json!({"spec": {"forceReclaim": true}}), true).await;
    assert!(still_odd.is_some(), "a changed spec is judged as a whole");
    server.cluster.apply(MANIFESTS).await.expect("manifests of the documentation");

    // Check 5: back to the original, with an object that has fields it does not know.
    let modules = json!({"spec": {"policies": [{"name": "x", "module": {"builtin": "time-windows"}}]}});
    assert_refusal("policies", server.patch(POLICY, "plain", &modules, false).await.as_deref(), None);
    server.cluster.apply_objects(originals()).await.expect("the original definitions over ours");
    stored_objects_are_nobodys_prisoners(&server).await;
    wait_until("added fields to be pruned", DEADLINE, async || {
        let plain = server.policies.get("plain").await.map_err(|error| error.to_string())?;
        if plain.data["spec"].get("policies").is_none() { Ok(()) } else { Err(plain.data.to_string()) }
    })
    .await;

    // Check 1 in earnest: finalizers go, and the objects with them.
    for object in stored() {
        let (kind, name) = (object["kind"].as_str().expect("a kind"), object["metadata"]["name"].as_str());
        let name = name.expect("a name");
        server.api(kind).delete(name, &DeleteParams::default()).await.expect("a deletion");
        let released = json!({"metadata": {"finalizers": []}});
        assert_refusal(name, server.patch(kind, name, &released, false).await.as_deref(), None);
        assert!(server.api(kind).get_opt(name).await.expect("a read").is_none(), "{kind} {name} is gone");
    }
}

/// API section 10.
const MANIFESTS: &str = r#"
apiVersion: cloud.tencent.com/v1beta1
kind: ClusterBinding
metadata: {name: dc-east}
spec:
  clusterID: cls-dc-east
  mountNamespace: kubeocean-worker
  secretRef: {name: dc-east-kubeconfig, namespace: kubeocean-system}
  nodeSelector:
    nodeSelectorTerms:
    - matchExpressions: [{key: kubeocean.io/role, operator: In, values: [worker]}]
---
apiVersion: cloud.tencent.com/v1beta1
kind: ClusterBinding
metadata:
  name: dc-west
  annotations:
    kubeocean.io/logs-proxy-enabled: "true"
    kubeocean.io/logs-proxy-secret-name: dc-west-tls
    kubeocean.io/logs-proxy-secret-namespace: kubeocean-system
spec:
  clusterID: cls-dc-west
  mountNamespace: lease-area
  secretRef: {name: dc-west-kubeconfig, namespace: kubeocean-system}
  serviceNamespaces: [default]
  disableNodeDefaultTaint: true
  podPriorityClassName: batch-low
  runningDaemonsetByDefault: true
  directScheduling: true
---
apiVersion: cloud.tencent.com/v1beta1
kind: ResourceLeasingPolicy
metadata: {name: off-hours}
spec:
  cluster: dc-east
  forceReclaim: true
  gracefulReclaimPeriodSeconds: 600
  nodeSelector:
    nodeSelectorTerms:
    - matchExpressions: [{key: kubeocean.io/role, operator: In, values: ["worker"]}]
  timeWindows:
  - {start: "19:30", end: "07:30", days: ["Monday", "tuesday", "WEDNESDAY", "Thursday", "Friday"]}
  - {start: "00:00", end: "23:59", days: ["Saturday", "Sunday"]}
  resourceLimits:
  - {resource: cpu, quantity: "64", percent: 80}
  - {resource: memory, percent: 90}
  - {resource: nvidia.com/gpu, percent: 100}
---
apiVersion: cloud.tencent.com/v1beta1
kind: ResourceLeasingPolicy
metadata: {name: all-day}
spec:
  cluster: dc-west
  timeWindows: [{start: "08:01", end: "08:00"}]
  resourceLimits: [{resource: cpu, quantity: 4}]
---
apiVersion: cloud.tencent.com/v1beta1
kind: ResourceLeasingPolicy
metadata: {name: everything}
spec: {cluster: dc-west}
"#;
