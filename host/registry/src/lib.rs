//! Policy modules as OCI artifacts: how they are named, packed, signed, fetched and kept (PO section 12).
//!
//! ```text
//! Client::pull ──┐
//!                ├─► Bundle (manifest, module, signatures) ──► accept(reference, bundle, trust) ─► Accepted | Refusal
//! BundleCache ───┘
//! Client::push ◄── package(module, Labels)       Client::add_signature ◄── sign(payload, SigningKey)
//! ```
//!
//! In: references, module bytes, keys. Out: modules whose bytes are what their manifest says and whose signatures the
//! rules of the Syncer's configuration accept. Callers: the Syncer and `kubeocean policy`. Invariants: what was fetched
//! and what a disk kept pass the same check, [`accept()`], which is pure; a password reaches only the registry it is for.
//! Only `client`, `transport`, `transfer`, `publish`, `cache` and `trust_folder` do I/O.

mod accept;
mod artifact;
mod cache;
mod challenge;
mod client;
mod component;
mod credentials;
mod digest;
mod error;
mod keys;
mod publish;
mod reference;
mod signature;
mod transfer;
mod transport;
mod trust;
mod trust_folder;

pub use accept::{Accepted, Bundle, Demands, Refusal, Signed, accept, signed};
pub use artifact::{Artifact, ArtifactError, Labels, Package, WASM_LAYER, package, parse_manifest};
pub use cache::BundleCache;
pub use client::{Client, ClientConfig, ConfigError, Progress};
pub use component::is_component;
pub use credentials::{CredentialError, Credentials, DockerConfig};
pub use digest::{Digest, DigestError};
pub use error::RegistryError;
pub use keys::{Algorithm, KeyError, SigningKey, VerifyingKey};
pub use publish::Pushed;
pub use reference::{Reference, ReferenceError};
pub use signature::{SignedPayload, payload, payload_matches};
pub use transfer::{Found, Signatures};
pub use trust::{Trust, TrustError, TrustRule};
pub use trust_folder::read_trust;
