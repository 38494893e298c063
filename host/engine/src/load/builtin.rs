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

/// Digests in the order of [`BUILTINS`], computed once.
fn digests() -> &'static [Digest; BUILTINS.len()] {
    static DIGESTS: OnceLock<[Digest; BUILTINS.len()]> = OnceLock::new();
    DIGESTS.get_or_init(|| BUILTINS.map(|(_, bytes)| Digest::of(bytes)))
}

/// Bytes and digest of a built-in.
pub(crate) fn builtin_with_digest(name: &str) -> Option<(&'static [u8], Digest)> {
    let index = BUILTINS.iter().position(|(known, _)| *known == name)?;
    Some((BUILTINS.get(index)?.1, *digests().get(index)?))
}

/// Name of the built-in with these bytes.
pub(crate) fn builtin_of_digest(digest: Digest) -> Option<&'static str> {
    let index = digests().iter().position(|known| *known == digest)?;
    BUILTINS.get(index).map(|(name, _)| *name)
}

/// The component of a built-in, `None` for an unknown name.
pub fn builtin(name: &str) -> Option<&'static [u8]> {
    BUILTINS.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}
