//! Registries as a command line names them: flags, a person's credentials, transfers with a progress bar.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use anyhow::Context;
use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kubeocean_engine::MAX_MODULE_BYTES;
use kubeocean_registry::{
    Bundle, Client, ClientConfig, Credentials, Demands, Digest, DockerConfig, Progress, Reference,
    RegistryError, Signatures,
};

use crate::failure::{Failure, OrFailure};

/// Transfers of fewer bytes end before anybody wonders.
const LONG_BYTES: u64 = 1 << 20;

/// How registries are reached.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct RegistryFlags {
    /// Registries that are talked to without TLS; for development
    #[arg(long, value_delimiter = ',', value_name = "HOST[:PORT],...")]
    insecure_registry: Vec<String>,
    /// Certificate authorities of registries, PEM, beside those of the machine
    #[arg(long, value_name = "FILE")]
    registry_ca: Option<PathBuf>,
}

impl RegistryFlags {
    /// The settings these flags make.
    pub(crate) fn config(&self) -> anyhow::Result<ClientConfig> {
        let authorities = self.registry_ca.as_deref().map(|path| {
            std::fs::read(path).with_context(|| format!("cannot read --registry-ca {}", path.display()))
        });
        Ok(ClientConfig {
            insecure_hosts: self.insecure_registry.clone(),
            authorities: authorities.transpose()?,
        })
    }
}

/// How a person reaches registries.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Login {
    #[command(flatten)]
    registries: RegistryFlags,
    /// Credentials, as docker login writes them [default: REGISTRY_AUTH_FILE, then DOCKER_CONFIG/config.json, then
    /// ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
}

/// An artifact of a registry, and how a person reaches it.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Artifact {
    /// Which: registry, repository, and tag or digest
    #[arg(value_parser = image)]
    pub(crate) image: Reference,
    #[command(flatten)]
    pub(crate) login: Login,
}

/// A client, with the credentials for one artifact.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) credentials: Option<Credentials>,
    /// Why there are none, if so.
    without: Option<String>,
}

impl Connection {
    /// What a failed transfer means; where credentials may have been missing, with the reason why there are none.
    pub(crate) fn failure(&self, error: &RegistryError) -> Failure {
        match (error, &self.without) {
            (RegistryError::Forbidden { .. }, Some(why)) => {
                Failure::unusable(format!("FetchForbidden: {error} ({why})"))
            }
            _ => failure(error),
        }
    }
}

impl Login {
    /// The settings the flags make.
    pub(crate) fn config(&self) -> Result<ClientConfig, Failure> {
        self.registries.config().or_unusable()
    }

    /// Connects to nothing yet.
    pub(crate) fn connection(&self, image: &Reference) -> Result<Connection, Failure> {
        let client = Client::new(&self.config()?).context("registries cannot be reached").or_unusable()?;
        let path = self.registry_config.clone().or_else(default_config);
        let config = match &path {
            Some(path) if self.registry_config.is_some() || path.exists() => {
                Some(read_config(path).or_unusable()?)
            }
            _ => None,
        };
        let credentials = config.as_ref().and_then(|config| config.of(image)).cloned();
        let without = credentials.is_none().then(|| why_none(path.as_deref(), config.as_ref(), image));
        Ok(Connection { client, credentials, without })
    }
}

/// Why there are no credentials for an image, and what to do about it.
fn why_none(path: Option<&Path>, config: Option<&DockerConfig>, image: &Reference) -> String {
    let why = match (path, config) {
        (Some(path), Some(config)) => format!("{} {}", path.display(), config.why_none(image)),
        (Some(path), None) => format!("there is no {}", path.display()),
        (None, _) => "there is no home folder with a file of credentials".to_owned(),
    };
    format!("{why}; give --registry-config a file with name and password")
}

fn read_config(path: &Path) -> anyhow::Result<DockerConfig> {
    let cannot = || format!("cannot use the credentials in {}", path.display());
    let text = std::fs::read(path).with_context(cannot)?;
    DockerConfig::parse(&text).with_context(cannot)
}

fn default_config() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    of("REGISTRY_AUTH_FILE")
        .or_else(|| Some(of("DOCKER_CONFIG")?.join("config.json")))
        .or_else(|| Some(of("HOME")?.join(".docker/config.json")))
}

