//! One engine per process: wasmtime, its clock, the threads, the modules that are compiled (PO-901, PO-902).

use std::sync::Arc;

use crate::config::{EngineConfig, EngineError, QUEUE_UNITS};
use crate::load::builtin::BUILTINS;
use crate::load::cache::{Digest, ModuleCache};
use crate::load::code_cache::CodeCache;
use crate::load::prepare::Loader;
use crate::numbers::EngineNumbers;
use crate::pool::Pool;
use crate::wasm::in_use::instances_in_use;
use crate::wasm::runtime::{Ticker, start};

/// Threads for policies with a module that may take long: four that loop, and one that answers (policy spec section 14).
const APART_THREADS: usize = 5;
/// Threads that load modules whose code is at hand, and at first the built-in ones.
const LOADER_THREADS: usize = 2;
/// The thread that waits for the compiler of other modules, of which there is one at a time: a slow compilation must delay
/// neither a decision nor what was compiled before.
const COMPILE_THREADS: usize = 1;
/// The built-in modules; all other loads take turns without a bound of their own.
const LOADER_QUEUE: usize = BUILTINS.len();

pub(crate) struct Inner {
    // Field order is drop order: threads end before the clock that could still stop a guest on one of them.
    pub(crate) units: Pool,
    pub(crate) apart: Pool,
    pub(crate) loads: Pool,
    pub(crate) compiles: Pool,
    pub(crate) cache: Arc<ModuleCache>,
    pub(crate) wasm: wasmtime::Engine,
    pub(crate) config: EngineConfig,
    _ticker: Ticker,
}

/// The policy engine of a process. Cheap to clone; all clones share one runtime and its threads.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the runtime and its threads, and begins to compile the built-in modules in the background. Returns in
    /// milliseconds; the first use of a built-in waits for its compilation.
    pub fn start(config: EngineConfig) -> Result<Self, EngineError> {
        config.check()?;
        let wasm = start(config.pooling, config.metered)?;
        let ticker = Ticker::start(&wasm)?;
        let inner = Arc::new(Inner {
            units: Pool::start("policy", config.threads, QUEUE_UNITS)?,
            apart: Pool::start("policy-apart", APART_THREADS, QUEUE_UNITS)?,
            loads: Pool::start("policy-load", LOADER_THREADS, LOADER_QUEUE)?,
            compiles: Pool::start("policy-compile", COMPILE_THREADS, LOADER_QUEUE)?,
            cache: Arc::new(ModuleCache::new(CodeCache::open(&config.code_folders, &wasm))),
            wasm,
            config,
            _ticker: ticker,
        });
        for (name, bytes) in BUILTINS {
            let (cache, wasm) = (Arc::clone(&inner.cache), inner.wasm.clone());
            let mode = inner.config.compile.clone();
            inner.loads.submit(move || {
                if let Err(error) = cache.get(&wasm, &mode, Digest::of(bytes), bytes) {
                    tracing::error!(module = name, %error, "a built-in policy module does not load");
                }
            });
        }
        Ok(Self { inner })
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &EngineConfig {
        &self.inner.config
    }

    /// Numbers of the engine as a whole.
    pub fn numbers(&self) -> EngineNumbers {
        EngineNumbers {
            queue_depth: self.inner.units.depth() + self.inner.apart.depth(),
            instances_in_use: instances_in_use(),
            ..self.inner.cache.counters.read()
        }
    }

    pub(crate) fn loader(&self) -> Loader<'_> {
        Loader {
            engine: &self.inner.wasm,
            cache: &self.inner.cache,
            compile: &self.inner.config.compile,
            max_module_bytes: self.inner.config.max_module_bytes,
        }
    }
}
