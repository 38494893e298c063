//! A TLS server before a registry that passes requests on, writes down what it saw, and spoils answers when told to.
//!
//! Each connection carries one request, so what is spoiled is exactly one answer. Blobs are spoiled by a [`Trick`], any other
//! request by an [`Answer`] instead of the registry's.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What happens to requests for blobs; all others are passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trick {
    /// They are passed on, too.
    #[default]
    None,
    /// The connection ends after so many bytes of the answer.
    Cut(usize),
    /// The answer is a redirect to this address with the path of the request.
    Redirect(String),
    /// The answer is this body.
    Instead(Vec<u8>),
    /// The answer is this body, without a length, for ever.
    Endless,
}

/// An answer that the registry would not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Headers beside those of the connection and the length.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// One without a body.
    pub fn of(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// The same with a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The same with a body.
    #[must_use]
    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }

    fn head(&self) -> String {
        let start = format!("HTTP/1.1 {} Spoiled\r\nConnection: close\r\n", self.status);
        let head =
            self.headers.iter().fold(start, |head, (name, value)| head + *name + ": " + value + "\r\n");
        head + &format!("Content-Length: {}\r\n\r\n", self.body.len())
    }
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Method and path.
    pub line: String,
    /// It carried credentials.
    pub authorized: bool,
}

#[derive(Debug, Default)]
struct State {
    trick: Trick,
    /// By a part of the request's line; the last that fits counts.
    answers: Vec<(String, Answer)>,
    seen: Vec<Seen>,
}

/// See the module documentation. Dropping it ends it.
#[derive(Debug)]
pub struct Front {
    port: u16,
    state: Arc<std::sync::Mutex<State>>,
    serving: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Front {
    pub(super) async fn start(directory: &Path, registry: u16) -> Result<Self> {
        let (acceptor, connector) = tls(directory)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("binding a front")?;
        let port = listener.local_addr().context("reading a bound address")?.port();
        let state = Arc::<std::sync::Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, connector, state) = (acceptor.clone(), connector.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    // Whoever breaks a connection, this side or the other, is what a test is about.
                    let _ = serve(stream, &acceptor, &connector, registry, &state).await;
                });
            }
        });
        Ok(Self { port, state, serving })
    }

    /// Host and port, as references have it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What happens to blobs from now on.
    ///
    /// # Panics
    /// A thread panicked while it held the state.
    pub fn trick(&self, trick: Trick) {
        self.state.lock().expect("the state").trick = trick;
    }

    /// From now on requests with this part in method and path get this answer instead of the registry's.
    ///
    /// # Panics
    /// As [`Front::trick`].
    pub fn answer(&self, part: impl Into<String>, answer: Answer) {
        self.state.lock().expect("the state").answers.push((part.into(), answer));
    }

    /// Requests since the last call.
    ///
    /// # Panics
    /// As [`Front::trick`].
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().expect("the state").seen)
    }
}

pub(super) fn tls(directory: &Path) -> Result<(TlsAcceptor, TlsConnector)> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pem = |name: &str| directory.join(name);
    let chain = CertificateDer::from_pem_file(pem("apiserver.crt")).context("reading a certificate")?;
    let key = PrivateKeyDer::from_pem_file(pem("apiserver.key")).context("reading a key")?;
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pem("ca.crt")).context("reading the authority")?)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client))))
}

async fn serve(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    connector: &TlsConnector,
    registry: u16,
    state: &std::sync::Mutex<State>,
) -> Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let (head, rest) = read_head(&mut stream).await?;
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
    let is_blob = method == "GET" && path.contains("/blobs/");
    let (trick, answer) = {
        let mut state = state.lock().ok().context("a panic elsewhere")?;
        let authorized = head.to_ascii_lowercase().contains("\r\nauthorization:");
        let line = format!("{method} {path}");
        let mut answers = state.answers.iter().rev();
        let answer = answers.find(|(part, _)| line.contains(part)).map(|(_, answer)| answer.clone());
        state.seen.push(Seen { line, authorized });
        (if is_blob { state.trick.clone() } else { Trick::None }, answer)
    };
    if let Some(answer) = answer {
        stream.write_all(answer.head().as_bytes()).await?;
        stream.write_all(&answer.body).await?;
        stream.shutdown().await?;
        return Ok(());
    }
    match trick {
        Trick::Redirect(to) => {
            let answer = format!(
                "HTTP/1.1 307 Elsewhere\r\nLocation: {to}{path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await?;
        }
        Trick::Instead(body) => {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&body).await?;
        }
        Trick::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await?;
            loop {
                stream.write_all(&[0; 4096]).await?;
            }
        }
        Trick::None | Trick::Cut(_) => {
            let name = ServerName::try_from("127.0.0.1")?;
            let behind = TcpStream::connect((Ipv4Addr::LOCALHOST, registry)).await?;
            let mut behind = connector.connect(name, behind).await?;
            let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
            behind.write_all(head.as_bytes()).await?;
            behind.write_all(&rest).await?;
            if let Trick::Cut(bytes) = trick {
                let mut answer = behind.take(u64::try_from(bytes)?);
                tokio::io::copy(&mut answer, &mut stream).await?;
            } else {
                relay(&mut stream, &mut behind).await?;
            }
        }
    }
    stream.shutdown().await?;
    Ok(())
}

async fn relay(
    front: &mut (impl AsyncRead + AsyncWrite + Unpin),
    behind: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> Result<()> {
    tokio::io::copy_bidirectional(front, behind).await?;
    Ok(())
}

/// The head of a request with its last empty line, and what came with it.
pub(super) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8(bytes)?, rest));
        }
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await?;
        anyhow::ensure!(read > 0, "the connection ended within a request");
        bytes.extend_from_slice(&chunk[..read]);
    }
}
