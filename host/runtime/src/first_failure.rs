//! One failure that ends a process, wherever it happened among tasks that come and go.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The first failure among tasks that come and go, for whoever ends the process because of it.
#[derive(Debug, Clone, Default)]
pub struct FirstFailure {
    what: Arc<Mutex<Option<String>>>,
    failed: CancellationToken,
}

impl FirstFailure {
    /// Something failed.
    pub fn report(&self, what: String) {
        tracing::error!(what, "stopping");
        self.what.lock().get_or_insert(what);
        self.failed.cancel();
    }

    /// Returns when something failed, with what it was.
    pub async fn reported(&self) -> String {
        self.failed.cancelled().await;
        self.what.lock().clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_first_failure_counts() {
        let failure = FirstFailure::default();
        failure.report("first".to_owned());
        failure.report("second".to_owned());
        assert_eq!(failure.reported().await, "first");
    }
}
