//! Which ppod belongs to a vpod (PX-604 to PX-607). Pure.
//!
//! Invariant: a [`Resolved`] is made here only, from a ppod that says itself whose it is. The vpod's own annotations are
//! data of whoever may patch pods; they only tell where to look.

use kubeocean_api::keys::annotation;

use super::view::{PodView, Ppod};

/// Reason on a vpod whose ppod vanished.
const REASON_LOST: &str = "PhysicalPodLost";

/// The ppod of a vpod, proven. Only this can be asked for in the worker cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    namespace: String,
    name: String,
}

impl Resolved {
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Path of the pod in the worker's API.
    pub(crate) fn path(&self) -> String {
        kubeocean_runtime::request::paths::pod(&self.namespace, &self.name)
    }

    #[cfg(test)]
    pub(crate) fn for_tests(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// Why there is nothing to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unresolved {
    /// Unknown, on another vnode, not ours, or somebody else's copy: the caller does not learn which.
    NotFound,
    /// The path names another incarnation of the pod.
    OtherUid,
    /// The pod has no such container.
    NoContainer,
    /// The ppod does not exist yet.
    NotCreated,
    /// The ppod is gone for good.
    Lost,
}

/// Checks what can be said of the vpod alone: incarnation, vnode, container.
pub(crate) fn check_vpod(
    vpod: &PodView,
    vnode: &str,
    uid: Option<&str>,
    container: Option<&str>,
) -> Result<(), Unresolved> {
    if vpod.spec.node_name != vnode || vnode.is_empty() || vpod.uid().is_empty() {
        return Err(Unresolved::NotFound);
    }
    if uid.is_some_and(|uid| uid != vpod.uid()) {
        return Err(Unresolved::OtherUid);
    }
    if container.is_some_and(|container| !vpod.has_container(container)) {
        return Err(Unresolved::NoContainer);
    }
    Ok(())
}

/// The ppod among `candidates`, if exactly one says that it is this vpod's. `mount` is the binding's namespace.
pub(crate) fn prove(vpod: &PodView, vnode: &str, mount: &str, candidates: &[Ppod]) -> Option<Resolved> {
    let mut proven = candidates.iter().filter(|ppod| belongs(ppod, vpod, vnode, mount));
    let (first, second) = (proven.next()?, proven.next());
    second.is_none().then(|| Resolved { namespace: first.namespace.clone(), name: first.name.clone() })
}

fn belongs(ppod: &Ppod, vpod: &PodView, vnode: &str, mount: &str) -> bool {
    let names = ppod.managed
        && ppod.namespace == mount
        && ppod.vnode == vnode
        && ppod.virtual_namespace == vpod.namespace()
        && ppod.virtual_name == vpod.name();
    names
        && match &ppod.virtual_uid {
            Some(uid) => uid == vpod.uid(),
            // A copy made by an old version: the names are right, and the vpod knows it by its UID.
            None => vpod.annotation(annotation::PHYSICAL_POD_UID) == Some(&ppod.uid),
        }
}

/// What the index says of a vpod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Indexed<'a> {
    /// This is its copy.
    Proven(Resolved),
    /// Not known. The index may be behind, and does not know copies of old versions: look at the vpod's hint, if it has one.
    Unknown(Option<&'a str>),
    /// Copies name the vpod, and none or more than one is right. What the vpod says cannot choose between them.
    Refused,
}

/// Looks a vpod up among the copies that name it by its UID.
pub(crate) fn look_up<'a>(vpod: &'a PodView, vnode: &str, mount: &str, copies: &[Ppod]) -> Indexed<'a> {
    match prove(vpod, vnode, mount, copies) {
        Some(resolved) => Indexed::Proven(resolved),
        None if copies.is_empty() => Indexed::Unknown(hint(vpod, mount)),
        None => Indexed::Refused,
    }
}

/// Where the vpod says its copy is: a place to look at, never a proof.
fn hint<'a>(vpod: &'a PodView, mount: &str) -> Option<&'a str> {
    let namespace = vpod.annotation(annotation::PHYSICAL_POD_NAMESPACE)?;
    let name = vpod.annotation(annotation::PHYSICAL_POD_NAME)?;
    // The name becomes a part of a request path.
    let plain =
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte));
    (namespace == mount && plain && !name.starts_with('.') && name.len() <= 253).then_some(name)
}

/// What it means that no ppod was found; `looked` tells whether there is one under the vpod's hint, somebody else's.
pub(crate) fn absent(vpod: &PodView, looked: bool) -> Unresolved {
    if vpod.status.phase == "Failed" && vpod.status.reason == REASON_LOST {
        Unresolved::Lost
    } else if looked {
        Unresolved::NotFound
    } else {
        Unresolved::NotCreated
    }
}

#[cfg(test)]
mod tests;
