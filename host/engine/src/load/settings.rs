//! Settings as the module gets them: compact JSON with sorted keys, within limits (PO-201, section 8).

use serde_json::Value;

use super::error::{LoadCode, LoadError};
use super::schema::Schema;

/// Bytes of settings, and of a schema.
pub(crate) const MAX_JSON_BYTES: usize = 64 << 10;
/// Nesting of settings, and of a schema.
pub(crate) const MAX_JSON_DEPTH: usize = 32;
/// Members of one array or object.
pub(crate) const MAX_JSON_MEMBERS: usize = 4096;

/// Settings as a module with this schema gets them (PO-201), if they fit it and the limits. The schema is the text that the
/// module's `describe` gives.
pub fn accepted_settings(schema: &str, settings: &Value) -> Result<String, LoadError> {
    let schema = Schema::compile(schema)?;
    let canonical = canonical(settings)?;
    schema.check(settings)?;
    Ok(canonical)
}

/// Equal settings give equal bytes, whatever order they were written in.
pub(crate) fn canonical(settings: &Value) -> Result<String, LoadError> {
    let refuse = |text: &str| LoadError::new(LoadCode::SettingsInvalid, &format!("settings: {text}"));
    if !settings.is_object() {
        return Err(refuse("must be an object"));
    }
    check_shape(settings).map_err(|text| refuse(&text))?;
    let mut out = String::new();
    write(settings, &mut out);
    if out.len() > MAX_JSON_BYTES {
        return Err(refuse(&format!("{} bytes, the limit is {MAX_JSON_BYTES}", out.len())));
    }
    Ok(out)
}

/// Refuses JSON that is nested too deeply or too wide. Iterative over siblings, recursive only within the limit.
pub(crate) fn check_shape(value: &Value) -> Result<(), String> {
    fn walk(value: &Value, depth: usize) -> Result<(), String> {
        if depth > MAX_JSON_DEPTH {
            return Err(format!("nested deeper than {MAX_JSON_DEPTH}"));
        }
        let members = match value {
            Value::Array(items) => items.len(),
            Value::Object(map) => map.len(),
            _ => return Ok(()),
        };
        if members > MAX_JSON_MEMBERS {
            return Err(format!("{members} members in one place, the limit is {MAX_JSON_MEMBERS}"));
        }
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| walk(item, depth + 1)),
            Value::Object(map) => map.values().try_for_each(|item| walk(item, depth + 1)),
            _ => Ok(()),
        }
    }
    walk(value, 1)
}

/// Own writer, because whether `serde_json` sorts keys depends on a feature any crate may switch on.
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (index, key) in keys.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(&Value::String(key.clone()), out);
                out.push(':');
                write(&map[key], out);
            }
            out.push('}');
        }
        // Display of a scalar is its compact JSON.
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equal_settings_give_equal_bytes() {
        let a: Value = serde_json::from_str(r#"{"b":[1, 2.5, null],"a":{"y":true,"x":"\n"}}"#).unwrap();
        assert_eq!(canonical(&a).unwrap(), r#"{"a":{"x":"\n","y":true},"b":[1,2.5,null]}"#);
        assert_eq!(canonical(&json!({})).unwrap(), "{}");
    }

    #[test]
    fn bombs_are_refused() {
        let mut deep = json!({});
        for _ in 0..40 {
            deep = json!({ "a": deep });
        }
        assert!(canonical(&deep).unwrap_err().message.contains("deeper"));
        assert!(canonical(&json!({"a": vec![0; 5000]})).unwrap_err().message.contains("members"));
        assert!(canonical(&json!({"a": "x".repeat(1 << 20)})).unwrap_err().message.contains("bytes"));
        assert_eq!(canonical(&json!([])).unwrap_err().code, LoadCode::SettingsInvalid);
    }
}
