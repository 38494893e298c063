//! Connections are made one after the other.
//!
//! Whether a server speaks HTTP/2 shows only when it is connected. Requests that begin together would each make a
//! connection, and each be served on its own; so the later ones wait here, and are let onto the first connection before
//! their turn comes.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::Mutex;
use tower::Service;

/// A connector that makes no two connections at a time, clones included.
#[derive(Clone)]
pub(crate) struct OneByOne<C> {
    connector: C,
    turn: Arc<Mutex<()>>,
}

impl<C> OneByOne<C> {
    pub(crate) fn new(connector: C) -> Self {
        Self { connector, turn: Arc::default() }
    }
}

impl<C, T> Service<T> for OneByOne<C>
where
    C: Service<T> + Clone + Send + 'static,
    C::Future: Send,
    T: Send + 'static,
{
    type Response = C::Response;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, C::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, target: T) -> Self::Future {
        // The one that was asked whether it is ready is the one that is called.
        let next = self.connector.clone();
        let mut connector = std::mem::replace(&mut self.connector, next);
        let turn = Arc::clone(&self.turn);
        Box::pin(async move {
            let _turn = turn.lock().await;
            connector.call(target).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[tokio::test]
    async fn no_two_at_a_time() {
        let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let seen = (Arc::clone(&busy), Arc::clone(&most));
        let connector = OneByOne::new(tower::service_fn(move |target: usize| {
            let (busy, most) = (Arc::clone(&seen.0), Arc::clone(&seen.1));
            async move {
                most.fetch_max(busy.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::task::yield_now().await;
                busy.fetch_sub(1, SeqCst);
                Ok::<_, std::convert::Infallible>(target)
            }
        }));
        let made = (0..5).map(|target| connector.clone().call(target));
        let made: Vec<_> = futures::future::join_all(made).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(made, [0, 1, 2, 3, 4]);
        assert_eq!(most.load(SeqCst), 1);
    }
}
