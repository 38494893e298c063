//! Changes of running pods (TD-808), as their users and the worker's kubelets make them.

use serde_json::{Value, json};

use crate::pods::Scene;

/// The first container of a pod, changed by `change`, in a patch of the pod.
pub fn changed(pod: &Value, change: impl FnOnce(&mut Value)) -> Value {
    let mut containers = pod["spec"]["containers"].clone();
    change(&mut containers[0]);
    json!({"spec": {"containers": containers}})
}

/// Gives a pod another image.
///
/// # Panics
/// There is no such pod.
pub async fn change_image(scene: &Scene<'_>, name: &str, image: &str) {
    let path = scene.vpod(name);
    let pod = scene.computing.get(&path).await.expect("the pod");
    scene.computing.merge(&path, &changed(&pod, |main| main["image"] = json!(image))).await;
}

/// Waits until the copy of a pod has this image.
pub async fn wait_image(scene: &Scene<'_>, name: &str, image: &str) {
    let arrived = |pod: &Value| (pod["spec"]["containers"][0]["image"] == image).then_some(());
    scene.worker.wait("the image", &scene.ppod(name), arrived).await;
}

/// Gives a pod another image, and waits until its copy has it.
pub async fn set_image(scene: &Scene<'_>, name: &str, image: &str) {
    change_image(scene, name, image).await;
    wait_image(scene, name, image).await;
}

/// Has the copy's kubelet report what its container has, as kubelets do that can resize; API servers ask for it.
///
/// # Panics
/// The pod has no copy.
pub async fn report_resources(scene: &Scene<'_>, name: &str) {
    let copy = scene.worker.get(&scene.ppod(name)).await.expect("the copy");
    let mut statuses = copy["status"]["containerStatuses"].clone();
    statuses[0]["resources"] = copy["spec"]["containers"][0]["resources"].clone();
    let status = json!({"status": {"containerStatuses": statuses}});
    scene.worker.merge(&format!("{}/status", scene.ppod(name)), &status).await;
    let shown = |pod: &Value| pod["status"]["containerStatuses"][0]["resources"].is_object().then_some(());
    scene.computing.wait("the container's resources", &scene.vpod(name), shown).await;
}

/// Resizes a pod whose resources were reported, as `kubectl patch --subresource resize` does.
///
/// # Panics
/// There is no such pod.
pub async fn resize(scene: &Scene<'_>, name: &str, cpu: &str) {
    let path = scene.vpod(name);
    let pod = scene.computing.get(&path).await.expect("the pod");
    let patch = changed(&pod, |main| main["resources"]["requests"]["cpu"] = json!(cpu));
    scene.computing.merge(&format!("{path}/resize"), &patch).await;
}

/// Waits until the copy of a pod asks for so much, and returns it.
pub async fn wait_cpu(scene: &Scene<'_>, name: &str, cpu: &str) -> Value {
    let resized = |pod: &Value| {
        (pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] == cpu).then(|| pod.clone())
    };
    scene.worker.wait("the resources", &scene.ppod(name), resized).await
}
