//! Pods as users run them, and every rare field: one golden file each, and what no rule names survives in all of them.
//!
//! A file of `testdata/corpus` is a pod as an API server stores it, but for its UID and node, which all have alike.

use std::{collections::BTreeSet, path::Path};

use serde_json::{Map, Value, json};

use super::*;

/// Name and pod of each file.
fn corpus() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pods/transform/testdata/corpus");
    let mut pods: Vec<(String, Value)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let mut pod: Value =
                serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            pod["metadata"]["uid"] = "v-uid".into();
            pod["spec"]["nodeName"] = "vnode-cls-e-worker-node-1".into();
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), pod)
        })
        .collect();
    pods.sort_by(|(a, _), (b, _)| a.cmp(b));
    pods
}

#[test]
fn pods_that_users_run() {
    let pods = corpus();
    assert!(pods.len() >= 60, "{} pods", pods.len());
    for (name, pod) in pods {
        let result = match to_worker_pod(&pod, &context(&services())) {
            Ok(copy) => copy,
            Err(error) => json!({"refused": error.to_string()}),
        };
        insta::assert_json_snapshot!(format!("corpus_{name}"), result);
    }
}

/// Members of a pod's spec that are not the vpod's on the ppod, by rules with tests of their own.
const REWRITTEN: [&str; 20] = [
    "affinity",
    "automountServiceAccountToken",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "ephemeralContainers",
    "nodeName",
    "nodeSelector",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "schedulerName",
    "schedulingGates",
    "schedulingGroup",
    "serviceAccount",
    "serviceAccountName",
    "topologySpreadConstraints",
    "workloadRef",
];

/// A spec without what the rules rewrite: names of objects, downward fields, tokens, and what is added.
fn untouched(spec: &Value, like: &Value) -> Value {
    let mut spec = spec.clone();
    let original = |field: &str| like.get(field).and_then(Value::as_array).map(Vec::len).unwrap_or_default();
    let (aliases, tolerations) = (original("hostAliases"), original("tolerations"));
    let members = spec.as_object_mut().unwrap();
    for field in REWRITTEN {
        members.remove(field);
    }
    if like.get("hostname").is_none() {
        members.remove("hostname");
    }
    for (field, length) in [("hostAliases", aliases), ("tolerations", tolerations)] {
        if let Some(Value::Array(list)) = members.get_mut(field) {
            list.truncate(length);
        }
        members
            .retain(|member, list| member != field || !matches!(list, Value::Array(list) if list.is_empty()));
    }
    rename(&mut spec, &|_| "a name".to_owned());
    for list in ["containers", "initContainers"] {
        for (at, container) in
            spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().enumerate()
        {
            strip_environment(container.as_object_mut().unwrap(), &like[list][at]);
        }
    }
    for (at, volume) in
        spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten().enumerate()
    {
        // The claim that was made for it stands in its place.
        if like["volumes"][at].get("ephemeral").is_some_and(Value::is_object) {
            volume
                .as_object_mut()
                .unwrap()
                .retain(|member, _| member != "ephemeral" && member != "persistentVolumeClaim");
        }
        strip_fields(&mut volume["downwardAPI"]);
        let sources = volume.pointer_mut("/projected/sources").and_then(Value::as_array_mut);
        for source in sources.into_iter().flatten() {
            let from_token =
                source["secret"]["items"][0]["key"].as_str().is_some_and(|key| key.starts_with("token"));
            if source.get("serviceAccountToken").is_some_and(Value::is_object) || from_token {
                source.as_object_mut().unwrap().retain(|member, _| member == "futureField");
            }
            strip_fields(&mut source["downwardAPI"]);
        }
    }
    without_nulls(&mut spec);
    spec
}

/// Keeps the user's own variables, without the names in them.
fn strip_environment(container: &mut Map<String, Value>, like: &Value) {
    let ours: BTreeSet<&str> = services().variables().into_iter().map(|(name, _)| name).collect();
    let own: BTreeSet<String> = like["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|variable| {
            variable.pointer("/valueFrom/fieldRef/fieldPath") != Some(&json!("spec.serviceAccountName"))
        })
        .filter_map(|variable| variable["name"].as_str().map(str::to_owned))
        .filter(|name| !ours.contains(name.as_str()))
        .collect();
    if let Some(Value::Array(env)) = container.get_mut("env") {
        env.retain(|variable| variable["name"].as_str().is_some_and(|name| own.contains(name)));
        for variable in env {
            if let Some(path) = variable.pointer_mut("/valueFrom/fieldRef/fieldPath") {
                *path = "a field".into();
            }
        }
    }
    container
        .retain(|member, value| member != "env" || !matches!(value, Value::Array(env) if env.is_empty()));
}

fn strip_fields(files: &mut Value) {
    for item in files.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(path) = item.pointer_mut("/fieldRef/fieldPath") {
            *path = "a field".into();
        }
    }
}

/// Looking at a member that is not there leaves `null`.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(without_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// Puts a member that no version of Kubernetes has into every object.
fn with_future_fields(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(with_future_fields);
            members.insert("futureField".to_owned(), json!({"a": [1, "b"]}));
        }
        Value::Array(list) => list.iter_mut().for_each(with_future_fields),
        _ => {}
    }
}

#[test]
fn whatever_no_rule_names_is_the_same_on_the_copy() {
    let mut compared = 0;
    for (name, pod) in corpus() {
        for future in [false, true] {
            let mut pod = pod.clone();
            if future {
                with_future_fields(&mut pod["spec"]);
            }
            let Ok(copy) = to_worker_pod(&pod, &context(&services())) else { continue };
            let spec = &pod["spec"];
            assert_eq!(
                untouched(&copy["spec"], spec),
                untouched(spec, spec),
                "{name}, future fields: {future}"
            );
            compared += 1;
        }
    }
    assert!(compared >= 110, "{compared} pods were compared");
}
