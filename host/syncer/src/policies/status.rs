//! What a policy's status says (API-204, PO-544, PO-711, PO-1502).
//!
//! Pure. In: the stored status, what the engine says, how many nodes are governed. Out: the wanted status and whether
//! it may wait, or nothing when the stored one says the same.

use jiff::Timestamp;
use kubeocean_api::{
    Condition, ResourceLeasingPolicyStatus, condition::policy_type, policy::PolicyEntryStatus, validate,
};
use kubeocean_engine::{EntryState, LoadCode, PolicyStatus};

use super::view::PolicyView;
use crate::nodes::store::PolicyUsage;
use kubeocean_runtime::clock::rfc3339;

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusChange {
    /// The whole status.
    pub status: ResourceLeasingPolicyStatus,
    /// A state changed, not only a number: it does not wait (PO-1502).
    pub urgent: bool,
}

/// See the module documentation.
pub fn plan_status(
    policy: &PolicyView,
    engine: &PolicyStatus,
    usage: &PolicyUsage,
    now: Timestamp,
) -> Option<StatusChange> {
    let stored = &policy.status;
    let valid = match &policy.spec.unreadable {
        Some(error) => Err(error.clone()),
        None => engine.valid.clone(),
    };
    let phase = match (&valid, engine.active) {
        (Err(_), _) => "Failed",
        (Ok(()), true) => "Active",
        (Ok(()), false) => "Inactive",
    };
    let changed_at = if stored.phase == phase { stored.last_applied_time.clone() } else { None };
    let mut conditions = stored.conditions.clone();
    let mut set = |condition: Condition| set_condition(&mut conditions, condition, now);
    let generation = policy.generation();
    let condition = |type_: &str, status: bool, reason: &str, message: String| Condition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: Some(generation),
        last_transition_time: String::new(),
    };
    set(valid_condition(policy, engine, &valid, &condition));
    set(match (&valid, engine.active) {
        (Err(_), _) => {
            let message = "Policy cannot be activated due to validation errors";
            condition(policy_type::ACTIVE, false, "ValidationError", message.to_owned())
        }
        (Ok(()), true) => condition(
            policy_type::ACTIVE,
            true,
            "ActiveTimeWindow",
            "Policy is within active time window".to_owned(),
        ),
        (Ok(()), false) => {
            let message = "Policy is outside of active time windows";
            condition(policy_type::ACTIVE, false, "InactiveTimeWindow", message.to_owned())
        }
    });
    set(applied_condition(engine, valid.is_ok(), usage, &condition));
    if engine.entries.is_empty() {
        conditions.retain(|c| c.type_ != policy_type::POLICIES_READY && c.type_ != policy_type::PINNED);
    } else {
        set_condition(&mut conditions, ready_condition(engine, &condition), now);
        let (reason, message) = if engine.pinned {
            ("Pinned", "every module that does not come with the program is named by its digest")
        } else {
            ("NotPinned", "a module without a digest may change without notice")
        };
        set_condition(
            &mut conditions,
            condition(policy_type::PINNED, engine.pinned, reason, message.to_owned()),
            now,
        );
    }
    if engine.stale {
        let message = "an answer older than an hour stands for a module that does not answer".to_owned();
        set_condition(
            &mut conditions,
            condition(policy_type::POLICIES_STALE, true, "LastKnown", message),
            now,
        );
    } else {
        conditions.retain(|c| c.type_ != policy_type::POLICIES_STALE);
    }
    let wanted = ResourceLeasingPolicyStatus {
        phase: phase.to_owned(),
        active_time_window: phase == "Active",
        last_applied_time: Some(changed_at.unwrap_or_else(|| rfc3339(now))),
        conditions,
        observed_generation: Some(generation),
        nodes: Some(i32::try_from(usage.governed).unwrap_or(i32::MAX)),
        policies: engine.entries.iter().map(kubeocean_engine::EntryStatus::to_wire).collect(),
    };
    if without_counters(&wanted) == without_counters(stored) && !counters_moved(&wanted, stored) {
        return None;
    }
    let urgent = essence(&wanted) != essence(stored);
    Some(StatusChange { status: wanted, urgent })
}

type Make<'a> = &'a dyn Fn(&str, bool, &str, String) -> Condition;

