//! A fleet with both charts installed, as an administrator would (MC-138): what bindings and programs need.
//!
//! In: a [`Fleet`], the charts. Out: a [`Site`], on which tests make their own [`Binding`]s. Every binding gets a mount
//! namespace of its own, as a tenant of the worker chart, so tests on a shared site do not see each other.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

use crate::binding::{Binding, BindingSpec};
use crate::chart::{Chart, helm_template};
use crate::cluster::{Cluster, ClusterSpec};
use crate::fleet::{Fleet, shared};
use crate::manifest;
use crate::program::{Program, ProgramSpec};

/// Where the programs, their Secrets and their Leases live in the computing cluster.
pub const SYSTEM_NAMESPACE: &str = "kubeocean-system";
/// The chart's own mount namespace in a worker cluster.
pub const MOUNT_NAMESPACE: &str = "kubeocean-worker";
/// The ServiceAccount of the Syncer, in the system namespace and in each mount namespace.
pub const SYNCER_ACCOUNT: &str = "kubeocean-syncer";

/// Mount namespaces are made some at a time: rendering a chart costs more than a namespace.
const TENANTS_AT_A_TIME: usize = 8;

/// An installed fleet.
#[derive(Debug)]
pub struct Site<'a> {
    fleet: &'a Fleet,
    /// One entry per worker cluster.
    tenants: Vec<Mutex<Tenants>>,
}

/// The mount namespaces of one worker cluster: `mount-1` to `mount-<made>`, the first `used` belong to bindings.
#[derive(Debug, Default)]
struct Tenants {
    made: usize,
    used: usize,
}

impl<'a> Site<'a> {
    /// Installs both charts and the Services of TD-105.
    ///
    /// # Errors
    /// A chart does not render or a server refuses an object.
    pub async fn install(fleet: &'a Fleet) -> Result<Self> {
        let site = Self { fleet, tenants: fleet.workers.iter().map(|_| Mutex::default()).collect() };
        let workers = (0..fleet.workers.len()).map(|worker| site.add_tenants(worker));
        futures::try_join!(install_computing(&fleet.computing), futures::future::try_join_all(workers))?;
        Ok(site)
    }

    pub fn fleet(&self) -> &'a Fleet {
        self.fleet
    }

    /// The computing cluster.
    pub fn computing(&self) -> &'a Cluster {
        &self.fleet.computing
    }

    /// Registers a worker cluster: token, Secret, ClusterBinding. Programs are started separately.
    ///
    /// # Errors
    /// A server refuses an object, or there is no such worker cluster.
    pub async fn bind(&self, spec: BindingSpec) -> Result<Binding<'a>> {
        self.bind_at(&self.fleet.computing, spec).await
    }

    /// The same at another computing cluster with the chart, such as [`second_computing`].
    ///
    /// # Errors
    /// As [`Site::bind`].
    pub async fn bind_at(&self, computing: &'a Cluster, spec: BindingSpec) -> Result<Binding<'a>> {
        let worker = self.fleet.workers.get(spec.worker).context("no such worker cluster")?;
        let namespace = match &spec.mount_namespace {
            Some(namespace) => namespace.clone(),
            None => self.mount_namespace(spec.worker).await?,
        };
        Binding::create(computing, worker, namespace, spec).await
    }

    /// Starts a Manager that runs Syncers and Proxiers in its own process, as the chart's ServiceAccount.
    ///
    /// # Errors
    /// The program cannot be built or started.
    pub async fn manager(&self, args: &[&str]) -> Result<Program> {
        Program::start(self.computing(), ProgramSpec::manager().args(args)).await
    }

    /// A mount namespace that no other binding has.
    async fn mount_namespace(&self, worker: usize) -> Result<String> {
        loop {
            let mut tenants = self.tenants[worker].lock().await;
            if tenants.used < tenants.made {
                tenants.used += 1;
                return Ok(tenant_namespace(tenants.used));
            }
            drop(tenants);
            // Whoever waits as well may take all of them.
            self.add_tenants(worker).await?;
        }
    }

    /// Renders the worker chart with more tenants, as an administrator upgrades it.
    async fn add_tenants(&self, worker: usize) -> Result<()> {
        let cluster = &self.fleet.workers[worker];
        // Held over the upgrade: two of them with different lists would undo each other.
        let mut tenants = self.tenants[worker].lock().await;
        if tenants.used < tenants.made {
            return Ok(());
        }
        let made = tenants.made + TENANTS_AT_A_TIME;
        let list: Vec<_> = (1..=made)
            .map(|number| json!({"name": SYNCER_ACCOUNT, "namespace": tenant_namespace(number)}))
            .collect();
        let values = json!({"tenants": list});
        let yaml =
            helm_template(Chart::KubeoceanWorker, "kubeocean-worker", MOUNT_NAMESPACE, &values).await?;
        // As `helm install --create-namespace`: the chart leaves the release's own namespace to helm.
        cluster.create_namespace(MOUNT_NAMESPACE).await?;
        cluster.apply(&yaml).await.context("installing the worker chart")?;
        for number in tenants.made + 1..=made {
            cluster.service_account_ready(&tenant_namespace(number)).await?;
        }
        tenants.made = made;
        Ok(())
    }
}

