//! How pods end (TD section 9).
//!
//! A vpod that is being deleted lives as long as its ppod: the ppod is deleted with the vpod's grace period, and when
//! it is gone the vpod's deletion is finished, as a kubelet would. A ppod whose vpod is gone is deleted too. Both need
//! proof: a DELETED event or a live read, never a gap in a cache. Pure; called by the planner.

use std::time::Duration;

use jiff::Timestamp;
use kubeocean_api::keys::annotation;

use super::{
    action::{DeleteReason, PodAction, PodPlan, Wake},
    metadata::MetadataChange,
    ownership::{self, Owned, Ownership},
    plan,
    snapshot::{Absence, PodSnapshot, VnodeState},
    status::{self, StatusPlan},
    view::{Deletion, Ppod, Vpod},
};

/// How long after its grace period a ppod without vpod may still be there before its node is asked about.
const OVERDUE_AFTER: Duration = Duration::from_mins(1);

/// No vpod of this key: its ppods go (row 1, TD-908).
pub(super) fn plan_without_vpod(snapshot: &PodSnapshot) -> PodPlan {
    let mut plan = PodPlan::default();
    let mut unproven = false;
    for ppod in snapshot.ppod.iter().chain(&snapshot.strays) {
        let Ownership::Stale(owned) = ownership::check(ppod, &snapshot.scope.stamp, snapshot.claim()) else {
            continue;
        };
        let virtual_uid = ppod.annotation(annotation::VIRTUAL_POD_UID).unwrap_or_default();
        if snapshot.gone_vpods.contains(virtual_uid) {
            plan.actions.extend(remove_orphan(snapshot, ppod, owned, DeleteReason::VpodGone));
            plan.wake = wake_for_orphan(ppod, snapshot.now);
        } else {
            unproven = true;
        }
    }
    if unproven {
        plan.actions = vec![PodAction::ConfirmVpodGone];
    }
    plan
}

/// The vpod is being deleted (TD-901 ff.).
pub(super) fn plan_deleting(snapshot: &PodSnapshot, vpod: &Vpod, deletion: Deletion) -> PodPlan {
    let Some(ppod) = &snapshot.ppod else {
        return if is_managed(snapshot) { plan_finish(snapshot, vpod, deletion) } else { PodPlan::default() };
    };
    match ownership::check(ppod, &snapshot.scope.stamp, snapshot.claim()) {
        // A foreign pod has our name: there is no copy of this vpod (TD-905).
        Ownership::Foreign(_) if is_managed(snapshot) => finish(vpod, deletion, PodPlan::default()),
        Ownership::Foreign(_) => PodPlan::default(),
        Ownership::Stale(owned) => plan::plan_stale(snapshot, ppod, owned),
        Ownership::Ours(owned) | Ownership::Legacy(owned) => {
            match remove(ppod, owned.clone(), deletion.grace_seconds, DeleteReason::VpodDeleting) {
                Some(action) => PodPlan { actions: vec![action], ..PodPlan::default() },
                // How it ends still matters, to Jobs above all.
                None => plan::plan_mirror(snapshot, vpod, ppod, PodPlan::default()),
            }
        }
    }
}

/// A vpod whose vnode vanished is still ours to end if it was ours before, which only its vnode can tell.
fn is_managed(snapshot: &PodSnapshot) -> bool {
    matches!(snapshot.vnode, VnodeState::Ours { .. }) || matches!(snapshot.absence, Absence::Witnessed(_))
}

/// Deletes a ppod, or shortens a deletion in progress when the vpod asks for less.
fn remove(ppod: &Ppod, owned: Owned, grace_seconds: Option<i64>, why: DeleteReason) -> Option<PodAction> {
    let needed = match ppod.deletion {
        None => true,
        Some(running) => match (grace_seconds, running.grace_seconds) {
            (Some(wanted), Some(given)) => wanted < given,
            _ => false,
        },
    };
    needed.then(|| delete(owned, grace_seconds, why))
}

