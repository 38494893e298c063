//! Planner tests: a plan is applied to a model in memory, so that what follows can be planned as well.

mod crash;
mod lease;
mod mirrored;
mod model;
mod reclaim;
mod simulation;
mod week;
mod withdrawal;
