//! Every key Kubeocean writes or reads on Kubernetes objects (API section 5). Other crates contain no literal key.
//!
//! Source: the original system's objects; the keys we add are additive and marked so. A reader must work without the
//! added ones.

/// Prefix of almost every key.
pub const PREFIX: &str = "kubeocean.io/";

/// Label keys.
pub mod label {
    /// `kubeocean` on every object the system makes; the main selector.
    pub const MANAGED_BY: &str = "kubeocean.io/managed-by";
    /// Value of [`MANAGED_BY`].
    pub const MANAGED_BY_VALUE: &str = "kubeocean";
    /// Binding name, on vnodes and CSINodes; added on ppods, pobjs, token Secrets and fake pods (TD-1103).
    pub const CLUSTER_BINDING: &str = "kubeocean.io/cluster-binding";
    /// `spec.clusterID` of the binding, on vnodes and CSINodes.
    pub const PHYSICAL_CLUSTER_ID: &str = "kubeocean.io/physical-cluster-id";
    /// Worker node name on a vnode (label cut to 63 bytes; the annotation of the same key keeps it whole).
    pub const PHYSICAL_NODE_NAME: &str = "kubeocean.io/physical-node-name";
    /// Worker node UID on a vnode; another UID means the node was re-created (BU-407).
    pub const PHYSICAL_NODE_UID: &str = "kubeocean.io/physical-node-uid";
    /// First `InternalIP` of the worker node; the Proxier dials it. `:` is written as `-` (annotation has the address).
    pub const PHYSICAL_NODE_INNER_IP: &str = "kubeocean.io/physical-node-innerip";
    /// Port of the Proxier's listener for this vnode. The underscore is part of the key.
    pub const PROXIER_PORT: &str = "kubeocean.io/proxier_port";
    /// On worker nodes: name of the policy that leases the node (BU-408).
    pub const POLICY_APPLIED: &str = "kubeocean.io/policy-applied";
    /// `virtual-kubelet` on vnodes; worker nodes that carry it are never leased (BU-401).
    pub const TYPE: &str = "type";
    /// Value of [`TYPE`] on vnodes.
    pub const TYPE_VIRTUAL_KUBELET: &str = "virtual-kubelet";
    /// Instance type; `vnode` on vnodes.
    pub const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
    /// Older key of [`INSTANCE_TYPE`].
    pub const INSTANCE_TYPE_BETA: &str = "beta.kubernetes.io/instance-type";
    /// Value of both instance-type labels on vnodes.
    pub const INSTANCE_TYPE_VNODE: &str = "vnode";
    /// Instance types of worker nodes that are never leased (BU-401).
    pub const EXCLUDED_INSTANCE_TYPES: [&str; 3] = ["external", "vnode", "eklet"];
    /// Host name label of nodes.
    pub const HOSTNAME: &str = "kubernetes.io/hostname";
    /// Keeps load balancers of the computing cluster away from vnodes (added).
    pub const EXCLUDE_FROM_LOAD_BALANCERS: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
    /// Namespace of the vpod, on a ppod.
    pub const VIRTUAL_NAMESPACE: &str = "kubeocean.io/virtual-namespace";
    /// Lower-case kind of the workload a ppod belongs to (TD-508).
    pub const WORKLOAD_TYPE: &str = "kubeocean.io/workload-type";
    /// Name of the workload a ppod belongs to (TD-508).
    pub const WORKLOAD_NAME: &str = "kubeocean.io/workload-name";
    /// `true` on Secrets that hold the tokens of a ppod (TD-705).
    pub const SERVICE_ACCOUNT_TOKEN: &str = "kubeocean.io/service-account-token";
    /// `true` on pods that only reserve host ports; never mapped (TD-404).
    pub const HOSTPORT_FAKE_POD: &str = "kubeocean.io/hostport-fake-pod";
    /// `true` on Secrets that a PersistentVolume uses.
    pub const USED_BY_PV: &str = "kubeocean.io/used-by-pv";
    /// Name of the virtual LogConfig, on its copy.
    pub const VIRTUAL_LOGCONFIG: &str = "kubeocean.io/virtual-logconfig";
    /// `logs-proxy` on CertificateSigningRequests, `worker` or `syncer` on objects of the worker chart.
    pub const COMPONENT: &str = "kubeocean.io/component";
    /// `spec.clusterID` of the binding, on CertificateSigningRequests.
    pub const CLUSTER_ID: &str = "kubeocean.io/cluster-id";
    /// Binding name, on CertificateSigningRequests. The key is the original's.
    pub const NODE_NAME: &str = "kubeocean.io/node-name";
    /// `kubeocean-syncer` or `kubeocean-proxier`, on what the Manager renders.
    pub const APP_NAME: &str = "app.kubernetes.io/name";
    /// Binding name, on what the Manager renders.
    pub const APP_INSTANCE: &str = "app.kubernetes.io/instance";
    /// `syncer`, `proxier` or `tls`, on what the Manager renders.
    pub const APP_COMPONENT: &str = "app.kubernetes.io/component";
    /// [`MANAGED_BY_VALUE`], on what the Manager renders.
    pub const APP_PART_OF: &str = "app.kubernetes.io/part-of";
    /// [`super::manager::MANAGER`], on what the Manager renders.
    pub const APP_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// Deployment name, on component pods; part of their immutable selector.
    pub const K8S_APP: &str = "k8s-app";
    /// `kubeocean-manager`, on Manager pods and their namespace.
    pub const CONTROL_PLANE: &str = "control-plane";
    /// Prefix of [`super::synced_by`].
    pub const SYNCED_BY_PREFIX: &str = "kubeocean.io/synced-by-";
}

