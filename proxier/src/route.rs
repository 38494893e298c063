//! Which part of the kubelet API a path means (PX section 5). A pure function of the path.

use http::Method;

use crate::path::NormalPath;

/// What is done to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PodOperation {
    /// `/containerLogs`.
    Logs,
    /// `/exec`.
    Exec,
    /// `/attach`.
    Attach,
    /// `/portForward`.
    PortForward,
}

/// A pod route with its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodRoute {
    /// What is done.
    pub(crate) operation: PodOperation,
    /// Namespace of the vpod.
    pub(crate) namespace: String,
    /// Name of the vpod.
    pub(crate) pod: String,
    /// UID of the vpod, where the path has one.
    pub(crate) uid: Option<String>,
    /// Container; absent for port forwarding.
    pub(crate) container: Option<String>,
}

/// A part of the kubelet API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// Logs and streams of one pod.
    Pod(PodRoute),
    /// `/run`, which virtual nodes do not have.
    Run,
    /// `/pods` and `/runningpods`: the pods of a vnode.
    Pods,
    /// `/healthz` and `/livez`.
    Live,
    /// `/readyz`.
    Ready,
    /// `/version`.
    Version,
    /// `/`.
    Root,
    /// Metrics and statistics, which this version does not serve.
    Metrics,
    /// Everything else; also what describes the worker's node, which tenants must not see.
    Unknown,
}

impl Route {
    /// The route of a path.
    pub(crate) fn of(path: &NormalPath) -> Self {
        let segments = path.segments();
        // Only collections may end in a slash.
        if path.has_trailing_slash() {
            return match segments[..] {
                ["runningpods"] => Self::Pods,
                ["stats", "summary"] => Self::Metrics,
                _ => Self::Unknown,
            };
        }
        match segments[..] {
            [] => Self::Root,
            ["pods" | "runningpods"] => Self::Pods,
            ["healthz" | "livez"] => Self::Live,
            ["readyz"] => Self::Ready,
            ["version"] => Self::Version,
            ["metrics"] | ["metrics", "cadvisor" | "resource" | "probes"] | ["stats", "summary"] => {
                Self::Metrics
            }
            ["run", ..] => Self::Run,
            ["containerLogs", namespace, pod, container] => {
                pod_route(PodOperation::Logs, namespace, pod, None, Some(container))
            }
            ["exec", namespace, pod, container] => {
                pod_route(PodOperation::Exec, namespace, pod, None, Some(container))
            }
            ["exec", namespace, pod, uid, container] => {
                pod_route(PodOperation::Exec, namespace, pod, Some(uid), Some(container))
            }
            ["attach", namespace, pod, container] => {
                pod_route(PodOperation::Attach, namespace, pod, None, Some(container))
            }
            ["attach", namespace, pod, uid, container] => {
                pod_route(PodOperation::Attach, namespace, pod, Some(uid), Some(container))
            }
            ["portForward", namespace, pod] => {
                pod_route(PodOperation::PortForward, namespace, pod, None, None)
            }
            ["portForward", namespace, pod, uid] => {
                pod_route(PodOperation::PortForward, namespace, pod, Some(uid), None)
            }
            _ => Self::Unknown,
        }
    }

    /// The methods a route takes, as the value of `Allow`.
    pub(crate) fn allow(&self) -> &'static str {
        match self {
            Self::Pod(PodRoute { operation: PodOperation::Logs, .. }) => "GET",
            Self::Pod(_) => "GET, POST",
            Self::Run => "POST",
            _ => "GET",
        }
    }

    /// Whether the route takes a method.
    pub(crate) fn takes(&self, method: &Method) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method.as_str())
    }

    /// The route's name in metrics and access lines; never a path.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Pod(route) => route.operation.label(),
            Self::Run => "run",
            Self::Pods => "pods",
            Self::Live | Self::Ready => "health",
            Self::Version => "version",
            Self::Root => "root",
            Self::Metrics => "metrics",
            Self::Unknown => "unknown",
        }
    }
}

impl PodOperation {
    /// Name in metrics and access lines.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }

    /// The subresource of the worker's pod.
    pub(crate) fn subresource(self) -> &'static str {
        match self {
            Self::Logs => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }
}

fn pod_route(
    operation: PodOperation,
    namespace: &str,
    pod: &str,
    uid: Option<&str>,
    container: Option<&str>,
) -> Route {
    // Names become parts of request paths in both clusters: nothing but the letters of a name gets there.
    let names = [Some(namespace), Some(pod), container];
    if !names.into_iter().flatten().all(is_name) || !uid.is_none_or(is_uid) {
        return Route::Unknown;
    }
    Route::Pod(PodRoute {
        operation,
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: uid.map(str::to_owned),
        container: container.map(str::to_owned),
    })
}

fn is_name(text: &str) -> bool {
    let letter =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    text.len() <= 253 && text.bytes().all(letter) && !text.starts_with('.')
}

fn is_uid(text: &str) -> bool {
    text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn of(path: &str) -> Route {
        Route::of(&NormalPath::parse(path).unwrap())
    }

    fn pod(operation: PodOperation, uid: Option<&str>, container: Option<&str>) -> Route {
        pod_route(operation, "ns", "web-0", uid, container)
    }

    #[rstest]
    #[case("/containerLogs/ns/web-0/main", pod(PodOperation::Logs, None, Some("main")))]
    #[case("/exec/ns/web-0/main", pod(PodOperation::Exec, None, Some("main")))]
    #[case("/exec/ns/web-0/1a-2b/main", pod(PodOperation::Exec, Some("1a-2b"), Some("main")))]
    #[case("/attach/ns/web-0/main", pod(PodOperation::Attach, None, Some("main")))]
    #[case("/attach/ns/web-0/1a-2b/main", pod(PodOperation::Attach, Some("1a-2b"), Some("main")))]
    #[case("/portForward/ns/web-0", pod(PodOperation::PortForward, None, None))]
    #[case("/portForward/ns/web-0/1a-2b", pod(PodOperation::PortForward, Some("1a-2b"), None))]
    #[case("/run/ns/web-0/main", Route::Run)]
    #[case("/pods", Route::Pods)]
    #[case("/runningpods/", Route::Pods)]
    #[case("/healthz", Route::Live)]
    #[case("/readyz", Route::Ready)]
    #[case("/", Route::Root)]
    #[case("/metrics/cadvisor", Route::Metrics)]
    #[case("/stats/summary/", Route::Metrics)]
    #[case::worker_node_configuration("/configz", Route::Unknown)]
    #[case::worker_node_files("/logs/messages", Route::Unknown)]
    #[case::logs_take_no_uid("/containerLogs/ns/web-0/1a-2b/main", Route::Unknown)]
    #[case::no_container("/exec/ns/web-0", Route::Unknown)]
    #[case::no_name("/exec/ns/web%3Fx/main", Route::Unknown)]
    #[case::case_matters("/Exec/ns/web-0/main", Route::Unknown)]
    #[case::trailing_slash("/exec/ns/web-0/main/", Route::Unknown)]
    fn routes(#[case] path: &str, #[case] expected: Route) {
        assert_eq!(of(path), expected);
    }

    #[rstest]
    #[case("/containerLogs/ns/p/c", "GET")]
    #[case("/exec/ns/p/c", "GET, POST")]
    #[case("/run/ns/p/c", "POST")]
    #[case("/pods", "GET")]
    fn methods(#[case] path: &str, #[case] allow: &str) {
        let route = of(path);
        assert_eq!(route.allow(), allow);
        assert_eq!(route.takes(&Method::POST), allow.contains("POST"));
        assert!(!route.takes(&Method::DELETE));
    }
}
