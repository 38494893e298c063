//! Callers with a client certificate (PX-410, PX-1303).
//!
//! The handshake asks for a certificate, takes any, and makes the caller prove that it holds the key. Whether the
//! certificate says who calls is decided afterwards, against the authorities of this moment: so a certificate that does
//! not count leaves a bearer token its chance.

use std::{collections::BTreeMap, sync::Arc};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::prelude::{FromDer, X509Certificate};

use kubeocean_runtime::tls::PROVIDER;

use super::{AUTHENTICATED, User};

/// Asks every caller for a certificate and believes none.
#[derive(Debug)]
pub(crate) struct AskForCertificate;

impl ClientCertVerifier for AskForCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: Go clients keep their certificate back if no name matches.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

/// The authorities whose certificates say who calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct Authorities {
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    count: usize,
}

impl Authorities {
    /// The authorities of PEM bundles. Certificates that cannot be read are left out and counted.
    pub(crate) fn of_pem<'a>(bundles: impl IntoIterator<Item = &'a [u8]>) -> (Self, usize) {
        let mut roots = RootCertStore::empty();
        let mut unreadable = 0;
        for certificate in bundles.into_iter().flat_map(CertificateDer::pem_slice_iter) {
            let added = certificate.ok().is_some_and(|certificate| roots.add(certificate).is_ok());
            unreadable += usize::from(!added);
        }
        let count = roots.len();
        // Without authorities there is no verifier, and then no certificate counts.
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&PROVIDER)).build().ok();
        (Self { verifier, count }, unreadable)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Who a certificate chain says is calling; `None` if it does not count: other authority, expired, made for other
    /// uses, or without a name.
    pub(crate) fn user(&self, chain: &[CertificateDer<'_>]) -> Option<User> {
        let (certificate, intermediates) = chain.split_first()?;
        let verifier = self.verifier.as_ref()?;
        verifier.verify_client_cert(certificate, intermediates, UnixTime::now()).ok()?;
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let subject = parsed.subject();
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().ok().map(str::to_owned)
        };
        let name = subject.iter_common_name().find_map(text).filter(|name| !name.is_empty())?;
        let mut groups: Vec<String> = subject.iter_organization().filter_map(text).collect();
        groups.push(AUTHENTICATED.to_owned());
        Some(User { name, uid: String::new(), groups, extra: BTreeMap::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    fn authority(name: &str) -> Issuer {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn issue(authority: &Issuer, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver-kubelet-client");
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        params.signed_by(&KeyPair::generate().unwrap(), authority).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_of_the_authority_says_who_calls() {
        let ca = authority("ca");
        let (authorities, unreadable) = Authorities::of_pem([ca.pem().as_bytes()]);
        assert_eq!((authorities.count(), unreadable), (1, 0));
        let user = authorities.user(&[issue(&ca, |_| {})]).unwrap();
        assert_eq!(user.name, "kube-apiserver-kubelet-client");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
    }

    #[test]
    fn others_do_not_count() {
        let (ca, other) = (authority("ca"), authority("ca"));
        let (authorities, _) = Authorities::of_pem([ca.pem().as_bytes()]);
        assert_eq!(authorities.user(&[issue(&other, |_| {})]), None, "another authority of the same name");
        let expired = issue(&ca, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        assert_eq!(authorities.user(&[expired]), None);
        let server = issue(&ca, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        assert_eq!(authorities.user(&[server]), None, "made for servers");
        let nameless = issue(&ca, |params| params.distinguished_name = rcgen::DistinguishedName::new());
        assert_eq!(authorities.user(&[nameless]), None);
        assert_eq!(authorities.user(&[CertificateDer::from(vec![1, 2, 3])]), None);
        assert_eq!(authorities.user(&[]), None);
        assert_eq!(Authorities::default().user(&[issue(&ca, |_| {})]), None, "before any authority is known");
    }
}
