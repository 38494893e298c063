//! Derived names (BU-301, TD-301, TD-302). The formulas are a compatibility surface: objects of the original keep
//! their names, so a formula never changes for a name the original could create.

use md5::{Digest, Md5};

/// Longest label value Kubernetes accepts.
pub const LABEL_VALUE_MAX_BYTES: usize = 63;
/// What is left of a long value before its hash.
const DISTINCT_PREFIX_BYTES: usize = 54;

/// How much of a readable name survives in a hashed one.
const PREFIX_BYTES: usize = 30;

/// Name of the vnode, CSINode copy and node Lease of a worker node: `vnode-<clusterID>-<node>`, from 64 bytes on its
/// first 30 bytes, `-` and the MD5 of the whole (BU-301).
///
/// ```
/// assert_eq!(kubeocean_api::name::vnode_name("cluster-123", "worker-node-1"), "vnode-cluster-123-worker-node-1");
/// ```
pub fn vnode_name(cluster_id: &str, node: &str) -> String {
    let whole = format!("vnode-{cluster_id}-{node}");
    if whole.len() <= LABEL_VALUE_MAX_BYTES { whole } else { prefixed_hash(&whole, &whole) }
}

/// What every vnode name of a clusterID starts with, also the hashed ones. Other clusterIDs may share the prefix.
pub fn vnode_name_prefix(cluster_id: &str) -> String {
    let whole = format!("vnode-{cluster_id}-");
    prefix(&whole).to_owned()
}

/// Name of the copy of an object in the worker cluster: its first 30 bytes, `-` and the MD5 of `namespace/name`
/// (TD-301). `namespace` is empty for cluster-scoped objects.
///
/// ```
/// assert_eq!(
///     kubeocean_api::name::phys_name("test-pod", "default"),
///     "test-pod-49d2ec05688689cc55230ecf7101f2de"
/// );
/// ```
pub fn phys_name(name: &str, namespace: &str) -> String {
    prefixed_hash(name, &format!("{namespace}/{name}"))
}

/// Name of the Secret that holds the tokens of one projected volume of a pod (TD-302).
pub fn token_secret_name(pod: &str, volume: &str, pod_uid: &str, namespace: &str) -> String {
    phys_name(&format!("{pod}-{volume}-{pod_uid}"), namespace)
}

/// Name of a binding's Syncer Deployment, and of its leader Lease (API section 6).
///
/// ```
/// assert_eq!(kubeocean_api::name::syncer_name("cls-a"), "kubeocean-syncer-cls-a");
/// ```
pub fn syncer_name(cluster_id: &str) -> String {
    format!("kubeocean-syncer-{cluster_id}")
}

/// Name of a binding's Proxier Deployment (API section 6).
pub fn proxier_name(cluster_id: &str) -> String {
    format!("kubeocean-proxier-{cluster_id}")
}

/// Name of the Service before a binding's Proxier (API section 6).
pub fn proxier_service_name(cluster_id: &str) -> String {
    format!("{}-svc", proxier_name(cluster_id))
}

/// Name of the TLS Secret the system makes for a binding's Proxier (API section 6).
pub fn proxier_tls_secret_name(cluster_id: &str) -> String {
    format!("{cluster_id}-logs-proxy-tls")
}

/// Name of a CertificateSigningRequest of a Proxier pod, unique by its time in unix nanoseconds (API section 6).
pub fn proxier_csr_name(binding: &str, pod: &str, unix_nanoseconds: i128) -> String {
    format!("{}{pod}-{unix_nanoseconds}", proxier_csr_prefix(binding))
}

/// What the names of all CertificateSigningRequests of a binding's Proxiers start with.
pub fn proxier_csr_prefix(binding: &str) -> String {
    format!("kubeocean-proxier-{binding}-")
}

/// A value that fits a label: longer ones are cut to 63 bytes and to a valid last character (BU section 4).
pub fn fit_label_value(value: &str) -> String {
    let cut = cut_at(value, LABEL_VALUE_MAX_BYTES);
    cut.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// A value that fits a label and stays distinct: longer ones are cut to 54 bytes, `-` and 8 hex digits of their
/// SHA-256 (TD section 5).
pub fn distinct_label_value(value: &str) -> String {
    if value.len() <= LABEL_VALUE_MAX_BYTES {
        return fit_label_value(value);
    }
    let digest = hex::encode(sha2::Sha256::digest(value.as_bytes()));
    let digits = digest.get(..8).unwrap_or(&digest);
    format!("{}-{digits}", cut_at(value, DISTINCT_PREFIX_BYTES))
}

fn prefixed_hash(readable: &str, hashed: &str) -> String {
    let mut prefix = prefix(readable).to_owned();
    // `.-` is no DNS-1123 subdomain, so the original could never create such an object (BU-304, TD section 3).
    if prefix.ends_with('.') {
        let kept = prefix.trim_end_matches('.').len();
        let dots = prefix.len() - kept;
        prefix.truncate(kept);
        prefix.push_str(&"-".repeat(dots));
    }
    format!("{prefix}-{}", hex::encode(Md5::digest(hashed.as_bytes())))
}

fn prefix(name: &str) -> &str {
    cut_at(name, PREFIX_BYTES)
}

fn cut_at(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
