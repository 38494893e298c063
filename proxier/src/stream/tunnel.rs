//! Raw bytes between two connections, both ways (PX-814 to PX-816, PX-1305).
//!
//! Nothing is parsed and nothing is queued: one buffer of 16 KiB a direction, and back pressure is the transport's. The
//! end of one side is passed on to the other, which may go on talking for a while.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional_with_sizes},
    sync::Notify,
    time::Instant,
};

/// Bytes of the buffer of one direction.
const BUFFER: usize = 16 * 1024;
/// How long saying goodbye to both sides may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// When a tunnel ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TunnelLimits {
    /// Without a byte either way for so long; `None` is never.
    pub(crate) idle: Option<Duration>,
    /// Without a byte for so long after one side ended.
    pub(crate) linger: Duration,
}

/// Why a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides ended.
    Finished,
    /// A connection broke.
    Broken,
    /// Nothing was said for too long.
    Idle,
    /// One side ended and the other said nothing more.
    Lingered,
    /// It was told to end.
    Told,
}

impl End {
    /// Name in metrics and access lines.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::Lingered => "lingered",
            Self::Told => "told",
        }
    }
}

/// What went through a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Bytes from the first side to the second.
    pub(crate) up: u64,
    /// Bytes from the second side to the first.
    pub(crate) down: u64,
    /// Why it ended.
    pub(crate) end: End,
}

/// Copies between `caller` and `worker` until an end; both are closed then.
pub(crate) async fn tunnel<A, B>(
    caller: A,
    worker: B,
    limits: TunnelLimits,
    told: impl Future<Output = ()>,
) -> Summary
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let traffic = Arc::new(Traffic::new());
    let mut caller = Counted::new(caller, Arc::clone(&traffic));
    let mut worker = Counted::new(worker, Arc::clone(&traffic));
    let end = {
        let copying = copy_bidirectional_with_sizes(&mut caller, &mut worker, BUFFER, BUFFER);
        tokio::select! {
            copied = copying => if copied.is_ok() { End::Finished } else { End::Broken },
            end = traffic.watch(limits) => end,
            () = told => End::Told,
        }
    };
    if !matches!(end, End::Finished | End::Broken) {
        let goodbye = async { tokio::join!(caller.shutdown(), worker.shutdown()) };
        // A side that does not take it is dropped all the same.
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    }
    Summary { up: caller.read, down: worker.read, end }
}

/// When something last moved, and whether a side ended.
#[derive(Debug)]
struct Traffic {
    start: Instant,
    last_millis: AtomicU64,
    ended: AtomicBool,
    news: Notify,
}

impl Traffic {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last_millis: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            news: Notify::new(),
        }
    }

    fn moved(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
    }

    fn end(&self) {
        self.moved();
        self.ended.store(true, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// Waits for the first limit that passes.
    async fn watch(&self, limits: TunnelLimits) -> End {
        loop {
            let (limit, end) = if self.ended.load(Ordering::Relaxed) {
                (Some(limits.linger), End::Lingered)
            } else {
                (limits.idle, End::Idle)
            };
            let Some(limit) = limit else {
                self.news.notified().await;
                continue;
            };
            let last = Duration::from_millis(self.last_millis.load(Ordering::Relaxed));
            let over = self.start + last + limit;
            if over <= Instant::now() {
                return end;
            }
            tokio::select! {
                () = tokio::time::sleep_until(over) => {}
                () = self.news.notified() => {}
            }
        }
    }
}

/// A side of the tunnel whose reads are counted.
#[derive(Debug)]
struct Counted<S> {
    inner: S,
    traffic: Arc<Traffic>,
    read: u64,
}

impl<S> Counted<S> {
    fn new(inner: S, traffic: Arc<Traffic>) -> Self {
        Self { inner, traffic, read: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let wanted = buf.remaining() > 0;
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        if read > 0 {
            this.read += read as u64;
            this.traffic.moved();
        } else if wanted {
            this.traffic.end();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
        // A slow reader makes progress too.
        this.traffic.moved();
        Poll::Ready(Ok(written))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
