//! Why the process is not ready (PX-1201), in words for those who may know and in words for everybody.

use std::fmt;

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotReady {
    /// It was told to stop.
    ShuttingDown,
    /// Nobody with a certificate can be recognised yet.
    NoAuthorities,
    /// A binding is not served.
    Binding {
        /// Which.
        name: String,
        /// Names Secrets and addresses of the worker cluster.
        why: String,
    },
}

impl NotReady {
    /// Words that give away nothing: probes cannot prove who they are (PX-412), and so neither must others.
    fn to_anybody(&self) -> &'static str {
        match self {
            Self::ShuttingDown => "shutting down",
            Self::NoAuthorities => "client authorities not read yet",
            Self::Binding { .. } => "a binding is not served yet",
        }
    }
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShuttingDown | Self::NoAuthorities => f.write_str(self.to_anybody()),
            Self::Binding { name, why } => write!(f, "binding {name}: {why}"),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// It did not say.
    Anybody,
    /// A caller with rights.
    Authorized,
}

/// The reasons as the audience may read them, one a line; fixed words are said once.
pub(crate) fn words(reasons: &[NotReady], audience: Audience) -> String {
    let mut lines: Vec<String> = reasons
        .iter()
        .map(|reason| match audience {
            Audience::Anybody => reason.to_anybody().to_owned(),
            Audience::Authorized => reason.to_string(),
        })
        .collect();
    lines.dedup();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anybody_reads_fixed_words() {
        let binding = |name: &str| NotReady::Binding {
            name: name.to_owned(),
            why: "failed to connect to cluster https://10.0.0.1:6443; check secret ns/worker".to_owned(),
        };
        let reasons = [NotReady::ShuttingDown, NotReady::NoAuthorities, binding("a"), binding("b")];
        assert_eq!(
            words(&reasons, Audience::Anybody),
            "shutting down\nclient authorities not read yet\na binding is not served yet"
        );
        let told = words(&reasons, Audience::Authorized);
        assert!(told.contains("binding a: failed to connect to cluster https://10.0.0.1:6443"), "{told}");
    }
}
