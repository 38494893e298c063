//! `kubeocean policy verify`: whether a Syncer with these keys or rules would load a module of a registry (PO-1204).

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args as ClapArgs;
use kubeocean_engine::ModuleOutline;
use kubeocean_registry::{
    Accepted, Demands, Reference, Refusal, Signatures, Trust, TrustRule, VerifyingKey, accept, read_trust,
};
use serde::Serialize;

use super::module;
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

Exit code 1: no signature holds. Exit code 2: it is no policy, or claims to be another one. With --trust-dir a module that no
rule is for is accepted as it is, as by a Syncer, unless trust.yaml says `others: refuse`. Settings are not looked at: `policy
check` tries them.")]
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
    module: String,
    version: String,
    digest: String,
    size_bytes: usize,
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
        // The registry gave no answer about some of them.
        other @ Refusal::Incomplete(_) => Failure::unreachable(format!("{image}: {other}")),
        other => Failure::unusable(format!("{image}: {other}")),
    })?;
    let outline = module::outline(image, &accepted)?;
    let report = report(image, accepted, outline);
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

fn report(image: &Reference, accepted: Accepted, outline: ModuleOutline) -> Report {
    Report {
        image: image.to_string(),
        manifest_digest: accepted.manifest_digest.to_string(),
        module: outline.name,
        version: outline.version,
        digest: accepted.module_digest.to_string(),
        size_bytes: outline.size_bytes,
        signed_by: accepted.signed_by,
    }
}

fn text(report: &Report) -> String {
    let by = report.signed_by.clone().unwrap_or_else(|| "nobody; no rule asks for a signature".to_owned());
    pairs(&[
        ("accepted", format!("{}@{}", report.image, report.manifest_digest)),
        ("signed by", by),
        ("module", format!("{} {}", report.module, report.version)),
        ("digest", report.digest.clone()),
        ("size", module::size_for_a_syncer(report.size_bytes)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_module_in_text() {
        let report = Report {
            image: "registry.example.com/policies/night-gpu:1.2.0".into(),
            manifest_digest: "sha256:51d0".into(),
            module: "night-gpu".into(),
            version: "1.2.0".into(),
            digest: "sha256:9f2c".into(),
            size_bytes: 9 << 20,
            signed_by: Some("release.pem".into()),
        };
        insta::assert_snapshot!(text(&report), @r"
        accepted   registry.example.com/policies/night-gpu:1.2.0@sha256:51d0
        signed by  release.pem
        module     night-gpu 1.2.0
        digest     sha256:9f2c
        size       9216 KiB, more than 8192 KiB: a Syncer takes it only with --policy-max-module-size
        ");
    }
}
