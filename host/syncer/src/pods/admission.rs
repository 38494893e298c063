//! The last check of policies before a pod gets its copy (PO-606): what was decided, and how the pod's owner learns it.
//!
//! A pod that is not admitted stays Pending with condition `PolicyAdmitted=False`. Nothing asks in a circle: it is looked
//! at again when the pod, its vnode or the policies change, and when a policy said "later". Pods that have, or had, a copy
//! never come here.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kubeocean_api::keys::condition_type;
use serde::Serialize;
use serde_json::Value;

use super::{
    action::{PodAction, PodPlan, Wake},
    apply::{PodSync, Step},
    snapshot::{PodSnapshot, VnodeState},
    view::Vpod,
    wording::cut,
};
use kubeocean_runtime::{error::ApplyError, events::Severity};

/// Reason of the event (API-809).
const EVENT_DENIED: &str = "PolicyDenied";
/// Reason of the condition of a pod that was denied before.
const REASON_ADMITTED: &str = "Admitted";

/// Whether policies let a pod have a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// Yes, or none has a say.
    #[default]
    Granted,
    /// Nobody can say yet: lists are incomplete, or modules load. An event or this time ends the wait.
    Wait(Option<Duration>),
    /// No.
    Denied(Denial),
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// UpperCamelCase, from the module.
    pub code: String,
    /// The module's text, and which entry said so.
    pub message: String,
    /// When to ask again by itself.
    pub retry: Option<Duration>,
}

/// The state of the condition on a vpod.
fn condition(vpod: &Vpod) -> Option<Value> {
    vpod.status
        .conditions
        .list()
        .into_iter()
        .find(|condition| condition["type"] == condition_type::POLICY_ADMITTED)
}

/// Whether a pod's owner does not know the reason yet, by the condition `before`: that is worth an event, other words
/// for the same code are not (PO-606).
fn is_news(before: Option<&Value>, denial: Option<&Denial>) -> bool {
    let Some(denial) = denial else { return false };
    let known = before.is_some_and(|it| it["status"] == "False" && it["reason"] == *denial.code);
    !known
}

/// Whether the vpod is about to get a copy.
fn is_asked_about(snapshot: &PodSnapshot, vpod: &Vpod) -> bool {
    vpod.place.is_some()
        && vpod.deletion.is_none()
        && snapshot.ppod.is_none()
        && matches!(snapshot.vnode, VnodeState::Ours { .. })
        && super::plan::is_creatable(&snapshot.scope, vpod)
}

/// What to do instead of making the copy; `None` lets it be made, after `actions`.
pub(super) fn plan_admission(
    snapshot: &PodSnapshot,
    vpod: &Vpod,
    actions: &mut Vec<PodAction>,
) -> Option<PodPlan> {
    let wake = |after: Option<Duration>| match after {
        Some(after) => Wake::At(snapshot.now.saturating_add(after).unwrap_or(Timestamp::MAX)),
        None => Wake::OnEvent,
    };
    match &snapshot.admission {
        Admission::Granted => {
            let denied = condition(vpod).is_some_and(|condition| condition["status"] == "False");
            actions.extend(denied.then_some(PodAction::TellAdmission(None)));
            None
        }
        Admission::Wait(after) => Some(PodPlan { wake: wake(*after), ..PodPlan::default() }),
        Admission::Denied(denial) => {
            let told = condition(vpod).is_some_and(|condition| {
                condition["status"] == "False"
                    && condition["reason"] == *denial.code
                    && condition["message"] == cut(&denial.message)
            });
            let tell = (!told).then(|| PodAction::TellAdmission(Some(denial.clone())));
            Some(PodPlan { actions: tell.into_iter().collect(), wake: wake(denial.retry), mirrored: false })
        }
    }
}

/// What policies said of a vpod, by its UID: in the rounds of one reconcile they are asked once.
pub(super) type Asked = Option<(Arc<str>, Admission)>;

impl PodSync {
    /// Asks policies about a pod that is about to get a copy. One that has, had or will not have any is not asked about,
    /// and nothing is remembered of it: a round later it may be without the copy that was in its place.
    pub(super) async fn admission(&self, snapshot: &PodSnapshot, asked: &mut Asked) -> Admission {
        let (Some(desk), Some(vpod)) = (&self.placement, &snapshot.vpod) else { return Admission::Granted };
        if !is_asked_about(snapshot, vpod) {
            self.store.end_admission(&snapshot.key, true);
            return Admission::Granted;
        }
        if let Some((_, known)) = asked.as_ref().filter(|(of, _)| *of == vpod.uid) {
            return known.clone();
        }
        self.store.begin_admission(&snapshot.key);
        let admission = desk.admit(vpod).await;
        self.store.end_admission(&snapshot.key, admission == Admission::Granted);
        *asked = Some((Arc::clone(&vpod.uid), admission.clone()));
        admission
    }

    /// Writes the condition, and tells the event when the reason is another one.
    pub(super) async fn tell_admission(
        &self,
        snapshot: &PodSnapshot,
        denial: Option<&Denial>,
    ) -> Result<Step, ApplyError> {
        let Some(vpod) = &snapshot.vpod else { return Ok(Step::Replan) };
        let before = condition(vpod);
        let (status, reason, message) = match denial {
            Some(denial) => ("False", denial.code.as_str(), cut(&denial.message)),
            None => ("True", REASON_ADMITTED, String::new()),
        };
        self.state(vpod, condition_type::POLICY_ADMITTED, status, reason, &message).await?;
        if is_news(before.as_ref(), denial) {
            tracing::info!(vpod = %snapshot.key, reason, message, "policies do not admit the pod");
            let text = format!("{reason}: {message}");
            self.publish(&snapshot.key, &vpod.uid, Severity::Warning, EVENT_DENIED, cut(&text));
        }
        Ok(Step::Replan)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::the_first_time(None, Some("Full"), true)]
    #[case::the_same(Some(json!({"status": "False", "reason": "Full", "message": "no"})), Some("Full"), false)]
    #[case::other_words(Some(json!({"status": "False", "reason": "Full", "message": "3 of 4"})), Some("Full"), false)]
    #[case::another_code(Some(json!({"status": "False", "reason": "Night", "message": "no"})), Some("Full"), true)]
    #[case::admitted_in_between(Some(json!({"status": "True", "reason": REASON_ADMITTED, "message": ""})), Some("Full"), true)]
    #[case::a_code_like_the_word_for_admitted(Some(json!({"status": "True", "reason": REASON_ADMITTED, "message": ""})), Some(REASON_ADMITTED), true)]
    #[case::a_condition_without_a_reason(Some(json!({"status": "False"})), Some("Full"), true)]
    #[case::never_denied(None, None, false)]
    #[case::admitted_after_a_denial(Some(json!({"status": "False", "reason": "Full", "message": "no"})), None, false)]
    #[case::still_admitted(Some(json!({"status": "True", "reason": REASON_ADMITTED, "message": ""})), None, false)]
    fn a_denial_is_news(#[case] before: Option<Value>, #[case] code: Option<&str>, #[case] expected: bool) {
        let denial = code.map(|code| Denial { code: code.into(), message: "no".into(), retry: None });
        assert_eq!(is_news(before.as_ref(), denial.as_ref()), expected);
    }
}
