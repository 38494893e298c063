//! What is wrong with a stored object: one function per kind, used by every program (API-906).
//!
//! Texts and order of the original's messages are kept where it had one (API-107, API-205).

use crate::{
    ClusterBindingSpec, NodeSelector, ResourceLeasingPolicySpec,
    policy::{ResourceLimit, TimeWindow},
    quantity::Quantity,
};

/// Day names accepted in a time window, in any letter case.
pub const DAY_NAMES: [&str; 7] =
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// Windows of one policy; the module that evaluates them takes no more.
pub const MAX_TIME_WINDOWS: usize = 64;
/// Distinct resources with a limit in one policy.
pub const MAX_LIMITED_RESOURCES: usize = 32;
/// Distinct label keys, and the name, that one selector may look at.
pub const MAX_SELECTOR_FACTS: usize = 64;
/// Longest name of a binding or policy; it becomes the value of a label.
pub const MAX_NAME: usize = 63;

/// The first problem of a binding that is created or whose spec changes: what definition and admission policy refuse
/// (API-903, API-905). A stored object may have such problems: the Manager refuses one that no Syncer has served yet, and
/// judges others by [`binding`] alone.
pub fn new_binding(name: &str, spec: &ClusterBindingSpec) -> Result<(), String> {
    short_name(name)?;
    binding(spec)?;
    let namespace = &spec.mount_namespace;
    crate::name::check("mountNamespace", namespace, MAX_NAME, crate::name::Syntax::Dns1123Label)
        .map_err(|_| format!("mountNamespace {namespace:?} must be a DNS-1123 label"))
}

/// The same of a policy.
pub fn new_policy(name: &str, spec: &ResourceLeasingPolicySpec) -> Result<(), String> {
    const OPERATORS: [&str; 6] = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
    short_name(name)?;
    if spec.cluster.is_empty() {
        return Err("cluster is required".to_owned());
    }
    policy(spec)?;
    let terms = spec.node_selector.iter().flat_map(|selector| &selector.node_selector_terms);
    let requirements = terms.flat_map(|term| term.match_expressions.iter().chain(&term.match_fields));
    match requirements.map(|one| one.operator.as_str()).find(|operator| !OPERATORS.contains(operator)) {
        Some(operator) => Err(format!(
            "unknown operator {operator:?} in nodeSelector, expected one of: [{}]",
            OPERATORS.join(" ")
        )),
        None => Ok(()),
    }
}

fn short_name(name: &str) -> Result<(), String> {
    if name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(format!("the name has {} characters, at most {MAX_NAME} are possible", name.len()))
}

/// The first problem of a binding's spec, without what needs other objects (API-107).
pub fn binding(spec: &ClusterBindingSpec) -> Result<(), String> {
    let required =
        |present: bool, field: &str| if present { Ok(()) } else { Err(format!("{field} is required")) };
    required(!spec.cluster_id.is_empty(), "clusterID")?;
    required(!spec.secret_ref.name.is_empty(), "secretRef.name")?;
    required(!spec.secret_ref.namespace.is_empty(), "secretRef.namespace")?;
    required(!spec.mount_namespace.is_empty(), "mountNamespace")?;
    if let Some(index) = spec.service_namespaces.iter().position(String::is_empty) {
        return Err(format!("serviceNamespaces[{index}] cannot be empty"));
    }
    selector_size(spec.node_selector.as_ref())
}

