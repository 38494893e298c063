use rstest::rstest;
use schemars::JsonSchema;
use serde::Deserialize;

use super::pattern::is_match;
use super::{parse, parse_plain, schema};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "only parsed")]
struct Settings {
    #[schemars(range(min = 1, max = 100))]
    percent: u8,
    #[schemars(length(min = 2, max = 4), regex(pattern = r"^[a-z]+$"))]
    name: Option<String>,
    #[serde(default)]
    #[schemars(length(max = 2))]
    steps: Vec<Step>,
    #[serde(default)]
    mode: Mode,
    #[schemars(range(min = 0.5, max = 1.5))]
    factor: Option<f64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only parsed")]
struct Step {
    at: u16,
    next: Option<Box<Step>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
enum Mode {
    /// Documented, so the schema is a list of constants
    #[default]
    Fast,
    /// The same
    Small,
}

#[rstest]
#[case::least(r#"{"percent": 1}"#)]
#[case::all(r#"{"percent": 100, "name": "ab", "steps": [{"at": 1}, {"at": 2, "next": {"at": 3}}], "mode": "Small", "factor": 1}"#)]
#[case::nulls(r#"{"percent": 1, "name": null, "factor": null}"#)]
fn accepted(#[case] settings: &str) {
    assert!(parse::<Settings>(settings).is_ok());
    assert!(parse_plain::<Settings>(settings).is_ok());
}

#[rstest]
#[case::maximum(r#"{"percent": 150}"#, "settings.percent: 150 is greater than the maximum of 100")]
#[case::beyond_the_type(r#"{"percent": 1e3}"#, "settings.percent: 1000.0 is not an integer")]
#[case::minimum(r#"{"percent": 0}"#, "settings.percent: 0 is less than the minimum of 1")]
#[case::required("{}", "settings.percent: is required")]
#[case::unknown(
    r#"{"percent": 1, "x": 1}"#,
    "settings.x: is unknown, known are factor, mode, name, percent, steps"
)]
#[case::wrong_type(r#"{"percent": "1"}"#, "settings.percent: \"1\" is not an integer")]
#[case::not_an_object("[]", "settings: [] is not an object")]
#[case::too_short(r#"{"percent": 1, "name": "a"}"#, "settings.name: \"a\" is shorter than 2 characters")]
#[case::too_long(
    r#"{"percent": 1, "name": "abcde"}"#,
    "settings.name: \"abcde\" is longer than 4 characters"
)]
#[case::pattern(r#"{"percent": 1, "name": "A1"}"#, "settings.name: \"A1\" does not match ^[a-z]+$")]
#[case::too_many(
    r#"{"percent": 1, "steps": [{"at": 1}, {"at": 1}, {"at": 1}]}"#,
    "settings.steps: has 3 items, at most 2 are allowed"
)]
#[case::nested(
    r#"{"percent": 1, "steps": [{"at": 1, "next": {"at": -2}}]}"#,
    "settings.steps[0].next.at: -2 is less than the minimum of 0"
)]
#[case::choice(
    r#"{"percent": 1, "mode": "Slow"}"#,
    "settings.mode: \"Slow\" is not one of \"Fast\", \"Small\""
)]
#[case::fraction(
    r#"{"percent": 1, "factor": 1.75}"#,
    "settings.factor: 1.75 is greater than the maximum of 1.5"
)]
fn refused(#[case] settings: &str, #[case] message: &str) {
    assert_eq!(parse::<Settings>(settings).err().as_deref(), Some(message));
}

#[test]
fn text_that_is_not_json_is_refused() {
    let message = parse::<Settings>("{").err().unwrap_or_default();
    assert!(message.starts_with("settings: EOF while parsing"), "{message}");
}

#[test]
fn a_schema_that_refers_to_itself_ends() {
    let deep = (0..100).fold("null".to_owned(), |inner, _| format!(r#"{{"at": 1, "next": {inner}}}"#));
    let message =
        parse::<Settings>(&format!(r#"{{"percent": 1, "steps": [{deep}]}}"#)).err().unwrap_or_default();
    assert!(message.ends_with("is nested too deeply") || message.contains("recursion limit"), "{message}");
}

#[test]
fn the_schema_names_its_dialect() {
    assert_eq!(schema::<Settings>()["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[rstest]
#[case("abc", "xabcx", true)]
#[case("^abc$", "xabc", false)]
#[case("^a.c$", "a\nc", false)]
#[case("^[a-c0-9_]{2,3}$", "b_9", true)]
#[case("^[a-c]{2,3}$", "abca", false)]
#[case("^[^a-c]+$", "xyz", true)]
#[case("^[^a-c]+$", "xaz", false)]
#[case("^(ab|c)*d?$", "ababccd", true)]
#[case("^(?:ab|c)+$", "abx", false)]
#[case(r"^\d{4}-\d{2}$", "2026-03", true)]
#[case(r"^\w+\.\S+$", "a_1.b", true)]
#[case(r"^[\w.-]+$", "a.b-c", true)]
#[case("^a{2}$", "aa", true)]
#[case("^a{2,}$", "a", false)]
#[case("^(a*)*$", "aaab", false)]
#[case("^$", "", true)]
#[case("x|y$", "xz", true)]
fn patterns(#[case] pattern: &str, #[case] text: &str, #[case] expected: bool) {
    assert_eq!(is_match(pattern, text), expected);
}

#[rstest]
fn what_is_not_understood_is_left_to_the_host(
    #[values("(?i)a", "a(?=b)", r"\pL", r"(a)\1", "[[:alpha:]]", "a{99999}", "(a", "a)", "a*?")]
    pattern: &str,
) {
    assert!(is_match(pattern, "!"));
}

#[test]
fn nested_repeats_take_polynomial_time() {
    assert!(!is_match("^((a+)+)+$", &format!("{}b", "a".repeat(400))));
}
