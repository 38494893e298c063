//! HTTPS between our own programs, and to those who call them.
//!
//! A server shows a certificate of its own making; who shall know that it is the right one is told its SHA-256.

mod pinned;
mod self_signed;
mod serve;

use std::sync::{Arc, LazyLock};

use rustls::{
    ConfigBuilder, ServerConfig, WantsVerifier,
    crypto::{CryptoProvider, ring},
};

pub use pinned::{PinnedClient, PinnedError};
pub use self_signed::{SelfSigned, TlsError};
pub use serve::serve;

/// The cryptography of every listener.
pub static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// The start of a server's settings: TLS 1.2 and 1.3.
pub fn server_builder() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, rustls::Error> {
    ServerConfig::builder_with_provider(Arc::clone(&PROVIDER)).with_safe_default_protocol_versions()
}
