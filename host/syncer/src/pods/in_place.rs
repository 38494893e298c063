//! What of a running pod may change, and how its ppod follows: images, tolerations that are added, and resources
//! (TD-808).
//!
//! Neither side is compared with the other: the worker's admission may change a ppod, and it is not fought. Annotation
//! `expected-spec` on the ppod remembers what of the vpod was brought down last, as two digests and their parts by
//! container; only a container that is asked for something else than last time is changed. A ppod without it, made by the
//! original, is not followed. Pure; called by the planner, the transformation and the apply stage.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::transform::worker_tolerations;

/// Lists of containers that can change while a pod runs.
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];
/// Bytes of a digest that are kept.
const DIGEST_BYTES: usize = 8;
/// Hexadecimal digits of a part: whether there is a change at all is told by the digests of the whole.
const PART: usize = 8;

/// Digests of what may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutable {
    /// Of images and tolerations.
    pub spec: String,
    /// Of the containers' resources.
    pub resources: String,
    /// Of the tolerations, and of image and resources of each container in the vpod's order, which never changes. Empty
    /// in notes of a time when there were none.
    parts: String,
}

/// What of a container a digest is of.
#[derive(Clone, Copy)]
enum Part {
    Image = 0,
    Resources = 1,
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
        let mut parts = part(&tolerations_text(spec));
        for (_, container) in each_container(spec) {
            parts.push_str(&part(text(container, "image")));
            parts.push_str(&part(&format!("{:?}", amounts(container))));
        }
        Self {
            spec: digest(images.chain(tolerations).collect()),
            resources: digest(resources.collect()),
            parts,
        }
    }

    /// Whether both ask for the same.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.spec, &self.resources) == (&other.spec, &other.resources)
    }

    /// Images and tolerations have been brought down as `wanted`.
    pub fn take_spec(&mut self, wanted: &Self) {
        self.spec.clone_from(&wanted.spec);
        self.take_parts(wanted, |at| at == 0 || at % 2 == 1);
    }

    /// Resources have been brought down as `wanted`.
    pub fn take_resources(&mut self, wanted: &Self) {
        self.resources.clone_from(&wanted.resources);
        self.take_parts(wanted, |at| at != 0 && at % 2 == 0);
    }

    /// Parts of a note from before there were any come with the first time that all is known.
    fn take_parts(&mut self, wanted: &Self, taken: impl Fn(usize) -> bool) {
        if self.parts.len() == wanted.parts.len() {
            let (old, new) = (self.parts.as_bytes().chunks(PART), wanted.parts.as_bytes().chunks(PART));
            let chosen = old.zip(new).enumerate().map(|(at, (old, new))| if taken(at) { new } else { old });
            self.parts = String::from_utf8_lossy(&chosen.collect::<Vec<_>>().concat()).into_owned();
        } else if self.is_same(wanted) {
            self.parts.clone_from(&wanted.parts);
        }
    }

    /// Whether `wanted` asks for other tolerations; unknown counts as yes.
    fn asks_for_tolerations(&self, wanted: &Self) -> bool {
        self.part(0) != wanted.part(0) || self.part(0).is_none()
    }

    /// The same for a part of the container at this place.
    fn asks_for(&self, wanted: &Self, container: usize, part: Part) -> bool {
        let at = 1 + 2 * container + part as usize;
        self.parts.len() != wanted.parts.len() || self.part(at) != wanted.part(at)
    }

    fn part(&self, at: usize) -> Option<&str> {
        self.parts.get(at * PART..(at + 1) * PART)
    }

    /// Value of the annotation.
    pub fn encode(&self) -> String {
        let mut text = format!("{}.{}", self.spec, self.resources);
        if !self.parts.is_empty() {
            text.extend([".", &self.parts]);
        }
        text
    }

    /// Reads the annotation; `None` when it is not what a Syncer wrote.
    pub fn decode(text: &str) -> Option<Self> {
        let (spec, resources) = text.split_once('.')?;
        let (resources, parts) = resources.split_once('.').unwrap_or((resources, ""));
        Some(Self { spec: spec.to_owned(), resources: resources.to_owned(), parts: parts.to_owned() })
    }
}

/// Whether a vpod asks for something else than what the ppod's note says of it. Both are encoded; a note from before there
/// were parts is the beginning of one with them. A note of nobody is none.
pub fn is_outdated(note: &str, vpod: &str) -> bool {
    Mutable::decode(note).is_some() && !vpod.starts_with(note)
}

