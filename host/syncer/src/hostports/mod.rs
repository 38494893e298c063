//! Host ports that others' pods hold on a worker node are reserved on its vnode (BU section 12), so that the computing
//! cluster's scheduler sends no pod there that could not start.
//!
//! A reservation is a pod of namespace `kubeocean-fake` that is bound to the vnode and runs nowhere: the only thing a
//! scheduler counts host ports by. The held ports come from the
//! [`NodeStore`](crate::nodes::store::NodeStore), `watch` feeds the [`index`] with the reservations; [`plan`] compares
//! the two, `apply` performs what it says. Ports of this binding's own copies are not reserved: their vpods hold them.

pub mod apply;
pub mod index;
pub mod plan;
#[cfg(test)]
mod tests;
pub mod view;
pub mod watch;
