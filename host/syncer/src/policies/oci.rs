//! Modules in registries: from the disk where it has what is wanted, else from the registry (PO-705, PO-706, PO-1203).
//!
//! Reads and keeps; what may be loaded says `kubeocean_registry::accept` alone, about what was fetched and about what the
//! disk kept. [`code_of`] and [`after`] say what a failure is called and when to ask again.

use std::{sync::Arc, time::Duration};

use kube::Client;
use kubeocean_engine::{FetchedModule, LoadCode, ModuleClaims, ModuleFetch};
use kubeocean_registry::{
    Accepted, Bundle, BundleCache, Demands, DockerConfig, Refusal, RegistryError, Signatures, Trust, accept,
    read_trust,
};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::modules::{OciKey, SecretKey, failed, is_users_copy};
use crate::config::PolicySources;
use kubeocean_runtime::{
    error::ApplyError,
    queue::Outcome,
    request::{get_json, paths},
};

/// How often a tag without a digest is looked up (PO-706).
const RESOLVE: Duration = Duration::from_mins(5);
/// Type and key of a pull secret.
const SECRET_TYPE: &str = "kubernetes.io/dockerconfigjson";
const SECRET_KEY: &str = ".dockerconfigjson";

/// Why a module is not there: a code of PO-703, and a text.
type Failure = (LoadCode, String);

