//! One placement work unit: a fresh store and instance, `create`, calls, gone (PO-903).

use wasmtime::Store;
use wasmtime::component::ResourceAny;

use super::bindings::place::{PlacePolicy, PlacePolicyPre};
use super::bindings::{place_abi, place_types, types};
use super::unit::{CallLimits, Caller, HostState, cost, fresh, step};
use crate::cost::UnitCost;
use crate::fault::{CallError, Fault};
use crate::place::answer::Stage;

/// A place evaluator in a sandbox of its own.
pub(crate) struct PlaceUnit {
    store: Store<HostState>,
    bindings: PlacePolicy,
    evaluator: ResourceAny,
    limits: CallLimits,
}

impl PlaceUnit {
    /// Instantiates and creates. `Err(Policy)` is the module's own `Err` from `create` (PO-206).
    pub(crate) fn create(
        pre: &PlacePolicyPre<HostState>,
        caller: &Caller,
        settings: &str,
    ) -> Result<Self, CallError> {
        let (mut store, limits) = (fresh(pre.engine(), caller), caller.limits);
        let bindings = step(&mut store, limits, |store| pre.instantiate(store))?;
        let place = bindings.kubeocean_policy_place().place_evaluator();
        let evaluator = step(&mut store, limits, |store| place.call_create(store, settings))?;
        Ok(Self { evaluator: evaluator.map_err(CallError::policy)?, store, bindings, limits })
    }

    pub(crate) fn needs(&mut self) -> Result<place_abi::Needs, Fault> {
        let place = self.bindings.kubeocean_policy_place().place_evaluator();
        step(&mut self.store, self.limits, |store| place.call_needs(store, self.evaluator))
    }

    /// One call. The output is not checked here.
    pub(crate) fn place(
        &mut self,
        stage: Stage,
        now: types::Now,
        pod: &types::Frame<'_>,
        nodes: &types::Frame<'_>,
    ) -> Result<place_abi::PlaceOutput, CallError> {
        let stage = match stage {
            Stage::Schedule => place_abi::Stage::Schedule,
            Stage::Admit => place_abi::Stage::Admit,
        };
        let (now, pod, nodes) = (in_place_world(now), frame(pod), frame(nodes));
        let place = self.bindings.kubeocean_policy_place().place_evaluator();
        step(&mut self.store, self.limits, |store| {
            place.call_place(store, self.evaluator, stage, now, pod, nodes)
        })?
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

/// The two worlds have the same types under two names.
fn in_place_world(now: types::Now) -> place_types::Now {
    place_types::Now {
        unix_seconds: now.unix_seconds,
        utc_offset_seconds: now.utc_offset_seconds,
        next_offset: now.next_offset.map(|next| place_types::OffsetChange {
            at: next.at,
            utc_offset_seconds: next.utc_offset_seconds,
        }),
        year: now.year,
        month: now.month,
        day: now.day,
        weekday: now.weekday,
        minute_of_day: now.minute_of_day,
    }
}

fn frame<'f>(frame: &types::Frame<'f>) -> place_types::Frame<'f> {
    place_types::Frame {
        rows: frame.rows,
        strings: frame.strings,
        texts: frame.texts,
        numbers: frame.numbers,
    }
}
