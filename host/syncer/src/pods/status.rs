//! What of a ppod's status goes up to its vpod (BU-1502), and how a vpod ends whose ppod was lost (TD-805).
//!
//! In: both views; out: the fields to write, or nothing. The vpod keeps its own `PodScheduled`, its readiness gates
//! and every condition the ppod does not report. Pure; called by the planner.
//! Invariants: a terminal phase is final; a status that was mirrored yields nothing; messages are cut.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kubeocean_api::keys::condition_type;
use serde_json::{Map, Value, json};

use super::{
    status_hash::{CONDITIONS, FIELDS, of_field},
    view::{Phase, PpodStatus, REPORTED, Vpod},
    wording::{Wording, cut},
};

/// `status.reason`, condition reason and event reason of a vpod whose ppod vanished.
pub const REASON_LOST: &str = "PhysicalPodLost";
/// Reason of the condition that there is a ppod.
const REASON_CREATED: &str = "Created";
/// Reason of a container of which nothing more is known.
const REASON_CONTAINER_UNKNOWN: &str = "ContainerStatusUnknown";
/// Exit code of a container of which nothing more is known: killed.
const EXIT_CODE_KILLED: i64 = 137;

/// Fields to write; `null` removes one.
pub type StatusFields = Map<String, Value>;

/// Result of comparing two statuses.
#[derive(Clone, Debug, PartialEq)]
pub enum StatusPlan {
    /// The vpod shows it all.
    Converged,
    /// The ppod's status was dropped after it was mirrored, and the vpod was changed by someone: read the ppod.
    Unread,
    /// To be written.
    Change {
        /// The fields that differ.
        fields: StatusFields,
        /// Whether it may not wait for more changes: phase, readiness or address.
        urgent: bool,
    },
}

/// Compares a vpod's status with its ppod's.
pub fn plan_status(vpod: &Vpod, ppod: &PpodStatus, wording: &Wording<'_>, now: Timestamp) -> StatusPlan {
    let Some(reported) = ppod.fields.as_deref() else { return StatusPlan::Unread };
    let reported: &Map<String, Value> = &serde_json::from_str(reported).unwrap_or_default();
    if vpod.status.phase.is_terminal() && vpod.status.phase != ppod.phase {
        return StatusPlan::Converged;
    }
    let wanted = wanted_fields(vpod, reported, wording, now);
    let mut fields = StatusFields::new();
    for field in FIELDS {
        let value = wanted.get(field).cloned().unwrap_or(Value::Null);
        if of_field(field, &value) != vpod.status.hashes.field(field) {
            fields.insert(field.to_owned(), value);
        }
    }
    if fields.is_empty() {
        return StatusPlan::Converged;
    }
    let urgent = fields.contains_key("phase")
        || fields.contains_key("podIP")
        || fields.contains_key("podIPs")
        || fields
            .get(CONDITIONS)
            .and_then(Value::as_array)
            .is_some_and(|new| readiness(new) != readiness(&vpod.status.conditions.list()));
    StatusPlan::Change { fields, urgent }
}

fn wanted_fields(
    vpod: &Vpod,
    reported: &Map<String, Value>,
    wording: &Wording<'_>,
    now: Timestamp,
) -> BTreeMap<&'static str, Value> {
    let mut wanted = BTreeMap::new();
    for field in FIELDS {
        if let Some(value) = reported.get(field) {
            let mut value = value.clone();
            tell_messages(field, &mut value, wording);
            wanted.insert(field, value);
        }
    }
    wanted.entry("phase").or_insert_with(|| Phase::Pending.as_str().into());
    // The API server refuses hostIPs whose first entry is not hostIP, and an older worker reports only the latter.
    if let (Some(host), None) = (reported.get("hostIP"), reported.get("hostIPs")) {
        wanted.insert("hostIPs", json!([{ "ip": host }]));
    }
    let mut conditions = merge_conditions(vpod, reported.get(CONDITIONS), wording, now);
    let nothing_started = wanted["phase"] == Phase::Pending.as_str()
        && REPORTED.iter().all(|field| !wanted.contains_key(field));
    // A scheduler that came back late may still complain about a pod that its kubelet runs.
    if nothing_started
        && !wanted.contains_key("message")
        && let Some(message) = unscheduled_message(reported).and_then(|message| wording.tell(message))
    {
        wanted.insert("message", message.into());
    }
    if vpod.deletion.is_none() && nothing_started && !wanted.contains_key("message") {
        mark_created(&mut conditions, vpod, now);
    }
    wanted.insert(CONDITIONS, Value::Array(conditions));
    wanted
}

