//! Which events are the same news: messages that differ only in numbers and identifiers have one shape, so that
//! "0/5 nodes are available" and "0/6 nodes are available" are one event that happened twice.

use crate::pods::words;

/// Shortest word of hexadecimal digits that counts as an identifier.
const IDENTIFIER_MIN: usize = 8;

/// A message without what changes from one occurrence to the next.
pub fn shape(message: &str) -> String {
    words::rewrite(message, in_word, |word, out| {
        if is_identifier(word) {
            out.push('#');
        } else {
            push_without_numbers(out, word);
        }
    })
}

fn in_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-'
}

/// Part of a UID or of a digest.
fn is_identifier(word: &str) -> bool {
    word.len() >= IDENTIFIER_MIN
        && word.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
        && word.bytes().any(|byte| byte.is_ascii_digit())
}

fn push_without_numbers(out: &mut String, word: &str) {
    let mut in_number = false;
    for c in word.chars() {
        let digit = c.is_ascii_digit();
        if digit && !in_number {
            out.push('#');
        } else if !digit {
            out.push(c);
        }
        in_number = digit;
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::shape;

    #[rstest]
    #[case::counts(
        "0/5 nodes are available: 1 Insufficient cpu.",
        "#/# nodes are available: # Insufficient cpu."
    )]
    #[case::times("Back-off 10s restarting container", "Back-off #s restarting container")]
    #[case::uids("pod c_ns(6f1a0b2c-1d2e-4f50-8a9b-0c1d2e3f4a5b)", "pod c_ns(#)")]
    #[case::digests("image@sha256:9f86d081884c7d65 not found", "image@sha#:# not found")]
    #[case::words("Failed to pull the image décadé", "Failed to pull the image décadé")]
    #[case::empty("", "")]
    fn numbers_and_identifiers_do_not_count(#[case] message: &str, #[case] expect: &str) {
        assert_eq!(shape(message), expect);
    }
}
