//! Requests tokens, keeps their Secrets and removes them.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    index::{Look, TokenStore},
    plan::{self, Issued, TokenOwner, TokenVolume, token_volumes},
    secret::{Found, TokenSecret},
};
use crate::{objects::Clusters, pods::vpod_identity::VpodIdentity};
use kubeocean_runtime::{
    error::ApplyError,
    queue::Outcome,
    request::{DeleteOptions, create_json, delete_json, get_json, merge_patch, paths},
};

/// Why a vpod's tokens could not be provided.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A request failed.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A Secret of the name that is needed belongs to somebody else.
    #[error(
        "the name of the Secret for the pod's token is taken in the worker cluster; the Secret must be removed there"
    )]
    Foreign {
        /// Name of the Secret.
        secret: String,
    },
    /// The pod's ServiceAccount does not exist.
    #[error("ServiceAccount {service_account} does not exist")]
    NoAccount {
        /// The account.
        service_account: String,
    },
    /// The API server's answer has no token.
    #[error("the token request of ServiceAccount {service_account} was answered without a token")]
    NoToken {
        /// The account.
        service_account: String,
    },
}

impl TokenStore {
    /// Makes the token Secrets a ppod of `vpod` mounts. Secrets left by an interrupted run are used again; a vpod
    /// without tokens costs no request.
    pub async fn ensure(&self, clusters: &Clusters, vpod: &Value) -> Result<(), TokenError> {
        for volume in token_volumes(vpod) {
            if !self.held(&volume.secret).is_some_and(|(_, fresh)| fresh) {
                self.write(clusters, vpod, &volume).await?;
            }
        }
        Ok(())
    }

    /// Removes the token Secrets of a vpod of ours whose ppod is gone. Costs one request a Secret, none without.
    pub async fn release(&self, clusters: &Clusters, owner: &TokenOwner) -> Result<(), ApplyError> {
        self.adopt(owner);
        self.remove_held(clusters, owner).await
    }

    async fn remove_held(&self, clusters: &Clusters, owner: &TokenOwner) -> Result<(), ApplyError> {
        for secret in self.of_owner(owner) {
            self.remove(clusters, secret).await?;
        }
        self.misses_only(owner, &[]);
        Ok(())
    }

    async fn remove(&self, clusters: &Clusters, secret: TokenSecret) -> Result<(), ApplyError> {
        let path = paths::core("secrets", &clusters.scope.mount_namespace, secret.name());
        let options = DeleteOptions { uid: Some(secret.uid().to_owned()), grace_seconds: None };
        // Before the request: its DELETED event may come first, and what vanishes by other hands is restored.
        self.forget(secret.name());
        if let Err(error) = delete_json(&clusters.worker, &path, &options).await {
            self.is_still_there(secret);
            return Err(error);
        }
        tracing::debug!(vpod = %secret.owner().key, secret = secret.name(), "token secret removed");
        Ok(())
    }

    /// One look at a vpod's tokens: renews what is due, restores what was deleted, removes what nobody needs.
    pub(crate) async fn reconcile(&self, clusters: &Clusters, owner: &TokenOwner) -> Outcome {
        match self.look_after(clusters, owner).await {
            Ok(Some(at)) => Outcome::After(plan::until(self.clock.now(), at).max(Duration::from_secs(1))),
            Ok(None) => Outcome::Done,
            Err(TokenError::Apply(error)) => error.log(&owner.key.to_string(), "renew the tokens of the pod"),
            Err(error) => {
                tracing::warn!(vpod = %owner.key, %error, "tokens could not be renewed");
                Outcome::Retry
            }
        }
    }

    async fn look_after(
        &self,
        clusters: &Clusters,
        owner: &TokenOwner,
    ) -> Result<Option<Timestamp>, TokenError> {
        let unstamped = self.look_at_unstamped(clusters, owner).await?;
        let held = self.look_at_held(clusters, owner).await?;
        Ok(unstamped.into_iter().chain(held).min())
    }

    /// Finds out whose the Secrets are that name this vpod and no binding (TD-1103), and removes those of nobody. All lists
    /// are complete by now. Says when to look again.
    async fn look_at_unstamped(
        &self,
        clusters: &Clusters,
        owner: &TokenOwner,
    ) -> Result<Option<Timestamp>, ApplyError> {
        let unstamped = self.unstamped_of(owner);
        if unstamped.is_empty() {
            return Ok(None);
        }
        if self.pods.serves(&owner.key, &owner.uid) {
            self.adopt(owner);
            return Ok(None);
        }
        if self.pods.has_copy(owner) {
            // Of a vpod that has ended, or of another computing cluster's; its end brings us back here.
            return Ok(None);
        }
        let path = paths::pod(&owner.key.namespace, &owner.key.name);
        let vpod = get_json(&clusters.computing, &path).await?;
        let vpod = vpod.filter(|vpod| VpodIdentity::of(vpod).as_ref() == Some(owner));
        if vpod.is_some_and(|vpod| !has_ended(&vpod) && !is_deleted(&vpod)) {
            self.disown(owner);
            return Ok(None);
        }
        let mut again = None;
        for secret in unstamped {
            match secret.left_behind(self.clock.now()) {
                Ok(secret) => self.remove(clusters, secret).await?,
                Err(at) => again = Some(again.map_or(at, |earlier: Timestamp| earlier.min(at))),
            }
        }
        Ok(again)
    }

