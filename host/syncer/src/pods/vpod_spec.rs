//! What is kept of a vpod's spec.
//!
//! A pod's spec hardly ever changes, and its status does several times: each version of a vpod brings the same text. It is
//! read again only when it is another one than that of the vpod in memory; versions of one vpod share what was read.
//! The table of what is in memory holds nothing alive.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, LazyLock, Weak},
};

use kubeocean_api::keys::taint;
use kubeocean_runtime::shared;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;

use super::{
    in_place::Mutable,
    references::{References, list, references},
};

/// What every vnode's name starts with (BU-301); pods elsewhere are dropped while they are decoded.
const VNODE_PREFIX: &str = "vnode-";

/// The read part of a vpod's spec.
#[derive(Clone, Debug, PartialEq)]
pub struct VpodSpec {
    /// `spec.activeDeadlineSeconds`.
    pub active_deadline_seconds: Option<i64>,
    /// Digests of what of it may change, as annotation `expected-spec` holds them. Pods of one template have the same.
    pub mutable: Arc<str>,
    /// Names of the debug containers.
    pub ephemeral_containers: Vec<Box<str>>,
    /// Condition types of `spec.readinessGates`.
    pub readiness_gates: Vec<Box<str>>,
    /// Whether it may stay on a vnode outside the time windows.
    pub tolerates_out_of_window: bool,
    /// The objects it names.
    pub references: References,
}

impl VpodSpec {
    /// Reads the spec of the pod of this name.
    pub(super) fn read(pod: &str, spec: &Value) -> Self {
        Self {
            active_deadline_seconds: spec.get("activeDeadlineSeconds").and_then(Value::as_i64),
            mutable: shared::text(&Mutable::of(spec).encode()),
            ephemeral_containers: strings(spec, "ephemeralContainers", "name"),
            readiness_gates: strings(spec, "readinessGates", "conditionType"),
            tolerates_out_of_window: tolerates(spec, taint::OUT_OF_TIME_WINDOWS),
            references: references(pod, spec),
        }
    }
}

/// The vnode that a pod with this spec is on, if it is on one.
pub(super) fn vnode_in(spec: &str) -> Option<Box<str>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Bound {
        node_name: Option<Box<str>>,
    }
    let node = serde_json::from_str::<Bound>(spec).ok()?.node_name?;
    node.starts_with(VNODE_PREFIX).then_some(node)
}

/// Specs of the vpods in memory, by UID.
#[derive(Debug, Default)]
pub(super) struct KnownSpecs {
    /// Nobody can aim at a digest whose keys are drawn at the start.
    digests: RandomState,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    known: HashMap<Arc<str>, Known>,
    /// How many were in memory when that was last looked at.
    alive: usize,
}

/// A watch and the answer of a write spell the same spec differently: the members of one are in the order of the API's
/// types, those of the other sorted.
#[derive(Debug)]
struct Known {
    latest: u64,
    before: Option<u64>,
    spec: Weak<VpodSpec>,
}

impl KnownSpecs {
    /// So many specs are not worth a look.
    const FEW: usize = 256;

    /// Those of this process.
    pub(super) fn of_process() -> &'static Self {
        static KNOWN: LazyLock<KnownSpecs> = LazyLock::new(KnownSpecs::default);
        &KNOWN
    }

    /// What was read of the spec of the vpod of this UID; `read` is asked if this text was not read before.
    pub(super) fn of(
        &self,
        uid: Arc<str>,
        spec: &str,
        read: impl FnOnce() -> VpodSpec,
    ) -> (Arc<str>, Arc<VpodSpec>) {
        let digest = self.digests.hash_one(spec);
        let known = self.table.lock().of(&uid);
        let (uid, known) = known.map_or((uid, None), |(uid, known)| (uid, Some(known)));
        let alive = known.and_then(|known| Some((known.spec.upgrade()?, known)));
        if let Some((spec, known)) = &alive
            && (known.latest == digest || known.before == Some(digest))
        {
            return (uid, Arc::clone(spec));
        }
        let read = read();
        let (spec, before) = match alive {
            Some((spec, known)) if *spec == read => (spec, Some(known.latest)),
            _ => (Arc::new(read), None),
        };
        let known = Known { latest: digest, before, spec: Arc::downgrade(&spec) };
        self.table.lock().insert(Arc::clone(&uid), known);
        (uid, spec)
    }

    /// The vpod of this UID is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.table.lock().known.remove(uid);
    }
}

impl Table {
    fn of(&self, uid: &str) -> Option<(Arc<str>, Known)> {
        let (uid, known) = self.known.get_key_value(uid)?;
        Some((Arc::clone(uid), Known { spec: Weak::clone(&known.spec), ..*known }))
    }