/// See the module documentation.
pub(super) struct Registries {
    worker: Client,
    settings: PolicySources,
    max_module_bytes: u64,
    client: OnceCell<kubeocean_registry::Client>,
    cache: OnceCell<Option<Arc<BundleCache>>>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Registries {
    pub(super) fn new(worker: Client, settings: PolicySources, max_module_bytes: usize) -> Self {
        let max_module_bytes = u64::try_from(max_module_bytes).unwrap_or(u64::MAX);
        Self { worker, settings, max_module_bytes, client: OnceCell::new(), cache: OnceCell::new() }
    }

    pub(super) async fn read(&self, key: &OciKey) -> (ModuleFetch, Outcome) {
        let result = self.obtain(key).await;
        let outcome = after(key, result.as_ref().map_err(|(code, _)| *code));
        match result {
            Ok((accepted, Freshness::Current)) => (ready(accepted), outcome),
            Ok((accepted, Freshness::Kept)) => (ready(accepted), Outcome::Retry),
            Err((code, message)) => (failed(code, message), outcome),
        }
    }

    async fn obtain(&self, key: &OciKey) -> Result<(Accepted, Freshness), Failure> {
        let trust = self.trust().await?;
        trust.permits(&key.image).map_err(|message| (LoadCode::SignatureRejected, message))?;
        let demands = Demands { digest: key.digest, max_bytes: self.max_module_bytes };
        let kept = self.kept(key).await;
        let good = kept.as_ref().and_then(|bundle| accept(&key.image, bundle, &trust, demands).ok());
        if let Some(accepted) = good.as_ref().filter(|_| key.digest.is_some()) {
            return Ok((accepted.clone(), Freshness::Current));
        }
        match self.pull(key, &trust, demands, kept.as_ref()).await {
            Ok(bundle) => {
                let accepted =
                    accept(&key.image, &bundle, &trust, demands).map_err(|refusal| of_refusal(&refusal))?;
                if kept.as_ref() != Some(&bundle) {
                    self.keep(key, bundle).await;
                }
                Ok((accepted, Freshness::Current))
            }
            // A registry that is down takes nothing away (PO-804).
            Err((code, message)) => match good.filter(|_| code.is_fetch()) {
                Some(accepted) => {
                    tracing::warn!(image = %key.image, %code, message, "a policy module could not be looked up");
                    Ok((accepted, Freshness::Kept))
                }
                None => Err((code, message)),
            },
        }
    }

    async fn pull(
        &self,
        key: &OciKey,
        trust: &Trust,
        demands: Demands,
        known: Option<&Bundle>,
    ) -> Result<Bundle, Failure> {
        let client = self.client.get_or_try_init(async || {
            kubeocean_registry::Client::new(&self.settings.registries)
                .map_err(|error| (LoadCode::FetchFailed, error.to_string()))
        });
        let client = client.await?;
        let config = match &key.pull_secret {
            Some(secret) => Some(self.pull_secret(secret).await?),
            None => None,
        };
        let credentials = config.as_ref().and_then(|config| config.of(&key.image));
        let signatures = if trust.rule(&key.image).is_some() { Signatures::Fetch } else { Signatures::Skip };
        let pulled = client.pull(&key.image, credentials, demands, signatures, known, None).await;
        pulled.map_err(|error| (code_of(&error), error.to_string()))
    }

    async fn pull_secret(&self, key: &SecretKey) -> Result<DockerConfig, Failure> {
        let path = paths::core("secrets", &key.namespace, &key.name);
        let secret = get_json(&self.worker, &path).await.map_err(|error| {
            let forbidden = matches!(error, ApplyError::Forbidden { .. });
            (if forbidden { LoadCode::FetchForbidden } else { LoadCode::FetchFailed }, error.chain())
        })?;
        from_pull_secret(secret.as_ref(), key).map_err(|message| (LoadCode::FetchForbidden, message))
    }

    /// Rules that cannot be read trust nothing.
    async fn trust(&self) -> Result<Trust, Failure> {
        let Some(folder) = self.settings.trust_folder.clone() else { return Ok(Trust::default()) };
        let read = tokio::task::spawn_blocking(move || read_trust(&folder)).await;
        let failed = |message: String| (LoadCode::SignatureRejected, format!("rules of trust: {message}"));
        read.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    async fn cache(&self) -> Option<Arc<BundleCache>> {
        let open = async || {
            let folders = self.settings.cache_folders.clone();
            let opened = tokio::task::spawn_blocking(move || {
                let mut usable = folders.iter().filter_map(|folder| match BundleCache::open(folder) {
                    Ok(cache) => Some(Arc::new(cache)),
                    Err(error) => {
                        let cause = std::error::Error::source(&error).map(ToString::to_string);
                        tracing::warn!(%error, cause, "policy modules are not kept there");
                        None
                    }
                });
                usable.next()
            });
            opened.await.ok().flatten()
        };
        self.cache.get_or_init(open).await.clone()
    }

    async fn kept(&self, key: &OciKey) -> Option<Bundle> {
        let cache = self.cache().await?;
        let key = key.clone();
        tokio::task::spawn_blocking(move || cache.get(&key.image, key.digest)).await.ok().flatten()
    }

    async fn keep(&self, key: &OciKey, bundle: Bundle) {
        let Some(cache) = self.cache().await else { return };
        let key = key.clone();
        let kept = tokio::task::spawn_blocking(move || cache.put(&key.image, key.digest, &bundle)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, "a policy module was not kept on disk");
        }
    }
}

/// Whether a module is what the registry has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    Current,
    /// The registry does not answer; this is what it had.
    Kept,
}

fn ready(accepted: Accepted) -> ModuleFetch {
    ModuleFetch::Ready(FetchedModule {
        bytes: accepted.module,
        signed: accepted.signed_by.is_some(),
        claims: ModuleClaims { name: accepted.title, version: accepted.version },
    })
}

/// When to ask again: never for what is pinned and there, regularly for a tag, with backoff after a failure.
fn after<T>(key: &OciKey, result: Result<T, LoadCode>) -> Outcome {
    match (result, key.digest) {
        (Ok(_), Some(_)) => Outcome::Done,
        (Ok(_), None) => Outcome::After(RESOLVE),
        (Err(_), _) => Outcome::Retry,
    }
}

