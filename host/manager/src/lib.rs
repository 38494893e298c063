//! The Manager: lifecycle of ClusterBindings, placement service, webhooks.
//!
//! Its place in the workspace is settled, so that nothing of it grows elsewhere; the code comes with the program. Until
//! then each binding is served by a `kubeocean syncer` started for it.

#![forbid(unsafe_code)]
