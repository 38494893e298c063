//! Quantities the slow and obvious way: a fraction of two integers.

/// Value of `text` in base units of `resource` as a fraction `(numerator, denominator)`.
fn fraction(resource: &str, text: &str) -> Option<(i128, i128)> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (multiply, divide): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        _ => return None,
    };
    let (whole, places) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{places}").parse().ok()?;
    let scale = 10i128.pow(u32::try_from(places.len()).ok()?);
    let base = if resource == "cpu" { 1_000 } else { 1 };
    Some((digits * multiply * base, divide * scale))
}

/// Rounded down: what may be given.
pub(crate) fn floor(resource: &str, text: &str) -> Option<i64> {
    let (numerator, denominator) = fraction(resource, text)?;
    i64::try_from(numerator / denominator).ok()
}

/// Rounded up: what must stay.
pub(crate) fn ceil(resource: &str, text: &str) -> Option<i64> {
    let (numerator, denominator) = fraction(resource, text)?;
    i64::try_from((numerator + denominator - 1) / denominator).ok()
}