    async fn look_at_held(
        &self,
        clusters: &Clusters,
        owner: &TokenOwner,
    ) -> Result<Option<Timestamp>, TokenError> {
        let running = self.pods.runs(&owner.key, &owner.uid);
        if running && let Look::Due(at) = self.look(owner) {
            return Ok(Some(at));
        }
        if self.look(owner) == Look::Nothing {
            return Ok(None);
        }
        let copied = self.pods.has_copy(owner);
        if !running && copied {
            // Its Secrets go with its ppod, whose end brings us back here.
            self.misses_only(owner, &[]);
            return Ok(None);
        }
        let path = paths::pod(&owner.key.namespace, &owner.key.name);
        let vpod = get_json(&clusters.computing, &path).await?;
        let Some(vpod) = vpod.filter(|vpod| VpodIdentity::of(vpod).as_ref() == Some(owner)) else {
            self.remove_held(clusters, owner).await?;
            return Ok(None);
        };
        // A pod that is being deleted needs its tokens as long as its ppod runs. Without one, a Secret that went although the
        // answer to its deletion got lost is not missed.
        if has_ended(&vpod) || is_deleted(&vpod) && !copied {
            if copied {
                self.misses_only(owner, &[]);
            } else {
                self.remove_held(clusters, owner).await?;
            }
            return Ok(None);
        }
        if !running {
            self.misses_only(owner, &[]);
            return Ok(None);
        }
        let volumes = token_volumes(&vpod);
        for volume in &volumes {
            if !self.held(&volume.secret).is_some_and(|(_, fresh)| fresh) {
                self.write(clusters, &vpod, volume).await?;
            }
        }
        // What is not in the pod's volumes is not renewed, however long it is due; it goes with the pod.
        let needed: Vec<&str> = volumes.iter().map(|volume| volume.secret.as_str()).collect();
        self.misses_only(owner, &needed);
        Ok(self.next_renewal(owner, &needed))
    }

    async fn write(&self, clusters: &Clusters, vpod: &Value, volume: &TokenVolume) -> Result<(), TokenError> {
        let (Some(owner), Some(account)) = (VpodIdentity::of(vpod), plan::service_account(vpod)) else {
            return Ok(());
        };
        let mut tokens: Vec<(String, Issued)> = Vec::with_capacity(volume.sources.len());
        for source in &volume.sources {
            let path = paths::service_account_token(&owner.key.namespace, account);
            let service_account = || account.to_owned();
            let body = plan::request_body(&owner, source);
            let answer = match create_json(&clusters.computing, &path, &body).await {
                Err(ApplyError::NotFound { .. }) => {
                    return Err(TokenError::NoAccount { service_account: service_account() });
                }
                answer => answer?,
            };
            let issued = plan::issued(&answer)
                .ok_or_else(|| TokenError::NoToken { service_account: service_account() })?;
            tokens.push((source.key.clone(), issued));
        }
        let answered = self.clock.now();
        let manifest = plan::manifest(&clusters.scope, &owner, account, &volume.secret, &tokens);
        let stored = self.store(clusters, &owner, &volume.secret, &manifest).await?;
        let Some(life) = plan::shortest_life(&tokens, answered) else { return Ok(()) };
        let renew_at = plan::renew_at(&volume.secret, answered, life);
        self.written(TokenSecret::written(&stored, owner), renew_at);
        Ok(())
    }

    /// Creates the Secret, or changes the one that exists.
    async fn store(
        &self,
        clusters: &Clusters,
        owner: &TokenOwner,
        name: &str,
        manifest: &Value,
    ) -> Result<Value, TokenError> {
        let namespace = &clusters.scope.mount_namespace;
        let path = paths::core("secrets", namespace, name);
        if let Some((known, _)) = self.held(name) {
            match merge_patch(&clusters.worker, &path, &patch(manifest, &known)).await {
                // Missed until the new one is written, whatever comes between.
                Err(ApplyError::NotFound { .. } | ApplyError::Conflict { .. }) => self.vanished(name),
                answer => return Ok(answer?),
            }
        }
        match create_json(&clusters.worker, &paths::core_all("secrets", namespace), manifest).await {
            Err(ApplyError::AlreadyExists { object }) => {
                let found = get_json(&clusters.worker, &path).await?;
                let Some(found) = found else { return Err(ApplyError::AlreadyExists { object }.into()) };
                let meta = ObjectMeta::deserialize(&found["metadata"]).unwrap_or_default();
                let found = Found::of(&meta, &clusters.scope);
                match found.and_then(|found| found.for_served(owner)) {
                    Some(secret) => {
                        Ok(merge_patch(&clusters.worker, &path, &patch(manifest, &secret)).await?)
                    }
                    None => Err(TokenError::Foreign { secret: name.to_owned() }),
                }
            }
            answer => Ok(answer?),
        }
    }
}

/// The part of the manifest that changes, for exactly this Secret.
fn patch(manifest: &Value, secret: &TokenSecret) -> Value {
    json!({
        "metadata": {
            "uid": secret.uid(),
            "labels": manifest["metadata"]["labels"],
            "annotations": manifest["metadata"]["annotations"],
        },
        "data": manifest["data"],
    })
}

fn has_ended(vpod: &Value) -> bool {
    matches!(vpod.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"))
}

fn is_deleted(vpod: &Value) -> bool {
    vpod.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null())
}

/// Looks at every vpod that has tokens, now: finds Secrets of vpods that went away unseen (TD-1201).
pub(crate) fn sweep(store: &Arc<TokenStore>) {
    store.queue.add_all(store.named());
}
