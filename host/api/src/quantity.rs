//! Kubernetes quantities with exact arithmetic (API-1103): no float is ever involved.
//!
//! A quantity is kept in nano units in an `i128`, with the suffix family it was written in, and printed in the
//! canonical form of the API server (`0.5` prints `500m`, `1024Mi` prints `1Gi`).

use std::{fmt, str::FromStr};

const NANOS: i128 = 1_000_000_000;
/// Largest magnitude the API server represents (2^63 - 1 units); larger values are capped there, as it does.
const LIMIT: i128 = (i64::MAX as i128) * NANOS;

/// How a quantity was written, which decides how it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// `Ki`, `Mi`, ... powers of 1024.
    Binary,
    /// `m`, none, `k`, `M`, ... powers of 1000.
    Decimal,
    /// `1e3`.
    Exponent,
}

/// Which way a division is rounded. Usage goes up and grants go down (PO-202).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Towards negative infinity.
    Down,
    /// Towards positive infinity.
    Up,
}

/// An exact amount, for example `500m`, `1.5Gi` or `12e6`. Compares by value, whatever the format.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// A string that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity, expected for example 500m, 2, 1.5Gi or 3e6")]
pub struct InvalidQuantity(pub String);

impl Quantity {
    /// `units` whole units (cores, bytes, pieces).
    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * NANOS, format }
    }

    /// `millis` thousandths of a unit (millicores).
    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: (i128::from(millis) * (NANOS / 1000)).clamp(-LIMIT, LIMIT), format: Format::Decimal }
    }

    /// The amount in whole units.
    pub fn units(self, rounding: Rounding) -> i64 {
        saturate(divide(self.nanos, NANOS, rounding))
    }

    /// The amount in thousandths.
    pub fn millis(self, rounding: Rounding) -> i64 {
        saturate(divide(self.nanos, NANOS / 1000, rounding))
    }

    /// Whether the amount is below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether the amount is zero.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }
}

fn divide(value: i128, by: i128, rounding: Rounding) -> i128 {
    let floor = value.div_euclid(by);
    match rounding {
        Rounding::Down => floor,
        Rounding::Up => floor + i128::from(value.rem_euclid(by) != 0),
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        parse(text).ok_or_else(|| InvalidQuantity(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let (negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let (scale, format) = scale_of(suffix)?;
    let magnitude = scaled(whole, fraction, scale);
    let nanos = if negative { -magnitude } else { magnitude };
    Some(Quantity { nanos, format })
}

#[derive(Clone, Copy)]
enum Scale {
    /// Times 2 to this power.
    PowerOfTwo(u32),
    /// Times 10 to this power.
    PowerOfTen(i32),
}

fn scale_of(suffix: &str) -> Option<(Scale, Format)> {
    let decimal = |power| Some((Scale::PowerOfTen(power), Format::Decimal));
    let binary = |power| Some((Scale::PowerOfTwo(power), Format::Binary));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            // Far outside any amount: the sign alone decides between the largest amount and the smallest.
            let power = digits.parse().unwrap_or(i32::MAX).min(10_000);
            let power = if exponent.starts_with('-') { -power } else { power };
            Some((Scale::PowerOfTen(power), Format::Exponent))
        }
    }
}

/// `whole.fraction` times the scale in nano units, rounded up and capped as the API server does.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    match scale {
        Scale::PowerOfTwo(power) => multiplied(whole, fraction, NANOS << power),
        Scale::PowerOfTen(power) => shifted(whole, fraction, i64::from(power) + 9),
    }
}

fn digit(byte: u8) -> i128 {
    i128::from(byte - b'0')
}

/// The point moved `places` to the right.
fn shifted(whole: &str, fraction: &str, places: i64) -> i128 {
    let digits = || whole.bytes().chain(fraction.bytes()).map(digit);
    let before = i64::try_from(whole.len()).unwrap_or(i64::MAX);
    let point = usize::try_from(before.saturating_add(places)).unwrap_or(0);
    let mut value: i128 = 0;
    for digit in digits().chain(std::iter::repeat(0)).take(point) {
        value = value * 10 + digit;
        if value >= LIMIT {
            return LIMIT;
        }
    }
    value + i128::from(digits().skip(point).any(|digit| digit != 0))
}

