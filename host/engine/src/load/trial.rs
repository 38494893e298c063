//! The trial call: an entry decides synthetic and some real rows twice, in two instances, in two orders (PO-703).
//!
//! It finds undeclared facts, invalid output and hidden state before the entry decides anything.

use std::collections::BTreeMap;

use super::error::{LoadCode, LoadError};
use crate::entry::running::Running;
use crate::facts::{NodeFacts, PolicyFacts};
use crate::frame::{RowKey, project};
use crate::wasm::bindings::types;

/// Real nodes that take part.
pub(crate) const SAMPLE_NODES: usize = 3;

/// Two nodes no cluster has: an ordinary one and an empty one. Two, so that there is an order to reverse.
pub(crate) fn synthetic() -> [NodeFacts; 2] {
    let amounts = |cpu, memory, gpu| -> BTreeMap<String, i64> {
        [("cpu".to_owned(), cpu), ("memory".to_owned(), memory), ("nvidia.com/gpu".to_owned(), gpu)].into()
    };
    [
        NodeFacts {
            node_name: "trial-a".to_owned(),
            vnode_name: "vnode-trial-a".to_owned(),
            labels: [("kubernetes.io/hostname".to_owned(), "trial-a".to_owned())].into(),
            arch: "amd64".to_owned(),
            os: "linux".to_owned(),
            allocatable: amounts(16_000, 64 << 30, 8),
            used: amounts(4200, 20 << 30, 2),
            leased: amounts(1000, 1 << 30, 0),
            ready: true,
            schedulable: true,
            created_unix: 1_700_000_000,
            ..NodeFacts::default()
        },
        NodeFacts {
            node_name: "trial-b".to_owned(),
            vnode_name: "vnode-trial-b".to_owned(),
            ..NodeFacts::default()
        },
    ]
}

/// Runs the trial. `samples` are real nodes, at most [`SAMPLE_NODES`] of them are used.
pub(crate) fn trial(
    running: &Running,
    facts: &PolicyFacts,
    samples: &[std::sync::Arc<NodeFacts>],
    now: types::Now,
) -> Result<(), LoadError> {
    let made = synthetic();
    let nodes = made.iter().chain(samples.iter().take(SAMPLE_NODES).map(AsRef::as_ref));
    let keys: Vec<RowKey> = nodes
        .map(|node| {
            let mut key = Vec::new();
            project(&running.needs, node, facts, &|r| node.available(r), now.utc_offset_seconds, &mut key);
            key.into()
        })
        .collect();
    let failed = |error: crate::fault::CallError| LoadError::of_guest(LoadCode::TrialFailed, &error);
    let forwards = running.run(now, &keys).map_err(failed)?;
    let reversed: Vec<RowKey> = keys.iter().rev().cloned().collect();
    let backwards = running.run(now, &reversed).map_err(failed)?;
    if forwards.iter().eq(backwards.iter().rev()) {
        return Ok(());
    }
    Err(LoadError::new(LoadCode::NotPure, "the same rows in another order got other answers"))
}
