//! Pods of other tenants in the worker cluster: what they cost in memory and CPU.

use std::time::Instant;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use kubeocean_bench::Figure;
use serde_json::json;

use crate::NAME;
use crate::goal::Goal;
use crate::pods::{self, CREATED_AT_A_TIME};
use crate::run::Run;

const FOREIGN: &str = "bench-foreign";

fn pod(name: &str, node: &str) -> Result<Pod> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "service", "version": "v1"}},
        "spec": {
            "nodeName": node,
            "containers": [{
                "name": "service",
                "image": "registry.example/service:1",
                "env": [{"name": "MODE", "value": "online"}],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            }],
        },
    });
    serde_json::from_value(pod).context("building a pod")
}

impl Run<'_> {
    pub(crate) async fn foreign(&mut self) -> Result<Vec<Figure>> {
        self.quiet().await?;
        let count = self.scale.foreign;
        eprintln!("creating {count} pods of others");
        let worker = self.binding.worker();
        worker.create_namespace(FOREIGN).await?;
        let pods: Api<Pod> = Api::namespaced(worker.client().await?, FOREIGN);
        let goal = Goal::start("pods of others Running", pods.clone(), count, pods::is_running);
        let (cpu, started) = (self.cpu()?, Instant::now());
        stream::iter(0..count)
            .map(|index| {
                let pods = pods.clone();
                let node = format!("{NAME}-{}", index % self.scale.nodes_together());
                async move {
                    let pod = pod(&format!("service-{index}"), &node)?;
                    pods.create(&PostParams::default(), &pod).await.map(drop).context("creating a pod")
                }
            })
            .buffer_unordered(CREATED_AT_A_TIME)
            .try_collect::<()>()
            .await?;
        goal.reached().await?;
        self.quiet().await?;
        let cpu = (self.cpu()? - cpu) * 1000.0 / f64::from(count);
        eprintln!("  {count} pods of others run after {:?}", started.elapsed());
        let nodes = self.scale.nodes;
        let work = format!("RSS with {nodes} vnodes and {count} pods of others");
        let [resident, own] = self.resident(work, Some(30.0)).await?;
        Ok(vec![Figure::new("CPU a pod of others", cpu, "ms"), resident, own])
    }
}
