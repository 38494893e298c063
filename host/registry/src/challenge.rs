//! What a registry that answers 401 wants: the header `WWW-Authenticate` (RFC 9110), as registries write it.
//!
//! Pure.

/// Longest header that is looked at, in bytes. Reading one takes time by the square of its length.
const MAX_HEADER_BYTES: usize = 8 << 10;

/// How to authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// With name and password in each request.
    Basic,
    /// With a token from somewhere.
    Bearer {
        /// Address of the token service.
        realm: String,
        /// Name of the registry there.
        service: Option<String>,
        /// What the token is to permit.
        scope: Option<String>,
    },
}

/// The first challenge of a header that we can meet. A header of unusual length has none.
pub(crate) fn parse(header: &str) -> Option<Challenge> {
    if header.len() > MAX_HEADER_BYTES {
        return None;
    }
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find([' ', ',']).unwrap_or(rest.len());
        let (scheme, tail) = rest.split_at(end);
        let (parameters, tail) = parameters(tail);
        let named = |name: &str| {
            parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = named("realm")
        {
            return Some(Challenge::Bearer { realm, service: named("service"), scope: named("scope") });
        }
        rest = tail;
    }
    None
}

/// `a="x", b=y` up to the next scheme, and what is behind.
fn parameters(text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while let Some((name, tail)) = rest.split_once('=') {
        let name = name.trim();
        if name.is_empty() || name.contains([' ', ',', '"']) {
            break;
        }
        let tail = tail.trim_start();
        let (value, tail) = if let Some(quoted) = tail.strip_prefix('"') {
            unquote(quoted)
        } else {
            let end = tail.find([',', ' ']).unwrap_or(tail.len());
            (tail.get(..end).unwrap_or_default().to_owned(), tail.get(end..).unwrap_or_default())
        };
        found.push((name.to_owned(), value));
        rest = tail.trim_start_matches([' ', ',']);
    }
    (found, rest)
}

/// A quoted string behind its first quote, and what is behind its last.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        match c {
            '"' if !escaped => return (value, text.get(index + 1..).unwrap_or_default()),
            '\\' if !escaped => escaped = true,
            c => {
                value.push(c);
                escaped = false;
            }
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) }
    }

    #[rstest]
    #[case("Basic realm=\"basic-realm\"", Some(Challenge::Basic))]
    #[case("basic", Some(Challenge::Basic))]
    #[case("Negotiate, Basic realm=\"x\"", Some(Challenge::Basic))]
    #[case("Digest realm=\"a, b\", nonce=x, Basic realm=\"y\"", Some(Challenge::Basic))]
    #[case(
        "Bearer realm=\"https://auth.example/token\",service=\"r.example\",scope=\"repository:a/b:pull,push\"",
        Some(bearer("https://auth.example/token", Some("r.example"), Some("repository:a/b:pull,push")))
    )]
    #[case("bearer realm=https://a.example/t", Some(bearer("https://a.example/t", None, None)))]
    #[case("Bearer realm=\"a\\\"b\"", Some(bearer("a\"b", None, None)))]
    #[case("Bearer service=\"x\"", None)]
    #[case("", None)]
    #[case("=,=\",", None)]
    fn what_is_wanted(#[case] header: &str, #[case] expected: Option<Challenge>) {
        assert_eq!(parse(header), expected);
    }

    #[test]
    fn a_header_of_unusual_length_is_not_looked_at() {
        let header =
            |bytes: usize| format!("Basic realm=\"{}\"", "x".repeat(bytes - "Basic realm=\"\"".len()));
        assert_eq!(parse(&header(MAX_HEADER_BYTES)), Some(Challenge::Basic));
        assert_eq!(parse(&header(MAX_HEADER_BYTES + 1)), None);
    }
}
