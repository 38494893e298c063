//! Flags that several long-running programs share, and how flags are read.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::Args;
use kubeocean_runtime::{
    election::ElectionConfig,
    server::{ListenError, Listeners},
};

/// Flags of MC-101 and MC-701 that all programs share.
#[derive(Debug, Args)]
pub(crate) struct ProgramFlags {
    /// Kubeconfig of the computing cluster [default: KUBECONFIG, then the pod's ServiceAccount]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Address of the metrics listener; 0 turns it off
    #[arg(long, default_value = ":8080")]
    metrics_bind_address: String,
    /// Address of the health listener; 0 turns it off
    #[arg(long, default_value = ":8081")]
    health_probe_bind_address: String,
    /// Whether only the holder of a Lease acts, so that several replicas can run
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) leader_elect: bool,
    /// Namespace of the leader Lease [default: the system namespace]
    #[arg(long, default_value = "")]
    leader_election_namespace: String,
    /// How long others wait after the leader's last renewal
    #[arg(long, default_value = "15s", value_parser = duration)]
    leader_election_lease_duration: Duration,
    /// How long a leader goes on without a successful renewal
    #[arg(long, default_value = "10s", value_parser = duration)]
    leader_election_renew_deadline: Duration,
    /// Pause between attempts to lead or to renew
    #[arg(long, default_value = "2s", value_parser = duration)]
    leader_election_retry_period: Duration,
    /// Namespace of Kubeocean's components in the computing cluster
    #[arg(long, env = "POD_NAMESPACE", default_value = "kubeocean-system")]
    pub(crate) system_namespace: String,
}

impl ProgramFlags {
    /// Opens the listeners.
    pub(crate) async fn listeners(&self) -> Result<Listeners, ListenError> {
        Listeners::open(&self.metrics_bind_address, &self.health_probe_bind_address).await
    }

    /// An election under the name `lease`; `None` if it is turned off.
    pub(crate) fn election(&self, lease: &str) -> Option<ElectionConfig> {
        self.leader_elect.then(|| ElectionConfig {
            namespace: self.lease_namespace(),
            lease: lease.to_owned(),
            identity: identity(),
            lease_duration: self.leader_election_lease_duration,
            renew_deadline: self.leader_election_renew_deadline,
            retry_period: self.leader_election_retry_period,
            annotations: BTreeMap::new(),
        })
    }

    /// Where leader Leases are.
    pub(crate) fn lease_namespace(&self) -> String {
        non_empty(&self.leader_election_namespace, &self.system_namespace)
    }
}

pub(crate) fn non_empty(value: &str, default: &str) -> String {
    if value.is_empty() { default.to_owned() } else { value.to_owned() }
}

/// Lease identity: the pod or host, and something no other process has.
fn identity() -> String {
    let host = std::env::var("POD_NAME")
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_else(|_| "kubeocean".into());
    let started = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    format!("{host}_{started:x}-{:x}", std::process::id())
}

/// A Go duration: `15s`, `1m30s`, `500ms`, `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration, expected for example 15s, 1m30s or 500ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(duration("15").is_err() && duration("").is_err() && duration("s").is_err());
    }
}
