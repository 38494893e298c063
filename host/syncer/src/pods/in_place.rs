//! What of a running pod may change, and how its ppod follows: images, tolerations that are added, and resources
//! (TD-808).
//!
//! Neither side is compared with the other: the worker's admission may change a ppod, and it is not fought. Annotation
//! `expected-spec` on the ppod remembers what of the vpod was brought down last, as two digests; a ppod without it, made
//! by the original, is not followed. Pure; called by the planner, the transformation and the apply stage.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::transform::worker_tolerations;

/// Lists of containers that can change while a pod runs.
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];
/// Bytes of a digest that are kept.
const DIGEST_BYTES: usize = 8;

/// Digests of what may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutable {
    /// Of images and tolerations.
    pub spec: String,
    /// Of the containers' resources.
    pub resources: String,
}

impl Mutable {
    /// Of a pod's spec.
    pub fn of(spec: &Value) -> Self {
        let images = each_container(spec).map(|(list, container)| {
            format!("{list}/{}={}", text(container, "name"), text(container, "image"))
        });
        let tolerations = tolerations(spec).iter().map(Value::to_string);
        let resources = each_container(spec)
            .map(|(list, container)| format!("{list}/{}={:?}", text(container, "name"), amounts(container)));
        Self { spec: digest(images.chain(tolerations).collect()), resources: digest(resources.collect()) }
    }

    /// Value of the annotation.
    pub fn encode(&self) -> String {
        format!("{}.{}", self.spec, self.resources)
    }

    /// Reads the annotation; `None` when it is not what a Syncer wrote.
    pub fn decode(text: &str) -> Option<Self> {
        let (spec, resources) = text.split_once('.')?;
        Some(Self { spec: spec.to_owned(), resources: resources.to_owned() })
    }
}

/// What to change in the ppod's spec so that it has the vpod's images, and its tolerations beside its own. For a
/// strategic merge patch.
pub fn spec_patch(vpod: &Value, ppod: &Value) -> Map<String, Value> {
    let mut patch = Map::new();
    for list in CONTAINERS {
        let present: BTreeMap<&str, &str> = containers(ppod, list)
            .map(|container| (text(container, "name"), text(container, "image")))
            .collect();
        let changed: Vec<Value> = containers(vpod, list)
            .filter(|container| {
                present.get(text(container, "name")).is_some_and(|image| *image != text(container, "image"))
            })
            .map(|container| json!({"name": container["name"], "image": container["image"]}))
            .collect();
        if !changed.is_empty() {
            patch.insert(list.to_owned(), changed.into());
        }
    }
    let mut all = tolerations(ppod).to_vec();
    let before = all.len();
    for toleration in worker_tolerations(tolerations(vpod)) {
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    if all.len() > before {
        patch.insert("tolerations".to_owned(), all.into());
    }
    patch
}

/// What to ask of the ppod's subresource `resize`; empty when its containers have the vpod's resources. Amounts that only
/// the ppod has, as a LimitRange gives them, stay: none can be taken away from a running container.
pub fn resize_patch(vpod: &Value, ppod: &Value) -> Map<String, Value> {
    let mut patch = Map::new();
    for list in CONTAINERS {
        let present: BTreeMap<&str, _> =
            containers(ppod, list).map(|container| (text(container, "name"), amounts(container))).collect();
        let changed: Vec<Value> = containers(vpod, list)
            .filter_map(|container| {
                let wanted = amounts(container);
                let present = present.get(text(container, "name"))?;
                let differs = wanted.iter().any(|(key, amount)| present.get(key) != Some(amount));
                differs.then(|| {
                    json!({"name": container["name"], "resources": {
                        "requests": of_kind(&wanted, "requests"), "limits": of_kind(&wanted, "limits"),
                    }})
                })
            })
            .collect();
        if !changed.is_empty() {
            patch.insert(list.to_owned(), changed.into());
        }
    }
    patch
}

type Amounts<'a> = BTreeMap<(&'static str, &'a str), &'a Value>;

fn amounts(container: &Value) -> Amounts<'_> {
    let mut all = Amounts::new();
    for kind in ["requests", "limits"] {
        let of_kind = container.pointer(&format!("/resources/{kind}")).and_then(Value::as_object);
        all.extend(of_kind.into_iter().flatten().map(|(name, amount)| ((kind, name.as_str()), amount)));
    }
    all
}

