//! The part of JSON Schema that settings types produce. In: schema and value; out: the first violation with its path.
//! Called once per `create`. Invariant: keywords it does not know never refuse anything, since the host checks the
//! whole schema too (PO-702).

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::pattern;

/// References followed inside one value, against schemas that refer to themselves.
const MAX_DEPTH: usize = 64;

/// Checks `value` against `schema`.
pub(super) fn check(schema: &Value, value: &Value) -> Result<(), String> {
    let checker = Checker { root: schema };
    checker.value(schema, value, &Path::Root, 0).map_err(|fault| fault.text)
}

/// Where in the settings the checker is, without building a text for every member.
enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn write(&self, out: &mut String) {
        match self {
            Self::Root => out.push_str("settings"),
            Self::Member(parent, name) => {
                parent.write(out);
                out.push('.');
                out.push_str(name);
            }
            Self::Item(parent, index) => {
                parent.write(out);
                let _ = write!(out, "[{index}]");
            }
        }
    }

    fn depth(&self) -> usize {
        match self {
            Self::Root => 0,
            Self::Member(parent, _) | Self::Item(parent, _) => parent.depth() + 1,
        }
    }

    fn fault(&self, problem: &str) -> Fault {
        let mut text = String::new();
        self.write(&mut text);
        text.push_str(": ");
        text.push_str(problem);
        Fault { depth: self.depth(), text }
    }
}

/// A violation; of several alternatives the one that got deepest is reported.
struct Fault {
    depth: usize,
    text: String,
}

struct Checker<'a> {
    root: &'a Value,
}

