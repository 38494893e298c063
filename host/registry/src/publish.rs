//! Writes to a registry: a module with its manifest, and signatures beside it.

use http::{
    HeaderValue, Method, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};
use hyper::body::Bytes;

use crate::{
    artifact::{MANIFEST, Package, canonical},
    client::{Ask, Client, Progress, Session},
    credentials::Credentials,
    digest::Digest,
    error::RegistryError,
    reference::Reference,
    signature::{SignedPayload, signature_tag, with_signature},
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

    /// Adds a signature to those of a manifest. Two that add one at the same moment may lose one: the tag has no lock.
    pub async fn add_signature(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        manifest: Digest,
        signed: &SignedPayload,
    ) -> Result<(), RegistryError> {
        let mut session = self.session(reference, credentials);
        let tag = signature_tag(manifest);
        let known = session.manifest_if_there(&tag).await?;
        let known = known.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let (config, manifest) = with_signature(known, signed);
        session.put_blob(Bytes::from(config), None).await?;
        session.put_blob(Bytes::from(signed.payload.clone()), None).await?;
        session.put_manifest(&tag, &canonical(&manifest)).await
    }
}

impl Session<'_> {
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
        let url = self.resolve(
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
