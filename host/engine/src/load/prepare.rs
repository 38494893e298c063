//! One load from digest check to trial call (PO-703), on a loader thread.

use std::sync::Arc;

use serde_json::Value;

use super::cache::{Digest, ModuleCache};
use super::error::{LoadCode, LoadError};
use super::settings::accepted_settings;
use super::trial::trial;
use crate::config::CompileMode;
use crate::entry::running::Running;
use crate::facts::{NodeFacts, PolicyFacts};
use crate::fault::CallError;
use crate::frame::Needs;
use crate::host::ModuleClaims;
use crate::legacy::Decision;
use crate::place::needs::PlaceNeeds;
use crate::wasm::bindings::types;
use crate::wasm::place_unit::PlaceUnit;
use crate::wasm::unit::{Caller, LeaseUnit, describe};

/// Everything a load depends on.
pub(crate) struct LoadInput {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    /// `sha256:<hex>` the policy names, if it does.
    pub(crate) wanted_digest: Option<String>,
    /// The source must be pinned by a digest (PO-706).
    pub(crate) must_pin: bool,
    /// What the artifact around the module claims (PO-1202).
    pub(crate) claims: ModuleClaims,
    pub(crate) settings: Value,
    pub(crate) decisions: Option<Vec<Decision>>,
    pub(crate) caller: Caller,
    pub(crate) facts: PolicyFacts,
    pub(crate) now: types::Now,
}

/// Module bytes, wherever they are.
#[derive(Clone)]
pub(crate) enum Bytes {
    Builtin(&'static [u8]),
    Fetched(Arc<[u8]>),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Builtin(bytes) => bytes,
            Self::Fetched(bytes) => bytes,
        }
    }
}

/// What loading needs from the engine.
pub(crate) struct Loader<'e> {
    pub(crate) engine: &'e wasmtime::Engine,
    pub(crate) cache: &'e ModuleCache,
    pub(crate) compile: &'e CompileMode,
    pub(crate) max_module_bytes: usize,
}

impl Loader<'_> {
    /// All steps. The epoch deadline of the entry covers every one that runs guest code. `samples`: real nodes for the
    /// trial call.
    pub(crate) fn load(&self, input: &LoadInput, samples: &[Arc<NodeFacts>]) -> Result<Running, LoadError> {
        let bytes = input.bytes.as_ref();
        if bytes.len() > self.max_module_bytes {
            let text = format!("{} bytes, the limit is {}", bytes.len(), self.max_module_bytes);
            return Err(LoadError::new(LoadCode::TooLarge, &text));
        }
        let digest = check_digest(input)?;
        let prepared = self.cache.get(self.engine, self.compile, digest, bytes)?;
        for decision in input.decisions.iter().flatten() {
            let exported = match decision {
                Decision::Lease => prepared.lease.is_some(),
                Decision::Place => prepared.place.is_some(),
            };
            if !exported {
                let text = format!("decisions name {decision}, which the module does not export");
                return Err(LoadError::new(LoadCode::WrongWorld, &text));
            }
        }
        let description = describe(&prepared, &input.caller)
            .map_err(|fault| LoadError::of_guest(LoadCode::DescribeFailed, &fault.into()))?;
        input
            .claims
            .check(&description.name, &description.version)
            .map_err(|text| LoadError::new(LoadCode::DescribeFailed, &text))?;
        let settings: Arc<str> = accepted_settings(&description.settings_schema, &input.settings)?.into();
        let wanted = |decision| input.decisions.as_ref().is_none_or(|list| list.contains(&decision));
        let mut running = Running::new(prepared, digest, description, settings, input.caller.clone());
        running.lease &= wanted(Decision::Lease);
        running.place &= wanted(Decision::Place);
        if running.lease {
            running.needs = lease_needs(&running)?;
            trial(&running, &input.facts, samples, input.now)?;
        }
        if running.place {
            running.place_needs = place_needs(&running)?;
            crate::place::trial::trial(&running, &input.facts, samples, input.now)?;
        }
        Ok(running)
    }
}

fn check_digest(input: &LoadInput) -> Result<Digest, LoadError> {
    let digest = input.digest;
    let mismatch = |text: &str| Err(LoadError::new(LoadCode::DigestMismatch, text));
    match &input.wanted_digest {
        Some(wanted) if *wanted != digest.to_string() => mismatch(&format!("the module is {digest}")),
        None if input.must_pin => mismatch(&format!("module.digest is required, the module is {digest}")),
        _ => Ok(digest),
    }
}

/// `create` with these settings, then `needs`.
fn lease_needs(running: &Running) -> Result<Needs, LoadError> {
    let Some(pre) = &running.prepared.lease else {
        return Err(LoadError::new(LoadCode::WrongWorld, "the module does not export lease"));
    };
    let mut unit = LeaseUnit::create(pre, &running.caller, &running.settings).map_err(|e| rejected(&e))?;
    let said = unit.needs().map_err(|fault| LoadError::of_guest(LoadCode::TrialFailed, &fault.into()))?;
    Needs::of_lease(&said).map_err(|error| LoadError::new(LoadCode::UnknownFact, &error.to_string()))
}

/// The same of a place evaluator.
fn place_needs(running: &Running) -> Result<PlaceNeeds, LoadError> {
    let Some(pre) = &running.prepared.place else {
        return Err(LoadError::new(LoadCode::WrongWorld, "the module does not export place"));
    };
    let mut unit = PlaceUnit::create(pre, &running.caller, &running.settings).map_err(|e| rejected(&e))?;
    let said = unit.needs().map_err(|fault| LoadError::of_guest(LoadCode::TrialFailed, &fault.into()))?;
    PlaceNeeds::of_place(&said).map_err(|error| LoadError::new(LoadCode::UnknownFact, &error.to_string()))
}

/// `create` gave no evaluator.
fn rejected(error: &CallError) -> LoadError {
    match error {
        CallError::Policy(text) => LoadError::new(LoadCode::SettingsRejected, text),
        CallError::Fault(_) => LoadError::of_guest(LoadCode::SettingsRejected, error),
    }
}
