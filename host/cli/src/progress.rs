//! Progress of work that goes in steps, on standard error if that is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Format;

/// Steps below which nobody waits long enough to wonder.
const LONG: usize = 50;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Steps {
    bar: Option<ProgressBar>,
}

impl Steps {
    /// So many steps to come; few of them show nothing.
    pub(crate) fn new(verb: &'static str, steps: usize) -> Self {
        let bar = (steps >= LONG).then(|| bar(verb, u64::try_from(steps).unwrap_or(u64::MAX)));
        Self { bar }
    }

    /// Work with an end that is measured in something else, for example seconds, and is long.
    pub(crate) fn long(verb: &'static str, end: u64) -> Self {
        Self { bar: Some(bar(verb, end)) }
    }

    /// Shown from now on, beside text: who asks for JSON may read both outputs as one.
    pub(crate) fn beside(self, output: Format) -> Self {
        if let Some(bar) = &self.bar {
            match output {
                Format::Text => bar.tick(),
                Format::Json => bar.set_draw_target(ProgressDrawTarget::hidden()),
            }
        }
        self
    }

    /// One step is done.
    pub(crate) fn step(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// One step is done; what came of it.
    pub(crate) fn after<T>(&self, result: T) -> T {
        self.step();
        result
    }

    /// So far.
    pub(crate) fn at(&self, position: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        }
    }

    /// Leaves no trace.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(verb: &'static str, end: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {percent}% {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    // Draws nothing where there is no terminal.
    let bar = ProgressBar::with_draw_target(Some(end), ProgressDrawTarget::stderr());
    bar.with_style(style.progress_chars("#> ")).with_message(verb)
}
