//! How a command for people ends when it does not succeed, as an exit code and one line (policy spec section 11).

use std::process::ExitCode;

use kubeocean_runtime::error::ApplyError;

/// Why a command did not succeed. A success ends with 0.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was looked at is not as it should be: exit code 1.
    Failed(anyhow::Error),
    /// The command cannot do what it was asked: a wrong flag, file, module or name: exit code 2.
    Unusable(anyhow::Error),
    /// A cluster gives no answer that can be trusted: exit code 3.
    Unreachable(anyhow::Error),
}

impl Failure {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(anyhow::Error::msg(message.into()))
    }

    pub(crate) fn unusable(message: impl Into<String>) -> Self {
        Self::Unusable(anyhow::Error::msg(message.into()))
    }

    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::Unreachable(anyhow::Error::msg(message.into()))
    }

    /// Of a request: no answer is the cluster's failure, a refusal is a matter of what was asked.
    pub(crate) fn of_request(error: &ApplyError) -> Self {
        let message = error.chain();
        match error {
            ApplyError::Api { source, .. } if !matches!(**source, kube::Error::Api(_)) => {
                Self::unreachable(message)
            }
            ApplyError::Timeout { .. } => Self::unreachable(message),
            _ => Self::unusable(message),
        }
    }

    /// The same, about something that is named first.
    #[must_use]
    pub(crate) fn with(self, what: &str) -> Self {
        let what = what.to_owned();
        match self {
            Self::Failed(error) => Self::Failed(error.context(what)),
            Self::Unusable(error) => Self::Unusable(error.context(what)),
            Self::Unreachable(error) => Self::Unreachable(error.context(what)),
        }
    }

    fn parts(&self) -> (u8, &anyhow::Error) {
        match self {
            Self::Failed(error) => (1, error),
            Self::Unusable(error) => (2, error),
            Self::Unreachable(error) => (3, error),
        }
    }

    /// Tells the user, and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        let (code, error) = self.parts();
        eprintln!("error: {error:#}");
        ExitCode::from(code)
    }
}

/// Turns any error into a [`Failure`] of one kind.
pub(crate) trait OrFailure<T> {
    /// Exit code 2.
    fn or_unusable(self) -> Result<T, Failure>;
}

impl<T> OrFailure<T> for anyhow::Result<T> {
    fn or_unusable(self) -> Result<T, Failure> {
        self.map_err(Failure::Unusable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubeocean_runtime::error::Verb;

    #[test]
    fn a_refusal_is_not_an_unreachable_cluster() {
        let object = "/api/v1/nodes/n".to_owned();
        let of = |error| Failure::of_request(&error).parts().0;
        assert_eq!(of(ApplyError::Timeout { verb: Verb::Get, object: object.clone(), seconds: 30 }), 3);
        assert_eq!(of(ApplyError::NotFound { verb: Verb::Get, object: object.clone() }), 2);
        assert_eq!(of(ApplyError::Forbidden { verb: Verb::Get, object, message: "no".into() }), 2);
    }
}
