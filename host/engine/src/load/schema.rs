//! The settings schema of a module: accepted, compiled, applied, each with bounded work.
//!
//! Both schema and settings may be hostile. References stay inside the document, patterns run in linear time, and
//! before validation a walk over schema and settings counts the steps validation would take: what is over the
//! budget is refused, which covers reference loops and schemas that double at every level.

use serde_json::Value;

use super::error::{LoadCode, LoadError};
use super::settings::{MAX_JSON_BYTES, check_shape};

/// Schema applications one validation may take.
const BUDGET: u32 = 200_000;
/// Schemas applied to one value one inside the other.
const MAX_IN_PLACE: u32 = 64;
/// Compiled size of one pattern in bytes.
const PATTERN_BYTES: usize = 1 << 20;
/// Violations shown to the user.
const SHOWN: usize = 3;

/// A compiled settings schema.
#[derive(Debug)]
pub(crate) struct Schema {
    source: Value,
    validator: jsonschema::Validator,
}

impl Schema {
    /// Parses and compiles the text from `describe`.
    pub(crate) fn compile(text: &str) -> Result<Self, LoadError> {
        let refuse = |text: &str| LoadError::new(LoadCode::SchemaInvalid, text);
        if text.len() > MAX_JSON_BYTES {
            return Err(refuse(&format!("{} bytes, the limit is {MAX_JSON_BYTES}", text.len())));
        }
        let source: Value = serde_json::from_str(text).map_err(|error| refuse(&error.to_string()))?;
        if !source.is_object() && !source.is_boolean() {
            return Err(refuse("is neither an object nor a boolean"));
        }
        check_shape(&source).map_err(|text| refuse(&text))?;
        check_references(&source, true).map_err(|text| refuse(&text))?;
        let patterns =
            jsonschema::PatternOptions::regex().size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES);
        let validator = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .with_pattern_options(patterns)
            .build(&source)
            .map_err(|error| refuse(&error.to_string()))?;
        Ok(Self { source, validator })
    }

    /// Checks settings that passed [`super::settings::canonical`].
    pub(crate) fn check(&self, settings: &Value) -> Result<(), LoadError> {
        let mut walk = Walk { root: &self.source, left: BUDGET };
        walk.step(&self.source, settings, 0).map_err(|text| LoadError::new(LoadCode::SchemaInvalid, text))?;
        let violations: Vec<String> = self
            .validator
            .iter_errors(settings)
            .take(SHOWN)
            .map(|error| format!("settings{}: {error}", dotted(&error.instance_path().to_string())))
            .collect();
        if violations.is_empty() {
            return Ok(());
        }
        Err(LoadError::new(LoadCode::SettingsInvalid, &violations.join("; ")))
    }
}

/// `/limits/0/percent` -> `.limits[0].percent`.
fn dotted(pointer: &str) -> String {
    use std::fmt::Write as _;
    pointer.split('/').skip(1).fold(String::new(), |mut out, part| {
        let part = part.replace("~1", "/").replace("~0", "~");
        let index = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        // Writing to a String cannot fail.
        let _ = if index { write!(out, "[{part}]") } else { write!(out, ".{part}") };
        out
    })
}

