//! Signatures that refer to a manifest instead of having a tag of their own, on a real registry.

use http::HeaderValue;
use kubeocean_harness::registry::{PASSWORD, Registry, Tls, USER};

use super::*;
use crate::{
    artifact::{INDEX, Labels, canonical, package},
    client::ClientConfig,
    signature::with_signature,
};

/// What a client writes for a registry that lists no referrers: an index under the tag that stands for the list.
#[tokio::test]
async fn a_signature_that_refers_to_a_manifest_is_found() {
    let Some(registry) = Registry::start(Tls::On).await else { return };
    let authorities = Some(std::fs::read(registry.authority()).unwrap());
    let client = Client::new(&ClientConfig { authorities, ..ClientConfig::default() }).unwrap();
    let credentials = Credentials { username: USER.into(), password: PASSWORD.into() };
    let image: Reference = format!("{}/policies/p:1", registry.host()).parse().unwrap();
    let packed = package(b"\0asm\x0d\0\x01\0", &Labels::default());
    let module = Bytes::from_static(b"\0asm\x0d\0\x01\0");
    client.push(&image, Some(&credentials), module, &packed, None).await.unwrap();

    let signed = SignedPayload { payload: b"payload".to_vec(), signature: b"signature".to_vec() };
    let (config, mut manifest) = with_signature(None, &signed);
    manifest.subject = Some(Descriptor::of(crate::artifact::MANIFEST, &packed.manifest));
    let manifest = canonical(&manifest);
    let mut session = client.session(&image, Some(&credentials));
    session.put_blob(config.into(), None).await.unwrap();
    session.put_blob(signed.payload.clone().into(), None).await.unwrap();
    let digest = Digest::of(&manifest);
    session.put_manifest(&digest.to_string(), &manifest).await.unwrap();
    let mut referrer = Descriptor::of(crate::artifact::MANIFEST, &manifest);
    referrer.artifact_type = Some(SIGNATURE_ARTIFACT.to_owned());
    let other = Descriptor { artifact_type: Some("application/spdx+json".into()), ..referrer.clone() };
    let index = canonical(&serde_json::json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [other, referrer],
    }));
    let url = session.url(&format!("manifests/{}", referrers_tag(packed.manifest_digest))).unwrap();
    let mut ask = Ask { body: index.into(), ..Ask::new(Method::PUT, url) };
    ask.headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(INDEX));
    assert_eq!(session.ask(ask).await.unwrap().status(), StatusCode::CREATED);

    let found = client.signatures(&image, Some(&credentials), packed.manifest_digest).await.unwrap();
    assert_eq!(found, [signed]);
}
