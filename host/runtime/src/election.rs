//! Leader election on a `coordination.k8s.io/v1` Lease with client-go's field semantics, so that during a rolling
//! upgrade never two leaders act (MC-106).
//!
//! Expiry is measured on the local clock from the moment a change of the Lease was seen, never by comparing clocks of
//! two machines.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kube::Client;
use serde_json::{Value, json};
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
    /// `<hostname>_<uuid>` of this process.
    pub identity: String,
    /// How long others wait after the last renewal.
    pub lease_duration: Duration,
    /// How long a leader goes on without a successful renewal.
    pub renew_deadline: Duration,
    /// Pause between attempts.
    pub retry_period: Duration,
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
    /// silent), once per holder.
    pub async fn acquire(mut self, cancel: &CancellationToken) -> Option<Leadership> {
        let mut told: Option<String> = None;
        loop {
            match self.attempt().await {
                Ok(Attempt::Won(resource_version)) => {
                    tracing::info!(lease = self.config.lease, identity = self.config.identity, "leading");
                    return Some(Leadership { election: self, resource_version });
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
            return match create_json(&self.client, &paths::leases(&self.config.namespace), &self.fresh(0))
                .await
            {
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
        claim["metadata"] = json!({"resourceVersion": version});
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
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = cancel.cancelled() => {
                    self.release().await;
                    return Ended::Released;
                }
                () = tokio::time::sleep(self.election.config.retry_period) => {}
            }
            match tokio::time::timeout(self.election.config.renew_deadline, self.renew()).await {
                Ok(Ok(())) => renewed = Instant::now(),
                Ok(Err(ApplyError::Conflict { .. } | ApplyError::NotFound { .. })) => {
                    tracing::error!(
                        lease = self.election.config.lease,
                        "leadership lost: another process wrote the lease"
                    );
                    return Ended::Lost;
                }
                Ok(Err(error)) => tracing::warn!(error = error.chain(), "lease not renewed, retrying"),
                Err(_) => tracing::warn!("lease not renewed in time, retrying"),
            }
            if renewed.elapsed() > self.election.config.renew_deadline {
                tracing::error!(
                    lease = self.election.config.lease,
                    "leadership lost: the lease could not be renewed"
                );
                return Ended::Lost;
            }
        }
    }

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