/// Deletes a ppod whose vpod is known to be gone. If that was deleted by force, nobody waits for the worker node; nor if
/// the node is dead, which would keep the ppod for ever.
pub(super) fn remove_orphan(
    snapshot: &PodSnapshot,
    ppod: &Ppod,
    owned: Owned,
    why: DeleteReason,
) -> Option<PodAction> {
    let named = ppod.annotation(annotation::VIRTUAL_POD_UID).unwrap_or_default();
    let forced = snapshot.forced_vpods.contains(named);
    let abandoned = snapshot.node_is_dead && is_overdue(ppod, snapshot.now);
    remove(ppod, owned, (forced || abandoned).then_some(0), why)
}

/// Whether a ppod should have ended long ago.
pub(super) fn is_overdue(ppod: &Ppod, now: Timestamp) -> bool {
    ppod.deletion.is_some_and(|deletion| overdue_at(deletion) <= now)
}

fn overdue_at(deletion: Deletion) -> Timestamp {
    deletion.deadline.saturating_add(OVERDUE_AFTER).unwrap_or(Timestamp::MAX)
}

/// When to look again whether an orphan has been left by its node.
pub(super) fn wake_for_orphan(ppod: &Ppod, now: Timestamp) -> Wake {
    match ppod.deletion.filter(|deletion| !deletion.is_forced()) {
        Some(deletion) => {
            let later = now.saturating_add(OVERDUE_AFTER).unwrap_or(Timestamp::MAX);
            Wake::At(if is_overdue(ppod, now) { later } else { overdue_at(deletion) })
        }
        None => Wake::OnEvent,
    }
}

fn plan_finish(snapshot: &PodSnapshot, vpod: &Vpod, deletion: Deletion) -> PodPlan {
    let never_mapped =
        vpod.annotation(annotation::PHYSICAL_POD_NAME).is_none() && vpod.recorded_uid().is_none();
    let mut plan = PodPlan::default();
    match &snapshot.absence {
        absence if !absence.is_proven() && (!never_mapped || !vpod.status.blank) => {
            plan.actions.push(PodAction::ConfirmPpodGone);
            return plan;
        }
        Absence::Unproven | Absence::Confirmed => {}
        Absence::Witnessed(lost) => {
            // A kubelet reports the last phase before it lets a pod go.
            if *lost.virtual_uid == *vpod.uid
                && lost.status.phase.is_terminal()
                && !vpod.status.phase.is_terminal()
                && let Some(report) = final_report(snapshot, vpod, lost)
            {
                plan.actions.push(report);
            }
        }
    }
    let reported = !plan.actions.is_empty();
    if vpod.has_finalizers && !vpod.status.phase.is_terminal() && !reported && !vpod.status.blank {
        plan.actions.push(PodAction::FailVpod {
            uid: (&*vpod.uid).into(),
            message: "the pod was deleted before it ended".to_owned(),
            event: None,
        });
    }
    finish(vpod, deletion, plan)
}

/// The status of a ppod that ended by itself and vanished before it was mirrored.
pub(super) fn final_report(
    snapshot: &PodSnapshot,
    vpod: &Vpod,
    lost: &super::snapshot::LostPpod,
) -> Option<PodAction> {
    let fields = status::plan_status(vpod, &lost.status, &snapshot.wording(vpod, &lost.uid), snapshot.now);
    let StatusPlan::Change { fields, .. } = fields else { return None };
    Some(PodAction::PatchVpod {
        uid: (&*vpod.uid).into(),
        resource_version: vpod.resource_version.clone(),
        status: fields,
        change: MetadataChange::default(),
    })
}

fn finish(vpod: &Vpod, deletion: Deletion, mut plan: PodPlan) -> PodPlan {
    // Deleted already, and held by somebody's finalizer.
    if deletion.grace_seconds == Some(0) && vpod.has_finalizers {
        return PodPlan { wake: Wake::OnEvent, ..plan };
    }
    plan.actions.push(PodAction::ReleaseTokens { uid: (&*vpod.uid).into() });
    plan.actions.push(PodAction::FinishVpod { uid: (&*vpod.uid).into() });
    plan
}

pub(super) fn delete(ppod: Owned, grace_seconds: Option<i64>, why: DeleteReason) -> PodAction {
    PodAction::DeletePpod { ppod, grace_seconds, why }
}