/// Annotation keys.
pub mod annotation {
    /// Namespace of the ppod, on a vpod; written before the ppod exists (TD-503).
    pub const PHYSICAL_POD_NAMESPACE: &str = "kubeocean.io/physical-pod-namespace";
    /// Name of the ppod, on a vpod; written before the ppod exists (TD-503).
    pub const PHYSICAL_POD_NAME: &str = "kubeocean.io/physical-pod-name";
    /// UID of the ppod, on a vpod; written after its creation.
    pub const PHYSICAL_POD_UID: &str = "kubeocean.io/physical-pod-uid";
    /// Namespace of the vpod, on a ppod and its token Secrets.
    pub const VIRTUAL_POD_NAMESPACE: &str = "kubeocean.io/virtual-pod-namespace";
    /// Name of the vpod, on a ppod and its token Secrets.
    pub const VIRTUAL_POD_NAME: &str = "kubeocean.io/virtual-pod-name";
    /// UID of the vpod, on a ppod and its token Secrets.
    pub const VIRTUAL_POD_UID: &str = "kubeocean.io/virtual-pod-uid";
    /// Vnode name, on a ppod.
    pub const VIRTUAL_NODE_NAME: &str = "kubeocean.io/virtual-node-name";
    /// RFC 3339 time of the last write, on vnodes, CSINodes and vpods.
    pub const LAST_SYNC_TIME: &str = "kubeocean.io/last-sync-time";
    /// Base64 JSON of the metadata last written, for three-way merges (BU-701, TD-801).
    pub const EXPECTED_METADATA: &str = "kubeocean.io/expected-metadata";
    /// Digests of what of the vpod's spec was brought down last, on a ppod (TD-808, added).
    pub const EXPECTED_SPEC: &str = "kubeocean.io/expected-spec";
    /// Worker node name on a vnode.
    pub const PHYSICAL_NODE_NAME: &str = super::label::PHYSICAL_NODE_NAME;
    /// Worker node UID on a vnode.
    pub const PHYSICAL_NODE_UID: &str = super::label::PHYSICAL_NODE_UID;
    /// Plain address of the worker node, when the label had to be altered (added).
    pub const PHYSICAL_NODE_INNER_IP: &str = super::label::PHYSICAL_NODE_INNER_IP;
    /// Binding name on a vnode; read, never written (TD-402).
    pub const PHYSICAL_CLUSTER_NAME: &str = "kubeocean.io/physical-cluster-name";
    /// Name of the policy that governs a vnode, `""` when none.
    pub const POLICIES_APPLIED: &str = "kubeocean.io/policies-applied";
    /// `<policy>(<res>=<quantity>/<percent>%,...)` of the policy that governs a vnode.
    pub const POLICY_DETAILS: &str = "kubeocean.io/policy-details";
    /// `<proxier ip>:<port>/<vnode>`, where a vnode's metrics are scraped.
    pub const PROMETHEUS_URL: &str = "kubeocean.io/prometheus-url";
    /// RFC 3339 start of a vnode's withdrawal.
    pub const DELETION_TAINT_TIME: &str = "kubeocean.io/deletion-taint-time";
    /// JSON of the decision a vnode follows (PO-1503, added).
    pub const POLICY_DECISION: &str = "kubeocean.io/policy-decision";
    /// `keep`, `graceful:<seconds>` or `force`: reclaim announced by the last good decision (BU-907, added).
    pub const RECLAIM: &str = "kubeocean.io/reclaim";
    /// RFC 3339 start of the grace period when it is not the taint's `timeAdded` (added).
    pub const RECLAIM_SINCE: &str = "kubeocean.io/reclaim-since";
    /// Name of the copy, on a vobj; written for compatibility, never read for location.
    pub const PHYSICAL_NAME: &str = "kubeocean.io/physical-name";
    /// Namespace of the copy, on a vobj.
    pub const PHYSICAL_NAMESPACE: &str = "kubeocean.io/physical-namespace";
    /// Name of the vobj, on a pobj.
    pub const VIRTUAL_NAME: &str = "kubeocean.io/virtual-name";
    /// Namespace of the vobj, on a pobj.
    pub const VIRTUAL_NAMESPACE: &str = "kubeocean.io/virtual-namespace";
    /// UID of the vobj, on a pobj (added).
    pub const VIRTUAL_UID: &str = "kubeocean.io/virtual-uid";
    /// UID of the computing cluster's `kube-system` namespace (TD-1103, added).
    pub const COMPUTING_CLUSTER_UID: &str = "kubeocean.io/computing-cluster-uid";
    /// Name of the binding that holds a policy (TD-1104, added).
    pub const CLUSTER_BINDING: &str = super::label::CLUSTER_BINDING;
    /// ServiceAccount name, on a token Secret.
    pub const SERVICE_ACCOUNT: &str = "kubeocean.io/service-account";
    /// RFC 3339 earliest expiry of a token Secret (added).
    pub const TOKEN_EXPIRATION: &str = "kubeocean.io/token-expiration";
    /// `true`, set by users on DaemonSet pods that shall run on vnodes (TD-404).
    pub const RUNNING_DAEMONSET: &str = "kubeocean.io/running-daemonset";
    /// `true`, set by users on a binding whose worker is gone for ever.
    pub const FORCE_DETACH: &str = "kubeocean.io/force-detach";
    /// On a binding: UID of the worker cluster's namespace `kube-system`, from the first connection. Users remove it when
    /// the binding is to move to another cluster.
    pub const WORKER_CLUSTER_UID: &str = "kubeocean.io/worker-cluster-uid";
    /// `true`, set by users on a binding: the Proxier serves with the Secret named by the next two.
    pub const LOGS_PROXY_ENABLED: &str = "kubeocean.io/logs-proxy-enabled";
    /// Secret with `tls.crt` and `tls.key`, set by users on a binding.
    pub const LOGS_PROXY_SECRET_NAME: &str = "kubeocean.io/logs-proxy-secret-name";
    /// Namespace of that Secret, by default that of the components.
    pub const LOGS_PROXY_SECRET_NAMESPACE: &str = "kubeocean.io/logs-proxy-secret-namespace";
    /// RFC 3339 time of the last renewal, on a TLS Secret the system made.
    pub const CERTIFICATE_RENEWED: &str = "kubeocean.io/certificate-renewed";
    /// `auto-renewal`, on a TLS Secret the system made.
    pub const RENEWAL_REASON: &str = "kubeocean.io/renewal-reason";
    /// UID of the worker's CSINode, on its copy.
    pub const PHYSICAL_CSINODE_UID: &str = "kubeocean.io/physical-csinode-uid";
    /// Where a Syncer answers questions about policies, on its leader Lease (PO-608, added).
    pub const POLICY_ENDPOINT: &str = "kubeocean.io/policy-endpoint";
    /// Hex SHA-256 of the rendered object, on what the Manager renders (added).
    pub const RENDERED_HASH: &str = "kubeocean.io/rendered-hash";
    /// `disabled`, set by users on a kubeconfig Secret (MC section 10, added).
    pub const TOKEN_ROTATION: &str = "kubeocean.io/token-rotation";
    /// Resources of the Syncer's container, set by users on a binding (MC section 4, added).
    pub const SYNCER_RESOURCES: &str = "kubeocean.io/syncer-resources";
    /// Resources of the Proxier's container, set by users on a binding (MC section 4, added).
    pub const PROXIER_RESOURCES: &str = "kubeocean.io/proxier-resources";
    /// Generation whose change is let through, set by users on a policy (PO-607, added).
    pub const APPROVE_GENERATION: &str = "kubeocean.io/approve-generation";
    /// Kubernetes' own: ServiceAccount of a token Secret.
    pub const SERVICE_ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
    /// kubectl's own: the container that `logs` and `exec` mean by default.
    pub const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
    /// kubectl's copy of what was applied; never mirrored or copied (it may hold Secret content).
    pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
}

