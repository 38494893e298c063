//! How the answers of a pipeline become one decision about a node (PO-601 to 603, PO-803, PO-804).
//!
//! Pure: answers and stand-ins come in, a [`NodeDecision`] goes out.
//! Invariant: nothing raises an amount, undoes a withhold, or evicts because of an error. What good answers say about
//! running pods ([`NodeDecision::reclaim`]) and what stands for missing ones ([`NodeDecision::standing`]) never mix.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::answer::{Answer, EntryVerdict, Reclaim};
use crate::decide::Bounds;
use crate::entry::evaluate::{NoAnswer, Outcome};
use crate::entry::last_known::StandIn;
use crate::facts::NodeFacts;

/// What holds for a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Leased; no out-of-window taint.
    #[default]
    Offer,
    /// A good answer, or `onError: Deny`, keeps new pods away: the taint is set, [`NodeDecision::reclaim`] applies.
    Withhold,
    /// An earlier state stands, because the governing policy is invalid (PO-526) or an entry gives no answer. The
    /// taint follows [`NodeDecision::withheld`]; running countdowns continue, none is started (PO-804).
    Held,
}

/// What stands for the reclaim of entries that gave no answer. It continues a countdown that runs and starts none
/// (PO-804).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    /// The last good answers of these entries say so; `Keep` continues nothing.
    Mode(Reclaim),
    /// Nobody remembers what they said: a countdown that runs goes on as the vnode records it.
    Recorded,
}

impl Default for Standing {
    fn default() -> Self {
        Self::Mode(Reclaim::Keep)
    }
}

impl Standing {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Mode(a), Self::Mode(b)) => Self::Mode(a.stricter(b)),
            (Self::Recorded, _) | (_, Self::Recorded) => Self::Recorded,
        }
    }
}

/// Why a node is withheld, held or limited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionReason {
    /// Entry that said so; empty for the policy itself.
    pub entry: String,
    /// UpperCamelCase: the module's own, or `PolicyInvalid`, `ModuleFailed`, `PoliciesLoading`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// The decision about one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "independent facts for the caller, not a state")]
pub struct NodeDecision {
    /// Policy that governs the node; `None`: none does, the vnode is withdrawn (BU-403).
    pub governed_by: Option<String>,
    /// Generation of that policy's spec this decision was made by.
    pub generation: i64,
    /// False: the binding's selector does not match, the vnode is withdrawn.
    pub selected: bool,
    /// Younger policies whose selectors match as well.
    pub shadowed: Vec<String>,
    /// What holds.
    pub verdict: Verdict,
    /// The out-of-window taint is to be set. Always for `Withhold`, never for `Offer`, either for `Held`.
    pub withheld: bool,
    /// Every resource of `allocatable`, within `0..=available`, base units.
    pub amounts: BTreeMap<String, i64>,
    /// Resource -> entry that made the last reduction.
    pub limited_by: BTreeMap<String, String>,
    /// What happens to running pods: now if withheld, else announced for a later loss of the policy (PO-208). From good
    /// answers only.
    pub reclaim: Reclaim,
    /// What stands for the reclaim of entries without an answer.
    pub standing: Standing,
    /// The policy itself is invalid: a countdown that runs is stopped (PO-526).
    pub policy_invalid: bool,
    /// `reclaim` comes from a good decision, so it may be written to the vnode (BU-907).
    pub announce: bool,
    /// First unix second at which this decision may change by itself.
    pub valid_until: Option<i64>,
    /// When to decide again at the latest: `valid_until`, or earlier to ask a module that failed, and ten minutes after
    /// the oldest answer this is made of (PO-1004).
    pub wake_at: Option<i64>,
    /// Why withheld, held, or limited.
    pub reason: Option<DecisionReason>,
    /// False: an existing vnode is kept, but none is made (PO-526, PO-803).
    pub may_create: bool,
    /// An Enforce entry that has a say has neither loaded nor failed yet. For at most 30 s after a start nothing is
    /// written for such a node (PO-704); on a running host the decision holds as it is.
    pub loading: bool,
    /// Some amount is below what the node's own pods already request (PO-603).
    pub overcommitted: bool,
}

