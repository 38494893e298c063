//! Who may call the policy server: a bearer token says who, a role on the path says that (PO-608).

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use kube::Client;
use kubeocean_runtime::callers::{
    access::{Access, AccessReviews},
    token::{TokenText, Tokens},
};

/// How long an accepted token and a permission are believed. The kubelet's times.
const TOKEN_FOR: Duration = Duration::from_mins(2);
const ALLOWED_FOR: Duration = Duration::from_mins(5);
const DENIED_FOR: Duration = Duration::from_secs(30);

/// See the module documentation.
#[derive(Debug)]
pub struct Callers {
    tokens: Tokens,
    access: AccessReviews,
}

impl Callers {
    /// Asks the computing cluster.
    pub fn new(computing: &Client) -> Self {
        Self {
            tokens: Tokens::new(computing.clone(), TOKEN_FOR),
            access: AccessReviews::new(computing.clone(), ALLOWED_FOR, DENIED_FOR),
        }
    }

    /// Whether whoever sent `headers` may; else the answer and its text.
    pub async fn check(
        &self,
        headers: &HeaderMap,
        verb: &'static str,
        path: &'static str,
    ) -> Result<(), (StatusCode, String)> {
        let unauthorized = || (StatusCode::UNAUTHORIZED, "Unauthorized\n".to_owned());
        let token = TokenText::of(headers).ok_or_else(unauthorized)?;
        let user = self.tokens.user(token).await.ok_or_else(unauthorized)?;
        match self.access.allowed(&user, Access::Path { verb, path }).await {
            Ok((true, _)) => Ok(()),
            Ok((false, _)) => Err((
                StatusCode::FORBIDDEN,
                format!("Forbidden: user {} may not {verb} {path} in the computing cluster\n", user.name),
            )),
            Err(error) => {
                tracing::error!(error, "a caller's rights cannot be checked, it is refused");
                Err((StatusCode::INTERNAL_SERVER_ERROR, "the caller's rights cannot be checked\n".to_owned()))
            }
        }
    }
}
