//! Tasks that belong together: those that must live as long as their owner, and short ones of which some run at a time.
//!
//! Invariant: a task that panics is never forgotten. Half alive is worse than dead: the owner ends too, and with it the
//! process.

use std::{fmt, future::Future};

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// A task that must not end has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a task ended unexpectedly: {0}")]
pub struct TaskEnded(String);

impl TaskEnded {
    /// `what` names the task and how it ended.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Tasks that live until they are cancelled. The first that ends earlier, fails or panics cancels the others.
pub struct Tasks {
    set: JoinSet<(&'static str, Result<(), TaskEnded>)>,
    cancel: CancellationToken,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("running", &self.set.len()).finish_non_exhaustive()
    }
}

impl Tasks {
    /// No task yet. Their end is asked for by `cancel`, which this cancels when one of them fails.
    pub fn new(cancel: CancellationToken) -> Self {
        Self { set: JoinSet::new(), cancel }
    }

    /// Starts a task that runs until it is cancelled.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_owner(name, async move {
            task.await;
            Ok(())
        });
    }

    /// Starts a task that has tasks of its own, and fails with them.
    pub fn spawn_owner(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), TaskEnded>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits for the end of all.
    pub async fn join(mut self) -> Result<(), TaskEnded> {
        let mut failure = None;
        while let Some(ended) = self.set.join_next().await {
            let what = match ended {
                Ok((_, Err(inner))) => inner,
                Ok((_, Ok(()))) if self.cancel.is_cancelled() => continue,
                Ok((name, Ok(()))) => TaskEnded::new(format!("task {name} ended")),
                Err(error) => TaskEnded::new(told(&error)),
            };
            tracing::error!(%what, "stopping");
            self.cancel.cancel();
            failure.get_or_insert(what);
        }
        failure.map_or(Ok(()), Err)
    }
}

fn told(error: &JoinError) -> String {
    format!("a task panicked: {error}")
}

/// Short tasks, up to a number at a time. A panic of one is a panic of the owner. Dropped, it stops what runs.
#[derive(Debug)]
pub struct Workers {
    set: JoinSet<()>,
    at_a_time: usize,
}

impl Workers {
    /// None yet.
    pub fn new(at_a_time: usize) -> Self {
        Self { set: JoinSet::new(), at_a_time: at_a_time.max(1) }
    }

    /// Whether none more may start now.
    pub fn is_full(&self) -> bool {
        self.set.len() >= self.at_a_time
    }

    /// Waits until another one may start.
    pub async fn free(&mut self) {
        while self.is_full() {
            self.one().await;
        }
    }

    /// Starts one. Wait for [`Self::free`] before.
    pub fn start(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(work);
    }

    /// Waits for the end of one; for ever while none runs. To be awaited beside whatever brings new work, so that a
    /// panic is noticed when none comes.
    pub async fn attend(&mut self) {
        if self.set.is_empty() {
            std::future::pending::<()>().await;
        }
        self.one().await;
    }

    /// Waits for all.
    pub async fn finish(mut self) {
        while !self.set.is_empty() {
            self.one().await;
        }
    }

    async fn one(&mut self) {
        if let Some(Err(error)) = self.set.join_next().await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_task_that_ends_or_panics_stops_the_others() {
        for panics in [false, true] {
            let cancel = CancellationToken::new();
            let mut tasks = Tasks::new(cancel.clone());
            let other = cancel.clone();
            tasks.spawn("patient", async move { other.cancelled().await });
            tasks.spawn("hasty", async move { assert!(!panics) });
            let ended = tokio::time::timeout(LIMIT, tasks.join()).await.unwrap();
            assert!(ended.is_err());
            assert!(cancel.is_cancelled());
        }
    }

    #[tokio::test]
    async fn tasks_that_end_when_asked_are_no_failure() {
        let cancel = CancellationToken::new();
        let mut tasks = Tasks::new(cancel.clone());
        let asked = cancel.clone();
        tasks.spawn("patient", async move { asked.cancelled().await });
        cancel.cancel();
        assert_eq!(tokio::time::timeout(LIMIT, tasks.join()).await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_panic_of_a_worker_is_one_of_its_owner() {
        let owner = tokio::spawn(async {
            let mut workers = Workers::new(2);
            workers.start(async { assert_eq!(1, 2) });
            loop {
                workers.attend().await;
            }
        });
        assert!(tokio::time::timeout(LIMIT, owner).await.unwrap().unwrap_err().is_panic());
    }
}