impl Checker<'_> {
    fn value(&self, schema: &Value, value: &Value, path: &Path<'_>, depth: usize) -> Result<(), Fault> {
        let schema = match schema {
            Value::Object(schema) => schema,
            Value::Bool(false) => return Err(path.fault("is not allowed")),
            _ => return Ok(()),
        };
        if depth > MAX_DEPTH {
            return Err(path.fault("is nested too deeply"));
        }
        if let Some(Value::String(reference)) = schema.get("$ref") {
            let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            if let Some(target) = target {
                self.value(target, value, path, depth + 1)?;
            }
        }
        types(schema, value, path)?;
        choices(schema, value, path)?;
        match value {
            Value::Number(_) => bounds(schema, value, path)?,
            Value::String(text) => texts(schema, text, path)?,
            Value::Array(items) => self.items(schema, items, path, depth)?,
            Value::Object(members) => self.members(schema, members, path, depth)?,
            Value::Null | Value::Bool(_) => {}
        }
        self.combinations(schema, value, path, depth)
    }

    fn items(
        &self,
        schema: &Map<String, Value>,
        items: &[Value],
        path: &Path<'_>,
        depth: usize,
    ) -> Result<(), Fault> {
        let count = items.len() as u64;
        if let Some(least) = limit(schema, "minItems").filter(|least| count < *least) {
            return Err(path.fault(&format!("has {count} items, at least {least} are needed")));
        }
        if let Some(most) = limit(schema, "maxItems").filter(|most| count > *most) {
            return Err(path.fault(&format!("has {count} items, at most {most} are allowed")));
        }
        if schema.get("uniqueItems") == Some(&Value::Bool(true))
            && items.iter().enumerate().any(|(index, item)| items[..index].contains(item))
        {
            return Err(path.fault("holds the same item twice"));
        }
        if let Some(each) = schema.get("items") {
            for (index, item) in items.iter().enumerate() {
                self.value(each, item, &Path::Item(path, index), depth + 1)?;
            }
        }
        Ok(())
    }

    fn members(
        &self,
        schema: &Map<String, Value>,
        members: &Map<String, Value>,
        path: &Path<'_>,
        depth: usize,
    ) -> Result<(), Fault> {
        let known = schema.get("properties").and_then(Value::as_object);
        for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            if let Some(name) = name.as_str().filter(|name| !members.contains_key(*name)) {
                return Err(Path::Member(path, name).fault("is required"));
            }
        }
        let others = schema.get("additionalProperties");
        for (name, member) in members {
            let at = Path::Member(path, name);
            match known.and_then(|known| known.get(name)) {
                Some(schema) => self.value(schema, member, &at, depth + 1)?,
                None if others == Some(&Value::Bool(false)) => return Err(unknown(&at, known)),
                None => {
                    if let Some(schema) = others {
                        self.value(schema, member, &at, depth + 1)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn combinations(
        &self,
        schema: &Map<String, Value>,
        value: &Value,
        path: &Path<'_>,
        depth: usize,
    ) -> Result<(), Fault> {
        let list = |keyword| schema.get(keyword).and_then(Value::as_array);
        for part in list("allOf").into_iter().flatten() {
            self.value(part, value, path, depth + 1)?;
        }
        for alternatives in [list("anyOf"), list("oneOf")].into_iter().flatten() {
            let mut deepest: Option<Fault> = None;
            let mut fits = false;
            for alternative in alternatives {
                match self.value(alternative, value, path, depth + 1) {
                    Ok(()) => {
                        fits = true;
                        break;
                    }
                    Err(fault) if deepest.as_ref().is_none_or(|known| fault.depth > known.depth) => {
                        deepest = Some(fault);
                    }
                    Err(_) => {}
                }
            }
            if let Some(fault) = deepest.filter(|_| !fits) {
                return Err(alternatives_fault(alternatives, value, path).unwrap_or(fault));
            }
        }
        Ok(())
    }
}

/// A choice of constants reads better as a list than as the first alternative's complaint; the same for a choice of
/// required members.
fn alternatives_fault(alternatives: &[Value], value: &Value, path: &Path<'_>) -> Option<Fault> {
    let constants: Option<Vec<&Value>> = alternatives.iter().map(|one| one.get("const")).collect();
    if let Some(constants) = constants {
        return Some(not_one_of(value, &constants, path));
    }
    let required: Option<Vec<&str>> =
        alternatives.iter().map(|one| one.get("required")?.get(0)?.as_str()).collect();
    required.map(|names| path.fault(&format!("needs one of {}", names.join(", "))))
}

fn unknown(at: &Path<'_>, known: Option<&Map<String, Value>>) -> Fault {
    let names: Vec<&str> = known.into_iter().flat_map(Map::keys).map(String::as_str).collect();
    if names.is_empty() {
        return at.fault("is unknown, no members are allowed");
    }
    at.fault(&format!("is unknown, known are {}", names.join(", ")))
}

fn limit(schema: &Map<String, Value>, keyword: &str) -> Option<u64> {
    schema.get(keyword).and_then(Value::as_u64)
}

/// Whether a JSON value is of the schema type `name`. An integer may be written with a fraction of zero.
fn is_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => true,
    }
}

fn types(schema: &Map<String, Value>, value: &Value, path: &Path<'_>) -> Result<(), Fault> {
    let names: Vec<&str> = match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    if names.iter().any(|name| is_type(value, name)) {
        return Ok(());
    }
    let article =
        if names.first().is_some_and(|name| name.starts_with(['a', 'i', 'o'])) { "an" } else { "a" };
    Err(path.fault(&format!("{value} is not {article} {}", names.join(" or "))))
}

fn not_one_of(value: &Value, known: &[&Value], path: &Path<'_>) -> Fault {
    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
    path.fault(&format!("{value} is not one of {}", known.join(", ")))
}

fn choices(schema: &Map<String, Value>, value: &Value, path: &Path<'_>) -> Result<(), Fault> {
    if let Some(only) = schema.get("const").filter(|only| *only != value) {
        return Err(path.fault(&format!("{value} is not {only}")));
    }
    match schema.get("enum").and_then(Value::as_array) {
        Some(known) if !known.contains(value) => {
            Err(not_one_of(value, &known.iter().collect::<Vec<_>>(), path))
        }
        _ => Ok(()),
    }
}

/// `a` compared with `b`, exactly for integers.
fn compare(a: &Value, b: &Value) -> Option<std::cmp::Ordering> {
    let integer = |value: &Value| value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    match (integer(a), integer(b)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

fn bounds(schema: &Map<String, Value>, value: &Value, path: &Path<'_>) -> Result<(), Fault> {
    let against = |keyword| schema.get(keyword).and_then(|bound| Some((bound, compare(value, bound)?)));
    if let Some((bound, order)) = against("maximum")
        && order.is_gt()
    {
        return Err(path.fault(&format!("{value} is greater than the maximum of {bound}")));
    }
    if let Some((bound, order)) = against("minimum")
        && order.is_lt()
    {
        return Err(path.fault(&format!("{value} is less than the minimum of {bound}")));
    }
    if let Some((bound, order)) = against("exclusiveMaximum")
        && order.is_ge()
    {
        return Err(path.fault(&format!("{value} is not less than {bound}")));
    }
    if let Some((bound, order)) = against("exclusiveMinimum")
        && order.is_le()
    {
        return Err(path.fault(&format!("{value} is not greater than {bound}")));
    }
    Ok(())
}

fn texts(schema: &Map<String, Value>, text: &str, path: &Path<'_>) -> Result<(), Fault> {
    let length = || text.chars().count() as u64;
    if let Some(least) = limit(schema, "minLength").filter(|least| length() < *least) {
        return Err(path.fault(&format!("{text:?} is shorter than {least} characters")));
    }
    if let Some(most) = limit(schema, "maxLength").filter(|most| length() > *most) {
        return Err(path.fault(&format!("{text:?} is longer than {most} characters")));
    }
    match schema.get("pattern").and_then(Value::as_str) {
        Some(pattern) if !pattern::is_match(pattern, text) => {
            Err(path.fault(&format!("{text:?} does not match {pattern}")))
        }
        _ => Ok(()),
    }
}
