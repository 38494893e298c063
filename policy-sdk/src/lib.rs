//! What a policy author depends on: the types of the policy interface, the two policy traits, helpers for time
//! windows, node selectors and quantities, and [`export_policy!`], which turns a type into a policy module.
//!
//! A policy is a plain Rust type. Its fields are the settings an owner writes into a `ResourceLeasingPolicy`; its
//! `lease` function looks at one node and says what may be leased:
//!
//! ```
//! use kubeocean_policy_sdk::prelude::*;
//!
//! /// Leases at most a share of the free CPU.
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Share {
//!     #[schemars(range(max = 100))]
//!     percent: u8,
//! }
//!
//! impl LeasePolicy for Share {
//!     fn needs(&self) -> Needs {
//!         Needs::new().available("cpu").cap("cpu")
//!     }
//!     fn lease(&self, _now: &Now, node: Node<'_>) -> Lease {
//!         Lease::offer().cap("cpu", node.available("cpu") * i64::from(self.percent) / 100)
//!     }
//! }
//!
//! export_policy!(Share: lease);
//!
//! let answer = Harness::<Share>::new(r#"{"percent": 50}"#)
//!     .node(node! { "allocatable": {"cpu": "16"}, "used": {"cpu": "4"} })
//!     .lease();
//! assert_eq!(answer.cap("cpu"), Some(6_000));
//! ```
//!
//! Build with `cargo build --target wasm32-unknown-unknown --release` and `crate-type = ["cdylib"]`. A module has no
//! clock, no network, no files and no randomness: what it answers depends on its settings and its inputs only.
//! `std::time`, threads and files panic on that target.
//!
//! A policy crate needs `kubeocean-policy-sdk` and `serde` (with feature `derive`) as dependencies; everything else
//! is re-exported by [`prelude`].

#![deny(missing_docs)]

#[doc(hidden)]
pub mod bindings;
mod columns;
mod evaluator;
mod export;
#[cfg(not(target_arch = "wasm32"))]
mod harness;
mod instant;
mod lease;
mod log;
mod needs;
mod now;
mod place;
mod quantity;
mod reasons;
mod reclaim;
mod row;
mod schedule;
mod selector;
mod settings;

#[cfg(not(target_arch = "wasm32"))]
pub use harness::{
    Fixture, Harness, LeaseAnswer, Moment, PlaceAnswer, ReasonAnswer, assert_parser_follows_schema,
};
pub use instant::{Instant, ParseInstantError};
pub use lease::{CapKey, Lease, LeasePolicy, Verdict};
pub use log::{Level, log};
pub use needs::{CapColumn, Needs, NumberColumn, TextColumn};
pub use now::{Now, Phase};
pub use place::{Fit, PlacePolicy, Stage};
pub use quantity::{ParseQuantityError, Quantity, Rounding};
pub use reclaim::{Reclaim, ReclaimMode, ReclaimSettings};
pub use row::{Node, Pod};
pub use schedule::{Days, ParseTimeError, Schedule, Window, parse_minute};
pub use selector::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Selector};
pub use settings::{parse as parse_settings, parse_plain as parse_plain_settings, schema as settings_schema};

#[doc(hidden)]
pub use serde_json;

/// Everything a policy uses: `use kubeocean_policy_sdk::prelude::*;`.
pub mod prelude {
    pub use crate::{
        Days, Fit, Instant, Lease, LeasePolicy, Level, Needs, Node, NodeSelector, Now, Phase, PlacePolicy,
        Pod, Quantity, Reclaim, ReclaimMode, ReclaimSettings, Rounding, Schedule, Selector, Stage, Verdict,
        Window, export_policy, log,
    };
    #[cfg(not(target_arch = "wasm32"))]
    pub use crate::{Fixture, Harness, LeaseAnswer, PlaceAnswer, node, pod};
    #[doc(no_inline)]
    pub use schemars::{self, JsonSchema};
    #[doc(no_inline)]
    pub use serde::Deserialize;
}

/// What [`export_policy!`] expands to; not part of the public interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::evaluator::{LeaseEvaluator, PlaceEvaluator};
    pub use crate::export::describe;
}

/// The example of the README is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
