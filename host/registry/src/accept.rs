//! Whether what came from a registry, or from a disk that kept it, may be loaded (PO-703, PO-1204).
//!
//! Pure. Steps in the order of PO-703, after the name: size, digest, signature, form. In: a name, everything a registry
//! said about it, and the rules. Out: the module, or the first reason against it.

use std::sync::Arc;

use crate::{
    artifact::{ArtifactError, parse_manifest},
    component::is_component,
    digest::Digest,
    keys::VerifyingKey,
    reference::Reference,
    signature::{SignedPayload, payload_matches},
    trust::Trust,
};

/// An artifact with all that speaks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The module's bytes.
    pub module: Arc<[u8]>,
    /// What is signed about the manifest, checked by nobody so far.
    pub signatures: Vec<SignedPayload>,
    /// Why there may be more signatures than these.
    pub incomplete: Option<String>,
}

/// A module that may be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its bytes.
    pub module: Arc<[u8]>,
    /// Their digest.
    pub module_digest: Digest,
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// Key file whose signature holds; `None` if no rule asks for one and none was found.
    pub signed_by: Option<String>,
    /// Name the manifest claims.
    pub title: Option<String>,
    /// Version the manifest claims.
    pub version: Option<String>,
}

/// Why a module may not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More bytes than allowed.
    #[error("{bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its bytes.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The bytes are not the ones that are wanted.
    #[error("the module is {got}")]
    OtherModule {
        /// Digest of the bytes.
        got: Digest,
    },
    /// No signature of a key that the rules name.
    #[error("{0}")]
    Signature(String),
    /// The same, of those that could be looked up.
    #[error("not all signatures could be looked up: {0}")]
    Incomplete(String),
    /// It is no policy.
    #[error("{0}")]
    NotAPolicy(String),
}

/// What a caller asks of a module beside the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// Digest the policy names.
    pub digest: Option<Digest>,
    /// Most bytes.
    pub max_bytes: u64,
}

/// See the module documentation.
pub fn accept(
    reference: &Reference,
    bundle: &Bundle,
    trust: &Trust,
    demands: Demands,
) -> Result<Accepted, Refusal> {
    trust.permits(reference).map_err(Refusal::Signature)?;
    let not_a_policy = |error: ArtifactError| Refusal::NotAPolicy(error.to_string());
    let artifact = parse_manifest(&bundle.manifest).map_err(not_a_policy)?;
    let (bytes, limit) = (bundle.module.len() as u64, demands.max_bytes);
    if bytes > limit {
        return Err(Refusal::TooLarge { bytes, limit });
    }
    let module_digest = Digest::of(&bundle.module);
    let other = module_digest != artifact.module_digest;
    if other || demands.digest.is_some_and(|wanted| wanted != module_digest) {
        return Err(Refusal::OtherModule { got: module_digest });
    }
    let manifest_digest = Digest::of(&bundle.manifest);
    if reference.digest().is_some_and(|wanted| wanted != manifest_digest) {
        return Err(Refusal::OtherModule { got: manifest_digest });
    }
    let signed_by = signed_by(reference, manifest_digest, &bundle.signatures, trust).map_err(|refusal| {
        // In an outage nobody says that the missing one is not there.
        bundle.incomplete.clone().map_or(refusal, Refusal::Incomplete)
    })?;
    if !is_component(&bundle.module) {
        return Err(Refusal::NotAPolicy("the layer is no WebAssembly component".to_owned()));
    }
    Ok(Accepted {
        module: Arc::clone(&bundle.module),
        module_digest,
        manifest_digest,
        signed_by,
        title: artifact.title,
        version: artifact.version,
    })
}

/// What is signed about an artifact, for whoever looks at it; [`accept`] says what may be loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signed {
    /// Signatures of this manifest in this repository, by whomever.
    pub matching: usize,
    /// Signatures beside it that are for something else.
    pub others: usize,
    /// Names of the keys by which one of the matching ones is made.
    pub by: Vec<String>,
}

