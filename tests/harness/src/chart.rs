//! The two charts, rendered by a real Helm.

use std::path::PathBuf;
use std::process::{Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::assets::{self, Binary, kubernetes_version};
use crate::cluster::start::obtain;
use crate::feed::output_with_input;
use crate::reaper;

/// A chart of this repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chart {
    /// `charts/kubeocean`, for the computing cluster.
    Kubeocean,
    /// `charts/kubeocean-worker`, for a worker cluster.
    KubeoceanWorker,
}

impl Chart {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kubeocean => "kubeocean",
            Self::KubeoceanWorker => "kubeocean-worker",
        }
    }

    pub fn path(self) -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts")).join(self.name())
    }
}

/// Runs helm and returns what it did, whatever it was. `input` is for `--values -`.
///
/// # Errors
/// helm cannot be obtained or run at all.
pub async fn helm(args: &[&str], input: &str) -> Result<Output> {
    obtain(&[Binary::Helm]).await?;
    let helm = assets::find(Binary::Helm)?.context("helm has disappeared")?;
    let home = reaper::new_directory("helm")?;
    let mut command = tokio::process::Command::new(helm);
    command
        .args(args)
        // Nothing of the user's helm, such as plugins, may take part.
        .env("HELM_CACHE_HOME", home.join("cache"))
        .env("HELM_CONFIG_HOME", home.join("config"))
        .env("HELM_DATA_HOME", home.join("data"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    reaper::adopt_async(&mut command)?;
    output_with_input(&mut command, "helm", input.as_bytes()).await
}

/// `helm template` of a chart as release `release` in `namespace`, without hooks, for our version of Kubernetes.
///
/// # Errors
/// The chart refuses the values; the message is helm's.
pub async fn helm_template(chart: Chart, release: &str, namespace: &str, values: &Value) -> Result<String> {
    let path = chart.path().display().to_string();
    let version = kubernetes_version()?;
    let args = [
        "template",
        release,
        &path,
        "--namespace",
        namespace,
        "--no-hooks",
        "--kube-version",
        &version,
        "--values",
        "-",
    ];
    let output = helm(&args, &values.to_string()).await?;
    if !output.status.success() {
        bail!("helm template of {}: {}", chart.name(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
