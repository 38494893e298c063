//! The wasmtime engine of the process and the thread that moves its clock (PO-901, PO-902).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wasmtime::{Config, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use super::limits::{CORE_INSTANCES, MAX_MEMORY_BYTES, MEMORIES, TABLE_ELEMENTS, TABLES};
use crate::config::EngineError;

/// Length of one epoch; time limits are multiples of it.
pub(crate) const EPOCH: Duration = Duration::from_millis(10);
/// Component instances alive at once. Units run on at most nine threads, loads on two more.
const POOL_INSTANCES: u32 = 32;
/// Guest memory that stays mapped between two units.
const KEEP_RESIDENT_BYTES: usize = 64 << 10;
/// Wasm stack in bytes.
const WASM_STACK_BYTES: usize = 512 << 10;

/// How instances get their memory. Does not influence generated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allocation {
    /// Slots reserved at start: a fresh instance costs microseconds.
    Pooling,
    /// Mapped when needed.
    OnDemand,
}

/// The configuration everything is compiled and run with. Changing it changes what cached code fits.
pub(crate) fn config(allocation: Allocation) -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_nan_canonicalization(true)
        .epoch_interruption(true)
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
    if allocation == Allocation::Pooling {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    }
    config
}

fn pool() -> PoolingAllocationConfig {
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
        .table_elements(TABLE_ELEMENTS)
        .max_memory_size(MAX_MEMORY_BYTES)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(KEEP_RESIDENT_BYTES);
    pool
}

/// wasmtime's engine, with the pool if the machine allows it.
pub(crate) fn start(pooling: bool) -> Result<wasmtime::Engine, EngineError> {
    if pooling {
        match wasmtime::Engine::new(&config(Allocation::Pooling)) {
            Ok(engine) => return Ok(engine),
            Err(error) => tracing::warn!(
                error = %error.root_cause(),
                "guest memory cannot be reserved in advance, policies run with memory on demand"
            ),
        }
    }
    wasmtime::Engine::new(&config(Allocation::OnDemand))
        .map_err(|error| EngineError::Runtime(error.root_cause().to_string()))
}

/// Moves the epoch every [`EPOCH`] for as long as it lives: without it no guest could be stopped.
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
                while !stopped.load(Ordering::Relaxed) {
                    std::thread::park_timeout(EPOCH);
                    let Some(engine) = engine.upgrade() else { return };
                    engine.increment_epoch();
                }
            })
            .map_err(EngineError::Thread)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread only sleeps and counts; a panic in it would have been wasmtime's.
            let _ = thread.join();
        }
    }
}
