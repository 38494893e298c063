//! Calls to a server whose certificate is known by its SHA-256.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use http::{Request, Response, Uri};
use hyper_util::{
    client::legacy::{Builder, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{Config, client::ConfigExt};
use kubeocean_api::place::Endpoint;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest, Sha256};
use tower::{BoxError, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};

use super::PROVIDER;
use crate::error::chain;

/// A connection nobody used for so long is closed.
const IDLE: Duration = Duration::from_secs(90);

/// A call that got no answer.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    /// Our credentials cannot be used, or the request is none.
    #[error("the call cannot be made: {0}")]
    Unusable(String),
    /// The server cannot be reached, or is another one.
    #[error("no answer from {0}: {1}")]
    Silent(String, String),
}

/// See the module documentation. Clones share their connections.
#[derive(Clone)]
pub struct PinnedClient {
    server: String,
    service: BoxCloneSyncService<Request<Body>, Response<hyper::body::Incoming>, BoxError>,
}

impl std::fmt::Debug for PinnedClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinnedClient").field("server", &self.server).finish_non_exhaustive()
    }
}

impl PinnedClient {
    /// A client of one server, without a connection yet. It shows the token of `ours`; `None`: requests say who asks.
    pub fn new(server: &Endpoint, ours: Option<&Config>) -> Result<Self, PinnedError> {
        let unusable = |error: &dyn std::fmt::Display| PinnedError::Unusable(error.to_string());
        let tls = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned(server.sha256)))
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(tcp);
        let http = Builder::new(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build::<_, Body>(connector);
        let authorization =
            ours.map(ConfigExt::auth_layer).transpose().map_err(|error| unusable(&error))?.flatten();
        let service = ServiceBuilder::new().option_layer(authorization).map_err(BoxError::from).service(http);
        Ok(Self { server: format!("https://{}", server.address), service: BoxCloneSyncService::new(service) })
    }

    /// Sends a request; its URI is a path, maybe with a query.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, PinnedError> {
        let uri: Result<Uri, _> = format!("{}{}", self.server, request.uri()).parse();
        *request.uri_mut() = uri.map_err(|error| PinnedError::Unusable(error.to_string()))?;
        let answer = self.service.clone().oneshot(request).await;
        let answer =
            answer.map_err(|error| PinnedError::Silent(self.server.clone(), chain(error.as_ref())))?;
        Ok(answer.map(Body::new))
    }
}

/// Believes one certificate, whoever signed it and whatever names it has.
#[derive(Debug)]
struct Pinned([u8; 32]);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if Sha256::digest(shown)[..] == self.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use axum::{Router, http::HeaderMap, routing::get};
    use kube::config::AuthInfo;
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::tls::{SelfSigned, serve};

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn the_pinned_server_gets_our_token_and_another_one_nothing() {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (own, other) = (SelfSigned::new(LOOPBACK).unwrap(), SelfSigned::new(LOOPBACK).unwrap());
        let told = |headers: HeaderMap| async move {
            headers.get("authorization").map_or("nobody".to_owned(), |it| it.to_str().unwrap().to_owned())
        };
        let router = Router::new().route("/who", get(told));
        let (tls, cancel) = (Arc::new(own.server_config().unwrap()), CancellationToken::new());
        let serving = tokio::spawn(serve(listener, tls, router, "the test", cancel.clone()));

        let mut ours = Config::new("https://elsewhere.test".parse().unwrap());
        ours.auth_info = AuthInfo { token: Some("secret".to_owned().into()), ..AuthInfo::default() };
        let ask = async |sha256| {
            let client = PinnedClient::new(&Endpoint { address, sha256 }, Some(&ours)).unwrap();
            let answer = client.send(Request::get("/who?x=1").body(Body::empty()).unwrap()).await?;
            let body = axum::body::to_bytes(answer.into_body(), 1024).await.unwrap();
            Ok::<_, PinnedError>(String::from_utf8(body.to_vec()).unwrap())
        };
        assert_eq!(ask(own.sha256()).await.unwrap(), "Bearer secret");
        let refused = ask(other.sha256()).await.unwrap_err();
        assert!(matches!(refused, PinnedError::Silent(..)), "{refused}");
        cancel.cancel();
        serving.await.unwrap();
    }
}
