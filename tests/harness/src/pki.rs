//! The certificates and keys of one cluster: its own authority, a serving certificate, an admin, a key for tokens.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};

/// What stays in memory; the files are in the cluster's directory.
#[derive(Debug)]
pub(crate) struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
    admin: Pair,
}

/// A certificate with its key, both PEM.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Pki {
    /// Makes everything new and writes the files that the programs read (see `flags.rs`) into `directory`. The API server
    /// is known by loopback names and by `address`.
    pub(crate) fn create(directory: &Path, address: IpAddr) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = name("kubeocean-harness", None);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let ca =
            CertifiedIssuer::self_signed(params, KeyPair::generate()?).context("signing the authority")?;

        let loopback =
            ["127.0.0.1", "::1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let names = loopback.map(str::to_owned).into_iter().chain([address.to_string()]).collect();
        let serving = serving_pair(&ca, "kube-apiserver", names)?;
        let admin = client_pair(&ca, "kubernetes-admin", "system:masters")?;
        let kubelet_client = client_pair(&ca, "kube-apiserver-kubelet-client", "system:masters")?;
        let tokens = KeyPair::generate()?;

        for (file, content) in [
            ("ca.crt", ca.pem()),
            ("ca.key", ca.key().serialize_pem()),
            ("apiserver.crt", serving.certificate),
            ("apiserver.key", serving.key),
            ("kubelet-client.crt", kubelet_client.certificate),
            ("kubelet-client.key", kubelet_client.key),
            ("tokens.key", tokens.serialize_pem()),
            ("tokens.pub", tokens.public_key_pem()),
        ] {
            std::fs::write(directory.join(file), content).with_context(|| format!("writing {file}"))?;
        }
        Ok(Self { ca, admin })
    }

    /// The authority's certificate, PEM.
    pub(crate) fn authority(&self) -> String {
        self.ca.pem()
    }

    /// The same, DER.
    pub(crate) fn authority_der(&self) -> Vec<u8> {
        self.ca.der().to_vec()
    }

    /// What a proxy on 127.0.0.1 serves with in place of the API server.
    pub(crate) fn proxy_serving(&self) -> Result<Pair> {
        serving_pair(&self.ca, "proxy", vec!["127.0.0.1".to_owned()])
    }

    /// What a kubelet serves with.
    pub(crate) fn kubelet_serving(&self, node: &str, address: IpAddr) -> Result<Pair> {
        serving_pair(&self.ca, &format!("system:node:{node}"), vec![node.to_owned(), address.to_string()])
    }

    /// A kubeconfig with all rights.
    pub(crate) fn admin_kubeconfig(&self, server: &str) -> String {
        let user = certificate_user(&self.admin);
        self.kubeconfig(server, "default", &user)
    }

    /// A kubeconfig that authenticates with a bearer token; `namespace` is its context's default.
    pub(crate) fn token_kubeconfig(&self, server: &str, namespace: &str, token: &str) -> String {
        self.kubeconfig(server, namespace, &format!("token: {token}"))
    }

    /// A kubeconfig of any user and group, by client certificate.
    pub(crate) fn user_kubeconfig(&self, server: &str, user: &str, group: &str) -> Result<String> {
        let pair = client_pair(&self.ca, user, group)?;
        Ok(self.kubeconfig(server, "default", &certificate_user(&pair)))
    }

    fn kubeconfig(&self, server: &str, namespace: &str, user: &str) -> String {
        let ca = STANDARD.encode(self.ca.pem());
        format!(
            "apiVersion: v1
kind: Config
clusters:
- name: cluster
  cluster:
    server: {server}
    certificate-authority-data: {ca}
users:
- name: user
  user:
    {user}
contexts:
- name: context
  context:
    cluster: cluster
    namespace: {namespace}
    user: user
current-context: context
"
        )
    }
}

fn certificate_user(pair: &Pair) -> String {
    format!(
        "client-certificate-data: {}\n    client-key-data: {}",
        STANDARD.encode(&pair.certificate),
        STANDARD.encode(&pair.key)
    )
}

fn serving_pair(ca: &CertifiedIssuer<'static, KeyPair>, server: &str, names: Vec<String>) -> Result<Pair> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = name(server, None);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    issue(ca, &params)
}

fn client_pair(ca: &CertifiedIssuer<'static, KeyPair>, user: &str, group: &str) -> Result<Pair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(user, Some(group));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    issue(ca, &params)
}

fn issue(ca: &CertifiedIssuer<'static, KeyPair>, params: &CertificateParams) -> Result<Pair> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, ca).context("signing a certificate")?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}
