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

/// All credentials of a file or Secret. What other programs keep for it is only named: none of them is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DockerConfig {
    auths: Vec<(String, Credentials)>,
    /// Places of which there is an identity token instead of a password.
    tokens: Vec<String>,
    /// Credential helpers of single registries.
    helpers: BTreeMap<String, String>,
    /// The helper of all others.
    store: Option<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default, rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
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
    /// For a token service of another kind; `joined` has no password then.
    #[serde(default, rename = "identitytoken")]
    token: Option<String>,
}

impl DockerConfig {
    /// From the JSON text of `~/.docker/config.json` or of key `.dockerconfigjson`. Entries without a password are left
    /// out: a credential helper keeps theirs, or they have a token.
    pub fn parse(json: &[u8]) -> Result<Self, CredentialError> {
        let file: File = serde_json::from_slice(json).map_err(|_| CredentialError::Malformed)?;
        let (mut auths, mut tokens) = (Vec::new(), Vec::new());
        for (place, auth) in file.auths {
            let has_token = auth.token.is_some_and(|token| !token.is_empty());
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
            match pair {
                Some((username, password)) if !(has_token && password.is_empty()) => {
                    auths.push((place, Credentials { username, password }));
                }
                _ if has_token => tokens.push(place),
                _ => {}
            }
        }
        let store = file.store.filter(|store| !store.is_empty());
        Ok(Self { auths, tokens, helpers: file.helpers.unwrap_or_default(), store })
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

    /// Why [`DockerConfig::of`] finds nothing for an artifact, as what is said about the file or Secret.
    pub fn why_none(&self, reference: &Reference) -> String {
        let host = reference.registry();
        let fits = |place: &str| host_fits(split(place).0, host);
        let mut helpers = self.helpers.iter();
        let helper = helpers.find(|(place, _)| fits(place)).map(|(_, helper)| helper);
        let token = self.tokens.iter().any(|place| fits(place));
        match helper.or_else(|| self.store.as_ref().filter(|_| !token)) {
            Some(helper) => format!("leaves {host} to the credential helper {helper:?}, which is not run"),
            None if token => {
                format!("has an identity token for {host} and no password, and such tokens are not used")
            }
            None => format!("has no entry for {host}"),
        }
    }
}

/// Host and path of a key, which may be an address. `https://index.docker.io/v1/` is Docker's name of its own registry,
/// and `registry-1.docker.io` where that has its API.
fn split(place: &str) -> (&str, &str) {
    let place = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://")).unwrap_or(place);
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let path = path.trim_matches('/');
    let of_docker_hub =
        ["index.docker.io", "registry-1.docker.io"].iter().any(|name| host.eq_ignore_ascii_case(name));
    let host = if of_docker_hub { "docker.io" } else { host };
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

    #[rstest]
    #[case("https://index.docker.io/v1/")]
    #[case("index.docker.io")]
    #[case("https://registry-1.docker.io/v2/")]
    #[case("Registry-1.Docker.io")]
    #[case("docker.io")]
    fn docker_hub_by_each_of_its_names(#[case] place: &str) {
        let text = serde_json::json!({"auths": {place: {"username": "hub", "password": "x"}}});
        let config = DockerConfig::parse(text.to_string().as_bytes()).unwrap();
        for image in ["docker.io/team/p", "index.docker.io/team/p", "registry-1.docker.io/team/p"] {
            assert_eq!(config.of(&image.parse().unwrap()).unwrap().username, "hub", "{image}");
        }
    }

    #[rstest]
    #[case::no_entry("{}", "has no entry for r.example")]
    #[case::nulls(r#"{"credsStore": null, "credHelpers": null}"#, "has no entry for r.example")]
    #[case::all_in_a_helper(
        r#"{"auths": {"r.example": {}}, "credsStore": "desktop"}"#,
        "leaves r.example to the credential helper \"desktop\", which is not run"
    )]
    #[case::its_own_helper(
        r#"{"credHelpers": {"R.example:443": "gcloud"}, "credsStore": "desktop"}"#,
        "leaves r.example to the credential helper \"gcloud\", which is not run"
    )]
    #[case::the_helper_of_another(
        r#"{"credHelpers": {"x.example": "gcloud"}}"#,
        "has no entry for r.example"
    )]
    #[case::a_token(
        r#"{"auths": {"https://r.example": {"auth": "MDAwMDo=", "identitytoken": "hunter2"}}}"#,
        "has an identity token for r.example and no password, and such tokens are not used"
    )]
    fn why_there_are_no_credentials(#[case] text: &str, #[case] expected: &str) {
        let config = DockerConfig::parse(text.as_bytes()).unwrap();
        let image = "r.example/p".parse().unwrap();
        assert_eq!(config.of(&image), None);
        assert_eq!(config.why_none(&image), expected);
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_password_beside_a_token_is_used() {
        let text = r#"{"auths": {"r.example": {"username": "u", "password": "p", "identitytoken": "t"}}}"#;
        let config = DockerConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.of(&"r.example/p".parse().unwrap()).unwrap().password, "p");
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
