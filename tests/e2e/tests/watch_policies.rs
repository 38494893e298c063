//! What docs/watch-policies.md says of metrics is true of those there are.

use std::collections::BTreeSet;

use kubeocean_e2e::{exposition::documented, promql::metrics_asked};
use serde_json::Value;

const PAGE: &str = include_str!("../../../docs/watch-policies.md");

#[test]
fn the_table_has_every_metric_of_policies_with_its_kind_and_labels() {
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let labels = cells[3].split(", ").map(|label| label.trim_matches('`'));
        let labels: BTreeSet<&str> = labels.filter(|label| !label.is_empty()).collect();
        (cells[1].trim_matches('`').to_owned(), cells[2], labels)
    };
    let told: BTreeSet<_> = PAGE.lines().filter(|line| line.starts_with("| `kubeocean_")).map(row).collect();
    let of_policies = documented().filter(|metric| metric.name.starts_with("kubeocean_policy_"));
    let expected: BTreeSet<_> = of_policies
        .map(|metric| {
            let suffix = if metric.kind == "counter" { "_total" } else { "" };
            let mut labels = metric.labels;
            labels.remove("clusterbinding");
            (format!("{}{suffix}", metric.name), metric.kind, labels)
        })
        .collect();
    assert_eq!(told, expected);
}

#[test]
fn alerts_ask_for_metrics_and_labels_that_there_are() {
    let (_, alerts) = PAGE.split_once("```yaml\n").expect("alerts");
    let (alerts, _) = alerts.split_once("```").expect("their end");
    let alerts: Value = serde_saphyr::from_str(alerts).expect("YAML");
    let rules = alerts["groups"][0]["rules"].as_array().expect("rules");
    let queries = rules.iter().map(|rule| rule["expr"].as_str().expect("a query"));
    let in_text = PAGE.split('`').filter(|span| span.starts_with("kubeocean_") && span.contains('{'));
    for query in queries.chain(in_text) {
        let asked = metrics_asked(query);
        assert!(asked.is_ok(), "{query}: {asked:?}");
    }
}
