//! What to do for one pod (TD section 5), as a pure function of what is known.
//!
//! The rows of the specification's table, first match wins: no vpod, deleting, a ppod that is foreign, stale or ours,
//! no ppod (lost, or to be created). Mapping annotations on the vpod are hints: the place of the copy is computed, the
//! copy is recognised by [`super::ownership`], and whether a copy ever ran is read from the vpod's status, which
//! tenants cannot write. Order within a plan: mapping before creation (TD-503), the vpod's end before the ppod's
//! deletion, so that a crash in between never runs a pod twice.
//! Called by the reconcile loop in [`super::apply`]. Invariant: applying a plan and planning again ends in no action.

use std::time::Duration;

use jiff::Timestamp;
use kubeocean_api::{
    keys::{annotation, condition_type, label, namespace},
    name::ObjectKey,
};

use super::{
    action::{DeleteReason, PodAction, PodPlan, Refusal, RefusalReason, Wake},
    admission::plan_admission,
    deletion::{self, delete, plan_deleting, plan_without_vpod},
    in_place::is_outdated,
    metadata::{self, MetadataChange},
    ownership::{self, Owned, Ownership},
    snapshot::{Absence, PodScope, PodSnapshot, VnodeState},
    status::{self, REASON_LOST, StatusFields, StatusPlan},
    view::{Ppod, Vpod},
};

/// Least time between two status writes that are not urgent, and how long the first one waits for a second: a kubelet
/// reports several times while a pod starts.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a ppod may report nothing before the vpod tells that there is one. A kubelet reports sooner, and then that is
/// one write less. A ppod that goes while no Syncer looks, less than this after it was made, is made again, whatever it
/// did meanwhile.
pub const MARK_AFTER: Duration = Duration::from_secs(5);

/// Event reason of TD-804.
pub const EVENT_FAILED_SCHEDULING: &str = "FailedSchedulingPod";

/// What the owner of a pod is told whose copy finds its place taken.
pub(super) const NAME_TAKEN: &str = "a pod of somebody else has the name in the worker cluster that the copy of this pod \
                                     needs; it must be removed there";

/// What to do for one pod.
pub fn plan_pod(snapshot: &PodSnapshot) -> PodPlan {
    let Some(vpod) = snapshot.vpod.as_deref() else { return plan_without_vpod(snapshot) };
    if let Some(plan) = plan_strays(snapshot) {
        return plan;
    }
    if let Some(deletion) = vpod.deletion {
        return plan_deleting(snapshot, vpod, deletion);
    }
    let Some(ppod) = snapshot.ppod.as_deref() else { return plan_absent(snapshot, vpod, None) };
    match ownership::check(ppod, &snapshot.scope.stamp, snapshot.claim()) {
        Ownership::Foreign(why) => plan_absent(snapshot, vpod, Some(&why)),
        Ownership::Stale(owned) => plan_stale(snapshot, ppod, owned),
        Ownership::Legacy(owned) => plan_present(snapshot, vpod, ppod, &owned, &stamps(&snapshot.scope)),
        Ownership::Ours(owned) => plan_present(snapshot, vpod, ppod, &owned, &MetadataChange::default()),
    }
}

/// Whether a vpod is one that is never mapped, wherever it runs (TD-404). Only its namespace tells: any user may set a
/// label.
pub fn is_never_mapped(scope: &PodScope, key: &ObjectKey) -> bool {
    *key.namespace == *scope.system_namespace || namespace::NEVER_MAPPED.contains(&&*key.namespace)
}

/// Whether a vpod is copied at all: not one of the system, and of DaemonSets only those that ask for it (TD-404).
pub(super) fn is_creatable(scope: &PodScope, vpod: &Vpod) -> bool {
    let asked = vpod.annotations.get(annotation::RUNNING_DAEMONSET).is_some_and(|value| value == "true");
    !is_never_mapped(scope, &vpod.key) && (!vpod.daemonset || asked || scope.running_daemonset_by_default)
}

