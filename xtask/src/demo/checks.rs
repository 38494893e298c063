//! Results: each is waited for, timed and remembered; the end says whether all are as expected.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kubeocean_harness::wait::try_wait_until;

use super::screen::Screen;
use super::seconds;

/// One result.
#[derive(Debug)]
struct Line {
    what: String,
    result: Result<String, String>,
    took: Duration,
}

/// All results of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    lines: Vec<Line>,
    figures: Vec<(String, String)>,
}

impl Report {
    /// Waits for a result. `look` returns what is seen: `Ok` is as expected, `Err` is not yet. Returns how long it took.
    pub(crate) async fn expect(
        &mut self,
        screen: &Screen,
        what: &str,
        deadline: Duration,
        look: impl AsyncFnMut() -> Result<String, String>,
    ) -> Duration {
        let started = Instant::now();
        let result = try_wait_until(what, deadline, look).await.map_err(|error| format!("{error:#}"));
        let took = started.elapsed();
        match &result {
            Ok(seen) => screen.say(&format!("  ok {what}: {seen} ({})", seconds(took))),
            Err(error) => screen.say(&format!("FAIL {what}: {error}")),
        }
        self.lines.push(Line { what: what.to_owned(), result, took });
        took
    }

    /// A result that is known at once.
    pub(crate) fn note(&mut self, what: &str, result: Result<()>) {
        let result = result.map(|()| "yes".to_owned()).map_err(|error| format!("{error:#}"));
        self.lines.push(Line { what: what.to_owned(), result, took: Duration::ZERO });
    }

    /// A measured figure.
    pub(crate) fn figure(&mut self, what: &str, value: String) {
        self.figures.push((what.to_owned(), value));
    }

    /// Whether a result differs so far.
    pub(crate) fn failed(&self) -> bool {
        self.lines.iter().any(|line| line.result.is_err())
    }

    /// Prints the summary.
    ///
    /// # Errors
    /// A result differs, or nothing was checked.
    pub(crate) fn finish(&self) -> Result<()> {
        println!("\nsummary");
        for line in &self.lines {
            match &line.result {
                Ok(seen) => println!("  ok {}: {seen} ({})", line.what, seconds(line.took)),
                Err(error) => println!("FAIL {}: {error}", line.what),
            }
        }
        println!("\nfigures");
        for (what, value) in &self.figures {
            println!("     {what}: {value}");
        }
        let failed = self.lines.iter().filter(|line| line.result.is_err()).count();
        if self.lines.is_empty() || failed > 0 {
            bail!("{failed} of {} results differ", self.lines.len());
        }
        println!("\nall {} results are as expected", self.lines.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_differing_result_fails_the_run() {
        let screen = Screen::new(false);
        let mut report = Report::default();
        assert!(report.finish().is_err(), "a run without results proves nothing");
        let soon = Duration::from_millis(50);
        report.expect(&screen, "good", soon, async || Ok("seen".to_owned())).await;
        assert!(report.finish().is_ok() && !report.failed());
        report.expect(&screen, "bad", soon, async || Err("never".to_owned())).await;
        assert!(report.failed());
        assert_eq!(report.finish().expect_err("bad").to_string(), "1 of 2 results differ");
    }
}
