//! Keys that sign modules: ECDSA over P-256 and Ed25519, as PEM (PO-1204).
//!
//! Pure but for the random numbers of a new key and of an ECDSA signature.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair, UnparsedPublicKey,
    },
};
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject};

/// SubjectPublicKeyInfo of an uncompressed point on P-256, up to the point.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const P256_POINT_BYTES: usize = 65;
/// SubjectPublicKeyInfo of an Ed25519 key, up to the key.
const ED25519_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const ED25519_KEY_BYTES: usize = 32;

#[cfg(test)]
mod openssl;

/// Which signatures a key makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA over P-256 with SHA-256, what cosign makes.
    P256,
    /// Ed25519.
    Ed25519,
}

/// Why a text is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No PEM block `PUBLIC KEY`.
    #[error("no PEM block PUBLIC KEY")]
    NoPublicKey,
    /// A public key of another kind.
    #[error("only keys of ECDSA P-256 and Ed25519 are known")]
    OtherAlgorithm,
    /// The private key is encrypted.
    #[error("the private key is encrypted; give a PEM block PRIVATE KEY, or sign with the tool that made it")]
    Encrypted,
    /// No PEM block `PRIVATE KEY` that can be used.
    #[error("no PEM block PRIVATE KEY (PKCS #8) of ECDSA P-256 or Ed25519")]
    NoPrivateKey,
    /// The operating system gives no random numbers.
    #[error("no random numbers")]
    Random,
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl VerifyingKey {
    /// From a PEM block `PUBLIC KEY`.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| KeyError::NoPublicKey)?;
        let (algorithm, bytes) = if let Some(point) = der.strip_prefix(&P256_PREFIX) {
            // 4 is an uncompressed point.
            let is_point = point.len() == P256_POINT_BYTES && point.first() == Some(&4);
            (Algorithm::P256, is_point.then_some(point))
        } else {
            let key = der.strip_prefix(&ED25519_PREFIX);
            (Algorithm::Ed25519, key.filter(|key| key.len() == ED25519_KEY_BYTES))
        };
        let bytes = bytes.ok_or(KeyError::OtherAlgorithm)?.to_vec();
        Ok(Self { algorithm, bytes })
    }

    /// As a PEM block.
    pub fn to_pem(&self) -> String {
        let prefix: &[u8] = match self.algorithm {
            Algorithm::P256 => &P256_PREFIX,
            Algorithm::Ed25519 => &ED25519_PREFIX,
        };
        pem("PUBLIC KEY", &[prefix, &self.bytes].concat())
    }

    /// Whether the signature is this key's over these bytes.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match self.algorithm {
            Algorithm::P256 => UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.bytes)
                .verify(message, signature)
                .is_ok(),
            Algorithm::Ed25519 => {
                UnparsedPublicKey::new(&ED25519, &self.bytes).verify(message, signature).is_ok()
            }
        }
    }
}

/// A private key.
pub struct SigningKey(Pair);

enum Pair {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public()).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new key, and its PEM block `PRIVATE KEY`.
    pub fn generate(algorithm: Algorithm) -> Result<(Self, String), KeyError> {
        let random = SystemRandom::new();
        let document = match algorithm {
            Algorithm::P256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random),
            Algorithm::Ed25519 => Ed25519KeyPair::generate_pkcs8(&random),
        }
        .map_err(|_| KeyError::Random)?;
        let pem = pem("PRIVATE KEY", document.as_ref());
        Ok((Self::from_pem(pem.as_bytes())?, pem))
    }

    /// From a PEM block `PRIVATE KEY`, which is PKCS #8.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let Ok(der) = PrivatePkcs8KeyDer::from_pem_slice(pem) else {
            let encrypted = String::from_utf8_lossy(pem).contains("ENCRYPTED");
            return Err(if encrypted { KeyError::Encrypted } else { KeyError::NoPrivateKey });
        };
        let der = der.secret_pkcs8_der();
        let random = SystemRandom::new();
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &random) {
            return Ok(Self(Pair::P256(pair)));
        }
        // Other tools leave the public half out.
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map(|pair| Self(Pair::Ed25519(pair)))
            .map_err(|_| KeyError::NoPrivateKey)
    }

    /// The public half.
    pub fn public(&self) -> VerifyingKey {
        let (algorithm, bytes) = match &self.0 {
            Pair::P256(pair) => (Algorithm::P256, pair.public_key().as_ref()),
            Pair::Ed25519(pair) => (Algorithm::Ed25519, pair.public_key().as_ref()),
        };
        VerifyingKey { algorithm, bytes: bytes.to_vec() }
    }

    /// Signs these bytes.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.0 {
            Pair::P256(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message).map_err(|_| KeyError::Random)?;
                Ok(signature.as_ref().to_vec())
            }
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut lines = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        lines.push_str(line);
        lines.push('\n');
        rest = tail;
    }
    lines + "-----END " + label + "-----\n"
}

