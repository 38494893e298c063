//! What has to be written so that a LogConfig has its copies, or none (TD-1501). Pure.
//!
//! The original is held before its copies are made and let go after they are gone, so that every prefix of a plan can be
//! continued.

use std::collections::{BTreeMap, BTreeSet};

use kubeocean_api::{
    keys::{self, annotation, label},
    name::fit_label_value,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{
    translate::{Translation, translate},
    view::LogConfig,
};
use crate::objects::{Scope, difference};

/// Proof that a LogConfig of the worker cluster was made for one of ours. Made by [`owned`] only, and every write to an
/// existing copy takes one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Owned {
    name: String,
    uid: String,
    #[serde(skip)]
    resource_version: String,
}

impl Owned {
    /// Name of the copy.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
    /// Its UID.
    pub(super) fn uid(&self) -> &str {
        &self.uid
    }
}

/// Whether a copy is ours. One without stamp is of the original Kubeocean, which wrote our clusterID on it: it is taken over
/// while what it is the copy of exists.
pub(super) fn owned(scope: &Scope, copy: &LogConfig, original: Option<&LogConfig>) -> Option<Owned> {
    let managed = copy.label(label::MANAGED_BY) == Some(label::MANAGED_BY_VALUE);
    let mine = copy.label(&keys::synced_by(&scope.cluster_id)).is_some();
    let ours = match copy.annotation(annotation::COMPUTING_CLUSTER_UID) {
        Some(stamp) => stamp == scope.computing_uid,
        None => original.is_some(),
    };
    (managed && mine && ours).then(|| Owned {
        name: copy.name().to_owned(),
        uid: copy.uid().to_owned(),
        resource_version: copy.resource_version().to_owned(),
    })
}

/// Whether our finalizer is on it.
pub(super) fn is_held(scope: &Scope, original: &LogConfig) -> bool {
    original.has_finalizer(&keys::object_finalizer(&scope.cluster_id))
}

/// One LogConfig and what the worker cluster has of it.
#[derive(Clone, Debug)]
pub(super) struct Snapshot<'a> {
    /// The original.
    pub original: Option<&'a LogConfig>,
    /// Whether copies are to go whatever the original says.
    pub releasing: bool,
    /// The binding is being deleted: copies serve the pods that are left, and none is made any more. A Syncer that begins
    /// then would otherwise make anew what the one before had removed.
    pub closing: bool,
    /// What names it in the worker cluster, whoever made it.
    pub copies: Vec<&'a LogConfig>,
    /// Names that others have in the worker cluster.
    pub taken: BTreeSet<&'a str>,
    /// Copies that were written for this version of the original and did not change since.
    pub settled: BTreeSet<&'a str>,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) enum Action {
    /// Puts our finalizer on the original.
    Hold { name: String, patch: Value },
    /// Makes a copy.
    Create { name: String, manifest: Value },
    /// Brings a copy up to date.
    Update { copy: Owned, patch: Value },
    /// Removes a copy.
    Delete { copy: Owned },
    /// Takes our finalizer off the original.
    LetGo { name: String, patch: Value },
}

/// Actions in the order of execution.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Plan {
    /// Empty = converged.
    pub actions: Vec<Action>,
    /// What the owner of the original is told.
    pub tell: Vec<String>,
    /// Nothing tells when a name becomes free.
    pub blocked: bool,
}

/// Plans one LogConfig.
pub(super) fn plan(scope: &Scope, snapshot: &Snapshot<'_>) -> Plan {
    let original = snapshot.original;
    let mut copies: BTreeMap<&str, (&LogConfig, Owned)> = snapshot
        .copies
        .iter()
        .filter_map(|copy| Some((copy.name(), (*copy, owned(scope, copy, original)?))))
        .collect();
    let kept = original.filter(|original| !original.is_deleting() && !snapshot.releasing);
    let Translation { copies: wanted, not_mapped } =
        kept.map(|original| translate(original.name(), &original.spec, scope)).unwrap_or_default();
    let mut plan = Plan { tell: not_mapped, ..Plan::default() };
    if let (Some(original), false) = (kept, wanted.is_empty()) {
        if !(snapshot.closing && copies.is_empty()) {
            plan.actions.extend(
                hold(scope, original).map(|patch| Action::Hold { name: original.name().to_owned(), patch }),
            );
        }
        for wanted in &wanted {
            let places = places(scope, &wanted.base);
            let marks = marks(scope, original);
            if let Some((copy, owned)) = places.iter().find_map(|place| copies.remove(place.as_str())) {
                if !copy.is_deleting() && !snapshot.settled.contains(copy.name()) {
                    let patch = update(&marks, &wanted.spec, copy);
                    plan.actions.extend(patch.map(|patch| Action::Update { copy: owned, patch }));
                }
            } else if snapshot.closing {
                // Nothing new.
            } else if let Some(name) = places.iter().find(|place| !snapshot.taken.contains(place.as_str())) {
                let [labels, annotations] = marks;
                let manifest = json!({
                    "apiVersion": "cls.cloud.tencent.com/v1", "kind": "LogConfig",
                    "metadata": {"name": name, "labels": labels, "annotations": annotations},
                    "spec": wanted.spec,
                });
                plan.actions.push(Action::Create { name: name.clone(), manifest });
            } else {
                plan.blocked = true;
                plan.tell.push("the names of its copy are taken in the worker cluster".to_owned());
            }
        }
    }
    let superfluous = copies.into_values().filter(|(copy, _)| !copy.is_deleting());
    plan.actions.extend(superfluous.map(|(_, copy)| Action::Delete { copy }));
    if let (Some(original), true) = (original, wanted.is_empty()) {
        plan.actions.extend(
            let_go(scope, original).map(|patch| Action::LetGo { name: original.name().to_owned(), patch }),
        );
    }
    plan
}

