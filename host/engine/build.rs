//! Builds the three built-in policy modules for WebAssembly and turns them into components to embed.
//!
//! A nested cargo with its own target directory, so it neither waits for the outer one nor inherits its flags.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "wasm32-unknown-unknown";
const MODULES: [&str; 3] = ["cpu-percentage", "time-windows", "node-labels"];

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = manifest.join("../..").canonicalize().expect("the workspace root exists");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for watched in ["policy-sdk/src", "policy-sdk/wit", "policy-sdk/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    for module in MODULES {
        for watched in ["src", "Cargo.toml"] {
            println!("cargo::rerun-if-changed={}", root.join("builtin-policies").join(module).join(watched).display());
        }
    }
    check_target();
    let guest = out.join("guest");
    build(&root, &guest);
    for module in MODULES {
        let core = guest.join(TARGET).join("release").join(format!("{}.wasm", module.replace('-', "_")));
        componentize(module, &core, &out.join(format!("{module}.wasm")));
    }
}

fn check_target() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let asked = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let there = asked.is_ok_and(|out| Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_dir());
    assert!(
        there,
        "the Rust target {TARGET} is missing, it builds the policy modules: run `rustup target add {TARGET}`"
    );
}

fn build(root: &Path, target_dir: &Path) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["build", "--release", "--target", TARGET]);
    command.arg("--target-dir").arg(target_dir);
    for module in MODULES {
        command.args(["-p", module]);
    }
    // Stripping would remove the section that says which world a module is for.
    for setting in ["strip=false", "debug=false", "lto=true", "opt-level=3", "codegen-units=1"] {
        command.arg("--config").arg(format!("profile.release.{setting}"));
    }
    let keep = ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_HTTP_CAINFO", "CARGO_HTTP_PROXY"];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let foreign = text.starts_with("CARGO") || text.starts_with("RUSTC") || text.starts_with("RUSTFLAGS");
        let registry = text.starts_with("CARGO_REGISTR") || text.starts_with("CARGO_SOURCE");
        if foreign && !registry && !keep.contains(&&*text) {
            command.env_remove(&name);
        }
    }
    // The same sources give the same bytes wherever they lie.
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let mut flags = vec![format!("--remap-path-prefix={}=kubeocean", root.display())];
    flags.extend(home.map(|home| format!("--remap-path-prefix={}=cargo", home.display())));
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    let output = command.output().expect("cargo can be started");
    assert!(
        output.status.success(),
        "building the built-in policy modules failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn componentize(module: &str, core: &Path, component: &Path) {
    let bytes = fs::read(core).unwrap_or_else(|error| panic!("read {}: {error}", core.display()));
    let made = wit_component::ComponentEncoder::default()
        .module(&bytes)
        .and_then(|encoder| encoder.validate(true).encode())
        .unwrap_or_else(|error| panic!("{module} is no policy component: {error:#}"));
    fs::write(component, made).unwrap_or_else(|error| panic!("write {}: {error}", component.display()));
}
