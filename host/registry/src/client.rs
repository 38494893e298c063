//! Requests to one registry: where they may go, with which credentials, and how long they may take (PO-1203).
//!
//! A password is sent to the registry's host, and to the token service which that host itself names, both over TLS.
//! Redirects are followed without it. Nothing goes over plain HTTP but to hosts that were named for it.

use std::{collections::BTreeSet, convert::Infallible, fmt, sync::Arc, time::Duration};

use futures::StreamExt;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION, USER_AGENT, WWW_AUTHENTICATE},
};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;

use crate::{
    challenge::{self, Challenge},
    credentials::Credentials,
    error::RegistryError,
    reference::Reference,
    transfer::read_all,
    transport::{Connector, connector},
};

/// Longest wait for the head of an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// The same for a request that carries a module.
const UPLOAD: Duration = Duration::from_mins(5);
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// Largest answer of a token service.
const MAX_TOKEN_BYTES: u64 = 256 << 10;
/// Largest error answer that is read.
const MAX_ERROR_BYTES: u64 = 16 << 10;
/// Bytes of a module that are handed to the connection at a time.
const UPLOAD_CHUNK_BYTES: usize = 64 << 10;

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Is told how many bytes of how many were transferred.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Settings of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientConfig {
    /// Hosts, with port, that are talked to over plain HTTP (`--insecure-registry`).
    pub insecure_hosts: Vec<String>,
    /// Certificate authorities beside the machine's, PEM.
    pub authorities: Option<Vec<u8>>,
}

/// Why no client can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A certificate authority that is none.
    #[error("certificate authority of registries: {0}")]
    Authority(String),
    /// TLS cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
}

/// A client of registries. Cheap to clone, connections are shared.
#[derive(Clone)]
pub struct Client {
    http: hyper_util::client::legacy::Client<HttpsConnector<Connector>, Body>,
    insecure: Arc<BTreeSet<String>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("insecure", &self.insecure).finish_non_exhaustive()
    }
}

impl Client {
    /// Reads the machine's certificate authorities and the environment's proxies.
    pub fn new(config: &ClientConfig) -> Result<Self, ConfigError> {
        let connector = connector(config.authorities.as_deref())?;
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        let insecure = config.insecure_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Ok(Self { http, insecure: Arc::new(insecure) })
    }

    pub(crate) fn session<'c>(
        &'c self,
        reference: &'c Reference,
        credentials: Option<&'c Credentials>,
    ) -> Session<'c> {
        Session { client: self, reference, credentials, authorization: None }
    }

    fn is_insecure(&self, host: &str) -> bool {
        self.insecure.contains(&host.to_ascii_lowercase())
    }

    async fn send(
        &self,
        what: &str,
        request: Request<Body>,
        limit: Duration,
    ) -> Result<Response<Incoming>, RegistryError> {
        let failed = |message: String| RegistryError::Unreachable { what: what.to_owned(), message };
        let host = authority(request.uri());
        match tokio::time::timeout(limit, self.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if is_not_tls(&error) => Err(failed(format!(
                "{host} does not speak TLS; for development --insecure-registry {host} talks to it without"
            ))),
            Ok(Err(error)) => Err(failed(chain(&error))),
            Err(_) => Err(failed(format!("no answer within {} s", limit.as_secs()))),
        }
    }
}

/// An I/O error does not count what it wraps as its source.
fn cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a (dyn std::error::Error + 'static)> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// What came when TLS was to begin is something else.
fn is_not_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| cause(*error));
    causes.any(|cause| {
        let tls = cause.downcast_ref::<rustls::Error>();
        matches!(tls, Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)))
    })
}

/// One message of an error and its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// One request, without what the session adds.
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) url: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) progress: Option<Progress>,
}

impl Ask {
    pub(crate) fn new(method: Method, url: Uri) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Bytes::new(), progress: None }
    }

    pub(crate) fn header(mut self, name: http::HeaderName, value: &'static str) -> Self {
        self.headers.insert(name, HeaderValue::from_static(value));
        self
    }
}

/// Requests about one artifact, with the authorization that was found for it.
pub(crate) struct Session<'c> {
    client: &'c Client,
    pub(crate) reference: &'c Reference,
    credentials: Option<&'c Credentials>,
    authorization: Option<HeaderValue>,
}

