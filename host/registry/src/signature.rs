//! Signatures as cosign writes them: a small JSON text that names a manifest, signed, in an artifact of its own.
//!
//! Pure. Such an artifact is found under the tag `sha256-<hex>.sig`, or as a referrer of the manifest (PO-1204).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    artifact::{Descriptor, MANIFEST, Manifest, canonical},
    digest::Digest,
    keys::VerifyingKey,
    reference::Reference,
};

/// Type of a layer that holds a signed text.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation of such a layer: the signature, base64.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Type of the artifact as a referrer.
pub(crate) const SIGNATURE_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// Type of the config of the artifact under the tag.
const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Value of `critical.type`.
const TYPE: &str = "cosign container image signature";
/// Signatures of one artifact that are looked at.
pub(crate) const MAX_SIGNATURES: usize = 32;
/// Largest signed text in bytes. Ours have 250.
pub(crate) const MAX_PAYLOAD_BYTES: u64 = 64 << 10;
/// Largest manifest of signatures in bytes. One signature of ours has 300, one of cosign with a certificate 8 KiB.
pub(crate) const MAX_SIGNATURE_MANIFEST_BYTES: u64 = 512 << 10;

/// A text and a signature over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPayload {
    /// The text.
    pub payload: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
}

/// The text to sign for a manifest under a name.
pub fn payload(reference: &Reference, manifest: Digest) -> Vec<u8> {
    canonical(&json!({
        "critical": {
            "identity": { "docker-reference": reference.name() },
            "image": { "docker-manifest-digest": manifest.to_string() },
            "type": TYPE,
        },
        "optional": null,
    }))
}

/// Whether a signed text speaks of this manifest in this repository. A signature that was copied from elsewhere does not.
pub fn payload_matches(payload: &[u8], reference: &Reference, manifest: Digest) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(payload) else { return false };
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let named = text("/critical/identity/docker-reference").and_then(|name| name.parse::<Reference>().ok());
    text("/critical/type") == Some(TYPE)
        && text("/critical/image/docker-manifest-digest") == Some(manifest.to_string().as_str())
        && named.is_some_and(|named| named.name() == reference.name())
}

/// Tag of the signatures of a manifest.
pub(crate) fn signature_tag(manifest: Digest) -> String {
    format!("sha256-{}.sig", manifest.hex())
}

/// Tag of the list of referrers, where a registry has no list of its own.
pub(crate) fn referrers_tag(manifest: Digest) -> String {
    format!("sha256-{}", manifest.hex())
}

/// A signed text that a manifest of signatures names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignatureLayer {
    pub(crate) payload: Digest,
    pub(crate) signature: Vec<u8>,
}

/// The signatures a manifest names. Layers that are none are left out.
pub(crate) fn signature_layers(manifest: &Manifest) -> Vec<SignatureLayer> {
    let layers = manifest.layers.iter().filter(|layer| layer.media_type == PAYLOAD);
    layers
        .filter_map(|layer| {
            let signature = STANDARD.decode(layer.annotations.get(SIGNATURE)?.trim()).ok()?;
            Some(SignatureLayer { payload: layer.digest.parse().ok()?, signature })
        })
        .take(MAX_SIGNATURES)
        .collect()
}

/// Whether readers of a manifest of signatures find one by this key over this text.
pub(crate) fn is_signed(known: &Manifest, payload: &[u8], key: &VerifyingKey) -> bool {
    let digest = Digest::of(payload);
    let mut layers = signature_layers(known).into_iter();
    layers.any(|layer| layer.payload == digest && key.verify(payload, &layer.signature))
}

