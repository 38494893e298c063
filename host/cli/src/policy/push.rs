//! `kubeocean policy push`: a finished component with its manifest into a registry (PO-1201, PO-1202).

use std::{path::PathBuf, sync::Arc};

use clap::Args as ClapArgs;
use kubeocean_engine::{ModuleLimits, ModuleOutline, finished_component};
use kubeocean_registry::{Digest, Labels, Package, Reference, package};
use serde::Serialize;

use super::{
    module::{self, MODULE_HELP},
    publish::{read_key, sign},
};
use crate::{
    cluster::block_on,
    failure::Failure,
    output::{Format, pairs},
    registry::{Bar, Login, image},
};

/// What goes where.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy push target/wasm32-unknown-unknown/release/night_gpu.wasm registry.example.com/policies/night-gpu:1.2.0
  kubeocean policy push night_gpu.wasm registry.example.com/policies/night-gpu:1.2.0 --key release.key --revision $(git rev-parse HEAD)

What is pushed is a component without names and debugging data, so its digest may differ from the file's. The same module
always gives the same manifest: a date is only written if SOURCE_DATE_EPOCH is set.")]
pub(crate) struct Args {
    #[arg(value_name = "MODULE", help = MODULE_HELP)]
    module: String,
    /// Where to: registry, repository and tag
    #[arg(value_parser = image)]
    image: Reference,
    /// Sign it with this private key, PEM
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Address of its source, told to whoever looks
    #[arg(long, value_name = "URL")]
    source: Option<String>,
    /// Revision of its source, told to whoever looks
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
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
    /// What a policy names.
    digest: String,
    size_bytes: usize,
    signed: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if args.image.digest().is_some() {
        return Err(Failure::unusable("push needs a tag, not a digest: the digest follows from the module"));
    }
    let key = args.key.as_deref().map(read_key).transpose()?;
    let bytes = module::read(&args.module, &args.login)?;
    let finished: Arc<[u8]> =
        finished_component(&bytes).map_err(|error| module::load_failure(&error))?.into();
    let outline = module::engine()?
        .outline(&finished, ModuleLimits::GREATEST)
        .map_err(|error| module::load_failure(&error))?;
    let packed = package(&finished, &labels(args, &outline)?);
    block_on(async {
        let connection = args.login.connection(&args.image)?;
        let bar = Bar::new("pushing");
        let module = finished.to_vec().into();
        let credentials = connection.credentials.as_ref();
        let pushed =
            connection.client.push(&args.image, credentials, module, &packed, Some(bar.progress())).await;
        bar.end();
        pushed.map_err(|error| connection.failure(&error))?;
        match &key {
            Some(key) => sign(&connection, &args.image, packed.manifest_digest, key).await,
            None => Ok(()),
        }
    })?;
    let report = report(args, &outline, &packed);
    args.output.show(&report, text)
}

fn labels(args: &Args, outline: &ModuleOutline) -> Result<Labels, Failure> {
    Ok(Labels {
        title: outline.name.clone(),
        version: outline.version.clone(),
        description: outline.description.clone(),
        source: args.source.clone(),
        revision: args.revision.clone(),
        created: std::env::var("SOURCE_DATE_EPOCH").ok().map(|date| created(&date)).transpose()?,
        decisions: outline.decisions.iter().map(ToString::to_string).collect(),
        schema_digest: Some(Digest::of(outline.settings_schema.as_bytes())),
        imports: outline.imports.clone(),
        exports: outline.exports.clone(),
    })
}

/// `SOURCE_DATE_EPOCH` as RFC 3339.
fn created(seconds: &str) -> Result<String, Failure> {
    let instant = seconds.trim().parse().ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let wrong =
        || Failure::unusable(format!("SOURCE_DATE_EPOCH {seconds:?} is no number of seconds since 1970"));
    instant.map(|instant| instant.to_string()).ok_or_else(wrong)
}

fn report(args: &Args, outline: &ModuleOutline, packed: &Package) -> Report {
    Report {
        image: args.image.to_string(),
        manifest_digest: packed.manifest_digest.to_string(),
        module: outline.name.clone(),
        version: outline.version.clone(),
        digest: packed.module_digest.to_string(),
        size_bytes: outline.size_bytes,
        signed: args.key.is_some(),
    }
}

fn text(report: &Report) -> String {
    let signed = if report.signed { "yes" } else { "no; kubeocean policy sign does it later" };
    let rows = pairs(&[
        ("pushed", format!("{}@{}", report.image, report.manifest_digest)),
        ("module", format!("{} {}, {}", report.module, report.version, module::size(report.size_bytes))),
        ("signed", signed.to_owned()),
    ]);
    format!(
        "{rows}A policy names it so:\n  module:\n    oci: {{image: \"{}\"}}\n    digest: {}\n",
        report.image, report.digest
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_in_text() {
        let report = Report {
            image: "registry.example.com/policies/night-gpu:1.2.0".into(),
            manifest_digest: "sha256:51d0".into(),
            module: "night-gpu".into(),
            version: "1.2.0".into(),
            digest: "sha256:9f2c".into(),
            size_bytes: 72_000,
            signed: true,
        };
        insta::assert_snapshot!(text(&report), @r#"
        pushed  registry.example.com/policies/night-gpu:1.2.0@sha256:51d0
        module  night-gpu 1.2.0, 71 KiB
        signed  yes
        A policy names it so:
          module:
            oci: {image: "registry.example.com/policies/night-gpu:1.2.0"}
            digest: sha256:9f2c
        "#);
    }

    #[test]
    fn a_date_comes_from_the_source() {
        assert_eq!(created("1772841600").unwrap(), "2026-03-07T00:00:00Z");
        assert!(created("yesterday").is_err());
    }
}
