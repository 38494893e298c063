//! Memory and table limits of one instance (policy spec section 8).
//!
//! A growth beyond the limit traps instead of returning -1: a guest can never observe how much memory the host
//! has, which keeps its answers a function of its inputs.

use wasmtime::ResourceLimiter;

/// Table elements of one instance.
pub(crate) const TABLE_ELEMENTS: usize = 20_000;
/// Linear memories of one component.
pub(crate) const MEMORIES: usize = 2;
/// Tables of one component.
pub(crate) const TABLES: usize = 4;
/// Core instances of one component.
pub(crate) const CORE_INSTANCES: usize = 8;
/// Largest `memoryMiB` a policy may ask for, in bytes.
pub(crate) const MAX_MEMORY_BYTES: usize = 128 << 20;

/// Counts what one store holds and refuses what is over.
#[derive(Debug)]
pub(crate) struct MemoryLimiter {
    max_bytes: usize,
    exceeded: bool,
    held_bytes: usize,
}

impl MemoryLimiter {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, exceeded: false, held_bytes: 0 }
    }

    /// A memory or table was refused; the trap that followed is a fault `Memory`.
    pub(crate) fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// Bytes of linear memory that the instance has.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn judge(&mut self, what: &str, desired: usize, max: usize) -> wasmtime::Result<bool> {
        if desired <= max {
            return Ok(true);
        }
        self.exceeded = true;
        Err(wasmtime::Error::msg(format!("{what} of {desired} is over the limit of {max}")))
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // The limit is of the instance, which may have several memories.
        let held = self.held_bytes.saturating_add(desired.saturating_sub(current));
        let grows = self.judge("linear memory in bytes", held, self.max_bytes)?;
        self.held_bytes = held;
        Ok(grows)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.judge("table size in elements", desired, TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memories_of_an_instance_share_one_limit() {
        let mut limiter = MemoryLimiter::new(100);
        assert!(limiter.memory_growing(0, 40, None).is_ok());
        assert!(limiter.memory_growing(0, 50, None).is_ok());
        assert!(limiter.memory_growing(40, 51, None).is_err(), "51 and 50 are over 100");
        assert!(limiter.exceeded());
        assert_eq!(limiter.held_bytes(), 90);
        assert!(limiter.memory_growing(50, 60, None).is_ok());
    }
}
