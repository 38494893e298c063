//! SIGKILL in the middle of work (TD section 16): the end state is that of an uninterrupted run.
//!
//! In: 100 pods on five nodes, with ConfigMap and token. The Syncer is killed while it creates them and again while it
//! deletes them. Out: 100 copies, each of exactly one pod, none made twice; then nothing at all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, stream};
use kubeocean_api::keys::{annotation, label};
use kubeocean_e2e::pods::{Scene, Stage, core_path};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::{BindingSpec, wait_until};
use serde_json::{Value, json};

const PODS: usize = 100;
/// The work of both phases takes seconds on an idle machine.
const DEADLINE: Duration = Duration::from_mins(3);

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The managed copies of a kind in the mount namespace.
async fn copies(scene: &Scene<'_>, kind: &str) -> Vec<Value> {
    let selector = format!("{}%3D{}", label::MANAGED_BY.replace('/', "%2F"), label::MANAGED_BY_VALUE);
    let mount = scene.stage.binding.mount_namespace();
    scene.worker.list(&format!("/api/v1/namespaces/{mount}/{kind}?labelSelector={selector}")).await
}

/// Of each copy: UID of the copy by UID of its pod.
fn by_vpod(ppods: &[Value]) -> BTreeMap<String, String> {
    let pair = |ppod: &Value| {
        (text(&ppod["metadata"]["annotations"][annotation::VIRTUAL_POD_UID]), text(&ppod["metadata"]["uid"]))
    };
    ppods.iter().map(pair).collect()
}

async fn vpods(scene: &Scene<'_>) -> Vec<Value> {
    scene.computing.list(&format!("/api/v1/namespaces/{}/pods", scene.namespace)).await
}

async fn create_all(scene: &Scene<'_>) {
    scene.create_object("configmaps", "shared", json!({"data": {"key": "value"}})).await;
    let spec = json!({
        "automountServiceAccountToken": true,
        "volumes": [{"name": "settings", "configMap": {"name": "shared"}}],
    });
    stream::iter(0..PODS)
        .for_each_concurrent(10, |number| {
            let pod = scene.pod(&format!("p{number}"), spec.clone());
            async move {
                scene.create_pod(&pod).await;
            }
        })
        .await;
}

#[tokio::test]
async fn a_killed_syncer_loses_and_doubles_nothing() {
    let mut stage = Stage::start(BindingSpec::new("crash"), 5).await;

    // Creation: killed twice, with some of the copies made and with half of the others.
    let mut seen = BTreeMap::new();
    {
        let scene = stage.scene("crash").await;
        create_all(&scene).await;
    }
    for more in [PODS / 5, PODS / 2] {
        let part = seen.len() + more * (PODS - seen.len()) / PODS;
        let scene = stage.scene("crash").await;
        wait_until(&format!("{part} copies"), DEADLINE, async || {
            let made = copies(&scene, "pods").await.len();
            if made >= part { Ok(()) } else { Err(made) }
        })
        .await;
        drop(scene);
        stage.syncer.kill();
        let scene = stage.scene("crash").await;
        let made = by_vpod(&copies(&scene, "pods").await);
        println!("killed with {} of {PODS} copies made", made.len());
        for (vpod, ppod) in made {
            let before = seen.insert(vpod.clone(), ppod.clone());
            assert!(before.is_none_or(|before| before == ppod), "the copy of {vpod} was made twice");
        }
        drop(scene);
        stage.syncer.restart().expect("a restart");
    }

    let scene = stage.scene("crash").await;
    wait_until("all pods to run", DEADLINE, async || {
        let pods = vpods(&scene).await;
        let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
        if running == PODS { Ok(()) } else { Err(format!("{running} of {}", pods.len())) }
    })
    .await;
    let ppods = copies(&scene, "pods").await;
    assert_eq!(ppods.len(), PODS, "one copy for each pod");
    let made = by_vpod(&ppods);
    let wanted: BTreeSet<String> =
        vpods(&scene).await.iter().map(|pod| text(&pod["metadata"]["uid"])).collect();
    assert_eq!(made.keys().cloned().collect::<BTreeSet<_>>(), wanted, "each pod has its own copy");
    for (vpod, ppod) in &seen {
        assert_eq!(made.get(vpod), Some(ppod), "a copy made before a crash stays");
    }
    for pod in vpods(&scene).await {
        let uid = text(&pod["metadata"]["uid"]);
        assert_eq!(pod["metadata"]["annotations"][annotation::PHYSICAL_POD_UID], made[&uid].as_str());
    }
    let tokens = copies(&scene, "secrets").await.len();
    assert_eq!(tokens, PODS, "one token Secret for each pod");
    drop(scene);

    // Deletion: killed with about a third of the pods gone.
    {
        let scene = stage.scene("crash").await;
        scene.computing.delete(&format!("/api/v1/namespaces/{}/pods", scene.namespace), None).await;
        wait_until("a third of the pods to be gone", DEADLINE, async || {
            let left = vpods(&scene).await.len();
            if left <= 2 * PODS / 3 { Ok(()) } else { Err(left) }
        })
        .await;
    }
    stage.syncer.kill();
    {
        let scene = stage.scene("crash").await;
        println!(
            "killed with {} pods and {} copies left",
            vpods(&scene).await.len(),
            copies(&scene, "pods").await.len()
        );
    }
    stage.syncer.restart().expect("a restart");
    let scene = stage.scene("crash").await;
    wait_until("everything to be gone", DEADLINE, async || {
        let left = (
            vpods(&scene).await.len(),
            copies(&scene, "pods").await.len(),
            copies(&scene, "secrets").await.len(),
        );
        if left == (0, 0, 0) { Ok(()) } else { Err(left) }
    })
    .await;

    // The ConfigMap's copy goes with the ConfigMap, whoever made it before which crash.
    let mount = stage.binding.mount_namespace();
    scene.computing.delete(&scene.object("configmaps", "shared"), None).await;
    scene.computing.wait_gone(&scene.object("configmaps", "shared")).await;
    scene.worker.wait_gone(&core_path(mount, "configmaps", &scene.copy_name("shared"))).await;
    assert_rights(&stage.binding);
}
