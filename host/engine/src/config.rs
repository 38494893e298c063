//! What the process decides once about its policy engine: sizes, threads, switches.
//!
//! In: flags of the Syncer or the CLI. Out: [`EngineConfig`] for [`crate::Engine::start`].
//! Invariant: nothing here depends on a policy; limits a policy may set are in its own spec.

/// Default limit of a module's size in bytes (policy spec section 8, `--policy-max-module-size`).
pub const DEFAULT_MAX_MODULE_BYTES: usize = 8 << 20;
/// Upper end of `--policy-max-module-size` in bytes.
pub const MAX_MODULE_BYTES: usize = 64 << 20;
/// Work units that may wait for a thread (PO-902).
pub(crate) const QUEUE_UNITS: usize = 1024;
/// Nodes of one lease work unit (policy spec section 8, PO-904).
pub const LEASE_ROWS: usize = 256;
/// Candidates of one placement call (policy spec section 8).
pub const PLACE_ROWS: usize = 5000;
/// Entries of all policies of one host together (policy spec section 8).
pub const MAX_EVALUATORS: usize = 64;
/// Entries of one policy (PO-710).
pub const MAX_ENTRIES: usize = 16;
/// Default time of one call in milliseconds (PO-710 `limits.timeoutMilliseconds`).
pub(crate) const TIMEOUT_MS: u32 = 100;
/// Time of one call of a short form's entry in milliseconds. Its module is ours and needs microseconds; on a machine that
/// has no time for us the answer should come late rather than never.
pub(crate) const BUILTIN_TIMEOUT_MS: u32 = 1000;
/// Default linear memory in MiB (PO-710 `limits.memoryMiB`).
pub(crate) const MEMORY_MIB: u32 = 32;
/// One in so many batches of several rows is run again in reversed order (PO-1005).
const RECHECK_EVERY: u64 = 1000;
/// Stack of the threads that run guests. Wasm may use 512 KiB of it (policy spec section 8).
pub(crate) const THREAD_STACK_BYTES: usize = 4 << 20;

/// Where guest code is translated to machine code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CompileMode {
    /// In this process. For tests, benches and short-lived tools, which trust what they load.
    #[default]
    InProcess,
    /// In a child process with limits on time and memory (PO-906): hostile input can at worst kill the child.
    /// The program must call [`crate::compile_child_main`] when started with `args`.
    Child {
        /// The program, normally the running binary itself.
        program: std::path::PathBuf,
        /// Its arguments, normally one hidden subcommand.
        args: Vec<String>,
    },
}

/// Settings of one [`crate::Engine`]. `Default` is what the Syncer uses without flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Threads that run guest code; default `min(4, cores)` (PO-902).
    pub threads: usize,
    /// Largest module in bytes that is accepted; default [`DEFAULT_MAX_MODULE_BYTES`].
    pub max_module_bytes: usize,
    /// Accept `configMap` and `oci` modules without `digest` (PO-706, `--allow-unpinned-policies`).
    pub allow_unpinned: bool,
    /// Reserve all guest memories at start. Off for tools that run one module once.
    pub pooling: bool,
    /// Count the fuel of guests, a cost that does not depend on the machine; slower. For benches only, and only with
    /// [`CompileMode::InProcess`].
    pub metered: bool,
    /// Where modules are compiled.
    pub compile: CompileMode,
    /// Where code that a child compiled is kept for later processes (PO-905): the first of these folders that is this
    /// user's alone. None by default.
    pub code_folders: Vec<std::path::PathBuf>,
    /// One in so many batches of several rows is run again in reversed order and compared (PO-1005); default 1000.
    pub recheck_every: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            threads: cores.min(4),
            max_module_bytes: DEFAULT_MAX_MODULE_BYTES,
            allow_unpinned: false,
            pooling: true,
            metered: false,
            compile: CompileMode::InProcess,
            code_folders: Vec::new(),
            recheck_every: RECHECK_EVERY,
        }
    }
}

impl EngineConfig {
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        match self.max_module_bytes {
            1..=MAX_MODULE_BYTES => Ok(()),
            bytes => Err(EngineError::ModuleSize(bytes)),
        }
    }
}

/// Why the engine or a host of it could not be started. Each is fatal for the caller.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The WebAssembly runtime refused its configuration on this machine.
    #[error("start the WebAssembly runtime: {0}")]
    Runtime(String),
    /// The operating system refused a thread.
    #[error("start a policy thread")]
    Thread(#[source] std::io::Error),
    /// The limit of a module's size is out of range.
    #[error("the largest policy module may have 1 to {MAX_MODULE_BYTES} bytes, not {0}")]
    ModuleSize(usize),
}
