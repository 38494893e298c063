//! With what a module is checked: the entries of a policy file that run it, or settings alone.
//!
//! Pure. In: the file's text and the module. Out: one [`Case`] per entry.

use jiff::tz::TimeZone;
use kubeocean_api::policy::PolicyEntry;
use kubeocean_engine::{Decision, EntrySpec, ModuleLimits, ModuleOutline, ModuleSource, from_entry};
use serde_json::Value;

use crate::policy::policy_file::only_policy;

/// See the module documentation.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// Name of the entry.
    pub(super) entry: Option<String>,
    pub(super) settings: Value,
    /// Nobody gave the settings.
    pub(super) assumed: bool,
    pub(super) limits: ModuleLimits,
    /// The only decisions asked for; `None`: all of the module.
    decisions: Option<Vec<Decision>>,
    pub(super) zone: TimeZone,
    /// Why the entry cannot run this module, with its load code.
    pub(super) refused: Option<String>,
    pub(super) notes: Vec<String>,
}

impl Case {
    pub(super) fn of_settings(settings: Option<Value>, limits: ModuleLimits) -> Self {
        Self {
            entry: None,
            assumed: settings.is_none(),
            settings: settings.unwrap_or_else(|| Value::Object(serde_json::Map::new())),
            limits,
            decisions: None,
            zone: TimeZone::UTC,
            refused: None,
            notes: Vec::new(),
        }
    }

    /// Whether the module is asked for this decision, if it makes it at all.
    pub(super) fn asks(&self, decision: Decision) -> bool {
        self.decisions.as_ref().is_none_or(|decisions| decisions.contains(&decision))
    }
}

/// The entries of a policy in YAML that run `module`, or the one called `named`.
pub(super) fn of_file(
    text: &str,
    module: &str,
    outline: &ModuleOutline,
    named: Option<&str>,
) -> Result<Vec<Case>, String> {
    let spec = only_policy(text)?.spec;
    let zone = spec.time_zone.as_deref().and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC);
    let chosen = choose(&spec.policies, module, &outline.digest, named)?;
    Ok(chosen.into_iter().map(|entry| case(entry, module, outline, &zone)).collect())
}

/// By name; else those that name the built-in; else those pinned to these bytes; else the only one whose module is not
/// built in.
fn choose<'e>(
    entries: &'e [PolicyEntry],
    module: &str,
    digest: &str,
    named: Option<&str>,
) -> Result<Vec<&'e PolicyEntry>, String> {
    if let Some(name) = named {
        let found = entries.iter().find(|entry| entry.name == name);
        return found.map(|entry| vec![entry]).ok_or_else(|| format!("spec.policies has no entry {name:?}"));
    }
    let chosen: Vec<&PolicyEntry> = if let Some(name) = module.strip_prefix("builtin:") {
        entries.iter().filter(|e| e.module.builtin.as_deref() == Some(name)).collect()
    } else {
        let custom = entries.iter().filter(|entry| entry.module.builtin.is_none());
        let pinned: Vec<_> =
            custom.clone().filter(|entry| entry.module.digest.as_deref() == Some(digest)).collect();
        match (pinned.is_empty(), custom.clone().count()) {
            (false, _) => pinned,
            (true, 0 | 1) => custom.collect(),
            (true, _) => {
                let names: Vec<_> = custom.map(|entry| entry.name.as_str()).collect();
                let names = names.join(", ");
                return Err(format!("several entries could run the module, choose with --entry: {names}"));
            }
        }
    };
    if chosen.is_empty() {
        return Err(format!("no entry of spec.policies runs {module}"));
    }
    Ok(chosen)
}

fn case(entry: &PolicyEntry, module: &str, outline: &ModuleOutline, zone: &TimeZone) -> Case {
    let spec: EntrySpec = from_entry(entry);
    let mut notes = Vec::new();
    if let ModuleSource::Fetched { digest: None, must_pin: true } = &spec.module {
        notes.push(format!("{}: pin the module with digest: {}", spec.name, outline.digest));
    }
    let refused = refusal(&spec, module, outline);
    Case {
        entry: Some(spec.name),
        settings: spec.settings,
        assumed: false,
        limits: ModuleLimits { timeout_ms: spec.timeout_ms, memory_mib: spec.memory_mib },
        decisions: spec.decisions,
        zone: zone.clone(),
        refused,
        notes,
    }
}

