//! What tests do with a cluster: kubectl, apply, namespaces, tokens.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource, Scope};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

use super::{Cluster, client_of, flags};
use crate::assets::{self, Binary};
use crate::feed::output_with_input;
use crate::manifest::{self, Stage};
use crate::reaper;
use crate::wait::try_wait_until;

/// The field manager of objects that the harness applies.
pub const FIELD_MANAGER: &str = "kubeocean-harness";

impl Cluster {
    /// Runs kubectl as admin and returns what it did, whatever it was.
    ///
    /// # Errors
    /// kubectl cannot be run at all.
    pub async fn kubectl(&self, args: &[&str]) -> Result<Output> {
        self.kubectl_with_input(args, "").await
    }

    /// As [`Cluster::kubectl`], with text for `-f -` or `exec -i`.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub async fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<Output> {
        output_with_input(&mut self.kubectl_command(args)?, "kubectl", input.as_bytes()).await
    }

    /// A kubectl command as admin with piped output, for tests that talk with it (`logs -f`, `port-forward`). It is
    /// killed when its handle is dropped.
    ///
    /// # Errors
    /// kubectl is missing.
    pub fn kubectl_command(&self, args: &[&str]) -> Result<tokio::process::Command> {
        let kubectl = assets::find(Binary::Kubectl)?.context("kubectl has disappeared")?;
        let mut command = tokio::process::Command::new(kubectl);
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig_path())
            .arg("--cache-dir")
            .arg(self.directory().join("kubectl-cache"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        reaper::adopt_async(&mut command)?;
        Ok(command)
    }

    /// Standard output of a kubectl command that must succeed.
    ///
    /// # Errors
    /// It fails; the message is its standard error.
    pub async fn kubectl_text(&self, args: &[&str]) -> Result<String> {
        let output = self.kubectl(args).await?;
        if !output.status.success() {
            bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies a YAML stream (server side, our field manager, forced). Namespaces and CRDs go first and are waited for.
    ///
    /// # Errors
    /// The YAML is not valid or the server refuses an object; the message names it.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        self.apply_objects(manifest::parse(yaml)?).await
    }

    /// As [`Cluster::apply`], with JSON objects.
    ///
    /// # Errors
    /// As [`Cluster::apply`].
    pub async fn apply_objects(&self, objects: Vec<Value>) -> Result<()> {
        let client = self.client().await?;
        let mut stages = manifest::stages(objects).into_iter();
        for (stage, objects) in &mut stages {
            let applied: Vec<DynamicObject> = stream::iter(objects)
                .map(|object| self.apply_one(client.clone(), object))
                .buffer_unordered(8)
                .try_collect()
                .await?;
            if stage == Stage::Definitions {
                let is_crd = |object: &&DynamicObject| {
                    object.types.as_ref().is_some_and(|types| types.kind == "CustomResourceDefinition")
                };
                for definition in applied.iter().filter(is_crd) {
                    self.definition_established(&client, &definition.name_any()).await?;
                }
            }
        }
        Ok(())
    }

    async fn apply_one(&self, client: Client, object: Value) -> Result<DynamicObject> {
        let object: DynamicObject =
            serde_json::from_value(object).context("an object without apiVersion or kind")?;
        let types = object.types.clone().context("an object without apiVersion or kind")?;
        let gvk = GroupVersionKind::try_from(&types)?;
        let name = object.metadata.name.clone().with_context(|| format!("a {} without a name", gvk.kind))?;
        let (resource, capabilities) = self.resource(&client, &gvk).await?;
        let api: Api<DynamicObject> = match (&capabilities.scope, &object.metadata.namespace) {
            (Scope::Cluster, _) => Api::all_with(client, &resource),
            (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(client, namespace, &resource),
            (Scope::Namespaced, None) => Api::default_namespaced_with(client, &resource),
        };
        api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&object))
            .await
            .with_context(|| format!("applying {} {name}", gvk.kind))
    }

    /// The resource of a kind, from the server's discovery, asked once.
    async fn resource(
        &self,
        client: &Client,
        gvk: &GroupVersionKind,
    ) -> Result<(ApiResource, ApiCapabilities)> {
        let known = self.resources.lock().map_err(|_| anyhow!("poisoned"))?.get(gvk).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = kube::discovery::oneshot::pinned_kind(client, gvk)
            .await
            .with_context(|| format!("{} knows no {} {}", self.name(), gvk.api_version(), gvk.kind))?;
        self.resources.lock().map_err(|_| anyhow!("poisoned"))?.insert(gvk.clone(), found.clone());
        Ok(found)
    }

    async fn definition_established(&self, client: &Client, name: &str) -> Result<()> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
        ));
        let definitions: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        try_wait_until(&format!("the CRD {name} to be served"), Duration::from_secs(30), async || {
            let definition = definitions.get(name).await.map_err(|error| error.to_string())?;
            let conditions = definition.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let established = conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True");
            if established { Ok(()) } else { Err(format!("{conditions:?}")) }
        })
        .await
    }

    /// Creates a namespace and waits until pods can be created in it. One that exists is fine.
    ///
    /// # Errors
    /// The server refuses it, or the controllers do not work.
    pub async fn create_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client().await?);
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.to_owned());
        match namespaces.create(&PostParams::default(), &namespace).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error).with_context(|| format!("creating the namespace {name}")),
        }
        self.service_account_ready(name).await
    }

    /// A kubeconfig that holds a new token of a ServiceAccount, valid for a day, by the API's TokenRequest.
    ///
    /// # Errors
    /// There is no such ServiceAccount.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<String> {
        let token = self.service_account_token(namespace, name, Duration::from_hours(24)).await?;
        Ok(self.pki.token_kubeconfig(self.server(), namespace, &token))
    }

    /// A client that acts as a ServiceAccount.
    ///
    /// # Errors
    /// As [`Cluster::service_account_kubeconfig`].
    pub async fn service_account_client(&self, namespace: &str, name: &str) -> Result<Client> {
        client_of(&self.service_account_kubeconfig(namespace, name).await?).await
    }

    /// A new token of a ServiceAccount. The server grants no less than ten minutes.
    ///
    /// # Errors
    /// There is no such ServiceAccount, or the server refuses the lifetime.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
        lifetime: Duration,
    ) -> Result<String> {
        self.token_for(namespace, name, lifetime, &[]).await
    }

    /// A new token of a ServiceAccount for `audiences`; none means the API server.
    ///
    /// # Errors
    /// As [`Cluster::service_account_token`].
    pub async fn token_for(
        &self,
        namespace: &str,
        name: &str,
        lifetime: Duration,
        audiences: &[&str],
    ) -> Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audiences.iter().map(|&of| of.to_owned()).collect(),
                expiration_seconds: Some(i64::try_from(lifetime.as_secs())?),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("asking {} for a token of {namespace}/{name}", self.name()))?;
        answer.status.map(|status| status.token).context("the answer to a TokenRequest has no token")
    }

    /// A kubeconfig that authenticates with any bearer token.
    pub fn token_kubeconfig(&self, namespace: &str, token: &str) -> String {
        self.pki.token_kubeconfig(self.server(), namespace, token)
    }

    /// The audit log's path; empty without [`super::ClusterSpec::audit`].
    pub fn audit_log_path(&self) -> PathBuf {
        self.directory().join(flags::AUDIT_LOG)
    }

    pub(super) fn write_scheduler_config(&self, extenders: &[Value]) -> Result<()> {
        flags::write_scheduler_config(self.directory(), extenders)
    }
}