/// The first problem of a policy's legacy fields and time zone (PO-526). A policy with a problem still governs its
/// nodes, leases nothing new and evicts nothing.
pub fn policy(spec: &ResourceLeasingPolicySpec) -> Result<(), String> {
    policy_sizes(spec)?;
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

/// What the built-in modules take of the legacy fields. Said here, because a module would name its own settings.
fn policy_sizes(spec: &ResourceLeasingPolicySpec) -> Result<(), String> {
    selector_size(spec.node_selector.as_ref())?;
    let windows = spec.time_windows.len();
    if windows > MAX_TIME_WINDOWS {
        return Err(format!("timeWindows has {windows} items, at most {MAX_TIME_WINDOWS} are possible"));
    }
    let resources: std::collections::BTreeSet<&str> =
        spec.resource_limits.iter().map(|limit| limit.resource.as_str()).collect();
    if resources.len() > MAX_LIMITED_RESOURCES {
        return Err(format!(
            "resourceLimits names {} resources, at most {MAX_LIMITED_RESOURCES} are possible",
            resources.len()
        ));
    }
    Ok(())
}

fn selector_size(selector: Option<&NodeSelector>) -> Result<(), String> {
    let facts = selector.map_or(0, NodeSelector::facts);
    if facts <= MAX_SELECTOR_FACTS {
        return Ok(());
    }
    Err(format!("nodeSelector looks at {facts} labels, at most {MAX_SELECTOR_FACTS} are possible"))
}

/// Terms of a selector that can match no node, each with the reason (PO-531).
pub fn selector_mistakes(selector: Option<&NodeSelector>) -> Vec<String> {
    selector.map(NodeSelector::mistakes).unwrap_or_default()
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
    fn more_than_the_modules_take_is_named_by_its_field() {
        let many = |count: usize, item: &dyn Fn(usize) -> String| {
            (0..count).map(item).collect::<Vec<_>>().join(", ")
        };
        let windows = |n| {
            format!(
                "{{cluster: a, timeWindows: [{}]}}",
                many(n, &|_| "{start: '01:00', end: '02:00'}".into())
            )
        };
        check(&windows(64), Ok(()));
        check(&windows(65), Err("timeWindows has 65 items, at most 64 are possible"));
        let limits = |n| {
            format!(
                "{{cluster: a, resourceLimits: [{}]}}",
                many(n, &|i| format!("{{resource: r{i}, percent: 1}}"))
            )
        };
        check(&limits(32), Ok(()));
        check(&limits(33), Err("resourceLimits names 33 resources, at most 32 are possible"));
        let keys = |n| {
            let keys = many(n, &|i| format!("{{key: k{i}, operator: Exists}}"));
            format!("{{cluster: a, nodeSelector: {{nodeSelectorTerms: [{{matchExpressions: [{keys}]}}]}}}}")
        };
        check(&keys(64), Ok(()));
        check(&keys(65), Err("nodeSelector looks at 65 labels, at most 64 are possible"));
    }

    #[rstest]
    #[case("p", "{cluster: a}", Ok(()))]
    #[case("p", "{cluster: ''}", Err("cluster is required"))]
    #[case(
        "p",
        "{cluster: a, resourceLimits: [{resource: cpu, percent: 101}]}",
        Err("invalid percent in resource limit 0 (cpu): 101, expected 0 to 100")
    )]
    #[case(
        "p",
        "{cluster: a, nodeSelector: {nodeSelectorTerms: [{matchExpressions: [{key: k, operator: in}]}]}}",
        Err(
            "unknown operator \"in\" in nodeSelector, expected one of: [In NotIn Exists DoesNotExist Gt Lt]"
        )
    )]
    #[case(
        "a123456789b123456789c123456789d123456789e123456789f123456789abcd",
        "{cluster: a}",
        Err("the name has 64 characters, at most 63 are possible")
    )]
    fn what_admission_refuses_of_a_policy(
        #[case] name: &str,
        #[case] yaml: &str,
        #[case] expected: Result<(), &str>,
    ) {
        let spec: ResourceLeasingPolicySpec = serde_saphyr::from_str(yaml).unwrap();
        assert_eq!(new_policy(name, &spec), expected.map_err(str::to_owned));
    }

    #[rstest]
    #[case("lease-area", Ok(()))]
    #[case("Lease", Err("mountNamespace \"Lease\" must be a DNS-1123 label"))]
    fn what_admission_refuses_of_a_binding(#[case] namespace: &str, #[case] expected: Result<(), &str>) {
        let yaml =
            format!("{{clusterID: a, secretRef: {{name: n, namespace: m}}, mountNamespace: {namespace}}}");
        let spec: ClusterBindingSpec = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(new_binding("b", &spec), expected.map_err(str::to_owned));
        assert_eq!(binding(&spec), Ok(()), "a stored one goes on");
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
