//! Leader election on a `coordination.k8s.io/v1` Lease with client-go's field semantics, so that during a rolling
//! upgrade never two leaders act (MC-106).
//!
//! Expiry is measured on the local clock from the moment a change of the Lease was seen, never by comparing clocks of
//! two machines.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    error::ApplyError,
    request::{create_json, get_json, merge_patch, paths},
};

/// Timing and place of an election.
#[derive(Debug, Clone)]
pub struct ElectionConfig {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// `<hostname>_<uuid>` of this process. A Lease whose holder has it counts as ours, so that two participants of one
    /// process that could meet at a Lease need different ones.
    pub identity: String,
    /// How long others wait after the last renewal.
    pub lease_duration: Duration,
    /// How long a leader goes on without a successful renewal.
    pub renew_deadline: Duration,
    /// Pause between attempts.
    pub retry_period: Duration,
    /// Annotations of the Lease while this process leads; `None` takes away what another process wrote.
    pub annotations: BTreeMap<&'static str, Option<String>>,
}

/// Times that cannot keep two processes from leading at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "leader election times {lease_duration:?}, {renew_deadline:?}, {retry_period:?} cannot work: the lease duration must be whole seconds and longer than the renew deadline, and that longer than the retry period, at least a second each"
)]
pub struct ElectionTimes {
    lease_duration: Duration,
    renew_deadline: Duration,
    retry_period: Duration,
}

impl ElectionConfig {
    /// A leader must give up before others may take over, and have tried to renew before it gives up.
    pub fn validate(&self) -> Result<(), ElectionTimes> {
        let Self { lease_duration, renew_deadline, retry_period, .. } = *self;
        let whole = lease_duration.subsec_nanos() == 0;
        let ordered = lease_duration > renew_deadline && renew_deadline > retry_period;
        if whole && ordered && retry_period >= Duration::from_secs(1) {
            Ok(())
        } else {
            Err(ElectionTimes { lease_duration, renew_deadline, retry_period })
        }
    }
}

/// A participant in an election.
pub struct Election {
    client: Client,
    config: ElectionConfig,
    clock: Arc<dyn Clock>,
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    resource_version: String,
    holder: String,
    at: Instant,
    duration: Duration,
}

/// Proof of leadership; see [`Election::acquire`].
#[derive(Debug)]
pub struct Leadership {
    election: Election,
    resource_version: String,
    /// When the request that won was sent: the Lease runs from then at the latest.
    since: Instant,
}

impl std::fmt::Debug for Election {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Election").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Election {
    /// A participant that has not asked yet.
    pub fn new(client: Client, config: ElectionConfig, clock: Arc<dyn Clock>) -> Self {
        Self { client, config, clock, seen: None }
    }

    /// Waits until this process leads; `None` when cancelled. Says so when another process leads (a standby is not
    /// silent), once per holder. `attempted` learns after each attempt whether the Lease could be read.
    pub async fn acquire(
        mut self,
        cancel: &CancellationToken,
        attempted: impl Fn(bool),
    ) -> Option<Leadership> {
        let mut told: Option<String> = None;
        loop {
            let since = Instant::now();
            let attempt = self.attempt().await;
            attempted(attempt.is_ok());
            match attempt {
                Ok(Attempt::Won(resource_version)) => {
                    tracing::info!(lease = self.config.lease, identity = self.config.identity, "leading");
                    return Some(Leadership { election: self, resource_version, since });
                }
                Ok(Attempt::HeldBy(holder)) => {
                    if told.as_ref() != Some(&holder) {
                        tracing::info!(
                            lease = format!("{}/{}", self.config.namespace, self.config.lease),
                            %holder,
                            "standby: another process leads, waiting for its lease to end"
                        );
                        told = Some(holder);
                    }
                }
                Err(error) => tracing::warn!(error = error.chain(), "leader election: no answer, retrying"),
            }
            tokio::select! {
                () = cancel.cancelled() => return None,
                () = tokio::time::sleep(self.config.retry_period) => {}
            }
        }
    }

