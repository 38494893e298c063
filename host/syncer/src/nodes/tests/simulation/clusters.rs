//! The two API servers: objects with versions, UIDs and finalizers, and one stream of changes per watch.

use std::collections::{BTreeMap, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubeocean_api::{
    keys::finalizer,
    vnode::{is_left, is_marked, missing_marks},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::oracle::{Objects, View};
use crate::{
    nodes::{index::Identity, tests::model::merge},
    simulation::trace,
};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Vnode,
    Vpod,
    Pnode,
    WorkerPod,
    Policy,
    Binding,
}

pub(super) const KINDS: [Kind; 6] =
    [Kind::Vnode, Kind::Vpod, Kind::Pnode, Kind::WorkerPod, Kind::Policy, Kind::Binding];

/// One change of a watch: the object, and whether it is there.
pub(super) type Change = (Value, bool);

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NotFound,
    Conflict,
    /// Not refused, but nobody says so.
    NoAnswer,
}

/// Name of the one binding among the objects.
pub(super) const BINDING: &str = "dc-east";

pub(super) struct Clusters {
    version: u64,
    pub(super) objects: BTreeMap<Kind, Objects>,
    pub(super) events: BTreeMap<Kind, VecDeque<Change>>,
}

impl Clusters {
    pub(super) fn new() -> Self {
        let mut clusters = Self {
            version: 100,
            objects: KINDS.map(|kind| (kind, Objects::new())).into(),
            events: KINDS.map(|kind| (kind, VecDeque::new())).into(),
        };
        clusters.put(Kind::Binding, json!({"metadata": {"name": BINDING}, "deleting": false}));
        clusters
    }

    pub(super) fn all(&self, kind: Kind) -> &Objects {
        &self.objects[&kind]
    }

    pub(super) fn get(&self, kind: Kind, name: &str) -> Option<&Value> {
        self.objects[&kind].get(name)
    }

    pub(super) fn uid(&mut self) -> String {
        self.version += 1;
        format!("u{}", self.version)
    }

    /// Stores an object under its name; one that is being deleted goes with its last finalizer.
    pub(super) fn put(&mut self, kind: Kind, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let finalizers = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        let waits = matches!(kind, Kind::Vpod | Kind::Pnode | Kind::WorkerPod);
        let there = object["metadata"].get("deletionTimestamp").is_none() || finalizers || waits;
        let objects = self.objects.get_mut(&kind).unwrap();
        let before = if there { objects.insert(name, object.clone()) } else { objects.remove(&name) };
        trace(|| format!("    {kind:?} {} {object}", if there { "is" } else { "goes" }));
        self.tell(kind, before.as_ref(), &object, there);
        object
    }

    /// The watch of vnodes selects by labels: one that loses them looks as if it was gone.
    fn tell(&mut self, kind: Kind, before: Option<&Value>, object: &Value, there: bool) {
        let (was, is) = (before.is_some_and(|it| selected(kind, it)), selected(kind, object));
        let shown = there && is;
        if shown || was || (is && !there) {
            self.events.get_mut(&kind).unwrap().push_back((object.clone(), shown));
        }
    }

    /// What a list of the watch shows.
    pub(super) fn listed(&self, kind: Kind) -> Objects {
        let shown = self.objects[&kind].iter().filter(|(_, object)| selected(kind, object));
        shown.map(|(name, object)| (name.clone(), object.clone())).collect()
    }

    /// Changes an object, if it is there.
    pub(super) fn edit(&mut self, kind: Kind, name: &str, change: impl FnOnce(&mut Value)) {
        if let Some(mut object) = self.get(kind, name).cloned() {
            change(&mut object);
            self.put(kind, object);
        }
    }

    /// A merge patch; UID and version in it are preconditions.
    pub(super) fn patch(&mut self, kind: Kind, name: &str, patch: &Value) -> Result<Value, Refusal> {
        let mut object = self.get(kind, name).cloned().ok_or(Refusal::NotFound)?;
        for precondition in ["uid", "resourceVersion"] {
            let wanted = &patch["metadata"][precondition];
            if !wanted.is_null() && *wanted != object["metadata"][precondition] {
                return Err(Refusal::Conflict);
            }
        }
        merge(&mut object, patch);
        Ok(self.put(kind, object))
    }

    /// DELETE: gone at once, or marked where a finalizer or a kubelet has to act first.
    pub(super) fn delete(&mut self, kind: Kind, name: &str, uid: Option<&str>) -> Result<(), Refusal> {
        let mut object = self.get(kind, name).cloned().ok_or(Refusal::NotFound)?;
        if uid.is_some_and(|uid| object["metadata"]["uid"] != uid) {
            return Err(Refusal::Conflict);
        }
        if object["metadata"].get("deletionTimestamp").is_none() {
            object["metadata"]["deletionTimestamp"] = "2026-03-02T12:00:00Z".into();
            object["metadata"]["deletionGracePeriodSeconds"] = 30.into();
            self.put(kind, object);
        }
        Ok(())
    }

    /// Gone, whatever was waited for.
    pub(super) fn remove(&mut self, kind: Kind, name: &str) {
        if let Some(object) = self.objects.get_mut(&kind).unwrap().remove(name) {
            self.tell(kind, Some(&object), &object, false);
        }
    }

    /// Vnodes that lost their labels while nobody looked get them back.
    pub(super) fn mark_anew(&mut self, identity: &Identity) -> Vec<Value> {
        let lost = |vnode: &Value| {
            is_left(&metadata(vnode), BINDING, &identity.cluster_id) && !selected(Kind::Vnode, vnode)
        };
        let strays: Vec<(String, Value)> = self
            .all(Kind::Vnode)
            .iter()
            .filter(|(_, vnode)| lost(vnode))
            .map(|(name, vnode)| {
                let labels = missing_marks(|key| label_of(vnode, key), BINDING);
                (name.clone(), json!({"metadata": {"labels": labels}}))
            })
            .collect();
        strays.iter().map(|(name, patch)| self.patch(Kind::Vnode, name, patch).unwrap()).collect()
    }

    /// Pods on a vnode.
    pub(super) fn pods_on(&self, vnode: &str) -> impl Iterator<Item = &Value> {
        let of = vnode.to_owned();
        self.all(Kind::Vpod).values().filter(move |pod| pod["spec"]["nodeName"] == *of)
    }

    /// What is, with nothing outstanding.
    pub(super) fn truth(&self) -> View<'_> {
        view(&self.objects)
    }
}

fn metadata(object: &Value) -> ObjectMeta {
    ObjectMeta::deserialize(&object["metadata"]).unwrap()
}

fn label_of<'o>(object: &'o Value, key: &str) -> Option<&'o str> {
    object["metadata"]["labels"].get(key)?.as_str()
}

fn selected(kind: Kind, object: &Value) -> bool {
    kind != Kind::Vnode || is_marked(|key| label_of(object, key), BINDING)
}

/// The part of some objects that a lease depends on.
pub(super) fn view(objects: &BTreeMap<Kind, Objects>) -> View<'_> {
    View {
        pnodes: &objects[&Kind::Pnode],
        wpods: &objects[&Kind::WorkerPod],
        policies: &objects[&Kind::Policy],
        binding: objects[&Kind::Binding].get(BINDING).unwrap_or(&Value::Null),
    }
}

/// Our finalizer is on the object.
pub(super) fn is_held(policy: &Value) -> bool {
    policy["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|all| all.iter().any(|one| one == finalizer::POLICY))
}
