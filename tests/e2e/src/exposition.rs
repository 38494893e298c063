//! A page of metrics as data.

use std::collections::{BTreeMap, BTreeSet};

/// Every metric of a Syncer: MC-704, BU-1601, TD-1702 and PO-1501. Name, kind, and the labels beside `clusterbinding`.
const DOCUMENTED: &str = "
    kubeocean_build_info gauge version commit
    kubeocean_policy_audit_differences counter entry
    kubeocean_policy_available gauge rlp resource
    kubeocean_policy_call_duration_seconds histogram entry kind
    kubeocean_policy_calls counter entry kind
    kubeocean_policy_compile_cache counter result
    kubeocean_policy_compile_seconds histogram
    kubeocean_policy_entry_state gauge entry state
    kubeocean_policy_faults counter entry fault
    kubeocean_policy_impure counter entry
    kubeocean_policy_instances_in_use gauge
    kubeocean_policy_load_failures counter entry step
    kubeocean_policy_log_dropped counter entry
    kubeocean_policy_memo counter entry result
    kubeocean_policy_offered gauge rlp resource
    kubeocean_policy_overcommitted_nodes gauge rlp
    kubeocean_policy_queue_depth gauge
    kubeocean_policy_rows counter entry kind result
    kubeocean_policy_time_zone_info gauge rlp zone
    kubeocean_policy_withheld_nodes gauge rlp
    kubeocean_syncer_cluster_available_resource gauge resource
    kubeocean_syncer_cluster_origin_resource gauge resource
    kubeocean_syncer_cluster_physical_usage gauge resource
    kubeocean_syncer_cluster_virtual_usage gauge resource
    kubeocean_syncer_copied_objects gauge kind
    kubeocean_syncer_create_pod counter
    kubeocean_syncer_create_pod_errors counter
    kubeocean_syncer_node_lease_late counter
    kubeocean_syncer_physical_pod_total gauge phase
    kubeocean_syncer_pod_created counter
    kubeocean_syncer_pod_created_failed counter
    kubeocean_syncer_pod_creation_seconds histogram
    kubeocean_syncer_queue_depth gauge queue
    kubeocean_syncer_queue_wait_seconds histogram queue
    kubeocean_syncer_reclaim_pods counter mode
    kubeocean_syncer_token_expiry_seconds gauge
    kubeocean_syncer_usage_drift counter
    kubeocean_syncer_virtual_pod_total gauge phase
    kubeocean_syncer_vnode_available_resource gauge node resource
    kubeocean_syncer_vnode_origin_resource gauge node resource
    kubeocean_syncer_vnode_physical_usage gauge node resource
    kubeocean_syncer_vnode_total gauge
    kubeocean_syncer_vnode_virtual_usage gauge node resource
    kubeocean_syncer_vnode_writes counter kind
    kubeocean_syncer_worker_watch_age_seconds gauge
";

/// A metric as it is documented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documented {
    /// Without the suffix of its kind.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Without `le`.
    pub labels: BTreeSet<&'static str>,
}

/// All metrics there are to be.
pub fn documented() -> impl Iterator<Item = Documented> {
    DOCUMENTED.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, kind) = (words.next()?, words.next()?);
        Some(Documented { name, kind, labels: words.chain(["clusterbinding"]).collect() })
    })
}

impl Documented {
    /// Names of its samples, each with the labels of these.
    pub fn samples(&self) -> Vec<(String, BTreeSet<&'static str>)> {
        let suffixes: &[&str] = match self.kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_count", "_sum"],
            _ => &[""],
        };
        let sample = |suffix: &&str| {
            let bound = (*suffix == "_bucket").then_some("le");
            (format!("{}{suffix}", self.name), self.labels.iter().copied().chain(bound).collect())
        };
        suffixes.iter().map(sample).collect()
    }
}

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

    /// Names of all samples, each with the names of its labels.
    pub fn samples(&self) -> impl Iterator<Item = (&str, BTreeSet<&str>)> {
        self.samples.keys().map(|(name, labels)| (name.as_str(), labels.keys().map(String::as_str).collect()))
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
