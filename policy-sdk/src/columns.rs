//! Looking up declared facts by name. In: the declared names; out: column numbers. Used by the row accessors.
//! Invariant: allocates only on the way to a trap.

/// Finds `prefix` + `key` in `names`, where a declared name may carry the leading `?` of optional facts.
pub(crate) fn find(names: &[String], prefix: &str, key: &str) -> Option<usize> {
    names.iter().position(|name| {
        let name = name.strip_prefix('?').unwrap_or(name);
        name.len() == prefix.len() + key.len() && name.starts_with(prefix) && name.ends_with(key)
    })
}

/// As [`find`]; reading a fact that `needs()` does not name is a mistake of the policy (PO-303).
#[expect(
    clippy::panic,
    reason = "PO-303: an undeclared fact traps; check and the trial call find it before use"
)]
pub(crate) fn require(names: &[String], prefix: &str, key: &str) -> usize {
    match find(names, prefix, key) {
        Some(column) => column,
        None => panic!("fact \"{prefix}{key}\" is not declared in needs()"),
    }
}
