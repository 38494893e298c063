//! What is wrong with a ResourceLeasingPolicy before it becomes Rust types, which know neither a misspelt member nor a
//! word that is none of an enumeration.
//!
//! In: an object of a file. Out: its first problem, named by the place where it is. Caller: `policy_file`. Invariant: the
//! schema is that of the CRD, with members it does not have refused as `kubectl apply` refuses them.

use std::{collections::BTreeSet, sync::OnceLock};

use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use kubeocean_api::{
    GROUP, VERSION,
    crd::{MODULE_SOURCES, RESERVED_ENTRY, RESERVED_ENTRY_PREFIX, resource_leasing_policy},
};
use serde_json::{Value, json};

/// The first problem of an object of this kind.
pub(super) fn check(object: &Value) -> Result<(), String> {
    let version = format!("{GROUP}/{VERSION}");
    if let Some(other) = object.get("apiVersion").filter(|named| *named != version.as_str()) {
        return Err(format!("apiVersion: {other} is not {version:?}"));
    }
    if let Some(error) = validator().iter_errors(object).next() {
        return Err(told(&error));
    }
    let entries = object.pointer("/spec/policies").and_then(Value::as_array);
    let mut names = BTreeSet::new();
    for (index, entry) in entries.into_iter().flatten().enumerate() {
        check_entry(entry, &mut names)
            .map_err(|(member, text)| format!("spec.policies[{index}].{member}: {text}"))?;
    }
    Ok(())
}

/// The rules of the CRD that a schema cannot say.
fn check_entry<'e>(entry: &'e Value, names: &mut BTreeSet<&'e str>) -> Result<(), (&'static str, String)> {
    let name = entry["name"].as_str().unwrap_or_default();
    if name == RESERVED_ENTRY || name.starts_with(RESERVED_ENTRY_PREFIX) {
        return Err((
            "name",
            format!("{name:?} is reserved, as are {RESERVED_ENTRY} and {RESERVED_ENTRY_PREFIX}*"),
        ));
    }
    if !names.insert(name) {
        return Err(("name", format!("{name:?} is the name of an earlier entry, give each its own")));
    }
    let sources = MODULE_SOURCES.iter().filter(|source| entry["module"].get(**source).is_some()).count();
    if sources != 1 {
        return Err((
            "module",
            format!("it names {sources} sources, exactly one of {} is required", MODULE_SOURCES.join(", ")),
        ));
    }
    Ok(())
}

fn validator() -> &'static Validator {
    static VALIDATOR: OnceLock<Validator> = OnceLock::new();
    VALIDATOR.get_or_init(|| {
        let crd = resource_leasing_policy();
        let mut schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
        close(&mut schema);
        // Standard metadata, and what nobody writes.
        schema["properties"]["metadata"] = json!({"type": "object"});
        schema["properties"]["status"] = json!(true);
        jsonschema::draft7::new(&schema).expect("the schema of our own CRD is one")
    })
}

/// Refuses members that are not in the schema, and repeated items of sets.
fn close(schema: &mut Value) {
    let Value::Object(members) = schema else { return };
    let is_open = members.contains_key("x-kubernetes-preserve-unknown-fields");
    if members.contains_key("properties") && !members.contains_key("additionalProperties") && !is_open {
        members.insert("additionalProperties".to_owned(), false.into());
    }
    if members.get("x-kubernetes-list-type") == Some(&"set".into()) {
        members.insert("uniqueItems".to_owned(), true.into());
    }
    if let Some(Value::Object(properties)) = members.get_mut("properties") {
        properties.values_mut().for_each(close);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = members.get_mut(inner) {
            close(inner);
        }
    }
}

/// `spec.policies[1].onError: "deny" is not one of "LastKnown", "Deny" or "Ignore"`.
fn told(error: &ValidationError<'_>) -> String {
    let mut path = dotted(&error.instance_path().to_string());
    if let ValidationErrorKind::AdditionalProperties { unexpected } = error.kind() {
        if !path.is_empty() {
            path.push('.');
        }
        return format!("{path}{}: there is no such member", unexpected.join(", "));
    }
    if path.is_empty() { error.to_string() } else { format!("{path}: {error}") }
}

