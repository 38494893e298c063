//! One module with settings, outside of any policy: for `kubeocean policy` and for benches.
//!
//! It passed the same loading steps and runs in the same sandbox as an entry of a policy.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_api::policy::EntryLimits;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::{Answer, EntryVerdict, Reason, Reclaim};
use crate::civil::civil_now;
use crate::config::{MEMORY_MIB, TIMEOUT_MS};
use crate::engine::Engine;
use crate::entry::running::Running;
use crate::facts::{NodeFacts, PolicyFacts};
use crate::fault::CallError;
use crate::frame::{FrameBuffers, RowKey, project};
use crate::load::cache::Digest;
use crate::load::error::LoadError;
use crate::load::prepare::{Bytes, LoadInput};
use crate::wasm::bindings::lease_abi;
use crate::wasm::unit::{CallLimits, Caller, LeaseUnit};

/// Limits of one call of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleLimits {
    /// Milliseconds of one call.
    pub timeout_ms: u32,
    /// Linear memory in MiB.
    pub memory_mib: u32,
}

impl ModuleLimits {
    /// The most a policy may ask for (PO-710). Tools that look at a module of a policy they do not know use it.
    pub const GREATEST: Self = Self { timeout_ms: 1000, memory_mib: 128 };
    /// The shortest time a policy may ask for, in milliseconds.
    pub const LEAST_TIMEOUT_MS: u32 = 10;

    /// Of an entry. Values the CRD refuses read as the default, because an object may have been stored under an older CRD.
    pub fn of_entry(limits: &EntryLimits) -> Self {
        let within = |value: Option<i32>, default: u32, most: u32| {
            let value = value.and_then(|value| u32::try_from(value).ok());
            value.filter(|value| (1..=most).contains(value)).unwrap_or(default)
        };
        let timeout_ms = within(limits.timeout_milliseconds, TIMEOUT_MS, Self::GREATEST.timeout_ms);
        Self {
            timeout_ms: timeout_ms.max(Self::LEAST_TIMEOUT_MS),
            memory_mib: within(limits.memory_mib, MEMORY_MIB, Self::GREATEST.memory_mib),
        }
    }
}

impl Default for ModuleLimits {
    fn default() -> Self {
        Self { timeout_ms: TIMEOUT_MS, memory_mib: MEMORY_MIB }
    }
}

/// Answer of a module about one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RowAnswer {
    /// Its verdict.
    pub verdict: EntryVerdict,
    /// Its reclaim.
    pub reclaim: Reclaim,
    /// Its caps in base units.
    pub caps: BTreeMap<String, i64>,
    /// First unix second at which it may change.
    pub valid_until: Option<i64>,
    /// Why.
    pub reason: Option<Reason>,
}

impl From<&Answer> for RowAnswer {
    fn from(answer: &Answer) -> Self {
        Self {
            verdict: answer.verdict,
            reclaim: answer.reclaim,
            caps: answer.caps().map(|(name, cap)| (name.to_string(), cap)).collect(),
            valid_until: answer.valid_until,
            reason: answer.reason.as_deref().cloned(),
        }
    }
}

/// A call gave no answer: `<kind>: <text>`, kind as in [`crate::FaultKind`] or `Err`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CallFailed(pub String);

impl From<CallError> for CallFailed {
    fn from(error: CallError) -> Self {
        Self(error.to_string())
    }
}

/// A module that passed loading with one set of settings.
#[derive(Clone, Debug)]
pub struct Module {
    pub(crate) running: Arc<Running>,
    pub(crate) facts: Arc<PolicyFacts>,
}

/// What a module says about itself and reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleDescription {
    /// Name it gives itself.
    pub name: String,
    /// Version it gives itself.
    pub version: String,
    /// What it does.
    pub description: String,
    /// `sha256:<hex>` of its bytes.
    pub digest: String,
    /// JSON Schema of its settings.
    pub settings_schema: String,
    /// Decisions it makes.
    pub decisions: Vec<crate::legacy::Decision>,
    /// Facts it reads with these settings.
    pub facts: Vec<String>,
    /// Resources it may cap with these settings.
    pub caps: Vec<String>,
}

impl Engine {
    /// Loads a module with settings through every step of PO-703. Blocks; `samples` take part in the trial call.
    pub fn load_module(
        &self,
        bytes: &Arc<[u8]>,
        settings: &Value,
        limits: ModuleLimits,
        samples: &[Arc<NodeFacts>],
    ) -> Result<Module, LoadError> {
        let facts = PolicyFacts::default();
        let input = LoadInput {
            bytes: Bytes::Fetched(Arc::clone(bytes)),
            digest: Digest::of(bytes),
            wanted_digest: None,
            must_pin: false,
            claims: crate::host::ModuleClaims::default(),
            settings: settings.clone(),
            decisions: None,
            caller: Caller {
                entry: Arc::from("module"),
                limits: call_limits(limits),
                metered: self.config().metered,
            },
            facts: facts.clone(),
            now: civil_now(crate::clock::now(), &TimeZone::UTC),
        };
        let running = self.loader().load(&input, samples)?;
        Ok(Module { running: Arc::new(running), facts: Arc::new(facts) })
    }
}

