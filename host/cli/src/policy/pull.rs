//! `kubeocean policy pull`: a module of a registry into a file. It is checked, not trusted: `verify` does that.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args as ClapArgs;
use kubeocean_registry::{Demands, Digest, Signatures, Trust, accept};
use serde::Serialize;

use super::module;
use crate::{
    cluster::block_on,
    failure::{Failure, OrFailure},
    output::{Format, pairs},
    registry::{self, Artifact},
};

/// What goes where.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy pull registry.example.com/policies/night-gpu:1.2.0
  kubeocean policy pull registry.example.com/policies/night-gpu:1.2.0 night-gpu.wasm --digest sha256:9f2c...")]
pub(crate) struct Args {
    #[command(flatten)]
    artifact: Artifact,
    /// File to write [default: the module's name with .wasm]
    file: Option<PathBuf>,
    /// Accept only the module with this digest
    #[arg(long, value_name = "sha256:HEX")]
    digest: Option<Digest>,
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
    file: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let Artifact { image, login } = &args.artifact;
    let bundle = block_on(registry::pull(login, image, args.digest, Signatures::Skip))?;
    let demands = Demands { digest: args.digest, max_bytes: registry::max_bytes() };
    let accepted = accept(image, &bundle, &Trust::default(), demands)
        .map_err(|refusal| Failure::unusable(format!("{image}: {refusal}")))?;
    let outline = module::outline(image, &accepted)?;
    let file = args.file.clone().unwrap_or_else(|| file_of(&outline.name));
    std::fs::write(&file, &accepted.module)
        .with_context(|| format!("cannot write {}", file.display()))
        .or_unusable()?;
    let report = Report {
        image: image.to_string(),
        manifest_digest: accepted.manifest_digest.to_string(),
        module: outline.name,
        version: outline.version,
        digest: accepted.module_digest.to_string(),
        file,
    };
    args.output.show(&report, text)
}

/// The module chose the name; it chooses no folder.
fn file_of(name: &str) -> PathBuf {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = name.chars().map(safe).collect();
    PathBuf::from(format!("{}.wasm", name.trim_start_matches('.')))
}

fn text(report: &Report) -> String {
    pairs(&[
        ("pulled", format!("{}@{}", report.image, report.manifest_digest)),
        ("module", format!("{} {}", report.module, report.version)),
        ("digest", report.digest.clone()),
        ("file", report.file.display().to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_chooses_a_name_and_no_folder() {
        assert_eq!(file_of("night-gpu"), PathBuf::from("night-gpu.wasm"));
        assert_eq!(file_of("../../etc/x"), PathBuf::from("_.._etc_x.wasm"));
    }
}
