//! The custom policy of `examples/`, compiled on the spot as its author would.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kubeocean_api::keys::namespace;
use sha2::{Digest, Sha256};
use tokio::process::Command;

const TARGET: &str = "wasm32-unknown-unknown";
/// Name of the example, its ConfigMap and its policy.
pub(crate) const NAME: &str = "night-gpu";

/// A compiled policy.
#[derive(Debug)]
pub(crate) struct Module {
    bytes: Vec<u8>,
}

impl Module {
    /// `sha256:<hex>`, as a policy pins it.
    pub(crate) fn digest(&self) -> String {
        format!("sha256:{}", hex::encode(Sha256::digest(&self.bytes)))
    }

    /// The ConfigMap that carries it.
    pub(crate) fn config_map(&self) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(NAME.to_owned());
        map.metadata.namespace = Some(namespace::POLICIES.to_owned());
        map.binary_data = Some([("policy.wasm".to_owned(), ByteString(self.bytes.clone()))].into());
        map
    }
}

/// Compiles the example into the user's cache folder.
pub(crate) async fn build() -> Result<Module> {
    require_target().await?;
    let target_dir = cache()?.join(NAME);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--locked", "--target", TARGET])
        .env("CARGO_TARGET_DIR", &target_dir)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policies").join(NAME))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("running cargo")?;
    if !output.status.success() {
        bail!("the policy {NAME} does not compile:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let file = target_dir.join(TARGET).join("release").join("night_gpu.wasm");
    let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    Ok(Module { bytes })
}

/// A missing target gives a long error of the compiler; this one says what to do.
async fn require_target() -> Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .await
        .context("running rustc")?;
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !output.status.success() || !folder.is_dir() {
        bail!(
            "policies are compiled to WebAssembly, and this toolchain cannot: run `rustup target add {TARGET}`"
        );
    }
    Ok(())
}

fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    Ok(base.join("kubeocean").join("policies"))
}
