//! Reads from a registry: manifests, modules, signatures. Every body has a limit that holds while it is read.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderMap, Method, StatusCode,
    header::{ACCEPT, LINK},
};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Bytes, Incoming};
use serde::Deserialize;
use sha2::Digest as _;

use crate::{
    accept::{Bundle, Demands},
    artifact::{Artifact, Descriptor, INDEX, MAX_MANIFEST_BYTES, Manifest, parse_manifest},
    client::{Ask, Client, Progress, Session, chain},
    credentials::Credentials,
    digest::Digest,
    error::RegistryError,
    reference::Reference,
    signature::{
        MAX_PAYLOAD_BYTES, MAX_SIGNATURE_MANIFEST_BYTES, MAX_SIGNATURES, SIGNATURE_ARTIFACT, SignedPayload,
        referrers_tag, signature_layers, signature_tag,
    },
};

/// Longest silence within a body.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest time of one pull: a registry that sends a byte now and then is as good as none.
const WHOLE: Duration = Duration::from_mins(10);
/// Pages of one list of referrers that are read.
const MAX_PAGES: usize = 16;
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
            let (signatures, incomplete) = match signatures {
                Signatures::Fetch => {
                    let known = known.filter(|known| known.manifest == manifest);
                    let known = known.map(|known| known.signatures.as_slice()).unwrap_or_default();
                    session.signatures(digest, known).await?
                }
                Signatures::Skip => (Vec::new(), None),
            };
            Ok(Bundle { manifest, module, signatures, incomplete })
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
        let found = self.session(reference, credentials).signatures(manifest, &[]).await;
        found.map(|(signatures, _)| signatures)
    }
}

