//! What a query in PromQL asks for, held against the metrics there are.
//!
//! In: a query of the dashboard, or of an alert. Out: the metrics it asks for, or what is wrong with it. A query that says
//! about labels what is not understood here is wrong as well: nothing passes unseen.

use std::collections::{BTreeMap, BTreeSet};

use crate::exposition::documented;

/// Words that make other labels of those a series has.
const NOT_UNDERSTOOD: [&str; 7] =
    ["without", "on", "ignoring", "group_left", "group_right", "label_replace", "label_join"];

/// Samples by name: their metric and labels.
type Known = BTreeMap<String, (&'static str, BTreeSet<&'static str>)>;

/// Names of the metrics that a query asks for, at least one.
pub fn metrics_asked(query: &str) -> Result<BTreeSet<&'static str>, String> {
    let known: Known = documented()
        .flat_map(|metric| {
            metric.samples().into_iter().map(move |(name, labels)| (name, (metric.name, labels)))
        })
        .collect();
    let tokens = tokens(query);
    let mut asked = BTreeSet::new();
    for (at, token) in tokens.iter().enumerate() {
        let after = &tokens[at + 1..];
        match *token {
            "by" => {
                let labels = in_brackets(after)?;
                have_labels(&known, in_brackets(&after[labels.len() + 2..])?, words(labels))?;
            }
            // Grafana's: a series, and one of its labels.
            "label_values" => {
                let inside = in_brackets(after)?;
                have_labels(&known, inside, words(inside).last())?;
            }
            word if NOT_UNDERSTOOD.contains(&word) => return Err(format!("{word} is not understood")),
            word if word.starts_with("kubeocean_") => {
                let (metric, _) = known.get(word).ok_or_else(|| format!("no Syncer has {word}"))?;
                asked.insert(*metric);
                if after.first() == Some(&"{") {
                    have_labels(&known, &[word], selected(in_brackets(after)?))?;
                }
            }
            _ => {}
        }
    }
    if asked.is_empty() { Err("it asks for no metric".to_owned()) } else { Ok(asked) }
}

/// Whether all series among the tokens have all these labels.
fn have_labels<'l>(
    known: &Known,
    tokens: &[&str],
    labels: impl IntoIterator<Item = &'l str>,
) -> Result<(), String> {
    for label in labels {
        for (name, (_, has)) in tokens.iter().filter_map(|token| known.get_key_value(*token)) {
            if !has.contains(label) {
                return Err(format!("{name} has no label {label}"));
            }
        }
    }
    Ok(())
}

/// Labels of a selector: what stands before a comparison.
fn selected<'q>(selector: &[&'q str]) -> impl Iterator<Item = &'q str> {
    let compared = |pair: &&[&str]| pair[0].starts_with(is_of_word) && ["=", "!"].contains(&pair[1]);
    selector.windows(2).filter(compared).map(|pair| pair[0])
}

fn words<'q>(tokens: &[&'q str]) -> impl Iterator<Item = &'q str> {
    tokens.iter().copied().filter(|token| token.starts_with(is_of_word))
}

/// What stands between the bracket with which the tokens begin and its counterpart.
fn in_brackets<'t, 'q>(tokens: &'t [&'q str]) -> Result<&'t [&'q str], String> {
    let mut depth = 0_usize;
    let end = tokens.iter().position(|token| {
        match *token {
            "(" | "{" => depth += 1,
            ")" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0
    });
    end.and_then(|end| tokens.get(1..end)).ok_or_else(|| format!("brackets are missing: {tokens:?}"))
}

/// Words, texts in quotes, and single signs. No text of ours has a quote in it.
fn tokens(query: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = query.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '"' => rest[1..].find('"').map_or(rest.len(), |end| end + 2),
            letter if is_of_word(letter) => rest.find(|other| !is_of_word(other)).unwrap_or(rest.len()),
            sign => sign.len_utf8(),
        };
        let (token, after) = rest.split_at(end);
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens
}

fn is_of_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_asks_for_metrics_by_their_full_names_and_labels() {
        for (query, asked) in [
            ("kubeocean_policy_queue_depth > 0", vec!["kubeocean_policy_queue_depth"]),
            (
                r#"label_values(kubeocean_build_info{clusterbinding=~"a.*"}, version)"#,
                vec!["kubeocean_build_info"],
            ),
            (
                r#"sum by (le, entry) (rate(kubeocean_policy_call_duration_seconds_bucket{kind!="place"}[5m]))
                    / sum by (entry) (kubeocean_policy_calls_total)"#,
                vec!["kubeocean_policy_call_duration_seconds", "kubeocean_policy_calls"],
            ),
        ] {
            assert_eq!(metrics_asked(query), Ok(asked.into_iter().collect()), "{query}");
        }
    }

    #[test]
    fn what_no_sample_is_called_or_has_is_told() {
        for (query, wrong) in [
            ("kubeocean_policy_rows", "no Syncer has kubeocean_policy_rows"),
            ("kubeocean_policy_rows_sum", "no Syncer has kubeocean_policy_rows_sum"),
            ("kubeocean_policy_queue_depth_total", "no Syncer has kubeocean_policy_queue_depth_total"),
            ("kubeocean_policy_compile_seconds", "no Syncer has kubeocean_policy_compile_seconds"),
            ("sum by (rlp) (kubeocean_policy_calls_total)", "kubeocean_policy_calls_total has no label rlp"),
            (
                "sum by (le) (kubeocean_policy_compile_seconds_sum)",
                "kubeocean_policy_compile_seconds_sum has no label le",
            ),
            (
                r#"kubeocean_policy_offered{rlp="a",entry!~"b"}"#,
                "kubeocean_policy_offered has no label entry",
            ),
            ("label_values(kubeocean_build_info, rlp)", "kubeocean_build_info has no label rlp"),
            ("sum(kubeocean_policy_calls_total) by (entry)", "brackets are missing: []"),
            ("sum without (entry) (kubeocean_policy_calls_total)", "without is not understood"),
            ("up == 0", "it asks for no metric"),
        ] {
            assert_eq!(metrics_asked(query), Err(wrong.to_owned()), "{query}");
        }
    }
}
