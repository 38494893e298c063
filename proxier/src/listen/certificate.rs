//! The serving certificate of all listeners. It sits behind a pointer, so that another source can replace it while
//! connections live (PX-310 to PX-313).

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use kubeocean_runtime::tls::PROVIDER;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::authn::certificate::AskForCertificate;

/// Years a certificate of our own making holds. It is made anew with every start.
const YEARS: i16 = 10;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The certificate shown to callers.
#[derive(Debug)]
pub(crate) struct ServingCertificate {
    current: ArcSwap<CertifiedKey>,
    /// When it expires, in seconds since 1970.
    pub(crate) expires: i64,
}

impl ServingCertificate {
    /// A certificate that nobody vouches for, as kubelets have it unless a cluster signs theirs (PX-312).
    pub(crate) fn self_signed(addresses: &[IpAddr], now: Timestamp) -> Result<Self, BoxError> {
        let year = now.to_zoned(jiff::tz::TimeZone::UTC).year();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "system:node:kubeocean-proxier");
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = addresses.iter().copied().map(SanType::IpAddress).collect();
        params.not_before = rcgen::date_time_ymd(i32::from(year) - 1, 1, 1);
        params.not_after = rcgen::date_time_ymd(i32::from(year + YEARS), 1, 1);
        let expires = params.not_after.unix_timestamp();
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = PROVIDER.key_provider.load_private_key(der)?;
        let certified = CertifiedKey::new(vec![certificate.der().clone()], signer);
        Ok(Self { current: ArcSwap::from_pointee(certified), expires })
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// TLS of all listeners: 1.2 and 1.3, client certificates asked for and not required.
pub(crate) fn server_config(certificate: Arc<ServingCertificate>) -> Result<ServerConfig, BoxError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(AskForCertificate))
        .with_cert_resolver(certificate);
    // Each log and tunnel has a connection of its own, so none waits behind another (PX-1302).
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session would show a certificate whose key nobody proved to hold today.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

#[cfg(test)]
mod tests;
