//! `kubeocean policy inspect`: what a module is. Nothing of it decides anything here.

use clap::Args as ClapArgs;
use kubeocean_engine::{Module, ModuleLimits, ModuleOutline};
use serde::Serialize;
use serde_json::Value;

use super::module::{self, MODULE_HELP};
use crate::{
    failure::Failure,
    output::{Format, columns},
    registry::Login,
};

/// Which module.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy inspect builtin:time-windows
  kubeocean policy inspect night_gpu.wasm --settings '{from: 22, until: 7, percent: 50}'
  kubeocean policy inspect oci://registry.example.com/policies/night-gpu:1.2.0 -o json")]
pub(crate) struct Args {
    #[arg(value_name = "MODULE", help = MODULE_HELP)]
    module: String,
    /// Settings as JSON or YAML, on which the facts a module reads may depend [default: {}]
    #[arg(long, value_name = "JSON", value_parser = module::settings)]
    settings: Option<Value>,
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
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let bytes = module::read(&args.module, &args.login)?;
    let engine = module::engine()?;
    let limits = ModuleLimits::default();
    let outline = engine.outline(&bytes, limits).map_err(|error| module::load_failure(&error))?;
    let settings = args.settings.clone().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let loaded = engine.load_module(&bytes, &settings, limits, &[]);
    if let (Err(error), true) = (&loaded, args.settings.is_some()) {
        return Err(module::load_failure(error));
    }
    let report = report(outline, loaded.as_ref().map_err(ToString::to_string));
    args.output.show(&report, text)
}

fn report(outline: ModuleOutline, loaded: Result<&Module, String>) -> Report {
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
    Report { outline, settings_schema, world, reads, reads_unknown }
}

fn text(report: &Report) -> String {
    let outline = &report.outline;
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("digest", outline.digest.clone()),
        row("size", module::size(outline.size_bytes)),
        row("world", format!("kubeocean:policy/{}", report.world)),
        row("decides", outline.decisions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    ];
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
        };
        let members = serde_json::to_string(&report).unwrap();
        assert_eq!(members.matches("\"settingsSchema\":{").count(), 1, "{members}");
        assert_eq!(members.matches("settingsSchema").count(), 1, "{members}");
        insta::assert_snapshot!(text(&report), @r#"
        night-gpu 1.2.0
          Leases GPUs at night only.
        digest      sha256:9f2c
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
