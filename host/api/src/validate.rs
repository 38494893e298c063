//! What is wrong with a stored object: one function per kind, used by every program (API-906).
//!
//! Texts and order of the original's messages are kept where it had one (API-107, API-205).

use crate::{
    ClusterBindingSpec, ResourceLeasingPolicySpec,
    policy::{ResourceLimit, TimeWindow},
    quantity::Quantity,
};

/// Day names accepted in a time window, in any letter case.
pub const DAY_NAMES: [&str; 7] =
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// The first problem of a binding's spec, without what needs other objects (API-107).
pub fn binding(spec: &ClusterBindingSpec) -> Result<(), String> {
    let required =
        |present: bool, field: &str| if present { Ok(()) } else { Err(format!("{field} is required")) };
    required(!spec.cluster_id.is_empty(), "clusterID")?;
    required(!spec.secret_ref.name.is_empty(), "secretRef.name")?;
    required(!spec.secret_ref.namespace.is_empty(), "secretRef.namespace")?;
    required(!spec.mount_namespace.is_empty(), "mountNamespace")?;
    match spec.service_namespaces.iter().position(String::is_empty) {
        Some(index) => Err(format!("serviceNamespaces[{index}] cannot be empty")),
        None => Ok(()),
    }
}

/// The first problem of a policy's legacy fields and time zone (PO-526). A policy with a problem still governs its
/// nodes, leases nothing new and evicts nothing.
pub fn policy(spec: &ResourceLeasingPolicySpec) -> Result<(), String> {
    for (index, window) in spec.time_windows.iter().enumerate() {
        time_window(index, window)?;
    }
    for (index, limit) in spec.resource_limits.iter().enumerate() {
        resource_limit(index, limit)?;
    }
    let grace = spec.graceful_reclaim_period_seconds;
    if grace < 0 {
        return Err(format!("gracefulReclaimPeriodSeconds must not be negative, got {grace}"));
    }
    if let Some(zone) = &spec.time_zone
        && jiff::tz::TimeZone::get(zone).is_err()
    {
        return Err(format!("unknown timeZone {zone:?}, expected an IANA name such as Europe/Rome"));
    }
    Ok(())
}

/// Resources of which a policy asks to lease nothing by an explicit zero (PO-513), each once, in order.
pub fn zero_limits(spec: &ResourceLeasingPolicySpec) -> Vec<String> {
    let is_zero = |limit: &&ResourceLimit| {
        limit.percent == Some(0)
            || limit
                .quantity
                .as_ref()
                .and_then(|q| q.0.parse::<Quantity>().ok())
                .is_some_and(Quantity::is_zero)
    };
    let mut resources: Vec<String> = Vec::new();
    for limit in spec.resource_limits.iter().filter(is_zero) {
        if !resources.contains(&limit.resource) {
            resources.push(limit.resource.clone());
        }
    }
    resources
}

/// Resources with more than one limit; they compound, which is rarely meant (PO-512).
pub fn repeated_limits(spec: &ResourceLeasingPolicySpec) -> Vec<String> {
    let mut repeated: Vec<String> = Vec::new();
    for (index, limit) in spec.resource_limits.iter().enumerate() {
        let earlier = spec.resource_limits[..index].iter().any(|other| other.resource == limit.resource);
        if earlier && !repeated.contains(&limit.resource) {
            repeated.push(limit.resource.clone());
        }
    }
    repeated
}

fn time_window(index: usize, window: &TimeWindow) -> Result<(), String> {
    for (what, value) in [("start", &window.start), ("end", &window.end)] {
        if !is_minute_of_day(value) {
            return Err(format!(
                "invalid {what} time format in time window {index}: \"{value}\", expected HH:MM format"
            ));
        }
    }
    for (day_index, day) in window.days.iter().enumerate() {
        if !DAY_NAMES.contains(&day.to_ascii_lowercase().as_str()) {
            return Err(format!(
                "invalid day in time window {index}, day {day_index}: \"{day}\", expected one of: [{}]",
                DAY_NAMES.join(" ")
            ));
        }
    }
    Ok(())
}

/// `HH:MM`, 24 hours, zero-padded (API-401).
fn is_minute_of_day(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit();
    match text.as_bytes() {
        [h1, h2, b':', m1, m2] if digit(*h1) && digit(*h2) && digit(*m1) && digit(*m2) => {
            (*h1 - b'0') * 10 + (*h2 - b'0') < 24 && *m1 < b'6'
        }
        _ => false,
    }
}

