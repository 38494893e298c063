//! Whether a vnode says what it shall say (BU section 6 *Do better*): quantities by value, conditions without
//! heartbeats, keys of others ignored.
//!
//! Pure. In: content and vnode. Out: [`Difference`]. `Difference::None` costs no request.

use jiff::{SignedDuration, Timestamp};
use kubeocean_api::{
    quantity::Quantity,
    resource::{CPU, MEMORY, to_base_units},
};
use kubeocean_runtime::packed::PackedTexts;
use serde_json::{Map, Value};

use super::{
    view::{NodeCondition, NodeView, READY, Texts},
    vnode::{Content, Written},
};
use kubeocean_runtime::clock::parse_rfc3339;

/// Shortest time between two heartbeats passed on.
const HEARTBEAT: SignedDuration = SignedDuration::from_mins(5);
/// A small grow is written at most this often.
const SMALL_GROW_PERIOD: SignedDuration = SignedDuration::from_secs(30);
/// Below both this share and these amounts a grow is small (BU section 20).
const SMALL_PERCENT: i128 = 1;
const SMALL_CPU_MILLIS: i64 = 100;
const SMALL_MEMORY_BYTES: i64 = 64 << 20;

/// How far a vnode is from what it shall say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Nothing to write.
    None,
    /// Only a small grow, to be written at this time.
    Later(Timestamp),
    /// Write now.
    Now {
        /// Amounts are among what changed.
        amounts: bool,
    },
}

/// See the module documentation. Taints, which are written apart, and conditions and addresses that shall go, are compared
/// by the planner.
pub fn difference(
    content: &Content,
    vnode: &NodeView,
    pnode: &NodeView,
    written: Option<&Written>,
    now: Timestamp,
) -> Difference {
    let amounts = amounts_differ(content, vnode);
    if !metadata_fits(content, vnode) || !status_fits(content, vnode) || heartbeat_due(pnode, vnode) {
        return Difference::Now { amounts: amounts.is_some() };
    }
    // A clock that was set back holds nothing up.
    let written_at = written.and_then(|written| written.amounts_at).filter(|at| *at <= now);
    match (amounts, written_at) {
        (None, _) => Difference::None,
        (Some(Change::SmallGrow), Some(last)) => {
            let due = last.saturating_add(SMALL_GROW_PERIOD).unwrap_or(now);
            if due > now { Difference::Later(due) } else { Difference::Now { amounts: true } }
        }
        (Some(_), _) => Difference::Now { amounts: true },
    }
}

fn metadata_fits(content: &Content, vnode: &NodeView) -> bool {
    contains(&vnode.labels, &content.labels) && contains(&vnode.annotations, &content.annotations)
}

fn contains(there: &PackedTexts, wanted: &Texts) -> bool {
    let mut there = there.ascending();
    wanted.iter().all(|(key, value)| there.get(key) == Some(value))
}

fn status_fits(content: &Content, vnode: &NodeView) -> bool {
    let status = &vnode.status;
    content.conditions.iter().all(|wanted| shown(vnode, wanted))
        && content.addresses.iter().all(|wanted| status.addresses.contains(wanted))
        && i32::from(content.port) == status.daemon_endpoints.kubelet_endpoint.port
        && content.phase.as_ref().is_none_or(|phase| status.phase.as_ref() == Some(phase))
        && node_info_fits(&content.node_info, &status.node_info.to_map())
}

fn shown(vnode: &NodeView, wanted: &NodeCondition) -> bool {
    vnode.condition(&wanted.type_).is_some_and(|there| there.says_the_same_as(wanted))
}

/// Fields an older API server does not know are dropped by it; comparing them would never come to rest.
fn node_info_fits(wanted: &Map<String, Value>, there: &Map<String, Value>) -> bool {
    wanted
        .iter()
        .filter(|(key, value)| value.is_string() && there.contains_key(*key))
        .all(|(key, value)| there.get(key) == Some(value))
        && (wanted.is_empty() || !there.is_empty())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    SmallGrow,
    Other,
}

fn amounts_differ(content: &Content, vnode: &NodeView) -> Option<Change> {
    let mut found = None;
    for ((resource, quantity), wanted) in content.quantities().zip(content.amounts.values()) {
        for there in [&vnode.status.allocatable, &vnode.status.capacity] {
            let there = there.get(resource);
            if says(there, quantity) {
                continue;
            }
            let before = there
                .and_then(|text| to_base_units(resource, text, kubeocean_api::quantity::Rounding::Down).ok());
            match before {
                Some(before) if is_small_grow(resource, before, *wanted) => {
                    found.get_or_insert(Change::SmallGrow);
                }
                _ => found = Some(Change::Other),
            }
        }
    }
    found
}

/// Whether a text on a vnode says a quantity, however it is written.
pub(super) fn says(there: Option<&str>, quantity: Quantity) -> bool {
    there.and_then(|text| text.parse::<Quantity>().ok()) == Some(quantity)
}

fn is_small_grow(resource: &str, before: i64, after: i64) -> bool {
    let limit = match resource {
        CPU => SMALL_CPU_MILLIS,
        MEMORY => SMALL_MEMORY_BYTES,
        _ => return false,
    };
    let grow = after.saturating_sub(before);
    grow > 0 && grow < limit && i128::from(grow) * 100 < i128::from(before) * SMALL_PERCENT
}

/// The worker node sent a heartbeat and the last one passed on is old, both by its own clock.
fn heartbeat_due(pnode: &NodeView, vnode: &NodeView) -> bool {
    let beat = |node: &NodeView| -> Option<Timestamp> {
        node.condition(READY)?.last_heartbeat_time.as_deref().and_then(parse_rfc3339)
    };
    let (Some(beat), Some(shown)) = (beat(pnode), beat(vnode)) else { return false };
    pnode.ready() && beat.duration_since(shown) >= HEARTBEAT
}
