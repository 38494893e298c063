//! A real registry on loopback: Debian's `docker-registry` with TLS and one user, and a front that can spoil answers.
//!
//! In: the program, if this machine has it. Out: a [`Registry`], and any number of [`Front`]s before it, which all have
//! certificates of its authority. Where it is not installed each test says so in one line;
//! `KUBEOCEAN_REGISTRY=required` turns that into a failure.

mod front;
mod proxy;
mod tokens;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub use front::{Answer, Front, Seen, Trick};
pub use proxy::Proxy;

use tokens::Tokens;

use crate::pki::Pki;
use crate::process::{Process, ProcessSpec};
use crate::wait::try_wait_until;
use crate::{ports, reaper};

/// The only user.
pub const USER: &str = "robot";
/// The user's password.
pub const PASSWORD: &str = "s3cret";
/// bcrypt of [`PASSWORD`] with the smallest cost: it protects nothing.
const HASH: &str = "$2b$04$q3gxskzXRj7bCRiFW0jzzuF9T45dPn/Dsn86oTo/qnx5GbcvAbsAC";
/// Starts when another program takes the port meanwhile.
const STARTS: usize = 5;
const READY: Duration = Duration::from_secs(30);

/// Name of the registry with tokens, and of who issues them.
const SERVICE: &str = "registry-of-a-test";
const ISSUER: &str = "tokens-of-a-test";

/// Whether the registry speaks TLS itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    On,
    Off,
}

/// How the user proves who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Auth {
    /// With name and password in each request.
    Basic,
    /// With a token of the service on this port.
    Token(u16),
}

/// A running registry. Dropping it ends it; its content goes with the test process.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    directory: PathBuf,
    port: u16,
    tokens: Option<Tokens>,
}

impl Registry {
    /// Starts one, or says in one line why it cannot be here.
    ///
    /// # Panics
    /// It is installed and does not start, or must be installed and is not.
    pub async fn start(tls: Tls) -> Option<Self> {
        let program = Self::program_or_reason()?;
        let directory = Self::directory().expect("a directory for a registry");
        Some(Self::run(&program, directory, tls, None).await.expect("a registry"))
    }

    /// The same with TLS, but with a token service on another port, and nothing else is accepted.
    ///
    /// # Panics
    /// As [`Registry::start`].
    pub async fn start_with_tokens() -> Option<Self> {
        let program = Self::program_or_reason()?;
        let directory = Self::directory().expect("a directory for a registry");
        let tokens = Tokens::start(&directory).await.expect("a token service");
        Some(Self::run(&program, directory, Tls::On, Some(tokens)).await.expect("a registry"))
    }

    fn program_or_reason() -> Option<PathBuf> {
        let Some(program) = program() else {
            let why = "no registry: docker-registry is not installed (Debian package docker-registry)";
            assert!(std::env::var_os("KUBEOCEAN_REGISTRY").is_none_or(|value| value != "required"), "{why}");
            // Past the test runner's capture: a test that did nothing must not look like one that did.
            let _ = writeln!(std::io::stderr(), "{why}");
            return None;
        };
        Some(program)
    }

    fn directory() -> Result<PathBuf> {
        let directory = reaper::new_directory("registry")?;
        Pki::create(&directory, IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        std::fs::write(directory.join("users"), format!("{USER}:{HASH}\n")).context("writing the users")?;
        Ok(directory)
    }

    async fn run(program: &Path, directory: PathBuf, tls: Tls, tokens: Option<Tokens>) -> Result<Self> {
        let auth = tokens.as_ref().map_or(Auth::Basic, |tokens| Auth::Token(tokens.port));
        for _ in 0..STARTS {
            let [port] = ports::free()?;
            let config = config(&directory, port, tls, auth);
            let file = directory.join("config.yml");
            std::fs::write(&file, config.to_string()).context("writing the registry's configuration")?;
            let mut process = Process::spawn(ProcessSpec {
                name: "docker-registry".to_owned(),
                program: program.to_owned(),
                args: vec!["serve".into(), file.into()],
                env: Vec::new(),
                log: directory.join(format!("registry-{port}.log")),
            })?;
            let listening = try_wait_until("the registry", READY, async || {
                if let Some(status) = process.exited().map_err(|error| error.to_string())? {
                    return Ok(Err(status));
                }
                let connected = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
                connected.map(|_| Ok(())).map_err(|error| error.to_string())
            });
            match listening.await? {
                Ok(()) => return Ok(Self { process, directory, port, tokens }),
                Err(_) if ports::lost(&process.log()) => {}
                Err(status) => bail!("the registry ended with {status}: {}", process.log_tail(10)),
            }
        }
        bail!("no free port for a registry")
    }

    /// Host and port, as references have it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// PEM file of the authority that signed its certificate, and those of its fronts.
    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// Scopes of the tokens asked for since the last call.
    pub fn token_scopes(&self) -> Vec<String> {
        self.tokens.as_ref().map(Tokens::scopes).unwrap_or_default()
    }

    /// Starts a front with a certificate of the same authority.
    ///
    /// # Panics
    /// No port can be bound.
    pub async fn front(&self) -> Front {
        Front::start(&self.directory, self.port).await.expect("a front")
    }

    /// Ends it; everything it holds stays.
    pub fn stop(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port.
    ///
    /// # Panics
    /// It does not start.
    pub async fn restart(&mut self) {
        self.process.restart().expect("a registry");
        let port = self.port;
        try_wait_until("the registry", READY, async || {
            let connected = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
            connected.map(|_| ()).map_err(|error| error.to_string())
        })
        .await
        .expect("a registry");
    }
}

/// What `docker login` would have written for these hosts.
pub fn docker_config(hosts: &[&str], password: &str) -> Value {
    let auth = STANDARD.encode(format!("{USER}:{password}"));
    let auths: serde_json::Map<String, Value> =
        hosts.iter().map(|host| ((*host).to_owned(), json!({"auth": auth}))).collect();
    json!({ "auths": auths })
}

fn program() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join("docker-registry")).find(|path| path.is_file())
}

/// JSON is YAML.
fn config(directory: &Path, port: u16, tls: Tls, auth: Auth) -> Value {
    let mut http = json!({"addr": format!("127.0.0.1:{port}"), "secret": "not one"});
    if tls == Tls::On {
        http["tls"] = json!({
            "certificate": directory.join("apiserver.crt"),
            "key": directory.join("apiserver.key"),
        });
    }
    let auth = match auth {
        Auth::Basic => json!({"htpasswd": {"realm": "policies", "path": directory.join("users")}}),
        Auth::Token(port) => json!({"token": {
            "realm": format!("https://127.0.0.1:{port}/token"),
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": directory.join("ca.crt"),
        }}),
    };
    json!({
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": true}},
        "storage": {"filesystem": {"rootdirectory": directory.join("content")}},
        "http": http,
        "auth": auth,
    })
}
