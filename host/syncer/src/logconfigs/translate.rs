//! What a LogConfig of the computing cluster becomes in the worker cluster (TD-1502, TD-1503). Pure.
//!
//! Namespaces and workloads of the computing cluster are labels of ppods, all of which are in the mount namespace. Every
//! copy selects this binding's ppods only, whatever the original says: the mount namespace may be shared.

use std::collections::{BTreeMap, BTreeSet};

use kubeocean_api::{keys::label, name::distinct_label_value};
use serde_json::{Map, Value};

use crate::objects::Scope;

/// One LogConfig for the worker cluster.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    /// What its name is made of.
    pub base: String,
    /// Its spec.
    pub spec: Map<String, Value>,
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Translation {
    /// For the worker cluster.
    pub copies: Vec<Wanted>,
    /// What of the original has no counterpart there, for its owner.
    pub not_mapped: Vec<String>,
}

/// What some workloads of a LogConfig have in common.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    namespace: String,
    kind: String,
    container: Option<String>,
    operator: Option<String>,
}

/// Translates the spec of the LogConfig `name`.
pub(super) fn translate(name: &str, spec: &Map<String, Value>, scope: &Scope) -> Translation {
    let refused = |why: String| Translation { copies: Vec::new(), not_mapped: vec![why] };
    let input = spec.get("inputDetail").and_then(Value::as_object);
    let section = match input.and_then(|input| text(input, "type")) {
        Some("container_stdout") => "containerStdout",
        Some("container_file") => "containerFile",
        // They belong to whoever runs the worker cluster.
        Some("host_file") => {
            return refused("files of leased nodes (host_file) are not collected".to_owned());
        }
        _ => return refused("inputDetail.type is none that is known".to_owned()),
    };
    let Some(source) = input.and_then(|input| input.get(section)).and_then(Value::as_object) else {
        return refused(format!("inputDetail.{section} is missing"));
    };
    // Labels of namespaces are not known in the worker cluster, and without them too much would be collected.
    if source.get("nsLabelSelector").is_some_and(|selector| !is_empty(selector)) {
        return refused(format!("inputDetail.{section}.nsLabelSelector: name the namespaces instead"));
    }
    // Another source beside it would collect whatever it says.
    let mut not_mapped: Vec<String> = input
        .into_iter()
        .flatten()
        .filter(|(field, value)| !["type", section].contains(&field.as_str()) && !is_empty(value))
        .map(|(field, _)| format!("inputDetail.{field} is not that of inputDetail.type"))
        .collect();
    let with = |base: String, source: Map<String, Value>| {
        let mut spec = spec.clone();
        if let Some(Value::Object(input)) = spec.get_mut("inputDetail") {
            input.retain(|field, _| field == "type");
            input.insert(section.to_owned(), source.into());
        }
        Wanted { base, spec }
    };
    let namespaces = text(source, "namespace");
    let workloads = match section {
        "containerStdout" => source.get("workloads").and_then(Value::as_array).filter(|all| !all.is_empty()),
        _ => None,
    };
    if let Some(workloads) = workloads {
        let groups = grouped(workloads, namespaces.unwrap_or("default"), &mut not_mapped);
        let copies = groups.iter().enumerate().map(|(number, (group, names))| {
            let mut source = restricted(source, scope, Some(&group.namespace));
            include(&mut source, label::WORKLOAD_TYPE, &group.kind);
            include(&mut source, label::WORKLOAD_NAME, &joined(names));
            for (field, value) in [("container", &group.container), ("containerOperator", &group.operator)] {
                source.extend(value.iter().map(|value| (field.to_owned(), value.as_str().into())));
            }
            with(format!("{name}-g{number}"), source)
        });
        return Translation { copies: copies.collect(), not_mapped };
    }
    let mut copy = restricted(source, scope, namespaces);
    if let Some(workload) = source.get("workload").and_then(Value::as_object).filter(|it| !it.is_empty()) {
        let kind = text(workload, "kind").unwrap_or_default().to_lowercase();
        let workload = text(workload, "name").unwrap_or_default();
        if kind == CRON_JOB {
            return refused(of_cron_job(workload));
        }
        include(&mut copy, label::WORKLOAD_TYPE, &kind);
        include(&mut copy, label::WORKLOAD_NAME, &distinct_label_value(workload));
    }
    Translation { copies: vec![with(name.to_owned(), copy)], not_mapped }
}

/// A pod of a CronJob is labelled with its Job (TD-508), whose name nobody knows beforehand.
const CRON_JOB: &str = "cronjob";

fn of_cron_job(name: &str) -> String {
    format!("pods of CronJob {name:?} are not found by its name; select them by a label of their own")
}

/// In an order that does not depend on that of the list.
fn grouped(
    workloads: &[Value],
    namespace: &str,
    not_mapped: &mut Vec<String>,
) -> BTreeMap<Group, BTreeSet<String>> {
    let mut groups: BTreeMap<Group, BTreeSet<String>> = BTreeMap::new();
    for workload in workloads.iter().filter_map(Value::as_object) {
        let name = text(workload, "name").unwrap_or_default();
        let kind = text(workload, "kind").unwrap_or_default().to_lowercase();
        if kind == CRON_JOB {
            not_mapped.push(of_cron_job(name));
            continue;
        }
        let own = |field: &str| text(workload, field).map(str::to_owned);
        let group = Group {
            namespace: own("namespace").unwrap_or_else(|| namespace.to_owned()),
            kind,
            container: own("container"),
            operator: own("containerOperator"),
        };
        groups.entry(group).or_default().insert(distinct_label_value(name));
    }
    groups
}

/// The agent takes several values of a label separated by commas.
fn joined(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

/// The source, turned to the ppods of this binding and, if some are named, of these namespaces.
fn restricted(source: &Map<String, Value>, scope: &Scope, namespaces: Option<&str>) -> Map<String, Value> {
    let mut copy = source.clone();
    for field in ["nsLabelSelector", "excludeNamespace", "workload", "workloads"] {
        copy.remove(field);
    }
    if copy.contains_key("allContainers") {
        copy.insert("allContainers".to_owned(), false.into());
    }
    copy.insert("namespace".to_owned(), scope.mount_namespace.as_str().into());
    include(&mut copy, label::CLUSTER_BINDING, &scope.binding);
    if let Some(namespaces) = namespaces {
        include(&mut copy, label::VIRTUAL_NAMESPACE, namespaces);
    }
    if let Some(excluded) = text(source, "excludeNamespace") {
        select(&mut copy, "excludeLabels", label::VIRTUAL_NAMESPACE, excluded);
    }
    copy
}

fn include(source: &mut Map<String, Value>, key: &str, value: &str) {
    select(source, "includeLabels", key, value);
}

/// Adds to what the original selects.
fn select(source: &mut Map<String, Value>, field: &str, key: &str, value: &str) {
    let labels = source.entry(field).or_insert_with(|| Map::new().into());
    if !labels.is_object() {
        *labels = Map::new().into();
    }
    if let Value::Object(labels) = labels {
        labels.insert(key.to_owned(), value.into());
    }
}

fn text<'a>(object: &'a Map<String, Value>, field: &str) -> Option<&'a str> {
    object.get(field).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
