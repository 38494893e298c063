//! What exists before anything happens: nodes, other people's pods, bindings, policies, the Manager.
//!
//! | Worker | Nodes | Policy | What it shows |
//! |---|---|---|---|
//! | dc-east | batch-0..2 | `half-cpu` | half of the CPU that other pods leave free |
//! | dc-east | online-0..1 | `nights-and-weekends` | time windows, open now, and 80 % of the CPU |
//! | dc-east | office-0 | `closed-hours` | a closed window: the vnode is there, withheld |
//! | dc-west | gpu-0..1 | `night-gpu` | GPU nodes by label; GPUs as the custom module decides |
//! | dc-west | plain-0 | none | a node that no policy covers: no vnode |

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Zoned;
use kube::Client;
use kubeocean_harness::{Binding, BindingSpec, NodeShape, Program, Site};
use serde_json::{Value, json};

use super::clock;
use super::module::{self, Module};
use super::screen::Screen;

/// The users' namespace in the computing cluster.
pub(crate) const NAMESPACE: &str = "demo";
/// Namespace of pods that are not leased, in the workers.
const SHOP: &str = "shop";
const GPU: &str = "nvidia.com/gpu";
/// How long the Manager and a binding may take until they are ready.
const READY: Duration = Duration::from_secs(90);

/// Everything that exists.
pub(crate) struct Scene<'a> {
    pub(crate) site: &'a Site<'a>,
    pub(crate) bindings: [Binding<'a>; 2],
    /// Serves all bindings in one process.
    pub(crate) manager: Program,
    pub(crate) computing: Client,
    pub(crate) workers: [Client; 2],
    /// Digest of the custom module.
    pub(crate) digest: String,
}

/// What a vnode must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) binding: &'static str,
    pub(crate) node: &'static str,
    pub(crate) policy: &'static str,
    pub(crate) cpu_millis: i64,
    pub(crate) gpus: i64,
    pub(crate) withheld: bool,
}

/// The vnodes at a time, with `half` as the percentage of policy `half-cpu`.
pub(crate) fn expected(now: &Zoned, half: i64) -> Vec<Expected> {
    let night = |free: i64| if clock::is_night(now) { free / 2 } else { 0 };
    let row = |binding, node, policy, cpu_millis, gpus, withheld| Expected {
        binding,
        node,
        policy,
        cpu_millis,
        gpus,
        withheld,
    };
    vec![
        // One of 8 cores is used by the shop.
        row("dc-east", "batch-0", "half-cpu", 7_000 * half / 100, 0, false),
        row("dc-east", "batch-1", "half-cpu", 8_000 * half / 100, 0, false),
        row("dc-east", "batch-2", "half-cpu", 8_000 * half / 100, 0, false),
        row("dc-east", "office-0", "closed-hours", 8_000, 0, true),
        // Two of 8 cores.
        row("dc-east", "online-0", "nights-and-weekends", 6_000 * 80 / 100, 0, false),
        row("dc-east", "online-1", "nights-and-weekends", 8_000 * 80 / 100, 0, false),
        // Two of 16 cores and of 8 GPUs.
        row("dc-west", "gpu-0", "night-gpu", 14_000, night(6), false),
        row("dc-west", "gpu-1", "night-gpu", 16_000, night(8), false),
    ]
}

