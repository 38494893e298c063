//! What `push` and `sign` share: a signature of a manifest, beside it in the registry.

use std::path::Path;

use anyhow::Context;
use kubeocean_registry::{Digest, Reference, SignedPayload, SigningKey, payload};

use crate::{
    failure::{Failure, OrFailure},
    registry::Connection,
};

/// A private key in a file.
pub(super) fn read_key(path: &Path) -> Result<SigningKey, Failure> {
    let cannot = || format!("cannot use the key {}", path.display());
    let pem = std::fs::read(path).with_context(cannot).or_unusable()?;
    SigningKey::from_pem(&pem).with_context(cannot).or_unusable()
}

/// Signs a manifest and puts the signature beside it, unless one by this key is there.
pub(super) async fn sign(
    connection: &Connection,
    image: &Reference,
    manifest: Digest,
    key: &SigningKey,
) -> Result<(), Failure> {
    let payload = payload(image, manifest);
    let signature = key.sign(&payload).context("cannot sign").or_unusable()?;
    let signed = SignedPayload { payload, signature };
    let (client, credentials) = (&connection.client, connection.credentials.as_ref());
    let added = client.add_signature(image, credentials, manifest, &signed, &key.public()).await;
    added.map_err(|error| connection.failure(&error))
}