/// Copies at another place than the computed one; someone cloned a ppod in the worker cluster.
fn plan_strays(snapshot: &PodSnapshot) -> Option<PodPlan> {
    let mut actions = Vec::new();
    for stray in snapshot.strays.iter().filter(|stray| stray.deletion.is_none()) {
        match ownership::check(stray, &snapshot.scope.stamp, snapshot.claim()) {
            Ownership::Ours(owned) | Ownership::Legacy(owned) => {
                actions.push(delete(owned, None, DeleteReason::Misplaced));
            }
            Ownership::Stale(owned) => return Some(plan_stale(snapshot, stray, owned)),
            Ownership::Foreign(_) => {}
        }
    }
    (!actions.is_empty()).then(|| PodPlan { actions, ..PodPlan::default() })
}

/// The copy of an earlier vpod of this name (row 5). Its DELETED event wakes the vpod. The vpod it names must be known
/// to be gone: with two lists of different age the "stale" one could be the newer.
pub(super) fn plan_stale(snapshot: &PodSnapshot, ppod: &Ppod, owned: Owned) -> PodPlan {
    let named = ppod.annotation(annotation::VIRTUAL_POD_UID).unwrap_or_default();
    let known_gone = named.is_empty() || snapshot.gone_vpods.contains(named);
    let action = if known_gone {
        deletion::remove_orphan(snapshot, ppod, owned, DeleteReason::Stale)
    } else {
        ppod.deletion.is_none().then_some(PodAction::ConfirmVpodGone)
    };
    let wake = if known_gone { deletion::wake_for_orphan(ppod, snapshot.now) } else { Wake::OnEvent };
    PodPlan { actions: action.into_iter().collect(), wake, mirrored: false }
}

/// There is no copy: it was lost (row 6), or is to be created (rows 7 and 8). `occupied` says who sits in its place.
fn plan_absent(snapshot: &PodSnapshot, vpod: &Vpod, occupied: Option<&str>) -> PodPlan {
    let nothing = PodPlan::default();
    if vpod.status.phase.is_terminal() {
        return nothing;
    }
    let scope = &snapshot.scope;
    let witnessed = match &snapshot.absence {
        Absence::Witnessed(lost) if *lost.virtual_uid == *vpod.uid => Some(lost),
        _ => None,
    };
    let creatable = is_creatable(scope, vpod);
    let (worker_node, deleting) = match &snapshot.vnode {
        VnodeState::Ours { worker_node, deleting } => (worker_node.as_deref(), *deleting),
        VnodeState::Missing | VnodeState::NotOurs if witnessed.is_none() => return nothing,
        VnodeState::Missing | VnodeState::NotOurs => (None, true),
    };
    let ran = !vpod.status.blank || witnessed.is_some_and(|lost| lost.status.started);
    let recorded = witnessed.is_some_and(|lost| vpod.recorded_uid() == Some(&*lost.uid));
    if recorded || ran && (creatable || witnessed.is_some()) {
        return plan_lost(snapshot, vpod, occupied.is_some());
    }
    if !creatable || deleting || scope.binding_deleting {
        return nothing;
    }
    let refuse =
        |refusal| PodPlan { actions: vec![PodAction::Refuse(refusal)], wake: Wake::Backoff, mirrored: false };
    let ppod = snapshot.ppod_key();
    if let Some(why) = occupied {
        return refuse(
            Refusal::new(RefusalReason::NameConflict, NAME_TAKEN).particulars(format!("pod {ppod}: {why}")),
        );
    }
    // Before anything is written: a pod that cannot be mapped leaves nothing behind.
    if let Some(message) = vpod.spec.references.not_mapped() {
        return refuse(Refusal::new(RefusalReason::NotSupported, message));
    }
    let Some(worker_node) = worker_node else {
        let message = format!("node {} does not say which worker node it stands for", vpod.node);
        return refuse(Refusal::new(RefusalReason::DependencyMissing, message));
    };
    let mut plan = PodPlan::default();
    if let Some(instead) = plan_admission(snapshot, vpod, &mut plan.actions) {
        return instead;
    }
    let clear_uid = vpod.recorded_uid().is_some();
    if clear_uid || !vpod.is_mapped_to(&ppod) {
        plan.actions.push(PodAction::WriteMapping {
            uid: (&*vpod.uid).into(),
            resource_version: vpod.resource_version.clone(),
            ppod,
            clear_uid,
        });
    }
    plan.actions.push(PodAction::CreatePpod { uid: (&*vpod.uid).into(), worker_node: worker_node.into() });
    plan
}

