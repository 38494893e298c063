//! Why a request failed, typed by what to do about it.

use std::{
    fmt,
    time::{Duration, Instant},
};

use kube::core::Status;
use parking_lot::Mutex;

use super::queue::Outcome;

/// Failures of API servers that are logged in each [`OUTAGE_PERIOD`]; while one is down all objects fail alike.
const OUTAGE_LINES: u32 = 10;
/// See [`OUTAGE_LINES`].
const OUTAGE_PERIOD: Duration = Duration::from_secs(30);
/// The log is one for all bindings of a process, and so is this.
static OUTAGES: Quota = Quota(Mutex::new(None));

/// How much more may be said about the same.
struct Quota(Mutex<Option<Period>>);

struct Period {
    began: Instant,
    asked: u32,
}

impl Quota {
    /// `None`: no more for now. Otherwise how much was left unsaid in the period before.
    fn take(&self, now: Instant) -> Option<u32> {
        let mut period = self.0.lock();
        match &mut *period {
            Some(period) if now.duration_since(period.began) < OUTAGE_PERIOD => {
                period.asked += 1;
                (period.asked <= OUTAGE_LINES).then_some(0)
            }
            before => {
                let untold = before.as_ref().map_or(0, |before| before.asked.saturating_sub(OUTAGE_LINES));
                *before = Some(Period { began: now, asked: 1 });
                Some(untold)
            }
        }
    }
}

/// What was asked of the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Read one object.
    Get,
    /// Read a list.
    List,
    /// Create an object.
    Create,
    /// Change an object.
    Patch,
    /// Delete an object.
    Delete,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Create => "create",
            Self::Patch => "patch",
            Self::Delete => "delete",
        })
    }
}

/// A failed request. `object` is the request path, which names kind, namespace and name.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The object changed since it was read (409 on a write with a precondition).
    #[error("{verb} {object}: it changed since it was read")]
    Conflict {
        /// What was asked.
        verb: Verb,
        /// Which object.
        object: String,
    },
    /// An object of that name exists already.
    #[error("create {object}: it exists already")]
    AlreadyExists {
        /// Which object.
        object: String,
    },
    /// The object does not exist.
    #[error("{verb} {object}: not found")]
    NotFound {
        /// What was asked.
        verb: Verb,
        /// Which object.
        object: String,
    },
    /// The role does not allow it.
    #[error("{verb} {object} is not permitted: {message}")]
    Forbidden {
        /// What was asked.
        verb: Verb,
        /// Which object.
        object: String,
        /// The server's words.
        message: String,
    },
    /// The credentials are not accepted, or not any more: new ones may come.
    #[error("{verb} {object}: the credentials are not accepted: {message}")]
    Unauthorized {
        /// What was asked.
        verb: Verb,
        /// Which object.
        object: String,
        /// The server's words.
        message: String,
    },
    /// The server refuses the content (400, 422) and will do so again.
    #[error("{verb} {object} was refused: {message}")]
    Rejected {
        /// What was asked.
        verb: Verb,
        /// Which object.
        object: String,
        /// Fields the server names, such as `spec.containers[0].image`; empty when it names none.
        fields: Vec<String>,
        /// The server's words.
        message: String,
    },
    /// Anything else: the server is unreachable, overloaded, or failed.
    #[error("{verb} {object} failed")]
    Api {
        /// What was asked.
        verb: Verb,
        /// Which object.
        object: String,
        /// The cause.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("{verb} {object}: no answer within {seconds} s")]
    Timeout {
        /// What was asked.
        verb: Verb,
        /// Which object.
        object: String,
        /// The limit that passed.
        seconds: u64,
    },
}