/// Names a copy may have: that of the original Kubeocean, and one for when another binding or cluster has that.
fn places(scope: &Scope, base: &str) -> [String; 2] {
    let own = format!("{base}/{}/{}", scope.computing_uid, scope.cluster_id);
    [base, &own].map(|hashed| {
        let digest = hex::encode(Sha256::digest(hashed));
        let head: String = base.chars().take(54).collect();
        let body = head.trim_end_matches('.');
        format!("{body}{}-{}", "-".repeat(head.len() - body.len()), &digest[..6])
    })
}

/// Labels and annotations of the copies of an original.
fn marks(scope: &Scope, original: &LogConfig) -> [BTreeMap<String, String>; 2] {
    let mut marks = original.marks();
    let own = [
        vec![
            (label::MANAGED_BY.to_owned(), label::MANAGED_BY_VALUE.to_owned()),
            (label::CLUSTER_BINDING.to_owned(), scope.binding.clone()),
            (keys::synced_by(&scope.cluster_id), "true".to_owned()),
            (label::VIRTUAL_LOGCONFIG.to_owned(), fit_label_value(original.name())),
        ],
        vec![
            (annotation::VIRTUAL_NAME.to_owned(), original.name().to_owned()),
            (annotation::COMPUTING_CLUSTER_UID.to_owned(), scope.computing_uid.clone()),
        ],
    ];
    for (marks, own) in marks.iter_mut().zip(own) {
        marks.retain(|key, _| !keys::is_internal(key));
        marks.extend(own);
    }
    marks
}

/// Merge patch with preconditions; `None` if the copy is as it should be.
fn update(
    marks: &[BTreeMap<String, String>; 2],
    spec: &Map<String, Value>,
    copy: &LogConfig,
) -> Option<Value> {
    let json = |marks: &BTreeMap<String, String>| -> Map<String, Value> {
        marks.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect()
    };
    let [labels, annotations] = copy.marks();
    let labels = difference(&json(&marks[0]), &json(&labels));
    let annotations = difference(&json(&marks[1]), &json(&annotations));
    let spec = difference(spec, &copy.spec);
    if labels.is_empty() && annotations.is_empty() && spec.is_empty() {
        return None;
    }
    Some(json!({
        "metadata": {
            "uid": copy.uid(), "resourceVersion": copy.resource_version(),
            "labels": labels, "annotations": annotations,
        },
        "spec": spec,
    }))
}

fn hold(scope: &Scope, original: &LogConfig) -> Option<Value> {
    let mine = keys::object_finalizer(&scope.cluster_id);
    let all: Vec<String> = original.metadata.finalizers.iter().flatten().cloned().chain([mine]).collect();
    (!is_held(scope, original)).then(|| finalizers(original, &all))
}

fn let_go(scope: &Scope, original: &LogConfig) -> Option<Value> {
    let mine = keys::object_finalizer(&scope.cluster_id);
    let rest: Vec<String> =
        original.metadata.finalizers.iter().flatten().filter(|one| **one != mine).cloned().collect();
    is_held(scope, original).then(|| finalizers(original, &rest))
}

/// The list is replaced as a whole, so it must be the one that was seen.
fn finalizers(original: &LogConfig, all: &[String]) -> Value {
    json!({"metadata": {
        "uid": original.uid(), "resourceVersion": original.resource_version(), "finalizers": all,
    }})
}
