//! Modules as a command line names them, settings as a person writes them, and the engine to run them.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use kubeocean_engine::{
    BUILTINS, DEFAULT_MAX_MODULE_BYTES, Engine, EngineConfig, LoadError, MAX_MODULE_BYTES, ModuleClaims,
    ModuleLimits, ModuleOutline, builtin,
};
use kubeocean_registry::{Accepted, Bundle, Demands, Reference, Signatures, Trust, accept};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    cluster::block_on,
    failure::{Failure, OrFailure},
    registry::{self, Login},
};

/// What `MODULE` means in help texts.
pub(super) const MODULE_HELP: &str = "The module: the path of a wasm file, builtin:NAME, or oci://IMAGE";

/// The bytes of a module, by path, `builtin:NAME` or `oci://IMAGE`. Of an artifact what a Syncer would take, whoever signed
/// it.
pub(super) fn read(module: &str, login: &Login) -> Result<Arc<[u8]>, Failure> {
    if let Some(image) = image_of(module)? {
        let bundle = block_on(registry::pull(login, &image, None, Signatures::Skip))?;
        return of_artifact(&image, &bundle);
    }
    if let Some(name) = module.strip_prefix("builtin:") {
        let known = BUILTINS.map(|(name, _)| name).join(", ");
        return builtin(name).map(Arc::from).ok_or_else(|| {
            Failure::unusable(format!(
                "ModuleNotFound: there is no built-in module {name:?}, there are {known}"
            ))
        });
    }
    std::fs::read(Path::new(module))
        .map(Arc::from)
        .with_context(|| format!("ModuleNotFound: cannot read {module}"))
        .or_unusable()
}

/// The name in a registry, of a module that is in one.
pub(super) fn image_of(module: &str) -> Result<Option<Reference>, Failure> {
    let Some(image) = module.strip_prefix("oci://") else { return Ok(None) };
    registry::image(image).map(Some).map_err(|error| Failure::unusable(format!("{image}: {error}")))
}

/// Settings as JSON or YAML text.
pub(super) fn settings(text: &str) -> Result<Value, String> {
    match serde_saphyr::from_str::<Value>(text) {
        Ok(Value::Null) => Ok(Value::Object(serde_json::Map::new())),
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("settings are an object, for example {\"percent\": 50}".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Limits of one call, as an entry has them; what a policy could not ask for is refused.
pub(super) fn limits(text: &str) -> Result<ModuleLimits, String> {
    let asked: Limits = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let most = ModuleLimits::GREATEST;
    let within = |name: &str, value: Option<u32>, least: u32, most: u32| match value {
        Some(value) if !(least..=most).contains(&value) => Err(format!("{name} is {least} to {most}")),
        value => Ok(value),
    };
    let least = ModuleLimits::LEAST_TIMEOUT_MS;
    let usual = ModuleLimits::default();
    Ok(ModuleLimits {
        timeout_ms: within("timeoutMilliseconds", asked.timeout_milliseconds, least, most.timeout_ms)?
            .unwrap_or(usual.timeout_ms),
        memory_mib: within("memoryMiB", asked.memory_mib, 1, most.memory_mib)?.unwrap_or(usual.memory_mib),
    })
}

/// What a person writes; unlike in a policy nothing else is passed over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Limits {
    timeout_milliseconds: Option<u32>,
    #[serde(rename = "memoryMiB")]
    memory_mib: Option<u32>,
}

/// An engine for one short command: memory is reserved when it is used. It takes any module that some Syncer may be
/// configured to take.
pub(super) fn engine() -> Result<Engine, Failure> {
    let config = EngineConfig {
        pooling: false,
        threads: 2,
        max_module_bytes: MAX_MODULE_BYTES,
        ..EngineConfig::default()
    };
    Engine::start(config).context("cannot start the policy engine").or_unusable()
}

/// What an accepted artifact is. One that claims to be another module is refused, as by a Syncer (PO-1202).
pub(super) fn outline(image: &Reference, accepted: &Accepted) -> Result<ModuleOutline, Failure> {
    let outline =
        engine()?.outline(&accepted.module, ModuleLimits::GREATEST).map_err(|error| load_failure(&error))?;
    is_as_claimed(image, accepted, &outline)?;
    Ok(outline)
}

/// The module of an artifact. One that does not load is for its caller to tell about.
fn of_artifact(image: &Reference, bundle: &Bundle) -> Result<Arc<[u8]>, Failure> {
    let demands = Demands { digest: None, max_bytes: registry::max_bytes() };
    let accepted = accept(image, bundle, &Trust::default(), demands)
        .map_err(|refusal| Failure::unusable(format!("{image}: {refusal}")))?;
    if let Ok(outline) = engine()?.outline(&accepted.module, ModuleLimits::GREATEST) {
        is_as_claimed(image, &accepted, &outline)?;
    }
    Ok(accepted.module)
}

fn is_as_claimed(image: &Reference, accepted: &Accepted, outline: &ModuleOutline) -> Result<(), Failure> {
    let claims = ModuleClaims { name: accepted.title.clone(), version: accepted.version.clone() };
    claims
        .check(&outline.name, &outline.version)
        .map_err(|text| Failure::unusable(format!("{image}: {text}")))
}

/// A module that does not load is nothing to work with.
pub(super) fn load_failure(error: &LoadError) -> Failure {
    Failure::unusable(error.to_string())
}

/// `71 KiB`.
pub(super) fn size(bytes: usize) -> String {
    if bytes < 1024 { format!("{bytes} B") } else { format!("{} KiB", bytes.div_ceil(1024)) }
}

/// The same, with what a Syncer has against it.
pub(super) fn size_for_a_syncer(bytes: usize) -> String {
    let (size, usual) = (size(bytes), size(DEFAULT_MAX_MODULE_BYTES));
    if bytes <= DEFAULT_MAX_MODULE_BYTES {
        return size;
    }
    format!("{size}, more than {usual}: a Syncer takes it only with --policy-max-module-size")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_are_an_object_in_json_or_yaml() {
        assert_eq!(settings(r#"{"percent": 50}"#), Ok(json!({"percent": 50})));
        assert_eq!(settings("percent: 50\nfrom: 22\n"), Ok(json!({"percent": 50, "from": 22})));
        assert_eq!(settings(""), Ok(json!({})));
        assert!(settings("[1]").is_err() && settings("{").is_err());
    }

    #[test]
    fn limits_are_those_of_an_entry_and_nothing_else() {
        assert_eq!(limits("{}"), Ok(ModuleLimits::default()));
        let asked = limits("{memoryMiB: 128, timeoutMilliseconds: 1000}");
        assert_eq!(asked, Ok(ModuleLimits::GREATEST));
        assert_eq!(limits("{memoryMiB: 129}").unwrap_err(), "memoryMiB is 1 to 128");
        assert_eq!(limits("{timeoutMilliseconds: 9}").unwrap_err(), "timeoutMilliseconds is 10 to 1000");
        assert!(limits("{memoryMib: 64}").unwrap_err().contains("memoryMib"));
        assert!(limits("64").is_err());
    }

    #[test]
    fn sizes_are_rounded_up() {
        assert_eq!((size(1023).as_str(), size(1025).as_str()), ("1023 B", "2 KiB"));
    }

    #[test]
    fn a_size_that_a_syncer_does_not_take_says_so() {
        assert_eq!(size_for_a_syncer(8 << 20), "8192 KiB");
        let large = "8193 KiB, more than 8192 KiB: a Syncer takes it only with --policy-max-module-size";
        assert_eq!(size_for_a_syncer((8 << 20) + 1), large);
    }
}
