//! Which kubeconfig Secrets bindings may use, and what may be in them (MC section 3, MC-822).
//!
//! A process that serves other people's bindings often may read more Secrets than those people: the rules are asked
//! wherever a Secret is read because a binding names it.

/// The rules of one process. By default any namespace, and nothing that reads files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KubeconfigRules {
    /// Whether a kubeconfig may name files of this machine.
    pub allow_unsafe: bool,
    /// Namespaces in which bindings may have their kubeconfig Secret; empty is any.
    pub namespaces: Vec<String>,
}

impl KubeconfigRules {
    /// Whether a binding may name a Secret of `namespace`.
    pub fn permit(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|one| one == namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_namespaces_exclude_all_others() {
        assert!(KubeconfigRules::default().permit("any"));
        let named = KubeconfigRules { namespaces: vec!["a".into()], ..KubeconfigRules::default() };
        assert!(named.permit("a") && !named.permit("b"));
    }
}
