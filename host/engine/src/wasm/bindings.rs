//! Host side of the policy interface, generated from the one copy of the WIT (PO-908).
//!
//! Parameters are borrowed, so a frame is lowered straight from the caller's buffers. A component of the
//! combined world `policy` fits both generated worlds, because each asks only for the exports it uses.

/// World `lease-policy`.
pub(crate) mod lease {
    wasmtime::component::bindgen!({
        path: "../../policy-sdk/wit",
        world: "lease-policy",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

/// World `place-policy`.
pub(crate) mod place {
    wasmtime::component::bindgen!({
        path: "../../policy-sdk/wit",
        world: "place-policy",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

pub(crate) use lease::exports::kubeocean::policy::{lease as lease_abi, meta as lease_meta};
pub(crate) use lease::kubeocean::policy::{host, types};
pub(crate) use place::exports::kubeocean::policy::{meta as place_meta, place as place_abi};
pub(crate) use place::kubeocean::policy::types as place_types;
