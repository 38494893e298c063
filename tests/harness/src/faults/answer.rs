//! Answers of the server, whole and spoiled.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::try_unfold;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::rule::{Active, Fault, Refusal};

pub(super) type AnyBody = UnsyncBoxBody<Bytes, kube::Error>;

/// What was sent before a cut must be on the wire by then: a connection that is dropped sends nothing more.
const FLUSHED: Duration = Duration::from_millis(20);

/// The server's answer as the rule leaves it.
pub(super) fn spoil(
    answer: Response<Body>,
    rule: Arc<Active>,
    connection: CancellationToken,
) -> Response<AnyBody> {
    let (parts, body) = answer.into_parts();
    let body = match rule.fault() {
        Fault::Slow(pause) => slowly(body, pause, rule),
        Fault::CutAfter(bytes) => cut(body, bytes, connection),
        Fault::ExpireWatch => expired(),
        // Decided before there is an answer.
        Fault::Refuse(_) | Fault::LoseAnswer => body.boxed_unsync(),
    };
    Response::from_parts(parts, body)
}

fn slowly(body: Body, pause: Duration, rule: Arc<Active>) -> AnyBody {
    let pieces = try_unfold((body, rule), move |(mut body, rule): (Body, Arc<Active>)| async move {
        let Some(frame) = body.frame().await.transpose()? else { return Ok(None) };
        if !rule.has_ended() {
            tokio::time::sleep(pause).await;
        }
        Ok(Some((frame, (body, rule))))
    });
    BodyExt::boxed_unsync(StreamBody::new(Box::pin(pieces)))
}

fn cut(body: Body, bytes: usize, connection: CancellationToken) -> AnyBody {
    let pieces = try_unfold((body, bytes), move |(mut body, left)| {
        let connection = connection.clone();
        async move {
            if left == 0 {
                tokio::time::sleep(FLUSHED).await;
                connection.cancel();
                return std::future::pending().await;
            }
            let Some(frame) = body.frame().await.transpose()? else { return Ok(None) };
            let Ok(data) = frame.into_data() else { return Ok(None) };
            let data = data.slice(..data.len().min(left));
            let left = left - data.len();
            Ok(Some((Frame::data(data), (body, left))))
        }
    });
    BodyExt::boxed_unsync(StreamBody::new(Box::pin(pieces)))
}

fn expired() -> AnyBody {
    let event = json!({"type": "ERROR", "object": status(StatusCode::GONE, "Expired")});
    whole(format!("{event}\n"))
}

/// A refusal in the form of an API server's, or of somebody in front of it.
pub(super) fn refuse(refusal: Refusal) -> Response<AnyBody> {
    let (code, reason, retry_after) = match refusal {
        Refusal::Conflict => (StatusCode::CONFLICT, "Conflict", None),
        Refusal::Gone => (StatusCode::GONE, "Expired", None),
        Refusal::TooManyRequests(seconds) => {
            (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", Some(seconds))
        }
        Refusal::InternalError => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", None),
        Refusal::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", None),
        Refusal::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized", None),
        Refusal::NoServer => {
            let mut answer = Response::new(whole("404 page not found\n".to_owned()));
            *answer.status_mut() = StatusCode::NOT_FOUND;
            return answer;
        }
    };
    let mut answer = Response::new(whole(status(code, reason).to_string()));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    answer
}

fn status(code: StatusCode, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "a fault test refuses this request", "reason": reason, "code": code.as_u16(),
    })
}

fn whole(text: String) -> AnyBody {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}
