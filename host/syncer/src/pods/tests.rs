//! Tests of the pure stages with builders, and a simulation of both clusters that crashes after every action.

pub(crate) mod builders;
mod deletion;
mod index;
mod metadata;
mod plan;
mod simulation;
mod status;
mod turns;
