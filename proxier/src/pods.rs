//! `/pods`: the pods bound to a vnode, as the computing cluster lists them.
//!
//! The list is read whole before the caller gets the first byte. All requests to the computing cluster share one connection,
//! and an answer that is not read takes a part of its window: some callers that read nothing would hold up everybody's
//! authentication. What is held for callers is bounded by places, and who reads too slowly is cut off.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use http::{Request, StatusCode, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::Bytes;
use kube::client::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    answer::{Answer, AnswerBody, BodyError, Refusal, empty},
    listen::connection::{Caller, CutGuard},
    proxier::Shared,
};

/// Lists that are read or sent at a time.
const PLACES: usize = 4;
/// Largest list.
const MAX_BYTES: usize = 16 << 20;
/// Longest wait for a place and the list, and longest time to send it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Sent at a time: what was handed to the connection counts as read.
const PIECE: usize = 64 << 10;

/// The places of the process.
#[derive(Debug)]
pub(crate) struct Lists(Arc<Semaphore>);

impl Default for Lists {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PLACES)))
    }
}

/// What a list that is being sent holds until its last piece is handed over, or the caller is gone.
struct Held {
    _place: OwnedSemaphorePermit,
    _guard: CutGuard,
    /// Ends the wait for slow readers.
    _sent: DropGuard,
}

/// Answers with the pods of a vnode.
pub(crate) async fn answer(shared: &Shared, caller: &Caller, vnode: &str) -> Result<Answer, Refusal> {
    let failed = |error: String| {
        tracing::warn!(error, "the pods of a virtual node cannot be listed");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the pods could not be listed")
    };
    let reading = async {
        let place = Arc::clone(&shared.lists.0).acquire_owned().await.map_err(|error| error.to_string())?;
        let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{vnode}");
        let request = Request::get(path).body(Body::empty()).map_err(|error| error.to_string())?;
        let response = shared.computing.send(request).await.map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        if parts.status != StatusCode::OK {
            return Err(format!("status {}", parts.status));
        }
        let list = Limited::new(body, MAX_BYTES).collect().await.map_err(|error| error.to_string())?;
        Ok((place, parts.headers.get(CONTENT_TYPE).cloned(), list.to_bytes()))
    };
    let read = tokio::time::timeout(PATIENCE, reading).await;
    let (place, kind, list) = match read {
        Ok(read) => read.map_err(failed)?,
        Err(_) => return Err(failed("no answer in time".to_owned())),
    };
    let body = sending(list, place, &shared.tasks, |cut| caller.ends_with(cut));
    let mut answer = empty(StatusCode::OK).map(|_| body);
    if let Some(kind) = kind {
        answer.headers_mut().insert(CONTENT_TYPE, kind);
    }
    Ok(answer)
}

/// The list, piece by piece. `guard` gets what cuts the connection of a reader that does not take all of them in time.
pub(crate) fn sending(
    list: Bytes,
    place: OwnedSemaphorePermit,
    tasks: &TaskTracker,
    guard: impl FnOnce(CancellationToken) -> CutGuard,
) -> AnswerBody {
    let (cut, sent) = (CancellationToken::new(), CancellationToken::new());
    let held = Held { _place: place, _guard: guard(cut.clone()), _sent: sent.clone().drop_guard() };
    tasks.spawn(async move {
        if tokio::time::timeout(PATIENCE, sent.cancelled()).await.is_err() {
            cut.cancel();
        }
    });
    let sending = stream::iter(pieces(list)).map(move |piece| {
        let _held = &held;
        Ok::<_, BodyError>(Frame::data(piece))
    });
    StreamBody::new(sending).boxed_unsync()
}

/// Copies: the last pieces may wait in a connection after the place was given back, and must not keep the list.
fn pieces(list: Bytes) -> impl Iterator<Item = Bytes> {
    (0..list.len())
        .step_by(PIECE)
        .map(move |at| Bytes::copy_from_slice(&list[at..list.len().min(at + PIECE)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_sent_in_pieces_that_a_connection_does_not_hoard() {
        for length in [0, 1, PIECE, PIECE + 1, 5 * PIECE - 1] {
            let list: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let sent: Vec<Bytes> = pieces(list.clone().into()).collect();
            assert_eq!(sent.concat(), list);
            assert!(sent.iter().all(|piece| piece.len() <= PIECE));
        }
    }

    #[test]
    fn a_piece_that_waits_in_a_connection_does_not_keep_the_list() {
        let list = Bytes::from(vec![b'x'; 3 * PIECE]);
        let waiting: Vec<Bytes> = pieces(list.clone()).collect();
        assert_eq!(waiting.len(), 3);
        assert!(list.is_unique());
    }
}
