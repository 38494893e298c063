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
    /// It did not, but it did before, and not long enough ago to say anything.
    Faltering(Silence),
    /// It did not.
    Down(Silence),
}

/// How a worker does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// Of API-802.
    pub reason: &'static str,
    /// For humans; no byte of the kubeconfig.
    pub message: String,
}

/// Failures in a row after which a worker that was connected counts as not connected (MC section 2).
const FAILURES_UNTIL_DOWN: u32 = 3;

/// Whether a worker answered since its Secret was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// It did, so that one failure says little.
    Connected,
    /// Nothing is known that speaks for it.
    Unknown,
}

impl Past {
    /// Failures in a row that say that the worker is down.
    pub const fn patience(self) -> u32 {
        match self {
            Self::Connected => FAILURES_UNTIL_DOWN,
            Self::Unknown => 1,
        }
    }
}

impl Connection {
    /// The connection after so many failures in a row.
    pub fn failed(past: Past, failures: u32, silence: Silence) -> Self {
        if failures < past.patience() { Self::Faltering(silence) } else { Self::Down(silence) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_failure_in_a_row_counts_and_without_a_past_the_first() {
        let silence = Silence { reason: "Refused", message: String::new() };
        let down = |past, failures| {
            matches!(Connection::failed(past, failures, silence.clone()), Connection::Down(_))
        };
        let of = |past| [1, 2, 3, 4].map(|failures| down(past, failures));
        assert_eq!(of(Past::Connected), [false, false, true, true]);
        assert_eq!(of(Past::Unknown), [true; 4]);
    }
}