/// Finalizers.
pub mod finalizer {
    /// On a binding, held by the Manager.
    pub const BINDING_MANAGER: &str = "kubeocean.io/clusterbinding-manager";
    /// On a binding, held by the Syncer.
    pub const BINDING_SYNCER: &str = "kubeocean.io/clusterbinding-syncer";
    /// On a ResourceLeasingPolicy, held by the Syncer while a vnode is built from it.
    pub const POLICY: &str = "policy.kubeocean.io/finalizer";
    /// On a vnode, held by the Syncer.
    pub const VNODE: &str = "kubeocean.io/vnode";
    /// Prefix of [`super::object_finalizer`].
    pub const OBJECT_PREFIX: &str = "kubeocean.io/finalizer-";
    /// Unused by the original and never written; removed when seen on own objects.
    pub const LEGACY_UNUSED: [&str; 2] = ["kubeocean.io/virtual-pod", "kubeocean.io/synced-resource"];
}

/// Taint keys of vnodes.
pub mod taint {
    /// Default taint, `NoSchedule`, no value.
    pub const VNODE: &str = "kubeocean.io/vnode";
    /// Replaces [`NODE_UNSCHEDULABLE`] of the worker node.
    pub const PHYSICAL_NODE_UNSCHEDULABLE: &str = "kubeocean.io/physical-node-unschedulable";
    /// Set while leasing is withheld, whatever the reason (PO-543).
    pub const OUT_OF_TIME_WINDOWS: &str = "kubeocean.io/out-of-time-windows";
    /// Set while a vnode is withdrawn.
    pub const VNODE_DELETING: &str = "kubeocean.io/vnode-deleting";
    /// Set while the worker's API cannot be reached (added).
    pub const WORKER_UNREACHABLE: &str = "kubeocean.io/worker-unreachable";
    /// Kubernetes' own taint of cordoned nodes.
    pub const NODE_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
}

