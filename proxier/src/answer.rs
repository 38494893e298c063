//! What goes back to the caller when nothing is streamed: one line of plain text and a status (PX-511, PX-1401).

use std::borrow::Cow;

use http::{
    HeaderValue, Response, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS},
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Bytes;

use crate::stream::slots::Limit;

/// Error of a response body; it ends the connection without the mark of a complete body.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// Body of every response.
pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, BodyError>;
/// A response to a caller of the kubelet API.
pub(crate) type Answer = Response<AnswerBody>;

/// Name of the header by which a server lists the stream protocols it would have taken.
pub(crate) const ACCEPTED_PROTOCOLS: &str = "x-accepted-stream-protocol-versions";

/// A request that is not served, and what the caller reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Status.
    pub(crate) code: StatusCode,
    /// The body, one line.
    pub(crate) text: Cow<'static, str>,
    /// Value of `Allow`, with 405.
    pub(crate) allow: Option<&'static str>,
    /// Value of `X-Accepted-Stream-Protocol-Versions`, with a failed negotiation.
    pub(crate) protocols: Option<HeaderValue>,
}

impl Refusal {
    /// A refusal without further headers.
    pub(crate) fn new(code: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, text: text.into(), allow: None, protocols: None }
    }

    /// Credentials are missing or wrong (PX-412).
    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized")
    }

    /// The path leads nowhere (PX-511).
    pub(crate) fn unknown_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "404 page not found")
    }

    /// The path does not take this method (PX-511).
    pub(crate) fn method(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed") }
    }

    /// A stream limit is reached (PX-1306).
    pub(crate) fn too_many_streams(reached: Limit) -> Self {
        let text = match reached {
            Limit::Process => "too many open streams",
            Limit::Namespace => "too many open streams to pods of this namespace",
            Limit::Pod => "too many open streams to this pod",
        };
        Self::new(StatusCode::TOO_MANY_REQUESTS, text)
    }

    /// The process ends (PX-1202).
    pub(crate) fn draining() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "proxier is shutting down")
    }

    /// There is no connection to the worker cluster.
    pub(crate) fn unreachable() -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "worker cluster unreachable")
    }

    /// The worker cluster took too long.
    pub(crate) fn worker_timeout() -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "worker cluster did not answer in time")
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let mut answer = text(refusal.code, refusal.text);
        let headers = answer.headers_mut();
        if let Some(allow) = refusal.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if refusal.code == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(protocols) = refusal.protocols {
            headers.insert(ACCEPTED_PROTOCOLS, protocols);
        }
        if refusal.code == StatusCode::UNAUTHORIZED { last(answer) } else { answer }
    }
}

/// Ends the connection with this answer. Who proves nothing would keep a place among strangers with one question after the
/// other (PX-1302).
pub(crate) fn last(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// A text answer.
pub(crate) fn text(code: StatusCode, body: impl Into<Cow<'static, str>>) -> Answer {
    of(code, "text/plain; charset=utf-8", body)
}

/// A JSON answer.
pub(crate) fn json(body: &serde_json::Value) -> Answer {
    of(StatusCode::OK, "application/json", body.to_string())
}

fn of(code: StatusCode, kind: &'static str, body: impl Into<Cow<'static, str>>) -> Answer {
    let bytes = match body.into() {
        Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
        Cow::Owned(text) => Bytes::from(text),
    };
    let mut answer = Response::new(Full::new(bytes).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = code;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// An answer without body, for 101.
pub(crate) fn empty(code: StatusCode) -> Answer {
    let mut answer =
        Response::new(http_body_util::Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = code;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_the_headers_of_its_status() {
        let wrong_method = Answer::from(Refusal::method("GET, POST"));
        assert_eq!(
            (wrong_method.status().as_u16(), wrong_method.headers()[ALLOW].to_str().unwrap()),
            (405, "GET, POST")
        );
        let busy = Answer::from(Refusal::too_many_streams(Limit::Pod));
        assert_eq!((busy.status().as_u16(), busy.headers()[RETRY_AFTER].to_str().unwrap()), (429, "1"));
        assert_eq!(busy.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert!(!busy.headers().contains_key(CONNECTION), "who is known may ask again");
        assert_eq!(Answer::from(Refusal::unauthorized()).headers()[CONNECTION], "close");
    }

    #[test]
    fn a_stream_that_is_refused_is_told_which_limit_it_met() {
        let text = |limit| Refusal::too_many_streams(limit).text;
        let texts = [Limit::Process, Limit::Namespace, Limit::Pod].map(text);
        assert_eq!(
            texts,
            [
                "too many open streams",
                "too many open streams to pods of this namespace",
                "too many open streams to this pod"
            ]
        );
    }
}
