//! What is to be done for one binding. Pure: the same snapshot gives the same plan.
//!
//! Order (MC-201): our finalizer first, so that nothing is started for a binding that can vanish; then what is said of it;
//! its components last, when its spec is valid, its clusterID its own, and its worker usable. A binding that was served
//! before (the Syncer's finalizer is on it) is served again at once, whatever its worker does: vnodes stay Ready while a
//! worker is out of reach. Nothing is ever stopped because of a worker; what runs for a binding that turns out not to own
//! its clusterID is.

use std::time::Duration;

use jiff::SignedDuration;
use kubeocean_api::{ClusterBindingStatus, condition::binding_type, condition::phase};
use kubeocean_runtime::{clock::rfc3339, events::Severity};

use super::{
    action::{Action, News, Plan},
    conditions::{Is, Verdict, Verdicts, status},
    deletion,
    snapshot::Snapshot,
};
use crate::components::{Component, Identity, State};

/// The plan for a binding.
pub fn plan_binding(snapshot: &Snapshot) -> Plan {
    let managed = &snapshot.managed;
    if managed.binding.deleting {
        return deletion::plan_deletion(snapshot);
    }
    if !managed.has_manager_finalizer {
        return Plan { actions: vec![Action::AddFinalizer], again: None };
    }
    if managed.status.phase.is_empty() {
        return Plan { actions: vec![Action::WriteStatus(Box::new(initial(snapshot)))], again: None };
    }
    let verdicts = Verdicts::of(snapshot);
    let (wanted, left) = status(snapshot, &verdicts, None);
    let mut actions = stale(snapshot);
    actions.extend(attend(snapshot));
    actions.extend(start(snapshot, &verdicts));
    actions.extend(say(snapshot, wanted, &verdicts));
    Plan { actions, again: left.and_then(wait) }
}

/// The plan for a name under which there is no binding any more.
pub fn plan_absent(running: &crate::components::Running) -> Vec<Action> {
    let mut actions = vec![Action::Leave];
    if running.identity.is_some() {
        actions.extend([Action::Stop(Component::Syncer), Action::Stop(Component::Proxier)]);
    }
    actions
}

/// What still runs for an earlier binding of the same name, or under a clusterID that another binding owns, ends first.
pub(super) fn stale(snapshot: &Snapshot) -> Vec<Action> {
    let binding = &snapshot.managed.binding;
    let stale = |identity: &Identity| {
        let lost = snapshot.owner.is_some() && identity.cluster_id == binding.cluster_id;
        lost || identity.uid != binding.uid
    };
    if snapshot.running.identity.as_ref().is_some_and(stale) {
        vec![Action::Stop(Component::Syncer), Action::Stop(Component::Proxier)]
    } else {
        Vec::new()
    }
}

pub(super) fn attend(snapshot: &Snapshot) -> Option<Action> {
    // Who lost the clusterID has no business with the worker.
    snapshot.managed.target().filter(|_| snapshot.owner.is_none()).map(Action::Attend)
}

/// Starting is asked for only if something does not run, so that a converged binding has an empty plan.
pub(super) fn start(snapshot: &Snapshot, verdicts: &Verdicts) -> Option<Action> {
    let binding = &snapshot.managed.binding;
    let running = &snapshot.running;
    let runs = running.identity.as_ref().is_some_and(|identity| identity.uid == binding.uid)
        && running.syncer != State::Stopped
        && running.proxier != State::Stopped;
    let wanted = verdicts.spec.is == Is::True && (verdicts.worker_usable() || binding.has_finalizer);
    (wanted && !runs).then(|| {
        Action::Start(Identity {
            binding: binding.name.clone(),
            uid: binding.uid.clone(),
            cluster_id: binding.cluster_id.clone(),
            mount_namespace: binding.spec.mount_namespace.clone(),
        })
    })
}