fn valid_condition(
    policy: &PolicyView,
    engine: &PolicyStatus,
    valid: &Result<(), String>,
    condition: Make<'_>,
) -> Condition {
    if let Err(error) = valid {
        return condition(
            policy_type::VALID,
            false,
            "ValidationError",
            format!("Policy validation failed: {error}"),
        );
    }
    let bad_settings = engine.entries.iter().find_map(|entry| {
        let failure = entry.failure.as_ref()?;
        (failure.code == LoadCode::SettingsInvalid).then(|| format!("{}: {failure}", entry.name))
    });
    if let Some(error) = bad_settings {
        return condition(
            policy_type::VALID,
            false,
            "SettingsInvalid",
            format!("Policy validation failed: {error}"),
        );
    }
    let mut message = "Policy validation passed successfully".to_owned();
    let mut note = |text: &str, resources: &[String]| {
        if !resources.is_empty() {
            for part in ["; ", text, " ", &resources.join(", ")] {
                message.push_str(part);
            }
        }
    };
    note("a limit of 0 leases nothing of", &engine.zero_limits);
    note("limits are applied one after the other to", &validate::repeated_limits(&policy.spec.spec));
    note("matches nothing:", &validate::selector_mistakes(policy.spec.spec.node_selector.as_ref()));
    condition(policy_type::VALID, true, "ValidationPassed", message)
}

fn applied_condition(
    engine: &PolicyStatus,
    valid: bool,
    usage: &PolicyUsage,
    condition: Make<'_>,
) -> Condition {
    let nodes = |count: usize| if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    let failing = engine.not_ready().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ");
    // The entries of an invalid policy are not asked, so they cannot be what fails.
    if valid && usage.failed > 0 && !failing.is_empty() {
        let message = format!("{failing} does not decide for {}", nodes(usage.failed));
        return condition(policy_type::APPLIED, false, "ModuleFailed", message);
    }
    match (usage.governed, usage.shadowed, &usage.shadowed_by) {
        (0, shadowed @ 1.., Some(winner)) => {
            let message = format!("{} governed by the older policy {winner}", nodes(shadowed));
            condition(policy_type::APPLIED, false, "ShadowedByOlderPolicy", message)
        }
        (0, _, _) => {
            condition(policy_type::APPLIED, false, "NoMatchingNodes", "no node is covered".to_owned())
        }
        (governed, _, _) if usage.built == 0 => {
            let message = format!("{} covered, none is leased", nodes(governed));
            condition(policy_type::APPLIED, false, "NoMatchingNodes", message)
        }
        _ => condition(policy_type::APPLIED, true, "NodesLeased", nodes(usage.built)),
    }
}

fn ready_condition(engine: &PolicyStatus, condition: Make<'_>) -> Condition {
    let waiting: Vec<_> = engine.not_ready().collect();
    if waiting.is_empty() {
        return condition(policy_type::POLICIES_READY, true, "AllActive", String::new());
    }
    let names = waiting.iter().map(|entry| format!("{} ({})", entry.name, entry.state.as_str()));
    let loading = waiting.iter().all(|entry| entry.state == EntryState::Loading && entry.failure.is_none());
    let reason = if loading { "Loading" } else { "EntryFailed" };
    condition(policy_type::POLICIES_READY, false, reason, names.collect::<Vec<_>>().join(", "))
}

/// Replaces a condition of the same type; the time moves only with the status.
fn set_condition(conditions: &mut Vec<Condition>, mut condition: Condition, now: Timestamp) {
    condition.last_transition_time = rfc3339(now);
    if let Some(known) = conditions.iter_mut().find(|known| known.type_ == condition.type_) {
        if known.status == condition.status {
            condition.last_transition_time = std::mem::take(&mut known.last_transition_time);
        }
        *known = condition;
    } else {
        conditions.push(condition);
    }
}

fn without_counters(status: &ResourceLeasingPolicyStatus) -> ResourceLeasingPolicyStatus {
    let mut status = status.clone();
    for entry in &mut status.policies {
        (entry.evaluations, entry.errors) = (None, None);
    }
    status
}

/// Counters are coarse: they are worth a write of their own when they doubled. One that began anew after a restart is
/// told with the next change.
fn counters_moved(wanted: &ResourceLeasingPolicyStatus, stored: &ResourceLeasingPolicyStatus) -> bool {
    let moved = |new: Option<i64>, old: Option<i64>| {
        let (new, old) = (new.unwrap_or(0), old.unwrap_or(0));
        new > 0 && new >= old.saturating_mul(2)
    };
    wanted
        .policies
        .iter()
        .zip(&stored.policies)
        .any(|(new, old)| moved(new.evaluations, old.evaluations) || moved(new.errors, old.errors))
}

/// What is a state and not a number.
fn essence(status: &ResourceLeasingPolicyStatus) -> ResourceLeasingPolicyStatus {
    let conditions = status
        .conditions
        .iter()
        .map(|condition| Condition {
            message: String::new(),
            last_transition_time: String::new(),
            ..condition.clone()
        })
        .collect();
    let entries = status
        .policies
        .iter()
        .map(|entry| PolicyEntryStatus {
            evaluations: None,
            errors: None,
            last_error_time: None,
            audit: None,
            ..entry.clone()
        })
        .collect();
    ResourceLeasingPolicyStatus {
        conditions,
        policies: entries,
        nodes: None,
        last_applied_time: None,
        ..status.clone()
    }
}
