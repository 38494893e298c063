//! What a caller may: asked of the computing cluster, remembered for a while (PX-413 to PX-417).

mod table;

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use kube::Client;
use kubeocean_runtime::request::create_json;
use serde_json::json;

pub(crate) use table::{Attributes, METHODS, attributes};

use crate::{
    answer::Refusal,
    authn::{MASTERS, User, refused},
    cache::{Asked, Cache, Source},
    config::{AuthorizationMode, ProxierConfig},
    metrics::ProxierMetrics,
};

const PATH: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
/// Most answers remembered.
const REMEMBERED: usize = 8192;

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    user: Arc<User>,
    verb: &'static str,
    subresource: &'static str,
    vnode: Arc<str>,
}

/// Decides what callers may.
pub(crate) struct Authorizer {
    computing: Client,
    mode: AuthorizationMode,
    allowed_for: Duration,
    denied_for: Duration,
    cache: Cache<Question, bool>,
    metrics: Arc<ProxierMetrics>,
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Authorizer {
    pub(crate) fn new(config: &ProxierConfig, computing: Client, metrics: Arc<ProxierMetrics>) -> Self {
        Self {
            computing,
            mode: config.authorization_mode,
            allowed_for: config.authorized_cache_ttl,
            denied_for: config.unauthorized_cache_ttl,
            cache: Cache::new(REMEMBERED),
            metrics,
        }
    }

    /// Whether `user` may do what `asked` says to a vnode; the empty name stands for all of them.
    pub(crate) async fn check(
        &self,
        user: &Arc<User>,
        asked: Attributes,
        vnode: &Arc<str>,
    ) -> Result<(), Refusal> {
        if user.is_in(MASTERS) || self.mode == AuthorizationMode::AlwaysAllow {
            return Ok(());
        }
        for subresource in asked.subresources {
            let question =
                Question { user: Arc::clone(user), verb: asked.verb, subresource, vnode: Arc::clone(vnode) };
            match self.ask(question).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(error, "a caller's rights cannot be checked, it is refused");
                    return Err(failed(user, asked.verb, subresource));
                }
            }
        }
        Err(forbidden(user, asked))
    }

    async fn ask(&self, question: Question) -> Result<bool, String> {
        let (computing, asked) = (self.computing.clone(), question.clone());
        let (allowed_for, denied_for) = (self.allowed_for, self.denied_for);
        let answer = self
            .cache
            .get(&question, || async move { review(&computing, &asked, allowed_for, denied_for).await });
        let (allowed, source) = answer.await?;
        self.metrics.authorized(allowed, source == Source::Cache);
        Ok(allowed)
    }
}

async fn review(
    computing: &Client,
    question: &Question,
    allowed_for: Duration,
    denied_for: Duration,
) -> Asked<bool> {
    let Question { user, verb, subresource, vnode } = question;
    let body = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra,
            "resourceAttributes": {
                "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": vnode,
            },
        },
    });
    let answer = create_json(computing, PATH, &body).await.map_err(|error| refused(&error))?;
    let allowed = answer.pointer("/status/allowed").and_then(serde_json::Value::as_bool);
    let allowed = allowed.ok_or_else(|| "an answer that is no SubjectAccessReview".to_owned())?;
    Ok((allowed, if allowed { allowed_for } else { denied_for }))
}

fn failed(user: &User, verb: &str, subresource: &str) -> Refusal {
    let text = format!(
        "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
        user.name
    );
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text)
}

fn forbidden(user: &User, asked: Attributes) -> Refusal {
    let text = format!(
        "Forbidden (user={}, verb={}, resource=nodes, subresource(s)=[{}])",
        user.name,
        asked.verb,
        asked.subresources.join(" ")
    );
    Refusal::new(StatusCode::FORBIDDEN, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_those_of_a_kubelet() {
        let user = User { name: "eve".to_owned(), ..User::anonymous() };
        let asked = Attributes { verb: "get", subresources: &["pods", "proxy"] };
        let refusal = forbidden(&user, asked);
        assert_eq!(refusal.code, StatusCode::FORBIDDEN);
        assert_eq!(
            refusal.text,
            "Forbidden (user=eve, verb=get, resource=nodes, subresource(s)=[pods proxy])"
        );
        assert_eq!(
            failed(&user, "get", "proxy").text,
            "Authorization error (user=eve, verb=get, resource=nodes, subresource=proxy)"
        );
    }
}