/// What one entry did to a node; for `explain` and `test`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The entry.
    pub entry: String,
    /// It only reports.
    pub audit: bool,
    /// Its verdict; `None` when it gave no answer.
    pub verdict: Option<EntryVerdict>,
    /// Its reclaim.
    pub reclaim: Reclaim,
    /// Its caps.
    pub caps: BTreeMap<String, i64>,
    /// Its `valid-until`.
    pub valid_until: Option<i64>,
    /// Its reason.
    pub reason: Option<crate::answer::Reason>,
    /// Why there was no answer.
    pub error: Option<String>,
    /// What was left after it.
    pub proposed: BTreeMap<String, i64>,
}

/// One resource of a node on its way through a pipeline.
#[derive(Clone, Debug)]
pub(crate) struct Amount<'n> {
    pub(crate) resource: &'n str,
    available: i64,
    proposed: i64,
    limited_by: Option<Arc<str>>,
}

impl Amount<'_> {
    /// What is left of `resource`; 0 for one the node does not have (PO-404).
    pub(crate) fn proposed_of(amounts: &[Self], resource: &str) -> i64 {
        amounts.iter().find(|amount| amount.resource == resource).map_or(0, |amount| amount.proposed)
    }
}

/// Largest relative reduction so far: the code of that entry explains an offer (API-808).
struct Limiting {
    left: i64,
    of: i64,
    reason: DecisionReason,
}

/// One node on its way through one pipeline.
#[expect(clippy::struct_excessive_bools, reason = "independent findings, merged in `finish`")]
pub(crate) struct Draft<'n> {
    pub(crate) node: &'n NodeFacts,
    pub(crate) amounts: Vec<Amount<'n>>,
    not_applicable: bool,
    withheld: bool,
    denied: bool,
    standing: Option<DecisionReason>,
    standing_withheld: bool,
    standing_reclaim: Standing,
    invalid: bool,
    may_create: bool,
    loading: bool,
    reclaim_withholding: Reclaim,
    reclaim_any: Reclaim,
    valid_until: Option<i64>,
    retry_at: Option<i64>,
    reason: Option<DecisionReason>,
    limiting: Option<Limiting>,
    steps: Option<Vec<Step>>,
}

fn earliest(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    [a, b].into_iter().flatten().min()
}

impl<'n> Draft<'n> {
    pub(crate) fn new(node: &'n NodeFacts, explain: bool) -> Self {
        let amounts = node
            .allocatable
            .keys()
            .map(|resource| {
                let available = node.available(resource);
                Amount { resource, available, proposed: available, limited_by: None }
            })
            .collect();
        Self {
            node,
            amounts,
            not_applicable: false,
            withheld: false,
            denied: false,
            standing: None,
            standing_withheld: false,
            standing_reclaim: Standing::default(),
            invalid: false,
            may_create: true,
            loading: false,
            reclaim_withholding: Reclaim::Keep,
            reclaim_any: Reclaim::Keep,
            valid_until: None,
            retry_at: None,
            reason: None,
            limiting: None,
            steps: explain.then(Vec::new),
        }
    }

    /// The policy does not govern this node.
    pub(crate) fn is_not_applicable(&self) -> bool {
        self.not_applicable
    }

