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

fn list<'a>(holder: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
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
mod tests {
    use serde_json::json;

    use super::{
        Need::{Optional, Required},
        *,
    };

    #[test]
    fn names_are_found_wherever_a_pod_can_refer_to_them() {
        let found = references(
            "web",
            &json!({
                "imagePullSecrets": [{"name": "pull"}, {"name": ""}],
                "containers": [{
                    "name": "a",
                    "env": [
                        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm-env", "key": "k"}}},
                        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-env", "key": "k", "optional": true}}},
                        {"name": "C", "value": "plain"},
                    ],
                    "envFrom": [{"configMapRef": {"name": "cm-from"}}, {"secretRef": {"name": "s-from"}}],
                }],
                "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "cm-init", "optional": true}}]}],
                "ephemeralContainers": [{"name": "d", "envFrom": [{"secretRef": {"name": "s-debug"}}]}],
                "volumes": [
                    {"name": "a", "configMap": {"name": "cm-vol"}},
                    {"name": "b", "secret": {"secretName": "s-vol", "optional": false}},
                    {"name": "c", "projected": {"sources": [
                        {"configMap": {"name": "cm-proj"}}, {"secret": {"name": "s-proj", "optional": true}},
                    ]}},
                    {"name": "d", "csi": {"driver": "x", "nodePublishSecretRef": {"name": "s-csi"}}},
                    {"name": "e", "azureFile": {"secretName": "s-azure", "shareName": "x"}},
                    {"name": "f", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}},
                ],
            }),
        );
        let names = |kind: ObjectKind| -> Vec<(&str, Need)> {
            let names = found.names.iter().filter(|((of, _), _)| *of == kind);
            names.map(|((_, name), need)| (&**name, *need)).collect()
        };
        assert_eq!(
            names(ObjectKind::ConfigMap),
            [
                ("cm-env", Required),
                ("cm-from", Required),
                ("cm-init", Optional),
                ("cm-proj", Required),
                ("cm-vol", Required),
            ]
        );
        assert_eq!(
            names(ObjectKind::Secret),
            [
                ("pull", Required),
                ("s-azure", Required),
                ("s-csi", Required),
                ("s-debug", Optional),
                ("s-env", Optional),
                ("s-from", Required),
                ("s-proj", Optional),
                ("s-vol", Required),
            ]
        );
        assert_eq!(
            names(ObjectKind::PersistentVolumeClaim),
            [("data", Required), ("web-scratch", Required)],
            "an ephemeral volume is a claim with the pod's name"
        );
        let order: Vec<Need> = found.objects().map(|(_, _, need)| need).collect();
        assert!(order.is_sorted_by(|a, b| a >= b), "required ones first: {order:?}");
        assert_eq!(found.unsupported, Vec::<String>::new());
    }

    #[test]
    fn a_debug_container_needs_what_it_names_itself() {
        let from = |secret: &str| json!([{"secretRef": {"name": secret}}]);
        let spec = json!({
            "volumes": [{"name": "a", "configMap": {"name": "of-the-pod"}}],
            "containers": [{"name": "main", "envFrom": from("of-the-pod")}],
            "resourceClaims": [{"name": "gpu"}],
            "ephemeralContainers": [
                {"name": "old", "envFrom": from("of-another")}, {"name": "new", "envFrom": from("own")},
            ],
        });
        let found = debug_references(&spec, &["new".into()]);
        assert_eq!(found.objects().collect::<Vec<_>>(), [(ObjectKind::Secret, "own", Optional)]);
        assert!(found.is_mapped());
    }

    #[test]
    fn the_strongest_need_of_a_name_counts_whatever_the_order() {
        for flags in [[true, false], [false, true]] {
            let volumes: Vec<Value> = flags
                .iter()
                .map(|optional| json!({"name": "v", "configMap": {"name": "same", "optional": optional}}))
                .collect();
            let found = references("web", &json!({"volumes": volumes}));
            assert_eq!(found.objects().collect::<Vec<_>>(), [(ObjectKind::ConfigMap, "same", Required)]);
        }
    }

    #[test]
    fn what_is_not_mapped_is_named_for_the_owner() {
        let found = references(
            "web",
            &json!({
                "resourceClaims": [{"name": "gpu"}],
                "volumes": [
                    {"name": "old", "glusterfs": {"path": "/", "endpoints": "x"}},
                    {"name": "ca", "projected": {"sources": [{"clusterTrustBundle": {"name": "x", "path": "p"}}]}},
                    {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
                ],
            }),
        );
        assert_eq!(
            found.unsupported,
            [
                "resource claims (spec.resourceClaims)",
                "GlusterFS volume \"old\"",
                "cluster trust bundle in volume \"ca\"",
                "token without a ServiceAccount in volume \"token\"",
            ]
        );
    }

    #[test]
    fn exactly_the_found_names_are_renamed() {
        let mut spec = json!({});
        for (number, site) in SITES.iter().enumerate() {
            plant(&mut spec, site.path, site.field, &format!("name-{number}"));
        }
        let before = references("web", &spec);
        assert_eq!(before.names.len(), SITES.len());
        rename(&mut spec, &|name| format!("copy-of-{name}"));
        let after = references("web", &spec);
        let renamed = |((kind, name), need): (&(ObjectKind, Box<str>), &Need)| {
            ((*kind, format!("copy-of-{name}").into_boxed_str()), *need)
        };
        assert_eq!(after.names, before.names.iter().map(renamed).collect());
    }

    /// Puts `name` at a site, each site in list elements of its own.
    fn plant(value: &mut Value, path: &[&str], field: &str, name: &str) {
        match path.split_first() {
            None => value[field] = name.into(),
            Some((head, rest)) if rest.first() == Some(&EACH) => {
                let mut item = json!({});
                plant(&mut item, &rest[1..], field, name);
                if value.get(*head).is_none() {
                    value[*head] = json!([]);
                }
                value[*head].as_array_mut().unwrap().push(item);
            }
            Some((head, rest)) => {
                let mut inner = json!({});
                plant(&mut inner, rest, field, name);
                value[*head] = inner;
            }
        }
    }
}
