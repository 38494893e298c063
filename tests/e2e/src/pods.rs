//! What the tests of pods share: a served binding, raw JSON access to both clusters, pods that land on its vnodes.
//!
//! In: the shared site of the harness. Out: a [`Stage`], which is a binding with nodes, a policy and a running Syncer, and
//! [`Scene`]s on it, one namespace each. Objects are JSON, because the tests look at what is stored, not at what a typed
//! client makes of it.
//!
//! Invariant: pods of a scene run on vnodes of its own stage only, whatever other vnodes the shared fleet has.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use kube::{Client, core::Status};
use kubeocean_api::{
    keys::{label, taint},
    name::phys_name,
};
use kubeocean_harness::cluster::client_of;
use kubeocean_harness::{Binding, BindingSpec, Cluster, NodeShape, Program, shared_site, wait_until};
use serde_json::{Value, json};

/// For everything that happens within seconds on an idle machine.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// Raw access to the objects of one cluster, as its administrator. Paths are those of the API.
#[derive(Clone)]
pub struct Objects {
    client: Client,
}

impl Objects {
    pub async fn of(cluster: &Cluster) -> Self {
        Self { client: cluster.client().await.expect("a client") }
    }

    /// The same as whoever a kubeconfig is for.
    pub async fn with(kubeconfig: &str) -> Self {
        Self { client: client_of(kubeconfig).await.expect("a client") }
    }

    /// A write that may be refused: what the server says. Without a body it is a deletion, say.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn attempt(&self, method: Method, path: &str, body: &Value) -> Result<Value, Status> {
        let patch = method == Method::PATCH;
        let content_type = if patch { "application/merge-patch+json" } else { "application/json" };
        match self.send(method.clone(), path, content_type, body).await {
            Ok(object) => Ok(object),
            Err(kube::Error::Api(status)) => Err(*status),
            Err(error) => unreachable_request(method.as_str(), path, &error),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> Result<Value, kube::Error> {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).expect("JSON") };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .body(body)
            .expect("a request");
        self.client.request::<Value>(request).await
    }

    /// `None` if there is no such object.
    pub async fn get(&self, path: &str) -> Option<Value> {
        match self.send(Method::GET, path, "application/json", &Value::Null).await {
            Ok(object) => Some(object),
            Err(kube::Error::Api(status)) if status.code == StatusCode::NOT_FOUND => None,
            Err(error) => unreachable_request("GET", path, &error),
        }
    }

    /// The items of a collection.
    pub async fn list(&self, path: &str) -> Vec<Value> {
        let list = self.get(path).await.unwrap_or_default();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Creates an object in a collection and returns it as stored.
    pub async fn create(&self, collection: &str, object: &Value) -> Value {
        match self.send(Method::POST, collection, "application/json", object).await {
            Ok(object) => object,
            Err(error) => unreachable_request("POST", collection, &error),
        }
    }

    /// Applies a JSON merge patch and returns the object as stored.
    pub async fn merge(&self, path: &str, patch: &Value) -> Value {
        match self.send(Method::PATCH, path, "application/merge-patch+json", patch).await {
            Ok(object) => object,
            Err(error) => unreachable_request("PATCH", path, &error),
        }
    }

    /// Deletes an object or a whole collection. One that is gone is fine.
    pub async fn delete(&self, path: &str, grace_seconds: Option<i64>) {
        let options = grace_seconds.map_or(Value::Null, |seconds| json!({"gracePeriodSeconds": seconds}));
        match self.send(Method::DELETE, path, "application/json", &options).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == StatusCode::NOT_FOUND => {}
            Err(error) => unreachable_request("DELETE", path, &error),
        }
    }

    /// Waits until the object is there and `check` settles on it.
    #[track_caller]
    pub fn wait<T>(
        &self,
        what: &str,
        path: &str,
        check: impl Fn(&Value) -> Option<T>,
    ) -> impl Future<Output = T> {
        wait_until(what, DEADLINE, async move || match self.get(path).await {
            Some(object) => check(&object).ok_or_else(|| object.to_string()),
            None => Err(format!("there is no {path}")),
        })
    }

    /// Waits until there is no such object.
    #[track_caller]
    pub fn wait_gone(&self, path: &str) -> impl Future<Output = ()> {
        wait_until("an object to be gone", DEADLINE, async move || match self.get(path).await {
            None => Ok(()),
            Some(object) => Err(format!("{path}: {object}")),
        })
    }
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects").finish_non_exhaustive()
    }
}

#[expect(clippy::panic, reason = "a request of the administrator that fails is a failed test")]
fn unreachable_request(verb: &str, path: &str, error: &kube::Error) -> ! {
    panic!("{verb} {path}: {error}")
}

