//! The bodies by which a vnode is made and brought to its content. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kubeocean_api::{
    keys::{annotation, finalizer},
    quantity::Quantity,
    resource::from_base_units,
};
use kubeocean_runtime::{clock::rfc3339, packed::PackedTexts};
use serde_json::{Map, Value, json};

use super::{
    compare::says,
    conditions::with_conditions,
    view::{NodeView, Texts},
    vnode::Content,
};

impl Content {
    /// Published quantities.
    pub fn quantities(&self) -> impl Iterator<Item = (&str, Quantity)> {
        self.amounts.iter().map(|(resource, amount)| (resource.as_str(), from_base_units(resource, *amount)))
    }

    fn status(&self) -> Value {
        let quantities: BTreeMap<&str, String> =
            self.quantities().map(|(resource, quantity)| (resource, quantity.to_string())).collect();
        let mut status = json!({
            "capacity": quantities,
            "allocatable": quantities,
            "conditions": self.conditions,
            "addresses": self.addresses,
            "daemonEndpoints": self.endpoints(),
            "nodeInfo": self.node_info,
        });
        if let Some(phase) = &self.phase {
            status["phase"] = phase.as_str().into();
        }
        status
    }

    fn endpoints(&self) -> Value {
        json!({"kubeletEndpoint": {"Port": self.port}})
    }

    /// Body of the one POST that makes a vnode.
    pub fn create_body(&self, name: &str, now: Timestamp) -> Value {
        let mut annotations = self.annotations.clone();
        annotations.insert(annotation::LAST_SYNC_TIME.into(), rfc3339(now));
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": name, "labels": self.labels, "annotations": annotations, "finalizers": [finalizer::VNODE],
            },
            "spec": {"taints": self.taints}, "status": self.status(),
        })
    }

    /// The merge patch on the status endpoint that brings a vnode here: what differs, and when it was written. Conditions
    /// of the types `gone` go. Lists are replaced as a whole, so it holds for the version it was computed from.
    pub fn update(&self, vnode: &NodeView, gone: &[&str], now: Timestamp) -> Value {
        let differing = |wanted: &Texts, there: &PackedTexts| -> Texts {
            let mut there = there.ascending();
            let differs = |(key, value): &(&String, &String)| there.get(key) != Some(value.as_str());
            let wanted = wanted.iter().filter(differs);
            wanted.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let mut annotations = differing(&self.annotations, &vnode.annotations);
        annotations.insert(annotation::LAST_SYNC_TIME.into(), rfc3339(now));
        let mut metadata = json!({
            "uid": vnode.uid(), "resourceVersion": vnode.resource_version(), "annotations": annotations,
        });
        let labels = differing(&self.labels, &vnode.labels);
        if !labels.is_empty() {
            metadata["labels"] = json!(labels);
        }
        json!({"metadata": metadata, "status": self.status_update(vnode, gone)})
    }

    fn status_update(&self, vnode: &NodeView, gone: &[&str]) -> Map<String, Value> {
        let there = &vnode.status;
        let mut status = Map::new();
        for (field, there) in [("capacity", &there.capacity), ("allocatable", &there.allocatable)] {
            let quantities: Texts = self
                .quantities()
                .filter(|(resource, quantity)| !says(there.get(resource), *quantity))
                .map(|(resource, quantity)| (resource.to_owned(), quantity.to_string()))
                .collect();
            if !quantities.is_empty() {
                status.insert(field.into(), json!(quantities));
            }
        }
        let conditions = with_conditions(&there.conditions, &self.conditions, gone);
        if conditions != *there.conditions {
            status.insert("conditions".into(), json!(conditions));
        }
        if self.addresses != *there.addresses {
            status.insert("addresses".into(), json!(self.addresses));
        }
        if i32::from(self.port) != there.daemon_endpoints.kubelet_endpoint.port {
            status.insert("daemonEndpoints".into(), self.endpoints());
        }
        if self.node_info != there.node_info.to_map() {
            status.insert("nodeInfo".into(), json!(self.node_info));
        }
        if let Some(phase) = self.phase.as_deref().filter(|phase| there.phase.as_deref() != Some(*phase)) {
            status.insert("phase".into(), phase.into());
        }
        status
    }
}