/// The credentials in a pull secret. The text names no part of its content.
fn from_pull_secret(secret: Option<&Value>, key: &SecretKey) -> Result<DockerConfig, String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let secret = secret.ok_or_else(|| format!("{key} not found"))?;
    if is_users_copy(secret) {
        return Err(format!("{key} is a copy of a user's"));
    }
    if secret.get("type").and_then(Value::as_str) != Some(SECRET_TYPE) {
        return Err(format!("{key} is not of type {SECRET_TYPE}"));
    }
    let encoded = secret.get("data").and_then(|data| data.get(SECRET_KEY)).and_then(Value::as_str);
    let encoded = encoded.ok_or_else(|| format!("{key} has no key {SECRET_KEY:?}"))?;
    let json = STANDARD.decode(encoded).map_err(|_| format!("{key} is not base64"))?;
    DockerConfig::parse(&json).map_err(|error| format!("{key}: {error}"))
}

/// The code of a failed transfer (PO-703).
fn code_of(error: &RegistryError) -> LoadCode {
    match error {
        RegistryError::NotFound { .. } => LoadCode::ModuleNotFound,
        RegistryError::Forbidden { .. } => LoadCode::FetchForbidden,
        RegistryError::Unreachable { .. } | RegistryError::Answer { .. } | RegistryError::Insecure { .. } => {
            LoadCode::FetchFailed
        }
        RegistryError::TooLarge { .. } => LoadCode::TooLarge,
        RegistryError::Corrupt { .. } | RegistryError::OtherModule { .. } => LoadCode::DigestMismatch,
        RegistryError::NotAPolicy { .. } => LoadCode::NotAPolicy,
    }
}

/// The code of a refusal (PO-703).
fn of_refusal(refusal: &Refusal) -> Failure {
    let code = match refusal {
        Refusal::TooLarge { .. } => LoadCode::TooLarge,
        Refusal::OtherModule { .. } => LoadCode::DigestMismatch,
        Refusal::Signature(_) => LoadCode::SignatureRejected,
        Refusal::NotAPolicy(_) => LoadCode::NotAPolicy,
    };
    (code, refusal.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use kubeocean_api::keys::label;
    use rstest::rstest;
    use serde_json::json;

    fn secret() -> SecretKey {
        SecretKey { namespace: "n".into(), name: "s".into() }
    }

    fn with(data: &str) -> Value {
        json!({"type": SECRET_TYPE, "data": {SECRET_KEY: STANDARD.encode(data)}})
    }

    #[rstest]
    #[case::gone(None, "Secret n/s not found")]
    #[case::other_type(Some(json!({"type": "Opaque", "data": {}})), "not of type")]
    #[case::other_key(Some(json!({"type": SECRET_TYPE, "data": {"x": ""}})), "no key")]
    #[case::a_users_copy(Some(json!({"metadata": {"labels": {label::MANAGED_BY: "kubeocean"}}})), "copy of a user's")]
    #[case::no_json(Some(with("hunter2")), "no JSON")]
    fn a_pull_secret_that_is_none(#[case] object: Option<Value>, #[case] expected: &str) {
        let error = from_pull_secret(object.as_ref(), &secret()).unwrap_err();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_pull_secret_gives_the_credentials_of_its_registry() {
        let object = with(r#"{"auths": {"r.io": {"username": "u", "password": "p"}}}"#);
        let config = from_pull_secret(Some(&object), &secret()).unwrap();
        assert_eq!(config.of(&"r.io/p:1".parse().unwrap()).unwrap().username, "u");
        assert_eq!(config.of(&"other.io/p:1".parse().unwrap()), None);
    }

    #[test]
    fn what_is_pinned_and_there_is_not_asked_for_again() {
        let digest = Some(kubeocean_registry::Digest::of(b""));
        let tag = OciKey { image: "r.io/p:1".parse().unwrap(), pull_secret: None, digest: None };
        let pinned = OciKey { digest, ..tag.clone() };
        assert_eq!(after(&pinned, Ok(())), Outcome::Done);
        assert_eq!(after(&tag, Ok(())), Outcome::After(RESOLVE));
        assert_eq!(after::<()>(&pinned, Err(LoadCode::SignatureRejected)), Outcome::Retry);
    }
}
