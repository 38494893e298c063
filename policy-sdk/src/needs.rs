//! The facts a policy declares. In: names from the policy; out: the column order of every frame it will be given.
//! Called once by the evaluator after the settings are parsed. Invariant: the n-th name of a list is column n, and
//! no list holds a name twice.

use crate::bindings::types as wire;
use crate::columns::{Columns, Family};

/// Column of a text fact, for policies that look it up once instead of by name per node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextColumn(pub(crate) usize);

/// Column of a number fact, for policies that look it up once instead of by name per node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberColumn(pub(crate) usize);

/// Column of a resource that may be capped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapColumn(pub(crate) usize);

/// Names of the facts a policy reads and of the resources it may cap.
///
/// Only declared facts are delivered (PO-402), and a node is asked about again only when one of them changes. A name
/// with a leading `?` is optional: a host that does not know the fact delivers "absent" instead of refusing the
/// module. Limits of the host: 64 facts per list, 32 caps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub(crate) texts: Columns,
    pub(crate) numbers: Columns,
    pub(crate) pod_texts: Columns,
    pub(crate) pod_numbers: Columns,
    pub(crate) caps: Columns,
}

impl Needs {
    /// Needs nothing: the policy looks at settings and time only.
    pub fn new() -> Self {
        Self::default()
    }

    /// Node label `key`.
    #[must_use]
    pub fn label(self, key: &str) -> Self {
        self.text(Family::Label.fact(key))
    }

    /// Node annotation `key`.
    #[must_use]
    pub fn annotation(self, key: &str) -> Self {
        self.text(Family::Annotation.fact(key))
    }

    /// Node taint `key`; the value reads `value:Effect`, several joined with `,`.
    #[must_use]
    pub fn taint(self, key: &str) -> Self {
        self.text(Family::Taint.fact(key))
    }

    /// Any other text fact of the node, such as `node.name` or `cluster.id`.
    #[must_use]
    pub fn text(mut self, fact: impl Into<String>) -> Self {
        self.add_text(fact);
        self
    }

    /// Allocatable amount of `resource`: millicores for `cpu`, whole units otherwise.
    #[must_use]
    pub fn allocatable(self, resource: &str) -> Self {
        self.number(Family::Allocatable.fact(resource))
    }

    /// Allocatable minus what others request. Prefer it to [`Needs::proposed`]: caps computed from it do not depend
    /// on the order of the policies.
    #[must_use]
    pub fn available(self, resource: &str) -> Self {
        self.number(Family::Available.fact(resource))
    }

    /// What the earlier policies of the same list left of `resource`.
    #[must_use]
    pub fn proposed(self, resource: &str) -> Self {
        self.number(Family::Proposed.fact(resource))
    }

    /// Requests of pods that are not Kubeocean's.
    #[must_use]
    pub fn used(self, resource: &str) -> Self {
        self.number(Family::Used.fact(resource))
    }

    /// Requests of Kubeocean's own pods.
    #[must_use]
    pub fn leased(self, resource: &str) -> Self {
        self.number(Family::Leased.fact(resource))
    }

    /// Measured usage (mean of 5 minutes); absent without metrics.
    #[must_use]
    pub fn usage(self, resource: &str) -> Self {
        self.number(Family::Usage.fact(resource))
    }

    /// Any other number fact of the node, such as `node.created`.
    #[must_use]
    pub fn number(mut self, fact: impl Into<String>) -> Self {
        self.add_number(fact);
        self
    }

    /// A resource this policy may cap.
    #[must_use]
    pub fn cap(mut self, resource: impl Into<String>) -> Self {
        self.add_cap(resource);
        self
    }

    /// Pod label `key` (placement only).
    #[must_use]
    pub fn pod_label(self, key: &str) -> Self {
        self.pod_text(Family::Label.fact(key))
    }

    /// Pod annotation `key` (placement only).
    #[must_use]
    pub fn pod_annotation(self, key: &str) -> Self {
        self.pod_text(Family::Annotation.fact(key))
    }

    /// Any other text fact of the pod, such as `pod.namespace` (placement only).
    #[must_use]
    pub fn pod_text(mut self, fact: impl Into<String>) -> Self {
        self.pod_texts.intern(fact.into());
        self
    }

    /// What the pod requests of `resource` (placement only).
    #[must_use]
    pub fn pod_request(self, resource: &str) -> Self {
        self.pod_number(Family::Request.fact(resource))
    }

    /// The pod's limit of `resource`; absent without one (placement only).
    #[must_use]
    pub fn pod_limit(self, resource: &str) -> Self {
        self.pod_number(Family::Limit.fact(resource))
    }

    /// Any other number fact of the pod, such as `pod.priority` (placement only).
    #[must_use]
    pub fn pod_number(mut self, fact: impl Into<String>) -> Self {
        self.pod_numbers.intern(fact.into());
        self
    }

    /// Declares a text fact of the node and answers its column, for [`crate::Node::text_at`].
    pub fn add_text(&mut self, fact: impl Into<String>) -> TextColumn {
        TextColumn(self.texts.intern(fact.into()))
    }

    /// Declares a number fact of the node and answers its column, for [`crate::Node::number_at`].
    pub fn add_number(&mut self, fact: impl Into<String>) -> NumberColumn {
        NumberColumn(self.numbers.intern(fact.into()))
    }

    /// Declares a cap and answers its column, for [`crate::Lease::cap`].
    pub fn add_cap(&mut self, resource: impl Into<String>) -> CapColumn {
        CapColumn(self.caps.intern_resource(resource.into()))
    }

    pub(crate) fn to_wire(&self) -> wire::Needs {
        wire::Needs {
            texts: self.texts.names(),
            numbers: self.numbers.names(),
            pod_texts: self.pod_texts.names(),
            pod_numbers: self.pod_numbers.names(),
            caps: self.caps.names(),
        }
    }
}
