//! One term of leadership: work that runs only while a Lease is held, and a Lease that is released only after the work.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{
    election::{Election, Ended},
    health::Health,
};

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
/// participant the work runs at once. `health` is told of every answer; a standby that can read the Lease is ready, as it
/// takes over as soon as it must.
pub async fn lead<T, F>(
    participant: Option<Election>,
    health: Arc<Health>,
    cancel: &CancellationToken,
    work: impl FnOnce(CancellationToken) -> F,
) -> Term<T>
where
    F: Future<Output = T>,
{
    let Some(participant) = participant else { return Term::Ended(work(cancel.child_token()).await) };
    let attempted = {
        let health = Arc::clone(&health);
        move |answered| {
            health.progress();
            if answered {
                health.answered();
                health.set_ready(true);
            }
        }
    };
    let Some(leadership) = participant.acquire(cancel, attempted).await else { return Term::NeverLed };
    health.set_ready(false);
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
