//! What the owner's pods really use is the owner's, even where they request less.

use kubeocean_policy_sdk::prelude::*;

/// What a worker cluster measures of a node.
const MEASURED: [&str; 2] = ["cpu", "memory"];

/// Leases what the measured usage of a node leaves, less some headroom.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TidalUsage {
    /// Share of all a node has that stays free above what is measured
    #[serde(default = "headroom_percent")]
    #[schemars(range(max = 100))]
    headroom_percent: u8,
    /// What is leased is a multiple of this share of all a node has, so that small changes of usage change nothing
    #[serde(default = "step_percent")]
    #[schemars(range(min = 1, max = 50))]
    step_percent: u8,
    /// What holds while nobody measures a node
    #[serde(default)]
    without_measurement: WithoutMeasurement,
    /// No pod starts on a node of which more than this is used
    #[serde(default)]
    busy_above: BusyAbove,
}

fn headroom_percent() -> u8 {
    10
}

fn step_percent() -> u8 {
    5
}

#[derive(Clone, Copy, Default, Deserialize, JsonSchema)]
enum WithoutMeasurement {
    /// Only requests count, as without this policy
    #[default]
    Requests,
    /// The node is closed for new pods
    Close,
}

/// Amounts of what is measured.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BusyAbove {
    #[serde(default)]
    cpu: Option<Quantity>,
    #[serde(default)]
    memory: Option<Quantity>,
}

impl BusyAbove {
    /// The first resource of which too much is used.
    fn exceeded(&self, node: Node<'_>) -> Option<&'static str> {
        let over = |(resource, most): &(&str, Option<Quantity>)| {
            let most = most.map(|most| most.base_units(resource, Rounding::Down));
            most.zip(node.usage(resource)).is_some_and(|(most, usage)| usage > most)
        };
        [("cpu", self.cpu), ("memory", self.memory)].into_iter().find(over).map(|(resource, _)| resource)
    }
}

/// The share of an amount, rounded up. The numbers of a node are the host's, so nothing may overflow.
fn share(of: i64, percent: u8) -> i64 {
    let share = i128::from(of.max(0)) * i128::from(percent);
    i64::try_from((share + 99) / 100).unwrap_or(i64::MAX)
}

impl TidalUsage {
    /// What the node's owner leaves of a resource; `None` without a measurement.
    fn left(&self, resource: &str, node: Node<'_>) -> Option<i64> {
        let all = node.allocatable(resource);
        // Leased pods are measured as well. What they were promised is theirs; the rest is the owner's, and what leased pods
        // take beyond their requests is too.
        let owner = node.usage(resource)?.saturating_sub(node.leased(resource)).max(0);
        let free = all.saturating_sub(owner).saturating_sub(share(all, self.headroom_percent)).max(0);
        let step = share(all, self.step_percent).max(1);
        Some(free - free % step)
    }
}

impl LeasePolicy for TidalUsage {
    fn needs(&self) -> Needs {
        MEASURED.iter().fold(Needs::new(), |needs, resource| {
            needs.allocatable(resource).leased(resource).usage(resource).cap(*resource)
        })
    }

    fn lease(&self, _now: &Now, node: Node<'_>) -> Lease {
        let left = MEASURED.map(|resource| (resource, self.left(resource, node)));
        let unknown = left.iter().any(|(_, left)| left.is_none());
        if let (true, WithoutMeasurement::Close) = (unknown, self.without_measurement) {
            return Lease::withhold("NotMeasured", "nobody says what is used of the node");
        }
        let offer = Lease::offer().because("Usage", "what the measured usage of the node leaves is leased");
        left.into_iter()
            .filter_map(|(resource, left)| Some((resource, left?)))
            .fold(offer, |offer, (resource, left)| offer.cap(resource, left))
    }
}

impl PlacePolicy for TidalUsage {
    fn needs(&self) -> Needs {
        MEASURED.iter().fold(Needs::new(), |needs, resource| needs.usage(resource))
    }

