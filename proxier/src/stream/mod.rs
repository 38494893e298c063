//! Exec, attach and port-forward: the caller's connection and one to the worker become one tunnel (PX section 8).

pub(crate) mod headers;
pub(crate) mod query;
pub(crate) mod slots;
pub(crate) mod tunnel;

use std::{sync::Arc, time::Duration};

use http::{Method, Request, StatusCode};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    answer::{Answer, Refusal, empty},
    resolve::Resolved,
    route::PodRoute,
    worker::{PodRequest, WorkerLink},
};
use slots::Slot;
use tunnel::{TunnelLimits, tunnel};

/// How long the caller may take to notice our 101.
const SWITCH: Duration = Duration::from_secs(10);

/// What a tunnel needs beside the request.
#[derive(Debug, Clone)]
pub(crate) struct TunnelContext {
    /// When it ends by itself.
    pub(crate) limits: TunnelLimits,
    /// Ends it because its vnode is gone.
    pub(crate) cut: CancellationToken,
    /// Ends it because the process ends.
    pub(crate) stop: CancellationToken,
    /// Runs it.
    pub(crate) tasks: TaskTracker,
}

/// Whether a request can become a tunnel at all; asked before anything is looked up.
pub(crate) fn check(route: &PodRoute, request: &Request<Incoming>) -> Result<Prepared, Refusal> {
    let headers = headers::to_worker(request.headers())?;
    let query = request.uri().query().unwrap_or_default();
    let query = query::worker_query(route.operation, route.container.as_deref(), query)?;
    Ok(Prepared { headers, query })
}

/// The worker's side of a request.
#[derive(Debug)]
pub(crate) struct Prepared {
    headers: http::HeaderMap,
    query: String,
}

/// Opens the worker's side, answers 101, and leaves the rest to a task.
pub(crate) async fn open(
    route: &PodRoute,
    resolved: &Resolved,
    worker: &WorkerLink,
    prepared: Prepared,
    mut request: Request<Incoming>,
    slot: Slot,
    context: TunnelContext,
) -> Result<Answer, Refusal> {
    let asked = PodRequest {
        route,
        resolved,
        method: if request.method() == Method::POST { Method::POST } else { Method::GET },
        query: prepared.query,
        headers: prepared.headers,
        patient: false,
    };
    let response = worker.open(asked, StatusCode::SWITCHING_PROTOCOLS).await?;
    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    *answer.headers_mut() = headers::to_caller(response.headers());
    let caller_side = hyper::upgrade::on(&mut request);
    let worker_side = hyper::upgrade::on(response);
    let tasks = context.tasks.clone();
    tasks.spawn(run(caller_side, worker_side, Arc::new(slot), context));
    Ok(answer)
}

async fn run(caller: OnUpgrade, worker: OnUpgrade, slot: Arc<Slot>, context: TunnelContext) {
    let switched = tokio::time::timeout(SWITCH, async { tokio::try_join!(caller, worker) }).await;
    let (caller, worker) = match switched {
        Ok(Ok(sides)) => sides,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a connection ended before it became a tunnel");
            slot.ends("no switch");
            return;
        }
        Err(_) => {
            slot.ends("no switch");
            return;
        }
    };
    let told = async {
        tokio::select! {
            () = context.cut.cancelled() => {}
            () = context.stop.cancelled() => {}
        }
    };
    let summary = tunnel(TokioIo::new(caller), TokioIo::new(worker), context.limits, told).await;
    slot.count(summary.up, summary.down);
    slot.ends(summary.end.label());
}
