//! Builds the three built-in policy modules for WebAssembly and turns them into components to embed.
//!
//! A nested cargo with its own target directory, so it neither waits for the outer one nor inherits its flags.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "wasm32-unknown-unknown";
/// Profile of the root manifest for policy modules.
const PROFILE: &str = "policy";
const MODULES: [&str; 3] = ["cpu-percentage", "time-windows", "node-labels"];

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = manifest.join("../..").canonicalize().expect("the workspace root exists");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for watched in [
        "policy-sdk/src",
        "policy-sdk/wit",
        "policy-sdk/component-types",
        "policy-sdk/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    for module in MODULES {
        for watched in ["src", "settings.schema.json", "Cargo.toml"] {
            println!(
                "cargo::rerun-if-changed={}",
                root.join("builtin-policies").join(module).join(watched).display()
            );
        }
    }
    check_target();
    let guest = out.join("guest");
    build(&root, &guest);
    for module in MODULES {
        let core = guest.join(TARGET).join(PROFILE).join(format!("{}.wasm", module.replace('-', "_")));
        componentize(module, &core, &out.join(format!("{module}.wasm")));
    }
}

/// Ends the build with one line that says what to do.
fn fail(text: &str) -> ! {
    for line in text.lines() {
        println!("cargo::error={line}");
    }
    std::process::exit(1)
}

fn check_target() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let asked = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    if !asked.is_ok_and(|out| Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_dir()) {
        fail(&format!(
            "the Rust target {TARGET} is missing, it builds the policy modules: run `rustup target add {TARGET}`"
        ));
    }
}

fn build(root: &Path, target_dir: &Path) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["build", "--profile", PROFILE, "--target", TARGET]);
    command.arg("--target-dir").arg(target_dir);
    for module in MODULES {
        command.args(["-p", module]);
    }
    // Stripping everything would remove the section that says which world a module is for; stripping nothing would keep
    // 1.4 MiB of the standard library's debug information in each module.
    command.args(["--config", "profile.policy.strip=\"debuginfo\""]);
    clean_environment(&mut command);
    // The same sources give the same bytes wherever they lie.
    let mut flags = vec![format!("--remap-path-prefix={}=kubeocean", root.display())];
    flags.extend(cargo_home().map(|home| format!("--remap-path-prefix={}=cargo", home.display())));
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => fail(&format!(
            "building the built-in policy modules failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        )),
        Err(error) => fail(&format!("cargo cannot be started to build the built-in policy modules: {error}")),
    }
}

/// Flags and wrappers of the outer build are not for the modules; how to reach a registry is.
fn clean_environment(command: &mut Command) {
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_"];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let foreign = ["CARGO", "RUSTC", "RUSTFLAGS"].iter().any(|prefix| text.starts_with(prefix));
        if foreign && !KEPT.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
}

fn cargo_home() -> Option<PathBuf> {
    let set = env::var_os("CARGO_HOME").map(PathBuf::from);
    set.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

fn componentize(module: &str, core: &Path, component: &Path) {
    let bytes = fs::read(core).unwrap_or_else(|error| fail(&format!("read {}: {error}", core.display())));
    let made = wit_component::ComponentEncoder::default()
        .module(&bytes)
        .and_then(|encoder| encoder.validate(true).encode())
        .unwrap_or_else(|error| fail(&format!("{module} is no policy component: {error:#}")));
    fs::write(component, made)
        .unwrap_or_else(|error| fail(&format!("write {}: {error}", component.display())));
}
