//! One round of questions to a worker: version, then what its user may do. Reads and reviews only.

use std::{error::Error, io, time::Duration};

use axum::body::to_bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use kube::{Client, client::Body};
use kubeocean_runtime::request::paths;
use serde::Deserialize;
use serde_json::{Value, json};

use super::rights::{Lacking, Rule, Scope, lacking};

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer. A worker is not one of us: it may send without end.
const ANSWER_BYTES: usize = 4 << 20;
/// Longest version that is believed to be one; it becomes part of a binding's status.
const VERSION_CHARACTERS: usize = 64;
/// A namespace nobody has a role in, so that what is allowed there is allowed everywhere. It need not exist.
const NOBODYS_NAMESPACE: &str = "kubeocean-no-such-namespace";

/// What a worker answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing, for a reason of API-802.
    Nothing {
        /// The reason.
        reason: &'static str,
        /// What happened, for humans.
        detail: String,
    },
    /// It does not accept the credentials.
    Unauthorized,
    /// It accepts them.
    Accepted {
        /// Its version.
        version: String,
        /// Rights that are not granted.
        lacking: Vec<Lacking>,
        /// What else is missing, for humans.
        absent: Vec<String>,
    },
}

/// Asks the worker behind `client`.
pub async fn ask(client: &Client, mount_namespace: &str) -> Answer {
    match questions(client, mount_namespace).await {
        Ok(answer) => answer,
        Err(Trouble::Unauthorized) => Answer::Unauthorized,
        Err(Trouble::Silent(reason, detail)) => Answer::Nothing { reason, detail },
    }
}

enum Trouble {
    Unauthorized,
    Silent(&'static str, String),
}

async fn questions(client: &Client, mount_namespace: &str) -> Result<Answer, Trouble> {
    let version = match get(client, "/version").await? {
        Found::Yes(version) => short(version["gitVersion"].as_str().unwrap_or_default()),
        Found::No | Found::Forbidden => String::new(),
    };
    let everywhere = rules(client, NOBODYS_NAMESPACE).await?;
    let mount = rules(client, mount_namespace).await?;
    let mut missing = Vec::new();
    for one in lacking(&everywhere.rules, &mount.rules) {
        // Authorizers that cannot list rules are asked for each.
        let incomplete = everywhere.incomplete || mount.incomplete;
        if !incomplete || !may(client, &one, mount_namespace).await? {
            missing.push(one);
        }
    }
    let mut absent = Vec::new();
    if matches!(get(client, &paths::namespace(mount_namespace)).await?, Found::No) {
        absent.push(format!("namespace {mount_namespace} does not exist in the worker cluster"));
    }
    let policies = format!("/apis/{}/{}", kubeocean_api::GROUP, kubeocean_api::VERSION);
    if matches!(get(client, &policies).await?, Found::No) {
        absent.push("the worker cluster has no ResourceLeasingPolicy; install the worker chart".to_owned());
    }
    Ok(Answer::Accepted { version, lacking: missing, absent })
}

fn short(version: &str) -> String {
    version.chars().take(VERSION_CHARACTERS).collect()
}

enum Found {
    Yes(Value),
    No,
    Forbidden,
}

async fn get(client: &Client, path: &str) -> Result<Found, Trouble> {
    send(client, Method::GET, path, &Value::Null).await
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rules {
    #[serde(rename = "resourceRules")]
    rules: Vec<Rule>,
    incomplete: bool,
}

async fn rules(client: &Client, namespace: &str) -> Result<Rules, Trouble> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    match send(client, Method::POST, path, &review).await? {
        Found::Yes(answer) => Ok(serde_json::from_value(answer["status"].clone()).unwrap_or_default()),
        // A cluster that took this right away from its users must be asked for each right, and may refuse that, too.
        Found::No | Found::Forbidden => Ok(Rules { rules: Vec::new(), incomplete: true }),
    }
}

async fn may(client: &Client, right: &Lacking, mount_namespace: &str) -> Result<bool, Trouble> {
    let (resource, subresource) = right.resource.split_once('/').unwrap_or((right.resource, ""));
    let namespace = match right.scope {
        Scope::Cluster => "",
        Scope::Mount => mount_namespace,
    };
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "group": right.group, "resource": resource, "subresource": subresource, "verb": right.verb,
            "namespace": namespace,
        }},
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    Ok(match send(client, Method::POST, path, &review).await? {
        Found::Yes(answer) => answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or(false),
        Found::No | Found::Forbidden => false,
    })
}

