//! Base units of resources (PO-202): `cpu` in millicores, every other resource in whole units (bytes, pieces).

use crate::quantity::{Format, InvalidQuantity, Quantity, Rounding};

/// The resource counted in millicores.
pub const CPU: &str = "cpu";
/// Main memory, in bytes.
pub const MEMORY: &str = "memory";
/// Local scratch space, in bytes.
pub const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
/// Number of pods.
pub const PODS: &str = "pods";
/// Prefix of huge page resources; amounts are multiples of the page size that follows.
pub const HUGEPAGES_PREFIX: &str = "hugepages-";

/// A written quantity in the base unit of `resource`. What is free rounds down, what is used rounds up.
///
/// ```
/// use kubeocean_api::{quantity::Rounding, resource::to_base_units};
/// assert_eq!(to_base_units("cpu", "1.5", Rounding::Down), Ok(1500));
/// assert_eq!(to_base_units("nvidia.com/gpu", "1500m", Rounding::Down), Ok(1));
/// ```
pub fn to_base_units(resource: &str, written: &str, rounding: Rounding) -> Result<i64, InvalidQuantity> {
    Ok(base_units(resource, written.parse()?, rounding))
}

/// [`to_base_units`] for a parsed quantity.
pub fn base_units(resource: &str, quantity: Quantity, rounding: Rounding) -> i64 {
    if resource == CPU { quantity.millis(rounding) } else { quantity.units(rounding) }
}

/// An amount in base units as the quantity to write: `1500` cpu is `1500m`, `4831838208` memory is `4608Mi`.
pub fn from_base_units(resource: &str, amount: i64) -> Quantity {
    match resource {
        CPU => Quantity::from_millis(amount),
        MEMORY | EPHEMERAL_STORAGE => Quantity::from_units(amount, Format::Binary),
        _ if resource.starts_with(HUGEPAGES_PREFIX) => Quantity::from_units(amount, Format::Binary),
        _ => Quantity::from_units(amount, Format::Decimal),
    }
}

/// Rounds a grant down to what the API server accepts: huge pages to a multiple of their page size (BU section 5).
pub fn floor_to_granularity(resource: &str, amount: i64) -> i64 {
    let page = resource
        .strip_prefix(HUGEPAGES_PREFIX)
        .and_then(|size| size.parse::<Quantity>().ok())
        .map_or(1, |size| size.units(Rounding::Down));
    if page > 1 { amount - amount.rem_euclid(page) } else { amount }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("cpu", "1500m", 1500, "1500m")]
    #[case("cpu", "16", 16_000, "16")]
    #[case("memory", "6Gi", 6_442_450_944, "6Gi")]
    #[case("pods", "110", 110, "110")]
    #[case("nvidia.com/gpu", "3", 3, "3")]
    #[case("hugepages-2Mi", "64Mi", 67_108_864, "64Mi")]
    fn round_trip(#[case] resource: &str, #[case] written: &str, #[case] base: i64, #[case] printed: &str) {
        assert_eq!(to_base_units(resource, written, Rounding::Down), Ok(base));
        assert_eq!(from_base_units(resource, base).to_string(), printed);
    }

    #[test]
    fn huge_pages_are_granted_in_whole_pages() {
        assert_eq!(floor_to_granularity("hugepages-2Mi", 5 * 1024 * 1024), 4 * 1024 * 1024);
        assert_eq!(floor_to_granularity("memory", 5), 5);
    }
}
