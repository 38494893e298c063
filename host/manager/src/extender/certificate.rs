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
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

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
}
