//! A limit on requests per second, for those who ask for one (TD-106, MC-101). Without the flags there is none: the
//! queues bound how much is asked at a time, and API servers share themselves out fairly.
//!
//! Leases are exempt. A renewal that waits behind other requests costs a leader its office, or a vnode all its pods.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{Layer, Service};

/// What the Kubernetes client library for Go allows at once when nobody says.
const DEFAULT_BURST: u32 = 10;
/// Requests that are never held back.
const EXEMPT: &str = "/apis/coordination.k8s.io/";

/// How many requests a client may send.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestRate {
    /// Requests per second in the long run.
    per_second: f64,
    /// Requests at once.
    burst: u32,
}

impl RequestRate {
    /// A limit that is always there.
    pub(crate) fn new(per_second: f64, burst: u32) -> Self {
        Self { per_second, burst }
    }

    /// What two flags say: a rate of 0 or less is no limit, a burst of 0 the usual one.
    pub fn of(per_second: f64, burst: u32) -> Option<Self> {
        let limited = per_second.is_finite() && per_second > 0.0;
        limited.then(|| Self::new(per_second, if burst == 0 { DEFAULT_BURST } else { burst }))
    }
}

/// Requests that may be sent now; below zero, requests that wait.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: RequestRate,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn new(rate: RequestRate, now: Instant) -> Self {
        Self { rate, tokens: f64::from(rate.burst), filled: now }
    }

    /// Takes a token, and says how long to wait for it. Who asks first is served first.
    pub(crate) fn take(&mut self, now: Instant) -> Duration {
        let gained = now.duration_since(self.filled).as_secs_f64() * self.rate.per_second;
        self.tokens = (self.tokens + gained).min(f64::from(self.rate.burst)) - 1.0;
        self.filled = now;
        Duration::from_secs_f64((-self.tokens).max(0.0) / self.rate.per_second)
    }
}

/// Puts the limit in front of a client's connection.
#[derive(Debug, Clone)]
pub(crate) struct RateLayer(Arc<Mutex<Bucket>>);

impl RateLayer {
    /// A full bucket.
    pub(crate) fn new(rate: RequestRate) -> Self {
        Self(Arc::new(Mutex::new(Bucket::new(rate, Instant::now()))))
    }
}

impl<S> Layer<S> for RateLayer {
    type Service = RateLimited<S>;

    fn layer(&self, inner: S) -> RateLimited<S> {
        RateLimited { inner, bucket: Arc::clone(&self.0) }
    }
}

/// See [`RateLayer`].
#[derive(Debug)]
pub(crate) struct RateLimited<S> {
    inner: S,
    bucket: Arc<Mutex<Bucket>>,
}

impl<S, B> Service<Request<B>> for RateLimited<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let turn = (!request.uri().path().starts_with(EXEMPT)).then(|| Turn::take(&self.bucket));
        // Nothing is sent before the future is polled.
        let response = self.inner.call(request);
        Box::pin(async move {
            if let Some(turn) = turn {
                turn.come().await;
            }
            response.await
        })
    }
}

/// The right of a request to be sent after a while. Who does not wait that long leaves it to others.
#[derive(Debug)]
struct Turn {
    bucket: Arc<Mutex<Bucket>>,
    wait: Duration,
    used: bool,
}

impl Turn {
    fn take(bucket: &Arc<Mutex<Bucket>>) -> Self {
        let wait = bucket.lock().take(Instant::now());
        Self { bucket: Arc::clone(bucket), wait, used: false }
    }

    async fn come(mut self) {
        if !self.wait.is_zero() {
            tokio::time::sleep(self.wait).await;
        }
        self.used = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.used {
            self.bucket.lock().tokens += 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tower::{ServiceExt, service_fn};

    #[test]
    fn only_a_positive_rate_is_a_limit() {
        for none in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(RequestRate::of(none, 5), None, "{none}");
        }
        assert_eq!(RequestRate::of(2.5, 0), Some(RequestRate { per_second: 2.5, burst: DEFAULT_BURST }));
        assert_eq!(RequestRate::of(5.0, 3), Some(RequestRate { per_second: 5.0, burst: 3 }));
    }

    async fn paths_within(paths: &[&str], rate: RequestRate, limit: Duration) -> Vec<String> {
        let served = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&served);
        let mut limited = RateLayer::new(rate).layer(service_fn(move |request: Request<()>| {
            let log = Arc::clone(&log);
            async move {
                log.lock().push(request.uri().path().to_owned());
                Ok::<_, Infallible>(())
            }
        }));
        let mut calls = tokio::task::JoinSet::new();
        for path in paths {
            let request = Request::get(*path).body(()).expect("a request");
            calls.spawn(limited.ready().await.expect("it is always ready").call(request));
        }
        tokio::time::sleep(limit).await;
        drop(calls);
        let served = served.lock();
        served.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_so_many_a_second() {
        let rate = RequestRate::of(2.0, 3).expect("a limit");
        let paths: Vec<String> = (0..9).map(|index| format!("/api/v1/{index}")).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        assert_eq!(paths_within(&paths, rate, Duration::from_millis(400)).await, paths[..3]);
        assert_eq!(paths_within(&paths, rate, Duration::from_millis(1100)).await, paths[..5]);
        assert_eq!(paths_within(&paths, rate, Duration::from_secs(10)).await, paths);
    }

    /// Everybody tries again: if they kept their places in the line, nobody would be served in the end.
    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_leaves_its_turn_to_others() {
        let served = Arc::new(Mutex::new(0));
        let count = Arc::clone(&served);
        let layer = RateLayer::new(RequestRate::new(5.0, 10));
        let server = service_fn(move |_: Request<()>| {
            let count = Arc::clone(&count);
            async move {
                *count.lock() += 1;
                Ok::<_, Infallible>(())
            }
        });
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..250 {
            let mut limited = layer.layer(server.clone());
            callers.spawn(async move {
                loop {
                    let request = Request::get("/api/v1/pods").body(()).expect("a request");
                    let call = limited.ready().await.expect("it is always ready").call(request);
                    let _ = tokio::time::timeout(Duration::from_secs(30), call).await;
                }
            });
        }
        tokio::time::sleep(Duration::from_mins(10)).await;
        let served = *served.lock();
        assert!((2400..=3010).contains(&served), "of 3010 in ten minutes: {served}");
    }

    #[tokio::test(start_paused = true)]
    async fn leases_wait_behind_nobody() {
        let rate = RequestRate::of(0.1, 1).expect("a limit");
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
        let served = paths_within(&["/a", "/b", lease], rate, Duration::from_secs(1)).await;
        assert_eq!(served, ["/a", lease]);
    }
}
