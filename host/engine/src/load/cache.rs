//! Linked modules by digest: the same bytes are compiled once per process, whichever entries use them.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use sha2::Digest as _;
use wasmtime::component::Component;

use super::builtin::builtin_of_digest;
use super::child::{self, Author};
use super::code_cache::CodeCache;
use super::component::{componentize, link};
use super::error::{LoadCode, LoadError};
use crate::config::{CompileMode, MAX_EVALUATORS};
use crate::numbers::CompileCounters;
use crate::wasm::unit::Prepared;

/// `sha256:<hex>` of a module, as a policy names it in `module.digest`.
pub fn module_digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// SHA-256 of wasm bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// In hexadecimal digits.
    pub(crate) fn hex(self) -> String {
        hex::encode(self.0)
    }

    /// Code that came with the program, wherever these bytes were read.
    pub(crate) fn is_builtin(self) -> bool {
        builtin_of_digest(self).is_some()
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

type Slot = Arc<OnceLock<Result<Prepared, LoadError>>>;

/// Bounded: the oldest module goes first. Entries that run keep their own handle, so nothing is torn away.
#[derive(Default)]
pub(crate) struct ModuleCache {
    slots: Mutex<VecDeque<(Digest, Slot)>>,
    /// What other processes compiled before.
    kept: Option<CodeCache>,
    pub(crate) counters: CompileCounters,
}

impl ModuleCache {
    /// Knows what was kept on disk.
    pub(crate) fn new(kept: Option<CodeCache>) -> Self {
        Self { kept, ..Self::default() }
    }

    /// The linked module of these bytes. A second caller waits for the first instead of compiling again. A failure that
    /// may pass is not remembered.
    pub(crate) fn get(
        &self,
        engine: &wasmtime::Engine,
        mode: &CompileMode,
        digest: Digest,
        bytes: &[u8],
    ) -> Result<Prepared, LoadError> {
        let slot = self.slot(digest);
        self.counters.wanted();
        let compiled = || {
            if let Some(kept) = self.kept(engine, digest) {
                return link(engine, &kept);
            }
            let started = crate::clock::stopwatch();
            let compiled = self.compile(engine, mode, digest, bytes);
            let took = started.elapsed();
            tracing::debug!(bytes = bytes.len(), ?took, ok = compiled.is_ok(), "compiled a policy module");
            self.counters.compiled(took);
            compiled
        };
        let prepared = slot.get_or_init(compiled).clone();
        if prepared.as_ref().is_err_and(|error| error.passing) {
            self.slots.lock().retain(|(_, known)| !Arc::ptr_eq(known, &slot));
        }
        prepared
    }

    /// Whether a module seems to be there without a compiler, or is known to be none.
    pub(crate) fn at_hand(&self, digest: Digest) -> bool {
        let known = |(of, slot): &(Digest, Slot)| *of == digest && slot.get().is_some();
        self.slots.lock().iter().any(known) || self.kept.as_ref().is_some_and(|kept| kept.has(digest))
    }

    /// What is on disk of this module, if it is of use.
    fn kept(&self, engine: &wasmtime::Engine, digest: Digest) -> Option<Component> {
        let cache = self.kept.as_ref()?;
        let code = cache.get(digest)?;
        let component = child::deserialize(engine, &code);
        if let Err(error) = &component {
            tracing::warn!(%digest, %error, "code that was kept is of no use");
            cache.forget(digest);
        }
        component.ok()
    }

    fn compile(
        &self,
        engine: &wasmtime::Engine,
        mode: &CompileMode,
        digest: Digest,
        bytes: &[u8],
    ) -> Result<Prepared, LoadError> {
        let CompileMode::Child { program, args } = mode else {
            return link(engine, &in_process(engine, bytes)?);
        };
        let author = if digest.is_builtin() { Author::Ourselves } else { Author::Others };
        let component = match child::compile(program, args, bytes, author) {
            Ok(code) => {
                let component = child::deserialize(engine, &code)?;
                if let Some(cache) = &self.kept {
                    cache.put(digest, &code);
                }
                component
            }
            // A compiler leaves tens of MiB of heap behind, so even our own modules are compiled elsewhere. They do not
            // need that protection: where no child can be started, they are compiled here.
            Err(error) if author == Author::Ourselves => {
                tracing::warn!(%error, "a built-in policy module is compiled in this process");
                in_process(engine, bytes)?
            }
            Err(error) => return Err(error),
        };
        link(engine, &component)
    }

    fn slot(&self, digest: Digest) -> Slot {
        let mut slots = self.slots.lock();
        if let Some((_, slot)) = slots.iter().find(|(known, _)| *known == digest) {
            return Arc::clone(slot);
        }
        if slots.len() >= MAX_EVALUATORS {
            slots.pop_front();
        }
        let slot = Slot::default();
        slots.push_back((digest, Arc::clone(&slot)));
        slot
    }
}

/// Hostile bytes have made compilers panic before; that must not take the process with it.
fn in_process(engine: &wasmtime::Engine, bytes: &[u8]) -> Result<Component, LoadError> {
    let failed = |text: &str| LoadError::new(LoadCode::CompileFailed, text);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let component = componentize(bytes)?;
        Component::new(engine, &component).map_err(|error| failed(&format!("{error:#}")))
    }))
    .unwrap_or_else(|_| Err(failed("the compiler gave up")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::builtin::BUILTINS;

    #[test]
    fn the_same_bytes_are_compiled_once() {
        let (cache, engine) = (ModuleCache::default(), crate::wasm::runtime::start(false, false).unwrap());
        let (_, bytes) = BUILTINS[0];
        for _ in 0..3 {
            cache.get(&engine, &CompileMode::InProcess, Digest::of(bytes), bytes).map(drop).unwrap();
        }
        let numbers = cache.counters.read();
        assert_eq!((numbers.compile_hits, numbers.compile_misses), (2, 1));
        assert!(numbers.compile_us > 0);
    }
}
