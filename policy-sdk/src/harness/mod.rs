//! Native tests for policies. In: settings, nodes, a moment; out: the answers, checked as the host would check them.
//! Used by authors' `cargo test`. Invariant: the frame, the loop and the settings code are those of the module, so what
//! passes here decides the same in the sandbox.

mod answer;
mod fixture;
mod moment;
mod settings;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::marker::PhantomData;

use crate::bindings::types as wire;
use crate::evaluator::{LeaseEvaluator, PlaceEvaluator};
use crate::lease::LeasePolicy;
use crate::needs::Needs;
use crate::place::{PlacePolicy, Stage};

pub use answer::{LeaseAnswer, PlaceAnswer, ReasonAnswer};
pub use fixture::Fixture;
pub use moment::Moment;
pub use settings::assert_parser_follows_schema;

/// Describes a node in the form of the YAML test cases: `node! { "labels": {...}, "allocatable": {...} }`.
///
/// Members, all optional: `name`, `vnodeName`, `labels`, `annotations`, `taints`, `arch`, `os`, `allocatable`, `used`,
/// `leased`, `usage`, `available` (default: allocatable minus used), `proposed` (default: available), `ready`,
/// `schedulable`, `created`, `vnodeExists`, `bindingName`, `clusterId`, `rlpName`. Amounts are quantities.
#[macro_export]
macro_rules! node {
    ($($body:tt)*) => {
        $crate::Fixture::node(&$crate::serde_json::json!({ $($body)* }))
    };
}

/// Describes a pod: `pod! { "namespace": "ci", "requests": {"cpu": "2"} }`.
///
/// Members, all optional: `name`, `namespace`, `serviceAccount`, `priorityClass`, `schedulerName`, `ownerKind`,
/// `ownerName`, `labels`, `annotations`, `nodeSelector`, `requests`, `limits`, `priority`, `containers`, `hostNetwork`,
/// `created`. Amounts are quantities.
#[macro_export]
macro_rules! pod {
    ($($body:tt)*) => {
        $crate::Fixture::pod(&$crate::serde_json::json!({ $($body)* }))
    };
}

/// A test of the policy `P`.
///
/// Everything the sandbox would refuse or report makes the test fail with the host's words.
#[derive(Clone, Debug)]
pub struct Harness<P> {
    settings: String,
    nodes: Vec<Fixture>,
    pod: Fixture,
    moment: Moment,
    policy: PhantomData<P>,
}

impl<P> Harness<P> {
    /// A test with these settings, as JSON text or value. Without [`Harness::at`] it is noon of Monday 2026-01-05, UTC.
    pub fn new(settings: impl Display) -> Self {
        Self {
            settings: settings.to_string(),
            nodes: Vec::new(),
            pod: crate::pod! {},
            moment: Moment::default(),
            policy: PhantomData,
        }
    }

    /// Adds a node (for placement: a candidate vnode).
    #[must_use]
    pub fn node(mut self, node: Fixture) -> Self {
        self.nodes.push(node);
        self
    }

    /// The pod that looks for a place.
    #[must_use]
    pub fn pod(mut self, pod: Fixture) -> Self {
        self.pod = pod;
        self
    }

    /// The moment, as local time (`2026-03-07T23:30`) in an IANA zone (`Europe/Rome`).
    #[must_use]
    pub fn at(mut self, local_time: &str, zone: &str) -> Self {
        self.moment = Moment::new(local_time, zone);
        self
    }

    /// The moment, as an instant (unix seconds) in an IANA zone.
    #[must_use]
    pub fn at_instant(mut self, unix_seconds: i64, zone: &str) -> Self {
        self.moment = Moment::at_instant(unix_seconds, zone);
        self
    }

    /// The moment given so far.
    pub fn moment(&self) -> &Moment {
        &self.moment
    }

    /// The nodes given, or one that has nothing.
    fn rows(&self) -> Vec<Fixture> {
        if self.nodes.is_empty() { vec![crate::node! {}] } else { self.nodes.clone() }
    }
}

impl<P: LeasePolicy> Harness<P> {
    /// Decides about the first node.
    ///
    /// # Panics
    ///
    /// When the settings are refused, the policy fails or its answer is invalid.
    pub fn lease(&self) -> LeaseAnswer {
        let answers = self.lease_all().expect("the policy decides");
        answers.into_iter().next().expect("one answer per node")
    }

    /// Decides about all nodes in one call.
    ///
    /// # Errors
    ///
    /// The text with which the settings or the call were refused.
    ///
    /// # Panics
    ///
    /// When an answer is invalid.
    pub fn lease_all(&self) -> Result<Vec<LeaseAnswer>, String> {
        let evaluator = LeaseEvaluator::<P>::create(&self.settings)?;
        let needs = evaluator.needs();
        let frame = frame_of(&self.rows(), &needs.texts.names(), &needs.numbers.names());
        let table = evaluator.lease(self.moment.now(), &frame, |row| row)?;
        Ok(answer::leases(needs, &table, &self.moment))
    }

    /// What the policy reads.
    ///
    /// # Errors
    ///
    /// The text with which the settings were refused.
    pub fn lease_needs(&self) -> Result<Needs, String> {
        LeaseEvaluator::<P>::create(&self.settings).map(|evaluator| evaluator.needs().clone())
    }
}

impl<P: PlacePolicy> Harness<P> {
    /// Decides about the pod on the first candidate.
    ///
    /// # Panics
    ///
    /// When the settings are refused, the policy fails or its answer is invalid.
    pub fn place(&self, stage: Stage) -> PlaceAnswer {
        let answers = self.place_all(stage).expect("the policy decides");
        answers.into_iter().next().expect("one answer per node")
    }

    /// Decides about the pod on all candidates in one call.
    ///
    /// # Errors
    ///
    /// The text with which the settings or the call were refused.
    ///
    /// # Panics
    ///
    /// When an answer is invalid.
    pub fn place_all(&self, stage: Stage) -> Result<Vec<PlaceAnswer>, String> {
        let evaluator = PlaceEvaluator::<P>::create(&self.settings)?;
        let needs = evaluator.needs();
        let nodes = frame_of(&self.rows(), &needs.texts.names(), &needs.numbers.names());
        let pod =
            frame_of(std::slice::from_ref(&self.pod), &needs.pod_texts.names(), &needs.pod_numbers.names());
        let table = evaluator.place(stage, self.moment.now(), &pod, &nodes, |row| row)?;
        Ok(answer::places(&table))
    }
}

/// Projects fixtures onto the declared facts, as the host does.
fn frame_of(rows: &[Fixture], texts: &[String], numbers: &[String]) -> wire::Frame {
    let mut strings = Vec::new();
    let mut known: BTreeMap<String, u32> = BTreeMap::new();
    let mut text_cells = Vec::with_capacity(rows.len() * texts.len());
    let mut number_cells = Vec::with_capacity(rows.len() * numbers.len());
    for row in rows {
        for fact in texts {
            text_cells.push(row.text(fact).map_or(0, |text| {
                *known.entry(text.to_owned()).or_insert_with(|| {
                    strings.push(text.to_owned());
                    u32::try_from(strings.len()).expect("fewer than 2^32 strings in a test")
                })
            }));
        }
        number_cells.extend(numbers.iter().map(|fact| row.number(fact).unwrap_or(i64::MIN)));
    }
    let rows = u32::try_from(rows.len()).expect("fewer than 2^32 rows in a test");
    wire::Frame { rows, strings, texts: text_cells, numbers: number_cells }
}

#[cfg(test)]
mod tests;
