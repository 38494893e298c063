//! What Syncer and Proxier need to be allowed in a worker cluster, and what of it a kubeconfig's user lacks.
//!
//! The required rights are those without which nothing is leased; old installs have them (MC-903, MC-904). Without an
//! optional one a feature is off (MC-905).

use serde::Deserialize;

const POLICIES: &str = "cloud.tencent.com";

/// Where a right must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere.
    Cluster,
    /// In the mount namespace.
    Mount,
}

/// Whether nothing works without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing is leased without it.
    Required,
    /// A feature is off without it.
    Optional,
}

/// Verbs on one resource.
#[derive(Debug, Clone, Copy)]
pub struct Right {
    /// API group.
    pub group: &'static str,
    /// Plural, with a subresource after a slash.
    pub resource: &'static str,
    /// All of them.
    pub verbs: &'static [&'static str],
    /// Where.
    pub scope: Scope,
    /// How badly.
    pub need: Need,
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];
const STREAM: &[&str] = &["create", "get"];

const fn right(
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    scope: Scope,
) -> Right {
    Right { group, resource, verbs, scope, need: Need::Required }
}

const fn optional(right: Right) -> Right {
    Right { need: Need::Optional, ..right }
}

/// Every right that is looked for.
pub const RIGHTS: &[Right] = &[
    right("", "nodes", READ, Scope::Cluster),
    right("", "pods", &["list", "watch"], Scope::Cluster),
    right(POLICIES, "resourceleasingpolicies", &["get", "list", "watch", "patch"], Scope::Cluster),
    right(POLICIES, "resourceleasingpolicies/status", &["patch"], Scope::Cluster),
    right("", "pods", WRITE, Scope::Mount),
    right("", "configmaps", WRITE, Scope::Mount),
    right("", "secrets", WRITE, Scope::Mount),
    optional(right("", "nodes", &["patch"], Scope::Cluster)),
    optional(right("scheduling.k8s.io", "priorityclasses", &["get", "create"], Scope::Cluster)),
    optional(right("", "pods/log", &["get"], Scope::Mount)),
    optional(right("", "pods/exec", STREAM, Scope::Mount)),
    optional(right("", "pods/attach", STREAM, Scope::Mount)),
    optional(right("", "pods/portforward", STREAM, Scope::Mount)),
];

/// A rule of a SelfSubjectRulesReview.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// `*` is all.
    pub api_groups: Vec<String>,
    /// `*` is all, `*/status` a subresource of all.
    pub resources: Vec<String>,
    /// `*` is all.
    pub verbs: Vec<String>,
    /// Not empty: only these objects, which is not enough for anything here.
    pub resource_names: Vec<String>,
}

impl Rule {
    fn allows(&self, group: &str, resource: &str, verb: &str) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
        let any_parent = resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
        self.resource_names.is_empty()
            && has(&self.api_groups, group)
            && has(&self.verbs, verb)
            && (has(&self.resources, resource)
                || any_parent.is_some_and(|parent| self.resources.contains(&parent)))
    }
}

/// A verb on a resource that no rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lacking {
    /// API group.
    pub group: &'static str,
    /// Resource.
    pub resource: &'static str,
    /// Verb.
    pub verb: &'static str,
    /// Where.
    pub scope: Scope,
    /// How badly.
    pub need: Need,
}

/// What of [`RIGHTS`] the rules do not give. `cluster` are the rules of a namespace that nobody has a role in, so they
/// are those that hold everywhere; `mount` are those in the mount namespace.
pub fn lacking(cluster: &[Rule], mount: &[Rule]) -> Vec<Lacking> {
    let mut out = Vec::new();
    for right in RIGHTS {
        let rules = match right.scope {
            Scope::Cluster => cluster,
            Scope::Mount => mount,
        };
        for verb in right.verbs {
            if !rules.iter().any(|rule| rule.allows(right.group, right.resource, verb)) {
                let Right { group, resource, scope, need, .. } = *right;
                out.push(Lacking { group, resource, verb, scope, need });
            }
        }
    }
    out
}

/// `nodes get list, pods in mount-1 create`: verbs together by resource.
pub fn describe(lacking: &[Lacking], mount_namespace: &str) -> String {
    let mut parts: Vec<(String, Vec<&str>)> = Vec::new();
    for one in lacking {
        let group = if one.group.is_empty() { String::new() } else { format!(".{}", one.group) };
        let place = match one.scope {
            Scope::Cluster => String::new(),
            Scope::Mount => format!(" in {mount_namespace}"),
        };
        let what = format!("{}{group}{place}", one.resource);
        match parts.last_mut() {
            Some((last, verbs)) if *last == what => verbs.push(one.verb),
            _ => parts.push((what, vec![one.verb])),
        }
    }
    let parts: Vec<String> =
        parts.iter().map(|(what, verbs)| format!("{what}: {}", verbs.join(" "))).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(yaml: &str) -> Vec<Rule> {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn an_administrator_lacks_nothing() {
        let all = rules("[{apiGroups: ['*'], resources: ['*'], verbs: ['*']}]");
        assert_eq!(lacking(&all, &all), []);
    }

    #[test]
    fn what_holds_in_one_namespace_does_not_hold_everywhere() {
        let none = rules("[]");
        let mount = rules("[{apiGroups: [''], resources: ['*', '*/exec'], verbs: ['*']}]");
        let text = describe(&lacking(&none, &mount), "mount-1");
        assert!(
            text.starts_with("nodes: get list watch, pods: list watch, resourceleasingpolicies"),
            "{text}"
        );
        assert!(!text.contains("in mount-1"), "{text}");
    }

    #[test]
    fn a_right_to_named_objects_is_not_enough() {
        let named = rules("[{apiGroups: [''], resources: [nodes], verbs: ['*'], resourceNames: [a]}]");
        assert!(lacking(&named, &named).iter().any(|one| one.resource == "nodes" && one.verb == "list"));
    }
}
