//! The plan for a binding that is being deleted (MC section 5). Pure.
//!
//! The Syncer goes first: it drains the vnodes, releases the copies and takes its finalizer off. Until then its components
//! run, and are started where they do not. Then the components end, Syncer before Proxier, and the Manager's finalizer
//! goes last, so that whoever sees the binding gone knows that nothing of it runs.

use std::time::Duration;

use jiff::SignedDuration;
use kubeocean_api::{
    condition::binding_type::TERMINATING,
    keys::{annotation, namespace},
};

use super::{
    action::{Action, Plan, Reach},
    conditions::{Is, Verdict, Verdicts, status},
    plan::{attend, normal, say, since, stale, start},
    snapshot::Snapshot,
};
use crate::components::{Component, State};

/// After this long without a worker the condition says what can be done.
const HINT_AFTER: SignedDuration = SignedDuration::from_mins(10);

/// How often a right that is missing is asked for again: nobody tells when it is granted.
const ASK_AGAIN: Duration = Duration::from_mins(1);

/// The plan.
pub(super) fn plan_deletion(snapshot: &Snapshot) -> Plan {
    let binding = &snapshot.managed.binding;
    let verdicts = Verdicts::of(snapshot);
    if wants_detach(snapshot) {
        return detach(snapshot, &verdicts);
    }
    if binding.has_finalizer {
        return wait_for_syncer(snapshot, &verdicts);
    }
    let mut actions = Vec::new();
    let stops = stop(snapshot);
    if !stops.is_empty() {
        let message = "the Syncer has finished; its components are being stopped";
        let terminating = Verdict::new(TERMINATING, Is::True, "DeletingComponents", message);
        actions.extend(say(snapshot, status(snapshot, &verdicts, Some(terminating)).0, &verdicts));
        actions.push(Action::Tell(normal("Cleanup", message.to_owned())));
        actions.extend(stops);
    }
    actions.push(Action::Leave);
    if snapshot.managed.has_manager_finalizer {
        actions.push(Action::RemoveFinalizer);
        actions.push(Action::Tell(normal("Deleted", "ClusterBinding has been cleaned up".to_owned())));
    }
    Plan { actions, again: None }
}

/// Whether somebody gave the worker up, and something of the binding may be left.
pub(super) fn wants_detach(snapshot: &Snapshot) -> bool {
    let binding = &snapshot.managed.binding;
    binding.deleting && binding.has_finalizer && binding.force_detach
}

/// The Syncer ends, so that nothing of it is written later, and its share is done without the worker.
fn detach(snapshot: &Snapshot, verdicts: &Verdicts) -> Plan {
    let say_that = |message: String| {
        let terminating = Verdict::new(TERMINATING, Is::True, "ForcedDetach", message);
        say(snapshot, status(snapshot, verdicts, Some(terminating)).0, verdicts)
    };
    if snapshot.detach_forbidden {
        let leases = namespace::NODE_LEASE;
        let message = format!(
            "the worker was given up, but nothing is removed: this Manager may not delete leases in namespace {leases}, \
             so it would stop half way; the chart's value manager.forcedDetach.enabled=true grants that and the rest"
        );
        return Plan { actions: say_that(message), again: Some(ASK_AGAIN) };
    }
    let (reach, message) = match &snapshot.owner {
        None => {
            let message = "the worker was given up: what the computing cluster has of it is being removed";
            (Reach::ClusterId, message.to_owned())
        }
        Some(owner) => {
            let message = format!(
                "the worker was given up: the virtual nodes of this binding are being removed, and nothing else, \
                 because the clusterID belongs to ClusterBinding {owner}"
            );
            (Reach::OwnVnodes, message)
        }
    };
    let mut actions = say_that(message);
    actions.extend(stop(snapshot));
    actions.extend([Action::Leave, Action::Detach(reach)]);
    Plan { actions, again: None }
}

/// Ends what runs, the Syncer first.
fn stop(snapshot: &Snapshot) -> Vec<Action> {
    let runs = |state: &State| *state != State::Stopped;
    if runs(&snapshot.running.syncer) || runs(&snapshot.running.proxier) {
        vec![Action::Stop(Component::Syncer), Action::Stop(Component::Proxier)]
    } else {
        Vec::new()
    }
}

fn wait_for_syncer(snapshot: &Snapshot, verdicts: &Verdicts) -> Plan {
    let (terminating, again) = terminating(snapshot, verdicts);
    let known = snapshot.managed.condition(TERMINATING);
    let first = known.is_none();
    let message = terminating.message.clone();
    let mut actions = stale(snapshot);
    actions.extend(attend(snapshot));
    actions.extend(start(snapshot, verdicts));
    actions.extend(say(snapshot, status(snapshot, verdicts, Some(terminating)).0, verdicts));
    if first {
        actions.push(Action::Tell(normal("WaitingSyncerCleanup", message)));
    }
    Plan { actions, again }
}

fn terminating(snapshot: &Snapshot, verdicts: &Verdicts) -> (Verdict, Option<Duration>) {
    let mut again = None;
    let (reason, text) = if let Some(owner) = &snapshot.owner {
        let key = annotation::FORCE_DETACH;
        let text = format!(
            "the clusterID belongs to ClusterBinding {owner}, so nothing is cleaned up under it; annotation \
             {key}: \"true\" removes the virtual nodes of this binding and lets it go"
        );
        ("WaitingForSyncer", text)
    } else if verdicts.worker_usable() || snapshot.report.is_none() {
        let text =
            "the Syncer is removing virtual nodes and copies; condition SyncerCleanup says how far it is";
        ("WaitingForSyncer", text.to_owned())
    } else {
        let mut text = format!(
            "the Syncer cannot clean up since {}, because the worker cannot be used: {}",
            since(snapshot),
            verdicts.ready().message
        );
        let waited =
            snapshot.managed.deleted_at.map(|at| snapshot.now.duration_since(at)).unwrap_or_default();
        if waited >= HINT_AFTER {
            let key = annotation::FORCE_DETACH;
            text.push_str("; it goes on as soon as the worker can be used again");
            text.extend([". If it is gone for good, annotation ", key, ": \"true\" gives it up"]);
        } else {
            again = Duration::try_from(HINT_AFTER - waited).ok();
        }
        ("WorkerUnreachable", text)
    };
    (Verdict::new(TERMINATING, Is::True, reason, text), again)
}
