//! Reads from a registry: manifests, modules, signatures. Every body has a limit that holds while it is read.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode, header::ACCEPT};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Bytes, Incoming};
use serde::Deserialize;
use sha2::Digest as _;

use crate::{
    accept::{Bundle, Demands},
    artifact::{Artifact, Descriptor, MAX_MANIFEST_BYTES, Manifest, parse_manifest},
    client::{Ask, Client, Progress, Session, chain},
    credentials::Credentials,
    digest::Digest,
    error::RegistryError,
    reference::Reference,
    signature::{
        MAX_PAYLOAD_BYTES, MAX_SIGNATURES, SIGNATURE_ARTIFACT, SignedPayload, referrers_tag,
        signature_layers, signature_tag,
    },
};

/// Longest silence within a body.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest time of one pull: a registry that sends a byte now and then is as good as none.
const WHOLE: Duration = Duration::from_mins(10);
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";

/// Whether signatures are of interest to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signatures {
    /// They are fetched; that they cannot be is a failure.
    Fetch,
    /// Nobody will look at them.
    Skip,
}

/// A manifest as the registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its bytes.
    pub manifest: Vec<u8>,
    /// Its digest.
    pub digest: Digest,
    /// What it says.
    pub artifact: Artifact,
}

impl Client {
    /// Reads the manifest of an artifact.
    pub async fn find(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Found, RegistryError> {
        let mut session = self.session(reference, credentials);
        session.find().await
    }

    /// Reads an artifact with everything that [`crate::accept()`] looks at. A module that `known` holds, that is too large
    /// or that is not the wanted one is not transferred.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        demands: Demands,
        signatures: Signatures,
        known: Option<&Bundle>,
        progress: Option<Progress>,
    ) -> Result<Bundle, RegistryError> {
        let pull = async {
            let mut session = self.session(reference, credentials);
            let Found { manifest, digest, artifact } = session.find().await?;
            let (what, limit) = (reference.to_string(), demands.max_bytes);
            if artifact.module_bytes > limit {
                return Err(RegistryError::TooLarge { what, limit_bytes: limit });
            }
            if demands.digest.is_some_and(|wanted| wanted != artifact.module_digest) {
                return Err(RegistryError::OtherModule { what, got: artifact.module_digest });
            }
            let same = known.filter(|known| Digest::of(&known.module) == artifact.module_digest);
            let module = match same {
                Some(known) => Arc::clone(&known.module),
                None => session.blob(artifact.module_digest, limit, progress).await?.into(),
            };
            let signatures = match signatures {
                Signatures::Fetch => session.signatures(digest).await?,
                Signatures::Skip => Vec::new(),
            };
            Ok(Bundle { manifest, module, signatures })
        };
        let late = || RegistryError::Unreachable {
            what: reference.to_string(),
            message: format!("not transferred within {} s", WHOLE.as_secs()),
        };
        tokio::time::timeout(WHOLE, pull).await.unwrap_or_else(|_| Err(late()))
    }

    /// Reads what is signed about a manifest.
    pub async fn signatures(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        manifest: Digest,
    ) -> Result<Vec<SignedPayload>, RegistryError> {
        self.session(reference, credentials).signatures(manifest).await
    }
}

