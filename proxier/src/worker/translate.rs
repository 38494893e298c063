//! Refusals of the worker cluster in the words of the computing cluster (PX-1404, PX-1405). Pure.
//!
//! Invariant: no name, address or namespace of the worker cluster gets through.

use http::{HeaderValue, StatusCode};
use serde::Deserialize;

use crate::{
    answer::Refusal,
    resolve::Resolved,
    route::{PodOperation, PodRoute},
};

/// Longest text that is passed on, in bytes.
const TEXT_MAX: usize = 4096;
const GENERIC: &str = "the worker cluster could not serve the request";

/// What the worker's answer, which is no success, means to the caller; `protocols` are those it would have taken.
pub(crate) fn refusal(
    route: &PodRoute,
    resolved: &Resolved,
    verb: &str,
    code: StatusCode,
    protocols: Option<HeaderValue>,
    body: &[u8],
) -> Refusal {
    let text = message(body);
    let refusal = match code.as_u16() {
        // No protocol in common (PX-813): nobody lacks a right.
        403 if protocols.is_some() => Refusal::new(code, safe_text(&text, route, resolved)),
        401 | 403 => {
            let subresource = route.operation.subresource();
            tracing::error!(
                code = code.as_u16(),
                text,
                ppod = resolved.path(),
                "the worker cluster refused {verb} pods/{subresource}: check the rights of the binding's credentials"
            );
            Refusal::new(
                StatusCode::BAD_GATEWAY,
                format!("the worker cluster refused {verb} pods/{subresource} to this binding's credentials"),
            )
        }
        404 if !text.contains("container") => unknown_pod(route),
        400 | 404 | 409 | 410 | 422 | 429 | 500 | 503 => {
            Refusal::new(code, safe_text(&text, route, resolved))
        }
        _ => Refusal::new(StatusCode::BAD_GATEWAY, safe_text(&text, route, resolved)),
    };
    Refusal { protocols, ..refusal }
}

/// The pod is not here, or not the caller's (PX-1403). All reasons look alike.
pub(crate) fn unknown_pod(route: &PodRoute) -> Refusal {
    let text = match route.operation {
        PodOperation::Logs => format!("pod \"{}\" does not exist", route.pod),
        _ => "pod does not exist".to_owned(),
    };
    Refusal::new(StatusCode::NOT_FOUND, text)
}

/// The message of a `Status`, or the text as it is.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    let text = match serde_json::from_slice::<Status>(body) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    kubeocean_runtime::events::cut(&line, TEXT_MAX).to_owned()
}

fn safe_text(text: &str, route: &PodRoute, resolved: &Resolved) -> String {
    // The exact name first: a mount namespace may be a part of it.
    let text = text.replace(resolved.name(), &route.pod).replace(resolved.namespace(), &route.namespace);
    let suffix =
        resolved.name().rsplit('-').next().filter(|suffix| suffix.len() >= 8 && *suffix != route.pod);
    let leaks = suffix.is_some_and(|suffix| text.contains(suffix)) || mentions_machine(&text);
    if text.is_empty() || leaks { GENERIC.to_owned() } else { text }
}

