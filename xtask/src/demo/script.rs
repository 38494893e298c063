//! What happens, in order, and what must come of it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kubeocean_api::keys::{label, taint};
use kubeocean_api::policy::{ResourceLeasingPolicy, ResourceLeasingPolicyStatus};
use serde_json::{Value, json};

use super::checks::Report;
use super::latency::Latency;
use super::module;
use super::observe::{Snapshot, demo_pods, look, phase};
use super::scene::{Expected, NAMESPACE, Scene, expected, half_cpu};
use super::screen::Screen;
use super::{clock, seconds, table};

/// Long against what is measured, because a first start on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(90);
const WEB_PODS: i32 = 12;
const JOB_PODS: i32 = 8;
const GPU: &str = "nvidia.com/gpu";

/// Runs the script. Results that differ are in the report; an error means that the script could not go on.
pub(crate) async fn act(
    scene: &Scene<'_>,
    screen: &Screen,
    latency: &Latency,
    report: &mut Report,
) -> Result<()> {
    let night = clock::is_night(&clock::now());
    let (from, until) = clock::NIGHT;
    screen.say(&format!(
        "\nThe custom policy leases GPUs from {from} to {until} o'clock; now it is {} in {}: {}.",
        clock::now().strftime("%H:%M"),
        clock::zone().1,
        if night { "half of the free GPUs" } else { "none" },
    ));
    vnodes(scene, screen, report).await;
    policies(scene, screen, report).await;

    let computing = &scene.site.fleet().computing;
    computing.create_namespace(NAMESPACE).await?;
    computing.apply_objects(vec![web(), job(), train()]).await.context("submitting the workloads")?;
    screen.say(&format!(
        "submitted a Deployment of {WEB_PODS}, a Job of {JOB_PODS} and a pod that wants a GPU"
    ));
    workloads(scene, screen, report).await;
    change(scene, screen, report).await?;

    let last = look(scene).await?;
    report.figure("decisions in all", last.decisions.to_string());
    if let Some((median, pods)) = latency.median() {
        let value = format!("p50 {:.2} s of {pods} pods", median.as_secs_f64());
        report.figure("scheduled -> Running, all at once", value);
    }
    screen.say(&format!("\n{}", table::full(&last, "")));
    Ok(())
}

async fn vnodes(scene: &Scene<'_>, screen: &Screen, report: &mut Report) {
    let took = report
        .expect(screen, "vnodes are as their policies say", PATIENCE, async || {
            compare(&seen(scene).await?, &expected(&clock::now(), 50))
        })
        .await;
    report.figure("vnodes as expected after the Manager was ready", seconds(took));
    report
        .expect(screen, "a node that no policy covers is not leased", PATIENCE, async || {
            match seen(scene).await?.vnode("dc-west", "plain-0") {
                None => Ok("plain-0 has no vnode".to_owned()),
                Some(vnode) => Err(format!("{} exists", vnode.name)),
            }
        })
        .await;
    report
        .expect(screen, "a withheld vnode says why", PATIENCE, async || {
            let snapshot = seen(scene).await?;
            let office = snapshot.vnode("dc-east", "office-0").ok_or("there is no vnode")?;
            let (status, reason) = &office.lease;
            let text = format!("Lease={status}, reason {reason}");
            if status == "False" && reason == "OutsideTimeWindow" { Ok(text) } else { Err(text) }
        })
        .await;
}

async fn policies(scene: &Scene<'_>, screen: &Screen, report: &mut Report) {
    let east = scene.workers[0].clone();
    for (name, phase) in
        [("half-cpu", "Active"), ("nights-and-weekends", "Active"), ("closed-hours", "Inactive")]
    {
        report
            .expect(screen, &format!("policy {name}"), PATIENCE, async || {
                let status = status(&Api::all(east.clone()), name).await?;
                let nodes = status.nodes.unwrap_or_default();
                let text = format!("{}, {nodes} nodes", status.phase);
                if status.phase == phase && nodes > 0 { Ok(text) } else { Err(text) }
            })
            .await;
    }
    let west = scene.workers[1].clone();
    report
        .expect(screen, "the custom module runs, pinned by its digest", PATIENCE, async || {
            let status = status(&Api::all(west.clone()), module::NAME).await?;
            let entry = status.policies.first().ok_or("the status has no entry yet")?;
            let text = format!("{:?} {:?} {:?}", entry.state, entry.version, entry.last_error);
            if entry.state.as_deref() == Some("Active") && entry.digest.as_ref() == Some(&scene.digest) {
                Ok(format!(
                    "{} {}, {}",
                    module::NAME,
                    entry.version.as_deref().unwrap_or("-"),
                    &scene.digest[..19]
                ))
            } else {
                Err(text)
            }
        })
        .await;
}