async fn send(client: &Client, method: Method, path: &str, body: &Value) -> Result<Found, Trouble> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .map_err(|_| Trouble::Silent("ConnectivityFailed", "the request cannot be formed".to_owned()))?;
    match tokio::time::timeout(TIMEOUT, answer(client, request)).await {
        Ok(found) => found,
        Err(_) => Err(Trouble::Silent("Timeout", format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

async fn answer(client: &Client, request: Request<Body>) -> Result<Found, Trouble> {
    let answer = client.send(request).await;
    read(answer.map_err(|error| silent(&error, "the connection failed"))?).await
}

async fn read(answer: Response<Body>) -> Result<Found, Trouble> {
    let failed = |detail: String| Err(Trouble::Silent("ConnectivityFailed", detail));
    match answer.status() {
        status if status.is_success() => {}
        StatusCode::UNAUTHORIZED => return Err(Trouble::Unauthorized),
        StatusCode::FORBIDDEN => return Ok(Found::Forbidden),
        StatusCode::NOT_FOUND => return Ok(Found::No),
        other => return failed(format!("it answered with status {}", other.as_u16())),
    }
    let body = to_bytes(axum::body::Body::new(answer.into_body()), ANSWER_BYTES).await;
    let body = body.map_err(|error| silent(&error, "its answer broke off, or is larger than 4 MiB"))?;
    match serde_json::from_slice(&body) {
        Ok(value) => Ok(Found::Yes(value)),
        Err(_) => failed("its answer is no JSON".to_owned()),
    }
}

fn silent(error: &(dyn Error + 'static), otherwise: &str) -> Trouble {
    let (reason, detail) = classify(error).unwrap_or_else(|| ("ConnectivityFailed", otherwise.to_owned()));
    Trouble::Silent(reason, detail)
}

/// The reason of API-802 for an error of the connection, by its type.
fn classify(error: &(dyn Error + 'static)) -> Option<(&'static str, String)> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(reason) = error.downcast_ref::<io::Error>().and_then(classify_io) {
            return Some(reason);
        }
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(("TLSFailed", tls.to_string()));
        }
        cause = error.source();
    }
    None
}

/// What an io::Error wraps is not among its sources, and may wrap again.
fn classify_io(error: &io::Error) -> Option<(&'static str, String)> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => return Some(("Refused", "connection refused".to_owned())),
        io::ErrorKind::TimedOut => return Some(("Timeout", "the connection timed out".to_owned())),
        _ => {}
    }
    let inner = error.get_ref()?;
    if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
        return Some(("TLSFailed", tls.to_string()));
    }
    inner.downcast_ref::<io::Error>().and_then(classify_io)
}

/// Whether the name of the worker's server has an address: tells a failed look-up from other failures.
pub async fn resolves(server: &http::Uri) -> bool {
    let Some(host) = server.host() else { return true };
    let host = host.trim_matches(['[', ']']).to_owned();
    let port = server.port_u16().unwrap_or(443);
    match tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((host.as_str(), port))).await {
        Ok(found) => found.is_ok_and(|mut addresses| addresses.next().is_some()),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_inside_errors_are_found() {
        let reason = |error: &kube::Error| classify(error).map(|(reason, _)| reason);
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls));
        assert_eq!(reason(&kube::Error::Service(Box::new(wrapped))), Some("TLSFailed"));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(reason(&kube::Error::Service(Box::new(io::Error::other(refused)))), Some("Refused"));
        assert_eq!(reason(&kube::Error::LinesCodecMaxLineLengthExceeded), None);
    }

    #[tokio::test]
    async fn an_answer_without_end_is_none_and_a_version_is_short() {
        let said = |status: u16, body: String| {
            read(Response::builder().status(status).body(Body::from(body.into_bytes())).unwrap())
        };
        let version = |length: usize| json!({"gitVersion": "v".repeat(length)}).to_string();
        let Ok(Found::Yes(small)) = said(200, version(1000)).await else { panic!("it is an answer") };
        assert_eq!(short(small["gitVersion"].as_str().unwrap()).len(), VERSION_CHARACTERS);
        assert_eq!(short("v1.34.2"), "v1.34.2");
        let large = said(200, version(ANSWER_BYTES)).await;
        let Err(Trouble::Silent(reason, detail)) = large else { panic!("it is too large") };
        assert_eq!(reason, "ConnectivityFailed");
        assert!(detail.contains(&format!("larger than {} MiB", ANSWER_BYTES >> 20)), "{detail}");
        assert!(matches!(said(404, String::new()).await, Ok(Found::No)));
        assert!(matches!(said(401, version(ANSWER_BYTES)).await, Err(Trouble::Unauthorized)));
        assert!(matches!(said(200, "?".to_owned()).await, Err(Trouble::Silent(..))));
    }
}