fn plan_lost(snapshot: &PodSnapshot, vpod: &Vpod, occupied: bool) -> PodPlan {
    let action = match &snapshot.absence {
        absence if !occupied && !absence.is_proven() => Some(PodAction::ConfirmPpodGone),
        Absence::Witnessed(lost) if *lost.virtual_uid == *vpod.uid && lost.status.phase.is_terminal() => {
            deletion::final_report(snapshot, vpod, lost)
        }
        _ => None,
    };
    let action = action.unwrap_or_else(|| PodAction::FailVpod {
        uid: (&*vpod.uid).into(),
        message: "the pod's copy in the worker cluster was deleted".to_owned(),
        event: Some(REASON_LOST),
    });
    PodPlan { actions: vec![action], ..PodPlan::default() }
}

/// The copy is there and ours (rows 10 to 13).
fn plan_present(
    snapshot: &PodSnapshot,
    vpod: &Vpod,
    ppod: &Ppod,
    owned: &Owned,
    stamps: &MetadataChange,
) -> PodPlan {
    let alive = ppod.deletion.is_none() && !ppod.status.phase.is_terminal();
    if alive && vpod.status.phase.is_terminal() {
        // The vpod ended first, and the Syncer stopped before the deletion. Its workload has a successor already.
        let actions = vec![delete(owned.clone(), None, DeleteReason::VpodEnded)];
        return PodPlan { actions, ..PodPlan::default() };
    }
    if alive && !ppod.scheduled && snapshot.unscheduled_for >= snapshot.scope.scheduling_timeout {
        return plan_unscheduled(snapshot, vpod, ppod, owned);
    }
    let mut plan = PodPlan::default();
    if alive {
        plan_follow(vpod, ppod, owned, stamps, &mut plan);
    }
    if !ppod.scheduled && ppod.deletion.is_none() {
        plan.wake = Wake::At(scheduling_deadline(snapshot));
    }
    plan_mirror(snapshot, vpod, ppod, plan)
}

/// TD-804. The watch may be late, so the ppod is read first. The vpod ends before it: if the Syncer stops in between, the
/// vpod is not taken for one that never started.
fn plan_unscheduled(snapshot: &PodSnapshot, vpod: &Vpod, ppod: &Ppod, owned: &Owned) -> PodPlan {
    let seconds = snapshot.scope.scheduling_timeout.as_secs();
    let mut message = format!("the worker cluster did not schedule the pod within {seconds} s");
    let why = ppod.status.unscheduled_message.as_deref().unwrap_or("its scheduler did not say why");
    if let Some(why) = snapshot.wording(vpod, &ppod.uid).tell(why) {
        message.push_str(": ");
        message.push_str(&why);
    }
    let uid = (&*vpod.uid).into();
    let actions = vec![
        PodAction::ConfirmUnscheduled { ppod: owned.clone() },
        PodAction::FailVpod { uid, message, event: Some(EVENT_FAILED_SCHEDULING) },
        delete(owned.clone(), None, DeleteReason::Unschedulable),
    ];
    PodPlan { actions, ..PodPlan::default() }
}

fn scheduling_deadline(snapshot: &PodSnapshot) -> Timestamp {
    let left = snapshot.scope.scheduling_timeout.saturating_sub(snapshot.unscheduled_for);
    snapshot.now.saturating_add(left).unwrap_or(Timestamp::MAX)
}

/// Metadata, deadline, spec and debug containers go down (TD-801 to TD-803, TD-808).
fn plan_follow(vpod: &Vpod, ppod: &Ppod, owned: &Owned, stamps: &MetadataChange, plan: &mut PodPlan) {
    let mut change = metadata::plan_down(vpod, ppod);
    change.labels.extend(stamps.labels.clone());
    change.annotations.extend(stamps.annotations.clone());
    // The API server lets a deadline be set or shortened, never removed or extended.
    let deadline = vpod
        .spec
        .active_deadline_seconds
        .filter(|wanted| ppod.active_deadline_seconds.is_none_or(|present| *wanted < present));
    if !change.is_empty() || deadline.is_some() {
        plan.actions.push(PodAction::PatchPpod {
            ppod: owned.clone(),
            change,
            active_deadline_seconds: deadline,
        });
    }
    if let Some(expected) = ppod.annotation(annotation::EXPECTED_SPEC)
        && is_outdated(expected, &vpod.spec.mutable)
    {
        plan.actions.push(PodAction::FollowSpec {
            uid: (&*vpod.uid).into(),
            ppod: owned.clone(),
            expected: expected.into(),
        });
    }
    let missing: Vec<Box<str>> = vpod
        .spec
        .ephemeral_containers
        .iter()
        .filter(|name| !ppod.ephemeral_containers.contains(name))
        .cloned()
        .collect();
    if !missing.is_empty() {
        plan.actions.push(PodAction::AddEphemeralContainers { ppod: owned.clone(), names: missing });
    }
}

