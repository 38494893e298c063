//! The three modules that come with the program: ordinary components, embedded by the build script.
//!
//! They take the same way into the sandbox as any other module; the only difference is where the bytes come from.

use std::sync::OnceLock;

use super::cache::Digest;

/// Name and component bytes of every built-in module.
pub const BUILTINS: [(&str, &[u8]); 3] = [
    ("cpu-percentage", include_bytes!(concat!(env!("OUT_DIR"), "/cpu-percentage.wasm"))),
    ("time-windows", include_bytes!(concat!(env!("OUT_DIR"), "/time-windows.wasm"))),
    ("node-labels", include_bytes!(concat!(env!("OUT_DIR"), "/node-labels.wasm"))),
];

/// Bytes and digest of a built-in; the digest is computed once.
pub(crate) fn builtin_with_digest(name: &str) -> Option<(&'static [u8], Digest)> {
    static DIGESTS: OnceLock<[Digest; BUILTINS.len()]> = OnceLock::new();
    let index = BUILTINS.iter().position(|(known, _)| *known == name)?;
    let digests = DIGESTS.get_or_init(|| BUILTINS.map(|(_, bytes)| Digest::of(bytes)));
    Some((BUILTINS.get(index)?.1, *digests.get(index)?))
}

/// The component of a built-in, `None` for an unknown name.
pub fn builtin(name: &str) -> Option<&'static [u8]> {
    BUILTINS.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}
