//! The settings schema of a module: accepted, compiled, applied, each with bounded work.
//!
//! Both schema and settings may be hostile. References stay inside the document, patterns run in linear time, and
//! before validation a walk over schema and settings counts the steps validation would take: what is over the
//! budget is refused, which covers reference loops, schemas that double at every level, patterns of very many states held
//! against long texts, and long lists of names asked for again and again. What is wrong is told in detail only where the walk
//! was short: the validator keeps every violation, and a copy of what it is about.

use std::collections::BTreeMap;

use regex_automata::nfa::thompson;
use serde_json::Value;

use super::error::{LoadCode, LoadError};
use super::settings::{MAX_JSON_BYTES, check_shape};

/// Steps one validation may take: schemas applied, values compared or copied, states of patterns stepped through.
const BUDGET: u32 = 200_000;
/// Steps of a validation whose violations are told one by one; each step may leave some with copies in memory.
const DETAILED: u32 = 20_000;
/// Bytes of text that cost as much as a step when they are copied or compared.
const BYTES_PER_STEP: usize = 32;
/// States of a pattern, times bytes it is held against, that cost as much as a step.
const STATES_PER_STEP: usize = 16;
/// Schemas applied to one value one inside the other.
const MAX_IN_PLACE: u32 = 64;
/// Compiled size of one pattern in bytes.
const PATTERN_BYTES: usize = 1 << 20;
/// Compiled size of all patterns of a schema together: of very many each may have its share.
const PATTERNS_BYTES: usize = 8 << 20;
/// Bytes of a compiled state, at least.
const STATE_BYTES: usize = 24;
/// Violations shown to the user.
const SHOWN: usize = 3;

