//! Several texts of metrics as one: in the format of OpenMetrics a metric appears once, with all its samples.

use std::fmt::Write as _;

/// The lines of one metric.
#[derive(Default)]
struct Family {
    name: String,
    /// `# HELP`, `# TYPE`, `# UNIT`.
    about: Vec<String>,
    samples: Vec<String>,
}

/// Merges texts; the first one that has a metric describes it, and decides its place.
pub(super) fn merge(texts: impl IntoIterator<Item = String>) -> String {
    let mut families: Vec<Family> = Vec::new();
    for text in texts {
        let mut current = None;
        for line in text.lines().filter(|line| !line.is_empty() && *line != "# EOF") {
            if let Some(name) = described(line) {
                let known = families.iter().position(|family| family.name == name);
                let at = known.unwrap_or_else(|| {
                    families.push(Family { name: name.to_owned(), ..Family::default() });
                    families.len() - 1
                });
                current = Some(at);
                let about = &mut families[at].about;
                if !about.iter().any(|known| known == line) {
                    about.push(line.to_owned());
                }
            } else if let Some(family) = current.and_then(|at| families.get_mut(at)) {
                family.samples.push(line.to_owned());
            }
        }
    }
    let mut out = String::new();
    for line in families.iter().flat_map(|family| family.about.iter().chain(&family.samples)) {
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{line}");
    }
    out.push_str("# EOF\n");
    out
}

/// The metric a comment line describes.
fn described(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("# ")?;
    let (keyword, rest) = rest.split_once(' ')?;
    let name = rest.split(' ').next()?;
    ["HELP", "TYPE", "UNIT"].contains(&keyword).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_appears_once_with_all_its_samples() {
        let of = |binding: &str, value: u32| {
            format!(
                "# HELP a First.\n# TYPE a gauge\na{{b=\"{binding}\"}} {value}\n# HELP c Second.\n# TYPE c counter\n\
                 c_total{{b=\"{binding}\"}} 1\n# EOF\n"
            )
        };
        let expected = "# HELP a First.\n# TYPE a gauge\na{b=\"x\"} 1\na{b=\"y\"} 2\n\
                        # HELP c Second.\n# TYPE c counter\nc_total{b=\"x\"} 1\nc_total{b=\"y\"} 1\n# EOF\n";
        assert_eq!(merge([of("x", 1), of("y", 2)]), expected);
    }
}
