//! The path of a request, decoded once. Authorization and routing look at the same segments (PX-415).

use percent_encoding::percent_decode_str;

/// A decoded path without empty, `.` or `..` segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NormalPath {
    segments: Vec<String>,
    trailing_slash: bool,
}

/// The path is not one that two programs would read alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadPath;

impl NormalPath {
    /// Decodes and checks the path of a request target.
    pub(crate) fn parse(raw: &str) -> Result<Self, BadPath> {
        check_escapes(raw)?;
        let decoded = percent_decode_str(raw).decode_utf8().map_err(|_| BadPath)?;
        let body = decoded.strip_prefix('/').ok_or(BadPath)?;
        if body.is_empty() {
            return Ok(Self { segments: Vec::new(), trailing_slash: false });
        }
        let (body, trailing_slash) = match body.strip_suffix('/') {
            Some(body) => (body, true),
            None => (body, false),
        };
        let segments: Vec<String> = body.split('/').map(str::to_owned).collect();
        let bad = |segment: &String| {
            matches!(segment.as_str(), "" | "." | "..") || segment.chars().any(char::is_control)
        };
        if segments.iter().any(bad) { Err(BadPath) } else { Ok(Self { segments, trailing_slash }) }
    }

    /// The segments; none for `/`.
    pub(crate) fn segments(&self) -> Vec<&str> {
        self.segments.iter().map(String::as_str).collect()
    }

    /// The first segment; empty for `/`.
    pub(crate) fn first(&self) -> &str {
        self.segments.first().map_or("", String::as_str)
    }

    /// Whether a slash follows the last segment.
    pub(crate) fn has_trailing_slash(&self) -> bool {
        self.trailing_slash
    }
}

/// Every `%` starts an escape: what is left undecoded here, the next program might decode.
fn check_escapes(raw: &str) -> Result<(), BadPath> {
    let bytes = raw.as_bytes();
    for (at, _) in raw.match_indices('%') {
        let digit = |offset: usize| bytes.get(at + offset).is_some_and(u8::is_ascii_hexdigit);
        if !digit(1) || !digit(2) {
            return Err(BadPath);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("/", &[])]
    #[case("/pods", &["pods"])]
    #[case("/runningpods/", &["runningpods"])]
    #[case("/containerLogs/ns/pod/main", &["containerLogs", "ns", "pod", "main"])]
    #[case("/%65xec/ns/pod/c", &["exec", "ns", "pod", "c"])]
    #[case("/exec%2Fns%2Fpod/c", &["exec", "ns", "pod", "c"])]
    #[case("/a/%252e%252e", &["a", "%2e%2e"])]
    fn good_paths(#[case] raw: &str, #[case] expected: &[&str]) {
        assert_eq!(NormalPath::parse(raw).unwrap().segments(), expected);
    }

    #[rstest]
    #[case::dots("/pods/../exec")]
    #[case::dots_at_the_end("/metrics/..")]
    #[case::encoded_dots("/metrics/%2e%2e/exec/ns/pod/c")]
    #[case::encoded_separator("/metrics/..%2fexec")]
    #[case::single_dot("/./pods")]
    #[case::empty_segment("//exec/ns/pod/c")]
    #[case::empty_segment_inside("/exec//ns")]
    #[case::only_slashes("//")]
    #[case::half_escape("/pods%2")]
    #[case::no_escape("/pods%zz")]
    #[case::not_utf8("/pods%ff")]
    #[case::control("/pods%00")]
    #[case::relative("pods")]
    #[case::empty("")]
    #[case::asterisk("*")]
    fn bad_paths(#[case] raw: &str) {
        assert_eq!(NormalPath::parse(raw), Err(BadPath));
    }
}