/// A compiled settings schema.
#[derive(Debug)]
pub(crate) struct Schema {
    source: Value,
    validator: jsonschema::Validator,
    /// States of each pattern: what one byte costs at most.
    states: BTreeMap<String, usize>,
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
        check_references(&source, &source).map_err(|text| refuse(&text))?;
        let mut written = Vec::new();
        patterns_in(&source, &mut written);
        let share = PATTERN_BYTES.min(PATTERNS_BYTES / written.len().max(1));
        let states =
            written.into_iter().map(|pattern| (pattern.to_owned(), states_of(pattern, share))).collect();
        let patterns = jsonschema::PatternOptions::regex().size_limit(share).dfa_size_limit(share);
        let validator = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .with_pattern_options(patterns)
            .build(&source)
            .map_err(|error| refuse(&error.to_string()))?;
        Ok(Self { source, validator, states })
    }

    /// Checks settings that passed [`super::settings::canonical`].
    pub(crate) fn check(&self, settings: &Value) -> Result<(), LoadError> {
        let mut walk = Walk { root: &self.source, states: &self.states, left: BUDGET };
        walk.step(&self.source, settings, 0).map_err(|text| LoadError::new(LoadCode::SchemaInvalid, text))?;
        if self.validator.is_valid(settings) {
            return Ok(());
        }
        if BUDGET - walk.left > DETAILED {
            let text = "settings do not fit the schema, and both are too large to tell where";
            return Err(LoadError::new(LoadCode::SettingsInvalid, text));
        }
        let violations: Vec<String> = self
            .validator
            .iter_errors(settings)
            .take(SHOWN)
            .map(|error| format!("settings{}: {error}", dotted(&error.instance_path().to_string())))
            .collect();
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

/// Only references by pointer to what is in this document are accepted, and as [`Walk`] finds it: the validator also reads
/// pointers in other ways (`%24defs`, `01`), and what the walk does not find it does not count.
fn check_references(value: &Value, root: &Value) -> Result<(), String> {
    let is_root = std::ptr::eq(value, root);
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| check_references(item, root)),
        Value::Object(map) => {
            for (key, item) in map {
                match (key.as_str(), item) {
                    ("$ref", Value::String(target)) if target != "#" && !target.starts_with("#/") => {
                        return Err(format!("reference {target:?} leaves the document"));
                    }
                    ("$ref", Value::String(target)) if target.contains('%') => {
                        return Err(format!("reference {target:?} has a %: write the name as it is"));
                    }
                    ("$ref", Value::String(target)) if referenced(root, target).is_none() => {
                        return Err(format!("reference {target:?} leads to nothing in the document"));
                    }
                    ("$dynamicRef" | "$recursiveRef" | "$anchor" | "$dynamicAnchor", Value::String(_)) => {
                        return Err(format!("{key} is not supported"));
                    }
                    ("$id" | "$schema", Value::String(_)) if !is_root => {
                        return Err(format!("{key} is only supported at the top"));
                    }
                    _ => check_references(item, root)?,
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What a reference leads to.
fn referenced<'s>(root: &'s Value, target: &str) -> Option<&'s Value> {
    target.strip_prefix('#').and_then(|pointer| root.pointer(pointer))
}

/// Counts what validation would do, an upper bound of it.
struct Walk<'s> {
    root: &'s Value,
    states: &'s BTreeMap<String, usize>,
    left: u32,
}

const TOO_MANY_STEPS: &str = "applying the schema takes too many steps";

/// Steps that a copy of a value costs, or a comparison with it.
fn weight(value: &Value) -> usize {
    1 + match value {
        Value::String(text) => text.len() / BYTES_PER_STEP,
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(members) => {
            members.iter().map(|(name, item)| name.len() / BYTES_PER_STEP + weight(item)).sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// Everything that may be a pattern, and what only looks like one.
fn patterns_in<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| patterns_in(item, found)),
        Value::Object(members) => {
            for (name, item) in members {
                match (name.as_str(), item) {
                    ("pattern", Value::String(pattern)) => found.push(pattern),
                    ("patternProperties", Value::Object(by_pattern)) => {
                        found.extend(by_pattern.keys().map(String::as_str));
                    }
                    _ => {}
                }
                patterns_in(item, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// States of a compiled pattern. Of one that only the validator's own dialect can read, as many as it may have.
fn states_of(pattern: &str, bytes: usize) -> usize {
    let limit = thompson::Config::new().nfa_size_limit(Some(bytes));
    // As in the dialect of schemas, where both are of ASCII.
    let pattern = pattern.replace("\\w", "[0-9A-Za-z_]").replace("\\d", "[0-9]");
    thompson::Compiler::new()
        .configure(limit)
        .build(&pattern)
        .map_or(bytes / STATE_BYTES, |nfa| nfa.states().len())
}

impl<'s> Walk<'s> {
    fn spend(&mut self, steps: usize) -> Result<(), &'static str> {
        let left = u32::try_from(steps).ok().and_then(|steps| self.left.checked_sub(steps));
        self.left = left.ok_or(TOO_MANY_STEPS)?;
        Ok(())
    }

    /// A pattern is held against a text.
    fn matching(&mut self, pattern: &str, text: &str) -> Result<(), &'static str> {
        let states = self.states.get(pattern).copied().unwrap_or(PATTERN_BYTES / STATE_BYTES);
        self.spend(states.saturating_mul(text.len()) / STATES_PER_STEP)
    }

    fn step(&mut self, schema: &'s Value, value: &Value, in_place: u32) -> Result<(), &'static str> {
        self.spend(1)?;
        if in_place > MAX_IN_PLACE {
            return Err("references form a loop or are nested too deeply");
        }
        let Some(keywords) = schema.as_object() else { return Ok(()) };
        let before = self.left;
        for (keyword, argument) in keywords {
            self.keyword(keyword, argument, value, in_place)?;
        }
        // What the other keywords have looked at is found out by applying them once more.
        if keywords.contains_key("unevaluatedProperties") || keywords.contains_key("unevaluatedItems") {
            self.spend(usize::try_from(before - self.left).unwrap_or(usize::MAX))?;
        }
        Ok(())
    }

    fn keyword(
        &mut self,
        keyword: &str,
        argument: &'s Value,
        value: &Value,
        in_place: u32,
    ) -> Result<(), &'static str> {
        match keyword {
            "$ref" => {
                let Some(target) = argument.as_str() else { return Ok(()) };
                let target = referenced(self.root, target).ok_or("a reference leads to nothing")?;
                self.step(target, value, in_place + 1)?;
            }
            "allOf" | "anyOf" | "oneOf" => {
                // Of every branch that does not fit an error is kept, with a copy of the value.
                let copy = if keyword == "allOf" { 0 } else { weight(value) };
                for branch in argument.as_array().into_iter().flatten() {
                    self.spend(copy)?;
                    self.step(branch, value, in_place + 1)?;
                }
            }
            // The error keeps a copy of the schema.
            "not" => {
                self.spend(weight(argument))?;
                self.step(argument, value, in_place + 1)?;
            }
            "if" | "then" | "else" => self.step(argument, value, in_place + 1)?,
            "dependentSchemas" | "dependencies" => {
                for branch in argument.as_object().into_iter().flat_map(|map| map.values()) {
                    // The older keyword has lists of names as well.
                    self.spend(branch.as_array().map_or(0, Vec::len))?;
                    self.step(branch, value, in_place + 1)?;
                }
            }
            _ => self.step_members(keyword, argument, value)?,
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
                let schemas = argument.as_object();
                self.spend(schemas.map_or(0, serde_json::Map::len))?;
                for (name, schema) in schemas.into_iter().flatten() {
                    if let Some(member) = members.get(name) {
                        self.step(schema, member, 0)?;
                    }
                }
            }
            ("patternProperties", Value::Object(members)) => {
                for (pattern, schema) in argument.as_object().into_iter().flatten() {
                    self.spend(1)?;
                    for (name, member) in members {
                        self.matching(pattern, name)?;
                        self.step(schema, member, 0)?;
                    }
                }
            }
            ("pattern", Value::String(text)) => {
                if let Some(pattern) = argument.as_str() {
                    // The error keeps a copy of both.
                    self.spend(weight(argument) + weight(value))?;
                    self.matching(pattern, text)?;
                }
            }
            ("additionalProperties" | "unevaluatedProperties", Value::Object(members)) => {
                for (name, member) in members {
                    self.spend(name.len() / BYTES_PER_STEP)?;
                    self.step(argument, member, 0)?;
                }
            }
            ("propertyNames", Value::Object(members)) => {
                for name in members.keys() {
                    self.spend(name.len() / BYTES_PER_STEP)?;
                    self.step(argument, &Value::String(name.clone()), 0)?;
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
            // A few are compared each with each, more of them by their hashes.
            ("uniqueItems", Value::Array(items)) => {
                self.spend(weight(value).saturating_mul(items.len().min(16)))?;
            }
            _ if APPLY_TO_NOTHING_ELSE.contains(&keyword) => {}
            // Everything else is held against the value as it stands: a list of names, a number, the length of a text.
            _ => self.spend(weight(argument) + if value.is_string() { weight(value) } else { 0 })?,
        }
        Ok(())
    }
}

/// Keywords that say nothing about a value of another type than they are for, and those that say nothing about any.
const APPLY_TO_NOTHING_ELSE: [&str; 23] = [
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "additionalItems",
    "additionalProperties",
    "contains",
    "default",
    "definitions",
    "deprecated",
    "description",
    "examples",
    "items",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "readOnly",
    "title",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::settings::accepted_settings;
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

    /// Where telling it in detail would cost more than it is worth.
    #[test]
    fn a_violation_of_very_much_is_told_in_short() {
        let items = json!({"items": {"type": "integer", "minimum": 0, "maximum": 9, "multipleOf": 1}});
        let schema = schema(&json!({"properties": {"a": items, "b": false}})).unwrap();
        let said = |count: usize| {
            let error = schema.check(&json!({"a": vec![10; count], "b": 1})).unwrap_err();
            (error.code, error.message)
        };
        let (code, message) = said(1000);
        assert_eq!(code, LoadCode::SettingsInvalid);
        assert!(message.starts_with("settings.a[0]: 10 is greater"), "{message}");
        let (code, message) = said(4096);
        assert_eq!(code, LoadCode::SettingsInvalid);
        assert!(message.contains("too large to tell where"), "{message}");
    }

    #[test]
    fn remote_and_unknown_references_are_refused_without_a_connection() {
        for bad in [
            json!({"$ref": "https://example.com/schema.json"}),
            json!({"properties": {"a": {"$ref": "file:///etc/passwd"}}}),
            json!({"$dynamicRef": "#a"}),
            json!({"properties": {"a": {"$id": "https://example.com/x"}}}),
            json!({"$ref": "#/$defs/missing"}),
            // As only the validator would find it.
            json!({"$ref": "#/%24defs/a", "$defs": {"a": {}}}),
            json!({"$ref": "#/allOf/00", "allOf": [{}]}),
            json!({"$ref": "#/allOf/+0", "allOf": [{}]}),
            json!({"type": "colour"}),
            json!(3),
        ] {
            assert!(schema(&bad).unwrap_err().starts_with("SchemaInvalid"), "{bad}");
        }
        assert!(Schema::compile("{").is_err());
        assert!(Schema::compile(&format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000))).is_err());
        assert!(Schema::compile(&json!({"title": "x".repeat(70_000)}).to_string()).is_err());
    }

    /// CPU time of this thread: what else a machine does is not counted.
    fn cpu() -> Duration {
        let said = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(said.split(' ').next().unwrap().parse().unwrap())
    }

    /// Refused, and within the time of policy spec section 14, five times that in a build without optimisation.
    fn refused(what: &str, schema: &Value, settings: &Value) {
        let started = cpu();
        let result = accepted_settings(&schema.to_string(), settings);
        let took = cpu().saturating_sub(started);
        println!("{what}: {took:?}");
        let error = result.expect_err(what);
        let codes = [LoadCode::SchemaInvalid, LoadCode::SettingsInvalid];
        assert!(codes.contains(&error.code), "{what}: {error}");
        let bound = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 100 });
        assert!(took < bound, "{what}: {took:?}");
    }

    /// What people write is far below the limits.
    #[test]
    fn ordinary_schemas_and_patterns_are_accepted() {
        let name = json!({"type": "string", "pattern": "^\\w[\\w.-]{0,61}\\w$", "maxLength": 63});
        let schema = json!({
            "type": "object",
            "properties": {
                "names": {"items": {"anyOf": [name, {"enum": (0..50).collect::<Vec<_>>()}]}},
                "at": {"patternProperties": {"^([01][0-9]|2[0-3]):[0-5][0-9]$": {"type": "integer"}}, "additionalProperties": false}
            }
        });
        let names: Vec<String> = (0..40).map(|i| format!("node-pool-{i}.example")).collect();
        accepted_settings(&schema.to_string(), &json!({"names": names, "at": {"18:00": 1}})).unwrap();
    }

    #[test]
    fn bombs_are_refused_in_bounded_time() {
        refused("a loop", &json!({"$ref": "#"}), &json!({}));
        for (what, place) in [("doubling", "#/$defs"), ("doubling, written in another way", "#/%24defs")] {
            let mut defs = serde_json::Map::new();
            for i in 0..30 {
                let next = json!({"$ref": format!("{place}/d{}", i + 1)});
                defs.insert(format!("d{i}"), json!({"allOf": [next, next]}));
            }
            defs.insert("d30".into(), json!({"type": "object"}));
            refused(what, &json!({"$ref": "#/$defs/d0", "$defs": defs}), &json!({}));
        }
        let text = format!("{}b", "a".repeat(60_000));
        refused("a slow pattern", &json!({"properties": {"a": {"pattern": "(a+)+$"}}}), &json!({"a": text}));
        let patterns = |pattern: &str, count| -> Value {
            let one = |i| json!({"pattern": format!("{i}{pattern}")});
            json!({"allOf": (0..count).map(one).collect::<Vec<_>>(), "type": "array"})
        };
        refused("a thousand large patterns", &patterns("\\w{60}", 1000), &json!({}));
        refused("a large pattern", &patterns("(\\w{99}){99}", 1), &json!({}));
        let bits: String = (0..60_000_u32)
            .map(|i| char::from(b'0' + (i.wrapping_mul(i) >> 3).to_le_bytes()[0] % 2))
            .collect();
        let states = json!({"properties": {"a": {"pattern": "^[01]*1[01]{900}[^01]"}}});
        refused("many states", &states, &json!({"a": bits}));
        let many: Vec<Value> = (0..4000).map(|i| json!({"a": i})).collect();
        let others: Vec<Value> = (0..4000).map(|i| json!({"b": i})).collect();
        let unique = json!({"properties": {"a": {"uniqueItems": true, "maxItems": 3}}});
        refused("unique", &unique, &json!({"a": many}));
        let one_of_all = json!({"properties": {"a": {"items": {"enum": others}}}});
        refused("each compared with all", &one_of_all, &json!({"a": many}));
        let branches: Vec<Value> = (0..2000).map(|i| json!({"required": [format!("r{i}")]})).collect();
        refused("no branch fits", &json!({"anyOf": branches}), &json!({"a": many}));
        refused("no branch fits a text", &json!({"oneOf": branches}), &json!({"a": text}));
        let members: serde_json::Map<String, Value> =
            (0..4000).map(|i| (format!("m{i}"), json!(i))).collect();
        // Each costs nothing to name and much to apply: eight million missing names, most of them told.
        let again_and_again = |keywords: &Value| json!({"allOf": vec![json!({"$ref": "#/$defs/d"}); 2000], "$defs": {"d": keywords}});
        let names: Vec<String> = (0..4000).map(|i| format!("n{i}")).collect();
        refused("names asked for", &again_and_again(&json!({"required": names})), &json!({}));
        let dependent = again_and_again(&json!({"dependentRequired": {"a": names}}));
        refused("names asked for by another", &dependent, &json!({"a": 1}));
        let dependent = again_and_again(&json!({"dependencies": {"a": names}}));
        refused("names asked for by another, of old", &dependent, &json!({"a": 1}));
        let known: serde_json::Map<String, Value> =
            names.iter().map(|name| (name.clone(), json!(true))).collect();
        refused("a copied schema", &again_and_again(&json!({"not": {"properties": known}})), &json!({}));
        let described =
            again_and_again(&json!({"properties": {"a": {"pattern": format!("^{}", "x".repeat(20_000))}}}));
        refused("a copied pattern", &described, &json!({"a": "y"}));
        let none = again_and_again(&json!({"properties": known, "required": ["a"]}));
        refused("names looked for", &none, &json!({}));
        let unique = again_and_again(&json!({"properties": {"a": {"uniqueItems": true}, "b": false}}));
        refused("compared again and again", &unique, &json!({"a": many, "b": 1}));
        let long = again_and_again(&json!({"properties": {"a": {"minLength": 1}, "b": false}}));
        refused("counted again and again", &long, &json!({"a": text, "b": 1}));
        let by_pattern = vec![json!({"patternProperties": {"^x": true}}); 40];
        refused(
            "unevaluated",
            &json!({"anyOf": by_pattern, "unevaluatedProperties": false}),
            &json!(members),
        );
    }
}