/// An image as an argument.
pub(crate) fn image(text: &str) -> Result<Reference, String> {
    text.strip_prefix("oci://").unwrap_or(text).parse().map_err(|error| format!("{error}"))
}

/// A registry that gives no answer is not the same as one that refuses.
fn failure(error: &RegistryError) -> Failure {
    let text = error.to_string();
    match error {
        RegistryError::Unreachable { .. } => Failure::unreachable(text),
        RegistryError::NotFound { .. } => Failure::unusable(format!("ModuleNotFound: {text}")),
        RegistryError::Forbidden { .. } => Failure::unusable(format!("FetchForbidden: {text}")),
        RegistryError::TooLarge { .. } => Failure::unusable(format!("TooLarge: {text}")),
        RegistryError::NotAPolicy { .. } => Failure::unusable(format!("NotAPolicy: {text}")),
        RegistryError::Corrupt { .. } | RegistryError::OtherModule { .. } => {
            Failure::unusable(format!("DigestMismatch: {text}"))
        }
        RegistryError::Answer { .. } | RegistryError::Insecure { .. } => {
            Failure::unusable(format!("FetchFailed: {text}"))
        }
    }
}

/// Most bytes of a module a person may look at.
pub(crate) fn max_bytes() -> u64 {
    u64::try_from(MAX_MODULE_BYTES).unwrap_or(u64::MAX)
}

/// An artifact of a registry, with its module and, if asked for, its signatures.
pub(crate) async fn pull(
    login: &Login,
    image: &Reference,
    digest: Option<Digest>,
    signatures: Signatures,
) -> Result<Bundle, Failure> {
    let connection = login.connection(image)?;
    let bar = Bar::new("pulling");
    let demands = Demands { digest, max_bytes: max_bytes() };
    let credentials = connection.credentials.as_ref();
    let pulled =
        connection.client.pull(image, credentials, demands, signatures, None, Some(bar.progress())).await;
    bar.end();
    pulled.map_err(|error| connection.failure(&error))
}

/// A progress bar on standard error, if that is a terminal and the transfer is long.
#[derive(Debug)]
pub(crate) struct Bar {
    verb: &'static str,
    shown: Arc<OnceLock<ProgressBar>>,
}

impl Bar {
    /// Shows nothing yet.
    pub(crate) fn new(verb: &'static str) -> Self {
        Self { verb, shown: Arc::default() }
    }

    /// What the transfer tells.
    pub(crate) fn progress(&self) -> Progress {
        let (verb, shown) = (self.verb, Arc::clone(&self.shown));
        Arc::new(move |done, total| {
            if total < LONG_BYTES {
                return;
            }
            let bar = shown.get_or_init(|| {
                let style = ProgressStyle::with_template("{msg} [{bar:40}] {bytes}/{total_bytes} {eta}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
                // Draws nothing where there is no terminal.
                let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
                bar.with_style(style.progress_chars("#> ")).with_message(verb)
            });
            bar.set_position(done);
        })
    }

    /// Leaves no trace.
    pub(crate) fn end(&self) {
        if let Some(bar) = self.shown.get() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_may_be_written_as_an_address() {
        assert_eq!(image("oci://r.example/p:1"), image("r.example/p:1"));
        assert!(image("p:1").unwrap_err().contains("registry's host"));
    }

    #[test]
    fn who_has_no_credentials_is_told_which_file_was_looked_at_and_what_to_do() {
        let image = "r.example/p:1".parse().unwrap();
        let config = DockerConfig::parse(br#"{"credHelpers": {"r.example": "ecr-login"}}"#).unwrap();
        let path = Some(Path::new("/home/a/.docker/config.json"));
        let way = "give --registry-config a file with name and password";
        for (path, config, why) in [
            (None, None, "there is no home folder with a file of credentials"),
            (path, None, "there is no /home/a/.docker/config.json"),
            (
                path,
                Some(&config),
                "/home/a/.docker/config.json leaves r.example to the credential helper \"ecr-login\", which is not run",
            ),
        ] {
            assert_eq!(why_none(path, config, &image), format!("{why}; {way}"));
        }
    }
}
