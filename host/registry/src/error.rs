//! What can go wrong between us and a registry, by what the caller does about it.

use crate::digest::Digest;

/// A request or a transfer failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No such repository, tag or blob.
    #[error("{what}: not found")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The registry wants other credentials, or none will do.
    #[error("{what}: {message}")]
    Forbidden {
        /// What was asked for.
        what: String,
        /// What the registry says.
        message: String,
    },
    /// No connection, no answer in time, or a connection that broke.
    #[error("{what}: {message}")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// Why.
        message: String,
    },
    /// An answer that is no answer to the question.
    #[error("{what}: {message}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        message: String,
    },
    /// It would leave TLS, or take a password to another host.
    #[error("{what}: {message}")]
    Insecure {
        /// What was asked for.
        what: String,
        /// Where it would go.
        message: String,
    },
    /// More bytes than allowed; the rest was not read.
    #[error("{what} is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// How many would have been accepted.
        limit_bytes: u64,
    },
    /// The bytes are not those of their address.
    #[error("{what}: the content is {got}")]
    Corrupt {
        /// What was asked for.
        what: String,
        /// Digest of what came.
        got: Digest,
    },
    /// The artifact is no policy module.
    #[error("{what}: {message}")]
    NotAPolicy {
        /// What was asked for.
        what: String,
        /// Why.
        message: String,
    },
    /// The module is another one than the caller wants; it was not transferred.
    #[error("{what}: the module is {got}")]
    OtherModule {
        /// What was asked for.
        what: String,
        /// Digest of the module there.
        got: Digest,
    },
}
