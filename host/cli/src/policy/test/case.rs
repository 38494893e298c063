//! The form of a file with cases (policy spec section 11).
//!
//! Pure. Unknown members are refused: a misspelt expectation would expect nothing.

use std::collections::BTreeMap;

use kubeocean_api::policy::{EntryLimits, ModuleRef, PolicyEntry};
use kubeocean_engine::{EntryVerdict, Reclaim, Stage, Verdict};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::{
    fixture::{NodeForm, Written},
    pod::PodForm,
};

/// A file.
#[derive(Debug)]
pub(super) struct Cases {
    pub(super) tested: Tested,
    pub(super) time_zone: Option<String>,
    pub(super) list: Vec<Case>,
}

/// What is tested.
#[derive(Debug)]
pub(super) enum Tested {
    /// One module, as the only entry of a policy.
    Module { module: String, entry: Box<PolicyEntry> },
    /// The policies of a file.
    Policy { policy: String, modules: BTreeMap<String, String> },
}

#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) at: String,
    pub(super) node: NodeForm,
    pub(super) pod: Option<PodForm>,
    pub(super) stage: Stage,
    pub(super) settings: Option<Value>,
    /// Decided before, in order, by the same host: what `onError: LastKnown` falls back to.
    pub(super) earlier: Vec<Earlier>,
    pub(super) expect: Expect,
    pub(super) line: u64,
}

/// A decision before the one that is looked at.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Earlier {
    pub(super) at: String,
    pub(super) node: NodeForm,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Expect {
    // Answer of the module, where a file tests one; written out because unknown members are not refused otherwise.
    pub(super) verdict: Option<EntryVerdict>,
    pub(super) caps: Option<BTreeMap<String, Option<Written>>>,
    #[serde(deserialize_with = "given")]
    pub(super) valid_until: Option<Value>,
    #[serde(deserialize_with = "given")]
    pub(super) reason: Option<Value>,
    pub(super) reclaim: Option<Reclaim>,
    pub(super) error: Option<String>,
    pub(super) entries: BTreeMap<String, ExpectAnswer>,
    pub(super) decision: Option<ExpectDecision>,
    pub(super) place: Option<ExpectPlace>,
}

/// Answer of one entry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ExpectAnswer {
    pub(super) verdict: Option<EntryVerdict>,
    /// `null`: no cap.
    pub(super) caps: Option<BTreeMap<String, Option<Written>>>,
    /// `null`: for ever.
    #[serde(deserialize_with = "given")]
    pub(super) valid_until: Option<Value>,
    /// Code, or `Code: message`.
    #[serde(deserialize_with = "given")]
    pub(super) reason: Option<Value>,
    pub(super) reclaim: Option<Reclaim>,
    /// Part of why there is no answer.
    pub(super) error: Option<String>,
}

/// What all entries together decide.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ExpectDecision {
    pub(super) verdict: Option<Verdict>,
    pub(super) withheld: Option<bool>,
    pub(super) amounts: BTreeMap<String, Written>,
    pub(super) limited_by: BTreeMap<String, String>,
    pub(super) reclaim: Option<Reclaim>,
    #[serde(deserialize_with = "given")]
    pub(super) valid_until: Option<Value>,
    #[serde(deserialize_with = "given")]
    pub(super) reason: Option<Value>,
    /// `null`: no policy governs the node.
    #[serde(deserialize_with = "given")]
    pub(super) governed_by: Option<Value>,
    pub(super) may_create: Option<bool>,
}

/// What all entries together say about the case's pod on its node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ExpectPlace {
    pub(super) fit: Option<FitWord>,
    /// Of `later`.
    pub(super) seconds: Option<u32>,
    pub(super) score: Option<u8>,
    #[serde(deserialize_with = "given")]
    pub(super) reason: Option<Value>,
    /// Entry that says so.
    pub(super) entry: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FitWord {
    Accept,
    Later,
    Reject,
}

