//! The Leases that keep vnodes Ready (BU section 10): one wheel for all of them, a steady stream of tiny writes.

pub mod apply;
pub mod wheel;
