//! Which tools made a module, as the tools wrote it into the `producers` sections (PO-1304). A claim, for people.

use std::collections::BTreeSet;

use wasmparser::{KnownCustom, Parser, Payload};

use crate::text::printable;

/// Tools that are told, and bytes of each: a section is whatever somebody wrote there.
const MAX_TOOLS: usize = 64;
const MAX_BYTES: usize = 128;

/// Names and versions, for example `rustc 1.95.0 (59807616e 2026-04-14)`, sorted. What cannot be read is left out.
pub(crate) fn producers(bytes: &[u8]) -> Vec<String> {
    let mut found = BTreeSet::new();
    for payload in Parser::new(0).parse_all(bytes) {
        let Ok(Payload::CustomSection(section)) = payload else { continue };
        let KnownCustom::Producers(fields) = section.as_known() else { continue };
        for field in fields.into_iter().flatten() {
            let values = field.values.into_iter().flatten();
            found.extend(values.map(|value| {
                let tool = format!("{} {}", value.name, value.version);
                printable(tool.trim(), MAX_BYTES)
            }));
        }
    }
    found.into_iter().take(MAX_TOOLS).collect()
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

    /// A section as any program can write it.
    #[test]
    fn what_a_tool_says_of_itself_is_short_and_of_one_line() {
        let text = |text: &str| {
            let mut length = text.len();
            let mut bytes = Vec::new();
            while length > 127 {
                bytes.push(u8::try_from(length % 128).unwrap() | 128);
                length /= 128;
            }
            bytes.push(u8::try_from(length).unwrap());
            [bytes, text.as_bytes().to_vec()].concat()
        };
        let tools = 100;
        let values =
            (0..tools).flat_map(|i| [text(&format!("t{i}\n\x1b[31m")), text(&"x".repeat(1000))].concat());
        let fields: Vec<u8> =
            [vec![1], text("processed-by"), vec![tools]].concat().into_iter().chain(values).collect();
        let section = [text("producers"), fields].concat();
        let length = text(&"x".repeat(section.len()))[..3].to_vec();
        let module = [b"\0asm\x01\0\0\0\0".to_vec(), length, section].concat();
        let found = producers(&module);
        assert_eq!(found.len(), MAX_TOOLS);
        assert!(
            found.iter().all(|tool| tool.len() == MAX_BYTES && !tool.contains(char::is_control)),
            "{found:?}"
        );
        assert!(found[0].starts_with("t0  [31m xxx"), "{found:?}");
    }
}
