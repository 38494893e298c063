//! Tokens of the computing cluster inside ppods (TD-705, TD-706).
//!
//! A vpod's projected token is requested from the computing cluster, bound to the vpod, and kept in a Secret of the
//! mount namespace, which the ppod mounts. `plan.rs` knows names, manifests and times, `secret.rs` whose a Secret is,
//! `index.rs` which Secrets exist (`by_owner.rs`), `apply.rs` requests, writes, renews and removes. No token is ever stored in memory or logged.

mod apply;
mod by_owner;
mod index;
mod plan;
mod secret;

pub use apply::TokenError;
pub(crate) use apply::sweep;
pub use index::TokenStore;
pub use plan::{TokenOwner, TokenSource, TokenVolume, secret_name, token_key, token_volumes};
pub(crate) use secret::Found;
