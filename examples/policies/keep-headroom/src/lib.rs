//! A node's owner keeps a reserve on it, and the whole node while the owner's own pods need much of it.

use kubeocean_policy_sdk::prelude::*;

/// Keeps a reserve of every node for its owner, and closes nodes that are busy with the owner's pods.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KeepHeadroom {
    /// What stays free on every node, by resource
    #[schemars(length(min = 1, max = 16))]
    reserve: Vec<Reserve>,
    /// A node is closed while pods that are not leased request more than this share of one of the resources above
    #[serde(default)]
    #[schemars(range(min = 1, max = 100))]
    close_above_percent: Option<u8>,
    /// What happens to pods on a node that is closed; by default they stay
    #[serde(default)]
    reclaim: ReclaimSettings,
}

/// The reserve of one resource.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reserve {
    #[schemars(length(min = 1, max = 253))]
    resource: String,
    /// Amount that stays free, such as 2 cores or 4Gi; it is in addition to the share
    #[serde(default)]
    quantity: Option<Quantity>,
    /// Share of what the node has in all that stays free
    #[serde(default)]
    #[schemars(range(max = 100))]
    percent: Option<u8>,
}

impl Reserve {
    /// What stays free of `allocatable`, rounded up. The numbers of a node are the host's, so nothing may overflow.
    fn of(&self, allocatable: i64) -> i64 {
        let share = i128::from(allocatable.max(0)) * i128::from(self.percent.unwrap_or(0));
        let share = i64::try_from((share + 99) / 100).unwrap_or(i64::MAX);
        let amount = self.quantity.map_or(0, |quantity| quantity.base_units(&self.resource, Rounding::Up));
        share.saturating_add(amount)
    }
}

impl KeepHeadroom {
    /// The first resource of which the owner's pods request more than they may on a leased node.
    fn busy(&self, node: Node<'_>) -> Option<&str> {
        let percent = i128::from(self.close_above_percent?);
        let over = |reserve: &&Reserve| {
            let (used, all) = (node.used(&reserve.resource), node.allocatable(&reserve.resource));
            all > 0 && i128::from(used) * 100 > i128::from(all) * percent
        };
        self.reserve.iter().find(over).map(|reserve| reserve.resource.as_str())
    }
}

impl LeasePolicy for KeepHeadroom {
    fn validate(&self) -> Result<(), String> {
        for (index, reserve) in self.reserve.iter().enumerate() {
            if reserve.quantity.is_none() && reserve.percent.is_none() {
                return Err(format!("settings.reserve[{index}]: needs a quantity or a percent"));
            }
            if reserve.quantity.is_some_and(Quantity::is_negative) {
                return Err(format!("settings.reserve[{index}].quantity: must not be negative"));
            }
            if self.reserve[..index].iter().any(|other| other.resource == reserve.resource) {
                return Err(format!(
                    "settings.reserve[{index}].resource: {:?} is named twice",
                    reserve.resource
                ));
            }
        }
        self.reclaim.resolve().map(drop)
    }

    fn needs(&self) -> Needs {
        self.reserve.iter().map(|reserve| reserve.resource.as_str()).fold(Needs::new(), |needs, resource| {
            needs.available(resource).allocatable(resource).used(resource).cap(resource)
        })
    }

    fn lease(&self, _now: &Now, node: Node<'_>) -> Lease {
        if let Some(resource) = self.busy(node) {
            return Lease::withhold("Busy", format!("the owner's pods need much of its {resource}"))
                .reclaim(self.reclaim.resolve().unwrap_or_default());
        }
        let offer = Lease::offer().because("Headroom", "a reserve of the node is kept for its owner");
        self.reserve.iter().fold(offer, |offer, reserve| {
            let (free, all) = (node.available(&reserve.resource), node.allocatable(&reserve.resource));
            offer.cap(reserve.resource.clone(), free.saturating_sub(reserve.of(all)))
        })
    }
}

export_policy!(KeepHeadroom: lease);

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: &str = r#"{
        "reserve": [{"resource": "cpu", "percent": 10}, {"resource": "memory", "quantity": "4Gi"}],
        "closeAbovePercent": 60,
        "reclaim": {"mode": "Graceful", "graceSeconds": 300}
    }"#;

    fn node(cpu_used: &str) -> Fixture {
        node! { "allocatable": {"cpu": "16", "memory": "64Gi"}, "used": {"cpu": cpu_used, "memory": "20Gi"} }
    }

    fn of(settings: &str, node: Fixture) -> LeaseAnswer {
        Harness::<KeepHeadroom>::new(settings).node(node).lease()
    }

    #[test]
    fn the_reserve_is_taken_from_what_is_free() {
        let answer = of(SETTINGS, node("4"));
        assert_eq!(answer.verdict, Verdict::Offer);
        // 16 cores: 12 are free, a tenth of all 16 is kept.
        assert_eq!((answer.cap("cpu"), answer.cap("memory")), (Some(10_400), Some(40 << 30)));
        assert_eq!(answer.valid_until, None);
    }

    #[test]
    fn a_node_without_enough_free_offers_nothing_of_it() {
        let little = node! { "allocatable": {"cpu": "16", "memory": "8Gi"}, "used": {"memory": "6Gi"} };
        let settings = r#"{"reserve": [{"resource": "memory", "quantity": "4Gi"}]}"#;
        assert_eq!(of(settings, little).cap("memory"), Some(0));
    }

    #[test]
    fn a_busy_node_is_closed_and_its_pods_get_notice() {
        let answer = of(SETTINGS, node("10"));
        assert_eq!((answer.verdict, answer.code()), (Verdict::Withhold, "Busy"));
        assert_eq!(answer.reclaim, Reclaim::Graceful(300));
        assert_eq!(of(SETTINGS, node("9600m")).verdict, Verdict::Offer, "60 percent is not above 60 percent");
    }

    #[test]
    fn a_node_without_the_resource_is_not_busy_with_it() {
        let settings =
            r#"{"reserve": [{"resource": "nvidia.com/gpu", "quantity": 1}], "closeAbovePercent": 1}"#;
        assert_eq!(of(settings, node("16")).verdict, Verdict::Offer);
    }

    #[test]
    fn settings_that_say_nothing_or_the_same_twice_are_refused() {
        let refused = |settings: &str| Harness::<KeepHeadroom>::new(settings).lease_all().unwrap_err();
        assert_eq!(
            refused(r#"{"reserve": [{"resource": "cpu"}]}"#),
            "settings.reserve[0]: needs a quantity or a percent"
        );
        let twice = r#"{"reserve": [{"resource": "cpu", "percent": 1}, {"resource": "cpu", "percent": 2}]}"#;
        assert_eq!(refused(twice), "settings.reserve[1].resource: \"cpu\" is named twice");
    }
}
