//! What a request asks for in the words of an authorizer (PX-413, PX-414). A pure function of method and path.

use http::Method;

use crate::path::NormalPath;

/// The verb and the subresources of `nodes`, of which one must be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// `get`, `create`, `update`, `patch` or `delete`.
    pub(crate) verb: &'static str,
    /// Tried in this order.
    pub(crate) subresources: &'static [&'static str],
}

/// Methods that have a verb, as the value of `Allow`.
pub(crate) const METHODS: &str = "GET, POST, PUT, PATCH, DELETE";

/// The attributes of a request; `None` for a method without verb.
pub(crate) fn attributes(method: &Method, path: &NormalPath) -> Option<Attributes> {
    let by_method = match *method {
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return None,
    };
    let verb = match path.first() {
        // A WebSocket upgrade is a GET, and still runs a command: a reader of metrics must not get there.
        "exec" | "attach" | "portForward" | "run" => "create",
        _ => by_method,
    };
    let subresources: &[&str] = match path.first() {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "statusz" => &["statusz"],
        "checkpoint" => &["checkpoint"],
        _ => &["proxy"],
    };
    Some(Attributes { verb, subresources })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("GET", "/stats/summary", "get", &["stats"])]
    #[case("GET", "/metrics", "get", &["metrics"])]
    #[case("GET", "/metrics/resource", "get", &["metrics"])]
    #[case("GET", "/logs/messages", "get", &["log"])]
    #[case("GET", "/pods", "get", &["pods", "proxy"])]
    #[case("GET", "/runningpods/", "get", &["pods", "proxy"])]
    #[case("GET", "/healthz", "get", &["healthz", "proxy"])]
    #[case("GET", "/configz", "get", &["configz", "proxy"])]
    #[case("GET", "/statusz", "get", &["statusz"])]
    #[case("POST", "/checkpoint/ns/p/c", "create", &["checkpoint"])]
    #[case("GET", "/containerLogs/ns/p/c", "get", &["proxy"])]
    #[case("POST", "/exec/ns/p/c", "create", &["proxy"])]
    #[case::web_socket_is_no_read("GET", "/exec/ns/p/c", "create", &["proxy"])]
    #[case::web_socket_is_no_read("GET", "/attach/ns/p/c", "create", &["proxy"])]
    #[case::web_socket_is_no_read("GET", "/portForward/ns/p", "create", &["proxy"])]
    #[case::escapes_are_decoded_before("GET", "/%65xec/ns/p/c", "create", &["proxy"])]
    #[case::prefixes_end_at_a_segment("GET", "/metricsx", "get", &["proxy"])]
    #[case("PUT", "/run/ns/p/c", "create", &["proxy"])]
    #[case("DELETE", "/pods", "delete", &["pods", "proxy"])]
    #[case("PATCH", "/", "patch", &["proxy"])]
    fn table(
        #[case] method: &str,
        #[case] path: &str,
        #[case] verb: &'static str,
        #[case] subresources: &'static [&'static str],
    ) {
        let path = NormalPath::parse(path).unwrap();
        let method: Method = method.parse().unwrap();
        assert_eq!(attributes(&method, &path), Some(Attributes { verb, subresources }));
    }

    #[rstest]
    #[case("OPTIONS")]
    #[case("CONNECT")]
    #[case("HEAD")]
    fn other_methods_have_no_verb(#[case] method: &str) {
        assert_eq!(attributes(&method.parse().unwrap(), &NormalPath::parse("/pods").unwrap()), None);
    }
}
