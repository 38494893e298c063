//! `kubeocean policy sign`: a signature beside a module in a registry, in the form of cosign (PO-1204).

use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde::Serialize;

use super::publish;
use crate::{cluster::block_on, failure::Failure, output::Format, registry::Artifact};

/// What with which key.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy keygen release
  kubeocean policy sign registry.example.com/policies/night-gpu:1.2.0 --key release.key

What is signed is the manifest the tag names now; give a digest to be sure which one that is. A key that has signed it already
does not sign it again. cosign verify --key release.pem --insecure-ignore-tlog accepts the signature.")]
pub(crate) struct Args {
    #[command(flatten)]
    artifact: Artifact,
    /// Private key, PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    image: String,
    manifest_digest: String,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let Artifact { image, login } = &args.artifact;
    let key = publish::read_key(&args.key)?;
    let manifest = block_on(async {
        let connection = login.connection(image)?;
        let found = connection.client.find(image, connection.credentials.as_ref()).await;
        let found = found.map_err(|error| connection.failure(&error))?;
        publish::sign(&connection, image, found.digest, &key).await?;
        Ok(found.digest)
    })?;
    let report = Report { image: image.to_string(), manifest_digest: manifest.to_string() };
    args.output.show(&report, |_| format!("signed  {}@{manifest}\n", image.name()))
}
