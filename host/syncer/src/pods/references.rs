//! Which objects a pod refers to by name (TD-1001, TD-1002), and which of its needs cannot be met in another cluster.
//!
//! One table of places in a pod spec serves both readers: [`references`] collects the names, and the transformation
//! renames exactly the same places (`rename`), so a name can never be rewritten without its object being copied.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

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
    /// ConfigMaps. Of several references to one name the strongest need counts.
    pub config_maps: BTreeMap<String, Need>,
    /// Secrets, pull secrets and the secrets of inline volumes included.
    pub secrets: BTreeMap<String, Need>,
    /// PersistentVolumeClaims; always required.
    pub claims: BTreeSet<String>,
    /// What the pod asks for that is not mapped, in words for its owner. Such a pod is refused whole.
    pub unsupported: Vec<String>,
}

impl References {
    /// Whether nothing keeps the pod from being mapped.
    pub fn is_mapped(&self) -> bool {
        self.claims.is_empty() && self.unsupported.is_empty()
    }

    /// What keeps a pod from being mapped, for its owner; `None` when nothing does.
    pub fn not_mapped(&self) -> Option<String> {
        let mut features = self.unsupported.clone();
        features.extend(self.claims.iter().map(|claim| format!("PersistentVolumeClaim {claim}")));
        (!features.is_empty()).then(|| format!("not supported on leased nodes: {}", features.join(", ")))
    }

    /// The referenced names of one kind.
    pub fn of(&self, kind: ObjectKind) -> &BTreeMap<String, Need> {
        match kind {
            ObjectKind::ConfigMap => &self.config_maps,
            ObjectKind::Secret => &self.secrets,
        }
    }

    /// Every referenced object that is copied, required ones first.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectKind, &str, Need)> {
        let of_need = move |need: Need| {
            ObjectKind::ALL.into_iter().flat_map(move |kind| {
                self.of(kind)
                    .iter()
                    .filter(move |(_, have)| **have == need)
                    .map(move |(name, need)| (kind, name.as_str(), *need))
            })
        };
        of_need(Need::Required).chain(of_need(Need::Optional))
    }

    /// The names of everything that is referred to, whatever its kind.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names = self.config_maps.keys().chain(self.secrets.keys()).chain(&self.claims);
        names.map(String::as_str)
    }

    /// Whether nothing has to be copied and nothing is refused.
    pub fn is_empty(&self) -> bool {
        self.config_maps.is_empty()
            && self.secrets.is_empty()
            && self.claims.is_empty()
            && self.unsupported.is_empty()
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

/// Every place of a pod spec that names a ConfigMap or Secret (TD-601..603 and TD section 6 *Do better*).
const SITES: &[Site] = &[
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

/// Where a pod spec names a PersistentVolumeClaim.
const CLAIM_PATH: &[&str] = &["volumes", EACH, "persistentVolumeClaim"];
const CLAIM_FIELD: &str = "claimName";

/// What the pod with this `spec` refers to.
pub fn references(spec: &Value) -> References {
    let mut found = References::default();
    for site in SITES {
        let names = match site.kind {
            ObjectKind::ConfigMap => &mut found.config_maps,
            ObjectKind::Secret => &mut found.secrets,
        };
        each(spec, site.path, &mut |holder| {
            if let Some(name) = name_in(holder, site.field) {
                let optional = site.path.first() == Some(&DEBUG)
                    || holder.get("optional").and_then(Value::as_bool).unwrap_or(false);
                let need = if optional { Need::Optional } else { Need::Required };
                let known = names.entry(name.to_owned()).or_insert(need);
                *known = need.max(*known);
            }
        });
    }
    each(spec, CLAIM_PATH, &mut |holder| {
        found.claims.extend(name_in(holder, CLAIM_FIELD).map(str::to_owned));
    });
    found.unsupported = unsupported(spec);
    found
}

/// Replaces every referenced name in `spec` by what `copy_name` makes of it. Empty names, which old API servers
/// accepted and nothing resolves, stay.
pub(super) fn rename(spec: &mut Value, copy_name: &dyn Fn(&str) -> String) {
    let sites = SITES.iter().map(|site| (site.path, site.field));
    for (path, field) in sites.chain([(CLAIM_PATH, CLAIM_FIELD)]) {
        each_mut(spec, path, &mut |holder| {
            if let Some(copy) = name_in(holder, field).map(copy_name) {
                holder.insert(field.to_owned(), copy.into());
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
        for (field, what) in [("ephemeral", "generic ephemeral volume"), ("glusterfs", "GlusterFS volume")] {
            if volume.get(field).is_some_and(Value::is_object) {
                found.push(format!("{what} {name:?}"));
            }
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
        let found = references(&json!({
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
            ],
        }));
        let names = |names: &BTreeMap<String, Need>| -> Vec<(String, Need)> {
            names.iter().map(|(name, need)| (name.clone(), *need)).collect()
        };
        let expect = |rows: &[(&str, Need)]| -> Vec<(String, Need)> {
            rows.iter().map(|(name, need)| ((*name).to_owned(), *need)).collect()
        };
        assert_eq!(
            names(&found.config_maps),
            expect(&[
                ("cm-env", Required),
                ("cm-from", Required),
                ("cm-init", Optional),
                ("cm-proj", Required),
                ("cm-vol", Required),
            ])
        );
        assert_eq!(
            names(&found.secrets),
            expect(&[
                ("pull", Required),
                ("s-azure", Required),
                ("s-csi", Required),
                ("s-debug", Optional),
                ("s-env", Optional),
                ("s-from", Required),
                ("s-proj", Optional),
                ("s-vol", Required),
            ])
        );
        assert_eq!(found.claims.into_iter().collect::<Vec<_>>(), ["data"]);
        assert_eq!(found.unsupported, Vec::<String>::new());
    }

    #[test]
    fn the_strongest_need_of_a_name_counts_whatever_the_order() {
        for flags in [[true, false], [false, true]] {
            let volumes: Vec<Value> = flags
                .iter()
                .map(|optional| json!({"name": "v", "configMap": {"name": "same", "optional": optional}}))
                .collect();
            let found = references(&json!({"volumes": volumes}));
            assert_eq!(found.config_maps["same"], Need::Required);
        }
    }

    #[test]
    fn what_is_not_mapped_is_named_for_the_owner() {
        let found = references(&json!({
            "resourceClaims": [{"name": "gpu"}],
            "volumes": [
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}},
                {"name": "ca", "projected": {"sources": [{"clusterTrustBundle": {"name": "x", "path": "p"}}]}},
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
            ],
        }));
        assert_eq!(
            found.unsupported,
            [
                "resource claims (spec.resourceClaims)",
                "generic ephemeral volume \"scratch\"",
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
        plant(&mut spec, CLAIM_PATH, CLAIM_FIELD, "claim");
        let before = references(&spec);
        assert_eq!(before.config_maps.len() + before.secrets.len(), SITES.len());
        rename(&mut spec, &|name| format!("copy-of-{name}"));
        let after = references(&spec);
        let renamed = |names: &BTreeMap<String, Need>| -> BTreeMap<String, Need> {
            names.iter().map(|(name, need)| (format!("copy-of-{name}"), *need)).collect()
        };
        assert_eq!(after.config_maps, renamed(&before.config_maps));
        assert_eq!(after.secrets, renamed(&before.secrets));
        assert_eq!(after.claims, BTreeSet::from(["copy-of-claim".to_owned()]));
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
