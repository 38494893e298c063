//! The conditions `PoliciesStale` and `Pinned`.

use super::*;

fn condition(policy: &PolicyView, type_: &str) -> Option<String> {
    conditions(policy).into_iter().find(|line| line.starts_with(type_))
}

const STALE: &str =
    "PoliciesStale=True/LastKnown an answer older than an hour stands for a module that does not answer";

/// PO-804: the condition is never False.
#[test]
fn a_stale_answer_is_told_while_it_stands() {
    let mut policy = policy(&json!({"cluster": "c"}));
    for (second, stale, expected) in [(0, false, None), (60, true, Some(STALE)), (120, false, None)] {
        let said = PolicyStatus { stale, ..with(entry(EntryState::Active)) };
        let change = plan_status(&policy, &said, &governed(1), at(second)).unwrap();
        assert!(change.urgent, "a state does not wait");
        policy.status = change.status;
        assert_eq!(condition(&policy, "PoliciesStale").as_deref(), expected, "after {second} s");
        assert_eq!(plan_status(&policy, &said, &governed(1), at(second + 1)), None);
    }
}

/// PO-706.
#[test]
fn a_module_without_a_digest_is_told_where_there_are_entries() {
    let mut policy = policy(&json!({"cluster": "c"}));
    let of = |pinned| PolicyStatus { pinned, ..with(entry(EntryState::Active)) };
    let by_digest =
        "Pinned=True/Pinned every module that does not come with the program is named by its digest";
    let by_name = "Pinned=False/NotPinned a module without a digest may change without notice";
    for (said, expected) in [
        (of(true), Some(by_digest)),
        (of(false), Some(by_name)),
        (of(true), Some(by_digest)),
        (engine(true), None),
    ] {
        policy = written(&policy, &said, &governed(1), at(0));
        assert_eq!(condition(&policy, "Pinned").as_deref(), expected);
    }
}
