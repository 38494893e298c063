//! Kubernetes quantities, exact. In: texts such as `250m`, `1.5Gi`, `12e3`; out: base units with a stated rounding.
//! Used by policies whose settings name amounts. Invariant: no float; what does not fit saturates as in Kubernetes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// Nano units per unit.
const NANO: i128 = 1_000_000_000;
/// Nano units per milli unit.
const MILLI: i128 = 1_000_000;
/// The largest amount Kubernetes keeps, in nano units.
const MAX: i128 = i64::MAX as i128 * NANO;

/// An exact amount of a resource.
///
/// Finer than a nano unit is rounded away from zero, larger than 2^63-1 units is that maximum, as in Kubernetes.
/// In settings it is a string or an integer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity {
    nanos: i128,
}

/// Which way a part of a unit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Towards negative infinity: for what may be given.
    Down,
    /// Towards positive infinity: for what must be kept.
    Up,
}

/// A text that is not a Kubernetes quantity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseQuantityError(String);

impl fmt::Display for ParseQuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a quantity such as 500m, 2 or 1.5Gi", self.0)
    }
}

impl std::error::Error for ParseQuantityError {}

impl Quantity {
    /// Whole units.
    pub fn from_units(units: i64) -> Self {
        Self { nanos: i128::from(units) * NANO }
    }

    /// Thousandths.
    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * MILLI }
    }

    /// Below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whole units.
    pub fn units(self, rounding: Rounding) -> i64 {
        self.divide(NANO, rounding)
    }

    /// Thousandths.
    pub fn millis(self, rounding: Rounding) -> i64 {
        self.divide(MILLI, rounding)
    }

    /// In the base units of `resource` (PO-202): millicores for `cpu`, whole units for everything else.
    pub fn base_units(self, resource: &str, rounding: Rounding) -> i64 {
        if resource == "cpu" { self.millis(rounding) } else { self.units(rounding) }
    }

    fn divide(self, unit: i128, rounding: Rounding) -> i64 {
        let floor = self.nanos.div_euclid(unit);
        let rounded = match rounding {
            Rounding::Up if self.nanos.rem_euclid(unit) != 0 => floor + 1,
            _ => floor,
        };
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }
}

/// What a suffix multiplies with: a power of two (always at least 1) or a power of ten.
enum Scale {
    Two(u32),
    Ten(i32),
}

fn scale(suffix: &str) -> Option<Scale> {
    Some(match suffix {
        "n" => Scale::Ten(-9),
        "u" => Scale::Ten(-6),
        "m" => Scale::Ten(-3),
        "" => Scale::Ten(0),
        "k" => Scale::Ten(3),
        "M" => Scale::Ten(6),
        "G" => Scale::Ten(9),
        "T" => Scale::Ten(12),
        "P" => Scale::Ten(15),
        "E" => Scale::Ten(18),
        "Ki" => Scale::Two(10),
        "Mi" => Scale::Two(20),
        "Gi" => Scale::Two(30),
        "Ti" => Scale::Two(40),
        "Pi" => Scale::Two(50),
        "Ei" => Scale::Two(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            // Far outside any amount: the sign alone decides between the maximum and the smallest step.
            let magnitude = digits.parse::<i32>().unwrap_or(i32::MAX).min(10_000);
            Scale::Ten(if exponent.starts_with('-') { -magnitude } else { magnitude })
        }
    })
}

/// `digits` (as one integer, `fraction` of them after the point) times ten to the `power`, in nano units, rounded away
/// from zero and cut at the maximum.
fn decimal(digits: &str, power: i32) -> i128 {
    let digits = digits.trim_start_matches('0');
    let power = power.saturating_add(9);
    let length = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    if digits.is_empty() {
        return 0;
    }
    // 28 decimal places hold the maximum (9.2e27 nano units).
    if length.saturating_add(power) > 28 {
        return MAX;
    }
    let kept = usize::try_from(length.saturating_add(power.min(0))).unwrap_or(0).min(digits.len());
    let (whole, rest) = digits.split_at(kept);
    let value = whole.bytes().fold(0i128, |value, byte| value * 10 + i128::from(byte - b'0'));
    let value = (0..power.max(0)).fold(value, |value, _| value * 10);
    let more = rest.bytes().any(|byte| byte != b'0');
    (value + i128::from(more)).min(MAX)
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseQuantityError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let number = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let mut digits = String::with_capacity(whole.len() + fraction.len());
    digits.push_str(whole);
    digits.push_str(fraction);
    let places = i32::try_from(fraction.len()).ok()?;
    let magnitude = match scale(suffix)? {
        Scale::Ten(power) => decimal(&digits, power.saturating_sub(places)),
        Scale::Two(bits) => binary(&digits, places, bits),
    };
    Some(Quantity { nanos: if text.starts_with('-') { -magnitude } else { magnitude } })
}

/// `digits` over ten to the `places`, times two to the `bits`, in nano units, rounded away from zero and cut at the
/// maximum.
fn binary(digits: &str, places: i32, bits: u32) -> i128 {
    let places = usize::try_from(places).unwrap_or(0);
    let (whole, fraction) = digits.split_at(digits.len().saturating_sub(places));
    let whole = whole.trim_start_matches('0');
    // A whole part of more than 19 digits is beyond the maximum.
    if whole.len() > 19 {
        return MAX;
    }
    let whole = whole.bytes().fold(0i128, |value, byte| value * 10 + i128::from(byte - b'0'));
    let unit = NANO << bits;
    // Multiplied as on paper, from the last place: a carry stays below the unit, so nothing leaves i128.
    let (part, more) = fraction.bytes().rev().fold((0i128, false), |(carry, more), byte| {
        let product = i128::from(byte - b'0') * unit + carry;
        (product / 10, more || product % 10 != 0)
    });
    whole.saturating_mul(unit).saturating_add(part + i128::from(more)).min(MAX)
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity (string or integer)")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, units: i64) -> Result<Quantity, E> {
                Ok(Quantity::from_units(units))
            }

            fn visit_u64<E: de::Error>(self, units: u64) -> Result<Quantity, E> {
                Ok(Quantity::from_units(i64::try_from(units).unwrap_or(i64::MAX)))
            }
        }

        deserializer.deserialize_any(Text)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "description": "Kubernetes quantity, such as 500m, 2 or 1.5Gi",
            "pattern": "^[+-]?([0-9]+\\.?[0-9]*|\\.[0-9]+)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]+)?$",
        })
    }
}

#[cfg(test)]
mod tests;
