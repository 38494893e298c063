//! How large a run is: the design's budget is for the defaults, a smaller run is for a quick look.

use std::time::Duration;

/// Sizes of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Worker nodes, and so vnodes. One of them has a kubelet of its own, see [`Scale::nodes_together`].
    pub nodes: u32,
    /// Pods of other tenants in the worker cluster.
    pub foreign: u32,
    /// Pods of the burst; 0 leaves out everything about pods of the computing cluster.
    pub pods: u32,
    /// How long the idle Syncer is watched: long enough that what is written each minute is more than a heartbeat.
    pub idle: Duration,
}

impl Default for Scale {
    fn default() -> Self {
        Self { nodes: 500, foreign: 3000, pods: 3000, idle: Duration::from_secs(150) }
    }
}

impl Scale {
    /// From `KUBEOCEAN_BENCH_NODES`, `KUBEOCEAN_BENCH_FOREIGN`, `KUBEOCEAN_BENCH_PODS` and
    /// `KUBEOCEAN_BENCH_IDLE_SECONDS`; what is not set has its default.
    ///
    /// # Errors
    /// A variable is no number, zero where something must be there, or the pods do not fit on the nodes; the text names
    /// it.
    pub fn from_env() -> Result<Self, String> {
        Self::from(|name| std::env::var(name).ok())
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &str, least: u32, default: u32| match variable(name) {
            Some(text) => match text.parse() {
                Ok(number) if number >= least => Ok(number),
                _ => Err(format!("{name}={text}: expected a number from {least} on")),
            },
            None => Ok(default),
        };
        let default = Self::default();
        let nodes = number("KUBEOCEAN_BENCH_NODES", 2, default.nodes)?;
        let foreign = number("KUBEOCEAN_BENCH_FOREIGN", 0, default.foreign)?;
        let pods = number("KUBEOCEAN_BENCH_PODS", 0, default.pods)?;
        for pods in [foreign, pods] {
            if u64::from(pods) > u64::from(nodes) * u64::from(Self::PODS_PER_NODE) {
                let most = Self::PODS_PER_NODE;
                return Err(format!("{pods} pods do not fit on {nodes} nodes with room for {most} each"));
            }
        }
        let idle = number("KUBEOCEAN_BENCH_IDLE_SECONDS", 1, 150)?;
        Ok(Self { nodes, foreign, pods, idle: Duration::from_secs(idle.into()) })
    }

    /// The nodes that share one kwok, which plays their kubelets one event after the other. The one that is left has a kwok
    /// of its own, as each real node has a kubelet.
    pub fn nodes_together(self) -> u32 {
        self.nodes - 1
    }

    /// What fits on a node after the policy change, with room for the single pods.
    const PODS_PER_NODE: u32 = 100;

    /// Whether the budgets were made for this size.
    pub fn is_full(self) -> bool {
        let full = Self::default();
        (self.nodes, self.foreign, self.pods) == (full.nodes, full.foreign, full.pods)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(nodes: &str, pods: &str) -> Result<Scale, String> {
        Scale::from(|name| match name {
            "KUBEOCEAN_BENCH_NODES" => Some(nodes.to_owned()),
            "KUBEOCEAN_BENCH_PODS" | "KUBEOCEAN_BENCH_FOREIGN" => Some(pods.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn without_variables_it_is_the_size_of_the_budget() {
        let scale = Scale::from(|_| None).unwrap();
        assert!(scale.is_full());
        assert_eq!(scale, Scale::default());
    }

    #[test]
    fn it_can_be_scaled_down() {
        let scale = scale("100", "300").unwrap();
        assert_eq!((scale.nodes, scale.pods, scale.is_full()), (100, 300, false));
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        assert!(scale("none", "300").unwrap_err().contains("KUBEOCEAN_BENCH_NODES=none"));
        assert!(
            scale("1", "30").unwrap_err().contains("KUBEOCEAN_BENCH_NODES=1: expected a number from 2 on")
        );
        assert!(scale("2", "300").unwrap_err().contains("do not fit"));
    }
}
