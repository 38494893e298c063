use std::collections::BTreeMap;

use kubeocean_policy_sdk::prelude::*;
use kubeocean_policy_sdk::{assert_parser_follows_schema, parse_settings, settings_schema};
use kubeocean_policy_twins::cpu_percentage;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::CpuPercentage;

/// 11.8 cores, 44Gi and 6 GPUs available of 16, 64Gi and 8, as in the worked example of the specification.
fn worked_node() -> Fixture {
    node! {
        "allocatable": {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": 8, "pods": 7},
        "used": {"cpu": "4200m", "memory": "20Gi", "nvidia.com/gpu": 2}
    }
}

#[rstest]
#[case::share_of_available(json!({"limits": [{"resource": "cpu", "percent": 50}]}), "cpu", 5_900)]
#[case::smaller_of_share_and_amount(json!({"limits": [{"resource": "cpu", "percent": 50, "quantity": "8"}]}), "cpu", 5_900)]
#[case::smaller_of_amount_and_share(json!({"limits": [{"resource": "cpu", "percent": 50, "quantity": "4"}]}), "cpu", 4_000)]
#[case::amount_alone(json!({"limits": [{"resource": "memory", "quantity": "25Gi"}]}), "memory", 25 << 30)]
#[case::amount_above_available_reduces_nothing(json!({"limits": [{"resource": "cpu", "quantity": "100"}]}), "cpu", 11_800)]
#[case::reserve_leaves_that_much_free(json!({"limits": [{"resource": "cpu", "reserve": "2"}]}), "cpu", 9_800)]
#[case::reserve_above_available_leases_nothing(json!({"limits": [{"resource": "cpu", "reserve": "20"}]}), "cpu", 0)]
#[case::reserve_rounds_up(json!({"limits": [{"resource": "memory", "reserve": "1.0000000001Gi"}]}), "memory", (43 << 30) - 1)]
#[case::share_of_allocatable(json!({"limits": [{"resource": "nvidia.com/gpu", "percent": 50, "of": "allocatable"}]}), "nvidia.com/gpu", 4)]
#[case::share_of_allocatable_is_still_bounded(json!({"limits": [{"resource": "nvidia.com/gpu", "percent": 100, "of": "allocatable"}]}), "nvidia.com/gpu", 6)]
#[case::limits_compound(json!({"limits": [{"resource": "cpu", "percent": 50}, {"resource": "cpu", "percent": 50}]}), "cpu", 2_950)]
#[case::of_available_does_not_compound(json!({"limits": [{"resource": "cpu", "percent": 50}, {"resource": "cpu", "percent": 50, "of": "available"}]}), "cpu", 5_900)]
#[case::shorthand_comes_first(json!({"cpuPercent": 50, "limits": [{"resource": "cpu", "percent": 50}]}), "cpu", 2_950)]
#[case::po_513_zero_percent_leases_nothing(json!({"limits": [{"resource": "cpu", "percent": 0}]}), "cpu", 0)]
#[case::po_513_zero_quantity_leases_nothing(json!({"limits": [{"resource": "cpu", "quantity": "0"}]}), "cpu", 0)]
#[case::po_514_shares_of_pieces_are_whole(json!({"limits": [{"resource": "pods", "percent": 50}]}), "pods", 3)]
#[case::resource_the_node_lacks(json!({"limits": [{"resource": "example.com/fpga", "percent": 50}]}), "example.com/fpga", 0)]
#[case::part_of_a_millicore_rounds_down(json!({"limits": [{"resource": "cpu", "quantity": "1.0009"}]}), "cpu", 1_000)]
fn caps(#[case] settings: Value, #[case] resource: &str, #[case] cap: i64) {
    let answer = Harness::<CpuPercentage>::new(settings).node(worked_node()).lease();
    assert_eq!(answer.cap(resource), Some(cap));
    assert_eq!((answer.verdict, answer.valid_until), (Verdict::Offer, None));
}

#[test]
fn resources_that_are_not_named_are_not_capped() {
    let settings = json!({"limits": [{"resource": "cpu", "percent": 50}]});
    let answer = Harness::<CpuPercentage>::new(settings).node(worked_node()).lease();
    assert_eq!(answer.caps.len(), 1);
    let answer = Harness::<CpuPercentage>::new("{}").node(worked_node()).lease();
    assert!(answer.caps.is_empty());
}

#[test]
fn more_resources_than_fit_inline() {
    let limits: Vec<Value> =
        (0..7).map(|index| json!({"resource": format!("example.com/r{index}"), "quantity": index})).collect();
    let resources: serde_json::Map<String, Value> =
        (0..7).map(|index| (format!("example.com/r{index}"), json!(100))).collect();
    let answer = Harness::<CpuPercentage>::new(json!({ "limits": limits }))
        .node(node! { "allocatable": resources })
        .lease();
    let expected: BTreeMap<String, i64> =
        (0..7).map(|index| (format!("example.com/r{index}"), index)).collect();
    assert_eq!(answer.caps, expected);
}

/// The schema check refuses with this message, and the module, which has no schema code, refuses too.
fn refused(settings: &Value, message: &str) {
    let text = settings.to_string();
    assert_eq!(parse_settings::<CpuPercentage>(&text).err().as_deref(), Some(message));
    assert!(CpuPercentage::parse_settings(&text).is_err());
}

#[rstest]
#[case::percent_too_large(json!({"limits": [{"resource": "cpu", "percent": 101}]}), "settings.limits[0].percent: 101 is greater than the maximum of 100")]
#[case::percent_negative(json!({"cpuPercent": -1}), "settings.cpuPercent: -1 is less than the minimum of 0")]
#[case::no_bound(json!({"limits": [{"resource": "cpu"}]}), "settings.limits[0]: needs one of percent, quantity, reserve")]
#[case::null_bound(json!({"limits": [{"resource": "cpu", "percent": null}]}), "settings.limits[0]: needs one of percent, quantity, reserve")]
#[case::no_resource(json!({"limits": [{"percent": 1}]}), "settings.limits[0].resource: is required")]
#[case::empty_resource(json!({"limits": [{"resource": "", "percent": 1}]}), "settings.limits[0].resource: \"\" is shorter than 1 characters")]
#[case::negative_quantity(json!({"limits": [{"resource": "cpu", "quantity": "-1"}]}), "settings.limits[0].quantity: is less than 0")]
#[case::negative_reserve(json!({"limits": [{"resource": "cpu", "reserve": "-1"}]}), "settings.limits[0].reserve: is less than 0")]
#[case::unknown_base(json!({"limits": [{"resource": "cpu", "percent": 1, "of": "capacity"}]}), "settings.limits[0].of: \"capacity\" is not one of \"remaining\", \"available\", \"allocatable\"")]
#[case::unknown_member(json!({"limit": []}), "settings.limit: is unknown, known are cpuPercent, limits")]
fn settings_are_refused(#[case] settings: Value, #[case] message: &str) {
    refused(&settings, message);
}

#[test]
fn reads_allocatable_only_where_a_limit_is_of_it() {
    let settings = json!({"limits": [{"resource": "cpu", "percent": 50}]});
    let needs = Harness::<CpuPercentage>::new(settings).lease_needs();
    assert_eq!(needs, Ok(Needs::new().available("cpu").cap("cpu")));
}

fn limit() -> impl Strategy<Value = Value> {
    let resource = prop::sample::select(vec!["cpu", "memory", "nvidia.com/gpu"]);
    let quantity = || {
        prop::option::of(prop_oneof![
            (0u32..200_000).prop_map(|n| format!("{n}m")),
            (0u32..50).prop_map(|n| n.to_string()),
            (0u32..900, 0u32..100).prop_map(|(n, part)| format!("{n}.{part:02}Mi")),
        ])
    };
    let of = prop::option::of(prop::sample::select(vec!["remaining", "available", "allocatable"]));
    (resource, prop::option::of(0u8..=100), quantity(), quantity(), of)
        .prop_filter("at least one bound", |(_, percent, quantity, reserve, _)| {
            percent.is_some() || quantity.is_some() || reserve.is_some()
        })
        .prop_map(|(resource, percent, quantity, reserve, of)| {
            let mut limit = json!({"resource": resource});
            let members = [
                ("percent", json!(percent)),
                ("quantity", json!(quantity)),
                ("reserve", json!(reserve)),
                ("of", json!(of)),
            ];
            for (member, value) in members.into_iter().filter(|(_, value)| !value.is_null()) {
                limit[member] = value;
            }
            limit
        })
}

proptest! {
    #[test]
    fn equals_its_twin(
        limits in prop::collection::vec(limit(), 0..6),
        shorthand in prop::option::of(0u8..=100),
        amounts in prop::collection::vec((0i64..2_000_000_000, 0i64..2_000_000_000), 3),
    ) {
        let mut settings = json!({ "limits": limits });
        if let Some(percent) = shorthand {
            settings["cpuPercent"] = json!(percent);
        }
        let resources = ["cpu", "memory", "nvidia.com/gpu"];
        let of = |pick: fn(&(i64, i64)) -> i64| -> BTreeMap<String, i64> {
            resources.iter().zip(&amounts).map(|(name, amount)| ((*name).to_owned(), pick(amount))).collect()
        };
        let (available, allocatable) = (of(|amount| amount.0), of(|amount| amount.1));
        let text = |amounts: &BTreeMap<String, i64>| -> Value {
            let unit = |name: &str| if name == "cpu" { "m" } else { "" };
            amounts.iter().map(|(name, amount)| (name.clone(), json!(format!("{amount}{}", unit(name))))).collect()
        };
        let answer = Harness::<CpuPercentage>::new(&settings)
            .node(Fixture::node(&json!({"available": text(&available), "allocatable": text(&allocatable)})))
            .lease();
        prop_assert_eq!(&answer.caps, &cpu_percentage(&settings, &available, &allocatable));
        prop_assert!(answer.caps.iter().all(|(name, cap)| (0..=available[name]).contains(cap)));
    }
}

#[test]
fn the_stored_schema_is_that_of_the_settings() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/settings.schema.json");
    let schema = settings_schema::<CpuPercentage>();
    if std::env::var_os("KUBEOCEAN_REGENERATE").is_some() {
        std::fs::write(file, format!("{schema:#}\n")).unwrap();
    }
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(stored, schema);
}

#[test]
fn the_module_accepts_exactly_what_the_schema_accepts() {
    let sample = json!({
        "cpuPercent": 50,
        "limits": [
            {"resource": "cpu", "percent": 50, "quantity": "8", "reserve": "1", "of": "available"},
            {"resource": "memory", "quantity": 1024}
        ]
    });
    assert_parser_follows_schema::<CpuPercentage>(&sample);
}
