//! `kubeocean policy sign`: a signature beside a module in a registry, in the form of cosign (PO-1204).

use std::path::PathBuf;

use clap::Args as ClapArgs;
use kubeocean_registry::Reference;
use serde::Serialize;

use super::publish;
use crate::{
    cluster::block_on,
    failure::Failure,
    output::{Format, print, print_json},
    registry::{Login, failure, image},
};

/// What with which key.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy keygen release
  kubeocean policy sign registry.example.com/policies/night-gpu:1.2.0 --key release.key

What is signed is the manifest the tag names now; give a digest to be sure which one that is. cosign verify --key
release.pem --insecure-ignore-tlog accepts the signature.")]
pub(crate) struct Args {
    /// Which: registry, repository, and tag or digest
    #[arg(value_parser = image)]
    image: Reference,
    /// Private key, PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
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
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let key = publish::read_key(&args.key)?;
    let manifest = block_on(async {
        let connection = args.login.connection(&args.image)?;
        let found = connection.client.find(&args.image, connection.credentials.as_ref()).await;
        let found = found.map_err(|error| failure(&error))?;
        publish::sign(&connection, &args.image, found.digest, &key).await?;
        Ok(found.digest)
    })?;
    match args.output {
        Format::Text => print(&format!("signed  {}@{manifest}\n", args.image.name())),
        Format::Json => {
            print_json(&Report { image: args.image.to_string(), manifest_digest: manifest.to_string() })
        }
    }
}
