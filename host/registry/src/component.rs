//! Whether bytes are a WebAssembly component, by their first eight.

/// Magic number, version 0x0d and layer 1.
const PREAMBLE: [u8; 8] = [0x00, b'a', b's', b'm', 0x0d, 0x00, 0x01, 0x00];

/// A finished component and not a core module, which only ConfigMaps and files may hold (PO-907).
pub fn is_component(bytes: &[u8]) -> bool {
    bytes.starts_with(&PREAMBLE)
}
