//! What was decided about nodes, as far as the status of their policies needs it.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use kubeocean_api::keys::annotation;

use super::{Index, VnodeName};
use crate::nodes::view::NodeView;

/// What was decided about a node, as far as its policy's status needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// The governing policy.
    pub governed_by: Option<String>,
    /// Younger policies that would cover the node.
    pub shadowed: Vec<String>,
    /// A module that decides for the node does not answer.
    pub failed: bool,
    /// Withheld at this moment.
    pub withheld: bool,
    /// The vnode is, or is about to be, built from this policy.
    pub leased_by: Option<String>,
}

impl Index {
    /// Remembers what was decided. Returns the policies whose numbers changed by it.
    pub fn set_decided(&mut self, vnode: &VnodeName, decided: Option<Decided>) -> BTreeSet<String> {
        let policies = |decided: &Option<Decided>| -> BTreeSet<String> {
            let Some(decided) = decided else { return BTreeSet::new() };
            let named = decided.governed_by.iter().chain(&decided.leased_by).chain(&decided.shadowed);
            named.cloned().collect()
        };
        let summary = |decided: &Option<Decided>| {
            decided.as_ref().map(|d| {
                let fields = (&d.governed_by, &d.shadowed, d.failed, d.withheld, &d.leased_by);
                (fields.0.clone(), fields.1.clone(), fields.2, fields.3, fields.4.clone())
            })
        };
        let before = self.decided.remove(vnode);
        let mut told = BTreeSet::new();
        if summary(&before) != summary(&decided) {
            told.extend(policies(&before));
            told.extend(policies(&decided));
        }
        if let Some(decided) = decided {
            self.decided.insert(Arc::clone(vnode), decided);
        }
        told
    }

    /// The answer to a write that names a policy is missing: what was decided stands until the vnode has been read.
    pub fn not_answered(&mut self, vnode: &str) {
        self.unsettled.entry(vnode.into()).or_default();
    }

    /// Whether the vnode has to be read before it is decided anew.
    pub fn is_unsettled(&self, vnode: &str) -> bool {
        self.unsettled.contains_key(vnode)
    }

    /// The vnode has been read, at this version; `None`: there is none.
    pub fn settled(&mut self, vnode: &str, read: Option<u64>) {
        // The watch may have missed it since.
        if self.unsettled.get(vnode).is_some_and(|needed| read.is_none_or(|read| read >= *needed)) {
            self.unsettled.remove(vnode);
        }
    }

    /// The policy that governs a vnode: as decided, else as the vnode says.
    pub fn governing(&self, vnode: &str) -> Option<&str> {
        match self.decided.get(vnode) {
            Some(decided) => decided.governed_by.as_deref(),
            None => self
                .vnodes
                .get(vnode)?
                .annotation(annotation::POLICIES_APPLIED)
                .filter(|name| !name.is_empty()),
        }
    }

    /// All decisions, by vnode.
    pub fn decided(&self) -> impl Iterator<Item = (&VnodeName, &Decided)> {
        self.decided.iter()
    }

    /// Vnodes that are, or are about to be, built from a policy; its finalizer waits for them.
    pub fn built_from(&self, policy: &str) -> usize {
        let named = |vnode: &NodeView| vnode.annotation(annotation::POLICIES_APPLIED) == Some(policy);
        let there = self.vnodes.iter().filter(|(_, vnode)| named(vnode)).map(|(name, _)| name);
        let coming =
            self.decided.iter().filter(|(_, d)| d.leased_by.as_deref() == Some(policy)).map(|(name, _)| name);
        there.chain(coming).collect::<HashSet<_>>().len()
    }
}
