//! Fills virtual nodes one after the other: the fuller a node would be with the pod, the better it is.

use kubeocean_policy_sdk::prelude::*;

/// Fills virtual nodes one after the other, so that whole nodes become free.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct BinPacking {
    /// Resources that count, each as much as the others
    #[serde(default = "cpu_and_memory")]
    #[schemars(length(min = 1, max = 8))]
    resources: Vec<String>,
    /// Above this share nodes are left to others: the policy has no opinion about them
    #[serde(default = "all")]
    #[schemars(range(min = 1, max = 100))]
    up_to_percent: u8,
}

fn cpu_and_memory() -> Vec<String> {
    vec!["cpu".to_owned(), "memory".to_owned()]
}

fn all() -> u8 {
    100
}

impl BinPacking {
    /// How full the node would be with the pod, in percent, on average over the resources that it has.
    fn fill(&self, pod: Pod<'_>, node: Node<'_>) -> Option<i64> {
        let shares = self.resources.iter().filter_map(|resource| {
            let all = node.allocatable(resource);
            let taken = all.saturating_sub(node.available(resource)).saturating_add(pod.request(resource));
            (all > 0).then(|| percent(taken.clamp(0, all), all))
        });
        let (sum, count) = shares.fold((0, 0), |(sum, count), share| (sum + share, count + 1));
        (count > 0).then(|| sum / count)
    }
}

/// A part of a whole. In 64 bits, which a module divides in one instruction: this is computed for each node and resource.
fn percent(part: i64, whole: i64) -> i64 {
    if part <= i64::MAX / 100 { part * 100 / whole } else { part / (whole / 100) }
}

impl PlacePolicy for BinPacking {
    fn needs(&self) -> Needs {
        self.resources.iter().fold(Needs::new(), |needs, resource| {
            needs.allocatable(resource).available(resource).pod_request(resource)
        })
    }

    fn place(&self, _stage: Stage, _now: &Now, pod: Pod<'_>, node: Node<'_>) -> Fit {
        match self.fill(pod, node).and_then(|fill| u8::try_from(fill).ok()) {
            Some(fill) if fill <= self.up_to_percent => Fit::accept().score(fill),
            _ => Fit::accept(),
        }
    }
}

export_policy!(BinPacking: place);

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(settings: &str, used: &str) -> PlaceAnswer {
        Harness::<BinPacking>::new(settings)
            .pod(pod! { "requests": {"cpu": "1", "memory": "1Gi"} })
            .node(node! { "allocatable": {"cpu": "10", "memory": "10Gi"}, "used": {"cpu": used, "memory": "4Gi"} })
            .place(Stage::Schedule)
    }

    #[test]
    fn the_fuller_node_is_the_better_one() {
        // CPU 3 of 10 and memory 5 of 10 with the pod, then CPU 9 of 10.
        assert_eq!(placed("{}", "2").score, Some(40));
        assert_eq!(placed("{}", "8").score, Some(70));
        assert_eq!(placed(r#"{"resources": ["cpu"]}"#, "8").score, Some(90));
    }

    #[test]
    fn full_nodes_are_left_to_others_and_never_forbidden() {
        let answer = placed(r#"{"resources": ["cpu"], "upToPercent": 80}"#, "8");
        assert_eq!((answer.accepted, answer.score), (true, None));
        assert_eq!(placed(r#"{"resources": ["nvidia.com/gpu"]}"#, "0").score, None, "no node has it");
    }

    #[test]
    fn no_amount_is_too_large() {
        assert_eq!(percent(i64::MAX / 2, i64::MAX), 50);
        assert_eq!((percent(i64::MAX, i64::MAX), percent(0, 1)), (100, 0));
    }

    #[test]
    fn more_than_all_is_full() {
        assert_eq!(placed(r#"{"resources": ["cpu"]}"#, "12").score, Some(100));
    }
}
