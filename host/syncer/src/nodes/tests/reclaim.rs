//! The end of a lease whose node stays: grace, eviction, reopening.

use kubeocean_api::keys::{annotation, taint};

use super::model::{Model, at, offer, pod, withhold};
use crate::nodes::{
    action::{Action, PodDeletion},
    decision::Reclaim,
    withdraw::PodOnVnode,
};

#[test]
fn graceful_reclaim_waits_then_evicts_and_reopens() {
    let mut model = Model::leased();
    model.pods = vec![
        pod("normal"),
        PodOnVnode { tolerates_reclaim: true, ..pod("tolerant") },
        PodOnVnode { system: true, ..pod("system") },
        PodOnVnode { deleting: true, ..pod("leaving") },
    ];
    model.decision = Some(withhold(Reclaim::Graceful(60)));
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoSchedule"));
    assert_eq!(model.plan().next_wake, Some(at(60)));
    model.now = 59;
    model.written = None; // a restart in between
    assert_eq!(model.settle(), Vec::<String>::new());
    model.now = 60;
    let plan = model.plan();
    let deleted: Vec<_> = plan
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::DeletePod { uid, why: PodDeletion::Reclaimed, .. } => Some(uid.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(deleted, ["normal"]);
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoExecute"));
    model.decision = Some(offer(&[]));
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS), None);
    assert_eq!(model.vnode().annotation(annotation::RECLAIM_SINCE), None);
}
