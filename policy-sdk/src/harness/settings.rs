//! For policies that replace [`LeasePolicy::parse_settings`]: whether the own parser accepts what the schema accepts.

use serde_json::{Value, json};

use crate::lease::LeasePolicy;

/// Puts values of all kinds, at the edges of what schemas say, in every place of `sample`, and asserts that
/// [`LeasePolicy::parse_settings`] takes exactly those settings that [`crate::parse_settings`] takes.
///
/// # Panics
///
/// They differ; the message has the place, the value and both answers.
pub fn assert_parser_follows_schema<P: LeasePolicy>(sample: &Value) {
    let mut all = Vec::new();
    pointers(sample, "", &mut all);
    for pointer in &all {
        for value in values() {
            let mut changed = sample.clone();
            if let Some(place) = changed.pointer_mut(pointer) {
                value.clone_into(place);
            }
            let text = changed.to_string();
            let schema = crate::parse_settings::<P>(&text).map(drop);
            let own = P::parse_settings(&text).map(drop);
            // serde reads a list as the members of a struct in order; the host's schema check refuses it before.
            let list_as_struct = value.is_array() && schema.is_err();
            assert!(
                list_as_struct || schema.is_ok() == own.is_ok(),
                "{pointer} = {value}: {schema:?} but {own:?}"
            );
        }
    }
}

fn values() -> [Value; 25] {
    [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(100),
        json!(101),
        json!(256),
        json!(1.5),
        json!(5_000_000_000_u64),
        json!(""),
        json!("x"),
        json!("Keep"),
        json!("Monday"),
        json!("24:00"),
        json!("07:00"),
        json!("-1"),
        json!("1.5Gi"),
        json!("1.5Xi"),
        json!("x".repeat(254)),
        json!([]),
        json!(["x"]),
        json!([1]),
        json!({}),
        json!({"unknown": 1}),
    ]
}

/// Every place inside `value`, as JSON pointers.
fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| pointers(item, &format!("{at}/{index}"), all));
        }
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| pointers(member, &format!("{at}/{name}"), all));
        }
        _ => {}
    }
}
