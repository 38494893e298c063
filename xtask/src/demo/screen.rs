//! The terminal: lines that stay, and below them one table that is redrawn in place. Without a terminal: lines only.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Error;

use super::latency::Latency;
use super::observe::{Snapshot, look};
use super::scene::Scene;
use super::table;

/// How often the table is redrawn.
const FRAME: Duration = Duration::from_secs(1);
/// How often a line is printed where there is no terminal.
const LINE_EVERY: u32 = 10;

/// Where everything is printed.
#[derive(Debug)]
pub(crate) struct Screen {
    live: bool,
    /// What is drawn now.
    drawn: RefCell<String>,
}

impl Screen {
    /// `live`: standard output is a terminal that may be redrawn.
    pub(crate) fn new(live: bool) -> Self {
        Self { live, drawn: RefCell::default() }
    }

    /// A line that stays.
    pub(crate) fn say(&self, text: &str) {
        let drawn = self.drawn.borrow().clone();
        self.print(&format!("{}{text}\n{drawn}", self.erase()));
    }

    fn draw(&self, text: String) {
        self.print(&format!("{}{text}", self.erase()));
        *self.drawn.borrow_mut() = text;
    }

    /// Moves above what is drawn and clears it.
    fn erase(&self) -> String {
        match self.drawn.borrow().lines().count() {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        }
    }

    #[allow(clippy::unused_self, reason = "only a screen prints")]
    fn print(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        // Without a reader there is nobody to tell.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// Decisions per second, from two looks.
#[derive(Debug, Default)]
struct Rate {
    last: Cell<Option<(Instant, u64)>>,
    peak: Cell<f64>,
}

impl Rate {
    fn next(&self, total: u64) -> f64 {
        let now = Instant::now();
        let rate = self.last.get().map_or(0.0, |(then, before)| {
            // Differences of a short run: far below 2^32.
            let more = f64::from(u32::try_from(total.saturating_sub(before)).unwrap_or(u32::MAX));
            more / now.duration_since(then).as_secs_f64().max(0.001)
        });
        self.last.set(Some((now, total)));
        self.peak.set(self.peak.get().max(rate));
        rate
    }
}

/// Shows the scene until dropped.
pub(crate) async fn show(screen: &Screen, scene: &Scene<'_>, latency: &Latency) -> Error {
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let rate = Rate::default();
    let mut frame = 0_u32;
    loop {
        frames.tick().await;
        let snapshot = match look(scene).await {
            Ok(snapshot) => snapshot,
            // A cluster or a Manager that does not answer now may answer the next time.
            Err(error) => {
                screen.say(&format!("  .. {error:#}"));
                continue;
            }
        };
        let totals = totals(&snapshot, &rate, latency);
        if screen.live {
            screen.draw(format!("{}\n", table::full(&snapshot, &totals)));
        } else if frame.is_multiple_of(LINE_EVERY) {
            screen.say(&format!("  .. {} vnodes; {totals}", snapshot.vnodes.len()));
        }
        frame = frame.wrapping_add(1);
    }
}

/// Pods per worker, decisions, latency.
fn totals(snapshot: &Snapshot, rate: &Rate, latency: &Latency) -> String {
    let workers: Vec<_> = snapshot
        .workers
        .iter()
        .map(|worker| {
            format!(
                "{} {} running, {} done, {} other",
                worker.binding, worker.running, worker.succeeded, worker.other
            )
        })
        .collect();
    let now = rate.next(snapshot.decisions);
    let running = latency.median().map_or_else(
        || "-".to_owned(),
        |(median, pods)| format!("p50 {:.2} s of {pods} pods", median.as_secs_f64()),
    );
    format!(
        "pods: {} | decisions: {now:.0}/s now, {:.0}/s at most, {} in all | scheduled -> Running: {running}",
        workers.join("; "),
        rate.peak.get(),
        snapshot.decisions,
    )
}
