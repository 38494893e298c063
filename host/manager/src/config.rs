//! Settings of the Manager. The CLI fills them from flags (MC-109); nothing else reads flags or environment.

use std::time::Duration;

use kubeocean_api::keys::namespace;
use kubeocean_runtime::binding::KubeconfigRules;

/// Enough for requests that are under way, which may take 30 s, and for a Lease that is released.
pub const ENDS_WITHIN: Duration = Duration::from_secs(35);

/// Everything the Manager can be told.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Namespace of the components in the computing cluster (MC-132).
    pub system_namespace: String,
    /// Namespaces in which bindings may have their kubeconfig Secret, beside the system namespace; empty is any.
    pub kubeconfig_namespaces: Vec<String>,
    /// Whether a kubeconfig may read files (MC section 3).
    pub allow_unsafe_kubeconfig: bool,
    /// How often a worker is asked, give or take a tenth.
    pub worker_probe_interval: Duration,
    /// How long the end of everything may take; what hangs longer ends with the process.
    pub ends_within: Duration,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            system_namespace: namespace::SYSTEM.to_owned(),
            kubeconfig_namespaces: Vec::new(),
            allow_unsafe_kubeconfig: false,
            worker_probe_interval: Duration::from_mins(1),
            ends_within: ENDS_WITHIN,
        }
    }
}

/// What the Manager may do with the Secrets of a namespace; the chart's roles follow the same rule (MC-822).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretAccess {
    /// They are watched.
    Watch,
    /// They are read with each probe.
    Read,
    /// Bindings must not refer to them.
    Denied,
}

impl ManagerConfig {
    /// The same for whoever reads Secrets because a binding names them, this process' Syncers and Proxiers among them.
    pub fn kubeconfig_rules(&self) -> KubeconfigRules {
        let mut namespaces = self.kubeconfig_namespaces.clone();
        if !namespaces.is_empty() {
            namespaces.push(self.system_namespace.clone());
        }
        KubeconfigRules { allow_unsafe: self.allow_unsafe_kubeconfig, namespaces }
    }

    /// The rule for `namespace`.
    pub fn secret_access(&self, namespace: &str) -> SecretAccess {
        let named = self.kubeconfig_namespaces.iter().any(|one| one == namespace);
        if !self.kubeconfig_rules().permit(namespace) {
            SecretAccess::Denied
        } else if named || namespace == self.system_namespace {
            SecretAccess::Watch
        } else {
            SecretAccess::Read
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_namespaces_exclude_all_others() {
        let open = ManagerConfig::default();
        assert_eq!(open.secret_access("kubeocean-system"), SecretAccess::Watch);
        assert_eq!(open.secret_access("team-a"), SecretAccess::Read);
        let named = ManagerConfig { kubeconfig_namespaces: vec!["team-a".into()], ..open };
        assert_eq!(named.secret_access("kubeocean-system"), SecretAccess::Watch);
        assert_eq!(named.secret_access("team-a"), SecretAccess::Watch);
        assert_eq!(named.secret_access("team-b"), SecretAccess::Denied);
    }
}
