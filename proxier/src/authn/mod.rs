//! Who calls: a client certificate first, then a bearer token; nobody else (PX-410 to PX-412, PX-418).
//!
//! `Impersonate-*` and `X-Remote-*` are read nowhere: the Proxier sees the API server, not its users.

pub(crate) mod authorities;
pub(crate) mod certificate;

use std::sync::Arc;

use http::HeaderMap;
use kube::Client;
use kubeocean_runtime::callers::token::{TokenText, Tokens};
use rustls::pki_types::CertificateDer;

pub(crate) use kubeocean_runtime::callers::user::{AUTHENTICATED, MASTERS, User};

use crate::{config::ProxierConfig, metrics::ProxierMetrics};
use authorities::CurrentAuthorities;

/// Finds out who calls.
#[derive(Debug)]
pub(crate) struct Authenticator {
    /// Authorities of client certificates.
    pub(crate) authorities: Arc<CurrentAuthorities>,
    tokens: Tokens,
    anonymous: bool,
    metrics: Arc<ProxierMetrics>,
}

impl Authenticator {
    pub(crate) fn new(config: &ProxierConfig, computing: Client, metrics: Arc<ProxierMetrics>) -> Self {
        Self {
            authorities: Arc::default(),
            tokens: Tokens::new(computing, config.token_cache_ttl),
            anonymous: config.anonymous_auth,
            metrics,
        }
    }

    /// The caller; `None` if it did not prove who it is. `chain` is what it showed in the handshake, whose key it has.
    pub(crate) async fn user(&self, chain: &[CertificateDer<'_>], headers: &HeaderMap) -> Option<Arc<User>> {
        if !chain.is_empty() {
            // Checked anew for each request: authorities change and certificates expire while a connection lives.
            let user = self.authorities.load().user(chain);
            self.metrics.authenticated("certificate", user.is_some());
            if let Some(user) = user {
                return Some(Arc::new(user));
            }
        }
        if let Some(token) = TokenText::of(headers) {
            let user = self.tokens.user(token).await;
            self.metrics.authenticated("token", user.is_some());
            if user.is_some() {
                return user;
            }
        }
        if self.anonymous {
            return Some(Arc::new(User::anonymous()));
        }
        if chain.is_empty() && TokenText::of(headers).is_none() {
            self.metrics.authenticated("none", false);
        }
        None
    }
}
