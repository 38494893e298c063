//! Modules that are not made as this host's policies are: other records, other parts of WebAssembly, too many of a kind.

use std::sync::Arc;

use rstest::rstest;

use crate::hostile::refused;
use kubeocean_hostile_policies::guest;

/// PO-703: exports are held against the interface before anything of the module runs.
#[test]
fn a_lease_whose_rows_have_one_more_field_is_of_another_world() {
    let wider = "valid-until: option<s64>, weight: option<u32>,";
    refused(&guest().of_shape("valid-until: option<s64>,", wider).bytes(), "WrongWorld");
}

/// PO-901.
#[rstest]
#[case::relaxed_simd("LEASE", "(drop (i8x16.relaxed_swizzle (v128.const i64x2 0 0) (v128.const i64x2 0 0)))")]
#[case::atomics("LEASE", "(atomic.fence)")]
#[case::shared_memory("START", "(memory $shared 1 1 shared)")]
#[case::memory64("START", "(memory $wide i64 1)")]
#[case::a_type_that_is_collected("START", "(type $box (struct (field i32)))")]
#[case::a_reference_that_is_collected("START", "(global $nothing anyref (ref.null any))")]
#[case::an_exception_tag("START", "(tag $oops (param i32))")]
fn what_is_switched_off_does_not_compile(#[case] mark: &str, #[case] code: &str) {
    refused(&guest().with(mark, code).bytes(), "CompileFailed");
}

/// Policy spec section 8. What is within the limits compiles, and only then shows that it is no policy.
#[rstest]
#[case::core_instances("", 8, "core module instances")]
#[case::memories("(memory 1)", 2, "Wasm linear memories")]
#[case::tables("(table 1 funcref)", 4, "tables")]
fn a_component_has_only_so_many_of_a_kind(#[case] part: &str, #[case] most: usize, #[case] kind: &str) {
    let component = |count: usize| -> Arc<[u8]> {
        let instances = "(core instance (instantiate $m))".repeat(count);
        wat::parse_str(format!("(component (core module $m {part}) {instances})")).unwrap().into()
    };
    refused(&component(most), "WrongWorld: export kubeocean:policy/meta is missing");
    let more = most + 1;
    refused(&component(more), &format!("CompileFailed: The component transitively contains {more} {kind}"));
}

/// The same of one core module, in which compilers of other languages may keep them all.
#[rstest]
#[case::memories("(memory 1)", 2)]
#[case::tables("(table 1 funcref)", 4)]
fn one_core_module_may_have_them_all(#[case] part: &str, #[case] most: usize) {
    let component = |count: usize| -> Arc<[u8]> {
        let parts = part.repeat(count);
        wat::parse_str(format!("(component (core module $m {parts}) (core instance (instantiate $m)))"))
            .unwrap()
            .into()
    };
    refused(&component(most), "WrongWorld: export kubeocean:policy/meta is missing");
    refused(&component(most + 1), "CompileFailed");
}
