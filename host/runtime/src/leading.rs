//! One term of leadership: work that runs only while a Lease is held, and a Lease that is released only after the work.

use tokio_util::sync::CancellationToken;

use crate::election::{Election, Ended};

/// How a term ended.
#[derive(Debug)]
pub enum Term<T> {
    /// Cancelled before this process led.
    NeverLed,
    /// Another process may lead now. The work was told to stop and then dropped: what it waited for is lost.
    Lost,
    /// The work ended.
    Ended(T),
}

/// Waits until `participant` leads, then runs `work` with a token that is cancelled when leadership ends. Without a
/// participant the work runs at once. `attempted` learns of each attempt to lead whether the Lease could be read.
pub async fn lead<T, F>(
    participant: Option<Election>,
    cancel: &CancellationToken,
    attempted: impl Fn(bool),
    work: impl FnOnce(CancellationToken) -> F,
) -> Term<T>
where
    F: Future<Output = T>,
{
    let Some(participant) = participant else { return Term::Ended(work(cancel.child_token()).await) };
    let Some(leadership) = participant.acquire(cancel, attempted).await else { return Term::NeverLed };
    let leading = cancel.child_token();
    let work = work(leading.clone());
    // The Lease is released only after the last write: until then nobody else may act.
    let releasing = CancellationToken::new();
    let holding = leadership.hold(&releasing);
    tokio::pin!(work, holding);
    tokio::select! {
        result = &mut work => {
            releasing.cancel();
            holding.await;
            Term::Ended(result)
        }
        ended = &mut holding => {
            debug_assert_eq!(ended, Ended::Lost, "the lease is only released on request");
            // Writers stop at once; what is under way is dropped with the process.
            leading.cancel();
            Term::Lost
        }
    }
}