    fn insert(&mut self, uid: Arc<str>, known: Known) {
        if self.known.len() >= KnownSpecs::FEW.max(2 * self.alive) {
            self.known.retain(|_, known| known.spec.strong_count() > 0);
            self.known.shrink_to_fit();
            self.alive = self.known.len();
        }
        self.known.insert(uid, known);
    }
}

fn strings(spec: &Value, field: &str, member: &str) -> Vec<Box<str>> {
    list(spec, field).filter_map(|item| item.get(member)?.as_str()).map(Into::into).collect()
}

/// Whether a pod may stay under a taint `key=true:NoExecute`: by the rules of Kubernetes, or because it names the key at
/// all, as the original has it (BU-807).
fn tolerates(spec: &Value, key: &str) -> bool {
    let text =
        |item: &Value, field: &str| item.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    list(spec, "tolerations").any(|item| {
        let exists = text(item, "operator") == "Exists";
        let named = text(item, "key");
        let all = named.is_empty() && exists && matches!(&*text(item, "effect"), "" | "NoExecute");
        named == key || all
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn read(spec: &str) -> VpodSpec {
        VpodSpec::read("web-0", &serde_json::from_str(spec).unwrap())
    }

    fn never() -> VpodSpec {
        panic!("it is known")
    }

    #[rstest]
    #[case(r#"{"nodeName":"vnode-a"}"#, Some("vnode-a"))]
    #[case(r#"{"containers":[{"nodeName":"vnode-a"}],"nodeName":"vnode-\u0061"}"#, Some("vnode-a"))]
    #[case(r#"{"nodeName":"node-a"}"#, None)]
    #[case(r#"{"nodeName":null}"#, None)]
    #[case("{}", None)]
    #[case("null", None)]
    fn which_pods_are_on_vnodes(#[case] spec: &str, #[case] expected: Option<&str>) {
        assert_eq!(vnode_in(spec).as_deref(), expected);
    }

    #[test]
    fn a_spec_is_read_once_and_again_when_it_changes() {
        let (first, second) = (r#"{"activeDeadlineSeconds":1}"#, r#"{"activeDeadlineSeconds":2}"#);
        let known = KnownSpecs::default();
        let (uid, before) = known.of("u".into(), first, || read(first));
        let (same_uid, same) = known.of("u".into(), first, never);
        assert!(Arc::ptr_eq(&before, &same) && Arc::ptr_eq(&uid, &same_uid));
        let (_, changed) = known.of("u".into(), second, || read(second));
        assert_eq!((before.active_deadline_seconds, changed.active_deadline_seconds), (Some(1), Some(2)));
        let (_, another) = known.of("v".into(), second, || read(second));
        assert!(!Arc::ptr_eq(&changed, &another), "names of claims depend on the pod");
        drop((before, same, changed, another));
        let mut reads = 0;
        let (_, again) = known.of("u".into(), second, || {
            reads += 1;
            read(second)
        });
        assert_eq!(reads, 1, "what nobody uses is not kept");
        known.forget("u");
        assert!(!Arc::ptr_eq(&again, &known.of("u".into(), second, || read(second)).1));
    }

    #[test]
    fn two_spellings_of_a_spec_are_one() {
        let as_watched = r#"{"nodeName":"vnode-a","activeDeadlineSeconds":1}"#;
        let as_answered = r#"{"activeDeadlineSeconds":1,"nodeName":"vnode-a"}"#;
        let known = KnownSpecs::default();
        let (_, first) = known.of("u".into(), as_watched, || read(as_watched));
        let (_, second) = known.of("u".into(), as_answered, || read(as_answered));
        assert!(Arc::ptr_eq(&first, &second));
        for spelling in [as_watched, as_answered, as_watched] {
            assert!(Arc::ptr_eq(&first, &known.of("u".into(), spelling, never).1));
        }
    }

    #[test]
    fn specs_of_pods_that_are_gone_go() {
        let known = KnownSpecs::default();
        let kept: Vec<_> =
            (0..1000).map(|n| known.of(format!("kept-{n}").into(), "{}", || read("{}"))).collect();
        (0..10_000).for_each(|n| drop(known.of(format!("{n}").into(), "{}", || read("{}"))));
        assert!(known.table.lock().known.len() <= 2 * kept.len() + 1);
        let _ = known.of("kept-0".into(), "{}", never);
    }

    #[rstest]
    #[case(json!({"key": taint::OUT_OF_TIME_WINDOWS}), true)]
    #[case(json!({"operator": "Exists"}), true)]
    #[case(json!({"operator": "Exists", "effect": "NoExecute"}), true)]
    #[case(json!({"operator": "Exists", "effect": "NoSchedule"}), false)]
    #[case(json!({"key": "other", "operator": "Exists"}), false)]
    fn who_stays_outside_the_windows(#[case] toleration: Value, #[case] expected: bool) {
        let spec = json!({"tolerations": [toleration]});
        assert_eq!(VpodSpec::read("web-0", &spec).tolerates_out_of_window, expected);
    }
}
