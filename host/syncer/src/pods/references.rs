//! Which objects a pod refers to by name (TD-1001, TD-1002), and which of its needs cannot be met in another cluster.
//!
//! One table of places in a pod spec serves both readers: [`references`] collects the names, and the transformation
//! renames exactly the same places (`rename`), so a name can never be rewritten without its object being copied.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::objects::ObjectKind;

/// Whether a pod can start without an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// The pod starts without it; a copy is made when the object appears.
    Optional,
    /// The pod is not created before the object exists.
    Required,
}

/// What a pod refers to, by name in its own namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// ConfigMaps, Secrets (pull secrets and those of inline volumes included) and claims. Of several references to one
    /// name the strongest need counts.
    names: BTreeMap<(ObjectKind, Box<str>), Need>,
    /// What the pod asks for that is not mapped, in words for its owner. Such a pod is refused whole.
    pub unsupported: Vec<String>,
}

impl References {
    /// Whether nothing keeps the pod from being mapped.
    pub fn is_mapped(&self) -> bool {
        self.unsupported.is_empty()
    }

    /// As many objects as a pod may name: each costs requests before the pod is made.
    const MAX: usize = 1000;

    /// What keeps a pod from being mapped, for its owner; `None` when nothing does.
    pub fn not_mapped(&self) -> Option<String> {
        let features = &self.unsupported;
        (!features.is_empty()).then(|| format!("not supported on leased nodes: {}", features.join(", ")))
    }

    /// Every referenced object, required ones first.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectKind, &str, Need)> {
        let of_need = move |need: Need| {
            let names = self.names.iter().filter(move |(_, have)| **have == need);
            names.map(|((kind, name), need)| (*kind, &**name, *need))
        };
        of_need(Need::Required).chain(of_need(Need::Optional))
    }

    /// The names of everything that is referred to, whatever its kind.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(|(_, name)| &**name)
    }

    /// Whether nothing has to be copied and nothing is refused.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.unsupported.is_empty()
    }

    fn add(&mut self, kind: ObjectKind, name: &str, need: Need) {
        let known = self.names.entry((kind, name.into())).or_insert(need);
        *known = need.max(*known);
    }
}

/// Path step that stands for every element of a list.
const EACH: &str = "[]";

/// One place of a pod spec that names an object.
struct Site {
    /// From the spec to the object that holds the name.
    path: &'static [&'static str],
    /// Field with the name.
    field: &'static str,
    kind: ObjectKind,
}

const fn config_map(path: &'static [&'static str], field: &'static str) -> Site {
    Site { path, field, kind: ObjectKind::ConfigMap }
}
const fn secret(path: &'static [&'static str], field: &'static str) -> Site {
    Site { path, field, kind: ObjectKind::Secret }
}

const fn claim(path: &'static [&'static str], field: &'static str) -> Site {
    Site { path, field, kind: ObjectKind::PersistentVolumeClaim }
}

/// Every place of a pod spec that names a copied object (TD-601..603 and TD section 6 *Do better*).
const SITES: &[Site] = &[
    claim(&["volumes", EACH, "persistentVolumeClaim"], "claimName"),
    config_map(&["volumes", EACH, "configMap"], "name"),
    secret(&["volumes", EACH, "secret"], "secretName"),
    config_map(&["volumes", EACH, "projected", "sources", EACH, "configMap"], "name"),
    secret(&["volumes", EACH, "projected", "sources", EACH, "secret"], "name"),
    secret(&["volumes", EACH, "csi", "nodePublishSecretRef"], "name"),
    secret(&["volumes", EACH, "flexVolume", "secretRef"], "name"),
    secret(&["volumes", EACH, "rbd", "secretRef"], "name"),
    secret(&["volumes", EACH, "cephfs", "secretRef"], "name"),
    secret(&["volumes", EACH, "cinder", "secretRef"], "name"),
    secret(&["volumes", EACH, "iscsi", "secretRef"], "name"),
    secret(&["volumes", EACH, "scaleIO", "secretRef"], "name"),
    secret(&["volumes", EACH, "storageos", "secretRef"], "name"),
    secret(&["volumes", EACH, "azureFile"], "secretName"),
    secret(&["imagePullSecrets", EACH], "name"),
    config_map(&["containers", EACH, "env", EACH, "valueFrom", "configMapKeyRef"], "name"),
    secret(&["containers", EACH, "env", EACH, "valueFrom", "secretKeyRef"], "name"),
    config_map(&["containers", EACH, "envFrom", EACH, "configMapRef"], "name"),
    secret(&["containers", EACH, "envFrom", EACH, "secretRef"], "name"),
    config_map(&["initContainers", EACH, "env", EACH, "valueFrom", "configMapKeyRef"], "name"),
    secret(&["initContainers", EACH, "env", EACH, "valueFrom", "secretKeyRef"], "name"),
    config_map(&["initContainers", EACH, "envFrom", EACH, "configMapRef"], "name"),
    secret(&["initContainers", EACH, "envFrom", EACH, "secretRef"], "name"),
    config_map(&[DEBUG, EACH, "env", EACH, "valueFrom", "configMapKeyRef"], "name"),
    secret(&[DEBUG, EACH, "env", EACH, "valueFrom", "secretKeyRef"], "name"),
    config_map(&[DEBUG, EACH, "envFrom", EACH, "configMapRef"], "name"),
    secret(&[DEBUG, EACH, "envFrom", EACH, "secretRef"], "name"),
];

/// Debug containers are added to running pods, so nothing they refer to may hold up the pod itself.
const DEBUG: &str = "ephemeralContainers";

/// Name of the claim that Kubernetes makes for a generic ephemeral volume.
pub(super) fn ephemeral_claim(pod: &str, volume: &str) -> String {
    format!("{pod}-{volume}")
}

