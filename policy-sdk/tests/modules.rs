//! Real modules: the built-in policies and the example are built for wasm, turned into components and looked at. This is
//! what proves the export macro: the right world, its exports, and no import but the log.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use wit_component::{ComponentEncoder, DecodedWasm};
use wit_parser::WorldItem;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the SDK is part of the repository")
}

/// Builds the package at `folder` (relative to the repository) as a policy author does; answers the module's bytes.
fn build(folder: &str, package: &str, profile: &str) -> Vec<u8> {
    let folder = repository().join(folder);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("modules");
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--target",
            "wasm32-unknown-unknown",
            "--profile",
            profile,
            "--package",
            package,
        ])
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .status()
        .expect("cargo starts");
    assert!(status.success(), "{package} builds (is the target wasm32-unknown-unknown installed?)");
    let file = format!("{}.wasm", package.replace('-', "_"));
    std::fs::read(target.join("wasm32-unknown-unknown").join(profile).join(file))
        .expect("the module was written")
}

/// The functions a component imports and the interfaces it exports.
fn surface(module: &[u8]) -> (BTreeSet<String>, BTreeSet<String>) {
    let component = ComponentEncoder::default()
        .module(module)
        .expect("the module names its world")
        .validate(true)
        .encode()
        .expect("the module fits its world");
    let decoded = wit_component::decode(&component).expect("the component can be read");
    let DecodedWasm::Component(resolve, world) = decoded else { unreachable!("a component was encoded") };
    let world = &resolve.worlds[world];
    let imports = world.imports.iter().flat_map(|(key, item)| {
        let name = resolve.name_world_key(key);
        let functions: Vec<String> = match item {
            WorldItem::Interface { id, .. } => resolve.interfaces[*id]
                .functions
                .keys()
                .map(|function| format!("{name}#{function}"))
                .collect(),
            WorldItem::Function(_) => vec![name],
            WorldItem::Type { .. } => Vec::new(),
        };
        functions
    });
    let exports = world.exports.keys().map(|key| resolve.name_world_key(key));
    (imports.collect(), exports.collect())
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

const LEASE: &[&str] = &["kubeocean:policy/lease@1.0.0", "kubeocean:policy/meta@1.0.0"];
const PLACE: &[&str] = &["kubeocean:policy/place@1.0.0", "kubeocean:policy/meta@1.0.0"];
const BOTH: &[&str] =
    &["kubeocean:policy/lease@1.0.0", "kubeocean:policy/place@1.0.0", "kubeocean:policy/meta@1.0.0"];

#[test]
fn modules_export_their_world_and_import_only_the_log() {
    // Profile and largest size in KiB: what a node's owner downloads and every Syncer compiles stays small.
    for (folder, package, profile, most, world) in [
        (".", "cpu-percentage", "policy", 192, LEASE),
        (".", "time-windows", "policy", 192, LEASE),
        (".", "node-labels", "policy", 192, LEASE),
        (".", "kubeocean-policy-place-only", "policy", 256, PLACE),
        (".", "kubeocean-policy-lease-and-place", "policy", 256, BOTH),
        ("examples/policies/night-gpu", "night-gpu", "release", 256, LEASE),
    ] {
        let module = build(folder, package, profile);
        let (imports, exports) = surface(&module);
        assert_eq!(exports, set(world), "{package}");
        assert!(
            imports.is_subset(&set(&["kubeocean:policy/host@1.0.0#log"])),
            "{package} imports {imports:?}"
        );
        assert!(module.len() / 1024 <= most, "{package} has {} KiB", module.len() / 1024);
    }
}
