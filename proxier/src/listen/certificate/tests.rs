//! Handshakes over real sockets: who can connect, and what is known of them afterwards.

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn serving() -> (ServerConfig, CertificateDer<'static>) {
    let certificate = ServingCertificate::self_signed(&[LOOPBACK], Timestamp::now()).unwrap();
    let der = certificate.current.load().cert[0].clone();
    (server_config(Arc::new(certificate)).unwrap(), der)
}

fn identity(name: &str) -> (CertificateDer<'static>, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().der().clone(), key)
}

/// Certificates the server saw, or that the handshake failed on its side.
async fn handshake(client: ClientConfig, server: ServerConfig) -> Result<usize, String> {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut tls = TlsAcceptor::from(Arc::new(server)).accept(tcp).await.map_err(|e| e.to_string())?;
        let seen = tls.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
        tls.write_all(b"x").await.map_err(|error| error.to_string())?;
        tls.shutdown().await.ok();
        Ok(seen)
    };
    let call = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        if let Ok(mut tls) = connector.connect(ServerName::from(LOOPBACK), tcp).await {
            let mut bytes = Vec::new();
            tls.read_to_end(&mut bytes).await.ok();
        }
    };
    tokio::join!(serve, call).0
}

fn client(
    trusted: CertificateDer<'static>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    shown: Option<(CertificateDer<'static>, KeyPair)>,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    match shown {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    }
}

#[tokio::test]
async fn callers_connect_with_any_certificate_or_none() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (server, trusted) = serving();
        assert_eq!(handshake(client(trusted, &[version], None), server).await, Ok(0), "{version:?}");
        let (server, trusted) = serving();
        let unknown = client(trusted, &[version], Some(identity("nobody-vouches")));
        assert_eq!(handshake(unknown, server).await, Ok(1), "{version:?}");
    }
}

#[tokio::test]
async fn whoever_does_not_hold_the_key_does_not_connect() {
    #[derive(Debug)]
    struct Thief(Arc<CertifiedKey>);
    impl rustls::client::ResolvesClientCert for Thief {
        fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (server, trusted) = serving();
        let (stolen, _) = identity("kubernetes-admin");
        let other = KeyPair::generate().unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(other.serialize_der()));
        let signer = PROVIDER.key_provider.load_private_key(key).unwrap();
        let mut config = client(trusted, &[version], None);
        config.client_auth_cert_resolver = Arc::new(Thief(Arc::new(CertifiedKey::new(vec![stolen], signer))));
        assert!(handshake(config, server).await.is_err(), "{version:?}");
    }
}

#[test]
fn the_certificate_holds_for_years() {
    let now = Timestamp::now();
    let certificate = ServingCertificate::self_signed(&[LOOPBACK], now).unwrap();
    assert!(certificate.expires > now.as_second() + 8 * 365 * 86400);
}
