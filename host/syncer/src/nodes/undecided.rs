//! What a vnode shows while nothing is decided about it: its worker, its Proxier, and amounts that only fall (BU-906).
//!
//! Pure; rows of the plan for a node whose policies are not loaded, or about whose worker nothing is known.

use std::collections::BTreeMap;

use kubeocean_api::{
    keys::{annotation, taint},
    quantity::Rounding,
    resource::{floor_to_granularity, from_base_units, to_base_units},
    vnode::missing_marks,
};

use super::{
    action::{Action, NodeChanges, Shown},
    changes::{admits_pods, know_taints},
    conditions::{mirrored_conditions, proxier_condition, reachable_condition, stated},
    metadata::ExpectedMetadata,
    plan::NodeInput,
    snapshot::Amounts,
    view::{NodeAddress, NodeCondition, NodeView},
    vnode::{Written, address, addresses, unreachable_taint},
};

/// Nothing new is decided: conditions and addresses are kept current, and nothing is offered that others took (BU-906).
pub(super) fn mirror(input: &NodeInput<'_>) -> Vec<Action> {
    let (Some(vnode), Some(pnode)) = (input.vnode, input.pnode) else { return Vec::new() };
    let (wanted, addresses) = (told(input, Some(pnode), vnode), addresses_of(input, vnode));
    let taints = reachability_taint(vnode, input.loss.is_some());
    let written = Written::conditions_of(pnode, input.written);
    let shown = Shown {
        conditions: &wanted,
        addresses: Some(&addresses),
        lowered: lowered(vnode, input.available),
        written: Some(written),
        ..Shown::default()
    };
    let lowers = !shown.lowered.is_empty();
    let status = Action::show(vnode, shown);
    // One of the two per round: both carry the version this was computed from. Whoever waits for the taint to go is placed
    // by the amounts of that moment.
    let admits = taints.as_ref().is_some_and(|changes| admits_pods(changes, vnode));
    let taints = taints.map(Action::PatchVnode);
    let shown = if admits && lowers { status } else { taints.or(status) };
    mark_anew(input, vnode).into_iter().chain(shown).collect()
}

/// The labels it is watched by, where no other write brings them back.
pub(super) fn mark_anew(input: &NodeInput<'_>, vnode: &NodeView) -> Option<Action> {
    let labels = missing_marks(|key| vnode.label(key), &input.binding.name);
    (!labels.is_empty()).then(|| Action::PatchVnode(NodeChanges { labels, ..NodeChanges::of(vnode) }))
}

/// Published quantities that are above these amounts, as they are to be published.
pub(super) fn lowered(vnode: &NodeView, amounts: &Amounts) -> BTreeMap<String, String> {
    let mut lowered = BTreeMap::new();
    for (resource, text) in vnode.status.allocatable.iter().chain(vnode.status.capacity.iter()) {
        let amount = floor_to_granularity(resource, amounts.get(resource).copied().unwrap_or(0));
        // What cannot be read is replaced.
        if to_base_units(resource, text, Rounding::Up).map_or(true, |published| published > amount) {
            lowered.insert(resource.to_owned(), from_base_units(resource, amount).to_string());
        }
    }
    lowered
}

/// What is told of a vnode whatever is decided: the conditions of its node, if there is one, and who can be reached.
pub(super) fn told(input: &NodeInput<'_>, pnode: Option<&NodeView>, vnode: &NodeView) -> Vec<NodeCondition> {
    let mirrored = pnode.map(|pnode| mirrored_conditions(pnode, Some(vnode), input.written));
    let ours = [reachable_condition(input.loss), proxier_condition(input.proxier)];
    let ours = ours.map(|condition| stated(Some(vnode), condition, input.now));
    mirrored.into_iter().flatten().chain(ours).collect()
}

pub(super) fn addresses_of(input: &NodeInput<'_>, vnode: &NodeView) -> Vec<NodeAddress> {
    addresses(input.vnode_name, address(input.vnode_name, Some(vnode), input.proxier))
}

/// Nothing is known about the worker: only whether it can be reached is shown.
pub(super) fn mark_reachability(input: &NodeInput<'_>) -> Vec<Action> {
    let Some(vnode) = input.vnode.filter(|vnode| !vnode.terminating()) else { return Vec::new() };
    if input.loss.is_none() {
        return Vec::new();
    }
    let wanted = stated(Some(vnode), reachable_condition(input.loss), input.now);
    let taints = reachability_taint(vnode, true);
    taints
        .map(Action::PatchVnode)
        .or_else(|| Action::show(vnode, Shown { conditions: &[wanted], ..Shown::default() }))
        .into_iter()
        .collect()
}

pub(super) fn reachability_taint(vnode: &NodeView, unreachable: bool) -> Option<NodeChanges> {
    let marked = vnode.taint(taint::WORKER_UNREACHABLE).is_some();
    if marked == unreachable {
        return None;
    }
    let mut taints = vnode.spec.taints.to_vec();
    let mut changes = NodeChanges::of(vnode);
    if unreachable {
        taints.push(unreachable_taint());
        // Known as ours from this write on, also to an earlier program.
        if let Some(before) = ExpectedMetadata::readable(vnode.annotation(annotation::EXPECTED_METADATA)) {
            know_taints(&mut changes, &before, &[unreachable_taint()]);
        }
    } else {
        taints.retain(|t| t.key != taint::WORKER_UNREACHABLE);
    }
    changes.taints = Some(taints);
    Some(changes)
}
