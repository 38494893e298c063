//! The query of a log request: checked as a kubelet checks it, kept as text (PX-710). Pure.

use http::StatusCode;
use kubeocean_runtime::clock::parse_rfc3339;

use crate::answer::Refusal;

/// Parameters for the worker's API server, in its terms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    /// Whether the answer goes on with what the container will write.
    pub(crate) follow: bool,
    parameters: Vec<(&'static str, String)>,
}

const FLAGS: [&str; 3] = ["follow", "previous", "timestamps"];
const NUMBERS: [(&str, i64); 3] = [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)];

impl LogOptions {
    /// Reads the query of a request.
    pub(crate) fn parse(query: &str) -> Result<Self, Refusal> {
        let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let first = |key: &str| pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        let mut options = Self::default();
        for flag in FLAGS {
            if first(flag).is_some_and(is_true) {
                options.follow |= flag == "follow";
                options.parameters.push((flag, "true".to_owned()));
            }
        }
        let mut valid = true;
        let mut tailed = false;
        for (key, least) in NUMBERS {
            let given = match (key, first("tail").filter(|tail| !tail.is_empty())) {
                ("tailLines", Some("all")) => None,
                ("tailLines", Some(tail)) => Some(tail),
                _ => first(key),
            };
            let Some(text) = given else { continue };
            let number: i64 = text.parse().map_err(|_| undecodable())?;
            valid &= number >= least;
            tailed |= key == "tailLines";
            options.parameters.push((key, text.to_owned()));
        }
        if let Some(since) = first("sinceTime").filter(|since| !since.is_empty()) {
            parse_rfc3339(since).ok_or_else(undecodable)?;
            valid &= first("sinceSeconds").is_none();
            options.parameters.push(("sinceTime", since.to_owned()));
        }
        match first("stream").filter(|stream| !stream.is_empty()) {
            // The default, which workers without the feature would refuse.
            None | Some("All") => {}
            Some(stream @ ("Stdout" | "Stderr")) => {
                valid &= !tailed;
                options.parameters.push(("stream", stream.to_owned()));
            }
            Some(_) => valid = false,
        }
        if valid { Ok(options) } else { Err(invalid()) }
    }

    /// The query of the request to the worker.
    pub(crate) fn worker_query(&self, container: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("container", container);
        for (key, value) in &self.parameters {
            query.append_pair(key, value);
        }
        query.finish()
    }
}

/// Kubernetes' own reading of a boolean parameter: anything but a clear no is a yes.
fn is_true(value: &str) -> bool {
    !matches!(value.to_ascii_lowercase().as_str(), "false" | "0")
}

fn undecodable() -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#)
}

fn invalid() -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("", "container=c")]
    #[case(
        "follow=true&timestamps=true&previous=true",
        "container=c&follow=true&previous=true&timestamps=true"
    )]
    #[case::zero_is_a_number("tailLines=0&follow=true", "container=c&follow=true&tailLines=0")]
    #[case::flags_without_value_are_set("follow", "container=c&follow=true")]
    #[case::a_clear_no("follow=False&previous=0", "container=c")]
    #[case("limitBytes=10&sinceSeconds=5", "container=c&limitBytes=10&sinceSeconds=5")]
    #[case("sinceTime=2026-01-02T03:04:05Z", "container=c&sinceTime=2026-01-02T03%3A04%3A05Z")]
    #[case::old_name("tail=5", "container=c&tailLines=5")]
    #[case::old_name_wins("tail=5&tailLines=7", "container=c&tailLines=5")]
    #[case::old_name_for_everything("tail=all&tailLines=7", "container=c")]
    #[case::the_default_stream_is_not_passed_on("stream=All&tailLines=3", "container=c&tailLines=3")]
    #[case("stream=Stderr", "container=c&stream=Stderr")]
    #[case::unknown_parameters("insecureSkipTLSVerifyBackend=true&x=y", "container=c")]
    #[case::the_container_is_the_path_s("container=other", "container=c")]
    fn what_is_passed_on(#[case] query: &str, #[case] expected: &str) {
        assert_eq!(
            LogOptions::parse(query).map(|options| options.worker_query("c")),
            Ok(expected.to_owned())
        );
    }

    #[rstest]
    #[case("tailLines=x", 400)]
    #[case("tailLines=1.5", 400)]
    #[case("sinceTime=yesterday", 400)]
    #[case("tailLines=-1", 422)]
    #[case("limitBytes=0", 422)]
    #[case("sinceSeconds=0", 422)]
    #[case("sinceSeconds=1&sinceTime=2026-01-02T03:04:05Z", 422)]
    #[case("stream=Stdout&tailLines=1", 422)]
    #[case("stream=stdout", 422)]
    fn what_is_refused(#[case] query: &str, #[case] code: u16) {
        assert_eq!(LogOptions::parse(query).map_err(|refusal| refusal.code.as_u16()), Err(code));
    }
}
