//! `kubeocean policy keygen`: a pair of keys. Other tools' keys work as well: PEM, ECDSA P-256 or Ed25519.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use kubeocean_registry::{Algorithm, SigningKey};
use serde::Serialize;

use crate::{
    failure::{Failure, OrFailure},
    output::{Format, write_private},
};

/// Which pair.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy keygen release
  kubeocean policy keygen release --algorithm ed25519

Keep NAME.key secret, and give NAME.pem to those who check: kubeocean syncer --policy-trust-dir.")]
pub(crate) struct Args {
    /// Path of the pair without an ending: NAME.key is the private key, NAME.pem the public one
    name: PathBuf,
    /// Kind of the keys; p256 is what cosign makes
    #[arg(long, default_value = "p256")]
    algorithm: Kind,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    P256,
    Ed25519,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    private_key: PathBuf,
    public_key: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let algorithm = match args.algorithm {
        Kind::P256 => Algorithm::P256,
        Kind::Ed25519 => Algorithm::Ed25519,
    };
    let report =
        Report { private_key: with_ending(&args.name, "key"), public_key: with_ending(&args.name, "pem") };
    for path in [&report.private_key, &report.public_key] {
        if path.exists() {
            return Err(Failure::unusable(format!(
                "{} is there already; a lost key is lost for good",
                path.display()
            )));
        }
    }
    let (key, pem) = SigningKey::generate(algorithm).context("cannot make keys").or_unusable()?;
    write_private(&report.private_key, &pem).or_unusable()?;
    std::fs::write(&report.public_key, key.public().to_pem())
        .with_context(|| format!("cannot write {}", report.public_key.display()))
        .or_unusable()?;
    args.output.show(&report, |report| {
        format!(
            "private  {}   keep it secret\npublic   {}   for those who check\n",
            report.private_key.display(),
            report.public_key.display()
        )
    })
}

fn with_ending(name: &Path, ending: &str) -> PathBuf {
    let mut path = name.as_os_str().to_owned();
    path.push(".");
    path.push(ending);
    path.into()
}
