//! Which tools made a module, as the tools wrote it into the `producers` sections (PO-1304). A claim, for people.

use std::collections::BTreeSet;

use wasmparser::{KnownCustom, Parser, Payload};

/// Names and versions, for example `rustc 1.95.0 (59807616e 2026-04-14)`, sorted. What cannot be read is left out.
pub(crate) fn producers(bytes: &[u8]) -> Vec<String> {
    let mut found = BTreeSet::new();
    for payload in Parser::new(0).parse_all(bytes) {
        let Ok(Payload::CustomSection(section)) = payload else { continue };
        let KnownCustom::Producers(fields) = section.as_known() else { continue };
        for field in fields.into_iter().flatten() {
            let values = field.values.into_iter().flatten();
            found.extend(values.map(|value| format!("{} {}", value.name, value.version).trim().to_owned()));
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;

    #[test]
    fn a_module_tells_its_tools() {
        let bytes = builtin("cpu-percentage").unwrap();
        let found = producers(bytes);
        let tool = |name: &str| found.iter().any(|tool| tool.starts_with(name) && tool.len() > name.len());
        assert!(tool("rustc 1.") && tool("wit-bindgen-rust 0.") && tool("wit-component 0."), "{found:?}");
        assert!(found.contains(&"Rust".to_owned()), "{found:?}");
        // A module that is cut tells what it can.
        assert!(producers(&bytes[..bytes.len() / 2]).len() <= found.len());
        assert!(producers(b"no module").is_empty());
    }
}