    fn place(&self, _stage: Stage, _now: &Now, _pod: Pod<'_>, node: Node<'_>) -> Fit {
        match self.busy_above.exceeded(node) {
            Some(resource) => Fit::reject("Busy", format!("much of the node's {resource} is used")),
            None => Fit::accept(),
        }
    }
}

export_policy!(TidalUsage: lease, place);

#[cfg(test)]
mod tests {
    use super::*;

    /// A node of 20 cores and 100Gi, of which pods of others request little.
    fn node(usage: &str, leased: &str) -> Fixture {
        node! {
            "allocatable": {"cpu": "20", "memory": "100Gi"}, "used": {"cpu": "1"}, "leased": {"cpu": leased},
            "usage": {"cpu": usage, "memory": "30Gi"},
        }
    }

    fn of(settings: &str, node: Fixture) -> LeaseAnswer {
        Harness::<TidalUsage>::new(settings).node(node).lease()
    }

    fn cpu(usage: &str, leased: &str) -> Option<i64> {
        of("{}", node(usage, leased)).cap("cpu")
    }

    #[test]
    fn what_is_used_is_not_leased_and_some_headroom_is_kept() {
        let answer = of("{}", node("6", "0"));
        assert_eq!((answer.verdict, answer.valid_until), (Verdict::Offer, None));
        // 20 - 6 - 10 % of 20; 100 - 30 - 10.
        assert_eq!((answer.cap("cpu"), answer.cap("memory")), (Some(12_000), Some(60 << 30)));
        assert_eq!(of(r#"{"headroomPercent": 0}"#, node("6", "0")).cap("cpu"), Some(14_000));
        assert_eq!(cpu("19", "0"), Some(0));
    }

    #[test]
    fn leased_pods_do_not_crowd_themselves_out() {
        assert_eq!(cpu("6", "0"), Some(12_000));
        assert_eq!(cpu("14", "8"), Some(12_000), "8 of the 14 cores are used by leased pods");
        assert_eq!(cpu("6", "8"), Some(18_000), "pods that were leased just now are not measured yet");
    }

    #[test]
    fn small_changes_of_usage_change_nothing() {
        // Steps of one core.
        assert_eq!(
            (cpu("5001m", "0"), cpu("6", "0"), cpu("6001m", "0")),
            (Some(12_000), Some(12_000), Some(11_000))
        );
        assert_eq!(of(r#"{"stepPercent": 20}"#, node("5", "0")).cap("cpu"), Some(12_000));
    }

    #[test]
    fn a_node_that_nobody_measures_is_as_without_the_policy_or_closed() {
        let blind = || node! { "allocatable": {"cpu": "20"} };
        let answer = of("{}", blind());
        assert_eq!((answer.verdict, answer.cap("cpu")), (Verdict::Offer, None));
        let answer = of(r#"{"withoutMeasurement": "Close"}"#, blind());
        assert_eq!((answer.verdict, answer.code()), (Verdict::Withhold, "NotMeasured"));
    }

    #[test]
    fn no_pod_starts_on_a_busy_node() {
        let placed = |settings: &str, usage: &str| {
            let node = node! { "usage": {"cpu": usage, "memory": "30Gi"} };
            let answer = Harness::<TidalUsage>::new(settings).node(node).place(Stage::Admit);
            (answer.accepted, answer.reason.map(|reason| reason.code).unwrap_or_default())
        };
        let settings = r#"{"busyAbove": {"cpu": "16"}}"#;
        assert_eq!(placed(settings, "16"), (true, String::new()));
        assert_eq!(placed(settings, "16001m"), (false, "Busy".to_owned()));
        assert!(placed("{}", "20").0, "without a limit");
        assert!(!placed(r#"{"busyAbove": {"memory": "20Gi"}}"#, "0").0);
        let blind = Harness::<TidalUsage>::new(settings).node(node! {}).place(Stage::Admit);
        assert!(blind.accepted, "nobody measures");
    }

    #[test]
    fn headroom_is_kept_whatever_is_measured() {
        for (usage, leased) in [("0", "0"), ("20", "20"), ("40", "0"), ("3", "19")] {
            let cap = cpu(usage, leased).unwrap();
            assert!((0..=18_000).contains(&cap), "{cap} of usage {usage}, leased {leased}");
        }
    }
}
