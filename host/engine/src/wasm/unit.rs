//! One work unit: a fresh store and instance, `create`, calls, gone (PO-903).
//!
//! In: a prepared module, settings, frames. Out: raw output of the guest. Each entry into guest code gets its own
//! deadline, so that start functions, `create` and `needs` are bounded as well.

use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::{InstancePre, Linker, ResourceAny};

use super::bindings::lease::{LeasePolicy, LeasePolicyPre};
use super::bindings::place::PlacePolicyPre;
use super::bindings::{host, lease_abi, types};
use super::in_use::InUse;
use super::limits::MemoryLimiter;
use super::log::GuestLog;
use super::runtime::EPOCH;
use crate::cost::UnitCost;
use crate::fault::{CallError, Fault};

/// Data a call may hand to the host, in bytes.
const OUTPUT_BYTES: usize = 1 << 20;
/// Handles a store may hold; an honest unit holds one evaluator.
const HANDLES: usize = 64;

/// Limits of the calls of one entry (PO-710 `limits`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CallLimits {
    pub(crate) timeout_ms: u32,
    pub(crate) memory_bytes: usize,
}

impl CallLimits {
    /// Epochs until the deadline. One more than the quotient, because the running epoch is already partly over.
    fn epochs(self) -> u64 {
        u64::from(self.timeout_ms).div_ceil(EPOCH.as_millis().try_into().unwrap_or(10)) + 1
    }
}

/// What a store carries.
#[derive(Debug)]
pub(crate) struct HostState {
    limiter: MemoryLimiter,
    pub(super) log: GuestLog,
    _in_use: InUse,
}

/// A linker that knows `host.log` and nothing else (PO-203).
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    host::add_to_linker::<_, HasLog>(&mut linker, |state: &mut HostState| &mut state.log)?;
    Ok(linker)
}

/// Says which part of the store implements `host`.
struct HasLog;

impl wasmtime::component::HasData for HasLog {
    type Data<'a> = &'a mut GuestLog;
}

/// A module that only needs memory to run.
#[derive(Clone)]
pub(crate) struct Prepared {
    pub(crate) lease: Option<LeasePolicyPre<HostState>>,
    pub(crate) place: Option<PlacePolicyPre<HostState>>,
}

impl Prepared {
    pub(crate) fn any(&self) -> Option<&InstancePre<HostState>> {
        self.lease
            .as_ref()
            .map(LeasePolicyPre::instance_pre)
            .or(self.place.as_ref().map(PlacePolicyPre::instance_pre))
    }
}

/// Who runs, and within which limits.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// `<policy>/<entry>`, for logs.
    pub(crate) entry: Arc<str>,
    pub(crate) limits: CallLimits,
    /// The engine counts fuel, and stops who has none.
    pub(crate) metered: bool,
}

pub(super) fn fresh(engine: &wasmtime::Engine, caller: &Caller) -> Store<HostState> {
    let state = HostState {
        limiter: MemoryLimiter::new(caller.limits.memory_bytes),
        log: GuestLog::new(Arc::clone(&caller.entry)),
        _in_use: InUse::new(),
    };
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(OUTPUT_BYTES);
    store.set_max_component_handles(HANDLES);
    store.epoch_deadline_trap();
    if caller.metered {
        // Fails only where the engine counts none, and then nobody needs any.
        let _ = store.set_fuel(u64::MAX);
    }
    store
}

/// Enters guest code once, with a deadline of its own.
pub(super) fn step<T>(
    store: &mut Store<HostState>,
    limits: CallLimits,
    work: impl FnOnce(&mut Store<HostState>) -> wasmtime::Result<T>,
) -> Result<T, Fault> {
    store.set_epoch_deadline(limits.epochs());
    store.data_mut().log.start_call();
    work(store).map_err(|error| {
        let state = store.data_mut();
        let panic_text = state.log.last_error();
        Fault::of_call(&error, state.limiter.exceeded(), panic_text)
    })
}

/// What the instance of a store has cost so far.
pub(super) fn cost(store: &Store<HostState>) -> UnitCost {
    UnitCost {
        fuel: store.get_fuel().ok().map(|left| u64::MAX - left),
        memory_bytes: store.data().limiter.held_bytes(),
    }
}

/// Bytes of the name and of the version of a module, and of its description. They are told wherever the module is.
const NAME_BYTES: usize = 128;
const PURPOSE_BYTES: usize = 1024;

/// What `describe` says, copied out of the guest: names and texts of one line, with nothing in them that is not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) purpose: String,
    pub(crate) settings_schema: String,
}

