//! The scheduler extender (PO-605, MC-108): what policies say about places, before the scheduler has chosen one.
//!
//! ```text
//! kube-scheduler ──HTTPS──► serve ──► Places (the Syncers) ──► answer ──► filter, prioritize
//! ```
//!
//! It reads no cluster. A replica that does not lead has no Syncers to ask, and says so. Invariant: whatever a policy does,
//! the answer comes within four fifths of the time the scheduler has.

pub mod answer;
pub mod certificate;
pub mod serve;
pub mod wire;

use std::{fmt::Debug, sync::Arc, time::Instant};

use futures::future::BoxFuture;
use serde_json::Value;

/// Whether a pod may go to a vnode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It may.
    Accept,
    /// A policy says no: removing pods from there would not help.
    Reject,
    /// Not now, or nobody could be asked.
    Later,
}

/// What policies say about one vnode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The vnode.
    pub node: String,
    /// Whether the pod may go there.
    pub fit: Fit,
    /// How good a place it is, 0..=100.
    pub score: u8,
    /// Why not, `<code>: <message> (policy <entry>)`.
    pub why: String,
}

/// The Syncers, as the extender knows them.
pub trait Places: Send + Sync + Debug + 'static {
    /// Asks about a pod, given as JSON. A node nobody says anything about is not ours; `None`: the Syncers run elsewhere.
    fn ask(
        &self,
        pod: Arc<Value>,
        nodes: Arc<[String]>,
        deadline: Instant,
    ) -> BoxFuture<'static, Option<Vec<Place>>>;
}
