//! One registered worker cluster: token, Secret, ClusterBinding, and the programs that serve it.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::nodes::NODE_SET;
use crate::program::{Program, ProgramSpec};
use crate::site::{SYNCER_ACCOUNT, SYSTEM_NAMESPACE};

/// API-101.
const API_VERSION: &str = "cloud.tencent.com/v1beta1";

/// What a ClusterBinding is to be.
#[derive(Clone, Debug)]
pub struct BindingSpec {
    /// Of the ClusterBinding; at most 24 characters while [`BindingSpec::cluster_id`] is not set apart.
    pub name: String,
    pub cluster_id: String,
    /// Index into [`crate::Fleet::workers`].
    pub worker: usize,
    /// `None`: one that no other binding has.
    pub mount_namespace: Option<String>,
    /// More fields of `spec`.
    pub fields: Value,
    pub annotations: Value,
}

impl BindingSpec {
    /// A binding that takes the nodes made by `create_nodes(name, ...)` and no others, on the first worker cluster.
    pub fn new(name: &str) -> Self {
        let selector = json!({"nodeSelectorTerms": [
            {"matchExpressions": [{"key": NODE_SET, "operator": "In", "values": [name]}]},
        ]});
        Self {
            name: name.to_owned(),
            cluster_id: name.to_owned(),
            worker: 0,
            mount_namespace: None,
            fields: json!({"nodeSelector": selector}),
            annotations: json!({}),
        }
    }

    /// Sets a field of `spec`, for example `directScheduling`; `null` removes one.
    #[must_use]
    pub fn field(mut self, name: &str, value: Value) -> Self {
        self.fields[name] = value;
        self
    }

    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = json!(value);
        self
    }

    #[must_use]
    pub fn cluster_id(mut self, cluster_id: &str) -> Self {
        cluster_id.clone_into(&mut self.cluster_id);
        self
    }

    #[must_use]
    pub fn worker(mut self, index: usize) -> Self {
        self.worker = index;
        self
    }

    #[must_use]
    pub fn mount_namespace(mut self, namespace: &str) -> Self {
        self.mount_namespace = Some(namespace.to_owned());
        self
    }
}

/// A registered worker cluster.
#[derive(Debug)]
pub struct Binding<'a> {
    computing: &'a Cluster,
    worker: &'a Cluster,
    spec: BindingSpec,
    mount_namespace: String,
}

impl<'a> Binding<'a> {
    pub(crate) async fn create(
        computing: &'a Cluster,
        worker: &'a Cluster,
        mount_namespace: String,
        spec: BindingSpec,
    ) -> Result<Self> {
        let binding = Self { computing, worker, spec, mount_namespace };
        let kubeconfig = worker.service_account_kubeconfig(&binding.mount_namespace, SYNCER_ACCOUNT).await?;
        binding.write_kubeconfig(&kubeconfig).await?;
        computing
            .apply_objects(vec![binding.object()])
            .await
            .with_context(|| format!("creating the ClusterBinding {}", binding.name()))?;
        Ok(binding)
    }

    fn object(&self) -> Value {
        let mut fields = self.spec.fields.clone();
        fields["clusterID"] = json!(self.spec.cluster_id);
        fields["mountNamespace"] = json!(self.mount_namespace);
        if fields["secretRef"].is_null() {
            fields["secretRef"] = json!({"name": self.secret_name(), "namespace": SYSTEM_NAMESPACE});
        }
        json!({
            "apiVersion": API_VERSION,
            "kind": "ClusterBinding",
            "metadata": {"name": self.name(), "annotations": self.spec.annotations},
            "spec": fields,
        })
    }

    /// Replaces the kubeconfig in the binding's Secret.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn write_kubeconfig(&self, kubeconfig: &str) -> Result<()> {
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self.secret_name(), "namespace": SYSTEM_NAMESPACE},
            "stringData": {"kubeconfig": kubeconfig},
        });
        self.computing.apply_objects(vec![secret]).await
    }

    /// Applies a ResourceLeasingPolicy for this binding in the worker cluster; `spec.cluster` is filled in.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn policy(&self, name: &str, mut spec: Value) -> Result<()> {
        spec["cluster"] = json!(self.name());
        let policy = json!({
            "apiVersion": API_VERSION,
            "kind": "ResourceLeasingPolicy",
            "metadata": {"name": name},
            "spec": spec,
        });
        self.worker.apply_objects(vec![policy]).await.with_context(|| format!("applying the policy {name}"))
    }

    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn cluster_id(&self) -> &str {
        &self.spec.cluster_id
    }

    /// The worker namespace that holds this binding's copies.
    pub fn mount_namespace(&self) -> &str {
        &self.mount_namespace
    }

    pub fn computing(&self) -> &'a Cluster {
        self.computing
    }

    pub fn worker(&self) -> &'a Cluster {
        self.worker
    }

    /// The Secret in the system namespace that holds the worker kubeconfig.
    pub fn secret_name(&self) -> String {
        format!("{}-kubeconfig", self.spec.name)
    }

    /// Starts the Syncer of this binding. A flag in `args` replaces the harness' own of that name.
    ///
    /// # Errors
    /// The program cannot be built or started.
    pub async fn syncer(&self, args: &[&str]) -> Result<Program> {
        Program::start(self.computing, ProgramSpec::syncer(self.name()).args(args)).await
    }

    /// Starts the Proxier of this binding. A flag in `args` replaces the harness' own of that name.
    ///
    /// # Errors
    /// The program cannot be built or started.
    pub async fn proxier(&self, args: &[&str]) -> Result<Program> {
        self.computing
            .apply_objects(self.proxier_rights().into())
            .await
            .context("giving the Proxier its Secret")?;
        Program::start(self.computing, ProgramSpec::proxier(self.name()).args(args)).await
    }

    /// What the Manager gives a binding's Proxier in the Deployment form: the kubeconfig Secret, by name (PX-1102).
    fn proxier_rights(&self) -> [Value; 2] {
        let metadata = json!({"name": format!("kubeocean-proxier-{}", self.cluster_id()), "namespace": SYSTEM_NAMESPACE});
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata,
            "rules": [{
                "apiGroups": [""], "resources": ["secrets"], "resourceNames": [self.secret_name()],
                "verbs": ["get", "list", "watch"],
            }],
        });
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": metadata["name"]},
            "subjects": [{"kind": "ServiceAccount", "name": "kubeocean-proxier", "namespace": SYSTEM_NAMESPACE}],
        });
        [role, binding]
    }
}