/// `null` is an expectation too.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Expect {
    /// What is expected of the module of a file that tests one.
    pub(super) fn answer(&self) -> ExpectAnswer {
        ExpectAnswer {
            verdict: self.verdict,
            caps: self.caps.clone(),
            valid_until: self.valid_until.clone(),
            reason: self.reason.clone(),
            reclaim: self.reclaim,
            error: self.error.clone(),
        }
    }

    /// Somebody is expected to give no answer.
    pub(super) fn errors(&self) -> bool {
        let place = self.place.as_ref().and_then(|place| place.reason.as_ref());
        let failed = place.and_then(Value::as_str).is_some_and(|reason| reason.starts_with("ModuleFailed"));
        failed || self.error.is_some() || self.entries.values().any(|entry| entry.error.is_some())
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileForm {
    module: Option<String>,
    settings: Option<Value>,
    enforcement: Option<String>,
    on_error: Option<String>,
    limits: Option<EntryLimits>,
    policy: Option<String>,
    #[serde(default)]
    modules: BTreeMap<String, String>,
    time_zone: Option<String>,
    cases: Vec<CaseForm>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CaseForm {
    name: String,
    at: String,
    #[serde(default)]
    node: NodeForm,
    pod: Option<PodForm>,
    stage: Option<Stage>,
    settings: Option<Value>,
    #[serde(default)]
    earlier: Vec<Earlier>,
    expect: Spanned<Expect>,
}

impl Cases {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let form: FileForm = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        check_words("enforcement", form.enforcement.as_deref(), &["Enforce", "Audit"])?;
        check_words("onError", form.on_error.as_deref(), &["LastKnown", "Deny", "Ignore"])?;
        let options = form.settings.is_some()
            || form.enforcement.is_some()
            || form.on_error.is_some()
            || form.limits.is_some();
        let tested = match (form.module, form.policy) {
            (Some(module), None) if form.modules.is_empty() => {
                let entry = PolicyEntry {
                    name: String::new(),
                    module: ModuleRef::default(),
                    settings: form.settings,
                    decisions: Vec::new(),
                    enforcement: form.enforcement,
                    on_error: form.on_error,
                    weight: None,
                    limits: form.limits,
                };
                Tested::Module { module, entry: Box::new(entry) }
            }
            (None, Some(policy)) if !options => Tested::Policy { policy, modules: form.modules },
            (Some(_), None) => return Err("modules: belongs to a file with policy".to_owned()),
            (None, Some(_)) => {
                return Err(
                    "settings, enforcement, onError and limits are those of the policy's entries".to_owned()
                );
            }
            (None, None) | (Some(_), Some(_)) => {
                return Err("name what is tested: either module, or policy".to_owned());
            }
        };
        if form.cases.is_empty() {
            return Err("cases: there are none".to_owned());
        }
        let cases = form.cases.into_iter().map(|case| Case {
            line: case.expect.referenced.line(),
            name: case.name,
            at: case.at,
            node: case.node,
            pod: case.pod,
            stage: case.stage.unwrap_or(Stage::Admit),
            settings: case.settings,
            earlier: case.earlier,
            expect: case.expect.value,
        });
        Ok(Self { tested, time_zone: form.time_zone, list: cases.collect() })
    }
}

fn check_words(member: &str, word: Option<&str>, known: &[&str]) -> Result<(), String> {
    match word {
        Some(word) if !known.contains(&word) => {
            Err(format!("{member}: {word:?} is none of {}", known.join(", ")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn the_example_of_the_specification_reads() {
        let text = "module: ./night_gpu.wasm\nsettings: {from: 22}\ntimeZone: Asia/Shanghai\ncases:\n\
                    - name: half-at-night\n  at: \"2026-03-07T23:30\"\n  node: {labels: {pool: online}, allocatable: {nvidia.com/gpu: 8}}\n\
                    \x20 expect: {verdict: offer, caps: {nvidia.com/gpu: 3, cpu: null}, validUntil: null, reclaim: {graceful: 600}}\n";
        let cases = Cases::parse(text).unwrap();
        let case = &cases.list[0];
        assert_eq!((case.line, case.expect.verdict), (8, Some(EntryVerdict::Offer)));
        assert_eq!(case.expect.valid_until, Some(Value::Null));
        assert_eq!(case.expect.reason, None);
        assert_eq!(case.expect.reclaim, Some(Reclaim::Graceful(600)));
        let caps = case.expect.caps.as_ref().unwrap();
        assert_eq!((&caps["nvidia.com/gpu"], &caps["cpu"]), (&Some(Written("3".into())), &None));
    }

    const CASE: &str = "{name: n, at: '2026-03-07', expect: {}}";

    #[rstest]
    #[case("cases: [CASE]", "either module, or policy")]
    #[case("{module: m, policy: p, cases: [CASE]}", "either module, or policy")]
    #[case("{policy: p, onError: Deny, cases: [CASE]}", "of the policy's entries")]
    #[case("{module: m, onError: deny, cases: [CASE]}", "onError: \"deny\" is none of LastKnown")]
    #[case("{module: m, modules: {a: b}, cases: [CASE]}", "belongs to a file with policy")]
    #[case("{module: m, cases: []}", "there are none")]
    #[case("{module: m, cases: [{name: n, at: x, expect: {verdct: offer}}]}", "verdct")]
    #[case("{module: m, cases: [{name: n, at: x, node: {lables: {}}, expect: {}}]}", "lables")]
    fn a_file_that_says_something_else_is_refused_by_member(#[case] text: &str, #[case] expected: &str) {
        let why = Cases::parse(&text.replace("CASE", CASE)).unwrap_err();
        assert!(why.contains(expected), "{why}");
    }
}
