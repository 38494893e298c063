//! ResourceLeasingPolicies as a file holds them: a YAML stream that may hold other objects as well.
//!
//! Pure.

use kubeocean_api::{policy::ResourceLeasingPolicySpec, validate};
use serde_json::Value;

use super::policy_schema;

/// One policy of a file.
#[derive(Clone, Debug)]
pub(super) struct FilePolicy {
    pub(super) name: String,
    pub(super) spec: ResourceLeasingPolicySpec,
}

/// All policies of a file, in its order. An invalid one is refused with what the API server would say.
pub(super) fn policies(text: &str) -> Result<Vec<FilePolicy>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    let found = documents
        .into_iter()
        .filter(|document| document.get("kind") == Some(&"ResourceLeasingPolicy".into()))
        .map(policy)
        .collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        return Err("there is no ResourceLeasingPolicy in it".to_owned());
    }
    Ok(found)
}

/// The one policy of a file.
pub(super) fn only_policy(text: &str) -> Result<FilePolicy, String> {
    let mut found = policies(text)?;
    match (found.pop(), found.is_empty()) {
        (Some(policy), true) => Ok(policy),
        _ => Err("there are several ResourceLeasingPolicies in it".to_owned()),
    }
}

fn policy(mut document: Value) -> Result<FilePolicy, String> {
    let name = document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("policy").to_owned();
    policy_schema::check(&document).map_err(|error| format!("{name}: {error}"))?;
    let spec = document.get_mut("spec").map(Value::take).unwrap_or_default();
    let spec: ResourceLeasingPolicySpec =
        serde_json::from_value(spec).map_err(|error| format!("{name}: spec: {error}"))?;
    validate::new_policy(&name, &spec).map_err(|error| format!("{name}: spec: {error}"))?;
    Ok(FilePolicy { name, spec })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_found_among_other_objects() {
        let text = "kind: Namespace\n---\nkind: ResourceLeasingPolicy\nmetadata: {name: a}\nspec: {cluster: c}\n---\n\
                    kind: ResourceLeasingPolicy\nmetadata: {name: b}\nspec: {cluster: c}\n";
        let names: Vec<String> = policies(text).unwrap().into_iter().map(|policy| policy.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(only_policy(text).unwrap_err().contains("several"));
        assert!(policies("kind: Pod\n").unwrap_err().contains("no ResourceLeasingPolicy"));
        assert!(
            policies("kind: ResourceLeasingPolicy\nspec: {cluster: c, timeZone: Mars}\n")
                .unwrap_err()
                .contains("Mars")
        );
    }
}
