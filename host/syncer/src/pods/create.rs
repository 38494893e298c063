//! Creates one ppod: what it refers to, its tokens, then the pod itself (TD-505), and adds debug containers later.
//!
//! Every step is idempotent and its order is safe: dependencies without a ppod are collected, a ppod without its
//! dependencies would not start. Part of the apply stage.

use kubeocean_api::name::ObjectKey;
use serde_json::{Value, json};

use super::{
    action::{Refusal, RefusalReason},
    apply::{PodSync, managed_ppod, read_pod},
    metadata::Expected,
    ownership::Owned,
    plan::NAME_TAKEN,
    references::{debug_references, ephemeral_claims},
    service_environment::{DnsNeed, MissingService, ServiceEnvironment, dns_need},
    snapshot::{PodScope, ppod_key},
    tokens::TokenError,
    transform::{Reject, Scheduling, TransformContext, to_worker_pod, worker_debug_containers},
    view::{Ppod, Vpod},
};
use crate::objects::{EnsureError, is_of_worker};
use kubeocean_runtime::{
    error::ApplyError,
    request::{create_as, get_json, merge_patch, paths},
};

/// Why there is no new ppod.
#[derive(Debug)]
pub(super) enum CreateError {
    /// There is a pod of that name with our label: plan again.
    Occupied(Box<Ppod>),
    /// The pod's owner must do something, or wait.
    Refused(Refusal),
    /// The worker has no PriorityClass of the name that the binding gives.
    NoPriorityClass,
    /// A request failed.
    Apply(ApplyError),
}

impl From<ApplyError> for CreateError {
    fn from(error: ApplyError) -> Self {
        Self::Apply(error)
    }
}

impl From<EnsureError> for CreateError {
    fn from(error: EnsureError) -> Self {
        match error {
            EnsureError::Apply(error) => match error.missing_right() {
                Some(right) => Self::Refused(not_permitted(&right, &error)),
                None => Self::of_request("a copy of what the pod refers to", error),
            },
            EnsureError::Foreign { ref owner, .. } => {
                let owner = owner.clone();
                Self::Refused(Refusal::new(RefusalReason::NameConflict, error).particulars(owner))
            }
            EnsureError::NodeFiles { .. } => Self::Refused(Refusal::new(RefusalReason::Rejected, error)),
            error @ (EnsureError::Missing { .. }
            | EnsureError::Unbound { .. }
            | EnsureError::Replacing { .. }) => {
                Self::Refused(Refusal::new(RefusalReason::DependencyMissing, error))
            }
        }
    }
}

impl From<TokenError> for CreateError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Apply(error) => Self::of_request("the Secret of the pod's token", error),
            TokenError::Foreign { ref secret } => {
                let secret = secret.clone();
                Self::Refused(Refusal::new(RefusalReason::NameConflict, error).particulars(secret))
            }
            error @ (TokenError::NoAccount { .. } | TokenError::NoToken { .. }) => {
                Self::Refused(Refusal::new(RefusalReason::DependencyMissing, error))
            }
        }
    }
}

impl CreateError {
    /// What a failed request means: one that the API server will refuse again is told to the pod's owner.
    fn of_request(what: &str, error: ApplyError) -> Self {
        match error {
            ApplyError::Rejected { .. } | ApplyError::Forbidden { .. } => {
                Self::Refused(rejection(what, &error))
            }
            error => Self::Apply(error),
        }
    }
}

/// What the pod refers to needs a right that Kubeocean does not have.
fn not_permitted(right: &str, error: &ApplyError) -> Refusal {
    let (cluster, chart) = if is_of_worker(error) {
        ("worker cluster", "kubeocean-worker")
    } else {
        ("computing cluster", "kubeocean")
    };
    let message = format!(
        "what the pod refers to cannot be copied: Kubeocean may not {right} in the {cluster}; whoever runs it must grant \
         that, as the chart {chart} does, or its admission refused this one"
    );
    Refusal::new(RefusalReason::DependencyMissing, message).particulars(error.chain())
}

/// A refused request: reason and what would help, nothing that only those who run the worker cluster may see.
pub(super) fn rejection(what: &str, error: &ApplyError) -> Refusal {
    let advice = match error {
        ApplyError::Rejected { fields, .. } if !fields.is_empty() => {
            "change the pod, or ask whoever runs the worker cluster"
        }
        _ => "ask whoever runs the worker cluster; the Syncer's log has the words of the API server",
    };
    let message = format!("{what} was not accepted: {}; {advice}", error.reason());
    Refusal::new(RefusalReason::Rejected, message).particulars(error.chain())
}