    /// A policy that does not govern may do so later: its promise bounds the decision as well.
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { valid_until: self.valid_until, wake_at: earliest(self.valid_until, self.retry_at) }
    }

    /// Bounds the decision by something outside this pipeline.
    pub(crate) fn bound(&mut self, bounds: Bounds) {
        self.valid_until = earliest(self.valid_until, bounds.valid_until);
        self.retry_at = earliest(self.retry_at, bounds.wake_at);
    }

    /// A row is asked again then, whatever its answer promised (PO-1004).
    pub(crate) fn refresh(&mut self, at: i64) {
        self.retry_at = earliest(self.retry_at, Some(at));
    }

    /// What a good answer and a last good one have in common: they bound the decision, select, and cap. False when the
    /// policy does not govern.
    fn limit(&mut self, entry: &Arc<str>, answer: &Answer) -> bool {
        self.valid_until = earliest(self.valid_until, answer.valid_until);
        if answer.verdict == EntryVerdict::NotApplicable {
            self.not_applicable = true;
            return false;
        }
        for (resource, cap) in answer.caps() {
            self.cap(entry, resource, cap, answer);
        }
        true
    }

    /// A good answer of an Enforce entry.
    pub(crate) fn answer(&mut self, entry: &Arc<str>, answer: &Answer) {
        if !self.limit(entry, answer) {
            return;
        }
        self.reclaim_any = self.reclaim_any.stricter(answer.reclaim);
        if answer.verdict == EntryVerdict::Withhold {
            self.reclaim_withholding = self.reclaim_withholding.stricter(answer.reclaim);
            self.withheld = true;
            if let (None, Some(reason)) = (&self.reason, &answer.reason) {
                self.reason = Some(DecisionReason {
                    entry: entry.to_string(),
                    code: reason.code.clone(),
                    message: reason.message.clone(),
                });
            }
        }
    }

    fn cap(&mut self, entry: &Arc<str>, resource: &str, cap: i64, answer: &Answer) {
        let Some(amount) = self.amounts.iter_mut().find(|amount| amount.resource == resource) else { return };
        if cap >= amount.proposed {
            return;
        }
        amount.proposed = cap;
        amount.limited_by = Some(Arc::clone(entry));
        let Some(reason) = &answer.reason else { return };
        let (left, of) = (cap, amount.available);
        let tighter = self
            .limiting
            .as_ref()
            .is_none_or(|l| i128::from(left) * i128::from(l.of) < i128::from(l.left) * i128::from(of));
        if tighter {
            let reason = DecisionReason {
                entry: entry.to_string(),
                code: reason.code.clone(),
                message: reason.message.clone(),
            };
            self.limiting = Some(Limiting { left, of, reason });
        }
    }

    /// An Enforce entry gave no answer; `stand_in` says what takes its place.
    pub(crate) fn no_answer(&mut self, entry: &Arc<str>, why: &NoAnswer, stand_in: &StandIn) {
        self.retry_at = earliest(self.retry_at, why.retry_at);
        self.loading |= why.pending;
        let reason = DecisionReason {
            entry: entry.to_string(),
            code: if why.loading { "PoliciesLoading" } else { "ModuleFailed" }.to_owned(),
            message: why.text.to_string(),
        };
        match stand_in {
            StandIn::Skip => {}
            StandIn::Last(answer) => {
                if self.limit(entry, answer) && answer.verdict == EntryVerdict::Withhold {
                    self.standing_withheld = true;
                    self.standing_reclaim = self.standing_reclaim.and(Standing::Mode(answer.reclaim));
                }
                self.standing.get_or_insert(reason);
            }
            StandIn::Published => {
                self.cap_at_published(entry);
                let published = self.node.published.as_ref();
                if published.is_some_and(|published| !published.offered) {
                    self.standing_withheld = true;
                    self.standing_reclaim = Standing::Recorded;
                }
                self.valid_until =
                    earliest(self.valid_until, published.and_then(|published| published.valid_until));
                self.may_create = false;
                self.standing.get_or_insert(reason);
            }
            StandIn::Deny(last) => {
                self.cap_at_published(entry);
                self.denied = true;
                let last = last.map_or(Standing::Recorded, Standing::Mode);
                self.standing_reclaim = self.standing_reclaim.and(last);
                self.may_create &= self.node.published.is_some();
                self.standing.get_or_insert(reason);
            }
        }
    }

    /// The policy's legacy fields are invalid: it governs, holds what is published, evicts nothing (PO-526).
    pub(crate) fn invalid(&mut self, message: &str) {
        self.cap_at_published(&Arc::from(""));
        self.invalid = true;
        self.standing_withheld = true;
        self.may_create = false;
        self.standing = Some(DecisionReason {
            entry: String::new(),
            code: "PolicyInvalid".to_owned(),
            message: message.to_owned(),
        });
    }

    fn cap_at_published(&mut self, entry: &Arc<str>) {
        let Some(published) = &self.node.published else { return };
        for amount in &mut self.amounts {
            let cap = published.amounts.get(amount.resource).copied().unwrap_or(0).max(0);
            if cap < amount.proposed {
                amount.proposed = cap;
                amount.limited_by = Some(Arc::clone(entry));
            }
        }
    }

    /// Difference an Audit entry would make, as one line; `None` when none.
    pub(crate) fn audit_difference(&self, answer: &Answer) -> Option<String> {
        let code = answer.reason.as_ref().map_or("no reason", |reason| reason.code.as_str());
        let change = match answer.verdict {
            EntryVerdict::NotApplicable => Some("not governed".to_owned()),
            EntryVerdict::Withhold if !self.withheld && !self.denied => Some("withheld".to_owned()),
            EntryVerdict::Withhold | EntryVerdict::Offer => None,
        };
        let change = change.or_else(|| {
            answer.caps().find_map(|(resource, cap)| {
                let amount = self.amounts.iter().find(|amount| *amount.resource == **resource)?;
                let short = resource.rsplit('/').next().unwrap_or(resource);
                (cap < amount.proposed).then(|| format!("{short} {} -> {cap}", amount.proposed))
            })
        })?;
        Some(format!("{}: {change} ({code})", self.node.node_name))
    }

    /// Notes what an entry did, if somebody wants to know.
    pub(crate) fn explain(&mut self, entry: &str, audit: bool, outcome: &Outcome) {
        let proposed = self.proposed();
        let Some(steps) = &mut self.steps else { return };
        let answer = outcome.as_ref().ok().map(|said| &said.answer);
        steps.push(Step {
            entry: entry.to_owned(),
            audit,
            verdict: answer.map(|answer| answer.verdict),
            reclaim: answer.map(|answer| answer.reclaim).unwrap_or_default(),
            caps: answer
                .map(|answer| answer.caps().map(|(name, cap)| (name.to_string(), cap)).collect())
                .unwrap_or_default(),
            valid_until: answer.and_then(|answer| answer.valid_until),
            reason: answer.and_then(|answer| answer.reason.as_deref().cloned()),
            error: outcome.as_ref().err().map(|why| why.text.to_string()),
            proposed,
        });
    }

    pub(crate) fn take_steps(&mut self) -> Vec<Step> {
        self.steps.take().unwrap_or_default()
    }

    fn proposed(&self) -> BTreeMap<String, i64> {
        self.amounts.iter().map(|amount| (amount.resource.to_owned(), amount.proposed)).collect()
    }

    /// The decision of a policy that governs.
    pub(crate) fn finish(self, policy: &str, generation: i64) -> NodeDecision {
        let verdict = match (self.withheld || self.denied, &self.standing) {
            (true, _) => Verdict::Withhold,
            (false, Some(_)) => Verdict::Held,
            (false, None) => Verdict::Offer,
        };
        let withheld = self.withheld || self.denied || self.standing_withheld;
        let limited_by = self
            .amounts
            .iter()
            .filter_map(|amount| Some((amount.resource.to_owned(), amount.limited_by.as_ref()?.to_string())))
            .filter(|(_, entry)| !entry.is_empty())
            .collect();
        let amounts: BTreeMap<String, i64> = self
            .amounts
            .iter()
            .map(|amount| (amount.resource.to_owned(), amount.proposed.clamp(0, amount.available)))
            .collect();
        let overcommitted = self
            .node
            .leased
            .iter()
            .any(|(resource, leased)| amounts.get(resource).is_some_and(|a| a < leased));
        let announce = self.standing.is_none();
        // A good answer that withholds also says what happens to pods; what nobody remembers does not overrule it.
        let standing = match self.standing_reclaim {
            Standing::Recorded if self.withheld => Standing::default(),
            standing => standing,
        };
        NodeDecision {
            governed_by: Some(policy.to_owned()),
            generation,
            selected: true,
            shadowed: Vec::new(),
            verdict,
            withheld,
            amounts,
            limited_by,
            reclaim: if withheld { self.reclaim_withholding } else { self.reclaim_any },
            standing,
            policy_invalid: self.invalid,
            announce,
            valid_until: self.valid_until,
            wake_at: earliest(self.valid_until, self.retry_at),
            reason: self.reason.or(self.standing).or(self.limiting.map(|limiting| limiting.reason)),
            may_create: self.may_create,
            loading: self.loading,
            overcommitted,
        }
    }
}

/// The decision about a node no policy governs.
pub(crate) fn ungoverned(selected: bool, bounds: Bounds) -> NodeDecision {
    let wake_at = earliest(bounds.valid_until, bounds.wake_at);
    NodeDecision { selected, valid_until: bounds.valid_until, wake_at, ..NodeDecision::default() }
}

/// The decision about a node the engine itself failed on: what is published stands.
pub(crate) fn undecided(node: &NodeFacts) -> NodeDecision {
    let why = NoAnswer { text: "the engine failed".into(), loading: false, pending: false, retry_at: None };
    let stand = if node.published.is_some() { StandIn::Published } else { StandIn::Deny(None) };
    let mut draft = Draft::new(node, false);
    draft.no_answer(&Arc::from(""), &why, &stand);
    draft.finish("", 0)
}

#[cfg(test)]
mod tests;