/// Condition types on vnodes and vpods (API-808, API-809).
pub mod condition_type {
    /// On a vnode: what the governing policy decided.
    pub const LEASE: &str = "kubeocean.io/Lease";
    /// On a vnode: whether the worker's API answers.
    pub const WORKER_REACHABLE: &str = "kubeocean.io/WorkerReachable";
    /// On a vnode: whether a Proxier serves it.
    pub const PROXIER_READY: &str = "kubeocean.io/ProxierReady";
    /// On a vnode: withdrawal in progress.
    pub const DRAINING: &str = "kubeocean.io/Draining";
    /// On a vpod: why no ppod exists yet.
    pub const WORKER_POD_CREATED: &str = "WorkerPodCreated";
    /// On a vpod: whether the placement policies admit it.
    pub const POLICY_ADMITTED: &str = "PolicyAdmitted";
}

/// Leader Lease of the Managers (API section 6).
pub const MANAGER_LEASE: &str = "kubeocean-manager-leader";

/// Server-side apply and patch field managers (API-811).
pub mod manager {
    /// Binding and policy status, vnode metadata and status.
    pub const SYNCER: &str = "kubeocean-syncer";
    /// The vnode finalizer, so that dropping it is one write.
    pub const SYNCER_FINALIZER: &str = "kubeocean-syncer-finalizer";
    /// Node Leases.
    pub const SYNCER_LEASE: &str = "kubeocean-syncer-lease";
    /// Binding status and rendered objects.
    pub const MANAGER: &str = "kubeocean-manager";
}