/// Only references by pointer into this document are accepted.
fn check_references(value: &Value, is_root: bool) -> Result<(), String> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| check_references(item, false)),
        Value::Object(map) => {
            for (key, item) in map {
                match (key.as_str(), item) {
                    ("$ref", Value::String(target)) if target != "#" && !target.starts_with("#/") => {
                        return Err(format!("reference {target:?} leaves the document"));
                    }
                    ("$dynamicRef" | "$recursiveRef" | "$anchor" | "$dynamicAnchor", Value::String(_)) => {
                        return Err(format!("{key} is not supported"));
                    }
                    ("$id" | "$schema", Value::String(_)) if !is_root => {
                        return Err(format!("{key} is only supported at the top"));
                    }
                    _ => check_references(item, false)?,
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Counts what validation would do, an upper bound of it.
struct Walk<'s> {
    root: &'s Value,
    left: u32,
}

impl<'s> Walk<'s> {
    fn step(&mut self, schema: &'s Value, value: &Value, in_place: u32) -> Result<(), &'static str> {
        self.left = self.left.checked_sub(1).ok_or("applying the schema takes too many steps")?;
        if in_place > MAX_IN_PLACE {
            return Err("references form a loop or are nested too deeply");
        }
        let Some(keywords) = schema.as_object() else { return Ok(()) };
        for (keyword, argument) in keywords {
            match keyword.as_str() {
                "$ref" => {
                    let Some(pointer) = argument.as_str().and_then(|target| target.strip_prefix('#')) else {
                        continue;
                    };
                    if let Some(target) = self.root.pointer(pointer) {
                        self.step(target, value, in_place + 1)?;
                    }
                }
                "allOf" | "anyOf" | "oneOf" => {
                    for branch in argument.as_array().into_iter().flatten() {
                        self.step(branch, value, in_place + 1)?;
                    }
                }
                "not" | "if" | "then" | "else" => self.step(argument, value, in_place + 1)?,
                "dependentSchemas" => {
                    for branch in argument.as_object().into_iter().flat_map(|map| map.values()) {
                        self.step(branch, value, in_place + 1)?;
                    }
                }
                _ => self.step_members(keyword, argument, value)?,
            }
        }
        Ok(())
    }

    fn step_members(
        &mut self,
        keyword: &str,
        argument: &'s Value,
        value: &Value,
    ) -> Result<(), &'static str> {
        match (keyword, value) {
            ("properties", Value::Object(members)) => {
                for (name, schema) in argument.as_object().into_iter().flatten() {
                    if let Some(member) = members.get(name) {
                        self.step(schema, member, 0)?;
                    }
                }
            }
            ("patternProperties", Value::Object(members)) => {
                for schema in argument.as_object().into_iter().flat_map(|map| map.values()) {
                    for member in members.values() {
                        self.step(schema, member, 0)?;
                    }
                }
            }
            ("additionalProperties" | "unevaluatedProperties", Value::Object(members)) => {
                for member in members.values() {
                    self.step(argument, member, 0)?;
                }
            }
            ("propertyNames", Value::Object(members)) => {
                for _ in members.keys() {
                    self.step(argument, &Value::Null, 0)?;
                }
            }
            ("prefixItems" | "items", Value::Array(items)) if argument.is_array() => {
                for (schema, item) in argument.as_array().into_iter().flatten().zip(items) {
                    self.step(schema, item, 0)?;
                }
            }
            ("items" | "additionalItems" | "unevaluatedItems" | "contains", Value::Array(items)) => {
                for item in items {
                    self.step(argument, item, 0)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(value: &Value) -> Result<Schema, String> {
        Schema::compile(&value.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_violation_names_its_path() {
        let schema = schema(&json!({
            "type": "object",
            "properties": {"limits": {"items": {"properties": {"percent": {"maximum": 100}}}}}
        }))
        .unwrap();
        assert!(schema.check(&json!({"limits": [{"percent": 3}]})).is_ok());
        let error = schema.check(&json!({"limits": [{"percent": 150}]})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "SettingsInvalid: settings.limits[0].percent: 150 is greater than the maximum of 100"
        );
    }

    #[test]
    fn remote_and_unknown_references_are_refused_without_a_connection() {
        for bad in [
            json!({"$ref": "https://example.com/schema.json"}),
            json!({"properties": {"a": {"$ref": "file:///etc/passwd"}}}),
            json!({"$dynamicRef": "#a"}),
            json!({"properties": {"a": {"$id": "https://example.com/x"}}}),
            json!({"$ref": "#/$defs/missing"}),
            json!({"type": "colour"}),
            json!(3),
        ] {
            assert!(schema(&bad).unwrap_err().starts_with("SchemaInvalid"), "{bad}");
        }
        assert!(Schema::compile("{").is_err());
        assert!(Schema::compile(&format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000))).is_err());
        assert!(Schema::compile(&json!({"title": "x".repeat(70_000)}).to_string()).is_err());
    }

    #[test]
    fn loops_and_doubling_schemas_are_refused_in_bounded_time() {
        let started = std::time::Instant::now();
        let own = schema(&json!({"$ref": "#"}));
        assert!(own.is_err() || own.unwrap().check(&json!({})).is_err());
        let mut defs = serde_json::Map::new();
        for i in 0..30 {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            defs.insert(format!("d{i}"), json!({"allOf": [next, next]}));
        }
        defs.insert("d30".into(), json!({"type": "object"}));
        let doubling = schema(&json!({"$ref": "#/$defs/d0", "$defs": defs}));
        assert!(doubling.is_err() || doubling.unwrap().check(&json!({})).is_err());
        let slow = schema(&json!({"properties": {"a": {"pattern": "(a+)+$"}}})).unwrap();
        assert!(slow.check(&json!({"a": format!("{}b", "a".repeat(60_000))})).is_err());
        assert!(started.elapsed().as_secs() < 5);
    }
}
