//! What a module is before anybody gives it settings: for `kubeocean policy inspect`.
//!
//! It takes the first loading steps of every module (PO-703), from its size to its schema, and stops there.

use std::sync::Arc;

use serde::Serialize;

use crate::engine::Engine;
use crate::legacy::Decision;
use crate::load::cache::Digest;
use crate::load::error::{LoadCode, LoadError};
use crate::load::schema::Schema;
use crate::module::{ModuleLimits, call_limits};
use crate::producers::producers;
use crate::wasm::unit::{Caller, describe};

/// A module without settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleOutline {
    /// Name it gives itself.
    pub name: String,
    /// Version it gives itself.
    pub version: String,
    /// What it does.
    pub description: String,
    /// `sha256:<hex>` of its bytes.
    pub digest: String,
    /// Its bytes.
    pub size_bytes: usize,
    /// JSON Schema of its settings, as it gives it: whoever writes an outline writes it as JSON.
    #[serde(skip_serializing)]
    pub settings_schema: String,
    /// Decisions it makes.
    pub decisions: Vec<Decision>,
    /// Interfaces it uses.
    pub imports: Vec<String>,
    /// Interfaces it offers.
    pub exports: Vec<String>,
    /// Tools that say they made it, with their versions.
    pub built_with: Vec<String>,
}

impl Engine {
    /// Looks at a module without running a decision of it. Blocks while it is compiled.
    pub fn outline(&self, bytes: &Arc<[u8]>, limits: ModuleLimits) -> Result<ModuleOutline, LoadError> {
        let max = self.config().max_module_bytes;
        if bytes.len() > max {
            let text = format!("{} bytes, the limit is {max}", bytes.len());
            return Err(LoadError::new(LoadCode::TooLarge, &text));
        }
        let wasm = &self.inner.wasm;
        let digest = Digest::of(bytes);
        let prepared = self.inner.cache.get(wasm, &self.config().compile, digest, bytes)?;
        let caller = Caller {
            entry: Arc::from("module"),
            limits: call_limits(limits),
            metered: self.config().metered,
        };
        let said = describe(&prepared, &caller)
            .map_err(|fault| LoadError::new(LoadCode::DescribeFailed, &fault.to_string()))?;
        Schema::compile(&said.settings_schema)?;
        let names = |exported: bool| -> Vec<String> {
            let Some(instance) = prepared.any() else { return Vec::new() };
            let ty = instance.component().component_type();
            if exported {
                ty.exports(wasm).map(|(name, _)| name.to_owned()).collect()
            } else {
                ty.imports(wasm).map(|(name, _)| name.to_owned()).collect()
            }
        };
        let decisions =
            [(prepared.lease.is_some(), Decision::Lease), (prepared.place.is_some(), Decision::Place)];
        Ok(ModuleOutline {
            name: said.name,
            version: said.version,
            description: said.purpose,
            digest: digest.to_string(),
            size_bytes: bytes.len(),
            settings_schema: said.settings_schema,
            decisions: decisions.into_iter().filter(|(has, _)| *has).map(|(_, decision)| decision).collect(),
            imports: names(false),
            exports: names(true),
            built_with: producers(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BUILTINS, EngineConfig};

    #[test]
    fn a_module_is_outlined_without_settings() {
        let engine = Engine::start(EngineConfig { pooling: false, ..EngineConfig::default() }).unwrap();
        for (name, bytes) in BUILTINS {
            let outline = engine.outline(&Arc::from(bytes), ModuleLimits::default()).unwrap();
            assert_eq!((outline.name.as_str(), outline.decisions.as_slice()), (name, &[Decision::Lease][..]));
            assert!(outline.imports.iter().any(|import| import.starts_with("kubeocean:policy/host@")));
            assert!(outline.exports.iter().any(|export| export.starts_with("kubeocean:policy/lease@")));
        }
        let not = engine.outline(&Arc::from(&b"text"[..]), ModuleLimits::default()).unwrap_err();
        assert_eq!(not.code, LoadCode::NotAPolicy);
    }
}
