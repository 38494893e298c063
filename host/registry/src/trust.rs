//! Whom a Syncer trusts: rules by name of the repository, each with keys (PO-1204).
//!
//! Pure. The rules come from the Syncer's own configuration; whoever writes a policy has no say in them.

use serde::Deserialize;

use crate::{
    keys::{KeyError, VerifyingKey},
    reference::{Reference, canonical_prefix, official_of},
};

/// Most rules and most keys of one rule.
const MAX_RULES: usize = 256;
const MAX_KEYS: usize = 16;

/// Why the rules cannot be used. A Syncer with such rules accepts nothing from a registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("{name}: {message}")]
    Unreadable {
        /// The file.
        name: String,
        /// Why.
        message: String,
    },
    /// `trust.yaml` is malformed.
    #[error("trust.yaml: {0}")]
    Malformed(String),
    /// A key file is no key.
    #[error("{name}: {source}")]
    Key {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: KeyError,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rules: Vec<FileRule>,
    #[serde(default)]
    others: Others,
}

/// What becomes of images that no rule is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Others {
    /// Their digest decides.
    #[default]
    Accept,
    /// No registry is asked for them: whoever writes a policy does not choose whom a Syncer talks to.
    Refuse,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    prefix: String,
    keys: Vec<String>,
    #[serde(default = "required")]
    required: bool,
}