/// Multiplied as on paper, the fraction from its end: no digit is too far behind the point to count.
fn multiplied(whole: &str, fraction: &str, factor: i128) -> i128 {
    let mut carried: i128 = 0;
    let mut inexact = false;
    for digit in fraction.bytes().rev().map(digit) {
        let product = digit * factor + carried;
        inexact |= product % 10 != 0;
        carried = product / 10;
    }
    let whole = whole.bytes().map(digit).fold(0, |value, digit| (value * 10 + digit).min(LIMIT));
    whole.saturating_mul(factor).saturating_add(carried + i128::from(inexact)).min(LIMIT)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.nanos < 0 {
            f.write_str("-")?;
        }
        let magnitude = self.nanos.abs();
        match self.format {
            Format::Binary if magnitude % NANOS == 0 && magnitude / NANOS >= 1024 => {
                let mut value = magnitude / NANOS;
                let mut suffix = "";
                for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
                    if value % 1024 != 0 {
                        break;
                    }
                    value /= 1024;
                    suffix = next;
                }
                write!(f, "{value}{suffix}")
            }
            Format::Binary | Format::Decimal | Format::Exponent => {
                let (mut value, mut power) = (magnitude, -9);
                while value % 1000 == 0 && power < 18 {
                    value /= 1000;
                    power += 3;
                }
                if self.format == Format::Exponent {
                    return if power == 0 { write!(f, "{value}") } else { write!(f, "{value}e{power}") };
                }
                let suffix = match power {
                    -9 => "n",
                    -6 => "u",
                    -3 => "m",
                    0 => "",
                    3 => "k",
                    6 => "M",
                    9 => "G",
                    12 => "T",
                    15 => "P",
                    _ => "E",
                };
                write!(f, "{value}{suffix}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("0", "0", 0)]
    #[case("4", "4", 4000)]
    #[case("500m", "500m", 500)]
    #[case("0.5", "500m", 500)]
    #[case("1.5Gi", "1536Mi", 1_610_612_736_000)]
    #[case("1024Mi", "1Gi", 1_073_741_824_000)]
    #[case("1000", "1k", 1_000_000)]
    #[case("12e6", "12e6", 12_000_000_000)]
    #[case("1E", "1E", i64::MAX)]
    #[case("-3", "-3", -3000)]
    #[case("+3", "3", 3000)]
    #[case("100n", "100n", 1)]
    #[case(".5", "500m", 500)]
    #[case("2.", "2", 2000)]
    #[case("8192Ki", "8Mi", 8_388_608_000)]
    #[case("0.0000000000000000000001Ei", "115293n", 1)]
    #[case("1234567890123456.7891234567890k", "1234567890123456789123456789n", i64::MAX)]
    #[case("1e-1000", "1e-9", 1)]
    #[case("0e1000", "0", 0)]
    fn parses_and_prints(#[case] text: &str, #[case] canonical: &str, #[case] millis_up: i64) {
        let quantity: Quantity = text.parse().unwrap();
        assert_eq!(quantity.to_string(), canonical);
        assert_eq!(quantity.millis(Rounding::Up), millis_up);
    }

    #[rstest]
    #[case("")]
    #[case("abc")]
    #[case("1.2.3")]
    #[case("1ki")]
    #[case("--1")]
    #[case("1e")]
    #[case(".")]
    #[case("1 Gi")]
    fn refuses(#[case] text: &str) {
        assert!(text.parse::<Quantity>().is_err());
    }

    #[test]
    fn values_beyond_the_servers_range_are_capped() {
        let huge: Quantity = "99999999999999999999999999Ei".parse().unwrap();
        assert_eq!(huge.units(Rounding::Down), i64::MAX);
        let huge: Quantity = "1e1000".parse().unwrap();
        assert_eq!(huge.units(Rounding::Down), i64::MAX);
    }

    #[test]
    fn every_digit_counts() {
        let amount: Quantity = "1000000000.45869760961Gi".parse().unwrap();
        assert_eq!(amount.units(Rounding::Up), 1_073_741_824_492_522_809);
    }

    proptest! {
        #[test]
        fn printing_and_parsing_keep_the_value(units in any::<i32>(), millis in 0_i64..1000) {
            let text = format!("{units}.{millis:03}");
            let quantity: Quantity = text.parse().unwrap();
            prop_assert_eq!(quantity.to_string().parse::<Quantity>().unwrap(), quantity);
        }

        #[test]
        fn rounding_brackets_the_value(millis in any::<i32>()) {
            let quantity = Quantity::from_millis(i64::from(millis));
            let (down, up) = (quantity.units(Rounding::Down), quantity.units(Rounding::Up));
            prop_assert!(down * 1000 <= i64::from(millis) && i64::from(millis) <= up * 1000 && up - down <= 1);
        }
    }
}