impl Description {
    fn of(name: String, version: String, purpose: &str, settings_schema: String) -> Result<Self, Fault> {
        // A package may describe itself in several lines.
        let purpose = purpose.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        let told = [
            ("name", &name, NAME_BYTES),
            ("version", &version, NAME_BYTES),
            ("description", &purpose, PURPOSE_BYTES),
        ];
        for (what, text, limit) in told {
            if text.len() > limit {
                return Err(Fault::invalid(&format!(
                    "the {what} has {} bytes, the limit is {limit}",
                    text.len()
                )));
            }
            if !text.chars().all(crate::text::is_plain) {
                return Err(Fault::invalid(&format!("the {what} has control characters: {text:?}")));
            }
        }
        Ok(Self { name, version, purpose, settings_schema })
    }
}

/// Runs `describe` in an instance of its own.
pub(crate) fn describe(prepared: &Prepared, caller: &Caller) -> Result<Description, Fault> {
    let Some(pre) = prepared.any() else { return Err(Fault::invalid("the module exports no decision")) };
    let mut store = fresh(pre.engine(), caller);
    // The two worlds have the same type under two names.
    let (name, version, purpose, settings_schema) = if let Some(lease) = &prepared.lease {
        let bindings = step(&mut store, caller.limits, |store| lease.instantiate(store))?;
        let meta = bindings.kubeocean_policy_meta();
        let said = step(&mut store, caller.limits, |store| meta.call_describe(store))?;
        (said.name, said.version, said.description, said.settings_schema)
    } else if let Some(place) = &prepared.place {
        let bindings = step(&mut store, caller.limits, |store| place.instantiate(store))?;
        let meta = bindings.kubeocean_policy_meta();
        let said = step(&mut store, caller.limits, |store| meta.call_describe(store))?;
        (said.name, said.version, said.description, said.settings_schema)
    } else {
        return Err(Fault::invalid("the module exports no decision"));
    };
    Description::of(name, version, &purpose, settings_schema)
}

/// A lease evaluator in a sandbox of its own.
pub(crate) struct LeaseUnit {
    store: Store<HostState>,
    bindings: LeasePolicy,
    evaluator: ResourceAny,
    limits: CallLimits,
}

impl LeaseUnit {
    /// Instantiates and creates. `Err(Policy)` is the module's own `Err` from `create` (PO-206).
    pub(crate) fn create(
        pre: &LeasePolicyPre<HostState>,
        caller: &Caller,
        settings: &str,
    ) -> Result<Self, CallError> {
        let (mut store, limits) = (fresh(pre.engine(), caller), caller.limits);
        let bindings = step(&mut store, limits, |store| pre.instantiate(store))?;
        let lease = bindings.kubeocean_policy_lease().lease_evaluator();
        let evaluator = step(&mut store, limits, |store| lease.call_create(store, settings))?;
        Ok(Self { evaluator: evaluator.map_err(CallError::policy)?, store, bindings, limits })
    }

    pub(crate) fn needs(&mut self) -> Result<lease_abi::Needs, Fault> {
        let lease = self.bindings.kubeocean_policy_lease().lease_evaluator();
        step(&mut self.store, self.limits, |store| lease.call_needs(store, self.evaluator))
    }

    /// One call. The output is not checked here.
    pub(crate) fn lease(
        &mut self,
        now: types::Now,
        nodes: types::Frame<'_>,
    ) -> Result<lease_abi::LeaseOutput, CallError> {
        let lease = self.bindings.kubeocean_policy_lease().lease_evaluator();
        step(&mut self.store, self.limits, |store| lease.call_lease(store, self.evaluator, now, nodes))?
            .map_err(CallError::policy)
    }

    /// What the instance has cost so far.
    pub(crate) fn cost(&self) -> UnitCost {
        cost(&self.store)
    }

    /// Log lines dropped so far.
    pub(crate) fn dropped_lines(&self) -> u64 {
        self.store.data().log.dropped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::{ModuleLimits, call_limits};

    /// Policy spec section 8: 100 ms and 32 MiB unless the policy says otherwise; a tick is 10 ms, so a call has at least
    /// the time it is promised and at most 20 ms more.
    #[test]
    fn a_call_has_the_time_and_memory_of_the_specification() {
        let usual = call_limits(ModuleLimits::default());
        assert_eq!(usual, CallLimits { timeout_ms: 100, memory_bytes: 32 << 20 });
        assert_eq!((EPOCH.as_millis(), OUTPUT_BYTES, HANDLES), (10, 1 << 20, 64));
        for (timeout_ms, epochs) in [(10, 2), (11, 3), (100, 11), (101, 12), (1000, 101)] {
            assert_eq!(CallLimits { timeout_ms, ..usual }.epochs(), epochs, "{timeout_ms} ms");
        }
    }
}
