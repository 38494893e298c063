//! Keys that most objects have: one of these is kept as a number.
//!
//! Numbers mean nothing outside the process. A key that is not listed is kept as it is.

use kubeocean_api::keys::{annotation, label};

/// Sorted, each once. The number of one of the first 32 takes one byte, each other two.
const KNOWN: [&str; 53] = [
    "app",
    "app.kubernetes.io/component",
    label::APP_INSTANCE,
    label::APP_MANAGED_BY,
    label::APP_NAME,
    label::APP_PART_OF,
    "app.kubernetes.io/version",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "beta.kubernetes.io/arch",
    label::INSTANCE_TYPE_BETA,
    "beta.kubernetes.io/os",
    "controller-revision-hash",
    "controller-uid",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "job-name",
    "k8s-app",
    label::CLUSTER_BINDING,
    annotation::COMPUTING_CLUSTER_UID,
    annotation::DELETION_TAINT_TIME,
    annotation::EXPECTED_METADATA,
    annotation::EXPECTED_SPEC,
    annotation::LAST_SYNC_TIME,
    label::MANAGED_BY,
    label::PHYSICAL_CLUSTER_ID,
    label::PHYSICAL_NODE_INNER_IP,
    label::PHYSICAL_NODE_NAME,
    label::PHYSICAL_NODE_UID,
    annotation::PHYSICAL_POD_NAME,
    annotation::PHYSICAL_POD_NAMESPACE,
    annotation::PHYSICAL_POD_UID,
    annotation::POLICIES_APPLIED,
    annotation::POLICY_DECISION,
    annotation::POLICY_DETAILS,
    annotation::PROMETHEUS_URL,
    label::PROXIER_PORT,
    label::VIRTUAL_NAMESPACE,
    annotation::VIRTUAL_NODE_NAME,
    annotation::VIRTUAL_POD_NAME,
    annotation::VIRTUAL_POD_NAMESPACE,
    annotation::VIRTUAL_POD_UID,
    label::WORKLOAD_NAME,
    label::WORKLOAD_TYPE,
    "kubernetes.io/arch",
    label::HOSTNAME,
    "kubernetes.io/os",
    label::INSTANCE_TYPE,
    "pod-template-hash",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// The number of a key that is listed, or that of one of this length that is not.
pub(super) fn number_of(key: &str) -> Result<usize, usize> {
    KNOWN.binary_search(&key).map(|place| 2 * place + 1).map_err(|_| 2 * key.len())
}

/// The key that is listed under a number, or how long the key is that stands there.
pub(super) fn of_number(number: usize) -> Result<&'static str, usize> {
    if number.is_multiple_of(2) {
        return Err(number / 2);
    }
    // A number that nobody wrote is that of an empty key: then there is none.
    Ok(KNOWN.get(number / 2).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_found_and_no_other() {
        assert!(KNOWN.is_sorted_by(|one, next| one < next), "{KNOWN:?}");
        for key in KNOWN {
            let number = number_of(key).expect("listed");
            assert_eq!(of_number(number), Ok(key));
        }
        assert_eq!(number_of("tier"), Err(8));
        assert_eq!(of_number(8), Err(4));
    }
}