fn resource_limit(index: usize, limit: &ResourceLimit) -> Result<(), String> {
    let resource = &limit.resource;
    if let Some(percent) = limit.percent
        && !(0..=100).contains(&percent)
    {
        return Err(format!(
            "invalid percent in resource limit {index} ({resource}): {percent}, expected 0 to 100"
        ));
    }
    let Some(quantity) = &limit.quantity else { return Ok(()) };
    match quantity.0.parse::<Quantity>() {
        Ok(parsed) if parsed.is_negative() => Err(format!(
            "invalid quantity in resource limit {index} ({resource}): {}, expected at least 0",
            quantity.0
        )),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("invalid quantity in resource limit {index} ({resource}): {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn check(yaml: &str, expected: Result<(), &str>) {
        let spec: ResourceLeasingPolicySpec = serde_saphyr::from_str(yaml).unwrap();
        assert_eq!(policy(&spec), expected.map_err(str::to_owned));
    }

    #[rstest]
    #[case("{cluster: a}")]
    #[case("{cluster: a, timeWindows: [{start: '08:01', end: '08:00'}]}")]
    #[case(
        "{cluster: a, timeWindows: [{start: '00:00', end: '23:59', days: [MONDAY, friday]}], timeZone: Asia/Shanghai}"
    )]
    #[case("{cluster: a, resourceLimits: [{resource: cpu, quantity: 4, percent: 100}]}")]
    #[case("{cluster: a, resourceLimits: [{resource: cpu, percent: 0}]}")]
    fn valid(#[case] yaml: &str) {
        check(yaml, Ok(()));
    }

    #[rstest]
    #[case(
        "{cluster: a, timeWindows: [{start: '9:00', end: '10:00'}]}",
        "invalid start time format in time window 0: \"9:00\", expected HH:MM format"
    )]
    #[case(
        "{cluster: a, timeWindows: [{start: '09:00', end: '24:00'}]}",
        "invalid end time format in time window 0: \"24:00\", expected HH:MM format"
    )]
    #[case(
        "{cluster: a, timeWindows: [{start: '09:00', end: '10:00', days: [Mon]}]}",
        "invalid day in time window 0, day 0: \"Mon\", expected one of: [monday tuesday wednesday thursday friday saturday sunday]"
    )]
    #[case(
        "{cluster: a, resourceLimits: [{resource: cpu, percent: 101}]}",
        "invalid percent in resource limit 0 (cpu): 101, expected 0 to 100"
    )]
    #[case(
        "{cluster: a, resourceLimits: [{resource: cpu, quantity: '-1'}]}",
        "invalid quantity in resource limit 0 (cpu): -1, expected at least 0"
    )]
    #[case(
        "{cluster: a, gracefulReclaimPeriodSeconds: -1}",
        "gracefulReclaimPeriodSeconds must not be negative, got -1"
    )]
    #[case(
        "{cluster: a, timeZone: Mars/Olympus}",
        "unknown timeZone \"Mars/Olympus\", expected an IANA name such as Europe/Rome"
    )]
    fn invalid(#[case] yaml: &str, #[case] message: &str) {
        check(yaml, Err(message));
    }

    #[test]
    fn zeros_and_repetitions_are_named() {
        let spec: ResourceLeasingPolicySpec = serde_saphyr::from_str(
            "{cluster: a, resourceLimits: [{resource: cpu, percent: 0}, {resource: memory, quantity: 0}, {resource: cpu, percent: 50}]}",
        )
        .unwrap();
        assert_eq!(zero_limits(&spec), ["cpu", "memory"]);
        assert_eq!(repeated_limits(&spec), ["cpu"]);
    }

    #[rstest]
    #[case("{}", "clusterID is required")]
    #[case("{clusterID: a}", "secretRef.name is required")]
    #[case("{clusterID: a, secretRef: {name: n}}", "secretRef.namespace is required")]
    #[case("{clusterID: a, secretRef: {name: n, namespace: m}}", "mountNamespace is required")]
    #[case(
        "{clusterID: a, secretRef: {name: n, namespace: m}, mountNamespace: k, serviceNamespaces: [x, '']}",
        "serviceNamespaces[1] cannot be empty"
    )]
    fn bindings(#[case] yaml: &str, #[case] message: &str) {
        let spec: ClusterBindingSpec = serde_saphyr::from_str(yaml).unwrap();
        assert_eq!(binding(&spec), Err(message.to_owned()));
    }
}