/// What the pod of this name and `spec` refers to.
pub fn references(pod: &str, spec: &Value) -> References {
    let mut found = References { names: BTreeMap::new(), unsupported: unsupported(spec) };
    for site in SITES {
        each(spec, site.path, &mut |holder| {
            if let Some(name) = name_in(holder, site.field) {
                let optional = site.path.first() == Some(&DEBUG)
                    || holder.get("optional").and_then(Value::as_bool).unwrap_or(false);
                let need = if optional { Need::Optional } else { Need::Required };
                found.add(site.kind, name, need);
            }
        });
    }
    for claim in ephemeral_claims(pod, spec) {
        found.add(ObjectKind::PersistentVolumeClaim, &claim, Need::Required);
    }
    let count = found.names.len();
    if count > References::MAX {
        found
            .unsupported
            .push(format!("{count} ConfigMaps, Secrets and claims (at most {})", References::MAX));
        found.names.clear();
    }
    found
}

/// What the debug containers of these names refer to.
pub(super) fn debug_references(spec: &Value, names: &[Box<str>]) -> References {
    let wanted = |container: &&Value| names.iter().any(|name| container["name"] == **name);
    let containers: Vec<&Value> = list(spec, DEBUG).filter(wanted).collect();
    references("", &json!({DEBUG: containers}))
}

/// The claims of the generic ephemeral volumes of a pod.
pub(super) fn ephemeral_claims<'a>(pod: &'a str, spec: &'a Value) -> impl Iterator<Item = String> + 'a {
    let ephemeral = |volume: &&Value| volume.get("ephemeral").is_some_and(Value::is_object);
    let names = list(spec, "volumes").filter(ephemeral).filter_map(|volume| volume.get("name")?.as_str());
    names.map(move |volume| ephemeral_claim(pod, volume))
}

/// Replaces every referenced name in `spec` by what `copy_name` makes of it. Empty names, which old API servers
/// accepted and nothing resolves, stay.
pub(super) fn rename(spec: &mut Value, copy_name: &dyn Fn(&str) -> String) {
    for site in SITES {
        each_mut(spec, site.path, &mut |holder| {
            if let Some(copy) = name_in(holder, site.field).map(copy_name) {
                holder.insert(site.field.to_owned(), copy.into());
            }
        });
    }
}

/// What the pod asks for that another cluster cannot give it, or that is not mapped.
fn unsupported(spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if list(spec, "resourceClaims").next().is_some() {
        found.push("resource claims (spec.resourceClaims)".to_owned());
    }
    let has_account =
        spec.get("serviceAccountName").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
    for volume in list(spec, "volumes") {
        let name = volume.get("name").and_then(Value::as_str).unwrap_or_default();
        let attributes = volume.pointer("/csi/volumeAttributes").and_then(Value::as_object);
        for attribute in attributes.into_iter().flat_map(Map::keys).filter(|key| names_a_secret(key)) {
            found.push(format!("attribute {attribute:?} of the CSI volume {name:?}"));
        }
        if volume.get("glusterfs").is_some_and(Value::is_object) {
            found.push(format!("GlusterFS volume {name:?}"));
        }
        for source in volume.get("projected").into_iter().flat_map(|projected| list(projected, "sources")) {
            // Both would show what the worker cluster trusts or signs, under the name of this cluster's.
            for (field, what) in
                [("clusterTrustBundle", "cluster trust bundle"), ("podCertificate", "pod certificate")]
            {
                if source.get(field).is_some_and(Value::is_object) {
                    found.push(format!("{what} in volume {name:?}"));
                }
            }
            if source.get("serviceAccountToken").is_some_and(Value::is_object) && !has_account {
                found.push(format!("token without a ServiceAccount in volume {name:?}"));
            }
        }
    }
    found
}

/// Whether an attribute tells a CSI driver by name where it finds secrets: `secretName`, `secretNamespace`,
/// `shareAccessKeySecretName`, `secretProviderClass` and the like. The driver would look in the mount namespace, under a name that
/// nobody has mapped; `nodePublishSecretRef` is the way. Drivers do not agree on upper and lower case.
fn names_a_secret(attribute: &str) -> bool {
    attribute.to_ascii_lowercase().contains("secret")
}

pub(super) fn list<'a>(holder: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    holder.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn name_in<'a>(holder: &'a Map<String, Value>, field: &str) -> Option<&'a str> {
    holder.get(field).and_then(Value::as_str).filter(|name| !name.is_empty())
}

/// Calls `visit` with every object at `path` below `value`.
fn each<'a>(value: &'a Value, path: &[&str], visit: &mut dyn FnMut(&'a Map<String, Value>)) {
    match path.split_first() {
        None => value.as_object().into_iter().for_each(visit),
        Some((&EACH, rest)) => {
            for item in value.as_array().into_iter().flatten() {
                each(item, rest, visit);
            }
        }
        Some((field, rest)) => {
            if let Some(inner) = value.get(field) {
                each(inner, rest, visit);
            }
        }
    }
}

/// As [`each`], with objects that can be changed.
fn each_mut(value: &mut Value, path: &[&str], visit: &mut dyn FnMut(&mut Map<String, Value>)) {
    match path.split_first() {
        None => value.as_object_mut().into_iter().for_each(visit),
        Some((&EACH, rest)) => {
            for item in value.as_array_mut().into_iter().flatten() {
                each_mut(item, rest, visit);
            }
        }
        Some((field, rest)) => {
            if let Some(inner) = value.get_mut(field) {
                each_mut(inner, rest, visit);
            }
        }
    }
}

#[cfg(test)]
mod tests;
