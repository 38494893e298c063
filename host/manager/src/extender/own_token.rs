//! The token this Manager shows to Syncers apart: made for policy servers only (PO-608).
//!
//! A Syncer writes on its Lease where it is, so whoever has a Syncer's account chooses who is shown the token. With this
//! one he can ask policy servers, and nothing else.

use std::time::{Duration, Instant};

use http::HeaderValue;
use kube::Client;
use kubeocean_api::place::AUDIENCE;
use kubeocean_runtime::request::{create_json, paths};
use serde_json::{Value, json};
use tokio::sync::Mutex;

const WHO_AM_I: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
/// How long a token is asked for; API servers give no shorter one than ten minutes.
const LASTS: Duration = Duration::from_mins(30);
/// A token is used for this part of its time, by the local clock.
const USED: f64 = 0.8;
/// Pause after a failure: a question without a token is not asked.
const AGAIN: Duration = Duration::from_secs(10);

/// See the module documentation.
pub(super) struct OwnToken {
    computing: Client,
    held: Mutex<Option<Held>>,
}

/// What was got, or that nothing was.
struct Held {
    token: Option<HeaderValue>,
    until: Instant,
}

impl OwnToken {
    pub(super) fn new(computing: Client) -> Self {
        Self { computing, held: Mutex::default() }
    }

    /// The value of `Authorization`; `None`: there is none now, and the log says why.
    pub(super) async fn get(&self) -> Option<HeaderValue> {
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| Instant::now() < held.until) {
            return held.token.clone();
        }
        let asked = Instant::now();
        let (token, lasts) = match self.ask().await {
            Ok((token, lasts)) => (Some(token), lasts.mul_f64(USED)),
            Err(why) => {
                tracing::warn!(why, "no token for policy servers: Syncers of other processes are not asked");
                (None, AGAIN)
            }
        };
        *held = Some(Held { token: token.clone(), until: asked + lasts });
        token
    }

    /// A server did not believe it.
    pub(super) async fn refused(&self) {
        *self.held.lock().await = None;
    }

    async fn ask(&self) -> Result<(HeaderValue, Duration), String> {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let review = create_json(&self.computing, WHO_AM_I, &review).await.map_err(|error| error.chain())?;
        let user = review["status"]["userInfo"]["username"].as_str().unwrap_or_default();
        let (namespace, name) = service_account(user)
            .ok_or_else(|| format!("{user} is no ServiceAccount; run the Manager as the chart's one"))?;
        let path = paths::service_account_token(namespace, name);
        let made = create_json(&self.computing, &path, &request()).await.map_err(|error| error.chain())?;
        let token = made["status"]["token"].as_str().unwrap_or_default();
        let mut value =
            HeaderValue::try_from(format!("Bearer {token}")).map_err(|error| error.to_string())?;
        value.set_sensitive(true);
        Ok((value, lasts(&made)))
    }
}

fn request() -> Value {
    json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [AUDIENCE], "expirationSeconds": LASTS.as_secs()},
    })
}

/// What the API server gave, which may be less than was asked for.
fn lasts(made: &Value) -> Duration {
    made["spec"]["expirationSeconds"].as_u64().map_or(LASTS, Duration::from_secs).min(LASTS)
}

/// Namespace and name of a ServiceAccount, from its name as a user.
fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("system:serviceaccount:kubeocean-system:kubeocean-manager", Some(("kubeocean-system", "kubeocean-manager")))]
    #[case("system:node:n1", None)]
    #[case("admin", None)]
    #[case("", None)]
    fn an_account_from_its_user(#[case] user: &str, #[case] expected: Option<(&str, &str)>) {
        assert_eq!(service_account(user), expected);
    }

    #[test]
    fn a_token_is_believed_to_last_no_longer_than_asked_for() {
        let made = |seconds: u64| json!({"spec": {"expirationSeconds": seconds}});
        assert_eq!(lasts(&made(600)), Duration::from_mins(10));
        assert_eq!(lasts(&made(86_400)), LASTS);
        assert_eq!(lasts(&json!({})), LASTS);
    }
}