/// Whether a text speaks of an address, a URL or a connection: such texts name nodes.
fn mentions_machine(text: &str) -> bool {
    let phrases = ["://", "dial ", "lookup ", "no such host", "connection refused", "node \"", "node/"];
    let is_address = |word: &str| {
        let word = word.trim_matches(|c: char| !c.is_ascii_hexdigit() && c != ':' && c != '[' && c != ']');
        let host = word.rsplit_once(':').map_or(word, |(host, _)| host).trim_matches(['[', ']']);
        [word, host].into_iter().any(|text| text.parse::<std::net::IpAddr>().is_ok())
    };
    phrases.iter().any(|phrase| text.contains(phrase))
        || text.split(|c: char| c.is_whitespace() || "\"'(),;/".contains(c)).any(is_address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn route(operation: PodOperation) -> PodRoute {
        PodRoute {
            operation,
            namespace: "shop".to_owned(),
            pod: "web-0".to_owned(),
            uid: None,
            container: Some("c".to_owned()),
        }
    }

    fn translated(code: u16, body: &str) -> (u16, String) {
        let resolved = Resolved::for_tests("kubeocean-worker", "web-0-0123456789abcdef0123456789abcdef");
        let code = StatusCode::from_u16(code).unwrap();
        let refusal = refusal(&route(PodOperation::Logs), &resolved, "get", code, None, body.as_bytes());
        (refusal.code.as_u16(), refusal.text.into_owned())
    }

    const PPOD: &str = "web-0-0123456789abcdef0123456789abcdef";

    #[rstest]
    #[case(
        400,
        "container \"c\" in pod \"PPOD\" is waiting to start: ImagePullBackOff",
        400,
        "container \"c\" in pod \"web-0\" is waiting to start: ImagePullBackOff"
    )]
    #[case(
        400,
        "previous terminated container \"c\" in pod \"PPOD\" not found",
        400,
        "previous terminated container \"c\" in pod \"web-0\" not found"
    )]
    #[case(400, "container c is not valid for pod PPOD", 400, "container c is not valid for pod web-0")]
    #[case(404, "pods \"PPOD\" not found", 404, "pod \"web-0\" does not exist")]
    #[case(404, "container not found (\"c\")", 404, "container not found (\"c\")")]
    #[case(
        403,
        "pods \"PPOD\" is forbidden: User \"x\" cannot get resource \"pods/log\"",
        502,
        "the worker cluster refused get pods/log to this binding's credentials"
    )]
    #[case(401, "Unauthorized", 502, "the worker cluster refused get pods/log to this binding's credentials")]
    #[case::namespace(500, "failed in kubeocean-worker", 500, "failed in shop")]
    #[case::url(500, "Get \"https://10.0.0.7:10250/containerLogs/x\": EOF", 500, GENERIC)]
    #[case::address(500, "error from 10.0.0.7:10250", 500, GENERIC)]
    #[case::v6_address(500, "error from [fd00::1]:10250", 500, GENERIC)]
    #[case::node(500, "error dialing backend: dial tcp: lookup worker-1: no such host", 500, GENERIC)]
    #[case::rest_of_the_name(500, "sandbox x-0123456789abcdef0123456789abcdef failed", 500, GENERIC)]
    #[case(500, "", 500, GENERIC)]
    #[case(418, "teapot", 502, "teapot")]
    #[case(302, "", 502, GENERIC)]
    #[case::two_lines(400, "a\nb", 400, "a b")]
    fn texts(#[case] code: u16, #[case] text: &str, #[case] expected_code: u16, #[case] expected: &str) {
        let text = text.replace("PPOD", PPOD);
        let wanted = (expected_code, expected.to_owned());
        assert_eq!(translated(code, &text), wanted);
        let status = serde_json::json!({"kind": "Status", "message": text, "code": code}).to_string();
        assert_eq!(translated(code, &status), wanted);
    }

    #[test]
    fn a_failed_negotiation_is_no_lack_of_rights() {
        let resolved = Resolved::for_tests("kubeocean-worker", PPOD);
        let taken = HeaderValue::from_static("v4.channel.k8s.io");
        let text =
            "unable to upgrade: unable to negotiate protocol: client supports [v9], server accepts [v4]";
        let refused = |code, protocols: Option<&HeaderValue>| {
            let route = route(PodOperation::Exec);
            refusal(&route, &resolved, "create", code, protocols.cloned(), text.as_bytes())
        };
        let expected =
            Refusal { protocols: Some(taken.clone()), ..Refusal::new(StatusCode::FORBIDDEN, text) };
        assert_eq!(refused(StatusCode::FORBIDDEN, Some(&taken)), expected);
        assert_eq!(refused(StatusCode::FORBIDDEN, None).code, StatusCode::BAD_GATEWAY);
        assert_eq!(refused(StatusCode::UNAUTHORIZED, Some(&taken)).code, StatusCode::BAD_GATEWAY);
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(translated(500, &"x".repeat(10_000)).1.len(), TEXT_MAX);
    }
}
