//! From a policy type to the exports of a world. In: the author's type; out: the functions the host calls. Used by
//! `export_policy!` only. Invariant: one module exports exactly one world (PO-305), and nothing is exported natively,
//! so several policies can be linked into one test program.

use crate::bindings::{lease, meta, place, types as wire};
use crate::evaluator::{LeaseEvaluator, LeaseRow, LeaseTable, PlaceEvaluator, PlaceRow, PlaceTable};
use crate::lease::{LeasePolicy, Verdict};
use crate::log::report_panics;
use crate::place::{FitKind, PlacePolicy, Stage};
use crate::reclaim::Reclaim;

/// Describes the policy of the given package (PO-302).
pub fn describe(name: &str, version: &str, description: &str, settings_schema: String) -> meta::Description {
    report_panics();
    meta::Description {
        name: name.to_owned(),
        version: version.to_owned(),
        description: description.to_owned(),
        settings_schema,
    }
}

impl<P: LeasePolicy> lease::GuestLeaseEvaluator for LeaseEvaluator<P> {
    fn create(settings: String) -> Result<lease::LeaseEvaluator, String> {
        Self::create(&settings).map(lease::LeaseEvaluator::new)
    }

    fn needs(&self) -> wire::Needs {
        self.wire_needs()
    }

    fn lease(&self, now: wire::Now, nodes: wire::Frame) -> Result<lease::LeaseOutput, String> {
        let LeaseTable { rows, caps, reasons } = self.lease(now, &nodes, lease_row)?;
        Ok(lease::LeaseOutput { rows, caps, reasons })
    }
}

fn lease_row(row: LeaseRow) -> lease::LeaseRow {
    lease::LeaseRow {
        verdict: match row.verdict {
            Verdict::Offer => lease::Verdict::Offer,
            Verdict::Withhold => lease::Verdict::Withhold,
            Verdict::NotApplicable => lease::Verdict::NotApplicable,
        },
        reclaim: match row.reclaim {
            Reclaim::Keep => lease::Reclaim::Keep,
            Reclaim::Graceful(seconds) => lease::Reclaim::Graceful(seconds),
            Reclaim::Force => lease::Reclaim::Force,
        },
        valid_until: row.valid_until,
        reason: row.reason,
    }
}

impl<P: PlacePolicy> place::GuestPlaceEvaluator for PlaceEvaluator<P> {
    fn create(settings: String) -> Result<place::PlaceEvaluator, String> {
        Self::create(&settings).map(place::PlaceEvaluator::new)
    }

    fn needs(&self) -> wire::Needs {
        self.wire_needs()
    }

    fn place(
        &self,
        stage: place::Stage,
        now: wire::Now,
        pod: wire::Frame,
        nodes: wire::Frame,
    ) -> Result<place::PlaceOutput, String> {
        let stage = match stage {
            place::Stage::Schedule => Stage::Schedule,
            place::Stage::Admit => Stage::Admit,
        };
        let PlaceTable { rows, reasons } = self.place(stage, now, &pod, &nodes, place_row)?;
        Ok(place::PlaceOutput { rows, reasons })
    }
}

fn place_row(row: PlaceRow) -> place::PlaceRow {
    place::PlaceRow {
        fit: match row.kind {
            FitKind::Accept => place::Fit::Accept,
            FitKind::Reject => place::Fit::Reject,
            FitKind::Later(seconds) => place::Fit::Later(seconds),
        },
        score: row.score,
        reason: row.reason,
    }
}

/// Exports a policy type as a module: `export_policy!(MyPolicy: lease);`, `: place` or `: lease, place`.
///
/// Name, version and description of the module are those of the package that expands the macro; the settings schema is
/// derived from the type. Use it once per crate. Natively it only checks the types, so `cargo test` needs no wasm.
///
/// `export_policy!(MyPolicy: lease, schema = include_str!("../settings.schema.json"));` publishes a stored schema
/// instead, for modules that leave the schema code out (see [`crate::LeasePolicy::parse_settings`]); a test of the
/// author compares the file with [`crate::settings_schema`].
#[macro_export]
macro_rules! export_policy {
    ($policy:ty: lease $(, schema = $schema:expr)?) => {
        $crate::__export_world!($policy, ($($schema)?), "component-type:kubeocean:policy@1.0.0:lease-policy", LEASE_POLICY, {
            lease::LeaseEvaluator = LeaseEvaluator, __export_kubeocean_policy_lease_1_0_0_cabi;
        });
    };
    ($policy:ty: place $(, schema = $schema:expr)?) => {
        $crate::__export_world!($policy, ($($schema)?), "component-type:kubeocean:policy@1.0.0:place-policy", PLACE_POLICY, {
            place::PlaceEvaluator = PlaceEvaluator, __export_kubeocean_policy_place_1_0_0_cabi;
        });
    };
    ($policy:ty: lease, place $(, schema = $schema:expr)?) => {
        $crate::__export_world!($policy, ($($schema)?), "component-type:kubeocean:policy@1.0.0:policy", POLICY, {
            lease::LeaseEvaluator = LeaseEvaluator, __export_kubeocean_policy_lease_1_0_0_cabi;
            place::PlaceEvaluator = PlaceEvaluator, __export_kubeocean_policy_place_1_0_0_cabi;
        });
    };
    ($policy:ty: place, lease $(, schema = $schema:expr)?) => {
        $crate::export_policy!($policy: lease, place $(, schema = $schema)?);
    };
}

/// The published schema: derived from the type, or the stored one.
#[doc(hidden)]
#[macro_export]
macro_rules! __settings_schema {
    ($policy:ty, ()) => {
        $crate::settings_schema::<$policy>().to_string()
    };
    ($policy:ty, ($schema:expr)) => {
        ::std::string::String::from($schema)
    };
}

/// The common part of [`export_policy!`].
#[doc(hidden)]
#[macro_export]
macro_rules! __export_world {
    ($policy:ty, $schema:tt, $section_name:literal, $section:ident, {
        $($kind:ident::$resource:ident = $evaluator:ident, $export:ident;)+
    }) => {
        const _: () = {
            struct Module;

            impl $crate::bindings::meta::Guest for Module {
                fn describe() -> $crate::bindings::meta::Description {
                    $crate::__private::describe(
                        ::core::env!("CARGO_PKG_NAME"),
                        ::core::env!("CARGO_PKG_VERSION"),
                        ::core::env!("CARGO_PKG_DESCRIPTION"),
                        $crate::__settings_schema!($policy, $schema),
                    )
                }
            }

            $(
                impl $crate::bindings::$kind::Guest for Module {
                    type $resource = $crate::__private::$evaluator<$policy>;
                }
            )+

            #[cfg(target_arch = "wasm32")]
            #[allow(unsafe_code, reason = "the generated export functions and the section that names the world")]
            const _: () = {
                $crate::__export_kubeocean_policy_meta_1_0_0_cabi!(Module with_types_in $crate::bindings::meta);
                $(
                    $crate::$export!(Module with_types_in $crate::bindings::$kind);
                )+

                #[unsafe(link_section = $section_name)]
                #[used]
                static COMPONENT_TYPE: [u8; $crate::bindings::component_types::$section.len()] =
                    $crate::bindings::component_types::$section;
            };
        };
    };
}