impl<'a> Scene<'a> {
    /// Makes everything.
    pub(crate) async fn set(site: &'a Site<'a>, module: Module, quiet: bool) -> Result<Self> {
        let fleet = site.fleet();
        let (east, west) = (&fleet.workers[0], &fleet.workers[1]);
        let cpu_node = |pool: &str| NodeShape::new("8", "32Gi").label("pool", pool);
        let gpu_node = NodeShape::new("16", "64Gi").gpus(8).label("pool", "gpu").label("accelerator", "a100");
        let (batch, online, office, plain) =
            (cpu_node("batch"), cpu_node("online"), cpu_node("office"), cpu_node("plain"));
        futures::try_join!(
            east.create_nodes("batch", 3, &batch),
            east.create_nodes("online", 2, &online),
            east.create_nodes("office", 1, &office),
            west.create_nodes("gpu", 2, &gpu_node),
            west.create_nodes("plain", 1, &plain),
        )?;
        for (cluster, pods) in [
            (east, vec![shop_pod("batch-0", "1", 0), shop_pod("online-0", "2", 0)]),
            (west, vec![shop_pod("gpu-0", "2", 2)]),
        ] {
            cluster.create_namespace(SHOP).await?;
            cluster.apply_objects(pods).await?;
        }
        let digest = module.digest();
        let config_map = serde_json::to_value(module.config_map()).context("writing a ConfigMap")?;
        west.apply_objects(vec![with_type(config_map, "v1", "ConfigMap")]).await?;

        let bind = |name: &str, worker: usize| {
            // All nodes of the worker: the policies choose among them.
            site.bind(
                BindingSpec::new(name).worker(worker).field("nodeSelector", json!({"nodeSelectorTerms": []})),
            )
        };
        let bindings = [bind("dc-east", 0).await?, bind("dc-west", 1).await?];
        let now = clock::now();
        let zone = clock::zone().1;
        half_cpu(&bindings[0], 50).await?;
        let windows = |pool: &str, windows: Value| json!({"nodeSelector": pool_is(pool), "timeZone": zone, "timeWindows": windows});
        let mut nights = windows("online", clock::open_windows(&now));
        nights["resourceLimits"] = json!([{"resource": "cpu", "percent": 80}]);
        bindings[0].policy("nights-and-weekends", nights).await?;
        bindings[0].policy("closed-hours", windows("office", clock::closed_windows(&now))).await?;
        let night_gpu = json!({
            "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "accelerator", "operator": "Exists"}]}]},
            "timeZone": zone,
            "policies": [{
                "name": module::NAME,
                "module": {"configMap": {"name": module::NAME}, "digest": digest},
                "settings": {"from": clock::NIGHT.0, "until": clock::NIGHT.1, "percent": 50},
            }],
        });
        bindings[1].policy(module::NAME, night_gpu).await?;

        let level = if quiet { "--log-level=info" } else { "--log-level=warn" };
        let manager = site.manager(&[level]).await?;
        let mut scene = Self {
            site,
            computing: fleet.computing.client().await?,
            workers: [east.client().await?, west.client().await?],
            bindings,
            manager,
            digest,
        };
        scene.wait_ready().await?;
        Ok(scene)
    }

    /// Waits until the Manager says of both bindings that they are Ready.
    async fn wait_ready(&mut self) -> Result<()> {
        let ready = async {
            self.manager.try_wait_ready(READY).await?;
            for binding in &self.bindings {
                let wait = format!("cb/{}", binding.name());
                let patience = format!("--timeout={}s", READY.as_secs());
                binding
                    .computing()
                    .kubectl_text(&["wait", "--for=condition=Ready", &patience, &wait])
                    .await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        if let Err(error) = ready.await {
            let log = self.manager.process().log_tail(30);
            return Err(error.context(format!("the Manager says:\n{log}")));
        }
        Ok(())
    }

    /// Ends the Manager, and with it all it runs, as a kubelet would.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let status = self.manager.stop().await?;
        anyhow::ensure!(status.success(), "the Manager ended with {status}");
        Ok(())
    }

    /// The last words of the Manager, when something went wrong.
    pub(crate) fn show_logs(&mut self, screen: &Screen) {
        let tail = self.manager.process().log_tail(40);
        screen.say(&format!("--- the Manager says:\n{tail}"));
    }
}

/// Policy `half-cpu` with any percentage.
pub(crate) async fn half_cpu(binding: &Binding<'_>, percent: i64) -> Result<()> {
    let limits = json!([{"resource": "cpu", "percent": percent}]);
    binding.policy("half-cpu", json!({"nodeSelector": pool_is("batch"), "resourceLimits": limits})).await
}

fn pool_is(pool: &str) -> Value {
    json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": [pool]}]}]})
}

/// A pod of the worker's own users: what it requests is not leased.
fn shop_pod(node: &str, cpu: &str, gpus: u32) -> Value {
    let mut requests = json!({"cpu": cpu, "memory": "2Gi"});
    if gpus > 0 {
        requests[GPU] = json!(gpus.to_string());
    }
    let limits = if gpus > 0 { json!({GPU: gpus.to_string()}) } else { json!({}) };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("shop-{node}"), "namespace": SHOP},
        "spec": {
            "nodeName": node,
            "containers": [{
                "name": "shop", "image": "example.test/shop",
                "resources": {"requests": requests, "limits": limits},
            }],
        },
    })
}

fn with_type(mut object: Value, api_version: &str, kind: &str) -> Value {
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_follow_the_clock_and_cpus_the_percentage() {
        let gpus = |time: &str, half| -> (Vec<i64>, i64) {
            let now: Zoned = time.parse().expect("a time");
            let rows = expected(&now, half);
            (rows.iter().map(|row| row.gpus).filter(|gpus| *gpus > 0).collect(), rows[0].cpu_millis)
        };
        assert_eq!(gpus("2026-03-06T23:00:00[UTC]", 50), (vec![3, 4], 3_500));
        assert_eq!(gpus("2026-03-06T12:00:00[UTC]", 25), (vec![], 1_750));
    }
}