fn refusal(spec: &EntrySpec, module: &str, outline: &ModuleOutline) -> Option<String> {
    match &spec.module {
        ModuleSource::Missing => {
            return Some(
                "ModuleNotFound: exactly one of builtin, configMap, oci and file is required".to_owned(),
            );
        }
        ModuleSource::Fetched { digest: Some(wanted), .. }
        | ModuleSource::Builtin { digest: Some(wanted), .. }
            if *wanted != outline.digest =>
        {
            return Some(format!(
                "DigestMismatch: the entry names {wanted}, the module is {}",
                outline.digest
            ));
        }
        ModuleSource::Builtin { name, .. } if module != format!("builtin:{name}") => {
            return Some(format!("ModuleNotFound: the entry runs builtin:{name}, not {module}"));
        }
        ModuleSource::Builtin { .. } | ModuleSource::Fetched { .. } => {}
    }
    let missing: Option<&Decision> =
        spec.decisions.iter().flatten().find(|decision| !outline.decisions.contains(decision));
    missing.map(|decision| format!("WrongWorld: decisions name {decision}, which the module does not export"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn outline() -> ModuleOutline {
        ModuleOutline {
            name: "night-gpu".into(),
            version: "1.0.0".into(),
            description: String::new(),
            digest: format!("sha256:{}", "a".repeat(64)),
            size_bytes: 1,
            settings_schema: "{}".into(),
            decisions: vec![Decision::Lease],
            imports: Vec::new(),
            exports: Vec::new(),
            built_with: Vec::new(),
        }
    }

    fn of(entries: &str, module: &str, named: Option<&str>) -> Result<Vec<Case>, String> {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n}}\n---\nkind: ResourceLeasingPolicy\nspec: {{cluster: c, timeZone: Europe/Rome, policies: {entries}}}\n"
        );
        of_file(&text, module, &outline(), named)
    }

    #[test]
    fn an_entry_is_asked_for_what_it_decides() {
        let asks = |entry: &str| {
            let cases = of(&format!("[{{name: a, module: {{configMap: {{name: m}}}}{entry}}}]"), "m", None);
            let case = &cases.unwrap()[0];
            (case.asks(Decision::Lease), case.asks(Decision::Place))
        };
        assert_eq!(asks(""), (true, true));
        assert_eq!(asks(", decisions: [lease]"), (true, false));
    }

    const TWO: &str = "[{name: half, module: {builtin: cpu-percentage}}, \
                        {name: gpu, module: {configMap: {name: m}}, settings: {percent: 5}, limits: {memoryMiB: 8}}]";

    #[test]
    fn the_entry_that_runs_the_module_is_found() {
        let cases = of(TWO, "night_gpu.wasm", None).unwrap();
        assert_eq!(cases.len(), 1);
        let case = &cases[0];
        assert_eq!(case.entry.as_deref(), Some("gpu"));
        assert_eq!(case.settings["percent"], 5);
        assert_eq!(case.limits.memory_mib, 8);
        assert_eq!(case.zone.iana_name(), Some("Europe/Rome"));
        assert!(case.notes[0].contains("pin the module with digest: sha256:aaa"), "{:?}", case.notes);
        assert_eq!(of(TWO, "builtin:cpu-percentage", None).unwrap()[0].entry.as_deref(), Some("half"));
    }

    #[rstest]
    #[case(TWO, "builtin:time-windows", None, "no entry of spec.policies runs builtin:time-windows")]
    #[case(TWO, "m.wasm", Some("x"), "no entry \"x\"")]
    #[case(
        "[{name: a, module: {configMap: {name: m}}}, {name: b, module: {configMap: {name: other}}}]",
        "m.wasm",
        None,
        "--entry: a, b"
    )]
    #[case("[]", "m.wasm", None, "no entry of spec.policies runs m.wasm")]
    fn a_file_that_does_not_fit_says_why(
        #[case] entries: &str,
        #[case] module: &str,
        #[case] named: Option<&str>,
        #[case] expected: &str,
    ) {
        let why = of(entries, module, named).unwrap_err();
        assert!(why.contains(expected), "{why}");
    }

    #[rstest]
    #[case("{configMap: {name: m}, digest: 'sha256:DIGEST'}", "[lease]", "DigestMismatch")]
    #[case("{configMap: {name: m}}", "[place]", "WrongWorld")]
    fn an_entry_that_cannot_run_the_module_says_why(
        #[case] module: &str,
        #[case] decisions: &str,
        #[case] expected: &str,
    ) {
        let module = module.replace("DIGEST", &"b".repeat(64));
        let entries = format!("[{{name: e, module: {module}, decisions: {decisions}}}]");
        let cases = of(&entries, "m.wasm", None).unwrap();
        let refused = cases[0].refused.as_deref().unwrap();
        assert!(refused.starts_with(expected), "{refused}");
    }

    #[test]
    fn an_invalid_policy_is_refused() {
        let text = "kind: ResourceLeasingPolicy\nspec: {cluster: c, timeZone: Mars}\n";
        assert!(of_file(text, "m", &outline(), None).unwrap_err().contains("Mars"));
        assert!(
            of_file("kind: Pod\n", "m", &outline(), None).unwrap_err().contains("no ResourceLeasingPolicy")
        );
    }
}
