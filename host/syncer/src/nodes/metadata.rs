//! Labels, annotations and taints of a vnode between three authors: the worker node, us, and users (BU section 7).
//!
//! In: what was written before (`expected-metadata`), what is wanted now, what is there. Out: what to remove, and the
//! taint list. Invariant: a key that we never wrote is never touched.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kubeocean_api::keys::{self, annotation, manager, taint};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::view::{Taint, Texts};
use kubeocean_runtime::packed::PackedTexts;

/// Prefixes of worker keys that say nothing in the computing cluster or confuse its controllers (BU section 6).
const DENIED_PREFIXES: [&str; 7] = [
    annotation::LAST_APPLIED,
    "node.alpha.kubernetes.io/",
    "csi.volume.kubernetes.io/",
    "volumes.kubernetes.io/controller-managed-attach-detach",
    "kubeadm.alpha.kubernetes.io/",
    "projectcalico.org/",
    "flannel.alpha.coreos.com/",
];

/// Annotations of ours whose value changes on its own; they are no part of `expected-metadata`.
const VOLATILE: [&str; 5] = [
    annotation::LAST_SYNC_TIME,
    annotation::EXPECTED_METADATA,
    annotation::DELETION_TAINT_TIME,
    annotation::RECLAIM_SINCE,
    annotation::POLICY_DECISION,
];

/// Annotations that are never a user's: present and not wanted means removed (BU-702).
const OURS: [&str; 5] = [
    annotation::DELETION_TAINT_TIME,
    annotation::RECLAIM,
    annotation::RECLAIM_SINCE,
    annotation::POLICY_DECISION,
    annotation::PHYSICAL_NODE_INNER_IP,
];

/// Taint keys that are never a user's.
const OUR_TAINTS: [&str; 4] = [
    taint::OUT_OF_TIME_WINDOWS,
    taint::VNODE_DELETING,
    taint::WORKER_UNREACHABLE,
    taint::PHYSICAL_NODE_UNSCHEDULABLE,
];

/// Which worker keys are not mirrored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList {
    /// Prefixes of `--vnode-metadata-deny`.
    extra: Vec<String>,
}

impl DenyList {
    /// The default list extended by the user's prefixes.
    pub fn new(extra: impl IntoIterator<Item = String>) -> Self {
        Self { extra: extra.into_iter().filter(|prefix| !prefix.is_empty()).collect() }
    }

    /// Whether a label or annotation key stays in the worker cluster.
    pub fn denies(&self, key: &str) -> bool {
        keys::is_internal(key)
            || DENIED_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
            || self.extra.iter().any(|prefix| key.starts_with(prefix.as_str()))
    }

    /// The mirrored part of labels or annotations.
    pub fn mirrored<'a>(&self, keys: impl Iterator<Item = (&'a str, &'a str)>) -> Texts {
        keys.filter(|(key, _)| !self.denies(key))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }
}

/// Content of annotation `expected-metadata`: what we wrote, for the next merge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExpectedMetadata {
    /// Labels.
    #[serde(skip_serializing_if = "Texts::is_empty")]
    pub labels: Texts,
    /// Annotations without the volatile ones.
    #[serde(skip_serializing_if = "Texts::is_empty")]
    pub annotations: Texts,
    /// Taints without their times.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
    /// Types of the mirrored conditions (added; the original ignores it).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
}

impl ExpectedMetadata {
    /// What is remembered of what is written.
    pub fn of(labels: &Texts, annotations: &Texts, taints: &[Taint], conditions: Vec<String>) -> Self {
        let mut annotations = annotations.clone();
        annotations.retain(|key, _| !VOLATILE.contains(&key.as_str()));
        let mut taints: Vec<Taint> = taints.iter().map(Taint::timeless).collect();
        taints.sort();
        Self { labels: labels.clone(), annotations, taints, conditions }
    }

