//! The checked-in component types are those of the WIT. `KUBEOCEAN_REGENERATE=1 cargo test -p kubeocean-policy-sdk
//! --test component_types` writes them anew after a change of the WIT or of wit-component.

use std::fs;
use std::path::Path;

use wit_component::StringEncoding;
use wit_parser::Resolve;

#[test]
fn component_types_are_those_of_the_wit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(folder.join("wit")).expect("the WIT parses");
    for world in ["lease-policy", "place-policy", "policy"] {
        let id = resolve.select_world(&[package], Some(world)).expect("the world exists");
        let encoded = wit_component::metadata::encode(&resolve, id, StringEncoding::UTF8, None)
            .expect("the world can be encoded");
        let file = folder.join("component-types").join(format!("{world}.bin"));
        if std::env::var_os("KUBEOCEAN_REGENERATE").is_some() {
            fs::write(&file, &encoded).expect("the file can be written");
        }
        let stored = fs::read(&file).expect("the file can be read");
        assert!(stored == encoded, "{} is not up to date", file.display());
    }
}
