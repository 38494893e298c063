//! Everything that comes from outside, at random and nearly right: references, manifests, signatures, keys, rules,
//! credentials, headers. Nothing may panic, and what is accepted must be what was asked for.
//!
//! `KUBEOCEAN_FUZZ_CASES` sets the number of cases of each target; the default takes a second.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::sync::Arc;

use kubeocean_registry::{
    Bundle, Demands, Digest, DockerConfig, Labels, Reference, SignedPayload, SigningKey, Trust, TrustRule,
    VerifyingKey, accept, package, parse_manifest, payload, payload_matches,
};
use proptest::{collection::vec, prelude::*, sample::Index};

fn config() -> ProptestConfig {
    let cases =
        std::env::var("KUBEOCEAN_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(512);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Changes one byte, cuts, or repeats a part.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<Index>(), 1_u8..).prop_map(|(at, by)| Damage::Flip(at, by)),
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ]
}

fn damaged(bytes: &[u8], all: &[Damage]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for damage in all {
        if bytes.is_empty() {
            break;
        }
        match damage {
            Damage::Flip(at, by) => {
                let at = at.index(bytes.len());
                bytes[at] ^= by;
            }
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
        }
    }
    bytes
}

const MODULE: &[u8] = b"\0asm\x0d\0\x01\0 and more";

fn key() -> SigningKey {
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINlwON+2Ds8ifAGNI4M9lIn5Ezi+AuEwW/PzM5KUV9Sn\n-----END PRIVATE KEY-----\n";
    SigningKey::from_pem(PEM.as_bytes()).unwrap()
}

fn signed() -> (Reference, Bundle, Trust) {
    let reference: Reference = "r.example:5000/policies/p:1".parse().unwrap();
    let manifest = package(MODULE, &Labels { title: "p".into(), ..Labels::default() }).manifest;
    let payload = payload(&reference, Digest::of(&manifest));
    let signature = key().sign(&payload).unwrap();
    let signatures = vec![SignedPayload { payload, signature }];
    let rule = TrustRule {
        prefix: "r.example:5000".into(),
        keys: vec![("k".into(), key().public())],
        required: true,
    };
    (
        reference,
        Bundle { manifest, module: Arc::from(MODULE), signatures, incomplete: None },
        Trust::new(vec![rule]),
    )
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_reference_is_refused_or_comes_back_as_it_is(text in "[a-zA-Z0-9./:@_\\-\\[\\] ]{0,80}|\\PC{0,60}") {
        if let Ok(reference) = text.parse::<Reference>() {
            let shown = reference.to_string();
            prop_assert_eq!(shown.parse::<Reference>(), Ok(reference.clone()));
            prop_assert!(!reference.repository().contains("..") && !reference.repository().contains(['?', '#', '%', ' ']));
            let url: http::Uri = format!("https://{}/v2/{}/manifests/x", reference.registry(), reference.repository()).parse().unwrap();
            prop_assert_eq!(url.authority().unwrap().as_str(), reference.registry());
        }
    }

    #[test]
    fn a_damaged_artifact_is_refused_or_is_the_signed_one(
        of_manifest in vec(damage(), 0..2),
        of_module in vec(damage(), 0..2),
        of_payload in vec(damage(), 0..2),
        of_signature in vec(damage(), 0..2),
        title in proptest::option::of("[a-z]{0,3}"),
    ) {
        let (reference, whole, trust) = signed();
        let labels = Labels { title: title.unwrap_or_else(|| "p".into()), ..Labels::default() };
        let manifest = package(MODULE, &labels).manifest;
        let demands = Demands { digest: None, max_bytes: 1 << 20 };
        let bundle = Bundle {
            manifest: damaged(&manifest, &of_manifest),
            module: damaged(&whole.module, &of_module).into(),
            signatures: vec![SignedPayload {
                payload: damaged(&whole.signatures[0].payload, &of_payload),
                signature: damaged(&whole.signatures[0].signature, &of_signature),
            }],
            incomplete: None,
        };
        let same = bundle == whole;
        prop_assert_eq!(accept(&reference, &bundle, &trust, demands).is_ok(), same);
        let bare = Bundle { signatures: Vec::new(), ..bundle };
        if let Ok(accepted) = accept(&reference, &bare, &Trust::default(), demands) {
            prop_assert_eq!(accepted.module_digest, Digest::of(&bare.module));
        }
    }

    #[test]
    fn no_text_is_too_odd(bytes in vec(any::<u8>(), 0..400), text in "\\PC{0,200}", json in "[\\[\\]{}\":,a-z0-9]{0,200}") {
        let (reference, whole, _) = signed();
        for bytes in [&bytes[..], text.as_bytes(), json.as_bytes()] {
            let _ = (parse_manifest(bytes), DockerConfig::parse(bytes), VerifyingKey::from_pem(bytes), SigningKey::from_pem(bytes));
            prop_assert!(!payload_matches(bytes, &reference, Digest::of(&whole.manifest)));
        }
        let _ = Trust::parse(&text, |_| Ok(bytes.clone()));
    }

    #[test]
    fn damaged_rules_keys_and_credentials_are_refused_or_read(all in vec(damage(), 1..4)) {
        let pem = key().public().to_pem();
        let _ = VerifyingKey::from_pem(&damaged(pem.as_bytes(), &all));
        let yaml = "rules:\n- prefix: r.example/policies\n  keys: [a.pem]\n  required: true\n";
        let _ = Trust::parse(&String::from_utf8_lossy(&damaged(yaml.as_bytes(), &all)), |_| Ok(pem.clone().into()));
        let docker = br#"{"auths": {"r.example": {"auth": "YTpi"}, "*.x.y/z": {"username": "u", "password": "p"}}}"#;
        if let Ok(config) = DockerConfig::parse(&damaged(docker, &all)) {
            let _ = config.of(&signed().0);
        }
        let _ = parse_manifest(&damaged(&signed().1.manifest, &all));
    }
}
