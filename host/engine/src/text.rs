//! Text that comes from a module, made safe to show: one line, bounded, valid UTF-8.

/// `text` cut at `max` bytes on a character boundary; control characters, and what breaks or turns a line, replaced by a
/// space.
pub(crate) fn printable(text: &str, max: usize) -> String {
    cut(text, max).chars().map(|c| if is_plain(c) { c } else { ' ' }).collect()
}

/// It is shown where it stands, and changes nothing about what stands beside it.
pub(crate) fn is_plain(c: char) -> bool {
    let breaks = matches!(c, '\u{2028}' | '\u{2029}');
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !breaks && !turns
}

/// The longest prefix of `text` of at most `max` bytes.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let end = (0..=max).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_on_a_character_boundary_and_stays_one_line() {
        assert_eq!(printable("a\nb\u{7}c", 10), "a b c");
        assert_eq!(printable("a\u{2028}b\u{202e}c", 10), "a b c");
        assert_eq!(printable("ääää", 3), "ä");
        assert_eq!(printable("", 3), "");
    }
}