impl ApplyError {
    /// Classifies an error of the client by status code and reason, never by text.
    pub fn from_kube(verb: Verb, object: impl Into<String>, error: kube::Error) -> Self {
        let object = object.into();
        let kube::Error::Api(status) = &error else {
            return Self::Api { verb, object, source: Box::new(error) };
        };
        let message = status.message.clone();
        match (status.code, status.reason.as_str()) {
            // Not the server's words, but of somebody in front of it: they say nothing about the object.
            (404, reason) if reason != "NotFound" && is_always_served(&object) => {
                Self::Api { verb, object, source: Box::new(error) }
            }
            (404, _) => Self::NotFound { verb, object },
            (409, "AlreadyExists") => Self::AlreadyExists { object },
            (409, _) => Self::Conflict { verb, object },
            // The namespace goes, not the right: what was refused is asked again, or not needed any more.
            (403, _) if has_cause(status, "NamespaceTerminating") => {
                Self::Api { verb, object, source: Box::new(error) }
            }
            (401, _) => Self::Unauthorized { verb, object, message },
            (403, _) => Self::Forbidden { verb, object, message },
            (400 | 422, _) => Self::Rejected { verb, object, fields: fields(status), message },
            _ => Self::Api { verb, object, source: Box::new(error) },
        }
    }

    /// What the queue does with the key.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Conflict { .. } | Self::AlreadyExists { .. } => Outcome::Stale,
            Self::NotFound { .. } | Self::Forbidden { .. } | Self::Rejected { .. } => Outcome::Retry,
            // New credentials come from elsewhere, and nobody tells.
            Self::Unauthorized { .. } | Self::Api { .. } | Self::Timeout { .. } => Outcome::Unanswered,
        }
    }

    /// Whether the server, or a webhook it asks, will say no again. Webhooks answer as if the role did not allow it.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Forbidden { .. } | Self::Rejected { .. })
    }

    /// Whether a write that ended so may have been done all the same: nobody refused it, only its answer is missing.
    pub fn may_be_done(&self) -> bool {
        matches!(self, Self::Api { .. } | Self::Timeout { .. })
    }

    /// Why, for people who may see the object concerned but not the cluster that was asked: without names, addresses
    /// and words of the server, which may speak of other tenants. [`Self::chain`] is for those who run the cluster.
    pub fn reason(&self) -> String {
        match self {
            Self::Conflict { .. } => "it was changed meanwhile".to_owned(),
            Self::AlreadyExists { .. } => "the name is taken".to_owned(),
            Self::NotFound { .. } => "the object or its namespace does not exist".to_owned(),
            Self::Forbidden { .. } => "the API server does not permit it".to_owned(),
            Self::Unauthorized { .. } => "the API server does not accept the credentials".to_owned(),
            Self::Rejected { fields, .. } if fields.is_empty() => {
                "the API server finds it invalid".to_owned()
            }
            Self::Rejected { fields, .. } => format!("the API server finds {} invalid", fields.join(", ")),
            Self::Api { .. } => "the API server failed or could not be reached".to_owned(),
            Self::Timeout { .. } => "the API server did not answer in time".to_owned(),
        }
    }

    /// The right that is missing, such as `get persistentvolumes`; `None` if another thing is wrong. A refusal may also be
    /// one of admission.
    pub fn missing_right(&self) -> Option<String> {
        let Self::Forbidden { verb, object, .. } = self else { return None };
        let mut parts = object.split('?').next()?.split('/').skip_while(|part| !is_version(part)).skip(1);
        let first = parts.next()?;
        let resource = match (first, parts.next(), parts.next()) {
            ("namespaces", Some(_), Some(resource)) => resource,
            _ => first,
        };
        Some(format!("{verb} {resource}"))
    }

    /// Logs that `action` failed for the object of a queue, and returns what the queue does with it. An outdated view is
    /// no news: it is planned again. A server that fails is told of a few times, not for each object.
    pub fn log(&self, key: &str, action: &str) -> Outcome {
        let outcome = self.outcome();
        match outcome {
            Outcome::Stale => tracing::debug!(key, action, error = self.chain(), "outdated, planning again"),
            Outcome::Unanswered => match OUTAGES.take(Instant::now()) {
                Some(0) => tracing::warn!(key, action, error = self.chain(), "write failed"),
                Some(untold) => {
                    tracing::warn!(key, action, error = self.chain(), untold, "write failed, and others did");
                }
                None => tracing::debug!(key, action, error = self.chain(), "write failed"),
            },
            _ => tracing::warn!(key, action, error = self.chain(), "write failed"),
        }
        outcome
    }

    /// The error and its causes in one line, for logs.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error and its causes in one line. Of an answer of an API server code, reason and message: the client's own words
