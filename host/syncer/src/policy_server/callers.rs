//! Who may call the policy server: a bearer token says who, a role on the path says that (PO-608).
//!
//! Programs show a token that was made for policy servers and is worth nothing elsewhere; people show the one they have.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use kube::Client;
use kubeocean_api::place::{AUDIENCE, DECISIONS_PATH};
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
    programs: Tokens,
    people: Tokens,
    access: AccessReviews,
}

impl Callers {
    /// Asks the computing cluster.
    pub fn new(computing: &Client) -> Self {
        Self {
            programs: Tokens::new(computing.clone(), TOKEN_FOR).for_audience(AUDIENCE),
            people: Tokens::new(computing.clone(), TOKEN_FOR),
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
        let tokens = if path == DECISIONS_PATH { &self.people } else { &self.programs };
        let user = tokens.user(token).await.ok_or_else(unauthorized)?;
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