#[cfg(test)]
mod tests {
    use super::{openssl::*, *};
    use rstest::rstest;

    /// Made by `openssl ecparam -name prime256v1 -genkey`, `openssl pkcs8 -topk8`, `openssl ec -pubout` and
    /// `openssl dgst -sha256 -sign` over the text `kubeocean`.
    const OPENSSL_P256: [&str; 3] = [P256_PRIVATE, P256_PUBLIC, P256_SIGNATURE];
    /// Made by `openssl genpkey -algorithm ed25519` and `openssl pkeyutl -sign -rawin` over the same.
    const OPENSSL_ED25519: [&str; 3] = [ED25519_PRIVATE, ED25519_PUBLIC, ED25519_SIGNATURE];

    #[rstest]
    #[case(Algorithm::P256)]
    #[case(Algorithm::Ed25519)]
    fn a_new_key_signs_for_its_public_half_only(#[case] algorithm: Algorithm) {
        let (key, pem) = SigningKey::generate(algorithm).unwrap();
        let public = VerifyingKey::from_pem(key.public().to_pem().as_bytes()).unwrap();
        assert_eq!(public, SigningKey::from_pem(pem.as_bytes()).unwrap().public());
        let signature = key.sign(b"message").unwrap();
        assert!(public.verify(b"message", &signature));
        assert!(!public.verify(b"massage", &signature));
        let (other, _) = SigningKey::generate(algorithm).unwrap();
        assert!(!other.public().verify(b"message", &signature));
    }

    #[rstest]
    #[case::p256(OPENSSL_P256)]
    #[case::ed25519(OPENSSL_ED25519)]
    fn keys_and_signatures_of_openssl_are_understood(#[case] made: [&str; 3]) {
        let [private, public, signature] = made;
        let public = VerifyingKey::from_pem(public.as_bytes()).unwrap();
        assert!(public.verify(b"kubeocean", &STANDARD.decode(signature).unwrap()));
        assert_eq!(SigningKey::from_pem(private.as_bytes()).unwrap().public(), public);
    }

    #[test]
    fn other_texts_are_no_keys() {
        assert_eq!(VerifyingKey::from_pem(b"").unwrap_err(), KeyError::NoPublicKey);
        assert_eq!(VerifyingKey::from_pem(P256_PRIVATE.as_bytes()).unwrap_err(), KeyError::NoPublicKey);
        let short = pem("PUBLIC KEY", &P256_PREFIX);
        assert_eq!(VerifyingKey::from_pem(short.as_bytes()).unwrap_err(), KeyError::OtherAlgorithm);
        let encrypted = pem("ENCRYPTED SIGSTORE PRIVATE KEY", b"x");
        assert_eq!(SigningKey::from_pem(encrypted.as_bytes()).unwrap_err(), KeyError::Encrypted);
        assert_eq!(SigningKey::from_pem(P256_PUBLIC.as_bytes()).unwrap_err(), KeyError::NoPrivateKey);
    }
}
