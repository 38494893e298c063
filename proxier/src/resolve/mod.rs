//! From a vpod to its ppod (PX section 6): [`mod@check`] decides, [`index`] finds, this file asks.

mod check;
mod index;
mod view;

use std::time::Duration;

use http::{Request, StatusCode};
use kube::Client;
use kubeocean_runtime::request::paths;

pub(crate) use check::{Resolved, Unresolved};
pub(crate) use index::PpodIndex;
pub(crate) use view::PodView;

use check::Indexed;

use crate::{
    answer::Refusal,
    route::{PodOperation, PodRoute},
    worker::{WorkerLink, translate},
};

/// Longest wait for a pod of either cluster.
const GET_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads a vpod as it is now; `None` if there is none.
pub(crate) async fn vpod(computing: &Client, route: &PodRoute) -> Result<Option<PodView>, Refusal> {
    get(computing, &paths::pod(&route.namespace, &route.pod)).await.map_err(|error| {
        tracing::warn!(error, "cannot read a pod of the computing cluster");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the pod could not be read")
    })
}

/// Checks what can be said of the vpod alone; nothing is asked of the worker.
pub(crate) fn check(route: &PodRoute, vpod: &PodView, vnode: &str) -> Result<(), Refusal> {
    check::check_vpod(vpod, vnode, route.uid.as_deref(), route.container.as_deref())
        .map_err(|why| refusal(route, why))
}

/// The ppod of a vpod that was [checked](fn@check), proven, or what the caller reads instead.
pub(crate) async fn resolve(
    route: &PodRoute,
    vpod: &PodView,
    vnode: &str,
    worker: &WorkerLink,
    ppods: &PpodIndex,
) -> Result<Resolved, Refusal> {
    let mount = worker.mount_namespace();
    let name = match check::look_up(vpod, vnode, mount, &ppods.of_vpod(vpod.uid())) {
        Indexed::Proven(resolved) => return Ok(resolved),
        Indexed::Refused => return Err(refusal(route, check::absent(vpod, true))),
        Indexed::Unknown(None) => return Err(refusal(route, check::absent(vpod, false))),
        Indexed::Unknown(Some(name)) => name,
    };
    let found = get(worker.client(), &paths::pod(mount, name)).await.map_err(|error| {
        tracing::warn!(error, "cannot read a pod of the worker cluster");
        Refusal::unreachable()
    })?;
    let candidates: Vec<_> = found.iter().map(view::Ppod::of).collect();
    check::prove(vpod, vnode, mount, &candidates)
        .ok_or_else(|| refusal(route, check::absent(vpod, found.is_some())))
}

/// What the caller reads when there is nothing to talk to (PX-1403).
pub(crate) fn refusal(route: &PodRoute, why: Unresolved) -> Refusal {
    let is_logs = route.operation == PodOperation::Logs;
    let (pod, container) = (&route.pod, route.container.as_deref().unwrap_or_default());
    let code = |code: u16| StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let (status, text) = match (why, is_logs) {
        (Unresolved::NotFound, _) | (Unresolved::Lost, false) => return translate::unknown_pod(route),
        (Unresolved::OtherUid, _) => (404, "pod not found".to_owned()),
        (Unresolved::NoContainer, true) => {
            (404, format!("container \"{container}\" not found in pod \"{pod}\""))
        }
        (Unresolved::NoContainer, false) => (404, format!("container not found (\"{container}\")")),
        (Unresolved::NotCreated, true) => (
            400,
            format!("container \"{container}\" in pod \"{pod}\" is waiting to start: ContainerCreating"),
        ),
        (Unresolved::NotCreated, false) => (500, format!("container not found (\"{container}\")")),
        (Unresolved::Lost, true) => {
            (400, format!("the logs of pod \"{pod}\" are gone: its worker pod no longer exists"))
        }
    };
    Refusal::new(code(status), text)
}

async fn get(client: &Client, path: &str) -> Result<Option<PodView>, String> {
    let request = Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
    match tokio::time::timeout(GET_TIMEOUT, client.request::<PodView>(request)).await {
        Ok(Ok(pod)) => Ok(Some(pod)),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(None),
        Ok(Err(error)) => Err(format!("get {path}: {error}")),
        Err(_) => Err(format!("get {path}: no answer within {} s", GET_TIMEOUT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(Unresolved::NotFound, PodOperation::Logs, 404, "pod \"web\" does not exist")]
    #[case(Unresolved::NotFound, PodOperation::Exec, 404, "pod does not exist")]
    #[case(Unresolved::OtherUid, PodOperation::Attach, 404, "pod not found")]
    #[case(Unresolved::NoContainer, PodOperation::Logs, 404, "container \"c\" not found in pod \"web\"")]
    #[case(Unresolved::NoContainer, PodOperation::Exec, 404, "container not found (\"c\")")]
    #[case(
        Unresolved::NotCreated,
        PodOperation::Logs,
        400,
        "container \"c\" in pod \"web\" is waiting to start: ContainerCreating"
    )]
    #[case(Unresolved::NotCreated, PodOperation::Exec, 500, "container not found (\"c\")")]
    #[case(
        Unresolved::Lost,
        PodOperation::Logs,
        400,
        "the logs of pod \"web\" are gone: its worker pod no longer exists"
    )]
    #[case(Unresolved::Lost, PodOperation::PortForward, 404, "pod does not exist")]
    fn texts(
        #[case] why: Unresolved,
        #[case] operation: PodOperation,
        #[case] code: u16,
        #[case] text: &str,
    ) {
        let route = PodRoute {
            operation,
            namespace: "shop".to_owned(),
            pod: "web".to_owned(),
            uid: None,
            container: Some("c".to_owned()),
        };
        let refusal = refusal(&route, why);
        assert_eq!((refusal.code.as_u16(), &*refusal.text), (code, text));
    }
}
