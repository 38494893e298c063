//! The placement decision. In: one pod and one candidate vnode; out: a [`Fit`]. The evaluator calls
//! [`PlacePolicy::place`] once per candidate. Invariant: building an answer from static texts allocates nothing.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::needs::Needs;
use crate::now::Now;
use crate::reasons::ReasonText;
use crate::row::{Node, Pod};
use crate::settings;

/// A policy that says which pods may go to a vnode, and how good a place it is.
///
/// It may look at the clock: an answer about a bound pod that waits is remembered for its minute at most. A rejected pod is
/// asked about again when it, its vnode or a policy changes, and else after some five minutes; who knows the time better
/// says `later`.
pub trait PlacePolicy: DeserializeOwned + JsonSchema + 'static {
    /// Makes the policy from an owner's JSON; as [`crate::LeasePolicy::parse_settings`].
    fn parse_settings(settings: &str) -> Result<Self, String> {
        settings::parse(settings)
    }

    /// Checks what the schema cannot say; as [`crate::LeasePolicy::validate`].
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }

    /// The facts `place` reads of node and pod; fixed for given settings. Caps are not allowed here.
    fn needs(&self) -> Needs;

    /// Decides about one pod on one vnode. The same inputs must always give the same answer.
    fn place(&self, stage: Stage, now: &Now, pod: Pod<'_>, node: Node<'_>) -> Fit;
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The scheduler compares candidates.
    Schedule,
    /// The pod is bound and about to be created in the worker cluster: the last check.
    Admit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FitKind {
    Accept,
    Reject,
    Later(u32),
}

/// The answer for one candidate. It holds for the moment: nothing remembers it beyond the minute it was given in.
#[derive(Clone, Debug)]
pub struct Fit {
    pub(crate) kind: FitKind,
    pub(crate) score: Option<u8>,
    pub(crate) reason: Option<ReasonText>,
}

impl Fit {
    /// The pod may go there.
    pub fn accept() -> Self {
        Self { kind: FitKind::Accept, score: None, reason: None }
    }

    /// The pod may not go there. `code` is UpperCamelCase, 1 to 63 characters; `message` is for humans.
    pub fn reject(code: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: FitKind::Reject, score: None, reason: Some(ReasonText::new(code, message)) }
    }

    /// Not now; ask again after `seconds` (at least 1).
    pub fn later(
        seconds: u32,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            kind: FitKind::Later(seconds.max(1)),
            score: None,
            reason: Some(ReasonText::new(code, message)),
        }
    }

    /// How good the place is, 0 to 100 (more counts as 100); without it the policy has no opinion.
    #[must_use]
    pub fn score(mut self, score: u8) -> Self {
        self.score = Some(score.min(100));
        self
    }

    /// Why. `code` is UpperCamelCase, 1 to 63 characters; `message` is for humans.
    #[must_use]
    pub fn because(
        mut self,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.reason = Some(ReasonText::new(code, message));
        self
    }
}
