//! The service that gives tokens for a registry which takes nothing else (`Bearer`), as the big public ones do.
//!
//! A token is an ES256 JSON Web Token signed with the certificate the registry trusts. It permits what was asked for, if
//! name and password are those of the only user.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::front::{read_head, tls};
use super::{ISSUER, PASSWORD, SERVICE, USER};

/// See the module documentation. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) port: u16,
    scopes: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Tokens {
    pub(super) async fn start(directory: &Path) -> Result<Self> {
        let (acceptor, _) = tls(directory)?;
        let signer = Arc::new(Signer::read(directory)?);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("binding a port")?;
        let port = listener.local_addr().context("reading a bound address")?.port();
        let scopes = Arc::<Mutex<Vec<String>>>::default();
        let shared = Arc::clone(&scopes);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, signer, scopes) = (acceptor.clone(), Arc::clone(&signer), Arc::clone(&shared));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let Ok((head, _)) = read_head(&mut stream).await else { return };
                    let (status, body) = answer(&signer, &head, &scopes);
                    let length = body.len();
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                    );
                    // Who does not wait for the answer does not get one.
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Ok(Self { port, scopes, serving })
    }

    pub(super) fn scopes(&self) -> Vec<String> {
        std::mem::take(&mut self.scopes.lock().expect("the list"))
    }
}

struct Signer {
    key: EcdsaKeyPair,
    certificate: String,
}

impl Signer {
    fn read(directory: &Path) -> Result<Self> {
        let key =
            PrivatePkcs8KeyDer::from_pem_file(directory.join("apiserver.key")).context("reading a key")?;
        let certificate = CertificateDer::from_pem_file(directory.join("apiserver.crt"))
            .context("reading a certificate")?;
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            key.secret_pkcs8_der(),
            &SystemRandom::new(),
        );
        let key = key.ok().context("a key of another kind")?;
        Ok(Self { key, certificate: STANDARD.encode(certificate) })
    }

    fn token(&self, scope: &str) -> Option<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.certificate]});
        let mut parts = scope.split(':');
        let access = match (parts.next(), parts.next(), parts.next()) {
            (Some(kind), Some(name), Some(actions)) => {
                json!([{"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}])
            }
            _ => json!([]),
        };
        let claims = json!({
            "iss": ISSUER, "sub": USER, "aud": SERVICE, "jti": format!("{now}"),
            "nbf": now - 60, "iat": now - 60, "exp": now + 300, "access": access,
        });
        let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", encoded(&header), encoded(&claims));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).ok()?;
        Some(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn answer(signer: &Signer, head: &str, scopes: &Mutex<Vec<String>>) -> (&'static str, String) {
    let query = head.split(' ').nth(1).and_then(|path| path.split_once('?')).map_or("", |(_, query)| query);
    let scope = query.split('&').find_map(|pair| pair.strip_prefix("scope=")).unwrap_or_default();
    let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    let basic = format!("basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let known = head.lines().filter_map(|line| line.split_once(": ")).any(|(name, value)| {
        name.eq_ignore_ascii_case("authorization") && value.trim().eq_ignore_ascii_case(&basic)
    });
    if let Ok(mut scopes) = scopes.lock() {
        scopes.push(scope.clone());
    }
    match signer.token(&scope).filter(|_| known) {
        Some(token) => ("200 OK", json!({"token": token}).to_string()),
        None => ("401 Unauthorized", "{}".to_owned()),
    }
}
