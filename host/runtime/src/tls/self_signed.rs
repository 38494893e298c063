//! A certificate made at start, which nobody vouches for.

use std::{net::IpAddr, sync::Arc};

use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};

use super::{PROVIDER, server_builder};

/// A key or certificate cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[error("no certificate could be made: {0}")]
pub struct TlsError(String);

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct SelfSigned(Arc<CertifiedKey>);

impl SelfSigned {
    /// Makes one for an address.
    pub fn new(address: IpAddr) -> Result<Self, TlsError> {
        let failed = |error: &dyn std::fmt::Display| TlsError(error.to_string());
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let certificate = params.self_signed(&key).map_err(|error| failed(&error))?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = PROVIDER.key_provider.load_private_key(der).map_err(|error| failed(&error))?;
        Ok(Self(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer))))
    }

    /// SHA-256 of the certificate.
    pub fn sha256(&self) -> [u8; 32] {
        self.0.cert.first().map(Sha256::digest).unwrap_or_default().into()
    }

    /// A server's settings with this certificate; callers need none.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let builder = server_builder().map_err(|error| TlsError(error.to_string()))?;
        Ok(builder.with_no_client_auth().with_cert_resolver(Arc::new(self.clone())))
    }
}

impl ResolvesServerCert for SelfSigned {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
