//! The checked-in component types and bindings are those of the WIT: whoever depends on the SDK compiles no generator.
//! `KUBEOCEAN_REGENERATE=1 cargo test -p kubeocean-policy-sdk --test component_types` writes them anew after a change of
//! the WIT, of wit-component or of wit-bindgen.

use std::fs;
use std::path::Path;

use wit_bindgen_core::{Files, WorldGenerator};
use wit_bindgen_rust::Opts;
use wit_component::StringEncoding;
use wit_parser::{PackageId, Resolve};

fn wit() -> (Resolve, PackageId) {
    let mut resolve = Resolve::default();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("wit");
    let (package, _) = resolve.push_dir(folder).expect("the WIT parses");
    (resolve, package)
}

/// Compares a file of the SDK, or writes it.
fn check(path: &str, content: &[u8]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("KUBEOCEAN_REGENERATE").is_some() {
        fs::write(&file, content).expect("the file can be written");
    }
    let stored = fs::read(&file).expect("the file can be read");
    assert!(stored == content, "{} is not up to date", file.display());
}

#[test]
fn component_types_are_those_of_the_wit() {
    let (resolve, package) = wit();
    for world in ["lease-policy", "place-policy", "policy"] {
        let id = resolve.select_world(&[package], Some(world)).expect("the world exists");
        let encoded = wit_component::metadata::encode(&resolve, id, StringEncoding::UTF8, None)
            .expect("the world can be encoded");
        check(&format!("component-types/{world}.bin"), &encoded);
    }
}

#[test]
fn bindings_are_those_of_the_wit() {
    let (mut resolve, package) = wit();
    let world = resolve.select_world(&[package], Some("policy")).expect("the world exists");
    let options = Opts {
        format: true,
        pub_export_macro: true,
        export_macro_name: Some("export_world".to_owned()),
        default_bindings_module: Some("kubeocean_policy_sdk::bindings".to_owned()),
        ..Opts::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files).expect("bindings are generated");
    let files: Vec<_> = files.iter().collect();
    let [(_, bindings)] = files[..] else { panic!("{} files", files.len()) };
    check("bindings/policy.rs", bindings);
}
