//! What an attendant found out, as data for the plan.

use jiff::Timestamp;

/// The worker of one binding, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// About the Secret, the kubeconfig in it, and what the worker grants for it.
    pub credentials: Credentials,
    /// Whether the worker answers; `None` while there is nothing to ask it with.
    pub connection: Option<Connection>,
    /// Kubernetes version of the worker.
    pub version: Option<String>,
    /// When the credentials expire, if they say so.
    pub expires_at: Option<Timestamp>,
    /// Whether the kubeconfig turns off verification of the worker's certificate.
    pub insecure: bool,
}

/// State of the credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The worker could not be asked, so only the form is known to be right.
    Unproven,
    /// They are accepted; `note` says what is worth knowing, for example missing optional rights.
    Valid {
        /// `KubeconfigValid` or `ExpiresSoon`.
        reason: &'static str,
        /// For humans, after the standard text.
        note: String,
    },
    /// They are not.
    Invalid {
        /// Of API-802.
        reason: &'static str,
        /// For humans; no byte of the kubeconfig.
        message: String,
    },
}

/// State of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// The worker answered.
    Up,
    /// It did not, this many times in a row.
    Down {
        /// At least 1.
        failures: u32,
        /// Of API-802.
        reason: &'static str,
        /// For humans; no byte of the kubeconfig.
        message: String,
    },
}
