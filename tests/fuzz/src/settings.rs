//! What a module says its settings look like, and settings: the first line is the schema, the rest are the settings.
//!
//! Both may be hostile: the schema is the module's, the settings are those of whoever edits a policy.

use kubeocean_engine::{LoadCode, accepted_settings};
use serde_json::{Value, json};

use crate::{Target, module::named, seeds::is_without_fractions};

pub(crate) const TARGET: Target = Target {
    name: "settings",
    run,
    prepare: || (),
    seeds,
    // Both may have 64 KiB, and what is dear is what is long.
    max_bytes: 128 << 10,
    max_seconds: 5,
    max_mebibytes: 1024,
    mutants: 2000,
};

fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (schema, settings) = text.split_once('\n').unwrap_or((text, "{}"));
    let Ok(settings) = serde_json::from_str::<Value>(settings) else { return };
    match accepted_settings(schema, &settings) {
        Ok(canonical) => {
            assert!(canonical.len() <= 64 << 10, "{} bytes", canonical.len());
            let again: Value = serde_json::from_str(&canonical).unwrap();
            if is_without_fractions(&settings) {
                assert_eq!(again, settings);
                assert_eq!(accepted_settings(schema, &again).unwrap(), canonical);
            }
        }
        Err(error) => named(&error, &[LoadCode::SchemaInvalid, LoadCode::SettingsInvalid]),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let pairs = [
        (json!({}), json!({})),
        (json!(true), json!({"a": [1, 2.5, null, "x"]})),
        (
            json!({"type": "object", "additionalProperties": false, "required": ["limits"], "properties": {
                "limits": {"type": "array", "maxItems": 4, "items": {"$ref": "#/$defs/limit"}}
            }, "$defs": {"limit": {"type": "object", "properties": {
                "resource": {"type": "string", "minLength": 1, "maxLength": 253},
                "percent": {"type": "integer", "minimum": 0, "maximum": 100}
            }}}}),
            json!({"limits": [{"resource": "cpu", "percent": 50}]}),
        ),
        (
            json!({"properties": {"start": {"pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}}, "patternProperties": {"^x-": false}}),
            json!({"start": "18:00", "x-y": 1}),
        ),
        (
            json!({"oneOf": [{"const": {"mode": "Keep"}}, {"if": {"required": ["mode"]}, "then": {"enum": [1]}, "else": {"not": {}}}]}),
            json!({"mode": "Keep"}),
        ),
        (json!({"$ref": "#"}), json!({})),
        (json!({"$ref": "https://example.com/schema.json"}), json!({})),
        (
            json!({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/b"}]}, "b": {"type": "object"}}}),
            json!({}),
        ),
        (
            json!({"unevaluatedProperties": false, "dependentSchemas": {"a": {"properties": {"b": true}}}, "propertyNames": {"maxLength": 3}}),
            json!({"a": 1, "b": 2}),
        ),
        (
            json!({"properties": {"a": {"uniqueItems": true, "contains": {"type": "string"}, "prefixItems": [{"multipleOf": 2}], "unevaluatedItems": {"format": "date-time"}}}}),
            json!({"a": [2, "2026-03-02T12:00:00Z"]}),
        ),
        (json!({"properties": {"a": {"pattern": "(a+)+$"}}}), json!({"a": "aaaaaaaaaaaaaaaaaaaaaaaab"})),
    ];
    let names: Vec<String> = (0..400).map(|i| format!("n{i}")).collect();
    let known: serde_json::Map<String, Value> =
        names.iter().map(|name| (name.clone(), json!(true))).collect();
    let bombs = [
        (again_and_again(200, &json!({"required": names})), json!({})),
        (again_and_again(200, &json!({"dependentRequired": {"a": names}})), json!({"a": 1})),
        (again_and_again(200, &json!({"not": {"properties": known}})), json!({})),
        (doubling(20, &json!({"required": names})), json!({})),
        (
            doubling(8, &json!({"dependentRequired": {"a": ["b", "c", "d"]}, "required": ["x"]})),
            json!({"a": 1}),
        ),
        (
            doubling(8, &json!({"properties": {"a": {"uniqueItems": true}}, "required": ["x"]})),
            json!({"a": [1, 2, 3]}),
        ),
    ];
    let pairs = pairs.iter().chain(&bombs);
    pairs.map(|(schema, settings)| format!("{schema}\n{settings}").into_bytes()).collect()
}

/// A schema that applies another one so many times.
fn again_and_again(times: usize, keywords: &Value) -> Value {
    json!({"allOf": vec![json!({"$ref": "#/$defs/d"}); times], "$defs": {"d": keywords}})
}

/// A schema that applies another one so many times doubled.
fn doubling(times: usize, keywords: &Value) -> Value {
    let mut defs = serde_json::Map::new();
    for i in 0..times {
        let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
        defs.insert(format!("d{i}"), json!({"allOf": [next, next]}));
    }
    defs.insert(format!("d{times}"), keywords.clone());
    json!({"$ref": "#/$defs/d0", "$defs": defs})
}
