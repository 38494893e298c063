//! Connections to the worker's API server that belong to one request each (PX-711, PX-818, PX-1304).
//!
//! A followed log or a tunnel holds its connection for hours. It must not wait behind another, must not be kept for
//! reuse, and must be closed at the moment its caller goes away, also when the worker has nothing to say. So these
//! requests do not share the pool of the ordinary client.

use std::{io, sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, Uri, header::HOST, uri::PathAndQuery};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kube::client::{Body, ConfigExt};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};

use crate::keep_alive::tune;

/// Limit of connecting, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// Most bytes read ahead of the caller.
const READ_AHEAD: usize = 16 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Closes the connection of a response when the last clone is dropped. Among the response's extensions.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionGuard {
    _guard: Arc<DropGuard>,
}

/// Opens one connection a request, with the credentials of a kubeconfig.
#[derive(Clone)]
pub(crate) struct Dialer {
    service: BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dialer")
    }
}

impl Dialer {
    /// A dialer for the cluster of `config`.
    pub(crate) fn new(config: &kube::Config) -> Result<Self, BoxError> {
        let target = Arc::new(Target::of(config)?);
        let send = tower::service_fn(move |request| send(Arc::clone(&target), request));
        // kube's own layers know every kind of credential a kubeconfig can hold.
        let service = config.extra_headers_layer()?.layer(send);
        let service = match config.auth_layer()? {
            Some(layer) => {
                let service = layer.layer(service).map_err(BoxError::from);
                BoxCloneSyncService::new(config.base_uri_layer().layer(service))
            }
            None => BoxCloneSyncService::new(config.base_uri_layer().layer(service)),
        };
        Ok(Self { service })
    }

    /// Sends a request whose target is a path, over a connection of its own. Dropping the future or the
    /// [`ConnectionGuard`] of the response closes it, unless it was upgraded.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let mut service = self.service.clone();
        service.ready().await?.call(request).await
    }
}

/// Where the API server is and how to speak to it.
struct Target {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Target {
    fn of(config: &kube::Config) -> Result<Self, BoxError> {
        let url = &config.cluster_url;
        let host = url.host().ok_or("the server's URL has no host")?.trim_matches(['[', ']']).to_owned();
        let secure = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        if config.proxy_url.is_some() {
            return Err("proxy-url is not supported for streams".into());
        }
        let tls = if secure {
            // No ALPN: an upgrade exists in HTTP/1.1 only.
            let mut tls = config.rustls_client_config()?;
            tls.alpn_protocols.clear();
            let name = config.tls_server_name.clone().unwrap_or_else(|| host.clone());
            Some((TlsConnector::from(Arc::new(tls)), ServerName::try_from(name)?))
        } else {
            None
        };
        Ok(Self { host, port, tls })
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tune(&tcp)?;
        Ok(tcp)
    }
}

async fn send(target: Arc<Target>, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
    let connecting = async {
        let tcp = target.connect().await?;
        io::Result::Ok(match &target.tls {
            Some((tls, name)) => Either::Tls(Box::new(tls.connect(name.clone(), tcp).await?)),
            None => Either::Plain(tcp),
        })
    };
    let too_slow = |_| io::Error::new(io::ErrorKind::TimedOut, "no connection within 10 s");
    match tokio::time::timeout(CONNECT, connecting).await.map_err(too_slow)?? {
        Either::Tls(stream) => exchange(*stream, request).await,
        Either::Plain(stream) => exchange(stream, request).await,
    }
}

enum Either {
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    Plain(TcpStream),
}

async fn exchange<S>(stream: S, mut request: Request<Body>) -> Result<Response<Incoming>, BoxError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    to_origin_form(&mut request)?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(READ_AHEAD)
        .handshake(TokioIo::new(stream))
        .await?;
    let closing = CancellationToken::new();
    let guard = closing.clone().drop_guard();
    tokio::spawn(async move {
        tokio::select! {
            // An error reaches whoever reads the response; after an upgrade this ends at once.
            _ = connection.with_upgrades() => {}
            () = closing.cancelled() => {}
        }
    });
    let mut response = sender.send_request(request).await?;
    response.extensions_mut().insert(ConnectionGuard { _guard: Arc::new(guard) });
    Ok(response)
}

/// kube's layers make absolute targets; a server wants a path and a `Host`.
fn to_origin_form(request: &mut Request<Body>) -> Result<(), BoxError> {
    let uri = request.uri();
    let host = uri.authority().map(|authority| authority.as_str().to_owned());
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if let Some(host) = host {
        request.headers_mut().insert(HOST, HeaderValue::from_str(&host)?);
    }
    *request.uri_mut() = Uri::from(path);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_by_path() {
        let mut request =
            Request::get("https://10.0.0.1:6443/api/v1/pods?a=b%20c").body(Body::empty()).unwrap();
        to_origin_form(&mut request).unwrap();
        assert_eq!(request.uri(), "/api/v1/pods?a=b%20c");
        assert_eq!(request.headers()[HOST], "10.0.0.1:6443");
    }

    #[test]
    fn where_to_dial() {
        let of = |url: &str| {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let target = Target::of(&kube::Config::new(url.parse().unwrap())).unwrap();
            (target.host, target.port, target.tls.is_some())
        };
        assert_eq!(of("https://api.example"), ("api.example".to_owned(), 443, true));
        assert_eq!(of("http://127.0.0.1:8080"), ("127.0.0.1".to_owned(), 8080, false));
        assert_eq!(of("https://[fd00::1]:6443"), ("fd00::1".to_owned(), 6443, true));
    }
}
