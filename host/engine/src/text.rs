//! Text that comes from a module, made safe to show: one line, bounded, valid UTF-8.

/// `text` cut at `max` bytes on a character boundary, control characters replaced by a space.
pub(crate) fn printable(text: &str, max: usize) -> String {
    cut(text, max).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
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
        assert_eq!(printable("ääää", 3), "ä");
        assert_eq!(printable("", 3), "");
    }
}
