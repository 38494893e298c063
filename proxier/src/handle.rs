//! One request: who calls, what is asked of which vnode, may it, and who serves it. The order is the security of the whole
//! program: nothing is looked up for a caller that did not prove who it is, nothing is told to one without rights.

use std::sync::Arc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use crate::{
    answer::{Answer, Refusal, json as json_answer, last, text},
    authn::User,
    authz::{METHODS, attributes},
    listen::connection::{Caller, Door},
    logs::{self, Ends, options::LogOptions},
    path::NormalPath,
    pods,
    proxier::Shared,
    readiness::{Audience, words},
    resolve::{self, PodView},
    route::{PodOperation, PodRoute, Route},
    stream::{self, TunnelContext, slots::StreamFacts, tunnel::TunnelLimits},
    vnodes::Vnode,
};

const USE_NODE_PORT: &str = "use the port of the node: status.daemonEndpoints.kubeletEndpoint.port";
const NO_METRICS: &str = "metrics and statistics of virtual nodes are not served by this version";

/// What an access line and the request counter say beside the code.
#[derive(Debug, Default)]
struct Seen {
    route: &'static str,
    user: String,
    vnode: String,
    binding: String,
}

/// Answers a request.
pub(crate) async fn handle(shared: Arc<Shared>, caller: Arc<Caller>, request: Request<Incoming>) -> Answer {
    let mut seen = Seen { route: "unknown", ..Seen::default() };
    let answer = answer(&shared, &caller, request, &mut seen).await;
    let answer = answer.unwrap_or_else(Answer::from);
    let code = answer.status().as_u16();
    shared.metrics.request(&seen.binding, seen.route, code);
    let Seen { route, user, vnode, .. } = &seen;
    if is_news(route, code) {
        tracing::info!(route, user, vnode, code, "request refused");
    } else {
        tracing::debug!(route, user, vnode, code, "request");
    }
    answer
}

/// Whether a request is worth a line. Probes every few seconds are not, a stream has a line of its own when it ends, and
/// whoever proves nothing or may nothing could fill the log: the counter tells that there are such.
fn is_news(route: &str, code: u16) -> bool {
    route != "health" && !matches!(code, 101 | 200 | 401 | 403)
}

async fn answer(
    shared: &Arc<Shared>,
    caller: &Caller,
    request: Request<Incoming>,
    seen: &mut Seen,
) -> Result<Answer, Refusal> {
    let path = NormalPath::parse(request.uri().path());
    let route = path.as_ref().map_or(Route::Unknown, Route::of);
    seen.route = route.label();
    // Kubelet probes cannot authenticate (PX-412).
    if caller.door == Door::Shared && request.method() == Method::GET {
        match route {
            Route::Live => return Ok(last(text(StatusCode::OK, "ok"))),
            Route::Ready => return Ok(last(readiness(shared, Audience::Anybody))),
            _ => {}
        }
    }
    let user = shared.authn.user(&caller.certificates, request.headers()).await;
    let user = user.ok_or_else(Refusal::unauthorized)?;
    seen.user.clone_from(&user.name);
    let path = path.map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "invalid path"))?;
    let asked = attributes(request.method(), &path).ok_or_else(|| Refusal::method(METHODS))?;

    let target = target(shared, caller.door, &route).await?;
    let name = target.vnode.as_ref().map_or_else(|| Arc::from(""), |vnode| Arc::clone(&vnode.name));
    if let Some(vnode) = &target.vnode {
        seen.vnode = vnode.name.to_string();
        vnode.binding.name().clone_into(&mut seen.binding);
    }
    shared.authz.check(&user, asked, &name).await?;
    // Not before: every pod of the cluster has a token that authenticates.
    caller.known();

    if route == Route::Unknown {
        return Err(Refusal::unknown_path());
    }
    if !route.takes(request.method()) {
        return Err(Refusal::method(route.allow()));
    }
    match route {
        Route::Pod(route) => pod(shared, caller, &user, &route, target, request).await,
        Route::Run => Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "not supported on virtual nodes")),
        Route::Live => Ok(text(StatusCode::OK, "ok")),
        Route::Ready => Ok(readiness(shared, Audience::Authorized)),
        Route::Version => Ok(version(target.vnode.as_deref())),
        Route::Pods | Route::Metrics | Route::Root => {
            let Door::Vnode(port) = caller.door else {
                return Err(Refusal::new(StatusCode::NOT_FOUND, USE_NODE_PORT));
            };
            match route {
                Route::Pods => pods::answer(shared, caller, &name).await,
                Route::Root => Ok(root(port)),
                _ => Err(Refusal::new(StatusCode::NOT_FOUND, NO_METRICS)),
            }
        }
        Route::Unknown => Err(Refusal::unknown_path()),
    }
}

