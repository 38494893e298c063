//! Names and passwords for registries, as Docker's `config.json` and Kubernetes' pull secrets hold them.
//!
//! Pure. The rules of matching are the kubelet's: `*` stands for one part of a host name, a path must be the start of the
//! repository's, and the longest path wins.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::reference::Reference;

/// Name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Value of the header `Authorization`.
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password)))
    }
}

/// Why a text holds no credentials.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Not the JSON of a Docker config. The text may hold passwords, so none of it is repeated.
    #[error("no JSON of the form {{\"auths\": {{...}}}}")]
    Malformed,
    /// An entry that cannot be used.
    #[error("the entry for {0} has neither auth nor username and password")]
    Entry(String),
}

/// All credentials of a file or Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DockerConfig {
    auths: Vec<(String, Credentials)>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    /// base64 of name, colon and password.
    #[serde(default, rename = "auth")]
    joined: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl DockerConfig {
    /// From the JSON text of `~/.docker/config.json` or of key `.dockerconfigjson`. Entries without a password are left
    /// out: a credential helper keeps theirs.
    pub fn parse(json: &[u8]) -> Result<Self, CredentialError> {
        let file: File = serde_json::from_slice(json).map_err(|_| CredentialError::Malformed)?;
        let mut auths = Vec::new();
        for (place, auth) in file.auths {
            let pair = if auth.joined.is_empty() {
                Some((auth.username, auth.password))
                    .filter(|(name, password)| !(name.is_empty() && password.is_empty()))
            } else {
                let decoded =
                    STANDARD.decode(auth.joined.trim()).ok().and_then(|text| String::from_utf8(text).ok());
                let pair = decoded.and_then(|text| {
                    text.split_once(':').map(|(name, password)| (name.to_owned(), password.to_owned()))
                });
                Some(pair.ok_or_else(|| CredentialError::Entry(place.clone()))?)
            };
            if let Some((username, password)) = pair {
                auths.push((place, Credentials { username, password }));
            }
        }
        Ok(Self { auths })
    }

    /// The credentials for an artifact.
    pub fn of(&self, reference: &Reference) -> Option<&Credentials> {
        let fitting = self.auths.iter().filter_map(|(place, credentials)| {
            let (host, path) = split(place);
            let fits = host_fits(host, reference.registry()) && path_fits(path, reference.repository());
            fits.then_some((path.len(), credentials))
        });
        fitting.max_by_key(|(length, _)| *length).map(|(_, credentials)| credentials)
    }
}

/// Host and path of a key, which may be an address. `https://index.docker.io/v1/` is Docker's name of its own registry.
fn split(place: &str) -> (&str, &str) {
    let place = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://")).unwrap_or(place);
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let path = path.trim_matches('/');
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    (host, if matches!(path, "v1" | "v2") { "" } else { path })
}

fn host_fits(pattern: &str, host: &str) -> bool {
    let (patterns, pattern_port) = port(pattern);
    let (name, host_port) = port(host);
    let (patterns, parts): (Vec<_>, Vec<_>) = (patterns.split('.').collect(), name.split('.').collect());
    pattern_port == host_port
        && patterns.len() == parts.len()
        && patterns.iter().zip(&parts).all(|(pattern, part)| part_fits(pattern, part))
}

fn port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        // As in names of artifacts, the usual port is not written.
        Some((name, "443")) => (name, None),
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

/// One `*` in a part stands for any characters.
fn part_fits(pattern: &str, part: &str) -> bool {
    let part = part.to_ascii_lowercase();
    let pattern = pattern.to_ascii_lowercase();
    match pattern.split_once('*') {
        None => pattern == part,
        Some((start, end)) => {
            part.len() >= start.len() + end.len() && part.starts_with(start) && part.ends_with(end)
        }
    }
}

fn path_fits(path: &str, repository: &str) -> bool {
    path.is_empty()
        || repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn config() -> DockerConfig {
        let auth = STANDARD.encode("robot:se:cret");
        let text = serde_json::json!({"auths": {
            "r.example": {"auth": auth},
            "https://r.example/team": {"username": "team", "password": "x"},
            "r.example:5000": {"username": "port", "password": "x"},
            "usual.example:443": {"username": "usual", "password": "x"},
            "*.cloud.example": {"username": "glob", "password": "x"},
            "https://index.docker.io/v1/": {"username": "hub", "password": "x"},
            "helper.example": {},
        }, "credsStore": "desktop"});
        DockerConfig::parse(text.to_string().as_bytes()).unwrap()
    }

    #[rstest]
    #[case("r.example/policies/p", Some("robot"))]
    #[case("r.example/team/p", Some("team"))]
    #[case("r.example/teams/p", Some("robot"))]
    #[case("r.example:5000/p", Some("port"))]
    #[case("r.example:5001/p", None)]
    #[case("usual.example/p", Some("usual"))]
    #[case("r.example:443/p", Some("robot"))]
    #[case("eu.cloud.example/p", Some("glob"))]
    #[case("a.eu.cloud.example/p", None)]
    #[case("evil-r.example/p", None)]
    #[case("docker.io/p", Some("hub"))]
    #[case("helper.example/p", None)]
    fn credentials_go_to_their_registry_only(#[case] image: &str, #[case] expected: Option<&str>) {
        let config = config();
        let found = config.of(&image.parse().unwrap());
        assert_eq!(found.map(|credentials| credentials.username.as_str()), expected);
    }

    #[test]
    fn a_password_may_hold_colons_and_is_never_shown() {
        let config = config();
        let credentials = config.of(&"r.example/p".parse().unwrap()).unwrap();
        assert_eq!(credentials.password, "se:cret");
        assert!(!format!("{credentials:?}").contains("cret"));
    }

    #[test]
    fn what_is_no_config_is_refused_without_repeating_it() {
        let error = DockerConfig::parse(b"{\"auths\": \"hunter2\"}").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        let error = DockerConfig::parse(b"{\"auths\": {\"a\": {\"auth\": \"%\"}}}").unwrap_err();
        assert_eq!(error, CredentialError::Entry("a".into()));
        assert_eq!(DockerConfig::parse(b"{}"), Ok(DockerConfig::default()));
    }
}
