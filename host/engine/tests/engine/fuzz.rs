//! The loader with damaged modules and odd settings: nothing may panic, hang or be called something it is not.
//!
//! `KUBEOCEAN_FUZZ_CASES` sets the number of cases of the cheap targets; those that compile get a sixteenth of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use kubeocean_engine::{LoadCode, ModuleLimits, builtin, finished_component};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use crate::support::*;

fn cases(share: u32) -> ProptestConfig {
    let asked = std::env::var("KUBEOCEAN_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases: u32 = asked.unwrap_or(256);
    ProptestConfig { cases: (cases / share).max(1), failure_persistence: None, ..ProptestConfig::default() }
}

/// Time for a machine that runs other tests. A guest that needs more may be the machine's fault all the same, and such an
/// error says so by `passing` (PO-703).
fn patient() -> ModuleLimits {
    ModuleLimits { timeout_ms: 1000, ..ModuleLimits::default() }
}

/// A built-in module with a few bytes changed, cut, or with bytes of itself somewhere else.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let one = (0..3_u8, any::<Index>(), any::<Index>(), 1_u8..);
    (prop::sample::select(vec!["cpu-percentage", "time-windows"]), vec(one, 0..4)).prop_map(|(name, all)| {
        let mut bytes = builtin(name).unwrap().to_vec();
        for (kind, at, from, by) in all {
            if bytes.is_empty() {
                break;
            }
            let (at, from) = (at.index(bytes.len()), from.index(bytes.len()));
            match kind {
                0 => bytes[at] ^= by,
                1 => bytes.truncate(at),
                _ => {
                    let part = bytes[from..(from + 64).min(bytes.len())].to_vec();
                    bytes.splice(at..at, part);
                }
            }
        }
        bytes
    })
}

/// Any JSON, some of it with the names the built-in modules know.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof!["\\PC{0,12}", "[0-9]{1,3}(m|Ki|Gi|e9)?", "[0-2][0-9]:[0-5][0-9]"].prop_map(Value::from),
    ];
    let name = prop_oneof![
        "[a-zA-Z]{1,8}",
        prop::sample::select(vec![
            "limits",
            "resource",
            "percent",
            "quantity",
            "reserve",
            "of",
            "cpuPercent",
            "windows",
            "start",
            "end",
            "days",
            "reclaim",
            "mode",
            "overnight",
        ])
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(4, 32, 4, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(name.clone(), inner, 0..4).prop_map(|map: BTreeMap<String, Value>| json!(map)),
        ]
    })
}

proptest! {
    #![proptest_config(cases(1))]

    #[test]
    fn a_damaged_module_is_finished_or_refused(bytes in damaged()) {
        match finished_component(&bytes) {
            Ok(finished) => prop_assert_eq!(finished_component(&finished).unwrap(), finished, "finished is finished"),
            Err(error) => prop_assert_eq!(error.code, LoadCode::NotAPolicy),
        }
    }

    #[test]
    fn odd_settings_are_settings_that_do_not_fit(
        name in prop::sample::select(vec!["cpu-percentage", "time-windows", "node-labels"]),
        settings in any_json(),
    ) {
        let bytes: Arc<[u8]> = builtin(name).unwrap().into();
        if let Err(error) = engine().load_module(&bytes, &settings, patient(), &[]) {
            let fits = [LoadCode::SettingsInvalid, LoadCode::SettingsRejected];
            prop_assert!(error.passing || fits.contains(&error.code), "{}: {}", settings, error);
        }
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn a_damaged_module_loads_or_names_the_step_it_failed(bytes in damaged()) {
        let bytes: Arc<[u8]> = bytes.into();
        if let Err(error) = engine().outline(&bytes, patient()) {
            use LoadCode::{CompileFailed, DescribeFailed, NotAPolicy, SchemaInvalid, WrongWorld};
            let steps = [NotAPolicy, WrongWorld, CompileFailed, DescribeFailed, SchemaInvalid];
            prop_assert!(error.passing || steps.contains(&error.code), "{}", error);
        }
    }
}