fn of_kind(amounts: &Amounts<'_>, kind: &str) -> Map<String, Value> {
    let of = amounts.iter().filter(|((of, _), _)| *of == kind);
    of.map(|((_, name), amount)| ((*name).to_owned(), (*amount).clone())).collect()
}

fn containers<'a>(spec: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    spec.get(list).and_then(Value::as_array).into_iter().flatten()
}

fn each_container(spec: &Value) -> impl Iterator<Item = (&'static str, &Value)> {
    CONTAINERS.into_iter().flat_map(|list| containers(spec, list).map(move |container| (list, container)))
}

fn tolerations(spec: &Value) -> &[Value] {
    spec.get("tolerations").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn digest(parts: BTreeSet<String>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let digest = hasher.finalize();
    hex::encode(digest.get(..DIGEST_BYTES).unwrap_or(&digest))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn spec() -> Value {
        json!({
            "containers": [
                {"name": "main", "image": "app:1", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}},
                {"name": "side", "image": "log:1"},
            ],
            "initContainers": [{"name": "mesh", "image": "mesh:1", "restartPolicy": "Always"}],
            "tolerations": [{"key": "a", "operator": "Exists"}],
        })
    }

    fn with(pointer: &str, value: impl Into<Value>) -> Value {
        let mut spec = spec();
        *spec.pointer_mut(pointer).unwrap() = value.into();
        spec
    }

    #[rstest]
    #[case::image(with("/containers/1/image", "log:2"), true, false)]
    #[case::image_of_a_sidecar(with("/initContainers/0/image", "mesh:2"), true, false)]
    #[case::toleration(with("/tolerations", json!([{"key": "a", "operator": "Exists"}, {"key": "b"}])), true, false)]
    #[case::request(with("/containers/0/resources/requests/cpu", "2"), false, true)]
    #[case::limit(with("/containers/0/resources/limits", json!({"cpu": "2", "memory": "1Gi"})), false, true)]
    #[case::order_of_tolerations_and_what_cannot_change(
        { let mut spec = spec(); spec["hostname"] = "other".into(); spec }, false, false
    )]
    fn digests_tell_what_changed(
        #[case] changed: Value,
        #[case] spec_differs: bool,
        #[case] resources_differ: bool,
    ) {
        let (before, after) = (Mutable::of(&spec()), Mutable::of(&changed));
        assert_eq!(
            (before.spec != after.spec, before.resources != after.resources),
            (spec_differs, resources_differ)
        );
        assert_eq!(Mutable::decode(&after.encode()), Some(after));
    }

    #[test]
    fn only_what_differs_is_changed_and_nothing_of_the_worker_is_lost() {
        let mut ppod = spec();
        // The worker's admission: a toleration of its own, a default limit.
        ppod["tolerations"].as_array_mut().unwrap().push(json!({"key": "worker"}));
        ppod["containers"][1]["resources"] = json!({"limits": {"memory": "1Gi"}});
        assert_eq!(Value::from(spec_patch(&spec(), &ppod)), json!({}));
        assert_eq!(Value::from(resize_patch(&spec(), &ppod)), json!({}));

        let mut vpod = with("/containers/0/image", "app:2");
        vpod["containers"][0]["resources"]["requests"]["cpu"] = "3".into();
        let unschedulable = json!({"key": "kubeocean.io/physical-node-unschedulable", "operator": "Exists"});
        vpod["tolerations"].as_array_mut().unwrap().push(unschedulable.clone());
        assert_eq!(
            Value::from(spec_patch(&vpod, &ppod)),
            json!({
                "containers": [{"name": "main", "image": "app:2"}],
                "tolerations": [
                    {"key": "a", "operator": "Exists"}, {"key": "worker"}, unschedulable,
                    {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"},
                ],
            })
        );
        assert_eq!(
            Value::from(resize_patch(&vpod, &ppod)),
            json!({"containers": [
                {"name": "main", "resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "2"}}},
            ]})
        );
    }
}
