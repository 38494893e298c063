//! A module as it is shipped: a component, without names and debugging data (PO-907).
//!
//! Pure. In: the bytes an author's build made. Out: bytes that decide the same and are smaller. What says by which tools
//! a module was made (`producers`) stays, because hosts of later versions ask for it (PO-1304).

use crate::load::component::componentize;
use crate::load::error::{LoadCode, LoadError};

/// Magic number, version and layer, of a module as of a component.
const PREAMBLE_BYTES: usize = 8;
/// Custom section: a name, and what it names.
const CUSTOM: u8 = 0;
/// Sections of a component that hold a module or a component.
const CORE_MODULE: u8 = 1;
const COMPONENT: u8 = 4;
/// Components inside components that are looked into.
const MAX_DEPTH: usize = 16;

/// Makes a component of the bytes and leaves out what only a debugger reads.
pub fn finished_component(bytes: &[u8]) -> Result<Vec<u8>, LoadError> {
    let component = componentize(bytes)?;
    stripped(&component, Kind::Component, MAX_DEPTH)
        .ok_or_else(|| LoadError::new(LoadCode::NotAPolicy, "the component is cut off or malformed"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Module,
    Component,
}

/// `None`: the bytes do not hold what their lengths say.
fn stripped(bytes: &[u8], kind: Kind, depth: usize) -> Option<Vec<u8>> {
    let (preamble, mut rest) = bytes.split_at_checked(PREAMBLE_BYTES)?;
    let mut out = preamble.to_vec();
    while let Some((&id, tail)) = rest.split_first() {
        let (length, tail) = leb(tail)?;
        let (content, tail) = tail.split_at_checked(length)?;
        rest = tail;
        let inner = match (kind, id) {
            (Kind::Component, CORE_MODULE) => Some(Kind::Module),
            (Kind::Component, COMPONENT) => Some(Kind::Component),
            _ => None,
        };
        match inner {
            Some(kind) => section(&mut out, id, &stripped(content, kind, depth.checked_sub(1)?)?)?,
            None if id == CUSTOM && is_debug(name(content)?) => {}
            None => section(&mut out, id, content)?,
        }
    }
    Some(out)
}

fn is_debug(name: &[u8]) -> bool {
    let exact: [&[u8]; 5] =
        [b"name", b"component-name", b"linking", b"sourceMappingURL", b"external_debug_info"];
    exact.contains(&name) || name.starts_with(b".debug_") || name.starts_with(b"reloc.")
}

/// Name of a custom section.
fn name(content: &[u8]) -> Option<&[u8]> {
    let (length, tail) = leb(content)?;
    tail.get(..length)
}

fn section(out: &mut Vec<u8>, id: u8, content: &[u8]) -> Option<()> {
    out.push(id);
    let mut length = u32::try_from(content.len()).ok()?;
    loop {
        let low = u8::try_from(length & 0x7f).ok()?;
        length >>= 7;
        if length == 0 {
            out.push(low);
            break;
        }
        out.push(low | 0x80);
    }
    out.extend_from_slice(content);
    Some(())
}

/// An unsigned LEB128 number of up to 32 bits, and what is behind it.
fn leb(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let value = u32::try_from(value).ok()?;
            return Some((usize::try_from(value).ok()?, bytes.get(index + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BUILTINS;

    /// `name`, with one entry.
    const NAME: &[u8] = b"\x00\x08\x04name\x00\x01x";
    /// `mine`.
    const MINE: &[u8] = b"\x00\x05\x04mine";

    #[test]
    fn names_go_and_everything_else_stays() {
        let (_, bytes) = BUILTINS[0];
        let plain = finished_component(bytes).unwrap();
        assert_eq!(finished_component(&plain).unwrap(), plain, "nothing more to leave out");
        assert!(plain.len() <= bytes.len());
        assert_eq!(finished_component(&[&plain, NAME].concat()).unwrap(), plain);
        let marked = [plain.as_slice(), MINE].concat();
        assert_eq!(finished_component(&marked).unwrap(), marked);
    }

    #[test]
    fn names_inside_a_module_inside_go_as_well() {
        let module = b"\0asm\x01\0\0\0";
        let mut named = b"\0asm\x0d\0\x01\0".to_vec();
        section(&mut named, CORE_MODULE, &[module.as_slice(), NAME].concat()).unwrap();
        let mut plain = b"\0asm\x0d\0\x01\0".to_vec();
        section(&mut plain, CORE_MODULE, module).unwrap();
        assert_eq!(finished_component(&named).unwrap(), plain);
    }

    #[test]
    fn half_a_component_is_refused() {
        let (_, bytes) = BUILTINS[0];
        let error = finished_component(&bytes[..bytes.len() / 2]).unwrap_err();
        assert_eq!(error.code, LoadCode::NotAPolicy);
        let bomb = (0..100).fold(b"\0asm\x0d\0\x01\0".to_vec(), |inner, _| {
            let mut outer = b"\0asm\x0d\0\x01\0".to_vec();
            section(&mut outer, COMPONENT, &inner).unwrap();
            outer
        });
        assert!(finished_component(&bomb).is_err(), "nested without end");
    }
}
