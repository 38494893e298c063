//! Who calls.

use std::collections::BTreeMap;

/// Group of every caller that proved who it is.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// Group that is allowed everything without a question (PX-416).
pub(crate) const MASTERS: &str = "system:masters";

/// An authenticated caller, in the words of an authorizer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct User {
    /// User name.
    pub(crate) name: String,
    /// UID; empty for certificates.
    pub(crate) uid: String,
    /// Groups.
    pub(crate) groups: Vec<String>,
    /// More that the authenticator knows.
    pub(crate) extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Whoever does not say who it is, where that is allowed (PX-417).
    pub(crate) fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            uid: String::new(),
            groups: vec!["system:unauthenticated".to_owned()],
            extra: BTreeMap::new(),
        }
    }

    /// Whether it is in a group.
    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }
}
