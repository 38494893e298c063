//! `kubeocean policy pull`: a module of a registry into a file. It is checked, not trusted: `verify` does that.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args as ClapArgs;
use kubeocean_engine::{ModuleClaims, ModuleLimits};
use kubeocean_registry::{Demands, Digest, Reference, Signatures, Trust, accept};
use serde::Serialize;

use super::module;
use crate::{
    cluster::block_on,
    failure::{Failure, OrFailure},
    output::{Format, columns, print, print_json},
    registry::{self, Login, image},
};

/// What goes where.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy pull registry.example.com/policies/night-gpu:1.2.0
  kubeocean policy pull registry.example.com/policies/night-gpu:1.2.0 night-gpu.wasm --digest sha256:9f2c...")]
pub(crate) struct Args {
    /// Which: registry, repository, and tag or digest
    #[arg(value_parser = image)]
    image: Reference,
    /// File to write [default: the module's name with .wasm]
    file: Option<PathBuf>,
    /// Accept only the module with this digest
    #[arg(long, value_name = "sha256:HEX")]
    digest: Option<Digest>,
    #[command(flatten)]
    login: Login,
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
    let bundle = block_on(registry::pull(&args.login, &args.image, args.digest, Signatures::Skip))?;
    let demands = Demands { digest: args.digest, max_bytes: registry::max_bytes() };
    let accepted = accept(&args.image, &bundle, &Trust::default(), demands)
        .map_err(|refusal| Failure::unusable(format!("{}: {refusal}", args.image)))?;
    let outline = module::engine()?
        .outline(&accepted.module, ModuleLimits::default())
        .map_err(|error| module::load_failure(&error))?;
    let claims = ModuleClaims { name: accepted.title, version: accepted.version };
    claims
        .check(&outline.name, &outline.version)
        .map_err(|text| Failure::unusable(format!("{}: {text}", args.image)))?;
    let file = args.file.clone().unwrap_or_else(|| file_of(&outline.name));
    std::fs::write(&file, &accepted.module)
        .with_context(|| format!("cannot write {}", file.display()))
        .or_unusable()?;
    let report = Report {
        image: args.image.to_string(),
        manifest_digest: accepted.manifest_digest.to_string(),
        module: outline.name,
        version: outline.version,
        digest: accepted.module_digest.to_string(),
        file,
    };
    match args.output {
        Format::Text => print(&text(&report)),
        Format::Json => print_json(&report),
    }
}

/// The module chose the name; it chooses no folder.
fn file_of(name: &str) -> PathBuf {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = name.chars().map(safe).collect();
    PathBuf::from(format!("{}.wasm", name.trim_start_matches('.')))
}

fn text(report: &Report) -> String {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    columns(&[
        row("pulled", format!("{}@{}", report.image, report.manifest_digest)),
        row("module", format!("{} {}", report.module, report.version)),
        row("digest", report.digest.clone()),
        row("file", report.file.display().to_string()),
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
