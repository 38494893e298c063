//! Modules in registries: from the disk where it has what is wanted, else from the registry (PO-705, PO-706, PO-1203).
//!
//! Reads and keeps; what may be loaded says `kubeocean_registry::accept` alone, about what was fetched and about what the
//! disk kept. [`code_of`] and [`after`] say what a failure is called and when to ask again.

use std::{os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use kube::Client;
use kubeocean_engine::{FetchedModule, LoadCode, LoadError, ModuleClaims, ModuleFetch};
use kubeocean_registry::{
    Accepted, ArtifactError, Bundle, BundleCache, Demands, Digest, DockerConfig, Refusal, RegistryError,
    Signatures, Trust, accept, read_trust,
};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::modules::{Fetched, OciKey, SecretKey, failed, is_users_copy};
use crate::{config::PolicySources, nodes::index::Identity};
use kubeocean_runtime::{
    error::ApplyError,
    queue::Outcome,
    request::{get_json, paths},
};

/// How often a tag without a digest is looked up (PO-706).
const RESOLVE: Duration = Duration::from_mins(5);
/// How often what is pinned and there is marked as used: on disk goes first what was not used for longest.
pub(super) const MARK_USED: Duration = Duration::from_hours(1);
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
    /// Whose policies name the modules: what a tag led to is kept for nobody else.
    owner: String,
    client: OnceCell<kubeocean_registry::Client>,
    disk: OnceCell<Option<Disk>>,
}

