//! Bytes -> component -> imports and exports checked by name (PO-203, PO-703, PO-1302).

use std::collections::BTreeSet;

use wasmparser::{ComponentType, ComponentTypeDeclaration, InstanceTypeDeclaration};
use wasmtime::component::Component;

use super::error::{LoadCode, LoadError};
use super::shape::{check_lease, check_place};
use crate::wasm::bindings::{lease::LeasePolicyPre, place::PlacePolicyPre};
use crate::wasm::unit::{Prepared, linker};

/// Version of the interface this host implements.
const MAJOR: &str = "1";
const MINOR: u64 = 0;
/// Package of the interface.
const PACKAGE: &str = "kubeocean:policy/";

/// First bytes of a core module and of a component.
const CORE_MAGIC: &[u8] = b"\0asm\x01\0\0\0";
const COMPONENT_MAGIC: &[u8] = b"\0asm\x0d\0\x01\0";

/// A component: the bytes themselves, or made from a core module that carries its world.
pub(crate) fn componentize(bytes: &[u8]) -> Result<std::borrow::Cow<'_, [u8]>, LoadError> {
    if bytes.starts_with(COMPONENT_MAGIC) {
        return Ok(bytes.into());
    }
    let refuse = |text: &str| LoadError::new(LoadCode::NotAPolicy, text);
    if !bytes.starts_with(CORE_MAGIC) {
        return Err(refuse("the bytes are neither a component nor a WebAssembly module"));
    }
    check_core(bytes)?;
    // The encoder was made for what compilers write, and some of what they would never write makes it panic.
    let encode = || {
        wit_component::ComponentEncoder::default()
            .module(bytes)
            .and_then(|encoder| encoder.validate(true).encode())
    };
    let encoded =
        std::panic::catch_unwind(encode).map_err(|_| refuse("the encoder of components gave up"))?;
    encoded.map(Into::into).map_err(|error| refuse(&format!("{error:#}")))
}

/// Names what a core module may not import before the encoder fails on it in its own words.
fn check_core(bytes: &[u8]) -> Result<(), LoadError> {
    let (mut has_world, mut versions) = (false, BTreeSet::new());
    for payload in wasmparser::Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|error| LoadError::new(LoadCode::NotAPolicy, &error.to_string()))?;
        match payload {
            wasmparser::Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import =
                        import.map_err(|error| LoadError::new(LoadCode::NotAPolicy, &error.to_string()))?;
                    let intrinsic =
                        import.module.strip_prefix("[export]").is_some_and(|m| m.starts_with(PACKAGE));
                    if !intrinsic && !is_allowed_import(import.module) {
                        return Err(not_allowed(import.module));
                    }
                }
            }
            wasmparser::Payload::CustomSection(section) if section.name().starts_with("component-type") => {
                has_world = true;
                check_world(section.data(), &mut versions)
                    .map_err(|error| LoadError::new(LoadCode::NotAPolicy, &error.to_string()))??;
            }
            _ => {}
        }
    }
    if has_world {
        return Ok(());
    }
    Err(LoadError::new(
        LoadCode::NotAPolicy,
        "the module does not say which world it is for (no component-type section)",
    ))
}

/// Looks at the names of the interfaces in a world that a core module carries. They must be of one version of our package:
/// packages that depend on each other in a ring make the encoder overflow its stack, and nobody could catch that.
fn check_world<'a>(
    world: &'a [u8],
    versions: &mut BTreeSet<&'a str>,
) -> Result<Result<(), LoadError>, wasmparser::BinaryReaderError> {
    let mut names = Vec::new();
    for payload in wasmparser::Parser::new(0).parse_all(world) {
        match payload? {
            wasmparser::Payload::ComponentTypeSection(types) => {
                for ty in types {
                    names_in(&ty?, &mut names);
                }
            }
            wasmparser::Payload::ComponentImportSection(imports) => {
                for import in imports {
                    names.push(import?.name.name);
                }
            }
            wasmparser::Payload::ComponentExportSection(exports) => {
                for export in exports {
                    names.push(export?.name.name);
                }
            }
            _ => {}
        }
    }
    // Only names of interfaces and worlds of a package have a colon.
    for name in names.into_iter().filter(|name| name.contains(':')) {
        let Some(of_ours) = name.strip_prefix(PACKAGE) else { return Ok(Err(not_allowed(name))) };
        versions.insert(of_ours.split_once('@').map_or("", |(_, version)| version));
        if versions.len() > 1 {
            let text = "the module's world is of more than one version of the interface";
            return Ok(Err(LoadError::new(LoadCode::WrongWorld, text)));
        }
    }
    Ok(Ok(()))
}

