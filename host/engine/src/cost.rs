//! What a work unit of a module costs, as numbers that do not depend on the machine (PO-109).

use crate::module::OpenModule;

/// Cost of a work unit since its instance was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitCost {
    /// Instructions of the guest, in wasmtime's fuel; `None` unless the engine was started with
    /// [`crate::EngineConfig::metered`].
    pub fuel: Option<u64>,
    /// Linear memory in bytes; a guest never gives any back.
    pub memory_bytes: usize,
}

impl OpenModule {
    /// What this instance has cost so far, `create` included.
    pub fn cost(&self) -> UnitCost {
        self.unit().cost()
    }
}