/// repeat the whole answer.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        // A cause in a box is the box.
        let of_client = error
            .downcast_ref::<kube::Error>()
            .or_else(|| error.downcast_ref::<Box<kube::Error>>().map(|boxed| &**boxed));
        let answer = match of_client {
            Some(kube::Error::Api(status)) => Some(&**status),
            _ => None,
        };
        if let Some(status) = answer {
            let answer = [&*status.code.to_string(), " ", &status.reason, ": ", &status.message];
            text.push_str(&answer.concat());
            break;
        }
        next = error.source();
        let said = error.to_string();
        // Some errors repeat their cause.
        let repeated = next.and_then(|cause| said.strip_suffix(&cause.to_string()));
        text.push_str(repeated.map_or(&*said, |own| own.trim_end_matches(": ")));
    }
    text
}

fn is_version(part: &str) -> bool {
    part.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether every API server has objects of this path. Of a kind it does not have, it says 404 without a reason.
fn is_always_served(path: &str) -> bool {
    let kinds = ["/apis/storage.k8s.io/v1/csinodes", "/apis/coordination.k8s.io/v1/namespaces/"];
    if kinds.iter().any(|kind| path.starts_with(kind)) {
        return true;
    }
    // Subresources came one by one.
    let Some(parts) = path.strip_prefix("/api/v1/").map(|rest| rest.split('/').collect::<Vec<_>>()) else {
        return false;
    };
    let object = if parts.first() == Some(&"namespaces") && parts.len() > 2 { 4 } else { 2 };
    parts.len() <= object || parts.get(object..) == Some(&["status"])
}

/// The fields a refusal is about, each once.
fn fields(status: &Status) -> Vec<String> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let mut fields: Vec<String> =
        causes.map(|cause| cause.field.clone()).filter(|field| !field.is_empty()).collect();
    fields.sort();
    fields.dedup();
    fields
}

