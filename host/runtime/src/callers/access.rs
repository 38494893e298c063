//! What a caller may, by SubjectAccessReview in the computing cluster.

use std::{sync::Arc, time::Duration};

use kube::Client;
use serde_json::{Value, json};

use super::{
    cache::{Asked, Cache, Source},
    judge,
    user::User,
};

const PATH: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
/// Most answers remembered.
const REMEMBERED: usize = 8192;

/// What a caller wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Access {
    /// Something of a node.
    Node {
        /// For example `get`.
        verb: &'static str,
        /// Subresource.
        subresource: &'static str,
        /// Name; the empty one stands for all of them.
        name: Arc<str>,
    },
    /// A path that is no resource.
    Path {
        /// The method in lower case.
        verb: &'static str,
        /// The path.
        path: &'static str,
    },
}

impl Access {
    /// The part of a review that says so.
    fn attributes(&self) -> (&'static str, Value) {
        match self {
            Self::Node { verb, subresource, name } => (
                "resourceAttributes",
                json!({
                    "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": name,
                }),
            ),
            Self::Path { verb, path } => ("nonResourceAttributes", json!({"verb": verb, "path": path})),
        }
    }
}

/// Says what callers may.
pub struct AccessReviews {
    computing: Client,
    allowed_for: Duration,
    denied_for: Duration,
    cache: Cache<(Arc<User>, Access), bool>,
}

impl std::fmt::Debug for AccessReviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessReviews").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl AccessReviews {
    /// Asks through `computing`; a permission is believed for `allowed_for`, a denial for `denied_for`.
    pub fn new(computing: Client, allowed_for: Duration, denied_for: Duration) -> Self {
        Self { computing, allowed_for, denied_for, cache: Cache::new(REMEMBERED) }
    }

    /// Whether `user` may; the error says why nobody knows.
    pub async fn allowed(&self, user: &Arc<User>, access: Access) -> Result<(bool, Source), String> {
        let question = (Arc::clone(user), access);
        let (computing, asked) = (self.computing.clone(), question.clone());
        let (allowed_for, denied_for) = (self.allowed_for, self.denied_for);
        self.cache
            .get(
                &question,
                || async move { ask(&computing, &asked.0, &asked.1, allowed_for, denied_for).await },
            )
            .await
    }
}

async fn ask(
    computing: &Client,
    user: &User,
    access: &Access,
    allowed_for: Duration,
    denied_for: Duration,
) -> Asked<bool> {
    let (kind, attributes) = access.attributes();
    let body = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra,
            kind: attributes,
        },
    });
    let answer = judge(computing, PATH, &body).await?;
    let allowed = answer.pointer("/status/allowed").and_then(Value::as_bool);
    let allowed = allowed.ok_or_else(|| "an answer that is no SubjectAccessReview".to_owned())?;
    Ok((allowed, if allowed { allowed_for } else { denied_for }))
}
