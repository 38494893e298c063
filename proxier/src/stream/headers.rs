//! Headers of an upgrade: which are passed to the worker, and which of its answer come back (PX-811, PX-812, PX-813).
//! Pure.

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};

use crate::answer::Refusal;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// A bearer token in the place of a protocol name, as browsers must send it.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

const UP: [HeaderName; 4] =
    [STREAM_PROTOCOL, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_EXTENSIONS];
const DOWN: [HeaderName; 5] =
    [UPGRADE, STREAM_PROTOCOL, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_EXTENSIONS];

/// The headers of the request to the worker, or why this is no upgrade.
pub(crate) fn to_worker(headers: &HeaderMap) -> Result<HeaderMap, Refusal> {
    let refused = |text| Refusal::new(StatusCode::BAD_REQUEST, text);
    let asks = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    let (true, Some(protocol)) = (asks, protocol) else { return Err(refused("Upgrade request required")) };
    if !protocol.eq_ignore_ascii_case("SPDY/3.1") && !protocol.eq_ignore_ascii_case("websocket") {
        return Err(refused("unable to upgrade: only SPDY/3.1 and websocket are supported"));
    }
    let mut out = HeaderMap::new();
    out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    copy(headers, &mut out, &[UPGRADE]);
    copy(headers, &mut out, &UP);
    for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        if let Some(value) = without_tokens(value) {
            out.append(SEC_WEBSOCKET_PROTOCOL, value);
        }
    }
    Ok(out)
}

/// The headers of our 101.
pub(crate) fn to_caller(worker: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    copy(worker, &mut out, &DOWN);
    out
}

fn copy(from: &HeaderMap, to: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        for value in from.get_all(name) {
            to.append(name, value.clone());
        }
    }
}

fn without_tokens(value: &HeaderValue) -> Option<HeaderValue> {
    let text = value.to_str().ok()?;
    let kept: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty() && !protocol.starts_with(TOKEN_PROTOCOL))
        .collect();
    if kept.is_empty() { None } else { HeaderValue::from_str(&kept.join(", ")).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn only_what_an_upgrade_needs_reaches_the_worker() {
        let given = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
            ("authorization", "Bearer secret"),
            ("impersonate-user", "admin"),
            ("x-remote-user", "admin"),
            ("cookie", "a=b"),
        ]);
        let expected = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
        ]);
        assert_eq!(to_worker(&given), Ok(expected));
    }

    #[test]
    fn a_token_among_web_socket_protocols_is_removed() {
        let given = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "a2V5"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.c2VjcmV0"),
        ]);
        let out = to_worker(&given).unwrap();
        let protocols: Vec<_> = out.get_all("sec-websocket-protocol").iter().collect();
        assert_eq!(protocols, ["v4.channel.k8s.io"]);
        assert_eq!(out["sec-websocket-key"], "a2V5");
    }

    #[rstest]
    #[case::no_upgrade(&[], "Upgrade request required")]
    #[case::no_connection(&[("upgrade", "SPDY/3.1")], "Upgrade request required")]
    #[case::no_protocol(&[("connection", "Upgrade")], "Upgrade request required")]
    #[case::other_protocol(
        &[("connection", "Upgrade"), ("upgrade", "h2c")],
        "unable to upgrade: only SPDY/3.1 and websocket are supported"
    )]
    fn no_upgrade(#[case] given: &[(&str, &str)], #[case] text: &str) {
        let refusal = to_worker(&headers(given)).unwrap_err();
        assert_eq!((refusal.code, &*refusal.text), (StatusCode::BAD_REQUEST, text));
    }

    #[test]
    fn the_answer_carries_the_negotiation_and_nothing_else() {
        let worker = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("audit-id", "x"),
            ("x-kubernetes-pf-flowschema-uid", "x"),
        ]);
        let expected = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ]);
        assert_eq!(to_caller(&worker), expected);
    }
}
