//! `kubeocean policy verify`: whether a Syncer with these keys or rules would load a module of a registry (PO-1204).

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args as ClapArgs;
use kubeocean_registry::{
    Accepted, Demands, Refusal, Signatures, Trust, TrustRule, VerifyingKey, accept, read_trust,
};
use serde::Serialize;

use crate::{
    cluster::block_on,
    failure::{Failure, OrFailure},
    output::{Format, pairs},
    registry::{self, Artifact},
};

/// What by whom.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy verify registry.example.com/policies/night-gpu:1.2.0 --key release.pem
  kubeocean policy verify registry.example.com/policies/night-gpu:1.2.0 --trust-dir /etc/kubeocean/trust

Exit code 1: no signature holds. With --trust-dir a module that no rule is for is accepted as it is, as by a
Syncer, unless trust.yaml says `others: refuse`.")]
pub(crate) struct Args {
    #[command(flatten)]
    artifact: Artifact,
    /// Public key, PEM, whose signature is required; of several keys one is enough
    #[arg(long, value_name = "FILE", required_unless_present = "trust_dir")]
    key: Vec<PathBuf>,
    /// Folder with trust.yaml and public keys, as the Syncer has it
    #[arg(long, value_name = "DIR", conflicts_with = "key")]
    trust_dir: Option<PathBuf>,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    image: String,
    manifest_digest: String,
    digest: String,
    /// File of the key, or nothing where no rule asks for one.
    signed_by: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let trust = trust(args)?;
    let Artifact { image, login } = &args.artifact;
    let rejected = |text: String| Failure::failed(format!("SignatureRejected: {text}"));
    trust.permits(image).map_err(rejected)?;
    let bundle = block_on(registry::pull(login, image, None, Signatures::Fetch))?;
    let demands = Demands { digest: None, max_bytes: registry::max_bytes() };
    let accepted = accept(image, &bundle, &trust, demands).map_err(|refusal| match refusal {
        Refusal::Signature(text) => rejected(text),
        other => Failure::unusable(format!("{image}: {other}")),
    })?;
    let report = report(args, accepted);
    args.output.show(&report, text)
}

fn trust(args: &Args) -> Result<Trust, Failure> {
    if let Some(folder) = &args.trust_dir {
        return rules(folder);
    }
    let keys = keys(&args.key)?;
    Ok(Trust::new(vec![TrustRule { prefix: String::new(), keys, required: true }]))
}

/// Public keys by their file names.
pub(super) fn keys(files: &[PathBuf]) -> Result<Vec<(String, VerifyingKey)>, Failure> {
    let keys = files.iter().map(|path| {
        let cannot = || format!("cannot use the key {}", path.display());
        let pem = std::fs::read(path).with_context(cannot)?;
        Ok((path.display().to_string(), VerifyingKey::from_pem(&pem).with_context(cannot)?))
    });
    keys.collect::<anyhow::Result<Vec<_>>>().or_unusable()
}

/// The rules in a folder, as the Syncer has it.
pub(super) fn rules(folder: &Path) -> Result<Trust, Failure> {
    read_trust(folder).with_context(|| format!("cannot use {}", folder.display())).or_unusable()
}

fn report(args: &Args, accepted: Accepted) -> Report {
    Report {
        image: args.artifact.image.to_string(),
        manifest_digest: accepted.manifest_digest.to_string(),
        digest: accepted.module_digest.to_string(),
        signed_by: accepted.signed_by,
    }
}

fn text(report: &Report) -> String {
    let by = report.signed_by.clone().unwrap_or_else(|| "nobody; no rule asks for a signature".to_owned());
    pairs(&[
        ("accepted", format!("{}@{}", report.image, report.manifest_digest)),
        ("signed by", by),
        ("digest", report.digest.clone()),
    ])
}
