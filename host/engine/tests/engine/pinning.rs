//! PO-706: where a module may do without a digest, and what is said of it then.

use std::sync::Arc;

use kubeocean_engine::{Engine, EngineConfig, EntryState, ModuleFetch};
use serde_json::json;

use crate::support::*;
use kubeocean_hostile_policies::{digest, guest};

#[test]
fn a_module_without_a_digest_loads_where_that_is_allowed_and_is_never_called_pinned() {
    let config = EngineConfig { threads: 1, allow_unpinned: true, pooling: false, ..EngineConfig::default() };
    let lax = Engine::start(config).unwrap();
    let bytes = guest().bytes();
    let other = format!("sha256:{}", "0".repeat(64));
    for (source, needs_digest) in [
        (json!({"configMap": {"name": "m"}}), true),
        (json!({"oci": {"image": "r.example/p:1"}}), true),
        (json!({"file": {"path": "policy.wasm"}}), false),
    ] {
        for (on, strict) in [(engine(), true), (&lax, false)] {
            let without = if strict && needs_digest { EntryState::Invalid } else { EntryState::Active };
            for (named, state, pinned) in [
                (None, without, false),
                (Some(digest(&bytes)), EntryState::Active, true),
                (Some(other.clone()), EntryState::Invalid, true),
            ] {
                let mut module = source.clone();
                if let Some(named) = named {
                    module["digest"] = named.into();
                }
                let entry = json!({"name": "x", "module": module});
                let fetched = ModuleFetch::Ready(Arc::clone(&bytes).into());
                let host = host_of(on, vec![policy(json!({})).raw(entry, Some(fetched))]);
                let said = (host.state("x"), host.host.status(noon())[0].pinned);
                assert_eq!(said, (state, pinned), "{module}, strict: {strict}: {}", host.error("x"));
                let wrong = state == EntryState::Invalid;
                assert_eq!(host.error("x").starts_with("DigestMismatch: "), wrong, "{module}");
            }
        }
    }
}