    async fn attempt(&mut self) -> Result<Attempt, ApplyError> {
        let path = paths::lease(&self.config.namespace, &self.config.lease);
        let Some(lease) = get_json(&self.client, &path).await? else {
            let mut lease = self.fresh(0);
            lease["metadata"]["annotations"] = json!(present(&self.config.annotations));
            return match create_json(&self.client, &paths::leases(&self.config.namespace), &lease).await {
                Ok(created) => Ok(Attempt::Won(resource_version(&created))),
                Err(ApplyError::AlreadyExists { .. }) => Ok(Attempt::HeldBy(String::new())),
                Err(error) => Err(error),
            };
        };
        let holder = text(&lease, "/spec/holderIdentity");
        let version = resource_version(&lease);
        if self.seen.as_ref().is_none_or(|seen| seen.resource_version != version) {
            let seconds = lease.pointer("/spec/leaseDurationSeconds").and_then(Value::as_u64);
            self.seen = Some(Seen {
                resource_version: version.clone(),
                holder: holder.clone(),
                at: Instant::now(),
                duration: seconds.map_or(self.config.lease_duration, Duration::from_secs),
            });
        }
        let expired = self.seen.as_ref().is_some_and(|seen| {
            seen.holder.is_empty() || seen.holder == self.config.identity || seen.at.elapsed() > seen.duration
        });
        if !expired {
            return Ok(Attempt::HeldBy(holder));
        }
        let transitions = lease.pointer("/spec/leaseTransitions").and_then(Value::as_i64).unwrap_or(0);
        let mut claim = self.fresh(transitions + i64::from(holder != self.config.identity));
        claim["metadata"] = json!({"resourceVersion": version, "annotations": self.config.annotations});
        match merge_patch(&self.client, &path, &claim).await {
            Ok(lease) => Ok(Attempt::Won(resource_version(&lease))),
            Err(ApplyError::Conflict { .. }) => Ok(Attempt::HeldBy(holder)),
            Err(error) => Err(error),
        }
    }

    fn fresh(&self, transitions: i64) -> Value {
        let now = self.micro_time();
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.config.lease, "namespace": self.config.namespace},
            "spec": {
                "holderIdentity": self.config.identity,
                "leaseDurationSeconds": self.config.lease_duration.as_secs(),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        })
    }

    fn micro_time(&self) -> String {
        self.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
    }
}

enum Attempt {
    Won(String),
    HeldBy(String),
}

impl Leadership {
    /// Renews until `cancel` (then the Lease is released, so that a standby takes over at once) or until renewal
    /// fails for the deadline. Returns whether leadership was lost.
    pub async fn hold(mut self, cancel: &CancellationToken) -> Ended {
        let (since, config) = (self.since, self.election.config.clone());
        let ended = keep(since, &config, cancel, &mut self).await;
        match ended {
            Ended::Released => self.release().await,
            Ended::Lost => tracing::error!(
                lease = config.lease,
                "leadership lost: another process wrote the lease, or it could not be renewed"
            ),
        }
        ended
    }

    async fn release(self) {
        let patch = json!({
            "metadata": {"resourceVersion": self.resource_version},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": 1},
        });
        let path = paths::lease(&self.election.config.namespace, &self.election.config.lease);
        if let Err(error) = merge_patch(&self.election.client, &path, &patch).await {
            tracing::debug!(error = error.chain(), "lease not released, it will expire");
        }
    }
}

/// Something that is ours as long as it is renewed. A trait and no async closure, whose future could not be moved to
/// another thread.
trait Renew {
    fn renew(&mut self) -> impl Future<Output = Result<(), ApplyError>> + Send;
}

impl Renew for Leadership {
    async fn renew(&mut self) -> Result<(), ApplyError> {
        let patch = json!({
            "metadata": {"resourceVersion": self.resource_version},
            "spec": {"renewTime": self.election.micro_time()},
        });
        let path = paths::lease(&self.election.config.namespace, &self.election.config.lease);
        match merge_patch(&self.election.client, &path, &patch).await {
            Ok(lease) => {
                self.resource_version = resource_version(&lease);
                Ok(())
            }
            // Somebody may have annotated the Lease: still ours if the holder is.
            Err(ApplyError::Conflict { verb, object }) => {
                match get_json(&self.election.client, &path).await? {
                    Some(lease) if text(&lease, "/spec/holderIdentity") == self.election.config.identity => {
                        self.resource_version = resource_version(&lease);
                        Ok(())
                    }
                    _ => Err(ApplyError::Conflict { verb, object }),
                }
            }
            Err(error) => Err(error),
        }
    }
}

/// Renews until `cancel`, or until no renewal that was begun within the deadline has succeeded. The deadline runs
/// from the start of the last successful request, which is never later than what the Lease says, and cuts a request
/// that hangs: with the deadline below the Lease's duration, this process stops before another one may begin.
async fn keep(
    since: Instant,
    config: &ElectionConfig,
    cancel: &CancellationToken,
    ours: &mut impl Renew,
) -> Ended {
    let mut renewed = since;
    loop {
        let lost = renewed + config.renew_deadline;
        tokio::select! {
            () = cancel.cancelled() => return Ended::Released,
            () = tokio::time::sleep_until(lost.min(Instant::now() + config.retry_period)) => {}
        }
        if Instant::now() >= lost {
            return Ended::Lost;
        }
        let begun = Instant::now();
        match tokio::time::timeout_at(lost, ours.renew()).await {
            Ok(Ok(())) => renewed = begun,
            Ok(Err(ApplyError::Conflict { .. } | ApplyError::NotFound { .. })) | Err(_) => {
                return Ended::Lost;
            }
            Ok(Err(error)) => tracing::warn!(error = error.chain(), "lease not renewed, retrying"),
        }
    }
}

