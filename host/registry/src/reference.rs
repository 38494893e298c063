//! Names of artifacts: `registry.example.com/policies/night-gpu:1.2.0`, `...@sha256:<hex>`, or both.
//!
//! The registry is always written out: a name that means another place on another machine is no name for code. With
//! neither tag nor digest the tag is `latest`. Invariant: two names of the same repository are equal, so that a rule of trust
//! for one holds for the other: the host has one spelling, and the port that is meant without one is left out.

use std::{fmt, str::FromStr};

use crate::digest::Digest;

/// Longest accepted text (PO-710).
const MAX_BYTES: usize = 512;
const MAX_REPOSITORY_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;
/// Docker Hub serves its API under another name than the one its artifacts have.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// The port that is meant when none is written.
const USUAL_PORT: u16 = 443;

/// A parsed name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    /// There is a tag, or a digest, or both.
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Longer than 512 bytes.
    #[error("an image reference has at most {MAX_BYTES} bytes")]
    TooLong,
    /// It begins with no host.
    #[error(
        "the image reference must begin with the registry's host, as in registry.example.com/policies/night-gpu:1.2.0"
    )]
    NoRegistry,
    /// The host is malformed.
    #[error("{0:?} is no registry host")]
    Registry(String),
    /// The repository is malformed.
    #[error("{0:?} is no repository: lower-case letters and digits, parts separated by /, words by . _ or -")]
    Repository(String),
    /// The tag is malformed.
    #[error("{0:?} is no tag: up to {MAX_TAG_BYTES} letters, digits, and _ . - behind the first")]
    Tag(String),
    /// The part behind `@` is malformed.
    #[error("behind @ comes a digest, and {0:?} is none: sha256: and 64 hexadecimal digits in lower case")]
    Digest(String),
}

