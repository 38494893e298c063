//! The query of exec, attach and port-forward requests, from the kubelet's terms into the API server's (PX-810). Pure.

use http::StatusCode;

use crate::{answer::Refusal, route::PodOperation};

/// The query of the request to the worker. `container` is absent for port forwarding.
pub(crate) fn worker_query(
    operation: PodOperation,
    container: Option<&str>,
    query: &str,
) -> Result<String, Refusal> {
    let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let set = |key: &str| {
        pairs
            .iter()
            .find(|(name, _)| name == key)
            .is_some_and(|(_, value)| matches!(value.as_str(), "1" | "true"))
    };
    let mut out = form_urlencoded::Serializer::new(String::new());
    if operation == PodOperation::PortForward {
        for (_, ports) in pairs.iter().filter(|(name, _)| name == "port") {
            for port in ports.split(',').filter(|port| !port.is_empty()) {
                let valid = port.trim().parse::<u16>().is_ok_and(|port| port > 0);
                if !valid {
                    return Err(Refusal::new(
                        StatusCode::BAD_REQUEST,
                        "port must be a number from 1 to 65535",
                    ));
                }
                out.append_pair("ports", port.trim());
            }
        }
        return Ok(out.finish());
    }
    if let Some(container) = container {
        out.append_pair("container", container);
    }
    if operation == PodOperation::Exec {
        for (_, word) in pairs.iter().filter(|(name, _)| name == "command") {
            out.append_pair("command", word);
        }
    }
    let tty = set("tty");
    // A terminal has one output: a kubelet drops the other as well.
    let streams = [("stdin", set("input")), ("stdout", set("output")), ("stderr", set("error") && !tty)];
    if !streams.iter().any(|(_, on)| *on) {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    for (name, on) in streams.into_iter().chain([("tty", tty)]) {
        out.append_pair(name, if on { "true" } else { "false" });
    }
    Ok(out.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::words_keep_their_order(
        "command=sh&command=-c&command=echo+a%26b&input=1&output=1&error=1",
        "container=c&command=sh&command=-c&command=echo+a%26b&stdin=true&stdout=true&stderr=true&tty=false"
    )]
    #[case::a_terminal_has_no_stderr(
        "command=sh&input=1&output=1&error=1&tty=1",
        "container=c&command=sh&stdin=true&stdout=true&stderr=false&tty=true"
    )]
    #[case::word_for_true(
        "command=ls&output=true",
        "container=c&command=ls&stdin=false&stdout=true&stderr=false&tty=false"
    )]
    #[case::empty_and_repeated_words(
        "command=printf&command=&command=a&command=a&output=1",
        "container=c&command=printf&command=&command=a&command=a&stdin=false&stdout=true&stderr=false&tty=false"
    )]
    #[case::what_the_caller_may_not_say(
        "command=ls&output=1&container=other&stdin=true",
        "container=c&command=ls&stdin=false&stdout=true&stderr=false&tty=false"
    )]
    fn exec(#[case] query: &str, #[case] expected: &str) {
        assert_eq!(worker_query(PodOperation::Exec, Some("c"), query), Ok(expected.to_owned()));
    }

    #[test]
    fn attach_has_no_command() {
        assert_eq!(
            worker_query(PodOperation::Attach, Some("c"), "command=ls&output=1"),
            Ok("container=c&stdin=false&stdout=true&stderr=false&tty=false".to_owned())
        );
    }

    #[rstest]
    #[case("", "")]
    #[case("port=80,443", "ports=80&ports=443")]
    #[case("port=80&port=443", "ports=80&ports=443")]
    fn port_forward(#[case] query: &str, #[case] expected: &str) {
        assert_eq!(worker_query(PodOperation::PortForward, None, query), Ok(expected.to_owned()));
    }

    #[rstest]
    #[case(PodOperation::Exec, "command=ls", "you must specify at least 1 of stdin, stdout, stderr")]
    #[case(PodOperation::Attach, "error=1&tty=1", "you must specify at least 1 of stdin, stdout, stderr")]
    #[case(PodOperation::PortForward, "port=http", "port must be a number from 1 to 65535")]
    #[case(PodOperation::PortForward, "port=0", "port must be a number from 1 to 65535")]
    fn refused(#[case] operation: PodOperation, #[case] query: &str, #[case] text: &str) {
        let refusal = worker_query(operation, Some("c"), query).unwrap_err();
        assert_eq!((refusal.code, &*refusal.text), (StatusCode::BAD_REQUEST, text));
    }
}
