//! Every vnode gets a copy of its worker node's CSINode (BU section 11), so that the computing cluster's scheduler knows
//! drivers, topology keys and how many volumes a node takes.
//!
//! `watch` feeds the [`index`] with the worker's CSINodes and our copies; vnodes come from the
//! [`NodeStore`](crate::nodes::store::NodeStore). [`plan`] compares the three, `apply` performs what it says. The content
//! of a CSINode is kept only while its vnode exists; of the others the index knows that they are there.

pub mod apply;
pub mod index;
pub mod plan;
#[cfg(test)]
mod tests;
pub mod view;
pub mod watch;