/// Names of imports and exports in a type, at any depth; the parser bounds the depth.
fn names_in<'a>(ty: &ComponentType<'a>, names: &mut Vec<&'a str>) {
    match ty {
        ComponentType::Component(declarations) => {
            for declaration in declarations {
                match declaration {
                    ComponentTypeDeclaration::Type(ty) => names_in(ty, names),
                    ComponentTypeDeclaration::Export { name, .. } => names.push(name.name),
                    ComponentTypeDeclaration::Import(import) => names.push(import.name.name),
                    ComponentTypeDeclaration::CoreType(_) | ComponentTypeDeclaration::Alias(_) => {}
                }
            }
        }
        ComponentType::Instance(declarations) => {
            for declaration in declarations {
                match declaration {
                    InstanceTypeDeclaration::Type(ty) => names_in(ty, names),
                    InstanceTypeDeclaration::Export { name, .. } => names.push(name.name),
                    InstanceTypeDeclaration::CoreType(_) | InstanceTypeDeclaration::Alias(_) => {}
                }
            }
        }
        ComponentType::Defined(_) | ComponentType::Func(_) | ComponentType::Resource { .. } => {}
    }
}

fn is_allowed_import(name: &str) -> bool {
    let Some((interface, version)) = name.strip_prefix(PACKAGE).and_then(|rest| rest.split_once('@')) else {
        return false;
    };
    matches!(interface, "host" | "types") && major(version) == MAJOR
}

fn major(version: &str) -> &str {
    version.split('.').next().unwrap_or(version)
}

fn not_allowed(import: &str) -> LoadError {
    LoadError::new(LoadCode::WrongWorld, &format!("import {import} is not allowed"))
}

/// What a component exports, checked against what this host knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Worlds {
    lease: bool,
    place: bool,
}

fn worlds(engine: &wasmtime::Engine, component: &Component) -> Result<Worlds, LoadError> {
    let wrong = |text: String| LoadError::new(LoadCode::WrongWorld, &text);
    let ty = component.component_type();
    if let Some((import, _)) = ty.imports(engine).find(|(name, _)| !is_allowed_import(name)) {
        return Err(not_allowed(import));
    }
    let (mut found, mut meta) = (Worlds::default(), false);
    for (name, _) in ty.exports(engine) {
        let Some((interface, version)) = name.strip_prefix(PACKAGE).and_then(|rest| rest.split_once('@'))
        else {
            continue;
        };
        if major(version) != MAJOR {
            return Err(wrong(format!("export {name} is not of a version this host knows ({MAJOR}.x)")));
        }
        match interface {
            "lease" => found.lease = true,
            "place" => found.place = true,
            "meta" => meta = true,
            "types" => {}
            _ => {
                let minor = version.split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(MINOR + 1);
                return Err(wrong(format!("export {name} needs host >= {MAJOR}.{minor}")));
            }
        }
    }
    if !meta {
        return Err(wrong(format!("export {PACKAGE}meta is missing")));
    }
    if !found.lease && !found.place {
        return Err(wrong(format!("neither {PACKAGE}lease nor {PACKAGE}place is exported")));
    }
    Ok(found)
}

/// Checks the interface and resolves all names once.
pub(crate) fn link(engine: &wasmtime::Engine, component: &Component) -> Result<Prepared, LoadError> {
    let wrong = |error: wasmtime::Error| LoadError::new(LoadCode::WrongWorld, &format!("{error:#}"));
    let worlds = worlds(engine, component)?;
    let pre = linker(engine).and_then(|linker| linker.instantiate_pre(component)).map_err(wrong)?;
    if worlds.lease {
        check_lease(&pre).map_err(wrong)?;
    }
    if worlds.place {
        check_place(&pre).map_err(wrong)?;
    }
    let lease = worlds.lease.then(|| LeasePolicyPre::new(pre.clone())).transpose().map_err(wrong)?;
    let place = worlds.place.then(|| PlacePolicyPre::new(pre)).transpose().map_err(wrong)?;
    Ok(Prepared { lease, place })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_is_no_policy() {
        for bytes in [&b""[..], b"\x7fELF\x02\x01\x01", &[7; 100], CORE_MAGIC] {
            assert_eq!(componentize(bytes).unwrap_err().code, LoadCode::NotAPolicy);
        }
    }

    #[test]
    fn only_the_interface_of_this_major_may_be_imported() {
        assert!(is_allowed_import("kubeocean:policy/host@1.0.0"));
        assert!(is_allowed_import("kubeocean:policy/types@1.3.0"));
        assert!(!is_allowed_import("kubeocean:policy/host@2.0.0"));
        assert!(!is_allowed_import("wasi:clocks/wall-clock@0.2.0"));
        assert!(!is_allowed_import("env"));
    }
}
