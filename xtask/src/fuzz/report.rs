//! What a run of libFuzzer says, summed up.

use std::fmt;

/// Numbers of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    executions: u64,
    /// Edges of the program that some input took.
    edges: u64,
    /// Inputs kept because each of them took an edge, or took it more often, than those before.
    kept: u64,
    slowest_seconds: u64,
    peak_mib: u64,
}

impl Report {
    /// Takes one line of the standard error.
    pub(super) fn line(&mut self, line: &str) {
        if let Some((name, value)) = line.strip_prefix("stat::").and_then(|stat| stat.split_once(':')) {
            let Ok(value) = value.trim().parse() else { return };
            match name {
                "number_of_executed_units" => self.executions = value,
                "slowest_unit_time_sec" => self.slowest_seconds = value,
                "peak_rss_mb" => self.peak_mib = value,
                _ => {}
            }
        } else if line.starts_with('#') {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |name: &str| {
                let at = words.iter().position(|word| *word == name)?;
                words.get(at + 1)?.split('/').next()?.parse().ok()
            };
            // A finding ends the run before it tells its numbers.
            let executions = words.first().and_then(|word| word.trim_start_matches('#').parse().ok());
            self.executions = executions.unwrap_or(self.executions);
            self.edges = number("cov:").unwrap_or(self.edges);
            self.kept = number("corp:").unwrap_or(self.kept);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} executions, {} edges, {} inputs kept, slowest {} s, at most {} MiB",
            self.executions, self.edges, self.kept, self.slowest_seconds, self.peak_mib
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_numbers_are_those_of_the_run() {
        let mut report = Report::default();
        for line in [
            "INFO: Seed: 1",
            "#2\tINITED cov: 2 ft: 2 corp: 1/1b exec/s: 0 rss: 35Mb",
            "#4096\tpulse  cov: 12 ft: 30 corp: 9/88b lim: 43 exec/s: 2048 rss: 40Mb",
            "#5000\tDONE   cov: 13 ft: 31 corp: 10/88b lim: 43 exec/s: 2500 rss: 40Mb",
            "Done 5000 runs in 2 second(s)",
            "stat::number_of_executed_units: 5000",
            "stat::slowest_unit_time_sec:    1",
            "stat::peak_rss_mb:              41",
        ] {
            report.line(line);
        }
        let told = "5000 executions, 13 edges, 10 inputs kept, slowest 1 s, at most 41 MiB";
        assert_eq!(report.to_string(), told);
    }

    #[test]
    fn a_run_that_a_finding_ended_has_numbers_too() {
        let mut report = Report::default();
        report.line("#77\tNEW    cov: 5 ft: 6 corp: 4/8b lim: 4 exec/s: 0 rss: 40Mb L: 3/4 MS: 1 ChangeBit-");
        report.line("==1== ERROR: libFuzzer: deadly signal");
        assert_eq!((report.executions, report.edges, report.kept), (77, 5, 4));
    }
}