impl Reference {
    /// Host with port, as written.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Host with port to which requests go.
    pub(crate) fn api_host(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_API } else { &self.registry }
    }

    /// Path below the host.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Host and path: what signatures name and rules of trust match.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Tag, `latest` if neither tag nor digest is written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest of the manifest, if written.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What to ask the registry for: the digest, or else the tag.
    pub(crate) fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_default(),
        }
    }

    /// The same repository with another tag.
    #[must_use]
    pub fn with_tag(&self, tag: &str) -> Self {
        Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() }
    }

    /// The same repository with a manifest's digest and no tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_BYTES {
            return Err(ReferenceError::TooLong);
        }
        let (host, rest) = text.split_once('/').ok_or(ReferenceError::NoRegistry)?;
        let registry = registry_of(host)?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => {
                let parsed = digest.parse().map_err(|_| ReferenceError::Digest(digest.to_owned()))?;
                (rest, Some(parsed))
            }
            None => (rest, None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if !is_repository(repository) {
            return Err(ReferenceError::Repository(repository.to_owned()));
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(tag.to_owned()));
        }
        let official = registry == DOCKER_HUB && !repository.contains('/');
        let repository = if official { format!("library/{repository}") } else { repository.to_owned() };
        let tag = tag.or(digest.is_none().then_some("latest")).map(str::to_owned);
        Ok(Self { registry, repository, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// The start of names: empty for all, else a registry, or a registry and the first parts of a repository. Spelled as in
/// [`Reference::name`].
pub(crate) fn canonical_prefix(text: &str) -> Result<String, ReferenceError> {
    let text = text.trim_end_matches('/').to_ascii_lowercase();
    if text.is_empty() {
        return Ok(text);
    }
    let (host, path) = text.split_once('/').map_or((text.as_str(), None), |(host, path)| (host, Some(path)));
    let registry = registry_of(host)?;
    match path {
        None => Ok(registry),
        Some(path) if is_repository(path) => Ok(format!("{registry}/{path}")),
        Some(path) => Err(ReferenceError::Repository(path.to_owned())),
    }
}

/// The repository that is meant if a prefix names an image of Docker Hub and not a team's: `docker.io/p` is
/// `docker.io/library/p` as well.
pub(crate) fn official_of(prefix: &str) -> Option<String> {
    let (registry, name) = prefix.split_once('/')?;
    (registry == DOCKER_HUB && !name.contains('/')).then(|| format!("{DOCKER_HUB}/library/{name}"))
}

/// The one spelling of a registry's host and port.
fn registry_of(host: &str) -> Result<String, ReferenceError> {
    if !(host.contains(['.', ':']) || host == "localhost") {
        return Err(ReferenceError::NoRegistry);
    }
    let host = canonical_host(host).ok_or_else(|| ReferenceError::Registry(host.to_owned()))?;
    let of_docker_hub = matches!(host.as_str(), DOCKER_HUB | "index.docker.io" | DOCKER_HUB_API);
    Ok(if of_docker_hub { DOCKER_HUB.to_owned() } else { host })
}

/// A DNS name, an IPv4 address or an IPv6 address in brackets, with an optional port.
fn canonical_host(text: &str) -> Option<String> {
    let (name, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address = address.parse::<std::net::Ipv6Addr>().ok()?;
        let port = if port.is_empty() { None } else { Some(port.strip_prefix(':')?) };
        (format!("[{address}]"), port)
    } else {
        let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
        (is_name(name).then(|| name.to_ascii_lowercase())?, port)
    };
    let Some(port) = port else { return Some(name) };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|port| digits && *port > 0)?;
    Some(if port == USUAL_PORT { name } else { format!("{name}:{port}") })
}

/// What ends in a number is an address: of four numbers as they are printed, since there are other spellings of those.
fn is_name(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let number = last.bytes().all(|byte| byte.is_ascii_digit())
        || hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if number {
        return name.parse::<std::net::Ipv4Addr>().is_ok();
    }
    name.len() <= 253 && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn is_repository(text: &str) -> bool {
    text.len() <= MAX_REPOSITORY_BYTES && text.split('/').all(is_path_part)
}

/// Words of lower-case letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_path_part(part: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_in_words =
        bytes.first().copied().is_some_and(is_word) && bytes.last().copied().is_some_and(is_word);
    let separators =
        part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).filter(|s| !s.is_empty());
    ends_in_words
        && separators.into_iter().all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|byte| byte == b'-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=MAX_TAG_BYTES).contains(&text.len())
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[rstest]
    #[case("registry.example.com/policies/night-gpu:1.2.0", "registry.example.com/policies/night-gpu:1.2.0")]
    #[case("localhost/p", "localhost/p:latest")]
    #[case("LOCALHOST:5000/a__b/c.d:v1", "localhost:5000/a__b/c.d:v1")]
    #[case("[::1]:5000/p:x", "[::1]:5000/p:x")]
    #[case("docker.io/p", "docker.io/library/p:latest")]
    #[case("docker.io:443/p", "docker.io/library/p:latest")]
    #[case("Registry-1.Docker.io/team/p", "docker.io/team/p:latest")]
    #[case("r.example:443/p:1", "r.example/p:1")]
    #[case("R.example:0443/p:1", "r.example/p:1")]
    #[case("r.example:05000/p:1", "r.example:5000/p:1")]
    #[case("[0:0:0:0:0:0:0:1]:443/p:x", "[::1]/p:x")]
    #[case("[2001:DB8::0:1]/p:x", "[2001:db8::1]/p:x")]
    #[case("10.0.0.5:5000/p:x", "10.0.0.5:5000/p:x")]
    #[case("index.docker.io/team/p:1", "docker.io/team/p:1")]
    fn a_reference_and_its_canonical_form(#[case] text: &str, #[case] canonical: &str) {
        let parsed: Reference = text.parse().unwrap();
        assert_eq!(parsed.to_string(), canonical);
        assert_eq!(canonical.parse(), Ok(parsed));
    }

    #[test]
    fn a_digest_wins_over_the_tag() {
        let parsed: Reference = format!("r.example/p:1@{HEX}").parse().unwrap();
        assert_eq!((parsed.tag(), parsed.selector().as_str()), (Some("1"), HEX));
        let bare: Reference = format!("r.example/p@{HEX}").parse().unwrap();
        assert_eq!((bare.tag(), bare.to_string()), (None, format!("r.example/p@{HEX}")));
        assert_eq!(bare.with_tag("x").selector(), "x");
    }

    #[rstest]
    #[case("night-gpu:1.2.0", ReferenceError::NoRegistry)]
    #[case("policies/night-gpu", ReferenceError::NoRegistry)]
    #[case("", ReferenceError::NoRegistry)]
    #[case("-r.example/p", ReferenceError::Registry("-r.example".into()))]
    #[case("r.example:0/p", ReferenceError::Registry("r.example:0".into()))]
    #[case("r.example:70000/p", ReferenceError::Registry("r.example:70000".into()))]
    #[case("user@r.example/p", ReferenceError::Registry("user@r.example".into()))]
    #[case("[::1/p", ReferenceError::Registry("[::1".into()))]
    #[case("[::1]5000/p", ReferenceError::Registry("[::1]5000".into()))]
    #[case("r.example:/p", ReferenceError::Registry("r.example:".into()))]
    #[case("r.example:+443/p", ReferenceError::Registry("r.example:+443".into()))]
    #[case("r.example./p", ReferenceError::Registry("r.example.".into()))]
    #[case("10.5/p", ReferenceError::Registry("10.5".into()))]
    #[case("10.0.0.05/p", ReferenceError::Registry("10.0.0.05".into()))]
    #[case("10.0.0.0x5/p", ReferenceError::Registry("10.0.0.0x5".into()))]
    #[case("167772165:5000/p", ReferenceError::Registry("167772165:5000".into()))]
    #[case("r.example/P", ReferenceError::Repository("P".into()))]
    #[case("r.example/a//b", ReferenceError::Repository("a//b".into()))]
    #[case("r.example/../b", ReferenceError::Repository("../b".into()))]
    #[case("r.example/a..b", ReferenceError::Repository("a..b".into()))]
    #[case("r.example/a?x", ReferenceError::Repository("a?x".into()))]
    #[case("r.example/a:", ReferenceError::Tag(String::new()))]
    #[case("r.example/a:.x", ReferenceError::Tag(".x".into()))]
    #[case("r.example/a:b/c", ReferenceError::Tag("b/c".into()))]
    #[case("r.example/a@sha256:1", ReferenceError::Digest("sha256:1".into()))]
    fn no_reference(#[case] text: &str, #[case] why: ReferenceError) {
        assert_eq!(text.parse::<Reference>(), Err(why));
    }
}
