//! What the Syncer says in the status of its binding: condition `PoliciesResolved` and, during deletion,
//! `SyncerCleanup` (API-802), and the numbers of vnodes and ppods (API-804).
//!
//! All of it is one server-side apply, because what a manager leaves out of its next apply is removed. Conditions are
//! written when they change, numbers at most every 30 s, progress of a deletion at most every 10 s; what the binding
//! shows already is not written. Modules that do not decide are also told in an event (API-810).

use std::time::Duration;

use jiff::Timestamp;
use kubeocean_api::{ClusterBindingStatus, Condition, condition::binding_type, keys::manager};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{leader::Leader, policies::store::Resolution};
use kubeocean_runtime::{
    binding::Binding,
    clock::rfc3339,
    error::ApplyError,
    events::{Event, Regarding, Severity},
    request::{Force, apply_patch, get_json, paths},
};

/// Shortest time between two writes of numbers, and how often they are looked at (API-804).
const NUMBERS: Duration = Duration::from_secs(30);
/// Shortest time between two messages of the same step of a deletion (MC section 5).
const CLEANUP: Duration = Duration::from_secs(10);
/// Changes of policies come in groups.
const GATHER: Duration = Duration::from_millis(200);
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(2);

/// Progress of the Syncer's share in the binding's deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cleanup {
    /// Condition reason.
    pub(crate) reason: &'static str,
    /// Condition message.
    pub(crate) message: String,
}

/// Our part of the status.
#[derive(Clone, Debug, Default, PartialEq)]
struct Report {
    conditions: Vec<Condition>,
    nodes: Option<i32>,
    pods: Option<i32>,
}

/// What is to be said; `None` leaves what is shown.
#[derive(Clone, Debug, Default)]
struct News {
    resolution: Option<Resolution>,
    cleanup: Option<Cleanup>,
    /// Vnodes and ppods.
    numbers: Option<(usize, usize)>,
}

impl Report {
    /// Our part of a stored binding.
    fn of(object: &Value) -> Self {
        let status = object.get("status").cloned().unwrap_or_default();
        let status: ClusterBindingStatus = serde_json::from_value(status).unwrap_or_default();
        let ours = [binding_type::POLICIES_RESOLVED, binding_type::SYNCER_CLEANUP];
        let mut conditions = status.conditions;
        conditions.retain(|condition| ours.contains(&condition.type_.as_str()));
        Self { conditions, nodes: status.nodes, pods: status.pods }
    }

    /// The report with the news.
    fn with(&self, news: &News, generation: i64, now: Timestamp) -> Self {
        let mut report = self.clone();
        let condition = |type_: &str, status: bool, reason: &str, message: &str| Condition {
            last_transition_time: rfc3339(now),
            message: message.to_owned(),
            observed_generation: Some(generation),
            reason: reason.to_owned(),
            status: if status { "True" } else { "False" }.to_owned(),
            type_: type_.to_owned(),
        };
        if let Some(said) = &news.resolution {
            let type_ = binding_type::POLICIES_RESOLVED;
            report.set(condition(type_, said.resolved, said.reason, &said.message));
        }
        if let Some(said) = &news.cleanup {
            report.set(condition(binding_type::SYNCER_CLEANUP, false, said.reason, &said.message));
        }
        if let Some((nodes, pods)) = news.numbers {
            let number = |count| Some(i32::try_from(count).unwrap_or(i32::MAX));
            (report.nodes, report.pods) = (number(nodes), number(pods));
        }
        report
    }

    /// Replaces a condition; its time moves only with its status.
    fn set(&mut self, mut condition: Condition) {
        match self.conditions.iter_mut().find(|shown| shown.type_ == condition.type_) {
            Some(shown) if shown.says_the_same_as(&condition) => {}
            Some(shown) => {
                if shown.status == condition.status {
                    condition.last_transition_time.clone_from(&shown.last_transition_time);
                }
                *shown = condition;
            }
            None => self.conditions.push(condition),
        }
    }