/// The first status of a new binding (MC-201 step 4).
fn initial(snapshot: &Snapshot) -> ClusterBindingStatus {
    let verdicts = Verdicts {
        spec: Verdict::new(binding_type::SPEC_VALID, Is::True, "Valid", ""),
        credentials: None,
        connected: None,
        syncer: None,
        proxier: None,
    };
    let (mut status, _) = status(snapshot, &verdicts, None);
    status.conditions.retain(|condition| condition.type_ == binding_type::READY);
    // The spec has been seen, not judged.
    status.observed_generation = None;
    debug_assert_eq!(status.phase, phase::PENDING, "nothing is known yet");
    status
}

/// The status if it says something new, and the events that go with it.
pub(super) fn say(snapshot: &Snapshot, wanted: ClusterBindingStatus, verdicts: &Verdicts) -> Vec<Action> {
    if says_the_same(&snapshot.managed.status, &wanted) {
        return Vec::new();
    }
    let news = news(snapshot, &wanted, verdicts);
    std::iter::once(Action::WriteStatus(Box::new(wanted))).chain(news.into_iter().map(Action::Tell)).collect()
}

/// Whether the stored status says already what is wanted, as far as it is the Manager's.
fn says_the_same(stored: &ClusterBindingStatus, wanted: &ClusterBindingStatus) -> bool {
    use binding_type::{POLICIES_RESOLVED, SYNCER_CLEANUP};
    let ours = |type_: &str| ![POLICIES_RESOLVED, SYNCER_CLEANUP].contains(&type_);
    let stored_ours: Vec<_> = stored.conditions.iter().filter(|one| ours(&one.type_)).collect();
    stored.phase == wanted.phase
        && stored.last_sync_time == wanted.last_sync_time
        && stored.observed_generation == wanted.observed_generation
        && stored.worker_version == wanted.worker_version
        && stored.credentials_expire_at == wanted.credentials_expire_at
        && stored_ours.len() == wanted.conditions.len()
        && wanted.conditions.iter().all(|one| stored_ours.iter().any(|other| other.says_the_same_as(one)))
}

/// Events are sent when reason or message of `Ready` or the phase change, never per run (API-810).
fn news(snapshot: &Snapshot, wanted: &ClusterBindingStatus, verdicts: &Verdicts) -> Vec<News> {
    let managed = &snapshot.managed;
    let mut out = Vec::new();
    let ready = verdicts.ready();
    let known = managed.condition(binding_type::READY);
    if known.is_none_or(|known| known.reason != ready.reason || known.message != ready.message) {
        let warning = |reason, what: &str| News {
            severity: Severity::Warning,
            reason,
            message: format!("{what} failed: {}", ready.message),
        };
        out.push(match ready.reason.as_str() {
            "ValidationFailed" => warning("ValidationFailed", "validation"),
            "ConnectivityFailed" => warning("ConnectivityFailed", "connectivity"),
            "ProxierFailed" => warning("ProxierFailed", "Proxier"),
            "SyncerFailed" => warning("SyncerFailed", "Syncer"),
            "ValidationPassed" => normal("Ready", ready.message.clone()),
            _ => normal("Reconciling", ready.message.clone()),
        });
    }
    if managed.status.phase != wanted.phase {
        let message = format!("phase is now {}, it was {}", wanted.phase, managed.status.phase);
        out.push(normal("StatusUpdated", message));
    }
    let insecure = snapshot.report.as_ref().is_some_and(|report| report.insecure);
    let told = managed
        .condition(binding_type::CREDENTIALS_VALID)
        .is_some_and(|known| known.message.contains("insecure-skip-tls-verify"));
    if insecure && !told {
        out.push(News {
            severity: Severity::Warning,
            reason: "InsecureKubeconfig",
            message:
                "the worker's certificate is not verified: insecure-skip-tls-verify is set in the kubeconfig"
                    .to_owned(),
        });
    }
    out
}

pub(super) fn normal(reason: &'static str, message: String) -> News {
    News { severity: Severity::Normal, reason, message }
}

/// A time to wait that is not nothing.
fn wait(left: SignedDuration) -> Option<Duration> {
    Duration::try_from(left).ok().map(|left| left + Duration::from_millis(1))
}

/// RFC 3339 of the deletion, for messages.
pub(super) fn since(snapshot: &Snapshot) -> String {
    snapshot.managed.deleted_at.map_or_else(|| "now".to_owned(), rfc3339)
}