fn tenant_namespace(number: usize) -> String {
    format!("mount-{number}")
}

async fn install_computing(cluster: &Cluster) -> Result<()> {
    // The Manager of a test runs Syncers in its process; a Syncer that runs alone has its own account all the same.
    let values = json!({"manager": {"runtime": "in-process"}});
    let yaml = helm_template(Chart::Kubeocean, "kubeocean", SYSTEM_NAMESPACE, &values).await?;
    let mut objects = manifest::parse(&yaml)?;
    for object in &mut objects {
        // The programs run as processes of the test, not as pods; the Deployment stays, to be looked at.
        if object["kind"] == "Deployment" {
            object["spec"]["replicas"] = json!(0);
        }
    }
    // As `helm install --create-namespace`: the chart leaves the release's own namespace to helm.
    cluster.create_namespace(SYSTEM_NAMESPACE).await?;
    cluster.apply_objects(objects).await.context("installing the computing chart")?;
    intranet_service(cluster, "default", "kubernetes-intranet", cluster.port(), "TCP").await?;
    intranet_service(cluster, "kube-system", "kube-dns-intranet", 53, "UDP").await
}

/// A Service of type LoadBalancer whose address is written by hand, for want of a cloud.
async fn intranet_service(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    port: u16,
    protocol: &str,
) -> Result<()> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "main", "port": port, "protocol": protocol}]},
    });
    cluster.apply_objects(vec![service]).await?;
    let services: Api<Service> = Api::namespaced(cluster.client().await?, namespace);
    let status: Value = json!({"status": {"loadBalancer": {"ingress": [{"ip": cluster.address()}]}}});
    services
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
        .await
        .with_context(|| format!("writing the address of {namespace}/{name}"))?;
    Ok(())
}

/// The installed [`shared`] fleet, for all tests of this process.
///
/// # Panics
/// It cannot be installed; every test then fails with the same message.
pub async fn shared_site() -> &'static Site<'static> {
    static SHARED: OnceCell<Result<Site<'static>, String>> = OnceCell::const_new();
    let site = SHARED
        .get_or_init(async || Site::install(shared().await).await.map_err(|error| format!("{error:#}")))
        .await;
    #[expect(clippy::panic, reason = "without an installation every test of the process fails")]
    match site {
        Ok(site) => site,
        Err(error) => panic!("the charts were not installed: {error}"),
    }
}

/// A computing cluster beside that of the [`shared_site`], with the chart, for all tests of this process: one worker may
/// serve several.
///
/// # Panics
/// It cannot be started or installed; every test that asks then fails with the same message.
pub async fn second_computing() -> &'static Cluster {
    static SECOND: OnceCell<Result<Cluster, String>> = OnceCell::const_new();
    let start = async || {
        let cluster =
            Cluster::start(ClusterSpec { name: "computing-2".to_owned(), ..ClusterSpec::computing() });
        let cluster = cluster.await.map_err(|error| format!("{error:#}"))?;
        install_computing(&cluster).await.map_err(|error| format!("{error:#}"))?;
        Ok(cluster)
    };
    #[expect(clippy::panic, reason = "without the cluster every test that needs it fails")]
    match SECOND.get_or_init(start).await {
        Ok(cluster) => cluster,
        Err(error) => panic!("the second computing cluster did not start: {error}"),
    }
}