async fn workloads(scene: &Scene<'_>, screen: &Screen, report: &mut Report) {
    let computing = scene.computing.clone();
    let deployments: Api<Deployment> = Api::namespaced(computing.clone(), NAMESPACE);
    let took = report
        .expect(screen, "the Deployment runs", PATIENCE, async || {
            let web = deployments.get("web").await.map_err(|error| error.to_string())?;
            let ready = web.status.and_then(|status| status.ready_replicas).unwrap_or(0);
            let text = format!("{ready} of {WEB_PODS} pods are ready");
            if ready == WEB_PODS { Ok(text) } else { Err(text) }
        })
        .await;
    report.figure("Deployment submitted -> all pods ready", seconds(took));
    let jobs: Api<Job> = Api::namespaced(computing.clone(), NAMESPACE);
    report
        .expect(screen, "the Job completes", PATIENCE, async || {
            let job = jobs.get("count").await.map_err(|error| error.to_string())?;
            let done = job.status.and_then(|status| status.succeeded).unwrap_or(0);
            let text = format!("{done} of {JOB_PODS} pods succeeded");
            if done == JOB_PODS { Ok(text) } else { Err(text) }
        })
        .await;
    report
        .expect(screen, "the GPU pod waits by day and runs at night", PATIENCE, async || {
            let pods = demo_pods(&computing, "app=train").await.map_err(|error| format!("{error:#}"))?;
            let phase = pods.first().and_then(|pod| pod.status.as_ref()?.phase.clone()).unwrap_or_default();
            let wanted = if clock::is_night(&clock::now()) { "Running" } else { "Pending" };
            if phase == wanted { Ok(phase) } else { Err(format!("{phase}, not {wanted}")) }
        })
        .await;
    report
        .expect(
            screen,
            "the copies run in both workers, next to what they were scheduled to",
            PATIENCE,
            async || placed(scene).await,
        )
        .await;
    report
        .expect(screen, "no pod is on the withheld vnode", PATIENCE, async || {
            match seen(scene).await?.vnode("dc-east", "office-0").map(|vnode| vnode.pods) {
                Some(0) => Ok("none".to_owned()),
                pods => Err(format!("{pods:?}")),
            }
        })
        .await;
}

/// The owner of dc-east changes what he gives, under load, and back.
async fn change(scene: &Scene<'_>, screen: &Screen, report: &mut Report) -> Result<()> {
    for (percent, what) in [
        (25, "policy half-cpu goes from 50 to 25 percent, no pod is evicted"),
        (50, "policy half-cpu goes back to 50 percent"),
    ] {
        let before = web_pods(scene).await?;
        half_cpu(&scene.bindings[0], percent).await?;
        let took = report
            .expect(screen, what, PATIENCE, async || {
                let snapshot = seen(scene).await?;
                let seen = compare(&snapshot, &expected(&clock::now(), percent))?;
                let after = web_pods(scene).await.map_err(|error| format!("{error:#}"))?;
                if after == before { Ok(seen) } else { Err("the Deployment has other pods".to_owned()) }
            })
            .await;
        report.figure(&format!("policy change to {percent} percent -> all vnodes"), seconds(took));
    }
    Ok(())
}

/// UIDs of the Deployment's pods that run.
async fn web_pods(scene: &Scene<'_>) -> Result<BTreeSet<String>> {
    let pods = demo_pods(&scene.computing, "app=web").await?;
    let running = pods.into_iter().filter(|pod| phase(pod) == "Running");
    Ok(running.filter_map(|pod| pod.metadata.uid).collect())
}

async fn seen(scene: &Scene<'_>) -> Result<Snapshot, String> {
    look(scene).await.map_err(|error| format!("{error:#}"))
}