fn has_cause(status: &Status, reason: &str) -> bool {
    status.details.as_ref().is_some_and(|details| details.causes.iter().any(|cause| cause.reason == reason))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn classified(code: u16, reason: &str, cause: &str) -> ApplyError {
        let status = json!({
            "status": "Failure", "code": code, "reason": reason, "message": "words",
            "details": {"causes": [
                {"reason": cause, "message": "10.0.0.1 says no", "field": "spec.priority"},
                {"reason": cause, "message": "and again", "field": "spec.priority"},
            ]},
        });
        let status: Status = serde_json::from_value(status).unwrap();
        ApplyError::from_kube(Verb::Create, "pods/a", kube::Error::Api(Box::new(status)))
    }

    #[rstest]
    #[case::gone(404, "NotFound", "", "NotFound")]
    #[case::there(409, "AlreadyExists", "", "AlreadyExists")]
    #[case::changed(409, "Conflict", "", "Conflict")]
    #[case::no_right(403, "Forbidden", "", "Forbidden")]
    #[case::namespace_goes(403, "Forbidden", "NamespaceTerminating", "Api")]
    #[case::token_expired(401, "Unauthorized", "", "Unauthorized")]
    #[case::bad(422, "Invalid", "", "Rejected")]
    #[case::busy(429, "TooManyRequests", "", "Api")]
    fn answers_are_classified_by_code_and_reason(
        #[case] code: u16,
        #[case] reason: &str,
        #[case] cause: &str,
        #[case] expected: &str,
    ) {
        let error = format!("{:?}", classified(code, reason, cause));
        assert!(error.starts_with(expected), "{error}");
    }

    /// A load balancer without a server behind it says 404 as well; that an object is gone has to be said by the server.
    #[rstest]
    #[case::object("/api/v1/nodes/n", false)]
    #[case::its_status("/api/v1/nodes/n/status", false)]
    #[case::in_a_namespace("/api/v1/namespaces/a/pods/p", false)]
    #[case::its_status_in_a_namespace("/api/v1/namespaces/a/pods/p/status", false)]
    #[case::list("/api/v1/pods", false)]
    #[case::lease("/apis/coordination.k8s.io/v1/namespaces/a/leases/l", false)]
    #[case::csi_node("/apis/storage.k8s.io/v1/csinodes/n", false)]
    #[case::subresource_that_may_be_missing("/api/v1/namespaces/a/pods/p/resize", true)]
    #[case::kind_that_may_be_missing("/apis/cls.cloud.tencent.com/v1/logconfigs/l", true)]
    fn absence_counts_in_the_servers_own_words(#[case] path: &str, #[case] in_any_words: bool) {
        let of = |reason: &str| {
            let status: Status = serde_json::from_value(json!({"code": 404, "reason": reason})).unwrap();
            let error = ApplyError::from_kube(Verb::Get, path, kube::Error::Api(Box::new(status)));
            matches!(error, ApplyError::NotFound { .. })
        };
        assert!(of("NotFound"));
        assert_eq!(of("Failed to parse error data"), in_any_words);
    }

    #[test]
    fn a_server_that_fails_is_told_of_a_few_times() {
        let (quota, start) = (Quota(Mutex::new(None)), Instant::now());
        let told: Vec<Option<u32>> = (0..15).map(|_| quota.take(start)).collect();
        assert_eq!(told.iter().filter(|it| it.is_some()).count(), 10, "{told:?}");
        assert_eq!(quota.take(start + OUTAGE_PERIOD), Some(5), "what was left unsaid");
        assert_eq!(quota.take(start + OUTAGE_PERIOD), Some(0));
        assert_eq!(quota.take(start + 3 * OUTAGE_PERIOD), Some(0));
    }

    #[test]
    fn an_answer_is_told_once() {
        let chain = classified(500, "InternalError", "").chain();
        assert_eq!(chain.matches("InternalError").count(), 1, "{chain}");
        assert!(chain.starts_with("create pods/a failed: 500 InternalError"), "{chain}");
    }

    #[rstest]
    #[case::of_the_cluster("/api/v1/persistentvolumes/pv-1?fieldManager=x", "get persistentvolumes")]
    #[case::of_a_namespace("/api/v1/namespaces/mount/secrets/v1", "get secrets")]
    #[case::of_a_group("/apis/apps/v1/namespaces/a/replicasets/b", "get replicasets")]
    #[case::a_namespace_itself("/api/v1/namespaces/mount", "get namespaces")]
    fn a_missing_right_is_named_without_the_object(#[case] path: &str, #[case] expected: &str) {
        let forbidden =
            ApplyError::Forbidden { verb: Verb::Get, object: path.to_owned(), message: String::new() };
        assert_eq!(forbidden.missing_right().as_deref(), Some(expected));
        assert_eq!(classified(422, "", "").missing_right(), None);
    }

    #[rstest]
    #[case::names_the_fields(422, "the API server finds spec.priority invalid")]
    #[case::no_right(403, "the API server does not permit it")]
    #[case::failed(500, "the API server failed or could not be reached")]
    fn the_reason_shows_nothing_of_the_server_but_fields(#[case] code: u16, #[case] expected: &str) {
        let error = classified(code, "", "FieldValueInvalid");
        assert_eq!(error.reason(), expected);
    }
}
