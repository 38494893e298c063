//! How the worker's messages about a pod are told to its owner: with the names of the computing cluster, cut, or not at all.

use std::{cell::LazyCell, fmt};

use kubeocean_runtime::events;

use super::names::Names;
use crate::config::StatusMessages;

/// Longest message that leaves the worker cluster.
pub const MESSAGE_MAX_BYTES: usize = 1024;

/// For the messages about one pod. Names are looked up when there is a message: most pods have none.
pub struct Wording<'a> {
    messages: StatusMessages,
    names: LazyCell<Names, Box<dyn FnOnce() -> Names + 'a>>,
}

impl fmt::Debug for Wording<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wording").field("messages", &self.messages).finish_non_exhaustive()
    }
}

impl<'a> Wording<'a> {
    /// `names` are those around the pod.
    pub fn new(messages: StatusMessages, names: impl FnOnce() -> Names + 'a) -> Self {
        Self { messages, names: LazyCell::new(Box::new(names)) }
    }

    /// What the owner is told of a message of the worker's; `None` if nothing.
    pub fn tell(&self, message: &str) -> Option<String> {
        match self.messages {
            StatusMessages::Full if message.is_empty() => Some(String::new()),
            StatusMessages::Full => Some(cut(&self.names.translate(message))),
            StatusMessages::ReasonOnly => None,
        }
    }

    /// The same of a message that is a program's own words, names included.
    pub fn quote(&self, message: &str) -> Option<String> {
        match self.messages {
            StatusMessages::Full => Some(cut(message)),
            StatusMessages::ReasonOnly => None,
        }
    }
}

/// A message of at most [`MESSAGE_MAX_BYTES`].
pub fn cut(text: &str) -> String {
    if text.len() <= MESSAGE_MAX_BYTES {
        return text.to_owned();
    }
    format!("{}...", events::cut(text, MESSAGE_MAX_BYTES - 3))
}