/// The annotations that are to be there.
fn present(annotations: &BTreeMap<&'static str, Option<String>>) -> BTreeMap<&'static str, String> {
    annotations.iter().filter_map(|(key, value)| Some((*key, value.clone()?))).collect()
}

/// Writes annotations of a Lease that nobody elects with, for a process that acts without an election.
pub async fn announce(
    client: &Client,
    namespace: &str,
    lease: &str,
    annotations: &BTreeMap<&'static str, Option<String>>,
) -> Result<(), ApplyError> {
    let patch = json!({"metadata": {"annotations": annotations}});
    match merge_patch(client, &paths::lease(namespace, lease), &patch).await {
        Err(ApplyError::NotFound { .. }) => {}
        written => return written.map(drop),
    }
    let made = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": lease, "namespace": namespace, "annotations": present(annotations)},
    });
    create_json(client, &paths::leases(namespace), &made).await.map(drop)
}

/// How leadership ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// On request; the Lease is free.
    Released,
    /// Another process may lead now: stop writing at once.
    Lost,
}

fn text(lease: &Value, pointer: &str) -> String {
    lease.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn resource_version(lease: &Value) -> String {
    text(lease, "/metadata/resourceVersion")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Verb;
    use rstest::rstest;

    fn config(lease_duration: u64, renew_deadline: u64, retry_period: u64) -> ElectionConfig {
        ElectionConfig {
            namespace: "ns".into(),
            lease: "lease".into(),
            identity: "me".into(),
            lease_duration: Duration::from_millis(lease_duration),
            renew_deadline: Duration::from_millis(renew_deadline),
            retry_period: Duration::from_millis(retry_period),
            annotations: BTreeMap::new(),
        }
    }

    #[rstest]
    #[case(15_000, 10_000, 2000, true)]
    #[case(15_500, 10_000, 2000, false)]
    #[case(10_000, 10_000, 2000, false)]
    #[case(15_000, 2000, 2000, false)]
    #[case(3000, 2000, 500, false)]
    fn times_that_work(#[case] lease: u64, #[case] deadline: u64, #[case] retry: u64, #[case] fits: bool) {
        assert_eq!(config(lease, deadline, retry).validate().is_ok(), fits);
    }

    fn failed() -> ApplyError {
        ApplyError::Timeout { verb: Verb::Patch, object: "lease".into(), seconds: 1 }
    }

    /// Calls itself to renew.
    struct Calls<F>(F);

    impl<F: FnMut() -> Fut + Send, Fut: Future<Output = Result<(), ApplyError>> + Send> Renew for Calls<F> {
        fn renew(&mut self) -> impl Future<Output = Result<(), ApplyError>> + Send {
            self.0()
        }
    }

    /// Renewals 1 to `good` succeed after a moment, the next ones do what `then` says.
    async fn lost_after(good: u32, hang: bool) -> Duration {
        let (start, cancel) = (Instant::now(), CancellationToken::new());
        let mut calls = 0;
        let mut renewals = Calls(|| {
            calls += 1;
            let bad = calls > good;
            async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                match (bad, hang) {
                    (false, _) => Ok(()),
                    (true, false) => Err(failed()),
                    (true, true) => std::future::pending().await,
                }
            }
        });
        let ended = keep(start, &config(15_000, 10_000, 2000), &cancel, &mut renewals).await;
        assert_eq!(ended, Ended::Lost);
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_stops_before_its_lease_ends_however_renewals_fail() {
        assert_eq!(lost_after(0, false).await, Duration::from_secs(10));
        assert_eq!(lost_after(0, true).await, Duration::from_secs(10));
        // The third one was begun at 6.2 s.
        assert_eq!(lost_after(3, false).await, Duration::from_millis(16_200));
        assert_eq!(lost_after(3, true).await, Duration::from_millis(16_200));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_stops_at_once_when_another_process_wrote_the_lease() {
        let (start, cancel) = (Instant::now(), CancellationToken::new());
        let mut renewals = Calls(|| {
            std::future::ready(Err(ApplyError::Conflict { verb: Verb::Patch, object: "lease".into() }))
        });
        let ended = keep(start, &config(15_000, 10_000, 2000), &cancel, &mut renewals).await;
        assert_eq!(ended, Ended::Lost);
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