/// What differs, else a summary.
fn compare(snapshot: &Snapshot, expected: &[Expected]) -> Result<String, String> {
    let mut differences = Vec::new();
    for wanted in expected {
        let Some(vnode) = snapshot.vnode(wanted.binding, wanted.node) else {
            differences.push(format!("{} has no vnode", wanted.node));
            continue;
        };
        let amount = |resource: &str| vnode.amounts.get(resource).copied().unwrap_or(0);
        let found = Expected {
            policy: if vnode.policy == wanted.policy { wanted.policy } else { "another" },
            cpu_millis: amount("cpu"),
            gpus: amount(GPU),
            withheld: vnode.withheld,
            ..wanted.clone()
        };
        if found != *wanted {
            differences.push(format!("{found:?} instead of {wanted:?}"));
        } else if !vnode.ready {
            differences.push(format!("{} is not ready", vnode.name));
        }
    }
    if snapshot.vnodes.len() > expected.len() {
        differences.push(format!("{} vnodes instead of {}", snapshot.vnodes.len(), expected.len()));
    }
    if differences.is_empty() {
        Ok(format!("{} vnodes ready", expected.len()))
    } else {
        Err(differences.join("; "))
    }
}

/// Every running pod of the Deployment has one running copy, on the node its vnode stands for.
async fn placed(scene: &Scene<'_>) -> Result<String, String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    let snapshot = seen(scene).await?;
    let pods = demo_pods(&scene.computing, "app=web").await.map_err(text)?;
    let mut counts = Vec::new();
    for (binding, worker) in scene.bindings.iter().zip(&scene.workers) {
        let copies: Api<Pod> = Api::namespaced(worker.clone(), binding.mount_namespace());
        let mut count = 0;
        for pod in &pods {
            let vnode = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            let Some(vnode) =
                snapshot.vnodes.iter().find(|known| known.name == vnode && known.binding == binding.name())
            else {
                continue;
            };
            let name = pod
                .metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get(kubeocean_api::keys::annotation::PHYSICAL_POD_NAME))
                .ok_or("a pod has no copy recorded")?;
            let copy = copies.get(name).await.map_err(|error| error.to_string())?;
            let node = copy.spec.and_then(|spec| spec.node_name).unwrap_or_default();
            let phase = copy.status.and_then(|status| status.phase).unwrap_or_default();
            if node != vnode.node || phase != "Running" {
                return Err(format!("the copy {name} is {phase} on {node:?} instead of {}", vnode.node));
            }
            count += 1;
        }
        counts.push((binding.name(), count));
    }
    let all: i32 = counts.iter().map(|(_, count)| count).sum();
    let text = counts.iter().map(|(name, count)| format!("{count} in {name}")).collect::<Vec<_>>().join(", ");
    if all == WEB_PODS && counts.iter().all(|(_, count)| *count > 0) { Ok(text) } else { Err(text) }
}

async fn status(
    policies: &Api<ResourceLeasingPolicy>,
    name: &str,
) -> Result<ResourceLeasingPolicyStatus, String> {
    let policy = policies.get(name).await.map_err(|error| error.to_string())?;
    policy.status.ok_or_else(|| "no status yet".to_owned())
}

fn pod(app: &str, requests: &Value, limits: &Value) -> Value {
    let spread = json!({
        "maxSkew": 1,
        "topologyKey": label::PHYSICAL_CLUSTER_ID,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": app}},
    });
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {
            "tolerations": [{"key": taint::VNODE, "operator": "Exists", "effect": "NoSchedule"}],
            "topologySpreadConstraints": [spread],
            "containers": [{
                "name": app,
                "image": format!("example.test/{app}"),
                "resources": {"requests": requests, "limits": limits},
            }],
        },
    })
}

fn deployment(app: &str, replicas: i32, template: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": app, "namespace": NAMESPACE},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": app}}, "template": template},
    })
}

fn web() -> Value {
    deployment("web", WEB_PODS, &pod("web", &json!({"cpu": "500m", "memory": "256Mi"}), &json!({})))
}

/// Waits by day, because no vnode offers a GPU then.
fn train() -> Value {
    let limits = json!({GPU: "1"});
    deployment("train", 1, &pod("train", &json!({"cpu": "1", "memory": "1Gi", GPU: "1"}), &limits))
}

fn job() -> Value {
    let mut template = pod("count", &json!({"cpu": "250m", "memory": "128Mi"}), &json!({}));
    template["spec"]["restartPolicy"] = json!("Never");
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "count", "namespace": NAMESPACE},
        "spec": {"completions": JOB_PODS, "parallelism": JOB_PODS, "template": template},
    })
}