/// Counts the signatures of an artifact, and says which of `keys` made one.
pub fn signed(reference: &Reference, bundle: &Bundle, keys: &[(String, VerifyingKey)]) -> Signed {
    let manifest = Digest::of(&bundle.manifest);
    let (matching, others): (Vec<_>, Vec<_>) =
        bundle.signatures.iter().partition(|signed| payload_matches(&signed.payload, reference, manifest));
    let made =
        |key: &VerifyingKey| matching.iter().any(|signed| key.verify(&signed.payload, &signed.signature));
    let by = keys.iter().filter(|(_, key)| made(key)).map(|(name, _)| name.clone()).collect();
    Signed { matching: matching.len(), others: others.len(), by }
}

fn signed_by(
    reference: &Reference,
    manifest: Digest,
    signatures: &[SignedPayload],
    trust: &Trust,
) -> Result<Option<String>, Refusal> {
    let Some(rule) = trust.rule(reference) else { return Ok(None) };
    let holds = |signed: &&SignedPayload| payload_matches(&signed.payload, reference, manifest);
    let by = |signed: &SignedPayload| {
        let signer = rule.keys.iter().find(|(_, key)| key.verify(&signed.payload, &signed.signature));
        signer.map(|(name, _)| name.clone())
    };
    if let Some(name) = signatures.iter().filter(holds).find_map(by) {
        return Ok(Some(name));
    }
    if !rule.required {
        return Ok(None);
    }
    let keys: Vec<&str> = rule.keys.iter().map(|(name, _)| name.as_str()).collect();
    let (keys, name) = (keys.join(", "), reference.name());
    Err(Refusal::Signature(match (signatures.len(), signatures.iter().filter(holds).count()) {
        (0, _) => format!("{name} ({manifest}) is not signed; a signature of {keys} is required"),
        (_, 0) => format!("the signatures of {name} are for another manifest or repository than {manifest}"),
        (_, found) => format!("none of {found} signatures of {name} ({manifest}) is by {keys}"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::{Labels, package},
        keys::{Algorithm, SigningKey},
        signature::payload,
        trust::TrustRule,
    };

    const MODULE: &[u8] = b"\0asm\x0d\0\x01\0";
    const LIMIT: Demands = Demands { digest: None, max_bytes: 100 };

    fn reference() -> Reference {
        "r.example/policies/p:1".parse().unwrap()
    }

    fn bundle(module: &[u8]) -> Bundle {
        let packed = package(module, &Labels { title: "p".into(), version: "1".into(), ..Labels::default() });
        Bundle {
            manifest: packed.manifest,
            module: Arc::from(module),
            signatures: Vec::new(),
            incomplete: None,
        }
    }

    fn signed(mut bundle: Bundle, key: &SigningKey, name: &Reference) -> Bundle {
        let payload = payload(name, Digest::of(&bundle.manifest));
        let signature = key.sign(&payload).unwrap();
        bundle.signatures.push(SignedPayload { payload, signature });
        bundle
    }

    fn trust(key: &SigningKey, required: bool) -> Trust {
        let keys = vec![("release.pem".to_owned(), key.public())];
        Trust::new(vec![TrustRule { prefix: "r.example/policies".into(), keys, required }])
    }

    fn key() -> SigningKey {
        SigningKey::generate(Algorithm::P256).unwrap().0
    }

    #[test]
    fn without_rules_a_module_of_the_right_digest_is_accepted() {
        let accepted = accept(&reference(), &bundle(MODULE), &Trust::default(), LIMIT).unwrap();
        assert_eq!((accepted.signed_by, accepted.title.as_deref()), (None, Some("p")));
        assert_eq!(accepted.module_digest, Digest::of(MODULE));
        let pinned = |digest| Demands { digest: Some(digest), ..LIMIT };
        let of = |demands| accept(&reference(), &bundle(MODULE), &Trust::default(), demands);
        assert!(of(pinned(Digest::of(MODULE))).is_ok());
        let got = Digest::of(MODULE);
        assert_eq!(of(pinned(Digest::of(b"x"))).unwrap_err(), Refusal::OtherModule { got });
        let small = Demands { max_bytes: 7, ..LIMIT };
        assert_eq!(of(small).unwrap_err(), Refusal::TooLarge { bytes: 8, limit: 7 });
    }

    #[test]
    fn nothing_is_accepted_from_where_no_rule_allows_it() {
        let trust = Trust::parse("{rules: [], others: refuse}", |_| Err(String::new())).unwrap();
        let refused = accept(&reference(), &bundle(MODULE), &trust, LIMIT).unwrap_err();
        assert!(matches!(refused, Refusal::Signature(_)), "{refused}");
    }

    #[test]
    fn bytes_that_are_not_the_manifests_are_refused() {
        let swapped = Bundle { module: Arc::from(&b"\0asm\x0d\0\x01\0\0\0"[..]), ..bundle(MODULE) };
        let refused = accept(&reference(), &swapped, &Trust::default(), LIMIT).unwrap_err();
        assert!(matches!(refused, Refusal::OtherModule { .. }));
        let by_digest = reference().with_digest(Digest::of(b"another manifest"));
        let refused = accept(&by_digest, &bundle(MODULE), &Trust::default(), LIMIT).unwrap_err();
        assert!(matches!(refused, Refusal::OtherModule { .. }));
    }

    #[test]
    fn a_core_module_is_no_policy_in_a_registry() {
        let refused = accept(&reference(), &bundle(b"\0asm\x01\0\0\0"), &Trust::default(), LIMIT);
        assert!(matches!(refused, Err(Refusal::NotAPolicy(_))));
    }

    #[test]
    fn a_signature_of_a_trusted_key_is_accepted_and_named() {
        let key = key();
        let good = signed(bundle(MODULE), &key, &reference());
        for required in [true, false] {
            let accepted = accept(&reference(), &good, &trust(&key, required), LIMIT).unwrap();
            assert_eq!(accepted.signed_by.as_deref(), Some("release.pem"));
        }
    }

    #[test]
    fn signatures_are_counted_and_named() {
        let (key, other, third) = (key(), key(), key());
        let both = signed(signed(bundle(MODULE), &other, &reference()), &key, &reference());
        let more = signed(both, &key, &"r.example/elsewhere:1".parse().unwrap());
        let keys = [("a", &key), ("b", &third), ("c", &other)];
        let keys = keys.map(|(name, key)| (name.to_owned(), key.public()));
        let of = |bundle: &Bundle, keys: &[(String, VerifyingKey)]| super::signed(&reference(), bundle, keys);
        let by = vec!["a".to_owned(), "c".to_owned()];
        assert_eq!(of(&more, &keys), Signed { matching: 2, others: 1, by });
        assert_eq!(of(&more, &[]), Signed { matching: 2, others: 1, by: Vec::new() });
        assert_eq!(of(&bundle(MODULE), &keys), Signed::default());
    }

    #[test]
    fn one_good_signature_among_bad_ones_is_enough() {
        let (key, other) = (key(), key());
        let both = signed(signed(bundle(MODULE), &other, &reference()), &key, &reference());
        assert!(accept(&reference(), &both, &trust(&key, true), LIMIT).is_ok());
    }

    #[test]
    fn where_a_signature_is_required_nothing_else_will_do() {
        let (key, other) = (key(), key());
        let elsewhere: Reference = "r.example/policies/q:1".parse().unwrap();
        let mut stale = signed(bundle(MODULE), &key, &reference());
        stale.manifest = package(MODULE, &Labels::default()).manifest;
        let mut altered = signed(bundle(MODULE), &key, &reference());
        altered.signatures[0].signature[10] ^= 1;
        for (bad, said) in [
            (bundle(MODULE), "is not signed"),
            (signed(bundle(MODULE), &other, &reference()), "is by release.pem"),
            (signed(bundle(MODULE), &key, &elsewhere), "another manifest or repository"),
            (stale, "another manifest or repository"),
            (altered, "is by release.pem"),
        ] {
            let refused = accept(&reference(), &bad, &trust(&key, true), LIMIT).unwrap_err();
            assert!(matches!(&refused, Refusal::Signature(text) if text.contains(said)), "{refused}: {said}");
            let optional = accept(&reference(), &bad, &trust(&key, false), LIMIT).unwrap();
            assert_eq!(optional.signed_by, None, "a bad signature counts as none: {said}");
        }
    }

    #[test]
    fn a_rule_for_another_place_asks_nothing_here() {
        let outside: Reference = "r.example/others/p:1".parse().unwrap();
        assert_eq!(accept(&outside, &bundle(MODULE), &trust(&key(), true), LIMIT).unwrap().signed_by, None);
    }
}
