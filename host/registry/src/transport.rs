//! Connections to registries: TLS by rustls with the machine's authorities and one more, through a proxy where the
//! environment names one (`HTTPS_PROXY`, `NO_PROXY`).

use std::{pin::Pin, sync::Arc, task};

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::net::TcpStream;
use tower::{BoxError, Service};

use crate::client::ConfigError;

/// TCP, or a tunnel through a proxy.
#[derive(Clone)]
pub(crate) struct Connector {
    direct: HttpConnector,
    proxies: Arc<Matcher>,
}

/// TLS over [`Connector`]. Which addresses may be used without TLS is decided by the client, for each request.
pub(crate) fn connector(more_authorities: Option<&[u8]>) -> Result<HttpsConnector<Connector>, ConfigError> {
    let tls = tls(more_authorities)?;
    let mut direct = HttpConnector::new();
    direct.enforce_http(false);
    direct.set_nodelay(true);
    let connector = Connector { direct, proxies: Arc::new(Matcher::from_env()) };
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector))
}

fn tls(more_authorities: Option<&[u8]>) -> Result<ClientConfig, ConfigError> {
    let mut roots = RootCertStore::empty();
    let machine = rustls_native_certs::load_native_certs();
    for error in &machine.errors {
        tracing::debug!(%error, "certificate authorities of the machine");
    }
    roots.add_parsable_certificates(machine.certs);
    if let Some(pem) = more_authorities {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let certificates = certificates.map_err(|error| ConfigError::Authority(error.to_string()))?;
        if certificates.is_empty() {
            return Err(ConfigError::Authority("no PEM block CERTIFICATE".to_owned()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| ConfigError::Authority(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::Tls(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> task::Poll<Result<(), BoxError>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        // A host that is allowed without TLS is near by; a proxy could read what goes there.
        let through = if to.scheme_str() == Some("https") { self.proxies.intercept(&to) } else { None };
        let mut direct = self.direct.clone();
        let Some(through) = through else {
            return Box::pin(async move { direct.call(to).await.map_err(Into::into) });
        };
        if through.uri().scheme_str() != Some("http") {
            let text = format!("the proxy {} is not reached by http", through.uri());
            return Box::pin(async move { Err(text.into()) });
        }
        let mut tunnel = Tunnel::new(through.uri().clone(), direct);
        if let Some(credentials) = through.basic_auth() {
            tunnel = tunnel.with_auth(credentials.clone());
        }
        Box::pin(async move { tunnel.call(to).await.map_err(Into::into) })
    }
}