/// A string of an object; empty if it is none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Path of a pod.
pub fn pod_path(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}

/// Path of an object of the core group in a namespace; `kind` is plural.
pub fn core_path(namespace: &str, kind: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{kind}/{name}")
}

/// A binding with nodes and a Syncer.
#[derive(Debug)]
pub struct Stage {
    pub binding: Binding<'static>,
    pub syncer: Program,
    nodes: usize,
}

impl Stage {
    /// Binds `nodes` new worker nodes and starts a Syncer for them.
    pub async fn start(spec: BindingSpec, nodes: usize) -> Self {
        Self::start_with(spec, nodes, &[]).await
    }

    /// As [`Stage::start`], with flags of the Syncer.
    pub async fn start_with(spec: BindingSpec, nodes: usize, args: &[&str]) -> Self {
        Self::serve(Self::bind(spec, nodes).await, nodes, args).await
    }

    /// As [`Stage::start`], with a Proxier that serves the vnodes.
    pub async fn start_with_proxier(spec: BindingSpec, nodes: usize, args: &[&str]) -> (Self, Program) {
        let binding = Self::bind(spec, nodes).await;
        let mut proxier = binding.proxier(args).await.expect("a Proxier");
        proxier.wait_ready().await;
        let address = format!("--proxier-address={}", proxier.ip());
        (Self::serve(binding, nodes, &[&address]).await, proxier)
    }

    /// A binding with `nodes` new worker nodes that are leased whole, for [`Stage::served_by`].
    pub async fn bind(spec: BindingSpec, nodes: usize) -> Binding<'static> {
        let name = spec.name.clone();
        let binding = shared_site().await.bind(spec).await.expect("a binding");
        let shape = NodeShape::new("32", "128Gi");
        binding.worker().create_nodes(&name, nodes, &shape).await.expect("worker nodes");
        let all = json!({"resourceLimits": [{"resource": "cpu", "percent": 100}]});
        binding.policy(&name, all).await.expect("a policy");
        binding
    }

    async fn serve(binding: Binding<'static>, nodes: usize, args: &[&str]) -> Self {
        let syncer = binding.syncer(args).await.expect("a Syncer");
        Self::served_by(binding, nodes, syncer).await
    }

    /// A binding with `nodes` worker nodes and a Syncer that was started for it.
    ///
    /// # Panics
    /// It does not get ready.
    pub async fn served_by(binding: Binding<'static>, nodes: usize, mut syncer: Program) -> Self {
        syncer.wait_ready().await;
        let stage = Self { binding, syncer, nodes };
        stage.wait_vnodes().await;
        stage
    }

    /// Waits until all vnodes are Ready and returns them.
    pub async fn wait_vnodes(&self) -> Vec<Value> {
        let computing = Objects::of(self.binding.computing()).await;
        wait_until("all vnodes to be ready", DEADLINE, async || {
            let vnodes = computing.list(&vnodes_path(self.binding.name())).await;
            let ready = vnodes.iter().filter(|vnode| condition(vnode, "Ready")["status"] == "True").count();
            let log = || self.syncer.log().lines().rev().take(5).collect::<Vec<_>>().join("\n");
            if ready == self.nodes {
                Ok(vnodes)
            } else {
                Err(format!("{ready} of {}\n{}", self.nodes, log()))
            }
        })
        .await
    }

    /// Opens a scene in a new namespace of the computing cluster.
    pub async fn scene(&self, namespace: &str) -> Scene<'_> {
        self.binding.computing().create_namespace(namespace).await.expect("a namespace");
        Scene {
            stage: self,
            computing: Objects::of(self.binding.computing()).await,
            worker: Objects::of(self.binding.worker()).await,
            namespace: namespace.to_owned(),
        }
    }
}

fn vnodes_path(binding: &str) -> String {
    format!("/api/v1/nodes?labelSelector={}%3D{binding}", label::CLUSTER_BINDING.replace('/', "%2F"))
}

/// A condition of an object; null if it has none of the type.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

/// One test's namespace on a [`Stage`].
#[derive(Debug)]
pub struct Scene<'a> {
    pub stage: &'a Stage,
    pub computing: Objects,
    pub worker: Objects,
    pub namespace: String,
}

