//! Turns a Rust type's JSON Schema into the structural form Kubernetes accepts in a CRD.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value};

/// Structural schema of `T`: everything inline, no null alternatives (absent and null mean the same to the API
/// server), no titles and no defaults (API-807).
pub(crate) fn structural<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut value = settings.into_generator().into_root_schema_for::<T>().to_value();
    simplify(&mut value);
    value
}

fn simplify(value: &mut Value) {
    let Value::Object(schema) = value else { return };
    for key in ["$schema", "title", "default"] {
        schema.remove(key);
    }
    drop_null_type(schema);
    drop_null_alternative(schema);
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(simplify);
    }
    if let Some(items) = schema.get_mut("items") {
        simplify(items);
    }
    if let Some(description) = schema.get_mut("description")
        && let Some(text) = description.as_str()
    {
        *description = text.replace('\n', " ").into();
    }
}

fn drop_null_type(schema: &mut Map<String, Value>) {
    let single = match schema.get("type") {
        Some(Value::Array(types)) => types.iter().find(|kind| *kind != "null").cloned(),
        _ => None,
    };
    if let Some(single) = single {
        schema.insert("type".into(), single);
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
}

fn drop_null_alternative(schema: &mut Map<String, Value>) {
    let Some(Value::Array(alternatives)) = schema.get("anyOf") else { return };
    let is_null = |alternative: &Value| alternative.get("type") == Some(&Value::from("null"));
    if !alternatives.iter().any(is_null) {
        return;
    }
    let Some(Value::Object(kept)) = alternatives.iter().find(|alternative| !is_null(alternative)).cloned()
    else {
        return;
    };
    schema.remove("anyOf");
    let own_description = schema.get("description").cloned();
    schema.extend(kept);
    if let Some(description) = own_description {
        schema.insert("description".into(), description);
    }
}