/// `/spec/policies/1` is `spec.policies[1]`.
fn dotted(pointer: &str) -> String {
    pointer.split('/').skip(1).fold(String::new(), |path, step| match step.parse::<usize>() {
        Ok(index) => format!("{path}[{index}]"),
        Err(_) if path.is_empty() => step.to_owned(),
        Err(_) => format!("{path}.{step}"),
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const PIN: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    fn object(spec: &str) -> Value {
        let spec: Value = serde_saphyr::from_str(spec).unwrap();
        json!({"apiVersion": format!("{GROUP}/{VERSION}"), "kind": "ResourceLeasingPolicy", "metadata": {"name": "p"}, "spec": spec})
    }

    fn entry(members: &str) -> Value {
        object(&format!(
            "{{cluster: c, policies: [{{name: a, module: {{builtin: node-labels}}}}, {{name: b, {members}}}]}}"
        ))
    }

    #[test]
    fn what_the_api_server_takes_is_no_problem() {
        let all = "module: {configMap: {name: m, namespace: ns, key: file}, digest: DIGEST}, settings: {any: {thing: 1}}, \
                   decisions: [lease, place], enforcement: Audit, onError: Ignore, weight: 100, \
                   limits: {timeoutMilliseconds: 10, memoryMiB: 128}";
        assert_eq!(check(&entry(&all.replace("DIGEST", PIN))), Ok(()));
        let short = "{cluster: c, timeZone: Europe/Rome, forceReclaim: true, gracefulReclaimPeriodSeconds: 5, \
                     timeWindows: [{start: '18:00', end: '08:00', days: [Monday]}], \
                     resourceLimits: [{resource: cpu, percent: 50}, {resource: memory, quantity: 4Gi}, {resource: gpu, quantity: 2}], \
                     nodeSelector: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: In, values: [b]}]}]}}";
        assert_eq!(check(&object(short)), Ok(()));
    }

    #[rstest]
    #[case::misspelt_member(
        "module: {builtin: x}, onerror: Deny",
        "spec.policies[1].onerror: there is no such member"
    )]
    #[case::misspelt_value(
        "module: {builtin: x}, onError: deny",
        r#"spec.policies[1].onError: "deny" is not one of "#
    )]
    #[case::enforcement(
        "module: {builtin: x}, enforcement: audit",
        "spec.policies[1].enforcement: \"audit\" is not one of "
    )]
    #[case::heavy(
        "module: {builtin: x}, weight: 500",
        "spec.policies[1].weight: 500 is greater than the maximum of 100"
    )]
    #[case::light(
        "module: {builtin: x}, weight: 0",
        "spec.policies[1].weight: 0 is less than the minimum of 1"
    )]
    #[case::weight_as_text(
        "module: {builtin: x}, weight: '5'",
        "spec.policies[1].weight: \"5\" is not of type"
    )]
    #[case::decision(
        "module: {builtin: x}, decisions: [leases]",
        "spec.policies[1].decisions[0]: \"leases\" is not one of "
    )]
    #[case::no_decision(
        "module: {builtin: x}, decisions: []",
        "spec.policies[1].decisions: [] has less than 1 item"
    )]
    #[case::decision_twice("module: {builtin: x}, decisions: [lease, lease]", "spec.policies[1].decisions: ")]
    #[case::slow(
        "module: {builtin: x}, limits: {timeoutMilliseconds: 5}",
        "spec.policies[1].limits.timeoutMilliseconds: 5 is less"
    )]
    #[case::memory(
        "module: {builtin: x}, limits: {memoryMib: 5}",
        "spec.policies[1].limits.memoryMib: there is no such member"
    )]
    #[case::digest(
        "module: {builtin: x, digest: abc}",
        "spec.policies[1].module.digest: \"abc\" does not match"
    )]
    #[case::source(
        "module: {configmap: {name: x}}",
        "spec.policies[1].module.configmap: there is no such member"
    )]
    #[case::no_source("module: {}", "spec.policies[1].module: it names 0 sources, exactly one of builtin")]
    #[case::two_sources(
        "module: {builtin: x, file: {path: f}}",
        "spec.policies[1].module: it names 2 sources"
    )]
    #[case::no_module("weight: 1", "spec.policies[1]: \"module\" is a required property")]
    #[case::settings(
        "module: {builtin: x}, settings: [1]",
        "spec.policies[1].settings: [1] is not of type \"object\""
    )]
    fn a_mistake_of_an_entry_is_named_by_its_place(#[case] members: &str, #[case] expected: &str) {
        let said = check(&entry(members)).unwrap_err();
        assert!(said.starts_with(expected), "{said}");
    }

    #[rstest]
    #[case::no_cluster("{}", "spec: \"cluster\" is a required property")]
    #[case::misspelt("{cluster: c, timezone: UTC}", "spec.timezone: there is no such member")]
    #[case::window(
        "{cluster: c, timeWindows: [{start: '1:00'}]}",
        "spec.timeWindows[0]: \"end\" is a required property"
    )]
    #[case::percent(
        "{cluster: c, resourceLimits: [{resource: cpu, percent: half}]}",
        "spec.resourceLimits[0].percent: \"half\" is not of type"
    )]
    #[case::reserved(
        "{cluster: c, policies: [{name: legacy-x, module: {builtin: x}}]}",
        "spec.policies[0].name: \"legacy-x\" is reserved"
    )]
    #[case::selector(
        "{cluster: c, policies: [{name: binding-selector, module: {builtin: x}}]}",
        "spec.policies[0].name: \"binding-selector\" is"
    )]
    #[case::bad_name(
        "{cluster: c, policies: [{name: A, module: {builtin: x}}]}",
        "spec.policies[0].name: \"A\" does not match"
    )]
    #[case::twice(
        "{cluster: c, policies: [{name: a, module: {builtin: x}}, {name: a, module: {builtin: x}}]}",
        "spec.policies[1].name: \"a\" is the name of"
    )]
    fn a_mistake_of_the_spec_is_named_by_its_place(#[case] spec: &str, #[case] expected: &str) {
        let said = check(&object(spec)).unwrap_err();
        assert!(said.starts_with(expected), "{said}");
    }

    #[test]
    fn another_version_and_a_misspelt_spec_are_named() {
        let other = json!({"apiVersion": "cloud.tencent.com/v1", "kind": "ResourceLeasingPolicy", "spec": {"cluster": "c"}});
        assert!(check(&other).unwrap_err().starts_with("apiVersion: \"cloud.tencent.com/v1\" is not"));
        let misspelt = json!({"kind": "ResourceLeasingPolicy", "specs": {"cluster": "c"}});
        assert_eq!(check(&misspelt).unwrap_err(), "specs: there is no such member");
    }
}