    fn body(&self, binding: &Binding) -> Value {
        let mut status = json!({"conditions": self.conditions});
        // What is not known yet is left out: the API server takes no null for a number.
        for (field, number) in [("nodes", self.nodes), ("pods", self.pods)] {
            if let Some(number) = number {
                status[field] = number.into();
            }
        }
        json!({
            "apiVersion": "cloud.tencent.com/v1beta1",
            "kind": "ClusterBinding",
            "metadata": {"name": binding.name, "uid": binding.uid},
            "status": status,
        })
    }
}

/// Keeps our part of the status current until `cancel`.
pub(crate) async fn run(leader: Leader, cancel: CancellationToken) {
    let mut binding = leader.binding.clone();
    let mut cleanup = leader.cleanup.subscribe();
    let (nodes, policies) = (&leader.stores.nodes, &leader.stores.policies);
    let mut shown = None;
    let mut numbers_at: Option<Instant> = None;
    let mut step: Option<(&'static str, Instant)> = None;
    loop {
        let settled = nodes.is_settled();
        let due = numbers_at.is_none_or(|at| at.elapsed() >= NUMBERS);
        let progress = cleanup.borrow_and_update().clone();
        let early = progress.as_ref().and_then(|now| too_early(now.reason, step, Instant::now()));
        let news = News {
            resolution: settled.then(|| policies.resolution()),
            cleanup: progress.filter(|_| early.is_none()),
            numbers: (settled && due).then(|| (nodes.vnode_names().len(), leader.stores.pods.ppod_count())),
        };
        let current = binding.borrow_and_update().clone();
        let pause = match tell(&leader, &current, &news, &mut shown).await {
            Ok(wrote_numbers) => {
                if wrote_numbers {
                    numbers_at = Some(Instant::now());
                }
                if let Some(told) = &news.cleanup {
                    step = Some((told.reason, Instant::now()));
                }
                early.unwrap_or(NUMBERS)
            }
            Err(error) => {
                tracing::warn!(binding = current.name, error = error.chain(), "status not written, retrying");
                shown = None;
                RETRY
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = policies.resolved.notified() => {}
            _ = cleanup.changed() => {}
            _ = binding.changed() => {}
            () = nodes.settled(), if !settled => {}
            () = tokio::time::sleep(pause) => continue,
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(GATHER) => {}
        }
    }
}

/// How long to wait before the message of a step of the deletion is written anew.
fn too_early(reason: &str, told: Option<(&'static str, Instant)>, now: Instant) -> Option<Duration> {
    let (_, at) = told.filter(|(step, _)| *step == reason)?;
    CLEANUP.checked_sub(now.duration_since(at)).filter(|left| !left.is_zero())
}

/// An event about modules that do not decide, when the condition begins to say so or says it of others.
fn trouble(before: &Report, wanted: &Report, binding: &Binding) -> Option<Event> {
    let of = |report: &Report| {
        report.conditions.iter().find(|one| one.type_ == binding_type::POLICIES_RESOLVED).cloned()
    };
    let now = of(wanted).filter(|one| matches!(one.reason.as_str(), "ModuleFailed" | "ModuleNotFound"))?;
    let told = of(before).is_some_and(|one| one.reason == now.reason && one.message == now.message);
    (!told).then(|| Event {
        regarding: Regarding::binding(&binding.name, &binding.uid),
        severity: Severity::Warning,
        reason: "ModuleFailed",
        message: format!("modules of these policies do not decide: {}", now.message),
    })
}

/// Writes what is not shown yet. Ok: whether numbers were among it.
async fn tell(
    leader: &Leader,
    binding: &Binding,
    news: &News,
    shown: &mut Option<Report>,
) -> Result<bool, ApplyError> {
    if news.resolution.is_none() && news.cleanup.is_none() {
        return Ok(false);
    }
    let before = match shown.take() {
        Some(report) => report,
        None => match get_json(&leader.computing, &paths::binding(&binding.name)).await? {
            Some(object) => Report::of(&object),
            None => return Ok(false),
        },
    };
    let wanted = before.with(news, binding.generation, leader.clock.now());
    let numbers = (wanted.nodes, wanted.pods) != (before.nodes, before.pods);
    if wanted != before {
        let path = paths::binding_status(&binding.name);
        match apply_patch(&leader.computing, &path, manager::SYNCER, Force::Yes, &wanted.body(binding)).await
        {
            Ok(_) => {}
            // The binding went, or another one has its name: whoever follows it ends this task.
            Err(ApplyError::NotFound { .. } | ApplyError::Conflict { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        if let Some(event) = trouble(&before, &wanted, binding) {
            leader.events.publish(event);
        }
    }
    *shown = Some(wanted);
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn resolution(resolved: bool, message: &str) -> News {
        let reason = if resolved { "Resolved" } else { "PolicyInvalid" };
        let resolution = Some(Resolution { resolved, reason, message: message.into() });
        News { resolution, ..News::default() }
    }

    #[test]
    fn what_is_shown_already_is_not_said_again() {
        let news = News { numbers: Some((2, 5)), ..resolution(true, "p") };
        let said = Report::default().with(&news, 3, at(0));
        assert_eq!((said.nodes, said.pods), (Some(2), Some(5)));
        assert_eq!(said.with(&news, 3, at(60)), said);
        let object = json!({"status": {"conditions": said.conditions, "nodes": 2, "pods": 5}});
        assert_eq!(Report::of(&object), said, "nor after a restart");
    }

    #[test]
    fn what_is_not_known_yet_is_left_out() {
        let cleanup = Some(Cleanup { reason: "WorkerLeftovers", message: "waiting".to_owned() });
        let report = Report::default().with(&News { cleanup, ..News::default() }, 3, at(0));
        let status = report.body(&Binding::default())["status"].clone();
        let fields: Vec<&String> = status.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["conditions"]);
    }

    #[test]
    fn times_move_with_the_status_and_nothing_of_ours_is_lost() {
        let first = Report::default().with(&resolution(true, "p"), 3, at(0));
        let cleanup = Some(Cleanup { reason: "DrainingNodes", message: "1 left".into() });
        let second = first.with(&News { cleanup, ..resolution(true, "p, q") }, 3, at(60));
        assert_eq!(second.conditions.len(), 2);
        assert_eq!(second.conditions[0].last_transition_time, rfc3339(at(0)));
        let third = second.with(&resolution(false, "p"), 3, at(120));
        assert_eq!(third.conditions[0].last_transition_time, rfc3339(at(120)));
        assert_eq!(third.conditions[1].reason, "DrainingNodes");
    }

    #[tokio::test(start_paused = true)]
    async fn progress_of_one_step_is_told_every_ten_seconds_and_another_step_at_once() {
        let at = Instant::now();
        assert_eq!(too_early("DrainingNodes", None, at), None);
        let told = Some(("DrainingNodes", at));
        assert_eq!(
            too_early("DrainingNodes", told, at + Duration::from_secs(4)),
            Some(Duration::from_secs(6))
        );
        assert_eq!(too_early("DrainingNodes", told, at + CLEANUP), None);
        assert_eq!(too_early("WorkerLeftovers", told, at), None);
    }

    #[test]
    fn modules_that_do_not_decide_are_told_once() {
        let said = |reason, message: &str| {
            let resolution = Some(Resolution { resolved: false, reason, message: message.into() });
            Report::default().with(&News { resolution, ..News::default() }, 3, at(0))
        };
        let (fine, bad) = (Report::default(), said("ModuleFailed", "p"));
        let binding = Binding::default();
        assert_eq!(trouble(&fine, &bad, &binding).unwrap().reason, "ModuleFailed");
        assert_eq!(trouble(&bad, &bad, &binding), None);
        assert!(trouble(&bad, &said("ModuleFailed", "p, q"), &binding).is_some());
        assert!(trouble(&fine, &said("ModuleNotFound", "p"), &binding).is_some());
        assert_eq!(trouble(&fine, &said("PolicyInvalid", "p"), &binding), None);
    }

    #[test]
    fn others_conditions_are_not_ours() {
        let ready = json!({"type": "Ready", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2027-01-15T08:00:00Z"});
        let report = Report::of(&json!({"status": {"conditions": [ready], "phase": "Ready"}}));
        assert_eq!(report, Report::default());
    }
}
