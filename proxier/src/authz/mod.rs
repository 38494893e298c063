//! What a caller may: asked of the computing cluster, remembered for a while (PX-413 to PX-417).

mod table;

use std::sync::Arc;

use http::StatusCode;
use kube::Client;
use kubeocean_runtime::callers::{
    access::{Access, AccessReviews},
    cache::Source,
};

pub(crate) use table::{Attributes, METHODS, attributes};

use crate::{
    answer::Refusal,
    authn::{MASTERS, User},
    config::{AuthorizationMode, ProxierConfig},
    metrics::ProxierMetrics,
};

/// Decides what callers may.
pub(crate) struct Authorizer {
    mode: AuthorizationMode,
    reviews: AccessReviews,
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
            mode: config.authorization_mode,
            reviews: AccessReviews::new(
                computing,
                config.authorized_cache_ttl,
                config.unauthorized_cache_ttl,
            ),
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
            let access = Access::Node { verb: asked.verb, subresource, name: Arc::clone(vnode) };
            match self.ask(user, access).await {
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

    async fn ask(&self, user: &Arc<User>, access: Access) -> Result<bool, String> {
        let (allowed, source) = self.reviews.allowed(user, access).await?;
        self.metrics.authorized(allowed, source == Source::Cache);
        Ok(allowed)
    }
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
