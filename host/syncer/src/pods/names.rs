//! What the worker cluster says about a pod, in statuses and events, with the names of the computing cluster: pod, namespace,
//! vnode, ConfigMaps and Secrets.
//!
//! Whole names only, as far as the characters of a name reach; whatever else the message says stays. Pure.

use std::collections::BTreeMap;

use kubeocean_api::name::{ObjectKey, phys_name};

use super::{view::Vpod, words};

/// What a name of the worker cluster is called in the computing cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(BTreeMap<String, String>);

impl Names {
    /// The names in the surroundings of one pod; its ppod has a key and a UID. `copies` are those of its objects with the names of what they are copies
    /// of, volumes of its claims among them; `token_secrets` are the Secrets of its tokens, which have no name in the computing
    /// cluster.
    pub fn of(
        vpod: &Vpod,
        (ppod, ppod_uid): (&ObjectKey, &str),
        worker_node: Option<&str>,
        copies: impl IntoIterator<Item = (String, String)>,
        token_secrets: impl IntoIterator<Item = String>,
    ) -> Self {
        let namespace = &*vpod.key.namespace;
        let mut names = BTreeMap::from([
            (ppod.name.to_string(), vpod.key.name.to_string()),
            (ppod.namespace.to_string(), namespace.to_owned()),
            (ppod_uid.to_owned(), vpod.uid.to_string()),
        ]);
        names.extend(worker_node.map(|node| (node.to_owned(), vpod.node.to_string())));
        names.extend(copies);
        names.extend(vpod.spec.references.names().map(|name| (phys_name(name, namespace), name.to_owned())));
        let token = format!("{}-token", vpod.key.name);
        names.extend(token_secrets.into_iter().map(|secret| (secret, token.clone())));
        Self(names)
    }

    /// `text` in the words of the computing cluster.
    pub fn translate(&self, text: &str) -> String {
        words::rewrite(text, in_name, |word, out| {
            // A name ends in a letter or a digit, a sentence in a dot.
            let name = word.trim_end_matches(['.', '-']);
            out.push_str(self.0.get(name).map_or(name, String::as_str));
            out.push_str(&word[name.len()..]);
        })
    }
}

/// Whether a name of an object may contain it.
fn in_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.'
}
