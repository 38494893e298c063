//! Logs: one request to the worker, its answer passed on frame by frame (PX section 7).

pub(crate) mod options;

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_TYPE},
};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    answer::{Answer, BodyError, Refusal, empty},
    resolve::Resolved,
    route::PodRoute,
    stream::slots::Slot,
    worker::{PodRequest, WorkerLink, dial::ConnectionGuard},
};
use options::LogOptions;

/// Asks the worker and answers with what it says, as it says it.
pub(crate) async fn open(
    route: &PodRoute,
    resolved: &Resolved,
    worker: &WorkerLink,
    options: &LogOptions,
    slot: Slot,
    [cut, stop]: [CancellationToken; 2],
) -> Result<Answer, Refusal> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let asked = PodRequest {
        route,
        resolved,
        method: Method::GET,
        query: options.worker_query(route.container.as_deref().unwrap_or_default()),
        headers,
        // A kubelet answers a followed log when the container next writes something.
        patient: options.follow,
    };
    let (parts, body) = worker.open(asked, StatusCode::OK).await?.into_parts();
    let body = LogBody {
        inner: body,
        _connection: parts.extensions.get::<ConnectionGuard>().cloned(),
        slot,
        cut: Box::pin(cut.cancelled_owned()),
        stop: Box::pin(stop.cancelled_owned()),
    };
    let mut answer = empty(StatusCode::OK).map(|_| body.boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(answer)
}

/// The worker's body. Dropping it closes the worker's connection; an error ends the caller's without the mark of a
/// complete body (PX-712).
struct LogBody {
    inner: Incoming,
    _connection: Option<ConnectionGuard>,
    slot: Slot,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Body for LogBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.cut.as_mut().poll(cx).is_ready() || this.stop.as_mut().poll(cx).is_ready() {
            this.slot.ends("told");
            return Poll::Ready(Some(Err("the stream was told to end".into())));
        }
        Poll::Ready(match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                this.slot.count(0, bytes as u64);
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "the worker cluster broke off a log");
                this.slot.ends("broken");
                Some(Err(error.into()))
            }
            None => {
                this.slot.ends("finished");
                None
            }
        })
    }
}
