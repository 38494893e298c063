//! Callers with a bearer token, by TokenReview in the computing cluster (PX-411, PO-608).

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, header::AUTHORIZATION};
use kube::Client;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    cache::{Asked, Cache},
    judge,
    user::User,
};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Most tokens remembered.
const REMEMBERED: usize = 4096;
/// How long a refused token is refused without asking again.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Says whose token it is.
pub struct Tokens {
    computing: Client,
    accepted_for: Duration,
    /// Whom tokens must be made for; `None`: the API server.
    audience: Option<&'static str>,
    /// By the digest: the token itself is not kept.
    cache: Cache<[u8; 32], Option<Arc<User>>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl std::fmt::Debug for TokenText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenText(redacted)")
    }
}

/// A bearer token of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenText<'a>(&'a str);

impl<'a> TokenText<'a> {
    /// The token of a request, if it has one.
    pub fn of(headers: &'a HeaderMap) -> Option<Self> {
        let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(Self(token))
    }
}

impl Tokens {
    /// Asks through `computing`; an accepted token is believed for `accepted_for`.
    pub fn new(computing: Client, accepted_for: Duration) -> Self {
        Self { computing, accepted_for, audience: None, cache: Cache::new(REMEMBERED) }
    }

    /// Takes only tokens that were made for `audience`.
    #[must_use]
    pub fn for_audience(mut self, audience: &'static str) -> Self {
        self.audience = Some(audience);
        self
    }

    /// Whose token it is; `None` if it is nobody's, or nobody can say.
    pub async fn user(&self, token: TokenText<'_>) -> Option<Arc<User>> {
        let key: [u8; 32] = Sha256::digest(token.0.as_bytes()).into();
        let (computing, text) = (self.computing.clone(), token.0.to_owned());
        let (accepted_for, audience) = (self.accepted_for, self.audience);
        let asked = self
            .cache
            .get(&key, || async move { review(&computing, &text, audience, accepted_for).await })
            .await;
        match asked {
            Ok((user, _)) => user,
            Err(error) => {
                tracing::error!(error, "a bearer token cannot be checked, the caller is refused");
                None
            }
        }
    }
}

#[derive(Deserialize)]
struct Review {
    #[serde(default)]
    status: ReviewStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReviewStatus {
    authenticated: bool,
    user: ReviewUser,
    audiences: Vec<String>,
    error: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReviewUser {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: std::collections::BTreeMap<String, Vec<String>>,
}

async fn review(
    computing: &Client,
    token: &str,
    audience: Option<&str>,
    accepted_for: Duration,
) -> Asked<Option<Arc<User>>> {
    let mut body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token},
    });
    if let Some(audience) = audience {
        body["spec"]["audiences"] = json!([audience]);
    }
    let answer = judge(computing, PATH, &body).await?;
    let review: Review =
        serde_json::from_value(answer).map_err(|_| "an answer that is no TokenReview".to_owned())?;
    let ReviewStatus { authenticated, user, audiences, error } = review.status;
    // An authenticator that knows no audiences says none: then the token is the API server's.
    let meant = audience.is_none_or(|audience| audiences.iter().any(|of| of == audience));
    if authenticated && meant && !user.username.is_empty() {
        let user = User { name: user.username, uid: user.uid, groups: user.groups, extra: user.extra };
        Ok((Some(Arc::new(user)), accepted_for))
    } else {
        tracing::debug!(error, "a bearer token was refused");
        Ok((None, REFUSED_FOR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use rstest::rstest;

    #[rstest]
    #[case("Bearer abc", Some("abc"))]
    #[case("bearer  abc ", Some("abc"))]
    #[case("Bearer ", None)]
    #[case("Bearer", None)]
    #[case("Basic abc", None)]
    #[case("", None)]
    fn the_token_of_a_request(#[case] value: &str, #[case] expected: Option<&str>) {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        assert_eq!(TokenText::of(&headers), expected.map(TokenText));
        assert_eq!(format!("{:?}", TokenText("abc")), "TokenText(redacted)");
    }
}