impl From<MissingService> for CreateError {
    fn from(error: MissingService) -> Self {
        Self::Refused(Refusal::new(RefusalReason::DependencyMissing, error))
    }
}

impl From<Reject> for CreateError {
    fn from(error: Reject) -> Self {
        Self::Refused(Refusal::new(RefusalReason::NotSupported, error))
    }
}

impl PodSync {
    /// Creates the ppod of `vpod`, whose whole JSON is `whole`.
    pub(super) async fn create_ppod(
        &self,
        scope: &PodScope,
        vpod: &Vpod,
        whole: &Value,
        worker_node: &str,
    ) -> Result<Ppod, CreateError> {
        let services = self.objects.services.environment(&vpod.key, dns_need(&whole["spec"])).await?;
        let workload = self.workloads.of(&self.clusters.computing, vpod).await;
        let expected = Expected::of(&vpod.labels, &vpod.annotations).encode();
        let (classes, worker) = (&self.priority_classes, &self.clusters.worker);
        let class = classes.name(worker, &self.features, &scope.priority_class_name).await?;
        let context = TransformContext {
            binding: &scope.stamp.binding,
            computing_uid: &scope.stamp.computing_cluster_uid,
            mount_namespace: &scope.mount_namespace,
            worker_node,
            scheduling: if scope.direct_scheduling { Scheduling::Direct } else { Scheduling::ByAffinity },
            priority_class: class.ok_or(CreateError::NoPriorityClass)?,
            workload_type: &workload.kind,
            workload_name: &workload.name,
            expected_metadata: expected.as_deref(),
            services: &services,
        };
        let ppod = to_worker_pod(whole, &context)?;
        self.check_ephemeral_claims(vpod, whole).await?;
        self.objects.ensure(&self.clusters, &vpod.spec.references, &vpod.key).await?;
        self.objects.tokens.ensure(&self.clusters, whole).await?;
        match create_as(&self.clusters.worker, &paths::pods(&scope.mount_namespace), &ppod).await {
            Ok(created) => Ok(Ppod::parse(created)),
            Err(ApplyError::AlreadyExists { object }) => {
                Err(self.occupied(&ppod_key(&scope.mount_namespace, &vpod.key), object).await)
            }
            Err(error @ (ApplyError::Rejected { .. } | ApplyError::Forbidden { .. })) => {
                if classes.explains_refusal(worker, &scope.priority_class_name).await? {
                    return Err(CreateError::NoPriorityClass);
                }
                Err(CreateError::Refused(rejection("the pod", &error)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A claim of the name that an ephemeral volume's would have may be another pod's, or nobody's: a kubelet does not
    /// mount it.
    async fn check_ephemeral_claims(&self, vpod: &Vpod, whole: &Value) -> Result<(), CreateError> {
        for name in ephemeral_claims(&vpod.key.name, &whole["spec"]) {
            let path = paths::core("persistentvolumeclaims", &vpod.key.namespace, &name);
            let Some(claim) = get_json(&self.clusters.computing, &path).await? else { continue };
            let owners = claim.pointer("/metadata/ownerReferences").and_then(Value::as_array);
            let ours = |owner: &Value| owner["controller"] == true && owner["uid"] == *vpod.uid;
            if !owners.into_iter().flatten().any(ours) {
                let message =
                    format!("PersistentVolumeClaim {name:?} was not made for this pod; it must be removed");
                return Err(CreateError::Refused(Refusal::new(RefusalReason::DependencyMissing, message)));
            }
        }
        Ok(())
    }

    /// Somebody has the name: we ourselves before a crash, or a pod the watch does not show.
    async fn occupied(&self, place: &ObjectKey, object: String) -> CreateError {
        match read_pod(&self.clusters.worker, place).await {
            Ok(Some(found)) => match managed_ppod(&found) {
                Some(ppod) => CreateError::Occupied(Box::new(ppod)),
                None => CreateError::Refused(
                    Refusal::new(RefusalReason::NameConflict, NAME_TAKEN)
                        .particulars(format!("pod {place} is not managed by Kubeocean")),
                ),
            },
            Ok(None) => CreateError::Apply(ApplyError::AlreadyExists { object }),
            Err(error) => error.into(),
        }
    }

    /// The debug containers of a vpod that its ppod lacks, and what they refer to.
    pub(super) async fn debug_containers(
        &self,
        vpod: &Vpod,
        whole: &Value,
        names: &[Box<str>],
    ) -> Result<Vec<Value>, CreateError> {
        // Only what they need themselves: the pod runs, whatever became of what it was started with.
        let services: ServiceEnvironment = self.objects.services.environment(&vpod.key, DnsNeed::Own).await?;
        let needed = debug_references(&whole["spec"], names);
        self.objects.ensure(&self.clusters, &needed, &vpod.key).await?;
        let containers = worker_debug_containers(whole, &services)?;
        let wanted = |container: &Value| names.iter().any(|name| container["name"] == **name);
        Ok(containers.into_iter().filter(wanted).collect())
    }

    /// Appends containers to a ppod's debug containers (TD-803).
    pub(super) async fn append_debug_containers(
        &self,
        ppod: &Owned,
        containers: Vec<Value>,
    ) -> Result<Option<Ppod>, ApplyError> {
        let key = ppod.key();
        let live = read_pod(&self.clusters.worker, key).await?;
        let Some(live) = live.filter(|live| live["metadata"]["uid"] == *ppod.uid()) else { return Ok(None) };
        let mut all = live["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
        // An answer that was lost left them there already.
        let missing = |new: &Value| all.iter().all(|present| present["name"] != new["name"]);
        let containers: Vec<Value> = containers.into_iter().filter(missing).collect();
        all.extend(containers);
        let patch = json!({
            "metadata": {"uid": ppod.uid(), "resourceVersion": live["metadata"]["resourceVersion"]},
            "spec": {"ephemeralContainers": all},
        });
        let subresource = paths::pod_ephemeral_containers(&key.namespace, &key.name);
        let answer = merge_patch(&self.clusters.worker, &subresource, &patch).await?;
        Ok(managed_ppod(&answer))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use kubeocean_api::name::phys_name;
    use kubeocean_runtime::error::Verb;

    use super::*;

    const PATH: &str = "/api/v1/namespaces/worker-a/pods";
    const WORDS: &str = "admission webhook at 10.0.0.1 denied it for tenant-b";

    fn rejected(fields: &[&str]) -> ApplyError {
        let fields = fields.iter().map(|field| (*field).to_owned()).collect();
        ApplyError::Rejected { verb: Verb::Create, object: PATH.into(), fields, message: WORDS.into() }
    }

    #[rstest]
    #[case::invalid(rejected(&["spec.containers[0].image"]), "spec.containers[0].image")]
    #[case::invalid_without_a_field(rejected(&[]), "ask whoever runs the worker cluster")]
    #[case::not_permitted(
        ApplyError::Forbidden { verb: Verb::Create, object: PATH.into(), message: WORDS.into() }, "permit"
    )]
    fn a_rejection_says_what_helps_and_nothing_of_the_worker(#[case] error: ApplyError, #[case] said: &str) {
        let refusal = rejection("the pod", &error);
        assert_eq!(refusal.reason, RefusalReason::Rejected);
        assert!(refusal.message.contains(said), "{}", refusal.message);
        assert!(error.chain().contains("worker-a"), "the log has it");
        for secret in ["worker-a", "10.0.0.1", "tenant-b"] {
            assert!(!refusal.message.contains(secret), "{}", refusal.message);
        }
    }

    #[rstest]
    #[case::of_a_copy(Verb::Get, &format!("/{}", phys_name("pv-1", "")), "get persistentvolumes in the worker cluster")]
    #[case::of_a_new_copy(Verb::Create, "", "create persistentvolumes in the worker cluster")]
    #[case::of_the_original(
        Verb::Patch,
        "/pv-1?fieldManager=x",
        "patch persistentvolumes in the computing cluster"
    )]
    fn a_missing_right_is_named_with_what_helps(#[case] verb: Verb, #[case] name: &str, #[case] right: &str) {
        let object = format!("/api/v1/persistentvolumes{name}");
        let error = ApplyError::Forbidden { verb, object, message: WORDS.into() };
        let CreateError::Refused(refusal) = EnsureError::from(error).into() else { panic!("it is told") };
        assert!(refusal.message.contains(right) && !refusal.message.contains("  "), "{}", refusal.message);
        assert!(!refusal.message.contains("pv-1") && !refusal.message.contains("10.0.0.1"));
    }

    #[test]
    fn somebody_elses_object_is_not_described() {
        let owner = "tenant-b/settings".to_owned();
        let kind = crate::objects::ObjectKind::ConfigMap;
        let error = EnsureError::Foreign { kind, name: "settings".to_owned(), owner };
        let CreateError::Refused(refusal) = error.into() else { panic!("it is the owner's to know") };
        assert_eq!(refusal.reason, RefusalReason::NameConflict);
        assert!(!refusal.message.contains("tenant-b"), "{}", refusal.message);
    }
}
