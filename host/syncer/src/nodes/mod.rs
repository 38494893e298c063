//! Worker nodes become vnodes (BU sections 1 to 9): which, with how much, in which state, and how they are taken back.
//!
//! `watch` feeds the [`index`], which keeps the sums of requests and the held host ports per node, and a queue of dirty
//! vnodes. `decide` takes batches from the queue, asks the policy engine about them ([`snapshot`]) and hands each node
//! to the planner.
//! [`plan`] is pure and knows the order of steps; [`vnode`], [`reclaim`], [`withdraw`], [`terms`], [`metadata`] and [`compare`]
//! are its parts. `apply` performs the actions.

pub mod action;
pub mod apply;
mod bodies;
mod changes;
pub mod compare;
pub mod conditions;
pub mod decide;
pub mod decision;
pub mod drift;
pub mod host_ports;
pub mod index;
mod lease_event;
pub mod loss;
pub mod measured;
pub mod measuring;
pub mod meta;
pub mod metadata;
pub mod pace;
pub mod plan;
pub mod ports;
pub mod reclaim;
pub mod requests;
pub mod snapshot;
pub mod store;
pub mod terms;
#[cfg(test)]
pub(crate) mod tests;
mod undecided;
pub mod view;
pub mod vnode;
pub mod watch;
pub mod withdraw;