impl Scene<'_> {
    /// A pod without token that tolerates vnodes and selects those of this stage. Members of `spec` are added or replace.
    pub fn pod(&self, name: &str, spec: Value) -> Value {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": self.pod_spec(),
        });
        if let Value::Object(members) = spec {
            for (member, value) in members {
                pod["spec"][member] = value;
            }
        }
        pod
    }

    /// The spec of [`Scene::pod`], for templates.
    pub fn pod_spec(&self) -> Value {
        json!({
            "automountServiceAccountToken": false,
            "nodeSelector": {label::CLUSTER_BINDING: self.stage.binding.name()},
            "tolerations": [{"key": taint::VNODE, "operator": "Exists"}],
            "containers": [{
                "name": "main", "image": "example.test/image", "resources": {"requests": {"cpu": "10m"}},
            }],
        })
    }

    /// Creates a pod.
    pub async fn create_pod(&self, pod: &Value) -> Value {
        self.computing.create(&format!("/api/v1/namespaces/{}/pods", self.namespace), pod).await
    }

    /// Creates a pod of [`Scene::pod`], waits until it runs, and returns it with its copy.
    pub async fn run_pod(&self, name: &str, spec: Value) -> (Value, Value) {
        self.create_pod(&self.pod(name, spec)).await;
        self.wait_running(name).await
    }

    /// Waits until a pod runs; returns it and its copy.
    pub async fn wait_running(&self, name: &str) -> (Value, Value) {
        let running = |pod: &Value| (pod["status"]["phase"] == "Running").then(|| pod.clone());
        let vpod = self.computing.wait(&format!("{name} to run"), &self.vpod(name), running).await;
        let ppod = self.worker.get(&self.ppod(name)).await.expect("a running pod has a copy");
        (vpod, ppod)
    }

    /// Path of a pod of this scene.
    pub fn vpod(&self, name: &str) -> String {
        pod_path(&self.namespace, name)
    }

    /// Path of its copy (TD-301).
    pub fn ppod(&self, name: &str) -> String {
        pod_path(self.stage.binding.mount_namespace(), &self.copy_name(name))
    }

    /// Name of the copy of any namespaced object of this scene (TD-301).
    pub fn copy_name(&self, name: &str) -> String {
        phys_name(name, &self.namespace)
    }

    /// Path of a ConfigMap or Secret of this scene.
    pub fn object(&self, kind: &str, name: &str) -> String {
        core_path(&self.namespace, kind, name)
    }

    /// Path of its copy.
    pub fn copy(&self, kind: &str, name: &str) -> String {
        core_path(self.stage.binding.mount_namespace(), kind, &self.copy_name(name))
    }

    /// The pods of this scene.
    pub async fn vpods(&self) -> Vec<Value> {
        self.computing.list(&format!("/api/v1/namespaces/{}/pods", self.namespace)).await
    }

    /// The copies of a kind that belong to this scene's stage.
    pub async fn copies(&self, kind: &str) -> Vec<Value> {
        let selector = format!("{}%3D{}", label::MANAGED_BY.replace('/', "%2F"), label::MANAGED_BY_VALUE);
        let mount = self.stage.binding.mount_namespace();
        self.worker.list(&format!("/api/v1/namespaces/{mount}/{kind}?labelSelector={selector}")).await
    }

    /// Creates a ConfigMap (`data`) or a Secret (`stringData`).
    pub async fn create_object(&self, kind: &str, name: &str, content: Value) -> Value {
        let mut object = json!({
            "apiVersion": "v1",
            "kind": if kind == "secrets" { "Secret" } else { "ConfigMap" },
            "metadata": {"name": name, "namespace": self.namespace},
        });
        if let Value::Object(members) = content {
            for (member, value) in members {
                object[member] = value;
            }
        }
        self.computing.create(&format!("/api/v1/namespaces/{}/{kind}", self.namespace), &object).await
    }

    /// Waits for an event on a pod of this scene and returns its message.
    pub async fn wait_event(&self, pod: &str, reason: &str) -> String {
        let path = format!(
            "/api/v1/namespaces/{}/events?fieldSelector=involvedObject.name%3D{pod}%2Creason%3D{reason}",
            self.namespace
        );
        wait_until(&format!("the event {reason} on {pod}"), DEADLINE, async || {
            let events = self.computing.list(&path).await;
            events.first().map(|event| text(&event["message"]).to_owned())
        })
        .await
    }

    /// Runs one more pod to its end of creation: what the Syncer was told before, it has seen by then.
    pub async fn barrier(&self, name: &str) {
        self.run_pod(name, json!({})).await;
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.stage.syncer.log();
            let mine: Vec<_> = log
                .lines()
                .filter(|line| {
                    line.contains(&self.namespace) || line.contains("ERROR") || line.contains("panic")
                })
                .collect();
            eprintln!(
                "--- the Syncer about {}:\n{}",
                self.namespace,
                mine[mine.len().saturating_sub(40)..].join("\n")
            );
        }
    }
}
