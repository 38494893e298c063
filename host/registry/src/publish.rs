//! Writes to a registry: a module with its manifest, and signatures beside it.

use http::{
    HeaderValue, Method, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};
use hyper::body::Bytes;

use crate::{
    artifact::{MANIFEST, Manifest, Package, canonical},
    client::{Ask, Client, Progress, Session},
    credentials::Credentials,
    digest::Digest,
    error::RegistryError,
    keys::VerifyingKey,
    reference::Reference,
    signature::{
        MAX_SIGNATURE_MANIFEST_BYTES, MAX_SIGNATURES, SignedPayload, is_signed, signature_layers,
        signature_tag, with_signature,
    },
};

/// What was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// The registry had the module's bytes already.
    pub module_was_there: bool,
}

impl Client {
    /// Pushes a module with its package under a tag. The manifest comes last: a tag never names something incomplete.
    pub async fn push(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        module: Bytes,
        package: &Package,
        progress: Option<Progress>,
    ) -> Result<Pushed, RegistryError> {
        let mut session = self.session(reference, credentials);
        session.put_blob(Bytes::from(package.config.clone()), None).await?;
        let module_was_there = session.put_blob(module, progress).await?;
        session.put_manifest(&reference.selector(), &package.manifest).await?;
        Ok(Pushed { manifest_digest: package.manifest_digest, module_was_there })
    }

    /// Adds a signature by `key` to those of a manifest, unless `key` has signed the same text already. Nothing is taken
    /// away: where there is no room, or something unknown, it is an error. Two that add one at the same moment may lose
    /// one: the tag has no lock.
    pub async fn add_signature(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        manifest: Digest,
        signed: &SignedPayload,
        key: &VerifyingKey,
    ) -> Result<(), RegistryError> {
        let mut session = self.session(reference, credentials);
        let tag = signature_tag(manifest);
        let known = session.known_signatures(&tag).await?;
        if known.as_ref().is_some_and(|known| is_signed(known, &signed.payload, key)) {
            return Ok(());
        }
        let full = known.as_ref().is_some_and(|known| signature_layers(known).len() >= MAX_SIGNATURES);
        let (config, manifest) = with_signature(known, signed);
        let manifest = canonical(&manifest);
        if full || manifest.len() as u64 > MAX_SIGNATURE_MANIFEST_BYTES {
            return Err(session.answer(format!(
                "the tag {tag} has no room for one more signature: {MAX_SIGNATURES} signatures and \
                 {MAX_SIGNATURE_MANIFEST_BYTES} bytes of its manifest are looked at; delete the tag to begin anew"
            )));
        }
        session.put_blob(Bytes::from(config), None).await?;
        session.put_blob(Bytes::from(signed.payload.clone()), None).await?;
        session.put_manifest(&tag, &manifest).await
    }
}

impl Session<'_> {
    /// The manifest of signatures under a tag. One that cannot be read may hold signatures of others.
    async fn known_signatures(&mut self, tag: &str) -> Result<Option<Manifest>, RegistryError> {
        let bytes = self.manifest_if_there(tag, MAX_SIGNATURE_MANIFEST_BYTES).await?;
        let unreadable = |error: serde_json::Error| {
            self.answer(format!(
                "what is under the tag {tag} is no manifest of signatures ({error}), so none can be added; \
                 delete the tag to begin anew"
            ))
        };
        bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose().map_err(unreadable)
    }

    /// Makes sure of a blob; whether it was there.
    pub(crate) async fn put_blob(
        &mut self,
        bytes: Bytes,
        progress: Option<Progress>,
    ) -> Result<bool, RegistryError> {
        let digest = Digest::of(&bytes);
        let asked = self.ask(Ask::new(Method::HEAD, self.url(&format!("blobs/{digest}"))?)).await?;
        match asked.status() {
            StatusCode::OK => return Ok(true),
            StatusCode::NOT_FOUND => {}
            _ => return Err(self.failure(asked).await),
        }
        let begin = self.url("blobs/uploads/")?;
        let begun = self.ask(Ask::new(Method::POST, begin.clone())).await?;
        if begun.status() != StatusCode::ACCEPTED {
            return Err(self.failure(begun).await);
        }
        let location = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| self.answer("the registry names no place for an upload"))?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = self.upload_address(
            &begin,
            &format!("{location}{separator}digest={}", digest.to_string().replace(':', "%3A")),
        )?;
        let ask = Ask { body: bytes, progress, ..Ask::new(Method::PUT, url) };
        let done = self.ask(ask.header(CONTENT_TYPE, "application/octet-stream")).await?;
        if done.status() == StatusCode::CREATED { Ok(false) } else { Err(self.failure(done).await) }
    }

    pub(crate) async fn put_manifest(&mut self, selector: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        let url = self.url(&format!("manifests/{selector}"))?;
        let mut ask = Ask { body: Bytes::copy_from_slice(bytes), ..Ask::new(Method::PUT, url) };
        ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static(MANIFEST));
        let done = self.ask(ask).await?;
        if done.status() == StatusCode::CREATED { Ok(()) } else { Err(self.failure(done).await) }
    }
}