/// Config and manifest of the artifact under the tag, with one signature more than `known` has. The new one comes first:
/// readers stop at [`MAX_SIGNATURES`]. What others wrote into the manifest stays.
pub(crate) fn with_signature(known: Option<Manifest>, signed: &SignedPayload) -> (Vec<u8>, Manifest) {
    let mut layer = Descriptor::of(PAYLOAD, &signed.payload);
    layer.annotations.insert(SIGNATURE.to_owned(), STANDARD.encode(&signed.signature));
    let (mut layers, artifact_type, subject, annotations) = match known {
        Some(known) => (known.layers, known.artifact_type, known.subject, known.annotations),
        None => Default::default(),
    };
    layers.insert(0, layer);
    let digests: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    let config = canonical(&json!({
        "architecture": "",
        "created": "0001-01-01T00:00:00Z",
        "os": "",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": digests },
    }));
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST.to_owned(),
        artifact_type,
        config: Descriptor::of(IMAGE_CONFIG, &config),
        layers,
        subject,
        annotations,
    };
    (config, manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Algorithm, SigningKey};
    use rstest::rstest;

    fn reference() -> Reference {
        "r.example:5000/policies/night-gpu:1.2.0".parse().unwrap()
    }

    /// Keys in the order of cosign, which a verifier must not depend on, but a reader of both will compare.
    #[test]
    fn the_text_is_cosigns() {
        let text = String::from_utf8(payload(&reference(), Digest::of(b""))).unwrap();
        assert_eq!(
            text,
            "{\"critical\":{\"identity\":{\"docker-reference\":\"r.example:5000/policies/night-gpu\"},\"image\":\
             {\"docker-manifest-digest\":\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"},\
             \"type\":\"cosign container image signature\"},\"optional\":null}"
        );
        assert!(payload_matches(text.as_bytes(), &reference(), Digest::of(b"")));
    }

    #[rstest]
    #[case::other_manifest("r.example:5000/policies/night-gpu", b"x", TYPE)]
    #[case::other_repository("r.example:5000/policies/day-gpu", b"", TYPE)]
    #[case::other_registry("r.example/policies/night-gpu", b"", TYPE)]
    #[case::deeper("r.example:5000/policies/night-gpu/x", b"", TYPE)]
    #[case::no_name("", b"", TYPE)]
    #[case::other_type("r.example:5000/policies/night-gpu", b"", "atomic container signature")]
    fn a_text_about_something_else(#[case] name: &str, #[case] manifest: &[u8], #[case] type_: &str) {
        let text = json!({"critical": {
            "identity": {"docker-reference": name},
            "image": {"docker-manifest-digest": Digest::of(manifest).to_string()},
            "type": type_,
        }});
        assert!(!payload_matches(text.to_string().as_bytes(), &reference(), Digest::of(b"")));
    }

    /// Newer versions of cosign write the tag or the digest behind the name.
    #[test]
    fn a_tag_behind_the_name_is_no_part_of_it() {
        for suffix in [":1.2.0".to_owned(), format!("@{}", Digest::of(b""))] {
            let mut text: Value = serde_json::from_slice(&payload(&reference(), Digest::of(b""))).unwrap();
            text["critical"]["identity"]["docker-reference"] = json!(reference().name() + &suffix);
            assert!(payload_matches(text.to_string().as_bytes(), &reference(), Digest::of(b"")), "{suffix}");
        }
    }

    fn signed(text: &str) -> SignedPayload {
        SignedPayload { payload: text.into(), signature: text.as_bytes().to_vec() }
    }

    /// Whoever reads only so many reads the newest.
    #[test]
    fn a_signature_is_put_before_those_that_are_there() {
        let (_, one) = with_signature(None, &signed("a"));
        let (_, two) = with_signature(Some(one), &signed("b"));
        let of = |text: &[u8]| SignatureLayer { payload: Digest::of(text), signature: text.to_vec() };
        assert_eq!(signature_layers(&two), [of(b"b"), of(b"a")]);
    }

    #[test]
    fn what_others_wrote_into_the_manifest_stays() {
        let (_, mut theirs) = with_signature(None, &signed("a"));
        theirs.artifact_type = Some(SIGNATURE_ARTIFACT.to_owned());
        theirs.subject = Some(Descriptor::of(MANIFEST, b"subject"));
        theirs.annotations.insert("owner".into(), "release team".into());
        theirs.layers[0].annotations.insert("dev.sigstore.cosign/bundle".into(), "{}".into());
        let (config, both) = with_signature(Some(theirs.clone()), &signed("b"));
        assert_eq!(both.config, Descriptor::of(IMAGE_CONFIG, &config));
        assert_eq!(both.layers[1], theirs.layers[0]);
        let (layers, config) = (both.layers.clone(), both.config.clone());
        assert_eq!(both, Manifest { config, layers, ..theirs });
    }

    #[rstest]
    #[case::random_signatures(Algorithm::P256)]
    #[case::the_same_each_time(Algorithm::Ed25519)]
    fn a_key_that_has_signed_a_text_need_not_sign_it_again(#[case] algorithm: Algorithm) {
        let new_key = || SigningKey::generate(algorithm).unwrap().0;
        let (key, other) = (new_key(), new_key());
        let by = |key: &SigningKey| {
            let payload = b"text".to_vec();
            SignedPayload { signature: key.sign(&payload).unwrap(), payload }
        };
        let (_, manifest) = with_signature(None, &by(&other));
        assert!(!is_signed(&manifest, b"text", &key.public()));
        let (_, mut manifest) = with_signature(Some(manifest), &by(&key));
        assert!(is_signed(&manifest, b"text", &key.public()));
        assert!(!is_signed(&manifest, b"another text", &key.public()));
        // What nobody looks at any more does not count.
        let others = manifest.layers[1].clone();
        manifest.layers.splice(0..0, vec![others; MAX_SIGNATURES]);
        assert!(!is_signed(&manifest, b"text", &key.public()));
    }

    #[test]
    fn what_is_no_signature_is_left_out() {
        let (_, mut manifest) = with_signature(None, &SignedPayload { payload: vec![1], signature: vec![2] });
        let good = manifest.layers[0].clone();
        let mut broken = good.clone();
        broken.annotations.insert(SIGNATURE.into(), "%".into());
        let other = Descriptor { media_type: "text/plain".into(), ..good.clone() };
        let bare = Descriptor { annotations: std::collections::BTreeMap::new(), ..good.clone() };
        manifest.layers = [vec![broken, other, bare], vec![good; 2 * MAX_SIGNATURES]].concat();
        assert_eq!(signature_layers(&manifest).len(), MAX_SIGNATURES);
    }
}