    /// The same and these taints, if that is more.
    pub fn with_taints(&self, taints: &[Taint]) -> Option<Self> {
        let known = |taint: &&Taint| self.taints.iter().any(|other| other.is_same_as(taint));
        let more: Vec<Taint> = taints.iter().filter(|taint| !known(taint)).cloned().collect();
        (!more.is_empty()).then(|| Self { taints: [self.taints.clone(), more].concat(), ..self.clone() })
    }

    /// The annotation's value.
    pub fn encode(&self) -> String {
        // Maps of strings always serialise.
        STANDARD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads the annotation. Absent or undecodable means nothing is known.
    pub fn decode(value: Option<&str>) -> Self {
        Self::readable(value).unwrap_or_default()
    }

    /// Reads the annotation, if it is there and can be decoded.
    pub fn readable(value: Option<&str>) -> Option<Self> {
        value.and_then(Self::read)
    }

    /// Whether somebody broke the annotation: [`Self::owned`] stands in for it then.
    pub fn is_broken(value: &str) -> bool {
        Self::read(value).is_none()
    }

    fn read(value: &str) -> Option<Self> {
        serde_json::from_slice(&STANDARD.decode(value.trim()).ok()?).ok()
    }

    /// What our field manager owns of a node, complete as the API server answers it: keys without values. Taints are one
    /// list with one owner and tell nothing.
    pub fn owned(node: &Value) -> Self {
        let mut owned = Self::default();
        let entries = node.pointer("/metadata/managedFields").and_then(Value::as_array);
        let ours = entries.into_iter().flatten().filter(|entry| entry["manager"] == manager::SYNCER);
        for fields in ours.map(|entry| &entry["fieldsV1"]["f:metadata"]) {
            let keys = |of: &str| {
                let names = fields[of].as_object().into_iter().flatten().map(|(name, _)| name);
                names.filter_map(|name| Some((name.strip_prefix("f:")?.to_owned(), String::new())))
            };
            owned.labels.extend(keys("f:labels"));
            owned.annotations.extend(keys("f:annotations"));
        }
        owned
    }
}

/// Keys that are there, were written before and are wanted no more.
pub fn stale_keys(before: &Texts, wanted: &Texts, there: &PackedTexts) -> Vec<String> {
    there
        .keys()
        .filter(|key| !wanted.contains_key(*key) && (before.contains_key(*key) || OURS.contains(key)))
        .filter(|key| *key != annotation::EXPECTED_METADATA && *key != annotation::LAST_SYNC_TIME)
        .map(str::to_owned)
        .collect()
}

/// The taints a vnode gets: the wanted ones in their order, then those of users. The identity is (key, effect), so a
/// taint of the same key with another effect survives.
pub fn merge_taints(before: &[Taint], wanted: &[Taint], there: &[Taint]) -> Vec<Taint> {
    let mut merged = wanted.to_vec();
    for taint in there {
        let known = |list: &[Taint]| list.iter().any(|other| other.is_same_as(taint));
        if !known(wanted) && !known(before) && !OUR_TAINTS.contains(&taint.key.as_str()) {
            merged.push(taint.clone());
        }
    }
    merged
}

/// Same taints in any order, times aside.
pub fn same_taints(a: &[Taint], b: &[Taint]) -> bool {
    let timeless = |list: &[Taint]| {
        let mut list: Vec<Taint> = list.iter().map(Taint::timeless).collect();
        list.sort();
        list
    };
    timeless(a) == timeless(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn texts(keys: &[&str]) -> Texts {
        keys.iter().map(|key| ((*key).to_owned(), "v".to_owned())).collect()
    }

    #[rstest]
    #[case("kubernetes.io/arch", false)]
    #[case("kubeocean.io/role", false)]
    #[case("kubeocean.io/node-type", false)]
    #[case("kubeocean.io/policy-applied", true)]
    #[case("kubectl.kubernetes.io/last-applied-configuration", true)]
    #[case("projectcalico.org/IPv4Address", true)]
    #[case("csi.volume.kubernetes.io/nodeid", true)]
    #[case("example.com/secret", true)]
    #[case("example.org/secret", false)]
    fn which_keys_are_mirrored(#[case] key: &str, #[case] denied: bool) {
        assert_eq!(DenyList::new(["example.com/".to_owned(), String::new()]).denies(key), denied);
    }

    #[test]
    fn users_keys_stay_and_ours_go() {
        let stale = stale_keys(
            &texts(&["was-ours", "still-ours"]),
            &texts(&["still-ours", "new"]),
            &texts(&["was-ours", "still-ours", "users", annotation::RECLAIM_SINCE]).into(),
        );
        assert_eq!(stale, [annotation::RECLAIM_SINCE, "was-ours"]);
    }

    #[test]
    fn a_users_taint_of_the_same_key_with_another_effect_stays() {
        let ours = Taint::new("k", None, "NoSchedule");
        let users = Taint::new("k", None, "NoExecute");
        let gone = Taint::new("gone", None, "NoSchedule");
        let merged = merge_taints(
            std::slice::from_ref(&gone),
            std::slice::from_ref(&ours),
            &[users.clone(), gone.clone()],
        );
        assert_eq!(merged, [ours, users]);
    }

    #[test]
    fn the_deletion_taint_is_never_a_users() {
        let deleting = Taint::new(taint::VNODE_DELETING, Some("true"), "NoSchedule");
        assert!(merge_taints(&[], &[], &[deleting]).is_empty());
    }

    #[test]
    fn expected_metadata_survives_a_round_trip_without_what_changes_on_its_own() {
        let mut annotations = texts(&["a"]);
        annotations.insert(annotation::LAST_SYNC_TIME.into(), "2026-01-01T00:00:00Z".into());
        let taints = [Taint {
            time_added: Some("2026-01-01T00:00:00Z".into()),
            ..Taint::new("k", Some("x"), "NoExecute")
        }];
        let expected = ExpectedMetadata::of(&texts(&["l"]), &annotations, &taints, vec!["Ready".into()]);
        assert_eq!(expected.annotations, texts(&["a"]));
        assert_eq!(expected.taints, [Taint::new("k", Some("x"), "NoExecute")]);
        assert_eq!(ExpectedMetadata::decode(Some(&expected.encode())), expected);
        assert_eq!(ExpectedMetadata::decode(Some("not base64!")), ExpectedMetadata::default());
    }

    #[test]
    fn what_we_own_stands_in_for_a_broken_record() {
        assert!(ExpectedMetadata::is_broken("not base64!"));
        assert!(ExpectedMetadata::is_broken("bm8ganNvbg=="));
        assert!(!ExpectedMetadata::is_broken(&ExpectedMetadata::default().encode()));
        let entry = |manager: &str, key: &str| {
            serde_json::json!({"manager": manager, "fieldsV1": {"f:metadata": {
                "f:labels": {".": {}, (format!("f:{key}")): {}}, "f:annotations": {(format!("f:note-{key}")): {}},
            }}})
        };
        let node = serde_json::json!({"metadata": {"managedFields": [
            entry("kubeocean-syncer", "created"), entry("kubeocean-syncer", "applied"), entry("kubectl", "users"),
            {"manager": "kubeocean-syncer", "subresource": "status", "fieldsV1": {"f:status": {}}},
        ]}});
        let owned = ExpectedMetadata::owned(&node);
        assert_eq!(owned.labels.keys().collect::<Vec<_>>(), ["applied", "created"]);
        assert_eq!(owned.annotations.keys().collect::<Vec<_>>(), ["note-applied", "note-created"]);
    }

    proptest! {
        /// Merging again changes nothing, whatever users add.
        #[test]
        fn merging_taints_is_idempotent(wanted in 0_usize..4, users in proptest::collection::vec(0_usize..6, 0..5)) {
            let pick = |n: usize| Taint::new(&format!("k{}", n / 2), None, ["NoSchedule", "NoExecute"][n % 2]);
            let wanted: Vec<Taint> = (0..wanted).map(pick).collect();
            let there: Vec<Taint> = users.into_iter().map(pick).collect();
            let once = merge_taints(&[], &wanted, &there);
            let twice = merge_taints(&wanted, &wanted, &once);
            prop_assert_eq!(once, twice);
        }
    }
}
