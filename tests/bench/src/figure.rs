//! One measured number beside what the design allows for it.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    work: String,
    value: f64,
    unit: &'static str,
    budget: Option<f64>,
}

impl Figure {
    /// A figure without a limit.
    pub fn new(work: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { work: work.into(), value, unit, budget: None }
    }

    /// The most that the design's performance budget allows, in the unit of the value.
    #[must_use]
    pub fn budget(mut self, budget: f64) -> Self {
        self.budget = Some(budget);
        self
    }

    /// More than so many times the budget.
    fn exceeds(&self, times: f64) -> bool {
        self.budget.is_some_and(|budget| self.value > budget * times)
    }

    fn verdict(&self) -> &'static str {
        match self.budget {
            Some(budget) if self.value <= budget => "within",
            Some(_) => "over",
            None => "",
        }
    }
}

/// Fails where figures are more than so many times their budget (`KUBEOCEAN_BENCH_ALLOW`); without it nothing fails.
///
/// # Errors
/// It is no number, or some are: the error names them.
pub fn check_allowed(figures: &[Figure], times: Option<&str>) -> Result<(), String> {
    let Some(times) = times else { return Ok(()) };
    let times: f64 = times.parse().map_err(|error| format!("KUBEOCEAN_BENCH_ALLOW is {times:?}: {error}"))?;
    let over: Vec<&str> =
        figures.iter().filter(|figure| figure.exceeds(times)).map(|figure| figure.work.as_str()).collect();
    if over.is_empty() { Ok(()) } else { Err(format!("over {times} times the budget: {}", over.join("; "))) }
}

/// All figures as a table for a terminal.
pub fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["work", "measured", "budget", ""]);
    for figure in figures {
        let budget = figure.budget.map_or_else(String::new, |most| format!("<= {most} {}", figure.unit));
        let measured = format!("{} {}", rounded(figure.value), figure.unit);
        table.add_row([figure.work.as_str(), &measured, &budget, figure.verdict()]);
    }
    for column in 1..=2 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Three digits that matter: what is behind them differs from run to run.
fn rounded(value: f64) -> String {
    let decimals = match value.abs() {
        large if large >= 100.0 => 0,
        medium if medium >= 10.0 => 1,
        small if small >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_kept_up_to_its_last_unit() {
        let figure = |value| Figure::new("w", value, "s").budget(3.0);
        assert_eq!(figure(3.0).verdict(), "within");
        assert_eq!(figure(3.01).verdict(), "over");
        assert_eq!(Figure::new("w", 3.0, "s").verdict(), "");
        assert!(figure(6.1).exceeds(2.0) && !figure(6.0).exceeds(2.0));
        assert!(!Figure::new("w", 3.0, "s").exceeds(0.0), "without a budget nothing is too much");
    }

    #[test]
    fn a_run_fails_for_what_is_over_when_it_was_asked_to() {
        let figures =
            [Figure::new("slow", 3.0, "s").budget(1.0), Figure::new("within", 1.0, "s").budget(1.0)];
        assert_eq!(check_allowed(&figures, None), Ok(()));
        assert_eq!(check_allowed(&figures, Some("3")), Ok(()));
        assert_eq!(check_allowed(&figures, Some("1.5")), Err("over 1.5 times the budget: slow".to_owned()));
        assert!(check_allowed(&[], Some("much")).is_err());
    }

    #[test]
    fn values_show_three_digits() {
        assert_eq!([0.0123, 1.234, 12.34, 123.4].map(rounded), ["0.012", "1.23", "12.3", "123"]);
    }

    #[test]
    fn a_row_says_work_value_budget_and_verdict() {
        let text = table(&[Figure::new("idle CPU", 0.5, "%").budget(1.0)]).to_string();
        let row = text.lines().find(|line| line.contains("idle CPU")).unwrap_or_default();
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(words, ["idle", "CPU", "0.500", "%", "<=", "1", "%", "within"]);
    }
}