/// Namespaces with a meaning of their own.
pub mod namespace {
    /// Components of the computing cluster, unless configured otherwise.
    pub const SYSTEM: &str = "kubeocean-system";
    /// Host port reservations.
    pub const FAKE: &str = "kubeocean-fake";
    /// Node Leases.
    pub const NODE_LEASE: &str = "kube-node-lease";
    /// Policy modules in the worker cluster.
    pub const POLICIES: &str = "kubeocean-worker-system";
    /// Namespaces whose pods are never mapped (TD-404), beside the configured system namespace.
    pub const NEVER_MAPPED: [&str; 5] =
        ["kube-system", "kube-public", "kube-node-lease", "kubeocean-system", "kubeocean-fake"];
}

/// PriorityClass of ppods when the binding names none (TD-509).
pub const DEFAULT_PRIORITY_CLASS: &str = "kubeocean-default";
/// Value of [`DEFAULT_PRIORITY_CLASS`].
pub const DEFAULT_PRIORITY: i32 = -10_000;

/// Label `kubeocean.io/synced-by-<clusterID>` on vobjs and pobjs.
pub fn synced_by(cluster_id: &str) -> String {
    format!("{}{cluster_id}", label::SYNCED_BY_PREFIX)
}

/// Finalizer `kubeocean.io/finalizer-<clusterID>` on vobjs.
pub fn object_finalizer(cluster_id: &str) -> String {
    format!("{}{cluster_id}", finalizer::OBJECT_PREFIX)
}

/// Annotation `kubeocean.io/deleting-<clusterID>` on vobjs while the binding is deleted; its value is the binding name.
pub fn deleting(cluster_id: &str) -> String {
    format!("kubeocean.io/deleting-{cluster_id}")
}

/// Field manager `kubeocean-syncer-<clusterID>` for worker node labels and vobj metadata.
pub fn syncer_manager(cluster_id: &str) -> String {
    format!("kubeocean-syncer-{cluster_id}")
}

