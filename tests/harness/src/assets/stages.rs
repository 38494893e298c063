//! kwok's stages: the rules by which a fake node becomes Ready and a fake pod runs, completes and goes.
//!
//! They belong to kwok's release, so they come from its module and not from this repository.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Pin;
use super::build::{copy_atomically, go, lock, require_go};

/// Below kwok's `kustomize/stage`; the order does not matter to kwok.
const STAGES: [&str; 5] = [
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
];

/// The stages as one YAML stream. Blocking; asks Go for the module folder the first time only.
///
/// # Errors
/// The stages are not cached yet and Go is missing or cannot get the module.
pub fn kwok_stages() -> Result<String> {
    let folder = Pin::Kwok.cache_dir()?.join("stages");
    if cached(&folder).is_none() {
        require_go()?;
        let _lock = lock(Pin::Kwok)?;
        if cached(&folder).is_none() {
            fill(&folder)?;
        }
    }
    let mut stream = String::new();
    for path in cached(&folder).context("kwok's stages are missing after they were copied")? {
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        stream.push_str(&text);
        stream.push_str("\n---\n");
    }
    Ok(stream)
}

fn cached(folder: &Path) -> Option<Vec<PathBuf>> {
    let paths: Vec<_> = STAGES.iter().map(|stage| folder.join(file_name(stage))).collect();
    paths.iter().all(|path| path.is_file()).then_some(paths)
}

fn fill(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let download =
        go(Pin::Kwok)?.args(["mod", "download", Pin::Kwok.module()]).output().context("running go")?;
    let list = go(Pin::Kwok)?
        .args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", Pin::Kwok.module()])
        .output()
        .context("running go")?;
    let module = String::from_utf8_lossy(&list.stdout).trim().to_owned();
    if module.is_empty() {
        bail!(
            "go cannot get {}: {}{}",
            Pin::Kwok.module(),
            String::from_utf8_lossy(&download.stderr),
            String::from_utf8_lossy(&list.stderr)
        );
    }
    for stage in STAGES {
        copy_atomically(
            &Path::new(&module).join("kustomize/stage").join(stage),
            &folder.join(file_name(stage)),
        )?;
    }
    Ok(())
}

fn file_name(stage: &str) -> &str {
    stage.rsplit_once('/').map_or(stage, |(_, name)| name)
}
