//! Callers over real sockets: whose connection lasts, and whose place another takes (PX-1302).

use http::{Request, header::HOST};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use kube::client::ConfigExt;
use kubeocean_runtime::{client::client, tls::PROVIDER};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair,
};
use rustls::{
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;

use super::*;
use crate::authn::MASTERS;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Well below the time after which a connection is closed on which nothing is asked.
const SOON: Duration = Duration::from_secs(5);

/// The shared port of a Proxier whose computing cluster cannot be reached: certificates say who calls, and only of
/// administrators it is known what they may.
struct Served {
    address: SocketAddr,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Served {
    fn with(gate: Gate) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let config = ProxierConfig { bind_address: LOOPBACK, listen_port: 0, ..ProxierConfig::new(LOOPBACK) };
        let (mut proxier, _events) = Proxier::start(config, client(nowhere, None).unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        proxier.shared.authn.authorities.trust(authority.pem());
        Arc::get_mut(&mut proxier.shared).expect("nothing runs yet").gate = gate;
        let listener = proxier.listener.lock().take().unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(proxier.shared, listener, Door::Shared, CancellationToken::new()));
        Self { address, authority }
    }

    fn member_of(&self, group: &str) -> CertifiedKey {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "caller");
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        CertifiedKey::new(vec![certificate], PROVIDER.key_provider.load_private_key(key).unwrap())
    }

    /// A caller with a certificate that says it is in `group`, or with none.
    async fn connect(&self, group: Option<&str>) -> Connected {
        let mut config = kube::Config::new("https://127.0.0.1".parse().unwrap());
        config.root_cert = Some(vec![self.authority.der().to_vec()]);
        config.accept_invalid_certs = true;
        let mut tls = config.rustls_client_config().unwrap();
        tls.alpn_protocols.clear();
        if let Some(group) = group {
            tls.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(self.member_of(group)));
        }
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(tls));
        let tls = connector.connect(ServerName::from(LOOPBACK), tcp).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(tls)).await.unwrap();
        Connected { sender, running: tokio::spawn(connection) }
    }
}

/// A connection of a caller that would go on for ever.
struct Connected {
    sender: SendRequest<Empty<Bytes>>,
    running: JoinHandle<hyper::Result<()>>,
}

impl Connected {
    async fn ask(&mut self, path: &str) -> u16 {
        let request = Request::get(path).header(HOST, "vnode").body(Empty::new()).unwrap();
        self.sender.ready().await.unwrap();
        let response = self.sender.send_request(request).await.unwrap();
        let code = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        code
    }

    async fn ends(&mut self) -> bool {
        tokio::time::timeout(SOON, &mut self.running).await.is_ok()
    }
}

#[tokio::test]
async fn a_connection_ends_with_the_answer_to_one_who_proves_nothing() {
    let served = Served::with(Gate::default());
    for (path, code) in [("/healthz", 200), ("/readyz", 503), ("/pods", 401)] {
        let mut caller = served.connect(None).await;
        assert_eq!(caller.ask(path).await, code, "{path}");
        assert!(caller.ends().await, "{path} can be asked over and over");
    }
}

#[tokio::test]
async fn a_caller_of_whom_nobody_says_that_it_may_ask_makes_room_for_others() {
    let served = Served::with(Gate::of(8, 1));
    let mut tenant = served.connect(Some("tenants")).await;
    assert_eq!(tenant.ask("/pods").await, 500, "its rights cannot be checked");
    let mut administrator = served.connect(Some(MASTERS)).await;
    assert!(tenant.ends().await, "a name alone gives no place that lasts");
    assert_eq!(administrator.ask("/version").await, 200);
    let _stranger = served.connect(None).await;
    assert_eq!(administrator.ask("/version").await, 200, "who may ask keeps its place");
}
