//! The extender's certificate: given as files and read anew when they change, or made at start.

use std::{
    fs,
    io::BufReader,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use kubeocean_runtime::tls::{PROVIDER, SelfSigned, server_builder};
use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};

/// What is wrong with certificate, key or authorities.
#[derive(Debug, thiserror::Error)]
#[error("the scheduler extender's certificate: {0}")]
pub struct CertificateError(String);

fn wrong(what: &Path, error: impl std::fmt::Display) -> CertificateError {
    CertificateError(format!("{}: {error}", what.display()))
}

/// Where the certificate comes from, and who may call.
#[derive(Debug, Clone, Default)]
pub struct CertificateFiles {
    /// Folder with `tls.crt` and `tls.key`; `None` makes a certificate at start that nobody vouches for.
    pub folder: Option<PathBuf>,
    /// Authorities of callers' certificates; `None` asks for none.
    pub client_ca: Option<PathBuf>,
}

/// The server's side of TLS.
pub fn server_config(files: &CertificateFiles, address: IpAddr) -> Result<ServerConfig, CertificateError> {
    let resolver: Arc<dyn ResolvesServerCert> = match &files.folder {
        Some(folder) => Arc::new(FromFolder::read(folder)?),
        None => Arc::new(SelfSigned::new(address).map_err(|error| CertificateError(error.to_string()))?),
    };
    let builder = server_builder().map_err(|error| CertificateError(error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for root in CertificateDer::pem_file_iter(file).map_err(|error| wrong(file, error))? {
                let root = root.map_err(|error| wrong(file, error))?;
                roots.add(root).map_err(|error| wrong(file, error))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&PROVIDER));
            builder.with_client_cert_verifier(verifier.build().map_err(|error| wrong(file, error))?)
        }
    };
    Ok(builder.with_cert_resolver(resolver))
}

/// Files that somebody renews. A pair that cannot be read leaves the one before in use.
#[derive(Debug)]
struct FromFolder {
    folder: PathBuf,
    current: Mutex<(Option<SystemTime>, Arc<CertifiedKey>)>,
}

impl FromFolder {
    fn read(folder: &Path) -> Result<Self, CertificateError> {
        let key = read_pair(folder)?;
        Ok(Self { folder: folder.to_owned(), current: Mutex::new((changed(folder), key)) })
    }
}

impl ResolvesServerCert for FromFolder {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl FromFolder {
    fn current(&self) -> Arc<CertifiedKey> {
        let mut current = self.current.lock();
        let now = changed(&self.folder);
        if now != current.0 {
            match read_pair(&self.folder) {
                Ok(key) => *current = (now, key),
                Err(error) => tracing::warn!(%error, "the certificate before stays in use"),
            }
        }
        Arc::clone(&current.1)
    }
}

fn changed(folder: &Path) -> Option<SystemTime> {
    fs::metadata(folder.join("tls.crt")).and_then(|found| found.modified()).ok()
}

fn read_pair(folder: &Path) -> Result<Arc<CertifiedKey>, CertificateError> {
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let file = fs::File::open(&certificate).map_err(|error| wrong(&certificate, error))?;
    let chain = CertificateDer::pem_reader_iter(BufReader::new(file))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(&certificate, error))?;
    let der = PrivateKeyDer::from_pem_file(&key).map_err(|error| wrong(&key, error))?;
    let signer = PROVIDER.key_provider.load_private_key(der).map_err(|error| wrong(&key, error))?;
    let pair = CertifiedKey::new(chain, signer);
    pair.keys_match().map_err(|error| wrong(&key, error))?;
    Ok(Arc::new(pair))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, Write},
        net::{Ipv4Addr, SocketAddr, TcpStream},
        time::Duration,
    };

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };
    use rustls::{
        ClientConfig, ClientConnection, StreamOwned,
        pki_types::{PrivatePkcs8KeyDer, ServerName},
    };
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::extender::{
        places::Places,
        serve::{serve, tests::Nothing},
    };

    fn write(folder: &Path, name: &str) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
        fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
    }

    #[test]
    fn a_pair_is_read_again_when_it_changes_and_a_wrong_one_is_named() {
        let folder = std::env::temp_dir().join(format!("kubeocean-extender-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert!(read_pair(&folder).unwrap_err().to_string().contains("tls.crt"));
        write(&folder, "one.test");
        let served = FromFolder::read(&folder).unwrap();
        let (key, one) = (fs::read(folder.join("tls.key")).unwrap(), served.current());
        write(&folder, "two.test");
        let two_key = fs::read(folder.join("tls.key")).unwrap();
        fs::write(folder.join("tls.key"), key).unwrap();
        assert!(read_pair(&folder).is_err(), "another certificate's key");
        served.current.lock().0 = None;
        assert_eq!(served.current().cert, one.cert, "the one before stays in use");
        fs::write(folder.join("tls.key"), two_key).unwrap();
        assert_ne!(served.current().cert, one.cert);
        fs::remove_dir_all(&folder).unwrap();
    }

    type Authority = CertifiedIssuer<'static, KeyPair>;
    type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

    fn authority() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "schedulers");
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn caller(of: &Authority) -> Pair {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, of).unwrap().der().clone();
        (certificate, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// A caller that believes only these servers, and shows a certificate or none.
    fn client(servers: &RootCertStore, shown: Option<Pair>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(servers.clone());
        match shown {
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => builder.with_no_client_auth(),
        }
    }

    /// The first line of an answer. With TLS 1.3 a caller hears only then that it is refused.
    fn ask(address: SocketAddr, tls: ClientConfig) -> std::io::Result<String> {
        let connection = ClientConnection::new(Arc::new(tls), ServerName::from(address.ip())).unwrap();
        let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
        let body = r#"{"Pod": {}, "Nodes": null, "NodeNames": ["a"]}"#;
        let length = body.len();
        let head = "POST /scheduler/filter HTTP/1.1\r\nHost: extender\r\nConnection: close\r\n";
        write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    }

    #[tokio::test]
    async fn only_who_shows_a_certificate_of_the_authority_is_answered() {
        let folder = std::env::temp_dir().join(format!("kubeocean-extender-callers-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        write(&folder, "127.0.0.1");
        // Two authorities of one name.
        let (ours, foreign, client_ca) = (authority(), authority(), folder.join("callers.crt"));
        fs::write(&client_ca, ours.pem()).unwrap();
        let files = CertificateFiles { folder: Some(folder.clone()), client_ca: Some(client_ca) };

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = Arc::new(server_config(&files, address.ip()).unwrap());
        let (places, cancel) = (Places::new(Arc::new(Nothing { leads: true })), CancellationToken::new());
        let timeout = Duration::from_secs(10);
        let serving = tokio::spawn(serve(listener, tls, Arc::new(places), timeout, cancel.clone()));

        let mut servers = RootCertStore::empty();
        servers.add(CertificateDer::from_pem_file(folder.join("tls.crt")).unwrap()).unwrap();
        let call = |shown| {
            let tls = client(&servers, shown);
            tokio::task::spawn_blocking(move || ask(address, tls))
        };
        let answered = call(Some(caller(&ours))).await.unwrap();
        assert_eq!(answered.unwrap(), "HTTP/1.1 200 OK\r\n");
        for shown in [None, Some(caller(&foreign))] {
            let refused = call(shown).await.unwrap();
            assert!(refused.is_err(), "{refused:?}");
        }
        cancel.cancel();
        serving.await.unwrap();
        fs::remove_dir_all(&folder).unwrap();
    }
}
