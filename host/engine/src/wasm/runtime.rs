//! The wasmtime engine of the process and the thread that moves its clock (PO-901, PO-902).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wasmtime::{Config, Enabled, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use super::in_use::{instances_in_use, ring, wait_for_an_instance};
use super::limits::{CORE_INSTANCES, MAX_MEMORY_BYTES, MEMORIES, TABLE_ELEMENTS, TABLES};
use crate::config::EngineError;

/// Length of one epoch; time limits are multiples of it.
pub(crate) const EPOCH: Duration = Duration::from_millis(10);
/// Component instances alive at once. Units run on at most nine threads, loads on two more.
const POOL_INSTANCES: u32 = 32;
/// Guest memory that stays mapped between two units, where all of it is written anew.
const KEEP_RESIDENT_BYTES: usize = 64 << 10;
/// The same where the kernel tells which pages were written. A question about thousands of candidates is some 350 KiB, and
/// mapping them anew costs a tenth of its answer.
const KEEP_WRITTEN_BYTES: usize = 512 << 10;
/// Instances whose memory stays mapped while nobody needs it: as many as run at a time on most machines.
const WARM_INSTANCES: u32 = 8;
/// Wasm stack in bytes.
const WASM_STACK_BYTES: usize = 512 << 10;

/// How instances get their memory. Does not influence generated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allocation {
    /// Slots reserved at start: a fresh instance costs microseconds. `scanned`: the kernel tells which pages an instance wrote,
    /// as Linux does from 6.7 on.
    Pooling { scanned: bool },
    /// Mapped when needed.
    OnDemand,
}

/// The configuration everything is compiled and run with; `metered` adds the counting of fuel, which the program that
/// decides never does (PO-109). Changing it changes what cached code fits.
pub(crate) fn config(allocation: Allocation, metered: bool) -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_nan_canonicalization(true)
        .epoch_interruption(true)
        .consume_fuel(metered)
        .concurrency_support(false)
        .wasm_component_model(true)
        .wasm_threads(false)
        .shared_memory(false)
        .wasm_memory64(false)
        .wasm_relaxed_simd(false)
        .wasm_stack_switching(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .max_wasm_stack(WASM_STACK_BYTES)
        .memory_init_cow(true);
    if let Allocation::Pooling { scanned } = allocation {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(scanned)));
    }
    config
}

fn pool(scanned: bool) -> PoolingAllocationConfig {
    // The limits are small constants; the conversions cannot fail.
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(POOL_INSTANCES)
        .total_core_instances(POOL_INSTANCES * small(CORE_INSTANCES))
        .total_memories(POOL_INSTANCES * small(MEMORIES))
        .total_tables(POOL_INSTANCES * small(TABLES))
        .max_core_instances_per_component(small(CORE_INSTANCES))
        .max_memories_per_component(small(MEMORIES))
        .max_tables_per_component(small(TABLES))
        // The module may have them as it likes.
        .max_memories_per_module(small(MEMORIES))
        .max_tables_per_module(small(TABLES))
        .table_elements(TABLE_ELEMENTS)
        .max_memory_size(MAX_MEMORY_BYTES)
        .max_unused_warm_slots(WARM_INSTANCES)
        .linear_memory_keep_resident(if scanned { KEEP_WRITTEN_BYTES } else { KEEP_RESIDENT_BYTES })
        .table_keep_resident(KEEP_RESIDENT_BYTES)
        .pagemap_scan(if scanned { Enabled::Yes } else { Enabled::No });
    pool
}

/// wasmtime's engine, with the pool if the machine allows it.
pub(crate) fn start(pooling: bool, metered: bool) -> Result<wasmtime::Engine, EngineError> {
    if pooling {
        let pooled = |scanned| wasmtime::Engine::new(&config(Allocation::Pooling { scanned }, metered));
        // Older kernels, and sandboxes without /proc, refuse the first.
        match pooled(true).or_else(|_| pooled(false)) {
            Ok(engine) => return Ok(engine),
            Err(error) => tracing::warn!(
                error = %error.root_cause(),
                "guest memory cannot be reserved in advance, policies run with memory on demand"
            ),
        }
    }
    wasmtime::Engine::new(&config(Allocation::OnDemand, metered))
        .map_err(|error| EngineError::Runtime(error.root_cause().to_string()))
}

/// Epochs without any instance after which the clock rests.
const RESTS_AFTER: u32 = 100;

/// Moves the epoch every [`EPOCH`] while instances exist: without it no guest could be stopped. Deadlines are counted
/// from the epoch in which a call starts, so nobody notices that the clock rests while nobody runs.
#[derive(Debug)]
pub(crate) struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ticker {
    pub(crate) fn start(engine: &wasmtime::Engine) -> Result<Self, EngineError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (engine, stopped) = (engine.weak(), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("policy-epoch".to_owned())
            .spawn(move || {
                let mut unused = 0;
                while !stopped.load(Ordering::SeqCst) {
                    std::thread::park_timeout(EPOCH);
                    let Some(engine) = engine.upgrade() else { return };
                    engine.increment_epoch();
                    unused = if instances_in_use() == 0 { unused + 1 } else { 0 };
                    if unused >= RESTS_AFTER {
                        drop(engine);
                        wait_for_an_instance(|| stopped.load(Ordering::SeqCst));
                        unused = 0;
                    }
                }
            })
            .map_err(EngineError::Thread)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        ring();
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread only sleeps and counts; a panic in it would have been wasmtime's.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::in_use::{InUse, somebody_waits};

    /// Ticks of the engine's clock, as a guest in an endless loop would feel them.
    fn stops_a_loop(engine: &wasmtime::Engine) -> bool {
        let bytes = wat::parse_str("(module (func (export \"f\") (loop (br 0))))").unwrap();
        let module = wasmtime::Module::new(engine, bytes).unwrap();
        let _in_use = InUse::new();
        let mut store = wasmtime::Store::new(engine, ());
        store.set_epoch_deadline(2);
        store.epoch_deadline_trap();
        let instance = wasmtime::Instance::new(&mut store, &module, &[]).unwrap();
        let f = instance.get_typed_func::<(), ()>(&mut store, "f").unwrap();
        f.call(&mut store, ()).unwrap_err().downcast_ref() == Some(&wasmtime::Trap::Interrupt)
    }

    /// Other tests of this process have instances too, so it may take a while.
    fn rests() {
        while !somebody_waits() {
            std::thread::sleep(EPOCH);
        }
    }

    #[test]
    fn a_clock_that_rests_runs_again_for_the_next_instance_and_can_be_stopped() {
        let engine = start(false, false).unwrap();
        let ticker = Ticker::start(&engine).unwrap();
        assert!(stops_a_loop(&engine));
        rests();
        assert!(stops_a_loop(&engine), "the clock must wake up for a guest");
        rests();
        drop(ticker);
    }
}
