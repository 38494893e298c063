//! The lease decision. In: one node; out: a [`Lease`]. The evaluator calls [`LeasePolicy::lease`] once per row and
//! writes the answer into the table the host reads. Invariant: building an answer from static texts and up to four
//! caps allocates nothing.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::needs::{CapColumn, Needs};
use crate::now::Now;
use crate::reasons::ReasonText;
use crate::reclaim::Reclaim;
use crate::row::Node;
use crate::settings;

/// A policy that says what of a node may be leased, and when.
///
/// The type itself is the settings: an owner's JSON is parsed into it, its schema is what `describe` publishes.
pub trait LeasePolicy: DeserializeOwned + JsonSchema + 'static {
    /// Makes the policy from an owner's JSON. The default checks it against the schema of the type and names the member
    /// that is wrong ([`crate::parse_settings`]). Replace it, with [`crate::parse_plain_settings`] and own checks, only
    /// if module size matters more: the schema code is more than half of a small module. A test with
    /// `assert_parser_follows_schema` keeps the two alike.
    fn parse_settings(settings: &str) -> Result<Self, String> {
        settings::parse(settings)
    }

    /// Checks what the schema cannot say. The text of an `Err` is shown to the owner who wrote the settings; name the
    /// member it is about, as in `settings.until: must differ from settings.from`.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }

    /// The facts `lease` reads and the resources it caps; fixed for given settings.
    fn needs(&self) -> Needs;

    /// Decides about one node. The same `now` and node must always give the same answer.
    fn lease(&self, now: &Now, node: Node<'_>) -> Lease;
}

/// Whether a node is leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leased, up to the caps.
    Offer,
    /// Not now: the vnode stays, new pods are kept away.
    Withhold,
    /// This policy does not speak for the node: the next `ResourceLeasingPolicy` is asked, else the vnode goes.
    NotApplicable,
}

/// Names the resource of a cap: by name, or by the column [`Needs::add_cap`] answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CapKey {
    /// Resource name.
    Name(Cow<'static, str>),
    /// Column.
    Column(CapColumn),
}

impl From<&'static str> for CapKey {
    fn from(name: &'static str) -> Self {
        Self::Name(Cow::Borrowed(name))
    }
}

impl From<String> for CapKey {
    fn from(name: String) -> Self {
        Self::Name(Cow::Owned(name))
    }
}

impl From<CapColumn> for CapKey {
    fn from(column: CapColumn) -> Self {
        Self::Column(column)
    }
}

/// Caps kept inside the answer before it allocates.
const INLINE_CAPS: usize = 4;

/// A [`CapKey`] that owns nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CapName<'a> {
    Name(&'a str),
    Column(CapColumn),
}

impl CapKey {
    fn borrowed(&self) -> CapName<'_> {
        match self {
            Self::Name(name) => CapName::Name(name),
            Self::Column(column) => CapName::Column(*column),
        }
    }
}

/// One cap that owns nothing.
#[derive(Clone, Copy, Debug)]
struct Cap {
    name: CapName<'static>,
    amount: i64,
}

impl Cap {
    /// What stands in a place that is not used. Were it all zeros, it would be filled by a call out of the sandbox.
    const NONE: Self = Self { name: CapName::Column(CapColumn(0)), amount: -1 };
}

/// What is inside owns nothing, so that dropping an answer is a look at `more`.
#[derive(Clone, Debug)]
struct Caps {
    inline: [Cap; INLINE_CAPS],
    used: u8,
    more: Option<Box<MoreCaps>>,
}

/// Caps that have no place inside, apart: an answer is moved for each node, and they are rare.
#[derive(Clone, Debug, Default)]
struct MoreCaps(Vec<(CapKey, i64)>);

impl Default for Caps {
    #[inline]
    fn default() -> Self {
        Self { inline: [Cap::NONE; INLINE_CAPS], used: 0, more: None }
    }
}

impl Caps {
    #[inline]
    fn push(&mut self, key: CapKey, amount: i64) {
        let name = match key {
            CapKey::Column(column) => CapName::Column(column),
            CapKey::Name(Cow::Borrowed(name)) => CapName::Name(name),
            CapKey::Name(Cow::Owned(_)) => return self.push_more(key, amount),
        };
        match self.inline.get_mut(usize::from(self.used)) {
            Some(place) => {
                *place = Cap { name, amount };
                self.used += 1;
            }
            None => self.push_more(key, amount),
        }
    }

    #[cold]
    fn push_more(&mut self, key: CapKey, amount: i64) {
        self.more.get_or_insert_default().0.push((key, amount));
    }

    #[inline]
    fn iter(&self) -> impl Iterator<Item = (CapName<'_>, i64)> {
        let inline = self.inline.iter().take(self.used.into()).map(|cap| (cap.name, cap.amount));
        let more = self.more.iter().flat_map(|more| more.0.iter());
        inline.chain(more.map(|(key, amount)| (key.borrowed(), *amount)))
    }
}

/// When the answer may change by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Not said: the SDK derives it from how the policy used [`Now`] (PO-304).
    Derived,
    /// Said; `None` means never.
    At(Option<i64>),
}

/// The answer for one node.
#[derive(Clone, Debug)]
pub struct Lease {
    pub(crate) verdict: Verdict,
    pub(crate) reclaim: Reclaim,
    pub(crate) until: Until,
    pub(crate) reason: Option<ReasonText>,
    caps: Caps,
}

impl Lease {
    #[inline]
    fn new(verdict: Verdict, reason: Option<ReasonText>) -> Self {
        Self { verdict, reclaim: Reclaim::Keep, until: Until::Derived, reason, caps: Caps::default() }
    }

    /// The node is leased, up to the caps that follow; without caps everything available is.
    #[inline]
    pub fn offer() -> Self {
        Self::new(Verdict::Offer, None)
    }

    /// The node is not leased now. `code` is UpperCamelCase, 1 to 63 characters; `message` is for humans.
    pub fn withhold(code: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Verdict::Withhold, Some(ReasonText::new(code, message)))
    }

    /// This policy is not for this node.
    pub fn not_applicable(code: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Verdict::NotApplicable, Some(ReasonText::new(code, message)))
    }

    /// Leases at most `amount` of `resource` (millicores for `cpu`, whole units otherwise; below 0 counts as 0). The
    /// resource must be declared with [`Needs::cap`]. Of two caps for one resource the smaller holds.
    #[must_use]
    #[inline]
    pub fn cap(mut self, resource: impl Into<CapKey>, amount: i64) -> Self {
        self.add_cap(resource, amount);
        self
    }

    /// As [`Lease::cap`], for policies with a list of limits: the answer is not moved for each of them.
    #[inline]
    pub fn add_cap(&mut self, resource: impl Into<CapKey>, amount: i64) {
        self.caps.push(resource.into(), amount.max(0));
    }

    /// First instant (unix seconds) at which this answer may change although no input does; `None` = never. Usually
    /// [`crate::Phase::changes_at`].
    #[must_use]
    pub fn until(mut self, unix_seconds: impl Into<Option<i64>>) -> Self {
        self.until = Until::At(unix_seconds.into());
        self
    }

    /// What happens to pods that are there while the node is withheld; on an offer: if it is withdrawn later.
    #[must_use]
    pub fn reclaim(mut self, reclaim: Reclaim) -> Self {
        self.reclaim = reclaim;
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

    /// The caps that were said, in any order: of two for one resource the smaller holds.
    #[inline]
    pub(crate) fn caps(&self) -> impl Iterator<Item = (CapName<'_>, i64)> {
        self.caps.iter()
    }
}