/// A ppod that has reported nothing else could vanish while nobody looks, and its vpod would seem to be one that never had
/// any: until there is more to show, a condition says so.
fn mark_created(conditions: &mut Vec<Value>, vpod: &Vpod, now: Timestamp) {
    let known = vpod.status.conditions.list();
    let before = known.into_iter().find(|it| it["type"] == condition_type::WORKER_POD_CREATED);
    conditions.extend(before.filter(|before| before["status"] == "True"));
    let kind = condition_type::WORKER_POD_CREATED;
    set_condition(conditions, kind, "True", REASON_CREATED, "the worker cluster has the pod", now);
}

/// The worker scheduler's word, so that users see on the vpod why nothing starts. It also marks the status as ours.
fn unscheduled_message(reported: &Map<String, Value>) -> Option<&str> {
    let conditions = reported.get(CONDITIONS)?.as_array()?;
    let pending = conditions.iter().find(|it| it["type"] == "PodScheduled" && it["status"] == "False")?;
    pending["message"].as_str().filter(|message| !message.is_empty())
}

fn merge_conditions(
    vpod: &Vpod,
    reported: Option<&Value>,
    wording: &Wording<'_>,
    now: Timestamp,
) -> Vec<Value> {
    let own = vpod.status.conditions.list();
    let reported = reported.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let find = |list: &[Value], kind: &str| list.iter().find(|condition| condition["type"] == kind).cloned();

    let mut merged: Vec<Value> = Vec::with_capacity(own.len().max(reported.len()));
    merged.extend(
        // The vpod is bound: that its copy waits for a node is the worker's affair, and would stay there for ever.
        find(&own, "PodScheduled").or_else(|| {
            let bound = find(reported, "PodScheduled").filter(|it| it["status"] == "True");
            bound.map(|it| adopt(it, wording))
        }),
    );
    for condition in reported.iter().filter(|condition| condition["type"] != "PodScheduled") {
        let mut condition = adopt(condition.clone(), wording);
        if condition["type"] == "Ready" && !vpod.spec.readiness_gates.is_empty() {
            apply_gates(&mut condition, vpod, &own, now);
        }
        merged.push(condition);
    }
    // The last two are a kubelet's while it resizes, and end by being left out.
    let passing = [condition_type::WORKER_POD_CREATED, "PodResizePending", "PodResizeInProgress"];
    let has_passed =
        |condition: &Value| condition["type"].as_str().is_some_and(|kind| passing.contains(&kind));
    let missing: Vec<Value> = own
        .into_iter()
        .filter(|condition| !has_passed(condition))
        .filter(|condition| merged.iter().all(|other| other["type"] != condition["type"]))
        .collect();
    merged.extend(missing);
    merged
}

fn adopt(mut condition: Value, wording: &Wording<'_>) -> Value {
    if let Some(members) = condition.as_object_mut() {
        members.remove("observedGeneration");
    }
    tell_member(&mut condition, |message| wording.tell(message));
    condition
}

/// Readiness gates live on the vpod only (TD section 6): its `Ready` is the ppod's and all gates.
fn apply_gates(ready: &mut Value, vpod: &Vpod, own: &[Value], now: Timestamp) {
    let is_true = |gate: &str| own.iter().any(|it| it["type"] == gate && it["status"] == "True");
    let Some(unmet) = vpod.spec.readiness_gates.iter().find(|gate| !is_true(gate)) else { return };
    if ready["status"] != "True" {
        return;
    }
    let before = own.iter().find(|condition| condition["type"] == "Ready" && condition["status"] == "False");
    let since =
        before.map_or_else(|| seconds(now).into(), |condition| condition["lastTransitionTime"].clone());
    *ready = json!({
        "type": "Ready",
        "status": "False",
        "reason": "ReadinessGatesNotReady",
        "message": format!("the condition of readiness gate {unmet:?} is not True"),
        "lastProbeTime": null,
        "lastTransitionTime": since,
    });
}

