//! What an author waits for: the first build of a new project, with nothing compiled before and nothing to download.

use std::{process::Command, time::Instant};

use anyhow::{Context, ensure};
use kubeocean_bench::Figure;
use kubeocean_harness::{
    author::{PolicyProject, lock_of_new, repository},
    program::kubeocean_binary,
};

const NAME: &str = "first-policy";
const TARGET: &str = "wasm32-unknown-unknown";

pub(crate) fn figures() -> anyhow::Result<Vec<Figure>> {
    let directory = tempfile::tempdir().context("making a folder")?;
    let folder = directory.path().join(NAME);
    let made = Command::new(kubeocean_binary()?)
        .args(["policy", "new", NAME, "--path"])
        .arg(&folder)
        .arg("--sdk")
        .arg(repository()?.join("policy-sdk"))
        .output()
        .context("starting kubeocean")?;
    ensure!(made.status.success(), "policy new failed: {}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(folder.join("Cargo.lock"), lock_of_new(NAME)?).context("writing Cargo.lock")?;
    let project = PolicyProject::in_folder(NAME, &folder).in_target(&directory.path().join("target"));
    let seconds = tokio::runtime::Runtime::new().context("a runtime")?.block_on(async {
        project.cargo(&["fetch", "--locked", "--target", TARGET]).await?;
        let started = Instant::now();
        project
            .cargo(&["build", "--quiet", "--release", "--target", TARGET, "--locked", "--offline"])
            .await?;
        anyhow::Ok(started.elapsed().as_secs_f64())
    })?;
    Ok(vec![Figure::new("first build of a new policy", seconds, "s").budget(15.0)])
}
