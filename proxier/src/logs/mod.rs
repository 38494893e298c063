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
    listen::connection::CutGuard,
    resolve::Resolved,
    route::PodRoute,
    stream::slots::Slot,
    worker::{PodRequest, WorkerLink, dial::ConnectionGuard},
};
use options::LogOptions;

/// What ends a log from outside.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Its vnode is gone.
    pub(crate) cut: CancellationToken,
    /// The process ends.
    pub(crate) stop: CancellationToken,
}

/// Asks the worker and answers with what it says, as it says it. `guard` cuts the caller's connection with the vnode, also
/// while the caller pauses or the worker has not answered.
pub(crate) async fn open(
    route: &PodRoute,
    resolved: &Resolved,
    worker: &WorkerLink,
    options: &LogOptions,
    slot: Slot,
    ends: Ends,
    guard: CutGuard,
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
        cut: Box::pin(ends.cut.clone().cancelled_owned()),
        stop: Box::pin(ends.stop.clone().cancelled_owned()),
        ends,
        _guard: guard,
        over: false,
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
    ends: Ends,
    _guard: CutGuard,
    /// Whether it is said why it ended.
    over: bool,
}

impl LogBody {
    fn over(&mut self, reason: &'static str) {
        self.over = true;
        self.slot.ends(reason);
    }
}

impl Drop for LogBody {
    fn drop(&mut self) {
        // The connection of a reader that pauses is cut without a word to the body.
        if !self.over && (self.ends.cut.is_cancelled() || self.ends.stop.is_cancelled()) {
            self.slot.ends("told");
        }
    }
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
            this.over("told");
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
                this.over("broken");
                Some(Err(error.into()))
            }
            None => {
                this.over("finished");
                None
            }
        })
    }
}
