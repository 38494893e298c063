//! Workloads of the computing cluster whose pods run on vnodes: its own controllers see the pods they expect.
//!
//! In: one binding for Deployments and Jobs, one for DaemonSets, whose fields the test changes. Out: what the controllers
//! report, and exactly the copies that belong to the pods they have made.

use std::collections::{BTreeMap, BTreeSet};

use kubeocean_api::keys::{annotation, label};
use kubeocean_e2e::pods::{DEADLINE, Scene, Stage, condition, text};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::{BindingSpec, wait_until};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

async fn stage() -> &'static Stage {
    static STAGE: OnceCell<Stage> = OnceCell::const_new();
    STAGE.get_or_init(|| Stage::start(BindingSpec::new("workloads"), 3)).await
}

/// The pods of a workload, by their label `app`.
async fn pods_of(scene: &Scene<'_>, app: &str) -> Vec<Value> {
    let path = format!("/api/v1/namespaces/{}/pods?labelSelector=app%3D{app}", scene.namespace);
    scene.computing.list(&path).await
}

/// The copies of a workload of this scene, by the UID of their pods.
async fn copies_of(scene: &Scene<'_>, app: &str) -> BTreeMap<String, Value> {
    let mine = |ppod: &Value| {
        let labels = &ppod["metadata"]["labels"];
        labels["app"] == app && labels[label::VIRTUAL_NAMESPACE] == scene.namespace.as_str()
    };
    let uid = |ppod: &Value| text(&ppod["metadata"]["annotations"][annotation::VIRTUAL_POD_UID]).to_owned();
    let copies = scene.copies("pods").await;
    copies.into_iter().filter(mine).map(|ppod| (uid(&ppod), ppod)).collect()
}

fn uids<'a>(pods: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    pods.into_iter().map(|pod| text(&pod["metadata"]["uid"]).to_owned()).collect()
}

/// A workload's metadata and pod template with the label `app`.
fn workload(scene: &Scene<'_>, kind: &str, name: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": if kind == "Job" { "batch/v1" } else { "apps/v1" },
        "kind": kind,
        "metadata": {"name": name, "namespace": scene.namespace},
        "spec": spec,
    });
    let template = json!({"metadata": {"labels": {"app": name}}, "spec": scene.pod_spec()});
    object["spec"]["template"] = template;
    if kind != "Job" {
        object["spec"]["selector"] = json!({"matchLabels": {"app": name}});
    }
    object
}

/// Deletes a workload as `kubectl` does, and waits until its pods and their copies are gone.
async fn delete(scene: &Scene<'_>, path: &str, app: &str) {
    scene.computing.delete(&format!("{path}?propagationPolicy=Background"), None).await;
    wait_until(&format!("all pods of {app} to be gone"), DEADLINE, async || {
        let left = (pods_of(scene, app).await.len(), copies_of(scene, app).await.len());
        if left == (0, 0) { Ok(()) } else { Err(left) }
    })
    .await;
}

/// Waits until the Deployment `web` is complete with so many pods of a version, and the copies are those of its pods.
/// Meanwhile there are never fewer than `least` available.
async fn wait_rollout(scene: &Scene<'_>, path: &str, version: &str, replicas: usize, least: usize) {
    wait_until(&format!("{replicas} pods of version {version}"), DEADLINE, async || {
        let deployment = scene.computing.get(path).await.expect("the Deployment");
        let status = &deployment["status"];
        let available = status["availableReplicas"].as_u64().unwrap_or_default();
        assert!(available >= least as u64, "{available} available: {status:#}");
        let counted = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"]
            .into_iter()
            .all(|field| status[field].as_u64().unwrap_or_default() == replicas as u64);
        if !counted || status["observedGeneration"] != deployment["metadata"]["generation"] {
            return Err(status.to_string());
        }
        // A pod that lost its copy has failed and is replaced; it stays to be looked at.
        let pods = pods_of(scene, "web").await;
        let live: Vec<_> = pods.iter().filter(|pod| pod["status"]["phase"] != "Failed").collect();
        let copies = copies_of(scene, "web").await;
        let current = copies.values().chain(live.iter().copied());
        let current = current.into_iter().all(|pod| pod["metadata"]["labels"]["version"] == version);
        let wanted = uids(live.iter().copied());
        let matched = wanted.len() == replicas && copies.keys().cloned().collect::<BTreeSet<_>>() == wanted;
        if current && matched { Ok(()) } else { Err(format!("{wanted:?} {:?}", copies.keys())) }
    })
    .await;
}

