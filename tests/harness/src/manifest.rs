//! YAML streams as JSON objects, in the order in which a server can take them.

use anyhow::{Context, Result};
use serde_json::Value;

/// What must exist before what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Namespaces and CRDs: everything else may live in or be one.
    Definitions,
    /// ServiceAccounts: a pod is refused without its own.
    Identities,
    Rest,
}

/// The objects of a stream; empty documents are skipped, lists (`kind: List`) are taken apart.
pub(crate) fn parse(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("parsing YAML")?;
    let mut objects = Vec::new();
    for mut document in documents {
        match document.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) if document["kind"] == "List" => objects.extend(items),
            Some(items) => {
                document["items"] = items;
                objects.push(document);
            }
            None if document.is_null() => {}
            None => objects.push(document),
        }
    }
    Ok(objects)
}

/// The objects by stage, empty stages left out; inside a stage the order stays.
pub(crate) fn stages(mut objects: Vec<Value>) -> Vec<(Stage, Vec<Value>)> {
    let mut stages = Vec::new();
    for stage in [Stage::Definitions, Stage::Identities, Stage::Rest] {
        let (members, rest): (Vec<_>, Vec<_>) =
            objects.into_iter().partition(|object| stage_of(object) == stage);
        objects = rest;
        if !members.is_empty() {
            stages.push((stage, members));
        }
    }
    stages
}

fn stage_of(object: &Value) -> Stage {
    match object["kind"].as_str() {
        Some("Namespace" | "CustomResourceDefinition") => Stage::Definitions,
        Some("ServiceAccount") => Stage::Identities,
        _ => Stage::Rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_taken_apart_and_empty_documents_skipped() {
        let yaml = "---\nkind: List\nitems:\n- {kind: Pod}\n- {kind: Service}\n---\n---\nkind: ConfigMap\n";
        let kinds: Vec<_> =
            parse(yaml).unwrap().iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["Pod", "Service", "ConfigMap"]);
    }

    #[test]
    fn namespaces_go_before_accounts_before_the_rest() {
        let objects = parse("kind: Pod\n---\nkind: ServiceAccount\n---\nkind: Namespace\n").unwrap();
        let order: Vec<_> = stages(objects).into_iter().map(|(stage, _)| stage).collect();
        assert_eq!(order, [Stage::Definitions, Stage::Identities, Stage::Rest]);
    }
}