/// A rule without `required` asks for signatures: it is there to protect something.
fn required() -> bool {
    true
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustRule {
    /// Start of the names it is for, up to a `/`; empty for all.
    pub prefix: String,
    /// Its keys by file name. One valid signature is enough.
    pub keys: Vec<(String, VerifyingKey)>,
    /// Artifacts without a valid signature are refused.
    pub required: bool,
}

impl TrustRule {
    /// How much of a name the prefix fits, if it does. Of two that fit as much, the one that is spelled like the name fits
    /// better.
    fn fit(&self, name: &str) -> Option<(usize, bool)> {
        let fits = |prefix: &str| {
            prefix.is_empty()
                || name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let prefix = self.prefix.trim_end_matches('/');
        if fits(prefix) {
            return Some((prefix.len(), true));
        }
        official_of(prefix).filter(|official| fits(official)).map(|official| (official.len(), false))
    }
}

/// All rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    rules: Vec<TrustRule>,
    others: Others,
}

impl Trust {
    /// These rules; an image that none is for needs no signature.
    pub fn new(rules: Vec<TrustRule>) -> Self {
        Self { rules, others: Others::Accept }
    }

    /// From the text of `trust.yaml` and the files it names.
    pub fn parse(
        yaml: &str,
        mut read: impl FnMut(&str) -> Result<Vec<u8>, String>,
    ) -> Result<Self, TrustError> {
        let malformed = |message: String| TrustError::Malformed(message);
        let file: File = serde_saphyr::from_str(yaml).map_err(|error| malformed(error.to_string()))?;
        if file.rules.len() > MAX_RULES {
            return Err(malformed(format!("more than {MAX_RULES} rules")));
        }
        let mut rules: Vec<TrustRule> = Vec::new();
        for rule in file.rules {
            // Spelled as names are: a rule that fits nothing would protect nothing.
            let prefix = canonical_prefix(&rule.prefix)
                .map_err(|error| malformed(format!("prefix {:?}: {error}", rule.prefix)))?;
            if rules.iter().any(|known| known.prefix == prefix) {
                return Err(malformed(format!("two rules for {prefix:?}")));
            }
            if rule.keys.len() > MAX_KEYS {
                return Err(malformed(format!("more than {MAX_KEYS} keys for {prefix:?}")));
            }
            if rule.required && rule.keys.is_empty() {
                return Err(malformed(format!("{prefix:?} requires signatures and names no key")));
            }
            let mut keys = Vec::new();
            for name in rule.keys {
                if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
                    return Err(malformed(format!("{name:?} is not the name of a file beside it")));
                }
                let pem =
                    read(&name).map_err(|message| TrustError::Unreadable { name: name.clone(), message })?;
                let key = VerifyingKey::from_pem(&pem)
                    .map_err(|source| TrustError::Key { name: name.clone(), source })?;
                keys.push((name, key));
            }
            rules.push(TrustRule { prefix, keys, required: rule.required });
        }
        Ok(Self { rules, others: file.others })
    }

    /// Whether a registry may be asked for an image, and what came from it loaded; if not, the reason in words.
    pub fn permits(&self, reference: &Reference) -> Result<(), String> {
        if self.others == Others::Refuse && self.rule(reference).is_none() {
            return Err(format!("no rule of trust.yaml is for {}, and others are refused", reference.name()));
        }
        Ok(())
    }

    /// The rule for an artifact: the one with the longest prefix.
    pub fn rule(&self, reference: &Reference) -> Option<&TrustRule> {
        let name = reference.name();
        let fitting = self.rules.iter().filter_map(|rule| Some((rule.fit(&name)?, rule)));
        fitting.max_by_key(|(fit, _)| *fit).map(|(_, rule)| rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Algorithm, SigningKey};
    use rstest::rstest;

    fn parsed(yaml: &str) -> Result<Trust, TrustError> {
        let key = SigningKey::generate(Algorithm::Ed25519).unwrap().0.public().to_pem();
        Trust::parse(yaml, |name| if name == "a.pem" { Ok(key.clone().into()) } else { Err("gone".into()) })
    }

    #[rstest]
    #[case("r.example/policies/night-gpu:1", Some("r.example/policies"))]
    #[case("r.example/policies/team/x:1", Some("r.example/policies/team"))]
    #[case("r.example/policies:1", Some("r.example/policies"))]
    #[case("r.example/policies-of-others/x", Some(""))]
    #[case("r.example.org/policies/x", Some(""))]
    #[case("R.EXAMPLE/policies/x", Some("r.example/policies"))]
    #[case("r.example:443/policies/x", Some("r.example/policies"))]
    #[case("r.example:0443/policies/x", Some("r.example/policies"))]
    #[case("r.example:5000/policies/x", Some(""))]
    #[case("registry-1.docker.io/team/x", Some("docker.io/team"))]
    #[case("index.docker.io:443/team/x", Some("docker.io/team"))]
    #[case("[0:0::1]:443/x", Some("[::1]"))]
    fn the_longest_prefix_wins_up_to_a_slash(#[case] image: &str, #[case] prefix: Option<&str>) {
        let trust = parsed(
            "rules:\n- {prefix: 'R.example:443/policies/', keys: [a.pem]}\n- {prefix: r.example/policies/team, keys: [a.pem], \
             required: false}\n- {prefix: index.docker.io/team, keys: [a.pem]}\n- {prefix: '[::0:1]', keys: [a.pem]}\n\
             - {prefix: '', keys: [], required: false}\n",
        )
        .unwrap();
        let reference: Reference = image.parse().unwrap();
        assert_eq!(trust.rule(&reference).map(|rule| rule.prefix.as_str()), prefix);
        assert_eq!(Trust::default().rule(&reference), None);
    }

    /// `docker.io/p` names an image, or a team with images.
    #[rstest]
    #[case::the_image(&["docker.io/p"], "docker.io/p:1", Some("docker.io/p"))]
    #[case::the_image_written_out(&["index.docker.io/p"], "docker.io/library/p:1", Some("docker.io/p"))]
    #[case::the_teams(&["docker.io/p"], "docker.io/p/x:1", Some("docker.io/p"))]
    #[case::another_image(&["docker.io/p"], "docker.io/pp:1", None)]
    #[case::another_team(&["docker.io/p"], "docker.io/q/p:1", None)]
    #[case::another_registry(&["r.example/p"], "r.example/library/p:1", None)]
    #[case::longer_than_all_images(&["docker.io/library", "docker.io/p"], "docker.io/p:1", Some("docker.io/p"))]
    #[case::written_out(&["docker.io/library/p", "docker.io/p"], "docker.io/p:1", Some("docker.io/library/p"))]
    #[case::in_any_order(&["docker.io/p", "docker.io/library/p"], "docker.io/p:1", Some("docker.io/library/p"))]
    fn a_prefix_fits_an_image_of_docker_hub_by_both_names(
        #[case] prefixes: &[&str],
        #[case] image: &str,
        #[case] expected: Option<&str>,
    ) {
        let rules: Vec<String> =
            prefixes.iter().map(|prefix| format!("{{prefix: {prefix}, keys: [a.pem]}}")).collect();
        let trust = parsed(&format!("rules: [{}]", rules.join(", "))).unwrap();
        let rule = trust.rule(&image.parse().unwrap());
        assert_eq!(rule.map(|rule| rule.prefix.as_str()), expected);
    }

    #[test]
    fn a_rule_requires_signatures_unless_it_says_otherwise() {
        let trust = parsed("rules: [{prefix: r.example, keys: [a.pem]}]").unwrap();
        assert!(trust.rules[0].required);
    }

    #[rstest]
    #[case("", true)]
    #[case("others: accept\n", true)]
    #[case("others: refuse\n", false)]
    fn images_that_no_rule_is_for(#[case] others: &str, #[case] permits: bool) {
        let trust = parsed(&format!("{others}rules: [{{prefix: r.example/p, keys: [a.pem]}}]")).unwrap();
        let permitted = |image: &str| trust.permits(&image.parse().unwrap());
        assert_eq!(permitted("r.example/p/x"), Ok(()));
        let refusal = "no rule of trust.yaml is for r.example/q/x, and others are refused";
        let expected = if permits { Ok(()) } else { Err(refusal.to_owned()) };
        assert_eq!(permitted("r.example/q/x"), expected);
    }

    #[rstest]
    #[case("others: maybe\nrules: []", "maybe")]
    #[case("rules: [{prefix: r.example, keys: [b.pem]}]", "b.pem: gone")]
    #[case("rules: [{prefix: r.example, keys: [../a.pem]}]", "not the name of a file")]
    #[case("rules: [{prefix: r.example, keys: []}]", "names no key")]
    #[case(
        "rules: [{prefix: r.example, keys: [a.pem]}, {prefix: 'R.example:443/', keys: [a.pem]}]",
        "two rules"
    )]
    #[case("rules: [{prefix: r.example, keys: [a.pem], requierd: true}]", "requierd")]
    #[case("rules: [{prefix: r.example:x, keys: [a.pem]}]", "no registry host")]
    #[case("rules: [{prefix: 'https://r.example/p', keys: [a.pem]}]", "no registry host")]
    #[case("rules: [{prefix: 'r.example/p:1', keys: [a.pem]}]", "no repository")]
    #[case("rules: [{prefix: 'r.example/*', keys: [a.pem]}]", "no repository")]
    #[case("rules: [{prefix: policies, keys: [a.pem]}]", "begin with the registry's host")]
    #[case("[]", "trust.yaml")]
    fn rules_that_say_nothing_clear_are_refused(#[case] yaml: &str, #[case] expected: &str) {
        let error = parsed(yaml).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
