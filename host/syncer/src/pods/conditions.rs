//! The conditions of a vpod as they stay in memory.
//!
//! Every running pod has the same five conditions, 600 bytes of JSON that differ in a few times. Phrases that API
//! servers and kubelets write are kept as one byte each: 125 bytes are left. Any list comes back as it was.

use kubeocean_runtime::packed::with_json_text;
use serde_json::Value;

/// Put for one byte each: their place in this list plus one. JSON text has no bytes below 0x20, so there are at most 31.
/// Members are in the order in which `serde_json` writes them; a phrase stands before those that it begins with.
const PHRASES: [&str; 25] = [
    r#"{"lastProbeTime":null,"lastTransitionTime":"20"#,
    r#"{"lastTransitionTime":"20"#,
    r#"","observedGeneration":1,"status":"True","type":""#,
    r#"","observedGeneration":"#,
    r#","status":"True","type":""#,
    r#","status":"False","type":""#,
    r#""status":"True","type":""#,
    r#""status":"False","type":""#,
    r#","message":""#,
    r#"","reason":""#,
    "containers with unready status: [",
    "ContainersNotReady",
    r#"PodReadyToStartContainers"},"#,
    r#"PodReadyToStartContainers"}"#,
    r#"ContainersReady"},"#,
    r#"ContainersReady"}"#,
    r#"Initialized"},"#,
    r#"Initialized"}"#,
    r#"PodScheduled"},"#,
    r#"PodScheduled"}"#,
    r#"WorkerPodCreated"}"#,
    r#"Ready"},"#,
    r#"Ready"}"#,
    "PodCompleted",
    "the worker cluster has the pod",
];

/// A list of conditions, short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedConditions(Box<str>);

impl PackedConditions {
    /// Keeps `status.conditions`; absent is an empty list.
    pub fn of(conditions: Option<&Value>) -> Self {
        conditions.map(|conditions| with_json_text(conditions, Self::pack)).unwrap_or_default()
    }

    fn pack(text: &str) -> Self {
        let mut packed = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            let begins = |phrase: &str| phrase.starts_with(next) && rest.starts_with(phrase);
            let phrase = PHRASES.iter().enumerate().find(|(_, phrase)| begins(phrase));
            let (sign, length) = match phrase {
                Some((number, phrase)) => (sign(number), phrase.len()),
                None => (next, next.len_utf8()),
            };
            packed.push(sign);
            rest = &rest[length..];
        }
        Self(packed.as_str().into())
    }

    /// The list. What is no list of conditions is an empty one.
    pub fn list(&self) -> Vec<Value> {
        let mut text = String::with_capacity(4 * self.0.len());
        for one in self.0.chars() {
            match (one as usize).checked_sub(1).and_then(|number| PHRASES.get(number)) {
                Some(phrase) => text.push_str(phrase),
                None => text.push(one),
            }
        }
        serde_json::from_str(&text).unwrap_or_default()
    }
}

fn sign(number: usize) -> char {
    u8::try_from(number + 1).map_or(char::REPLACEMENT_CHARACTER, char::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn condition(kind: &str, more: &Value) -> Value {
        let mut condition = json!({
            "type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-11-30T04:15:23Z",
        });
        let members = condition.as_object_mut().unwrap();
        members.extend(more.as_object().unwrap().clone());
        condition
    }

    #[test]
    fn what_a_running_pod_shows_is_short() {
        let kinds = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
        for (more, most) in [(json!({}), 125), (json!({"observedGeneration": 1}), 125)] {
            let conditions: Value = kinds.map(|kind| condition(kind, &more)).into_iter().collect();
            let packed = PackedConditions::of(Some(&conditions));
            assert!(packed.0.len() <= most, "{} bytes of {}", packed.0.len(), conditions.to_string().len());
            assert_eq!(Value::Array(packed.list()), conditions);
        }
    }

    #[test]
    fn signs_are_no_part_of_json() {
        assert!(PHRASES.len() < 0x20);
        let conditions = json!([condition("Gate", &json!({"message": "\u{1}\u{2}\n\u{1f}"}))]);
        assert_eq!(Value::Array(PackedConditions::of(Some(&conditions)).list()), conditions);
    }

    #[test]
    fn a_phrase_hides_no_longer_one() {
        for (at, phrase) in PHRASES.iter().enumerate() {
            assert!(PHRASES[..at].iter().all(|before| !phrase.starts_with(before)), "{phrase}");
        }
    }

    #[test]
    fn what_is_no_list_is_an_empty_one() {
        for other in [None, Some(json!(null)), Some(json!({"type": "Ready"}))] {
            assert_eq!(PackedConditions::of(other.as_ref()).list(), Vec::<Value>::new());
        }
    }

    proptest! {
        #[test]
        fn any_list_comes_back(parts in proptest::collection::vec((0_usize..PHRASES.len(), ".{0,8}"), 0..12)) {
            let text = parts.iter().map(|(phrase, more)| format!("{}{more}", PHRASES[*phrase]));
            let conditions: Value = text.map(|text| condition(&text, &json!({"message": text}))).collect();
            prop_assert_eq!(Value::Array(PackedConditions::of(Some(&conditions)).list()), conditions);
        }
    }
}