impl Session<'_> {
    async fn find(&mut self) -> Result<Found, RegistryError> {
        let manifest = self.manifest(&self.reference.selector()).await?;
        let digest = Digest::of(&manifest);
        if self.reference.digest().is_some_and(|wanted| wanted != digest) {
            return Err(RegistryError::Corrupt { what: self.what(), got: digest });
        }
        let artifact = parse_manifest(&manifest)
            .map_err(|error| RegistryError::NotAPolicy { what: self.what(), message: error.to_string() })?;
        Ok(Found { manifest, digest, artifact })
    }

    pub(crate) async fn manifest(&mut self, selector: &str) -> Result<Vec<u8>, RegistryError> {
        let ask =
            Ask::new(Method::GET, self.url(&format!("manifests/{selector}"))?).header(ACCEPT, MANIFESTS);
        let response = self.ask(ask).await?;
        if response.status() != StatusCode::OK {
            return Err(self.failure(response).await);
        }
        read_all(&self.what(), response.into_body(), MAX_MANIFEST_BYTES).await
    }

    /// A manifest that may not be there.
    pub(crate) async fn manifest_if_there(
        &mut self,
        selector: &str,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        match self.manifest(selector).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A blob whose content has this digest.
    async fn blob(
        &mut self,
        digest: Digest,
        limit: u64,
        progress: Option<Progress>,
    ) -> Result<Vec<u8>, RegistryError> {
        let response = self.ask(Ask::new(Method::GET, self.url(&format!("blobs/{digest}"))?)).await?;
        if response.status() != StatusCode::OK {
            return Err(self.failure(response).await);
        }
        let mut hash = sha2::Sha256::new();
        let mut bytes = Vec::new();
        let total = response.body().size_hint().exact().unwrap_or(0);
        let what = self.what();
        read(&what, response.into_body(), limit, |chunk| {
            hash.update(chunk);
            bytes.extend_from_slice(chunk);
            if let Some(progress) = &progress {
                progress(bytes.len() as u64, total);
            }
        })
        .await?;
        let got = Digest::from_hash(hash);
        if got == digest { Ok(bytes) } else { Err(RegistryError::Corrupt { what, got }) }
    }

    /// Under the tag of signatures, and of all referrers. What is malformed is left out; what cannot be read is a
    /// failure, or else an outage would look like a missing signature.
    async fn signatures(&mut self, manifest: Digest) -> Result<Vec<SignedPayload>, RegistryError> {
        let mut manifests = Vec::new();
        manifests.extend(self.manifest_if_there(&signature_tag(manifest)).await?);
        for referrer in self.referrers(manifest).await? {
            manifests.extend(self.manifest_if_there(&referrer.to_string()).await?);
        }
        let mut found = Vec::new();
        for bytes in manifests {
            let Ok(parsed) = serde_json::from_slice::<Manifest>(&bytes) else { continue };
            for layer in signature_layers(&parsed) {
                if found.len() >= MAX_SIGNATURES {
                    return Ok(found);
                }
                match self.blob(layer.payload, MAX_PAYLOAD_BYTES, None).await {
                    Ok(payload) => found.push(SignedPayload { payload, signature: layer.signature }),
                    Err(error @ (RegistryError::Unreachable { .. } | RegistryError::Insecure { .. })) => {
                        return Err(error);
                    }
                    Err(error) => tracing::debug!(%error, "a signature that cannot be read"),
                }
            }
        }
        Ok(found)
    }

    /// Digests of signature artifacts that refer to a manifest: by the registry's list, or the tag that stands for it.
    async fn referrers(&mut self, manifest: Digest) -> Result<Vec<Digest>, RegistryError> {
        let url = self.url(&format!("referrers/{manifest}"))?;
        let response = self.ask(Ask::new(Method::GET, url)).await?;
        let index = match response.status() {
            StatusCode::OK => Some(read_all(&self.what(), response.into_body(), MAX_MANIFEST_BYTES).await?),
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => {
                self.manifest_if_there(&referrers_tag(manifest)).await?
            }
            _ => return Err(self.failure(response).await),
        };
        let Some(Index { manifests }) = index.and_then(|bytes| serde_json::from_slice(&bytes).ok()) else {
            return Ok(Vec::new());
        };
        let signatures =
            manifests.into_iter().filter(|of| of.artifact_type.as_deref() == Some(SIGNATURE_ARTIFACT));
        Ok(signatures.filter_map(|of| of.digest.parse().ok()).take(MAX_SIGNATURES).collect())
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// A whole small body.
pub(crate) async fn read_all(what: &str, body: Incoming, limit: u64) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    read(what, body, limit, |chunk| bytes.extend_from_slice(chunk)).await?;
    Ok(bytes)
}

/// Hands a body over in chunks, and stops at the limit.
async fn read(
    what: &str,
    mut body: Incoming,
    limit: u64,
    mut take: impl FnMut(&Bytes),
) -> Result<(), RegistryError> {
    let too_large = || RegistryError::TooLarge { what: what.to_owned(), limit_bytes: limit };
    let unreachable = |message: String| RegistryError::Unreachable { what: what.to_owned(), message };
    if body.size_hint().lower() > limit {
        return Err(too_large());
    }
    let mut left = limit;
    loop {
        let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(unreachable(chain(&error))),
            Err(_) => {
                return Err(unreachable(format!("the transfer stood still for {} s", SILENCE.as_secs())));
            }
        };
        if let Ok(chunk) = frame.into_data() {
            left = left.checked_sub(chunk.len() as u64).ok_or_else(too_large)?;
            take(&chunk);
        }
    }
}

#[cfg(test)]
mod tests;
