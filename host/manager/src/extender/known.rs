//! Which bindings the scheduler extender asks about, as the leading Manager knows them.
//!
//! Whose Syncer does not run, or not yet, is among them: it is silent, and silence is no permission (PO-605).

use std::sync::{Arc, OnceLock};

use super::places::Served;
use crate::bindings::index::Index;

/// Nobody's until this process leads and has seen the first complete list. All clones are one place.
#[derive(Debug, Clone, Default)]
pub struct KnownBindings(Arc<OnceLock<Arc<Index>>>);

impl KnownBindings {
    /// The list is complete.
    pub(crate) fn set(&self, index: &Arc<Index>) {
        // A process leads at most once.
        let _ = self.0.set(Arc::clone(index));
    }

    /// Bindings that may have vnodes; `None`: nobody knows here.
    pub fn served(&self) -> Option<Vec<Served>> {
        Some(self.0.get()?.served())
    }

    /// UID of a binding.
    pub fn uid(&self, binding: &str) -> Option<String> {
        self.0.get()?.uid(binding)
    }
}

#[cfg(test)]
mod tests {
    use kubeocean_api::{ClusterBinding, keys::finalizer};
    use kubeocean_runtime::sink::Sink;
    use serde_json::json;

    use super::*;

    fn binding(name: &str, cluster_id: &str, finalizers: &[&str]) -> ClusterBinding {
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "finalizers": finalizers},
            "spec": {"clusterID": cluster_id},
        }))
        .unwrap()
    }

    #[test]
    fn who_was_served_is_known_from_the_first_list_on_whether_it_runs_or_not() {
        let (known, index) = (KnownBindings::default(), Index::new());
        assert_eq!(known.served(), None, "nobody knows before the list");
        let syncer = [finalizer::BINDING_SYNCER];
        index.reset(vec![
            binding("served", "c", &syncer),
            binding("loser", "c", &[]),
            binding("also-served", "d", &syncer),
            binding("also-served-loser", "d", &syncer),
            binding("new", "e", &[]),
        ]);
        known.set(&index);
        let served = |binding: &str, cluster_id: &str| Served {
            binding: binding.to_owned(),
            cluster_id: cluster_id.to_owned(),
        };
        assert_eq!(known.served(), Some(vec![served("served", "c"), served("also-served", "d")]));
        assert_eq!(known.uid("new").as_deref(), Some("uid-new"));
        assert_eq!(known.uid("gone"), None);
    }
}
