use proptest::prelude::*;
use rstest::rstest;

use super::{MAX, NANO, Quantity, Rounding};

fn nanos(text: &str) -> Option<i128> {
    text.parse::<Quantity>().ok().map(|quantity| quantity.nanos)
}

#[rstest]
#[case("0", 0)]
#[case("1", 1_000_000_000)]
#[case("+1", 1_000_000_000)]
#[case("-1.5", -1_500_000_000)]
#[case("250m", 250_000_000)]
#[case("1.5", 1_500_000_000)]
#[case(".5", 500_000_000)]
#[case("5.", 5_000_000_000)]
#[case("007", 7_000_000_000)]
#[case("1n", 1)]
#[case("1u", 1_000)]
#[case("2k", 2_000_000_000_000)]
#[case("1e3", 1_000_000_000_000)]
#[case("1E-3", 1_000_000)]
#[case("1E", 1_000_000_000_000_000_000_000_000_000)]
#[case("1Ki", 1_024_000_000_000)]
#[case("1.5Gi", 1_610_612_736_000_000_000)]
#[case("0.5Ki", 512_000_000_000)]
#[case("0.1n", 1)]
#[case("-0.1n", -1)]
#[case("1.0000000001", 1_000_000_001)]
#[case("1e-100", 1)]
#[case("0e100", 0)]
#[case("1e100", MAX)]
#[case("9Ei", MAX)]
#[case("7Ei", (7i128 << 60) * NANO)]
#[case("0.0000000000000000000001Ei", 115_293)]
#[case("99999999999999999999", MAX)]
#[case("99999999999999999999Ki", MAX)]
fn parses(#[case] text: &str, #[case] expected: i128) {
    assert_eq!(nanos(text), Some(expected));
}

#[rstest]
fn refuses(
    #[values(
        "", "-", ".", "m", "1.2.3", "1 ", " 1", "1mi", "1KI", "1e", "1e+", "1e1.5", "0x1", "--1", "1Gib", "∞"
    )]
    text: &str,
) {
    assert_eq!(nanos(text), None);
}

#[rstest]
#[case("1500m", "cpu", 1_500, 1_500)]
#[case("1.0005", "cpu", 1_000, 1_001)]
#[case("1.5", "memory", 1, 2)]
#[case("-1.5", "memory", -2, -1)]
#[case("25Gi", "memory", 25 << 30, 25 << 30)]
#[case("9e18", "cpu", i64::MAX, i64::MAX)]
fn base_units(#[case] text: &str, #[case] resource: &str, #[case] down: i64, #[case] up: i64) {
    let quantity: Quantity = text.parse().unwrap();
    assert_eq!(quantity.base_units(resource, Rounding::Down), down);
    assert_eq!(quantity.base_units(resource, Rounding::Up), up);
}

proptest! {
    #[test]
    fn whole_and_milli_amounts_are_exact(millis in -1_000_000_000_000i64..1_000_000_000_000) {
        let quantity: Quantity = format!("{millis}m").parse().unwrap();
        prop_assert_eq!(quantity, Quantity::from_millis(millis));
        prop_assert_eq!(quantity.millis(Rounding::Down), millis);
        prop_assert_eq!(quantity.units(Rounding::Down), millis.div_euclid(1_000));
    }

    #[test]
    fn never_panics_and_fits_its_schema(text in "[+-]?[0-9]{0,25}\\.?[0-9]{0,25}(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]{1,6})?") {
        let parsed = text.parse::<Quantity>().is_ok();
        let json = serde_json::Value::String(text).to_string();
        prop_assert_eq!(crate::parse_settings::<Quantity>(&json).is_ok(), parsed);
    }
}