/// What to change in the ppod's spec so that it has those of the vpod's images that are other than last time, and its
/// tolerations beside its own. For a strategic merge patch.
pub fn spec_patch(vpod: &Value, ppod: &Value, asked: &Mutable) -> Map<String, Value> {
    let wanted = Mutable::of(vpod);
    let mut patch = Map::new();
    let mut first = 0;
    for list in CONTAINERS {
        let present: BTreeMap<&str, &str> = containers(ppod, list)
            .map(|container| (text(container, "name"), text(container, "image")))
            .collect();
        let changed: Vec<Value> = containers(vpod, list)
            .enumerate()
            .filter(|(place, container)| {
                asked.asks_for(&wanted, first + place, Part::Image)
                    && present.get(text(container, "name")).is_some_and(|it| *it != text(container, "image"))
            })
            .map(|(_, container)| json!({"name": container["name"], "image": container["image"]}))
            .collect();
        first += containers(vpod, list).count();
        if !changed.is_empty() {
            patch.insert(list.to_owned(), changed.into());
        }
    }
    if !asked.asks_for_tolerations(&wanted) {
        return patch;
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

/// What to ask of the ppod's subresource `resize`; empty when the containers whose resources are other than last time have
/// the vpod's. Amounts that only the ppod has, as a LimitRange gives them, stay: none can be taken away from a running
/// container.
pub fn resize_patch(vpod: &Value, ppod: &Value, asked: &Mutable) -> Map<String, Value> {
    let wanted = Mutable::of(vpod);
    let mut patch = Map::new();
    let mut first = 0;
    for list in CONTAINERS {
        let present: BTreeMap<&str, _> =
            containers(ppod, list).map(|container| (text(container, "name"), amounts(container))).collect();
        let changed: Vec<Value> = containers(vpod, list)
            .enumerate()
            .filter(|(place, _)| asked.asks_for(&wanted, first + place, Part::Resources))
            .filter_map(|(_, container)| {
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
        first += containers(vpod, list).count();
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

fn tolerations_text(spec: &Value) -> String {
    tolerations(spec).iter().map(Value::to_string).collect::<BTreeSet<_>>().into_iter().collect()
}

fn part(text: &str) -> String {
    let mut digest = digest(BTreeSet::from([text.to_owned()]));
    digest.truncate(PART);
    digest
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
        let asked = Mutable::of(&spec());
        assert_eq!(Value::from(spec_patch(&spec(), &ppod, &asked)), json!({}));
        assert_eq!(Value::from(resize_patch(&spec(), &ppod, &asked)), json!({}));

        let mut vpod = with("/containers/0/image", "app:2");
        vpod["containers"][0]["resources"]["requests"]["cpu"] = "3".into();
        let unschedulable = json!({"key": "kubeocean.io/physical-node-unschedulable", "operator": "Exists"});
        vpod["tolerations"].as_array_mut().unwrap().push(unschedulable.clone());
        assert_eq!(
            Value::from(spec_patch(&vpod, &ppod, &asked)),
            json!({
                "containers": [{"name": "main", "image": "app:2"}],
                "tolerations": [
                    {"key": "a", "operator": "Exists"}, {"key": "worker"}, unschedulable,
                    {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"},
                ],
            })
        );
        assert_eq!(
            Value::from(resize_patch(&vpod, &ppod, &asked)),
            json!({"containers": [
                {"name": "main", "resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "2"}}},
            ]})
        );
    }

    /// A mirror of the worker's registry, and more memory: its admission's, before and after the user's change.
    #[test]
    fn what_the_workers_admission_changed_is_not_taken_back_with_the_next_change() {
        let asked = Mutable::of(&spec());
        let mut ppod = spec();
        ppod["containers"][1]["image"] = "mirror/log:1".into();
        ppod["initContainers"][0]["resources"] = json!({"requests": {"cpu": "50m"}});
        ppod["tolerations"] = json!([]);
        let mut vpod = with("/containers/0/image", "app:2");
        vpod["containers"][0]["resources"]["requests"]["cpu"] = "3".into();
        let image = json!({"containers": [{"name": "main", "image": "app:2"}]});
        let amounts = json!({"containers": [
            {"name": "main", "resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "2"}}},
        ]});
        assert_eq!(Value::from(spec_patch(&vpod, &ppod, &asked)), image);
        assert_eq!(Value::from(resize_patch(&vpod, &ppod, &asked)), amounts);

        // Of what a note of before says nothing of, the ppod is compared with.
        let old = Mutable::decode(&format!("{}.{}", asked.spec, asked.resources)).unwrap();
        assert_eq!(spec_patch(&vpod, &ppod, &old)["containers"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_half_that_was_refused_is_asked_for_again() {
        let mut vpod = with("/containers/0/image", "app:2");
        vpod["containers"][0]["resources"]["requests"]["cpu"] = "3".into();
        let (asked, wanted) = (Mutable::of(&spec()), Mutable::of(&vpod));
        let mut noted = asked.clone();
        noted.take_spec(&wanted);
        assert!(!noted.is_same(&wanted));
        assert!(spec_patch(&vpod, &spec(), &noted).is_empty());
        assert!(!resize_patch(&vpod, &spec(), &noted).is_empty());
        noted.take_resources(&wanted);
        assert_eq!(noted, wanted);
        assert_eq!(Mutable::decode(&wanted.encode()), Some(wanted));
    }
}