#[tokio::test]
async fn a_deployment_scales_rolls_out_and_heals() {
    let stage = stage().await;
    let scene = stage.scene("deployment").await;
    let spec = json!({
        "replicas": 2,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
    });
    let mut deployment = workload(&scene, "Deployment", "web", &spec);
    deployment["spec"]["template"]["metadata"]["labels"]["version"] = json!("1");
    scene.computing.create("/apis/apps/v1/namespaces/deployment/deployments", &deployment).await;
    let path = "/apis/apps/v1/namespaces/deployment/deployments/web";
    wait_rollout(&scene, path, "1", 2, 0).await;

    // Up and down. Those that stay are the same.
    for (replicas, least) in [(5, 2), (1, 1), (4, 1)] {
        let before = uids(copies_of(&scene, "web").await.values());
        scene.computing.merge(&format!("{path}/scale"), &json!({"spec": {"replicas": replicas}})).await;
        wait_rollout(&scene, path, "1", replicas, least).await;
        let after = uids(copies_of(&scene, "web").await.values());
        let stayed = before.intersection(&after).count();
        assert_eq!(stayed, before.len().min(replicas), "no copy is made anew: {before:?} {after:?}");
    }
    for ppod in copies_of(&scene, "web").await.values() {
        assert_eq!(ppod["metadata"]["labels"][label::WORKLOAD_TYPE], "deployment");
        assert_eq!(ppod["metadata"]["labels"][label::WORKLOAD_NAME], "web");
    }

    // A rolling update replaces all, never below the wanted number.
    let old = uids(copies_of(&scene, "web").await.values());
    let update = json!({"spec": {"template": {"metadata": {"labels": {"version": "2"}}}}});
    scene.computing.merge(path, &update).await;
    wait_rollout(&scene, path, "2", 4, 4).await;
    assert!(uids(copies_of(&scene, "web").await.values()).is_disjoint(&old));

    // A copy that the worker cluster lost fails its pod, and the ReplicaSet makes another.
    let copies = copies_of(&scene, "web").await;
    let lost = copies.values().next().expect("a copy");
    let mount = stage.binding.mount_namespace();
    let copy = format!("/api/v1/namespaces/{mount}/pods/{}", text(&lost["metadata"]["name"]));
    scene.worker.delete(&copy, Some(0)).await;
    scene.worker.wait_gone(&copy).await;
    let back = &lost["metadata"]["annotations"][annotation::VIRTUAL_POD_NAME];
    let failed = |pod: &Value| (pod["status"]["reason"] == "PhysicalPodLost").then_some(());
    scene.computing.wait("the pod to fail", &scene.vpod(text(back)), failed).await;
    wait_rollout(&scene, path, "2", 4, 3).await;

    delete(&scene, path, "web").await;
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn a_job_completes_and_stays_so_when_its_copies_go() {
    let stage = stage().await;
    let scene = stage.scene("job").await;
    let mut job =
        workload(&scene, "Job", "sum", &json!({"completions": 3, "parallelism": 2, "backoffLimit": 0}));
    job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
    scene.computing.create("/apis/batch/v1/namespaces/job/jobs", &job).await;
    let path = "/apis/batch/v1/namespaces/job/jobs/sum";
    let complete = |job: &Value| (condition(job, "Complete")["status"] == "True").then(|| job.clone());
    let job = scene.computing.wait("the Job to complete", path, complete).await;
    assert_eq!((&job["status"]["succeeded"], &job["status"]["failed"]), (&json!(3), &Value::Null));

    let pods = pods_of(&scene, "sum").await;
    let copies = copies_of(&scene, "sum").await;
    assert_eq!(copies.keys().cloned().collect::<BTreeSet<_>>(), uids(&pods));
    assert_eq!(pods.len(), 3);
    for ppod in copies.values() {
        assert_eq!(ppod["metadata"]["labels"][label::WORKLOAD_TYPE], "job");
        assert_eq!(ppod["metadata"]["labels"][label::WORKLOAD_NAME], "sum");
    }
    for pod in &pods {
        assert_eq!(pod["status"]["phase"], "Succeeded");
        assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    }

    // The worker cluster cleans up.
    for pod in &pods {
        let copy = scene.ppod(text(&pod["metadata"]["name"]));
        scene.worker.delete(&copy, Some(0)).await;
        scene.worker.wait_gone(&copy).await;
    }
    scene.barrier("after-cleanup").await;
    let after = pods_of(&scene, "sum").await;
    assert_eq!(uids(&after), uids(&pods));
    for pod in &after {
        assert_eq!(pod["status"]["phase"], "Succeeded", "{pod:#}");
    }
    assert!(copies_of(&scene, "sum").await.is_empty(), "a copy was made again");
    let job = scene.computing.get(path).await.expect("the Job");
    assert_eq!((&job["status"]["succeeded"], &job["status"]["failed"]), (&json!(3), &Value::Null));

    delete(&scene, path, "sum").await;
    assert_rights(&stage.binding);
}

/// Creates a DaemonSet and waits until it has a pod on each of the two vnodes; returns their names.
async fn daemon_set(scene: &Scene<'_>, name: &str, annotations: Value) -> Vec<String> {
    let mut daemon_set = workload(scene, "DaemonSet", name, &json!({}));
    daemon_set["spec"]["template"]["metadata"]["annotations"] = annotations;
    let collection = format!("/apis/apps/v1/namespaces/{}/daemonsets", scene.namespace);
    scene.computing.create(&collection, &daemon_set).await;
    wait_bound(scene, name).await
}

async fn wait_bound(scene: &Scene<'_>, app: &str) -> Vec<String> {
    wait_until(&format!("a pod of {app} on each vnode"), DEADLINE, async || {
        let pods = pods_of(scene, app).await;
        let bound = pods.iter().filter(|pod| {
            pod["spec"]["nodeName"].is_string() && pod["metadata"]["deletionTimestamp"].is_null()
        });
        let names: Vec<_> = bound.map(|pod| text(&pod["metadata"]["name"]).to_owned()).collect();
        if names.len() == 2 { Ok(names) } else { Err(pods) }
    })
    .await
}

/// Whether pods have copies.
async fn have_copies(scene: &Scene<'_>, names: &[String]) -> Vec<bool> {
    let mut have = Vec::new();
    for name in names {
        have.push(scene.worker.get(&scene.ppod(name)).await.is_some());
    }
    have
}

/// Says in the binding whether pods of DaemonSets run, and waits until the Syncer works by it. That another field of the
/// same change has its effect on new pods tells.
async fn run_by_default(scene: &Scene<'_>, yes: bool, probe: &str) {
    let fields = json!({"spec": {"runningDaemonsetByDefault": yes, "directScheduling": yes}});
    scene.computing.merge("/apis/cloud.tencent.com/v1beta1/clusterbindings/daemons", &fields).await;
    let mut number = 0;
    wait_until("the Syncer to know its changed binding", DEADLINE, async || {
        number += 1;
        let (_, ppod) = scene.run_pod(&format!("{probe}-{number}"), json!({})).await;
        ppod["spec"]["affinity"].is_null() == yes
    })
    .await;
}

#[tokio::test]
async fn pods_of_daemonsets_run_when_asked() {
    let stage = Stage::start(BindingSpec::new("daemons"), 2).await;
    let scene = stage.scene("daemons").await;
    let system = stage.scene("kube-system").await;
    let asked = json!({annotation::RUNNING_DAEMONSET: "true"});

    // By default they do not run, those that ask do, those of the system never.
    let agent = daemon_set(&scene, "agent", json!({annotation::RUNNING_DAEMONSET: "yes"})).await;
    let asking = daemon_set(&scene, "asking", asked.clone()).await;
    let system_agent = daemon_set(&system, "system-agent", asked.clone()).await;
    for name in &asking {
        let (_, ppod) = scene.wait_running(name).await;
        assert_eq!(ppod["metadata"]["labels"][label::WORKLOAD_TYPE], "daemonset");
        assert_eq!(ppod["metadata"]["labels"][label::WORKLOAD_NAME], "asking");
    }
    scene.barrier("after-daemons").await;
    assert_eq!(have_copies(&scene, &agent).await, [false, false], "not asked for");
    assert_eq!(have_copies(&system, &system_agent).await, [false, false], "of the system");

    // By annotation, for one pod that is there already. To take it away ends nothing.
    scene.computing.merge(&scene.vpod(&agent[0]), &json!({"metadata": {"annotations": asked}})).await;
    scene.wait_running(&agent[0]).await;
    let not_asked = json!({"metadata": {"annotations": {annotation::RUNNING_DAEMONSET: null}, "labels": {"seen": "yes"}}});
    scene.computing.merge(&scene.vpod(&agent[0]), &not_asked).await;
    let seen = |ppod: &Value| (ppod["metadata"]["labels"]["seen"] == "yes").then_some(());
    scene.worker.wait("the change on the copy", &scene.ppod(&agent[0]), seen).await;
    assert_eq!(have_copies(&scene, &agent).await, [true, false], "the other was not asked for");

    // By the binding: those that are there run.
    run_by_default(&scene, true, "on").await;
    scene.wait_running(&agent[1]).await;
    assert_eq!(have_copies(&system, &system_agent).await, [false, false], "of the system");

    // And back: what runs goes on, its successor does not run.
    run_by_default(&scene, false, "off").await;
    assert_eq!(have_copies(&scene, &agent).await, [true, true], "a change of the binding ends nothing");
    scene.computing.delete(&scene.vpod(&agent[1]), None).await;
    scene.computing.wait_gone(&scene.vpod(&agent[1])).await;
    let successors = wait_bound(&scene, "agent").await;
    let successor: Vec<_> = successors.into_iter().filter(|name| !agent.contains(name)).collect();
    scene.barrier("after-successor").await;
    assert_eq!(have_copies(&scene, &successor).await, [false]);

    // One that never ran goes at once; its own successor runs once the binding says so again.
    scene.computing.delete(&scene.vpod(&successor[0]), None).await;
    scene.computing.wait_gone(&scene.vpod(&successor[0])).await;
    run_by_default(&scene, true, "on-again").await;
    for name in wait_bound(&scene, "agent").await {
        scene.wait_running(&name).await;
    }
    assert_eq!(have_copies(&system, &system_agent).await, [false, false], "of the system");
    delete(&system, "/apis/apps/v1/namespaces/kube-system/daemonsets/system-agent", "system-agent").await;
    assert_rights(&stage.binding);
}