impl Session<'_> {
    /// `<scheme>://<host>/v2/<repository>/<rest>`.
    pub(crate) fn url(&self, rest: &str) -> Result<Uri, RegistryError> {
        let host = self.reference.api_host();
        let scheme = if self.client.is_insecure(host) { "http" } else { "https" };
        let text = format!("{scheme}://{host}/v2/{}/{rest}", self.reference.repository());
        self.parse(&text)
    }

    /// An address a registry gave, which may be one of its own paths.
    pub(crate) fn resolve(&self, base: &Uri, location: &str) -> Result<Uri, RegistryError> {
        if !location.starts_with('/') || location.starts_with("//") {
            return self.parse(location);
        }
        let (scheme, host) = (base.scheme_str().unwrap_or("https"), authority(base));
        self.parse(&format!("{scheme}://{host}{location}"))
    }

    /// Where an upload goes on, by the registry's answer: with TLS anywhere, without it only where it began. What is sent
    /// there are bytes; credentials stay with the registry.
    pub(crate) fn upload_address(&self, begun: &Uri, location: &str) -> Result<Uri, RegistryError> {
        let url = self.resolve(begun, location)?;
        self.check(&url, Some(begun))?;
        if url.scheme_str() != Some("https") && !self.is_registry(&url) {
            return Err(self.without_tls(&url));
        }
        Ok(url)
    }

    fn parse(&self, text: &str) -> Result<Uri, RegistryError> {
        let message = || format!("{text:?} is no address");
        let url: Uri = text.parse().map_err(|_| self.answer(message()))?;
        if url.scheme().is_none() || url.authority().is_none_or(|host| host.as_str().contains('@')) {
            return Err(self.answer(message()));
        }
        Ok(url)
    }

    pub(crate) fn what(&self) -> String {
        self.reference.to_string()
    }

    pub(crate) fn answer(&self, message: impl Into<String>) -> RegistryError {
        RegistryError::Answer { what: self.what(), message: message.into() }
    }

    /// TLS, or a host that was named for plain HTTP. From TLS there is no way back to plain HTTP.
    fn check(&self, url: &Uri, before: Option<&Uri>) -> Result<(), RegistryError> {
        let secure = url.scheme_str() == Some("https");
        let allowed = url.scheme_str() == Some("http")
            && self.client.is_insecure(&authority(url))
            && before.is_none_or(|before| before.scheme_str() == Some("http"));
        if secure || allowed { Ok(()) } else { Err(self.without_tls(url)) }
    }

    fn without_tls(&self, url: &Uri) -> RegistryError {
        let (scheme, host) = (url.scheme_str().unwrap_or_default(), authority(url));
        let message = format!("refused to go to {scheme}://{host} without TLS");
        RegistryError::Insecure { what: self.what(), message }
    }

    /// The registry itself, to which credentials may go.
    pub(crate) fn is_registry(&self, url: &Uri) -> bool {
        self.url("").is_ok_and(|registry| place(&registry) == place(url))
    }

    /// What to do about it is known to whoever reads the credentials.
    fn none_known(&self) -> String {
        format!("no credentials are known for {}", self.reference.registry())
    }

    /// Sends a request; authenticates once when asked to, follows redirects of reads. Any status but 401 and a redirect
    /// is the caller's matter.
    pub(crate) async fn ask(&mut self, ask: Ask) -> Result<Response<Incoming>, RegistryError> {
        let reads = matches!(ask.method, Method::GET | Method::HEAD);
        let mut url = ask.url.clone();
        let mut before: Option<Uri> = None;
        let (mut redirects, mut authenticated) = (0, false);
        loop {
            self.check(&url, before.as_ref())?;
            let response = self.once(&ask, &url).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && self.is_registry(&url) && !authenticated {
                authenticated = true;
                self.authorize(response).await?;
            } else if reads && status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                redirects += 1;
                if redirects > MAX_REDIRECTS {
                    return Err(self.answer(format!("more than {MAX_REDIRECTS} redirects")));
                }
                let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let location = location.ok_or_else(|| self.answer("a redirect to nowhere"))?;
                let next = self.resolve(&url, location)?;
                before = Some(std::mem::replace(&mut url, next));
            } else {
                return Ok(response);
            }
        }
    }

    async fn once(&self, ask: &Ask, url: &Uri) -> Result<Response<Incoming>, RegistryError> {
        let mut request = Request::new(body(&ask.body, ask.progress.clone()));
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = url.clone();
        *request.headers_mut() = ask.headers.clone();
        let agent = concat!("kubeocean/", env!("CARGO_PKG_VERSION"));
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(agent));
        if !matches!(ask.method, Method::GET | Method::HEAD) {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(ask.body.len()));
        }
        if let Some(authorization) = self.authorization.as_ref().filter(|_| self.is_registry(url)) {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let limit = if ask.body.is_empty() { ANSWER } else { UPLOAD };
        self.client.send(&self.what(), request, limit).await
    }

    /// Meets the challenge of an answer 401.
    async fn authorize(&mut self, response: Response<Incoming>) -> Result<(), RegistryError> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = headers.iter().find_map(|value| challenge::parse(value.to_str().ok()?));
        let forbidden = |message: String| RegistryError::Forbidden { what: self.what(), message };
        let value = match (challenge, self.credentials) {
            (None, _) => {
                return Err(forbidden("the registry wants an unknown kind of credentials".to_owned()));
            }
            (Some(Challenge::Basic), None) => {
                return Err(forbidden(format!("the registry wants credentials, and {}", self.none_known())));
            }
            (Some(Challenge::Basic), Some(credentials)) => credentials.basic(),
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                let token = self.token(&realm, service.as_deref(), scope.as_deref()).await?;
                format!("Bearer {token}")
            }
        };
        let mut value =
            HeaderValue::try_from(value).map_err(|_| forbidden("no usable credentials".to_owned()))?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(())
    }

    /// A token of the service the registry names. The service's host may be another: the registry could as well ask for
    /// the password itself, so naming it gives away no more.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String, RegistryError> {
        let url = self.parse(&token_address(realm, service, scope))?;
        let registry = self.url("")?;
        self.check(&url, Some(&registry))?;
        let mut request = Request::new(body(&Bytes::new(), None));
        *request.uri_mut() = url;
        if let Some(credentials) = self.credentials {
            let value = HeaderValue::try_from(credentials.basic());
            let mut value = value.map_err(|_| self.answer("the credentials are no header"))?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let response = self.client.send(&self.what(), request, ANSWER).await?;
        if !response.status().is_success() {
            return Err(self.failure(response).await);
        }
        let bytes = read_all(&self.what(), response.into_body(), MAX_TOKEN_BYTES).await?;
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|_| self.answer("the token service gave no token"))?;
        let token = [token.token, token.access_token].into_iter().flatten().find(|token| !token.is_empty());
        token.ok_or_else(|| self.answer("the token service gave no token"))
    }

    /// What an answer that is no success means.
    pub(crate) async fn failure(&self, response: Response<Incoming>) -> RegistryError {
        let status = response.status();
        let said = read_all(&self.what(), response.into_body(), MAX_ERROR_BYTES).await.unwrap_or_default();
        let said = match serde_json::from_slice::<Errors>(&said) {
            Ok(errors) => errors.errors.into_iter().map(|error| error.text()).collect::<Vec<_>>().join("; "),
            Err(_) => String::new(),
        };
        let message = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { what: self.what() },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.credentials.is_none() => {
                let message = format!("{message}; {}", self.none_known());
                RegistryError::Forbidden { what: self.what(), message }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RegistryError::Forbidden { what: self.what(), message }
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                RegistryError::Unreachable { what: self.what(), message }
            }
            _ => self.answer(message),
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl OneError {
    /// One short line: the text comes from outside.
    fn text(&self) -> String {
        let text = format!("{} {}", self.code, self.message);
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
    }
}

/// The token service's address with what is asked of it.
fn token_address(realm: &str, service: Option<&str>, scope: Option<&str>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (key, value) in [("service", service), ("scope", scope)] {
        if let Some(value) = value {
            query.append_pair(key, value);
        }
    }
    let separator = if realm.contains('?') { '&' } else { '?' };
    format!("{realm}{separator}{}", query.finish())
}

/// Host and port.
fn authority(url: &Uri) -> String {
    url.authority().map(ToString::to_string).unwrap_or_default()
}

/// The same in one spelling: in lower case, and without the port that is meant when none is written.
fn place(url: &Uri) -> String {
    let usual = match url.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    };
    let host = url.host().unwrap_or_default().to_ascii_lowercase();
    match url.port_u16().filter(|port| Some(*port) != usual) {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

/// A body in chunks, each told before it is handed over.
fn body(bytes: &Bytes, progress: Option<Progress>) -> Body {
    let (total, bytes) = (bytes.len(), bytes.clone());
    let starts = (0..total).step_by(UPLOAD_CHUNK_BYTES);
    let frames = futures::stream::iter(starts).map(move |start| {
        let end = (start + UPLOAD_CHUNK_BYTES).min(total);
        if let Some(progress) = &progress {
            progress(end as u64, total as u64);
        }
        Ok::<_, Infallible>(Frame::data(bytes.slice(start..end)))
    });
    StreamBody::new(frames).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Of a client that may talk to hosts under `.test` without TLS.
    fn with_session<T>(image: &str, look: impl FnOnce(&Session<'_>) -> T) -> T {
        let insecure_hosts = ["r.test", "r.test:80", "r.test:5000", "other.test"].map(str::to_owned).to_vec();
        let client = Client::new(&ClientConfig { insecure_hosts, authorities: None }).unwrap();
        look(&client.session(&image.parse().unwrap(), None))
    }

    #[rstest]
    #[case::as_written("r.example/p", "https://r.example/v2/", true)]
    #[case::usual_port("r.example/p", "https://r.example:443/v2/", true)]
    #[case::other_case("r.example/p", "https://R.Example:443/v2/", true)]
    #[case::of_docker_hub("docker.io/p", "https://registry-1.docker.io:443/v2/", true)]
    #[case::an_address("[::1]/p", "https://[::1]:443/v2/", true)]
    #[case::without_tls("r.test/p", "http://r.test:80/v2/", true)]
    #[case::the_port_written_out("r.test:80/p", "http://r.test/v2/", true)]
    #[case::other_port("r.example/p", "https://r.example:5000/v2/", false)]
    #[case::port_of_another_scheme("r.example/p", "https://r.example:80/v2/", false)]
    #[case::usual_for_another_scheme("r.test:5000/p", "http://r.test:443/v2/", false)]
    #[case::below("r.example/p", "https://a.r.example/v2/", false)]
    fn the_registry_by_another_spelling(#[case] image: &str, #[case] url: &str, #[case] expected: bool) {
        let url: Uri = url.parse().unwrap();
        assert_eq!(with_session(image, |session| session.is_registry(&url)), expected);
    }

    #[rstest]
    #[case::a_path("r.example/p", "/v2/p/blobs/uploads/1", Ok("https://r.example/v2/p/blobs/uploads/1"))]
    #[case::the_registry("r.example/p", "https://r.example/1", Ok("https://r.example/1"))]
    #[case::storage_with_tls("r.example/p", "https://s.example/1", Ok("https://s.example/1"))]
    #[case::tls_is_left("r.example/p", "http://r.example/1", Err("http://r.example"))]
    #[case::tls_is_left_for_a_host_that_needs_none("r.example/p", "http://r.test/1", Err("http://r.test"))]
    #[case::no_tls_as_before("r.test/p", "http://r.test:80/1", Ok("http://r.test:80/1"))]
    #[case::tls_is_taken_up("r.test/p", "https://s.example/1", Ok("https://s.example/1"))]
    #[case::another_host_without_tls("r.test/p", "http://other.test/1", Err("http://other.test"))]
    #[case::another_port_without_tls("r.test/p", "http://r.test:5000/1", Err("http://r.test:5000"))]
    fn an_upload_goes_on_where_nobody_listens(
        #[case] image: &str,
        #[case] location: &str,
        #[case] expected: Result<&str, &str>,
    ) {
        let got = with_session(image, |session| {
            let begun = session.url("blobs/uploads/").unwrap();
            session.upload_address(&begun, location)
        });
        match expected {
            Ok(address) => assert_eq!(got.unwrap().to_string(), address),
            Err(host) => {
                let message = format!("refused to go to {host} without TLS");
                let what = image.parse::<Reference>().unwrap().to_string();
                assert_eq!(got.unwrap_err(), RegistryError::Insecure { what, message });
            }
        }
    }
}
