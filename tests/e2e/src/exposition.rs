//! A page of metrics as data.

use std::collections::{BTreeMap, BTreeSet};

/// Every metric of a Syncer: MC-704, BU-1601, TD-1702 and PO-1501.
pub const DOCUMENTED: &str = "
    kubeocean_build_info gauge
    kubeocean_policy_audit_differences counter
    kubeocean_policy_available gauge
    kubeocean_policy_call_duration_seconds histogram
    kubeocean_policy_calls counter
    kubeocean_policy_compile_cache counter
    kubeocean_policy_compile_seconds histogram
    kubeocean_policy_entry_state gauge
    kubeocean_policy_faults counter
    kubeocean_policy_impure counter
    kubeocean_policy_instances_in_use gauge
    kubeocean_policy_load_failures counter
    kubeocean_policy_log_dropped counter
    kubeocean_policy_memo counter
    kubeocean_policy_offered gauge
    kubeocean_policy_overcommitted_nodes gauge
    kubeocean_policy_queue_depth gauge
    kubeocean_policy_rows counter
    kubeocean_policy_time_zone_info gauge
    kubeocean_policy_withheld_nodes gauge
    kubeocean_syncer_cluster_available_resource gauge
    kubeocean_syncer_cluster_origin_resource gauge
    kubeocean_syncer_cluster_physical_usage gauge
    kubeocean_syncer_cluster_virtual_usage gauge
    kubeocean_syncer_copied_objects gauge
    kubeocean_syncer_create_pod counter
    kubeocean_syncer_create_pod_errors counter
    kubeocean_syncer_node_lease_late counter
    kubeocean_syncer_physical_pod_total gauge
    kubeocean_syncer_pod_created counter
    kubeocean_syncer_pod_created_failed counter
    kubeocean_syncer_pod_creation_seconds histogram
    kubeocean_syncer_queue_depth gauge
    kubeocean_syncer_queue_wait_seconds histogram
    kubeocean_syncer_reclaim_pods counter
    kubeocean_syncer_token_expiry_seconds gauge
    kubeocean_syncer_usage_drift counter
    kubeocean_syncer_virtual_pod_total gauge
    kubeocean_syncer_vnode_available_resource gauge
    kubeocean_syncer_vnode_origin_resource gauge
    kubeocean_syncer_vnode_physical_usage gauge
    kubeocean_syncer_vnode_total gauge
    kubeocean_syncer_vnode_virtual_usage gauge
    kubeocean_syncer_vnode_writes counter
    kubeocean_syncer_worker_watch_age_seconds gauge
";

/// Name and labels of one sample.
type Series = (String, BTreeMap<String, String>);

/// What one scrape told.
#[derive(Clone, Debug, Default)]
pub struct Page {
    samples: BTreeMap<Series, f64>,
    kinds: BTreeSet<(String, String)>,
}

impl Page {
    /// Reads the text exposition format, as far as our programs write it.
    ///
    /// # Panics
    /// A line is something else.
    pub fn parse(text: &str) -> Self {
        let mut page = Self::default();
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a name and a kind");
                page.kinds.insert((name.to_owned(), kind.to_owned()));
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("a series and a value");
                page.samples.insert(parse_series(series), value.parse().expect("a number"));
            }
        }
        page
    }

    /// The value of the series with exactly these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }

    /// Values of one label over all series.
    pub fn values_of(&self, label: &str) -> BTreeSet<String> {
        self.samples.keys().filter_map(|(_, labels)| labels.get(label).cloned()).collect()
    }

    /// Names and kinds of all metrics.
    pub fn kinds(&self) -> &BTreeSet<(String, String)> {
        &self.kinds
    }

    /// Whether each series carries the label.
    pub fn all_have(&self, label: &str) -> bool {
        self.samples.keys().all(|(_, labels)| labels.contains_key(label))
    }
}

fn parse_series(series: &str) -> Series {
    let Some((name, labels)) = series.split_once('{') else { return (series.to_owned(), BTreeMap::new()) };
    let labels = labels.strip_suffix('}').expect("the end of the labels");
    // No value of ours holds a quote or a comma.
    let pair = |label: &str| {
        let (label, value) = label.split_once('=').expect("a label and a value");
        (label.to_owned(), value.trim_matches('"').to_owned())
    };
    (name.to_owned(), labels.split(',').map(pair).collect())
}