impl Session<'_> {
    async fn find(&mut self) -> Result<Found, RegistryError> {
        let manifest = self.manifest(&self.reference.selector(), MAX_MANIFEST_BYTES).await?;
        let digest = Digest::of(&manifest);
        if self.reference.digest().is_some_and(|wanted| wanted != digest) {
            return Err(RegistryError::Corrupt { what: self.what(), got: digest });
        }
        let artifact = parse_manifest(&manifest)
            .map_err(|error| RegistryError::NotAPolicy { what: self.what(), message: error.to_string() })?;
        Ok(Found { manifest, digest, artifact })
    }

    async fn manifest(&mut self, selector: &str, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let ask =
            Ask::new(Method::GET, self.url(&format!("manifests/{selector}"))?).header(ACCEPT, MANIFESTS);
        let response = self.ask(ask).await?;
        if response.status() != StatusCode::OK {
            return Err(self.failure(response).await);
        }
        read_all(&self.what(), response.into_body(), limit).await
    }

    /// A manifest that may not be there.
    pub(crate) async fn manifest_if_there(
        &mut self,
        selector: &str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        match self.manifest(selector, limit).await {
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

    /// Under the tag of signatures, and of all referrers, each read as it comes. What is missing or malformed is left out.
    /// Why anything else cannot be read is the failure if nothing is found: it must not look like a missing signature. If
    /// something is found, it is told beside that, and `known` stands in for the rest, which was signed about the same
    /// manifest before.
    async fn signatures(
        &mut self,
        manifest: Digest,
        known: &[SignedPayload],
    ) -> Result<(Vec<SignedPayload>, Option<String>), RegistryError> {
        let mut finds = Finds::default();
        self.signatures_of(&signature_tag(manifest), &mut finds).await?;
        if !finds.are_enough() {
            let mut referrers = Vec::new();
            if let Err(error) = self.referrers(manifest, &mut referrers).await {
                finds.are_incomplete(error);
            }
            for referrer in referrers {
                if finds.are_enough() {
                    break;
                }
                self.signatures_of(&referrer.to_string(), &mut finds).await?;
            }
        }
        let Finds { mut signatures, failure } = finds;
        let mut incomplete = None;
        match failure {
            Some(failure) if signatures.is_empty() => return Err(failure),
            Some(failure) => {
                incomplete = Some(failure.to_string());
                tracing::warn!(error = %failure, "not all signatures of a policy module could be looked up");
                let more: Vec<_> =
                    known.iter().filter(|known| !signatures.contains(known)).cloned().collect();
                signatures.extend(more);
                signatures.truncate(MAX_SIGNATURES);
            }
            None => {}
        }
        Ok((signatures, incomplete))
    }

    /// The signatures that the manifest under a tag or digest names. That one of them cannot be had because of an outage
    /// is a failure whatever else there is.
    async fn signatures_of(&mut self, selector: &str, finds: &mut Finds) -> Result<(), RegistryError> {
        let manifest = match self.manifest_if_there(selector, MAX_SIGNATURE_MANIFEST_BYTES).await {
            Ok(Some(bytes)) => serde_json::from_slice::<Manifest>(&bytes).ok(),
            Ok(None) => None,
            Err(RegistryError::TooLarge { limit_bytes, .. }) => {
                let message =
                    format!("the manifest of signatures {selector} has more than {limit_bytes} bytes");
                finds.are_incomplete(self.answer(message));
                None
            }
            Err(error) => {
                finds.lack(error)?;
                None
            }
        };
        for layer in manifest.as_ref().map(signature_layers).unwrap_or_default() {
            if finds.are_enough() {
                break;
            }
            match self.blob(layer.payload, MAX_PAYLOAD_BYTES, None).await {
                Ok(payload) => finds.signatures.push(SignedPayload { payload, signature: layer.signature }),
                Err(
                    error @ (RegistryError::NotFound { .. }
                    | RegistryError::Corrupt { .. }
                    | RegistryError::TooLarge { .. }),
                ) => tracing::debug!(%error, "a signature that is none"),
                Err(error) => finds.lack(error)?,
            }
        }
        Ok(())
    }

    /// Adds the digests of signature artifacts that refer to a manifest: by the registry's list, page by page, or by the
    /// tag that stands for it. What was listed before a failure stays.
    async fn referrers(&mut self, manifest: Digest, found: &mut Vec<Digest>) -> Result<(), RegistryError> {
        let mut url = self.url(&format!("referrers/{manifest}"))?;
        for page in 0..MAX_PAGES {
            let response = self.ask(Ask::new(Method::GET, url.clone()).header(ACCEPT, INDEX)).await?;
            let (status, next) = (response.status(), next_page(response.headers()));
            let listed = match status {
                StatusCode::OK => {
                    let bytes = read_all(&self.what(), response.into_body(), MAX_MANIFEST_BYTES).await?;
                    signature_artifacts(&bytes)
                }
                status if lists_no_referrers(status) => None,
                _ => return Err(self.failure(response).await),
            };
            match listed {
                Some(digests) => found.extend(digests),
                None if page == 0 => {
                    let index = self.manifest_if_there(&referrers_tag(manifest), MAX_MANIFEST_BYTES).await?;
                    found.extend(index.and_then(|bytes| signature_artifacts(&bytes)).unwrap_or_default());
                    return Ok(());
                }
                None => return Err(self.answer("the list of referrers breaks off")),
            }
            found.truncate(MAX_SIGNATURES);
            let Some(next) = next.filter(|_| found.len() < MAX_SIGNATURES) else { return Ok(()) };
            url = self.resolve(&url, &next)?;
            if !self.is_registry(&url) {
                return Err(self.answer(format!("the list of referrers goes on elsewhere, at {url}")));
            }
        }
        Err(self.answer(format!("the list of referrers has more than {MAX_PAGES} pages")))
    }
}

/// Signatures that were found, and the first reason why there may be more.
#[derive(Default)]
struct Finds {
    signatures: Vec<SignedPayload>,
    failure: Option<RegistryError>,
}

impl Finds {
    /// Nobody looks at more.
    fn are_enough(&self) -> bool {
        self.signatures.len() >= MAX_SIGNATURES
    }

    fn are_incomplete(&mut self, error: RegistryError) {
        if self.failure.is_none() {
            self.failure = Some(error);
        }
    }

    /// Something that must be there cannot be read. An outage ends the search.
    fn lack(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if matches!(error, RegistryError::Unreachable { .. }) {
            return Err(error);
        }
        self.are_incomplete(error);
        Ok(())
    }
}

/// Whether an answer to the question for referrers says that the registry keeps no list of them, in one of the many ways
/// of registries. Who asks, how often, and whether there was time say nothing about it.
fn lists_no_referrers(status: StatusCode) -> bool {
    let about_the_asking = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    status == StatusCode::NOT_IMPLEMENTED || (status.is_client_error() && !about_the_asking.contains(&status))
}

/// Digests of the signature artifacts in an image index; `None` if it is none.
fn signature_artifacts(bytes: &[u8]) -> Option<Vec<Digest>> {
    let Index { manifests } = serde_json::from_slice::<Index>(bytes).ok()?;
    let listed = manifests.into_iter().filter_map(|of| serde_json::from_value::<Descriptor>(of).ok());
    let signatures = listed.filter(|of| of.artifact_type.as_deref() == Some(SIGNATURE_ARTIFACT));
    Some(signatures.filter_map(|of| of.digest.parse().ok()).take(MAX_SIGNATURES).collect())
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<serde_json::Value>,
}

/// Where a list goes on: `Link: </v2/p/referrers/sha256:...?page=2>; rel="next"` (RFC 8288).
fn next_page(headers: &HeaderMap) -> Option<String> {
    let mut links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    links.find_map(next_of).map(str::to_owned)
}

fn next_of(links: &str) -> Option<&str> {
    let mut rest = links;
    while let Some((_, tail)) = rest.split_once('<') {
        let (address, tail) = tail.split_once('>')?;
        let (parameters, others) = tail.split_at(tail.find('<').unwrap_or(tail.len()));
        let is_next = parameters.split([';', ',']).filter_map(|parameter| parameter.split_once('=')).any(
            |(name, value)| {
                let mut relations = value.trim().trim_matches('"').split(' ');
                name.trim().eq_ignore_ascii_case("rel")
                    && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
            },
        );
        if is_next {
            return Some(address);
        }
        rest = others;
    }
    None
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
