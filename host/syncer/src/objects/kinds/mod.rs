//! What differs between the copied kinds, one file each; everything else is one planner for all. Pure.

mod claim;
mod config_map;
mod node_affinity;
mod secret;
mod volume;
mod volume_secrets;
mod volume_source;

use std::fmt;

use serde_json::Value;

pub(super) use claim::Claims;
pub(super) use config_map::ConfigMaps;
pub(super) use secret::Secrets;
pub(super) use volume::Volumes;

use super::{
    content::Content,
    kind::{ObjectKind, ObjectRef},
    plan::Scope,
    view::WorkerCopy,
};

/// Where objects of a kind live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// In a namespace; copies in the mount namespace.
    Namespace,
    /// In the cluster as a whole.
    Cluster,
}

/// How soon unused copies go (TD section 12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// Cheap to make again: `--gc-idle-objects`.
    Object,
    /// Storage: `--gc-idle-volumes`.
    Volume,
}

/// Another object that decides what the copy contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Neighbour {
    /// In the computing cluster.
    Original(ObjectRef),
    /// The copy of that object, in the worker cluster.
    Copy(ObjectRef),
}

/// What has to be copied before the copy of an object can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Needs {
    /// These, which may be none.
    Objects(Vec<ObjectRef>),
    /// A volume or claim is not bound yet; there is nothing to copy.
    Unbound,
}

/// Everything outside an object that its copy depends on.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    /// For whom the copy is made.
    pub scope: &'a Scope,
    /// The neighbour, if there is one.
    pub neighbour: Option<&'a Value>,
    /// Name of the copy of an object that is needed.
    pub place_of: &'a (dyn Fn(&ObjectRef) -> String + Sync),
}

impl fmt::Debug for Around<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Around").field("scope", self.scope).finish_non_exhaustive()
    }
}

/// How a copy becomes what it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It contains that already.
    None,
    /// By this merge patch.
    Patch(serde_json::Map<String, Value>),
    /// By this merge patch, which the worker may refuse without harm to what runs: it gives a volume more room.
    Grow(serde_json::Map<String, Value>),
    /// Not at all: it must be made anew.
    Replace,
}

/// A kind of objects that are copied.
pub(super) trait MappedKind: Sync {
    /// As manifests name it.
    fn name(&self) -> &'static str;
    /// As request paths name it.
    fn plural(&self) -> &'static str;
    /// Where its objects live.
    fn reach(&self) -> Reach {
        Reach::Namespace
    }
    /// How soon unused copies go.
    fn weight(&self) -> Weight {
        Weight::Object
    }
    /// The kind whose objects may need one of this kind.
    fn dependent(&self) -> Option<ObjectKind> {
        None
    }
    /// Names that the copy may have, the one to prefer last.
    fn places(&self, object: &ObjectRef, _scope: &Scope) -> Vec<String> {
        vec![object.copy_name()]
    }
    /// Whether a copy that is ours by name and stamp serves another mount namespace.
    fn is_elsewhere(&self, _copy: &WorkerCopy, _scope: &Scope) -> bool {
        false
    }
    /// What of an original [`MappedKind::is_of`] looks at.
    fn bearing(&self, _original: &Value) -> Content {
        Content::default()
    }
    /// Whether an unstamped copy can be the copy of this original, by what both are about.
    fn is_of(&self, _bearing: &Content, _copy: &Content, _scope: &Scope) -> bool {
        true
    }
    /// Whether an annotation belongs to the controllers of its cluster, so that it neither travels nor is removed.
    fn stays(&self, _annotation: &str) -> bool {
        false
    }
    /// Whether the original stands for files of whatever node its pod is on, which Pod Security may not permit.
    fn is_of_a_node(&self, _original: &Value) -> bool {
        false
    }
    /// What has to be read beside the object.
    fn neighbour(&self, _original: &Value) -> Option<Neighbour> {
        None
    }
    /// What has to be copied first.
    fn needs(&self, _object: &ObjectRef, _original: &Value, _neighbour: Option<&Value>) -> Needs {
        Needs::Objects(Vec::new())
    }
    /// What the copy shall contain.
    fn wanted(&self, original: &Value, around: &Around<'_>) -> Content;
    /// What an object contains, as stored.
    fn stored(&self, object: &Value) -> Content;
    /// How `copy` gets there.
    fn change(&self, wanted: &Content, copy: &WorkerCopy, around: &Around<'_>) -> Change;
}

/// [`MappedKind::change`] of objects that are nothing but data.
fn data_change(wanted: &Content, copy: &WorkerCopy) -> Change {
    let patch = wanted.patch(&copy.content);
    if patch.is_empty() {
        Change::None
    } else if copy.immutable {
        Change::Replace
    } else {
        Change::Patch(patch)
    }
}

/// A string somewhere in an object; `None` if it is empty or none.
fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The annotations with which the controllers of one cluster remember how they bound and provisioned storage (TD section
/// 10 *Do better*). Mount options, though kept in one, are the volume's own.
fn is_storage_bookkeeping(annotation: &str) -> bool {
    const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
    const PREFIXES: [&str; 3] = ["pv.kubernetes.io/", "volume.kubernetes.io/", "volume.beta.kubernetes.io/"];
    annotation != MOUNT_OPTIONS && PREFIXES.iter().any(|prefix| annotation.starts_with(prefix))
}

/// Storage class of a claim or volume; the annotation is older than the field and wins, as in Kubernetes.
fn storage_class(object: &Value) -> &str {
    const ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
    let annotation = object.pointer("/metadata/annotations").and_then(|all| all.get(ANNOTATION));
    annotation
        .and_then(Value::as_str)
        .or_else(|| object.pointer("/spec/storageClassName").and_then(Value::as_str))
        .unwrap_or_default()
}

/// Whether the quantity at `pointer` is larger in `wanted`.
fn is_larger(wanted: &Content, stored: &Content, pointer: &str) -> bool {
    use kubeocean_api::quantity::Quantity;
    let amount = |content: &Content| content.text(pointer).and_then(|text| text.parse::<Quantity>().ok());
    match (amount(wanted), amount(stored)) {
        (Some(wanted), Some(stored)) => wanted > stored,
        (wanted, None) => wanted.is_some(),
        (None, Some(_)) => false,
    }
}
