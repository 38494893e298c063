//! `kubeocean policy inspect`: what a module is. Nothing of it decides anything here.

use std::{path::PathBuf, sync::Arc};

use clap::Args as ClapArgs;
use kubeocean_engine::{Module, ModuleLimits, ModuleOutline};
use kubeocean_registry::{Reference, Signatures, VerifyingKey, signed};
use serde::Serialize;
use serde_json::Value;

use super::{
    module::{self, MODULE_HELP},
    verify,
};
use crate::{
    cluster::block_on,
    failure::Failure,
    output::{Format, columns},
    registry::{self, Login},
};

/// Which module.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy inspect builtin:time-windows
  kubeocean policy inspect night_gpu.wasm --settings '{from: 22, until: 7, percent: 50}'
  kubeocean policy inspect oci://registry.example.com/policies/night-gpu:1.2.0 --key release.pem

Of a module in a registry the signatures are counted; --key or --trust-dir tell by whom they are. Whether a Syncer would load
it says `policy verify`.")]
pub(crate) struct Args {
    #[arg(value_name = "MODULE", help = MODULE_HELP)]
    module: String,
    /// Settings as JSON or YAML, on which the facts a module reads may depend [default: {}]
    #[arg(long, value_name = "JSON", value_parser = module::settings)]
    settings: Option<Value>,
    /// Public key, PEM, by which signatures may be
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Folder with trust.yaml and public keys, as the Syncer has it
    #[arg(long, value_name = "DIR", conflicts_with = "key")]
    trust_dir: Option<PathBuf>,
    #[command(flatten)]
    login: Login,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

/// Facts a module reads with certain settings.
#[derive(Debug, Serialize)]
struct Reads {
    facts: Vec<String>,
    caps: Vec<String>,
}

/// What is signed about a module in a registry.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SignedReport {
    /// Signatures of this manifest.
    matching: usize,
    /// Signatures beside it that are for something else.
    others: usize,
    /// Files of the keys that made one; `None` where no key was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_by: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    #[serde(flatten)]
    outline: ModuleOutline,
    /// The schema as JSON instead of as text.
    settings_schema: Value,
    world: &'static str,
    /// `None` when the module does not accept the settings.
    reads: Option<Reads>,
    /// Why it does not accept them.
    #[serde(skip_serializing_if = "Option::is_none")]
    reads_unknown: Option<String>,
    /// Only of a module in a registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    signatures: Option<SignedReport>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let (bytes, signatures) = read(args)?;
    let engine = module::engine()?;
    let limits = ModuleLimits::GREATEST;
    let outline = engine.outline(&bytes, limits).map_err(|error| module::load_failure(&error))?;
    let settings = args.settings.clone().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let loaded = engine.load_module(&bytes, &settings, limits, &[]);
    if let (Err(error), true) = (&loaded, args.settings.is_some()) {
        return Err(module::load_failure(error));
    }
    let report = report(outline, loaded.as_ref().map_err(ToString::to_string), signatures);
    args.output.show(&report, text)
}

/// The bytes, and what is signed about them.
fn read(args: &Args) -> Result<(Arc<[u8]>, Option<SignedReport>), Failure> {
    let Some(image) = module::image_of(&args.module)? else {
        if !args.key.is_empty() || args.trust_dir.is_some() {
            return Err(Failure::unusable(
                "only a module in a registry has signatures: oci://IMAGE".to_owned(),
            ));
        }
        return Ok((module::read(&args.module, &args.login)?, None));
    };
    let keys = keys(args, &image)?;
    let bundle = block_on(registry::pull(&args.login, &image, None, Signatures::Fetch))?;
    let found = signed(&image, &bundle, keys.as_deref().unwrap_or_default());
    let signed_by = keys.is_some().then_some(found.by);
    Ok((bundle.module, Some(SignedReport { matching: found.matching, others: found.others, signed_by })))
}

/// Those by which the person looks, if any.
fn keys(args: &Args, image: &Reference) -> Result<Option<Vec<(String, VerifyingKey)>>, Failure> {
    if let Some(folder) = &args.trust_dir {
        let rules = verify::rules(folder)?;
        return Ok(Some(rules.rule(image).map(|rule| rule.keys.clone()).unwrap_or_default()));
    }
    if args.key.is_empty() { Ok(None) } else { verify::keys(&args.key).map(Some) }
}

fn report(
    outline: ModuleOutline,
    loaded: Result<&Module, String>,
    signatures: Option<SignedReport>,
) -> Report {
    let world = match outline.decisions.as_slice() {
        [kubeocean_engine::Decision::Lease] => "lease-policy",
        [kubeocean_engine::Decision::Place] => "place-policy",
        _ => "policy",
    };
    // The engine compiled it, so it is JSON.
    let settings_schema = serde_json::from_str(&outline.settings_schema).unwrap_or_default();
    let (reads, reads_unknown) = match loaded {
        Ok(module) => {
            let said = module.describe();
            (Some(Reads { facts: said.facts, caps: said.caps }), None)
        }
        Err(error) => (None, Some(error)),
    };
    Report { outline, settings_schema, world, reads, reads_unknown, signatures }
}