/// Whether a label or annotation key is Kubeocean's own bookkeeping, which never travels between the clusters
/// (TD section 8 *Do better*, BU section 6). Keys meant for users, such as `kubeocean.io/role`, are not internal.
pub fn is_internal(key: &str) -> bool {
    const EXACT: [&str; 26] = [
        "managed-by",
        "cluster-binding",
        "last-sync-time",
        "expected-metadata",
        "expected-spec",
        "proxier_port",
        "policy-applied",
        "policies-applied",
        "policy-details",
        "prometheus-url",
        "deletion-taint-time",
        "service-account-token",
        "service-account",
        "hostport-fake-pod",
        "used-by-pv",
        "computing-cluster-uid",
        "token-expiration",
        "policy-decision",
        "policy-endpoint",
        "reclaim",
        "reclaim-since",
        "rendered-hash",
        "component",
        "cluster-id",
        "node-name",
        "renewal-reason",
    ];
    const FAMILIES: [&str; 6] =
        ["physical-", "virtual-", "workload-", "synced-by-", "deleting-", "certificate-"];
    key.strip_prefix(PREFIX)
        .is_some_and(|rest| EXACT.contains(&rest) || FAMILIES.iter().any(|family| rest.starts_with(family)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// API section 5, in its order. Objects of the original carry these.
    #[test]
    fn keys_are_the_originals() {
        let labels = [
            (label::MANAGED_BY, "managed-by"),
            (label::CLUSTER_BINDING, "cluster-binding"),
            (label::PHYSICAL_CLUSTER_ID, "physical-cluster-id"),
            (label::PHYSICAL_NODE_NAME, "physical-node-name"),
            (label::PHYSICAL_NODE_UID, "physical-node-uid"),
            (label::PHYSICAL_NODE_INNER_IP, "physical-node-innerip"),
            (label::PROXIER_PORT, "proxier_port"),
            (label::POLICY_APPLIED, "policy-applied"),
            (label::VIRTUAL_NAMESPACE, "virtual-namespace"),
            (label::WORKLOAD_TYPE, "workload-type"),
            (label::WORKLOAD_NAME, "workload-name"),
            (label::SERVICE_ACCOUNT_TOKEN, "service-account-token"),
            (label::HOSTPORT_FAKE_POD, "hostport-fake-pod"),
            (label::USED_BY_PV, "used-by-pv"),
            (label::VIRTUAL_LOGCONFIG, "virtual-logconfig"),
            (label::COMPONENT, "component"),
            (label::CLUSTER_ID, "cluster-id"),
            (label::NODE_NAME, "node-name"),
        ];
        let annotations = [
            (annotation::LAST_SYNC_TIME, "last-sync-time"),
            (annotation::EXPECTED_METADATA, "expected-metadata"),
            (annotation::DELETION_TAINT_TIME, "deletion-taint-time"),
            (annotation::PHYSICAL_CSINODE_UID, "physical-csinode-uid"),
            (annotation::RUNNING_DAEMONSET, "running-daemonset"),
            (annotation::LOGS_PROXY_ENABLED, "logs-proxy-enabled"),
            (annotation::LOGS_PROXY_SECRET_NAME, "logs-proxy-secret-name"),
            (annotation::LOGS_PROXY_SECRET_NAMESPACE, "logs-proxy-secret-namespace"),
            (annotation::CERTIFICATE_RENEWED, "certificate-renewed"),
            (annotation::RENEWAL_REASON, "renewal-reason"),
            (annotation::POLICY_ENDPOINT, "policy-endpoint"),
            (annotation::RENDERED_HASH, "rendered-hash"),
            (annotation::FORCE_DETACH, "force-detach"),
            (annotation::WORKER_CLUSTER_UID, "worker-cluster-uid"),
            (annotation::TOKEN_ROTATION, "token-rotation"),
            (annotation::SYNCER_RESOURCES, "syncer-resources"),
            (annotation::PROXIER_RESOURCES, "proxier-resources"),
            (annotation::APPROVE_GENERATION, "approve-generation"),
        ];
        for (key, rest) in labels.into_iter().chain(annotations) {
            assert_eq!(key, format!("{PREFIX}{rest}"));
        }
        assert_eq!(
            [
                label::APP_NAME,
                label::APP_INSTANCE,
                label::APP_COMPONENT,
                label::APP_PART_OF,
                label::APP_MANAGED_BY
            ],
            ["name", "instance", "component", "part-of", "managed-by"]
                .map(|key| format!("app.kubernetes.io/{key}"))
        );
        assert_eq!(annotation::SERVICE_ACCOUNT_NAME, "kubernetes.io/service-account.name");
        assert_eq!(annotation::DEFAULT_CONTAINER, "kubectl.kubernetes.io/default-container");
    }

    #[test]
    fn internal_keys_do_not_include_what_users_schedule_on() {
        for key in
            ["kubeocean.io/role", "kubeocean.io/node-type", "kubeocean.io/running-daemonset", "app", "type"]
        {
            assert!(!is_internal(key), "{key} belongs to users");
        }
        for key in [
            annotation::PHYSICAL_POD_UID,
            annotation::VIRTUAL_POD_NAME,
            annotation::EXPECTED_METADATA,
            annotation::EXPECTED_SPEC,
            label::MANAGED_BY,
            label::WORKLOAD_NAME,
            &synced_by("cls-a"),
            &deleting("cls-a"),
        ] {
            assert!(is_internal(key), "{key} is bookkeeping");
        }
    }
}