fn readiness(conditions: &[Value]) -> Option<&Value> {
    conditions.iter().find(|condition| condition["type"] == "Ready").map(|ready| &ready["status"])
}

fn tell_messages(field: &str, value: &mut Value, wording: &Wording<'_>) {
    match (field, value) {
        ("message", value) => {
            *value = wording.tell(value.as_str().unwrap_or_default()).into();
        }
        (
            "containerStatuses" | "initContainerStatuses" | "ephemeralContainerStatuses",
            Value::Array(statuses),
        ) => {
            for status in statuses {
                for state in ["state", "lastState"] {
                    if let Some(states) = status.get_mut(state).and_then(Value::as_object_mut) {
                        states.values_mut().for_each(|one| tell_state(one, wording));
                    }
                }
            }
        }
        _ => {}
    }
}

/// A container that ended by itself may have left a message of its own.
fn tell_state(state: &mut Value, wording: &Wording<'_>) {
    let ended = matches!(state["reason"].as_str(), Some("Completed" | "Error" | "OOMKilled"));
    tell_member(state, |message| if ended { wording.quote(message) } else { wording.tell(message) });
}

fn tell_member(value: &mut Value, tell: impl FnOnce(&str) -> Option<String>) {
    let Some(members) = value.as_object_mut() else { return };
    let Some(Value::String(message)) = members.get("message") else { return };
    match tell(message) {
        Some(told) => members.insert("message".to_owned(), told.into()),
        None => members.remove("message"),
    };
}

/// The status fields of a vpod whose ppod is gone for good, computed from its live status: phase Failed, not ready,
/// disrupted, and no container left in a running state. `None` when it is terminal already.
pub fn lost_fields(live: &Value, message: &str, now: Timestamp) -> Option<StatusFields> {
    if matches!(live["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let message = cut(message);
    let mut fields = StatusFields::new();
    fields.insert("phase".to_owned(), Phase::Failed.as_str().into());
    fields.insert("reason".to_owned(), REASON_LOST.into());
    fields.insert("message".to_owned(), message.clone().into());

    let mut conditions = live[CONDITIONS].as_array().cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] != condition_type::WORKER_POD_CREATED);
    for (kind, status) in [("Ready", "False"), ("ContainersReady", "False"), ("DisruptionTarget", "True")] {
        set_condition(&mut conditions, kind, status, REASON_LOST, &message, now);
    }
    fields.insert(CONDITIONS.to_owned(), Value::Array(conditions));

    for field in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        let Some(statuses) = live[field].as_array() else { continue };
        let ended: Vec<Value> = statuses.iter().map(|status| end_container(status, now)).collect();
        if ended != *statuses {
            fields.insert(field.to_owned(), Value::Array(ended));
        }
    }
    Some(fields)
}

fn end_container(status: &Value, now: Timestamp) -> Value {
    if status["state"].get("terminated").is_some() {
        return status.clone();
    }
    let mut ended = status.clone();
    let started = &status["state"]["running"]["startedAt"];
    ended["state"] = json!({"terminated": {
        "exitCode": EXIT_CODE_KILLED,
        "reason": REASON_CONTAINER_UNKNOWN,
        "message": "the worker cluster's pod is gone; how the container ended is not known",
        "startedAt": started,
        "finishedAt": seconds(now),
    }});
    ended["ready"] = false.into();
    ended["started"] = false.into();
    ended
}

/// A time as Kubernetes writes it: whole seconds.
pub fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// Sets one condition in a list; keeps the transition time when the status stays. Says whether anything changed.
pub fn set_condition(
    conditions: &mut Vec<Value>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let at = conditions.iter().position(|condition| condition["type"] == kind);
    let old = at.map(|at| &conditions[at]);
    if old.is_some_and(|old| old["status"] == status && old["reason"] == reason && old["message"] == message)
    {
        return false;
    }
    let since = old
        .filter(|old| old["status"] == status)
        .map_or_else(|| seconds(now).into(), |old| old["lastTransitionTime"].clone());
    let condition = json!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": since,
    });
    match at {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
    true
}