/// Where modules are kept.
#[derive(Clone, Debug)]
struct Disk {
    cache: Arc<BundleCache>,
    /// Others could write there.
    exposed: bool,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Registries {
    pub(super) fn new(worker: Client, settings: PolicySources, max_module_bytes: usize) -> Self {
        Self {
            worker,
            settings,
            max_module_bytes: u64::try_from(max_module_bytes).unwrap_or(u64::MAX),
            owner: String::new(),
            client: OnceCell::new(),
            disk: OnceCell::new(),
        }
    }

    /// The same for the policies of one binding.
    pub(super) fn for_binding(self, identity: &Identity) -> Self {
        Self { owner: format!("{} of {}", identity.binding, identity.computing_uid), ..self }
    }

    pub(super) async fn read(&self, key: &OciKey) -> (Fetched, Outcome) {
        match self.obtain(key).await {
            Ok((accepted, None)) => (ready(accepted).into(), after(key)),
            Ok((accepted, Some((code, message)))) => {
                let stale = Some(LoadError::new(code, &message));
                (Fetched { module: ready(accepted), stale }, Outcome::Retry)
            }
            Err((code, message)) => (failed(code, message).into(), Outcome::Retry),
        }
    }

    /// What the disk has; no registry is asked.
    pub(super) async fn at_hand(&self, key: &OciKey) -> Option<ModuleFetch> {
        let trust = self.trust_in(key).await.ok()?;
        let bundle = self.kept(key).await?;
        self.usable(key, &bundle, &trust).map(ready)
    }

    /// What the registry has now, whatever the disk has.
    pub(super) async fn read_anew(&self, key: &OciKey) -> Option<ModuleFetch> {
        let read = async {
            let trust = self.trust_in(key).await?;
            let kept = self.kept(key).await;
            self.look_up(key, &trust, kept.as_ref()).await
        };
        match read.await {
            Ok(accepted) => Some(ready(accepted)),
            Err((code, message)) => {
                tracing::debug!(image = %key.image, %code, message, "a policy module was not read again");
                None
            }
        }
    }

    /// The disk goes on keeping it.
    pub(super) async fn mark_used(&self, key: &OciKey) {
        drop(self.kept(key).await);
    }

    /// A module, and why it is only what the registry had before.
    async fn obtain(&self, key: &OciKey) -> Result<(Accepted, Option<Failure>), Failure> {
        let trust = self.trust_in(key).await?;
        let kept = self.kept(key).await;
        let good = kept.as_ref().and_then(|bundle| self.usable(key, bundle, &trust));
        if let Some(accepted) = good.as_ref().filter(|_| key.digest.is_some()) {
            return Ok((accepted.clone(), None));
        }
        match self.look_up(key, &trust, kept.as_ref()).await {
            Ok(accepted) => Ok((accepted, None)),
            // A registry that is down takes nothing away (PO-804).
            Err(failure) => match good.filter(|_| failure.0.is_fetch()) {
                Some(accepted) => Ok((accepted, Some(failure))),
                None => Err(failure),
            },
        }
    }

    async fn look_up(&self, key: &OciKey, trust: &Trust, kept: Option<&Bundle>) -> Result<Accepted, Failure> {
        let demands = self.demands(key);
        let bundle = self.pull(key, trust, demands, kept).await?;
        let accepted = accept(&key.image, &bundle, trust, demands).map_err(|refusal| of_refusal(&refusal))?;
        if kept != Some(&bundle) {
            self.keep(key, bundle).await;
        }
        Ok(accepted)
    }

    fn demands(&self, key: &OciKey) -> Demands {
        Demands { digest: key.digest, max_bytes: self.max_module_bytes }
    }

    /// What was kept, if it may be loaded.
    fn usable(&self, key: &OciKey, kept: &Bundle, trust: &Trust) -> Option<Accepted> {
        let accepted = accept(&key.image, kept, trust, self.demands(key)).ok()?;
        let pinned = key.digest.is_some() || key.image.digest().is_some();
        // Where others could write, their word alone would say what the tag led to.
        let exposed = self.disk.get().and_then(Option::as_ref).is_some_and(|disk| disk.exposed);
        (pinned || accepted.signed_by.is_some() || !exposed).then_some(accepted)
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
        pulled.map_err(|error| {
            let mut text = error.to_string();
            // The registry says only that it wants some; whose are missing is seen here.
            if let (RegistryError::Forbidden { .. }, Some(config), None) = (&error, &config, credentials) {
                let secret = key.pull_secret.as_ref().map(ToString::to_string).unwrap_or_default();
                text = format!("{text}; {secret} {}", config.why_none(&key.image));
            }
            (code_of(&error, self.max_module_bytes), text)
        })
    }

    async fn pull_secret(&self, key: &SecretKey) -> Result<DockerConfig, Failure> {
        let path = paths::core("secrets", &key.namespace, &key.name);
        let secret = get_json(&self.worker, &path).await.map_err(|error| {
            let forbidden = matches!(error, ApplyError::Forbidden { .. });
            (if forbidden { LoadCode::FetchForbidden } else { LoadCode::FetchFailed }, error.chain())
        })?;
        from_pull_secret(secret.as_ref(), key).map_err(|message| (LoadCode::FetchForbidden, message))
    }

    /// The rules, if they permit to ask for this module at all.
    async fn trust_in(&self, key: &OciKey) -> Result<Trust, Failure> {
        let trust = self.trust().await?;
        trust.permits(&key.image).map_err(|message| (LoadCode::SignatureRejected, message))?;
        Ok(trust)
    }

    /// Rules that cannot be read trust nothing.
    async fn trust(&self) -> Result<Trust, Failure> {
        let Some(folder) = self.settings.trust_folder.clone() else { return Ok(Trust::default()) };
        let read = tokio::task::spawn_blocking(move || read_trust(&folder)).await;
        let failed = |message: String| (LoadCode::SignatureRejected, format!("rules of trust: {message}"));
        read.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    async fn disk(&self) -> Option<Disk> {
        let open = async || {
            let folders = self.settings.cache_folders.clone();
            let opened = tokio::task::spawn_blocking(move || {
                let mut usable = folders.iter().filter_map(|folder| {
                    let exposed = is_exposed(folder);
                    match BundleCache::open(folder) {
                        Ok(cache) => {
                            if exposed {
                                let folder = folder.display();
                                tracing::warn!(%folder, "others could write here: unsigned modules by tag are not taken from it");
                            }
                            Some(Disk { cache: Arc::new(cache), exposed })
                        }
                        Err(error) => {
                            let cause = std::error::Error::source(&error).map(ToString::to_string);
                            tracing::warn!(%error, cause, "policy modules are not kept there");
                            None
                        }
                    }
                });
                usable.next()
            });
            opened.await.ok().flatten()
        };
        self.disk.get_or_init(open).await.clone()
    }

    async fn kept(&self, key: &OciKey) -> Option<Bundle> {
        let Disk { cache, .. } = self.disk().await?;
        let (image, place) = (key.image.clone(), self.place(key));
        tokio::task::spawn_blocking(move || cache.get(&image, Some(place))).await.ok().flatten()
    }

    pub(super) async fn keep(&self, key: &OciKey, bundle: Bundle) {
        let Some(Disk { cache, .. }) = self.disk().await else { return };
        let (image, place) = (key.image.clone(), self.place(key));
        let kept = tokio::task::spawn_blocking(move || cache.put(&image, Some(place), &bundle)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, "a policy module was not kept on disk");
        }
    }

    /// Under what a module of an image is kept. Whoever knows its digest may have it. What a tag led to is for those alone
    /// who were shown it: the registry may refuse it to another binding, or with another pull secret.
    fn place(&self, key: &OciKey) -> Digest {
        key.digest.unwrap_or_else(|| {
            let secret = key.pull_secret.as_ref().map(ToString::to_string).unwrap_or_default();
            Digest::of(format!("tag for {} by {secret}", self.owner).as_bytes())
        })
    }
}

/// Whether others may write to a folder or to a file in it. Asked before the folder is closed to them; their files tell it
/// later, too.
fn is_exposed(folder: &Path) -> bool {
    let may_write = |meta: &std::fs::Metadata| meta.permissions().mode() & 0o022 != 0;
    if std::fs::symlink_metadata(folder).is_ok_and(|meta| may_write(&meta)) {
        return true;
    }
    let Ok(files) = std::fs::read_dir(folder) else { return false };
    files.flatten().any(|file| file.metadata().is_ok_and(|meta| may_write(&meta)))
}

fn ready(accepted: Accepted) -> ModuleFetch {
    ModuleFetch::Ready(FetchedModule {
        bytes: accepted.module,
        signed: accepted.signed_by.is_some(),
        claims: ModuleClaims { name: accepted.title, version: accepted.version },
    })
}

/// When to look again at a module that is there. One that is pinned is only marked.
fn after(key: &OciKey) -> Outcome {
    Outcome::After(if key.digest.is_some() { MARK_USED } else { RESOLVE })
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

/// The code of a failed transfer (PO-703). Pages in place of a manifest, and bytes that changed on the way, are an outage:
/// they say nothing about the module.
fn code_of(error: &RegistryError, max_module_bytes: u64) -> LoadCode {
    match error {
        RegistryError::NotFound { .. } => LoadCode::ModuleNotFound,
        RegistryError::Forbidden { .. } => LoadCode::FetchForbidden,
        RegistryError::Unreachable { .. }
        | RegistryError::Answer { .. }
        | RegistryError::Insecure { .. }
        | RegistryError::Corrupt { .. } => LoadCode::FetchFailed,
        // Only the module has this limit.
        RegistryError::TooLarge { limit_bytes, .. } if *limit_bytes != max_module_bytes => {
            LoadCode::FetchFailed
        }
        RegistryError::TooLarge { .. } => LoadCode::TooLarge,
        RegistryError::OtherModule { .. } => LoadCode::DigestMismatch,
        RegistryError::NotAPolicy { message, .. } if is_of_no_manifest(message) => LoadCode::FetchFailed,
        RegistryError::NotAPolicy { .. } => LoadCode::NotAPolicy,
    }
}

/// Whether a text says that something is no manifest at all, and not that of something else.
fn is_of_no_manifest(message: &str) -> bool {
    message.starts_with(&ArtifactError::Unreadable(String::new()).to_string())
}

/// The code of a refusal (PO-703).
fn of_refusal(refusal: &Refusal) -> Failure {
    let code = match refusal {
        Refusal::TooLarge { .. } => LoadCode::TooLarge,
        Refusal::OtherModule { .. } => LoadCode::DigestMismatch,
        Refusal::Signature(_) => LoadCode::SignatureRejected,
        Refusal::Incomplete(_) => LoadCode::FetchFailed,
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
        let tag = key("1");
        let pinned = OciKey { digest: Some(Digest::of(b"")), ..tag.clone() };
        assert_eq!(after(&pinned), Outcome::After(MARK_USED));
        assert_eq!(after(&tag), Outcome::After(RESOLVE));
    }

    const LIMIT: u64 = 8 << 20;

    fn what() -> String {
        "r.io/p:1".to_owned()
    }

    /// Only of what the registry says about the module itself nothing is left of what was kept (PO-804).
    #[rstest]
    #[case::damaged(RegistryError::Corrupt { what: what(), got: Digest::of(b"") }, LoadCode::FetchFailed)]
    #[case::long_page(RegistryError::TooLarge { what: what(), limit_bytes: 1 << 20 }, LoadCode::FetchFailed)]
    #[case::large(RegistryError::TooLarge { what: what(), limit_bytes: LIMIT }, LoadCode::TooLarge)]
    #[case::other_module(RegistryError::OtherModule { what: what(), got: Digest::of(b"") }, LoadCode::DigestMismatch)]
    fn what_a_failed_transfer_is_called(#[case] error: RegistryError, #[case] expected: LoadCode) {
        assert_eq!(code_of(&error, LIMIT), expected);
    }

    #[rstest]
    #[case::page("<html>Back at noon</html>", LoadCode::FetchFailed)]
    #[case::nothing("", LoadCode::FetchFailed)]
    #[case::of_something_else(r#"{"error": "back at noon"}"#, LoadCode::FetchFailed)]
    #[case::index(r#"{"schemaVersion": 2, "manifests": []}"#, LoadCode::NotAPolicy)]
    fn what_stands_for_a_manifest(#[case] body: &str, #[case] expected: LoadCode) {
        let error = kubeocean_registry::parse_manifest(body.as_bytes()).unwrap_err();
        let error = RegistryError::NotAPolicy { what: what(), message: error.to_string() };
        assert_eq!(code_of(&error, LIMIT), expected);
    }

    fn key(tag: &str) -> OciKey {
        OciKey { image: format!("r.io/p:{tag}").parse().unwrap(), pull_secret: None, digest: None }
    }

    /// A binding whose modules are kept in a folder.
    fn registries(folder: &Path, binding: &str) -> Registries {
        let provider = rustls::crypto::ring::default_provider();
        // Another test may have done it.
        let _ = provider.install_default();
        let worker = Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
        let settings = PolicySources { cache_folders: vec![folder.to_owned()], ..PolicySources::default() };
        let identity =
            Identity { binding: binding.into(), cluster_id: "c1".into(), computing_uid: "u".into() };
        Registries::new(worker, settings, 1 << 20).for_binding(&identity)
    }

    fn bundle() -> Bundle {
        let module = b"\0asm\x0d\0\x01\0";
        let packed = kubeocean_registry::package(module, &kubeocean_registry::Labels::default());
        Bundle {
            manifest: packed.manifest,
            module: Arc::from(&module[..]),
            signatures: Vec::new(),
            incomplete: None,
        }
    }

    /// An empty folder, removed in the end.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kubeocean-oci-{name}-{}", std::process::id()));
            // One may be left from another process.
            let _ = std::fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Else whoever may not read a private module would run it, because somebody else may.
    #[tokio::test]
    async fn what_a_tag_led_to_is_kept_for_those_who_were_shown_it() {
        let folder = Folder::new("owners");
        let ours = registries(&folder.0, "ours");
        let shown = OciKey { pull_secret: Some(secret()), ..key("1") };
        ours.keep(&shown, bundle()).await;
        assert!(ours.at_hand(&shown).await.is_some());
        assert!(registries(&folder.0, "ours").at_hand(&shown).await.is_some(), "after a restart");
        assert!(ours.at_hand(&key("1")).await.is_none(), "without the secret");
        let other = SecretKey { name: "t".into(), ..secret() };
        let by_other = OciKey { pull_secret: Some(other), ..shown.clone() };
        assert!(ours.at_hand(&by_other).await.is_none(), "with another secret");
        assert!(registries(&folder.0, "theirs").at_hand(&shown).await.is_none(), "another binding");
        // A digest is known to those only who know the module.
        let pinned = OciKey { digest: Some(Digest::of(&bundle().module)), ..shown };
        ours.keep(&pinned, bundle()).await;
        let theirs = OciKey { pull_secret: None, ..pinned };
        assert!(registries(&folder.0, "theirs").at_hand(&theirs).await.is_some());
    }

    /// A kubelet lets the group of a volume write to what is there.
    #[tokio::test]
    async fn where_others_could_write_only_what_proves_itself_is_used() {
        let folder = Folder::new("exposed");
        let (tag, digest) = (key("1"), Some(Digest::of(&bundle().module)));
        let pinned = OciKey { digest, ..tag.clone() };
        let first = registries(&folder.0, "b");
        for key in [&tag, &pinned] {
            first.keep(key, bundle()).await;
            assert!(first.at_hand(key).await.is_some());
        }
        let with_mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        with_mode(&folder.0, 0o2770);
        for file in std::fs::read_dir(&folder.0).unwrap() {
            with_mode(&file.unwrap().path(), 0o660);
        }
        // The first one closes the folder; what was written there stays.
        for start in ["a first", "a second"] {
            let next = registries(&folder.0, "b");
            assert!(next.at_hand(&pinned).await.is_some(), "{start}");
            assert!(next.at_hand(&tag).await.is_none(), "{start}");
        }
    }
}
