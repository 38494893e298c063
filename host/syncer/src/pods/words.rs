//! The words of a message, written anew one by one; what stands between them stays.

/// `text` with each longest run of `in_word` characters as `write` writes it.
pub(crate) fn rewrite(
    text: &str,
    in_word: fn(char) -> bool,
    mut write: impl FnMut(&str, &mut String),
) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c: char| !in_word(c)).unwrap_or(rest.len());
        if end == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(end);
        write(word, &mut out);
        rest = after;
    }
    out
}