pub(crate) fn call_limits(limits: ModuleLimits) -> CallLimits {
    let mib = usize::try_from(limits.memory_mib).unwrap_or(usize::MAX);
    CallLimits { timeout_ms: limits.timeout_ms, memory_bytes: mib.saturating_mul(1 << 20) }
}

impl Module {
    pub(crate) fn running(&self) -> &Running {
        &self.running
    }

    /// What it says about itself.
    pub fn describe(&self) -> ModuleDescription {
        use crate::legacy::Decision;
        let said = &self.running.description;
        let decisions = [(self.running.lease, Decision::Lease), (self.running.place, Decision::Place)];
        ModuleDescription {
            name: said.name.clone(),
            version: said.version.clone(),
            description: said.purpose.clone(),
            digest: self.running.digest.to_string(),
            settings_schema: said.settings_schema.clone(),
            decisions: decisions.into_iter().filter(|(has, _)| *has).map(|(_, decision)| decision).collect(),
            facts: self.running.fact_names(),
            caps: self.running.needs.caps.iter().map(ToString::to_string).collect(),
        }
    }

    /// One work unit: fresh instance, `create`, one call with all nodes, nothing memoised.
    pub fn lease(
        &self,
        now: Timestamp,
        zone: &TimeZone,
        nodes: &[NodeFacts],
    ) -> Result<Vec<RowAnswer>, CallFailed> {
        let mut open = self.open()?;
        open.lease(now, zone, nodes)
    }

    /// An instance that answers several calls: what a warm call costs. Decisions never use one.
    pub fn open(&self) -> Result<OpenModule, CallFailed> {
        let Some(pre) = &self.running.prepared.lease else {
            return Err(CallFailed("WrongWorld: the module does not export lease".to_owned()));
        };
        let unit = LeaseUnit::create(pre, &self.running.caller, &self.running.settings)?;
        Ok(OpenModule { unit, running: Arc::clone(&self.running), facts: Arc::clone(&self.facts) })
    }
}

/// See [`Module::open`].
pub struct OpenModule {
    unit: LeaseUnit,
    running: Arc<Running>,
    facts: Arc<PolicyFacts>,
}

impl std::fmt::Debug for OpenModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenModule").field("running", &self.running).finish_non_exhaustive()
    }
}

impl OpenModule {
    pub(crate) fn unit(&self) -> &LeaseUnit {
        &self.unit
    }

    /// One call with all nodes.
    pub fn lease(
        &mut self,
        now: Timestamp,
        zone: &TimeZone,
        nodes: &[NodeFacts],
    ) -> Result<Vec<RowAnswer>, CallFailed> {
        let rows = self.rows(now, zone, nodes);
        Ok(self.call(now, zone, &rows)?.iter().map(|answer| RowAnswer::from(&**answer)).collect())
    }

    /// Projects nodes to rows, which [`OpenModule::count_offers`] takes: lets a bench leave projection out.
    pub fn rows(&self, now: Timestamp, zone: &TimeZone, nodes: &[NodeFacts]) -> Rows {
        let offset = zone.to_offset(now).seconds();
        let project_one = |node: &NodeFacts| {
            let mut key = Vec::new();
            project(&self.running.needs, node, &self.facts, &|r| node.available(r), offset, &mut key);
            key.into()
        };
        Rows(nodes.iter().map(project_one).collect())
    }

    /// One call with projected rows: builds the frame, calls, checks the output.
    pub fn count_offers(
        &mut self,
        now: Timestamp,
        zone: &TimeZone,
        rows: &Rows,
    ) -> Result<usize, CallFailed> {
        let answers = self.call(now, zone, rows)?;
        Ok(answers.iter().filter(|answer| answer.verdict == EntryVerdict::Offer).count())
    }

    /// The frame of projected rows, which [`OpenModule::count_offers_of`] takes: lets a bench leave it out.
    pub fn frame<'r>(&self, rows: &'r Rows) -> Frame<'r> {
        Frame(self.running.frame(&rows.0))
    }

    /// One call with a frame, whose output is not checked: the guest, and the way in and out.
    pub fn count_offers_of(
        &mut self,
        now: Timestamp,
        zone: &TimeZone,
        frame: &Frame<'_>,
    ) -> Result<usize, CallFailed> {
        let output = self.unit.lease(civil_now(now, zone), frame.0.frame())?;
        Ok(output.rows.iter().filter(|row| row.verdict == lease_abi::Verdict::Offer).count())
    }

    fn call(&mut self, now: Timestamp, zone: &TimeZone, rows: &Rows) -> Result<Vec<Arc<Answer>>, CallError> {
        let running = Arc::clone(&self.running);
        running.call(&mut self.unit, civil_now(now, zone), &rows.0)
    }
}

/// Nodes as one module sees them.
#[derive(Clone, Debug)]
pub struct Rows(Vec<RowKey>);

/// [`Rows`] as they enter a sandbox.
#[derive(Debug)]
pub struct Frame<'r>(FrameBuffers<'r>);