fn text(report: &Report) -> String {
    let outline = &report.outline;
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![row("digest", outline.digest.clone())];
    rows.extend(report.signatures.as_ref().map(|signed| row("signatures", told(signed))));
    rows.extend([
        row("size", module::size_for_a_syncer(outline.size_bytes)),
        row("world", format!("kubeocean:policy/{}", report.world)),
        row("decides", outline.decisions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    ]);
    rows.extend(listed("imports", &outline.imports));
    rows.extend(listed("exports", &outline.exports));
    rows.extend(listed("built with", &outline.built_with));
    match (&report.reads, &report.reads_unknown) {
        (Some(reads), _) => {
            let facts: Vec<String> = reads.facts.iter().map(|fact| marked(fact)).collect();
            rows.extend(listed("reads", &facts));
            rows.extend(listed("caps", &reads.caps));
        }
        (None, Some(why)) => {
            rows.push(row("reads", format!("unknown without settings, give --settings ({why})")));
        }
        (None, None) => {}
    }
    let schema = serde_json::to_string_pretty(&report.settings_schema).unwrap_or_default();
    let schema = schema.lines().fold(String::new(), |text, line| text + "  " + line + "\n");
    format!(
        "{} {}\n  {}\n{}settings\n{schema}",
        outline.name,
        outline.version,
        outline.description,
        columns(&rows)
    )
}

/// How many, and by whom as far as that was asked.
fn told(signed: &SignedReport) -> String {
    let count = match signed.matching {
        0 => "none".to_owned(),
        count => count.to_string(),
    };
    let by = match &signed.signed_by {
        Some(by) if by.is_empty() => ", by none of these keys".to_owned(),
        Some(by) => format!(", by {}", by.join(", ")),
        None if signed.matching > 0 => "; --key or --trust-dir tell by whom".to_owned(),
        None => String::new(),
    };
    let others = match signed.others {
        0 => String::new(),
        others => format!(" ({others} for another manifest or repository)"),
    };
    count + &by + &others
}

/// One row per value, the name in the first.
fn listed(name: &str, values: &[String]) -> Vec<Vec<String>> {
    let nothing = ["none".to_owned()];
    let values = if values.is_empty() { &nothing } else { values };
    let names = std::iter::once(name).chain(std::iter::repeat(""));
    names.zip(values).map(|(name, value)| vec![name.to_owned(), value.clone()]).collect()
}

/// What people wrote about themselves or others stands out (PO-402).
fn marked(fact: &str) -> String {
    let plain = fact.trim_start_matches('?');
    if plain.starts_with("annotation/") || plain.starts_with("pod.") {
        format!("{fact}   (!) written by people, may be personal")
    } else {
        fact.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubeocean_engine::Decision;
    use serde_json::json;

    #[test]
    fn a_module_in_text() {
        let outline = ModuleOutline {
            name: "night-gpu".into(),
            version: "1.2.0".into(),
            description: "Leases GPUs at night only.".into(),
            digest: "sha256:9f2c".into(),
            size_bytes: 72_000,
            settings_schema: String::new(),
            decisions: vec![Decision::Lease],
            imports: vec!["kubeocean:policy/types@1.0.0".into(), "kubeocean:policy/host@1.0.0".into()],
            exports: vec!["kubeocean:policy/lease@1.0.0".into()],
            built_with: vec!["rustc 1.95.0".into()],
        };
        let report = Report {
            outline,
            settings_schema: json!({"type": "object"}),
            world: "lease-policy",
            reads: Some(Reads { facts: vec!["annotation/owner".into(), "used/cpu".into()], caps: vec![] }),
            reads_unknown: None,
            signatures: Some(SignedReport {
                matching: 2,
                others: 1,
                signed_by: Some(vec!["release.pem".into()]),
            }),
        };
        let members = serde_json::to_string(&report).unwrap();
        assert_eq!(members.matches("\"settingsSchema\":{").count(), 1, "{members}");
        assert_eq!(members.matches("settingsSchema").count(), 1, "{members}");
        insta::assert_snapshot!(text(&report), @r#"
        night-gpu 1.2.0
          Leases GPUs at night only.
        digest      sha256:9f2c
        signatures  2, by release.pem (1 for another manifest or repository)
        size        71 KiB
        world       kubeocean:policy/lease-policy
        decides     lease
        imports     kubeocean:policy/types@1.0.0
                    kubeocean:policy/host@1.0.0
        exports     kubeocean:policy/lease@1.0.0
        built with  rustc 1.95.0
        reads       annotation/owner   (!) written by people, may be personal
                    used/cpu
        caps        none
        settings
          {
            "type": "object"
          }
        "#);
    }
}
