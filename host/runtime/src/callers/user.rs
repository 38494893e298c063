//! Who calls.

use std::collections::BTreeMap;

/// Group of every caller that proved who it is.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group that is allowed everything without a question (PX-416).
pub const MASTERS: &str = "system:masters";

/// An authenticated caller, in the words of an authorizer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    /// User name.
    pub name: String,
    /// UID; empty for certificates.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// More that the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Whoever does not say who it is, where that is allowed (PX-417).
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            uid: String::new(),
            groups: vec!["system:unauthenticated".to_owned()],
            extra: BTreeMap::new(),
        }
    }

    /// Whether it is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }
}
