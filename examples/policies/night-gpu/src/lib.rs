//! GPUs are leased at night, when the online services need fewer of them.

use kubeocean_policy_sdk::prelude::*;

const GPU: &str = "nvidia.com/gpu";

/// GPUs are leased at night only, and at most a share of what is free.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NightGpu {
    /// Hour of the day at which leasing starts
    #[schemars(range(max = 23))]
    from: u16,
    /// Hour of the day at which leasing ends
    #[schemars(range(max = 23))]
    until: u16,
    #[schemars(range(max = 100))]
    percent: u8,
}

impl LeasePolicy for NightGpu {
    fn needs(&self) -> Needs {
        Needs::new().available(GPU).cap(GPU)
    }
    fn lease(&self, now: &Now, node: Node<'_>) -> Lease {
        let night = now.daily(self.from * 60, self.until * 60);
        let cap = if night.inside { node.available(GPU) * i64::from(self.percent) / 100 } else { 0 };
        Lease::offer()
            .cap(GPU, cap)
            .until(night.changes_at)
            .because("NightGpu", "GPUs are leased at night only")
    }
}

export_policy!(NightGpu: lease);

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with 8 GPUs of which the online services use 2.
    fn gpu_node() -> Fixture {
        node! { "allocatable": {"nvidia.com/gpu": 8}, "used": {"nvidia.com/gpu": 2} }
    }

    fn night() -> Harness<NightGpu> {
        Harness::new(r#"{"from": 22, "until": 7, "percent": 50}"#).node(gpu_node())
    }

    #[test]
    fn half_of_the_free_gpus_at_night() {
        let answer = night().at("2026-03-07T23:30", "Asia/Shanghai").lease();
        assert_eq!((answer.verdict, answer.cap(GPU)), (Verdict::Offer, Some(3)));
        assert_eq!(answer.valid_until_local.as_deref(), Some("2026-03-08T07:00"));
        assert_eq!(answer.code(), "NightGpu");
    }

    #[test]
    fn none_by_day() {
        let answer = night().at("2026-03-07T14:00", "Asia/Shanghai").lease();
        assert_eq!((answer.verdict, answer.cap(GPU)), (Verdict::Offer, Some(0)));
        assert_eq!(answer.valid_until_local.as_deref(), Some("2026-03-07T22:00"));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let refused = Harness::<NightGpu>::new(r#"{"from": 22, "until": 7, "percent": 150}"#).lease_all();
        assert_eq!(
            refused.err().as_deref(),
            Some("settings.percent: 150 is greater than the maximum of 100")
        );
    }
}