/// What a request is about.
#[derive(Debug)]
struct Target {
    vnode: Option<Arc<Vnode>>,
    /// Read already if the shared port had to know where the pod is.
    vpod: Option<PodView>,
}

/// The vnode of a request: that of the port, or on the shared port that of the pod (PX-510). A pod that leads to none is
/// asked about as "any vnode", so that only callers with rights learn that there is no such pod.
async fn target(shared: &Shared, door: Door, route: &Route) -> Result<Target, Refusal> {
    match (door, route) {
        (Door::Vnode(port), _) => {
            let vnode = shared.vnodes.on_port(port).ok_or_else(|| {
                Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "no virtual node is served on this port any more",
                )
            })?;
            Ok(Target { vnode: Some(vnode), vpod: None })
        }
        (Door::Shared, Route::Pod(route)) => {
            let vpod = resolve::vpod(&shared.computing, route).await?;
            let vnode = vpod.as_ref().and_then(|vpod| shared.vnodes.named(&vpod.spec.node_name));
            Ok(Target { vnode, vpod })
        }
        (Door::Shared, _) => Ok(Target { vnode: None, vpod: None }),
    }
}

/// Logs and tunnels.
async fn pod(
    shared: &Arc<Shared>,
    caller: &Caller,
    user: &User,
    route: &PodRoute,
    target: Target,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    enum Work {
        Logs(LogOptions),
        Tunnel(stream::Prepared),
    }
    if shared.refusing.is_cancelled() {
        return Err(Refusal::draining());
    }
    // What is wrong with the request itself is said before anybody is asked.
    let work = match route.operation {
        PodOperation::Logs => Work::Logs(LogOptions::parse(request.uri().query().unwrap_or_default())?),
        _ => Work::Tunnel(stream::check(route, &request)?),
    };
    let not_found = || resolve::refusal(route, resolve::Unresolved::NotFound);
    let vnode = target.vnode.ok_or_else(not_found)?;
    let vpod = match target.vpod {
        Some(vpod) => vpod,
        None => resolve::vpod(&shared.computing, route).await?.ok_or_else(not_found)?,
    };
    resolve::check(route, &vpod, &vnode.name)?;
    let worker = vnode.binding.worker().ok_or_else(Refusal::unreachable)?;
    let resolved = resolve::resolve(route, &vpod, &vnode.name, &worker, vnode.binding.ppods()).await?;
    let facts = StreamFacts {
        kind: route.operation.label(),
        binding: vnode.binding.shared_name(),
        vnode: Arc::clone(&vnode.name),
        user: user.name.clone(),
        namespace: route.namespace.clone(),
        pod: route.pod.clone(),
        container: route.container.clone().unwrap_or_default(),
        uid: vpod.uid().to_owned(),
    };
    let slot = shared.slots.open(facts).map_err(Refusal::too_many_streams)?;
    let (cut, stop) = (vnode.cut.clone(), shared.stop.clone());
    match work {
        Work::Logs(options) => {
            let guard = caller.ends_with(cut.clone());
            logs::open(route, &resolved, &worker, &options, slot, Ends { cut, stop }, guard).await
        }
        Work::Tunnel(prepared) => {
            let idle = shared.config.stream_idle_timeout;
            let limits =
                TunnelLimits { idle: (!idle.is_zero()).then_some(idle), linger: shared.config.stream_linger };
            let context = TunnelContext { limits, cut, stop, tasks: shared.tasks.clone() };
            stream::open(route, &resolved, &worker, prepared, request, slot, context).await
        }
    }
}

/// `/readyz`: `ok`, or a reason per line (PX-1201).
fn readiness(shared: &Shared, audience: Audience) -> Answer {
    let reasons = shared.not_ready();
    if reasons.is_empty() {
        text(StatusCode::OK, "ok")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, words(&reasons, audience))
    }
}

fn version(vnode: Option<&Vnode>) -> Answer {
    let version = vnode.map_or(concat!("v", env!("CARGO_PKG_VERSION")), |vnode| &vnode.kubelet_version);
    json_answer(&json!({"kubeletVersion": version}))
}

/// As the original's, without the worker's address.
fn root(port: u16) -> Answer {
    json_answer(&json!({
        "port": port.to_string(),
        "available_endpoints": [
            "/containerLogs/{namespace}/{pod}/{container}", "/exec/{namespace}/{pod}/{container}",
            "/attach/{namespace}/{pod}/{container}", "/portForward/{namespace}/{pod}", "/pods", "/healthz", "/version",
        ],
        "status": "running",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_fills_the_log() {
        assert!(!is_news("logs", 401) && !is_news("logs", 403));
        assert!(!is_news("health", 503) && !is_news("exec", 101));
        assert!(is_news("exec", 404) && is_news("logs", 429) && is_news("logs", 500));
    }
}
