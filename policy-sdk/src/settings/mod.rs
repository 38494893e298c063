//! Settings of an entry: parsing, and the schema they are checked against. In: the owner's JSON; out: the policy, or a
//! sentence with the path of the member that is wrong. Called by `create` and `describe`. Invariant: what the published
//! schema forbids never reaches the policy.

mod check;
mod pattern;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The JSON Schema (2020-12) of the settings of `P`, as `describe` publishes it.
pub fn schema<P: JsonSchema>() -> Value {
    schema_of::<P>().to_value()
}

fn schema_of<P: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<P>()
}

/// Parses settings and checks them against the schema of `P`: types, required and unknown members, bounds, lengths,
/// patterns, choices.
///
/// # Errors
///
/// A sentence such as `settings.percent: 150 is greater than the maximum of 100`.
pub fn parse<P: DeserializeOwned + JsonSchema>(settings: &str) -> Result<P, String> {
    let value: Value = serde_json::from_str(settings).map_err(|error| format!("settings: {error}"))?;
    check::check(schema_of::<P>().as_value(), &value)?;
    P::deserialize(&value).map_err(|error| {
        let text = error.to_string();
        // A type that parses its own members names the path itself.
        if text.starts_with("settings") { text } else { format!("settings: {text}") }
    })
}

/// Parses settings with what their types check, without the schema: small and fast, but an error names a place in the
/// text and no path.
///
/// # Errors
///
/// The parser's sentence.
pub fn parse_plain<P: DeserializeOwned>(settings: &str) -> Result<P, String> {
    serde_json::from_str(settings).map_err(|error| format!("settings: {error}"))
}

#[cfg(test)]
mod tests;