/// Status, UID and the worker's metadata go up, in one write.
pub(super) fn plan_mirror(snapshot: &PodSnapshot, vpod: &Vpod, ppod: &Ppod, mut plan: PodPlan) -> PodPlan {
    let change = if vpod.deletion.is_some() {
        MetadataChange::default()
    } else {
        change_of_vpod(snapshot, vpod, ppod)
    };
    let compared = if snapshot.mirrored == Some(vpod.status.hashes.total()) {
        StatusPlan::Converged
    } else {
        status::plan_status(vpod, &ppod.status, &snapshot.wording(vpod, &ppod.uid), snapshot.now)
    };
    let (status, urgent) = match compared {
        StatusPlan::Unread => {
            plan.actions.push(PodAction::ReadPpod { ppod: ppod.key.clone() });
            return plan;
        }
        StatusPlan::Converged => {
            plan.mirrored = true;
            (StatusFields::new(), false)
        }
        StatusPlan::Change { fields, urgent } => (fields, urgent),
    };
    if status.is_empty() && change.is_empty() {
        return plan;
    }
    // The worker's clock may be ahead of ours.
    let created = ppod.created.filter(|created| *created <= snapshot.now);
    let last = snapshot.status_written.max(created).unwrap_or(Timestamp::MIN);
    let interval =
        if tells_only_that_it_is_there(vpod, ppod, &change) { MARK_AFTER } else { STATUS_INTERVAL };
    let due = last.saturating_add(interval).unwrap_or(Timestamp::MAX);
    if !urgent && snapshot.now < due {
        plan.wake = match plan.wake {
            Wake::At(other) => Wake::At(other.min(due)),
            Wake::OnEvent | Wake::Backoff => Wake::At(due),
        };
        return plan;
    }
    plan.actions.push(PodAction::PatchVpod {
        uid: (&*vpod.uid).into(),
        resource_version: vpod.resource_version.clone(),
        status,
        change,
    });
    plan
}

/// Whether the ppod has reported nothing, and nothing else has to be told or taken back.
fn tells_only_that_it_is_there(vpod: &Vpod, ppod: &Ppod, change: &MetadataChange) -> bool {
    let refused =
        || vpod.status.conditions.list().iter().any(|it| it["type"] == condition_type::WORKER_POD_CREATED);
    !ppod.status.started
        && ppod.status.unscheduled_message.is_none()
        && change.labels.is_empty()
        && change.annotations.keys().all(|key| key == annotation::PHYSICAL_POD_UID)
        && !refused()
}

/// The worker's edits, and the mapping as it should be: a tenant may have changed it.
fn change_of_vpod(snapshot: &PodSnapshot, vpod: &Vpod, ppod: &Ppod) -> MetadataChange {
    let mut change = metadata::plan_up(vpod, ppod, &snapshot.scope.metadata_deny);
    let mut annotate = |key: &str, value: &str| {
        if vpod.annotation(key) != Some(value) {
            change.annotations.insert(key.to_owned(), Some(value.to_owned()));
        }
    };
    annotate(annotation::PHYSICAL_POD_NAMESPACE, &ppod.key.namespace);
    annotate(annotation::PHYSICAL_POD_NAME, &ppod.key.name);
    annotate(annotation::PHYSICAL_POD_UID, &ppod.uid);
    change
}

fn stamps(scope: &PodScope) -> MetadataChange {
    let set = |key: &str, value: &str| [(key.to_owned(), Some(value.to_owned()))].into();
    MetadataChange {
        labels: set(label::CLUSTER_BINDING, &scope.stamp.binding),
        annotations: set(annotation::COMPUTING_CLUSTER_UID, &scope.stamp.computing_cluster_uid),
    }
}
