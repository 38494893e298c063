//! Carries out plans: one request per action, each with the binding's UID as precondition.

use std::sync::Arc;
use std::time::Instant;

use kube::Client;
use kubeocean_api::{
    ClusterBindingStatus, GROUP, VERSION,
    keys::{
        finalizer::{BINDING_MANAGER, BINDING_SYNCER},
        manager,
    },
};
use kubeocean_runtime::{
    binding::Binding,
    clock::Clock,
    error::ApplyError,
    events::{Event, EventRecorder, Regarding, Severity},
    queue::Outcome,
    request::{Force, apply_patch, get_json, merge_patch, paths},
};
use serde_json::{Value, json};

use super::{
    action::{Action, News, Plan},
    deletion::wants_detach,
    index::Index,
    plan::{plan_absent, plan_binding},
};
use crate::{
    components::Components,
    detach::{detach, may_detach},
    metrics::ManagerMetrics,
    worker::attend::Attendants,
};

/// What reconciling needs.
pub struct Reconciler {
    /// Client of the computing cluster.
    pub computing: Client,
    /// All bindings.
    pub index: Arc<Index>,
    /// Who asks the workers.
    pub attendants: Arc<Attendants>,
    /// Who runs components.
    pub components: Arc<dyn Components>,
    /// Events on bindings.
    pub events: EventRecorder,
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Metrics.
    pub metrics: Arc<ManagerMetrics>,
}

/// Whether a finalizer is to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finalizer {
    Present,
    Absent,
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Whether the rest of a plan is carried out although an action failed: a status that cannot be written, whatever is in
/// it, must not hold up the end of a binding. An outdated one says that the rest is outdated, too.
fn goes_on(binding: &Binding, says: bool, error: &ApplyError) -> bool {
    binding.deleting && says && !matches!(error, ApplyError::Conflict { .. })
}

impl Reconciler {
    /// Brings one binding to what its snapshot asks for.
    pub async fn reconcile(&self, name: &str) -> Outcome {
        let started = Instant::now();
        let running = self.components.look(name);
        let snapshot = self.index.snapshot(name, running.clone(), self.clock.now());
        let Some(mut snapshot) = snapshot else {
            for action in plan_absent(&running) {
                // There is no binding to write to, so nothing of this can fail.
                let _ = self.perform(&Binding { name: name.to_owned(), ..Binding::default() }, action).await;
            }
            self.metrics.forget(name);
            return Outcome::Done;
        };
        let mut result = Ok(());
        if wants_detach(&snapshot) {
            match may_detach(&self.computing).await {
                Ok(permitted) => snapshot.detach_forbidden = !permitted,
                Err(error) => result = Err(error),
            }
        }
        let plan = if result.is_ok() { plan_binding(&snapshot) } else { Plan::default() };
        let binding = &snapshot.managed.binding;
        for action in plan.actions {
            let says = matches!(action, Action::WriteStatus(_));
            let Err(error) = self.perform(binding, action).await else { continue };
            let on = goes_on(binding, says, &error);
            if on {
                tracing::warn!(binding = name, error = error.chain(), "status not written, going on");
            }
            result = Err(error);
            if !on {
                break;
            }
        }
        self.metrics.synced(name, started.elapsed(), result.is_err());
        match result {
            Ok(()) => plan.again.map_or(Outcome::Done, Outcome::After),
            Err(error) => {
                tracing::warn!(binding = name, error = error.chain(), "binding not reconciled, retrying");
                error.outcome()
            }
        }
    }

    async fn perform(&self, binding: &Binding, action: Action) -> Result<(), ApplyError> {
        match action {
            Action::Attend(target) => self.attendants.attend(&target),
            Action::Leave => self.attendants.leave(&binding.name),
            Action::AddFinalizer => self.finalizer(binding, BINDING_MANAGER, Finalizer::Present).await?,
            Action::RemoveFinalizer => {
                self.finalizer(binding, BINDING_MANAGER, Finalizer::Absent).await?;
                tracing::info!(binding = binding.name, "binding released");
            }
            Action::WriteStatus(status) => self.write_status(binding, &status).await?,
            Action::Start(identity) => {
                tracing::info!(
                    binding = binding.name,
                    cluster_id = identity.cluster_id,
                    "starting components"
                );
                self.components.start(&identity);
            }
            Action::Stop(component) => {
                tracing::info!(binding = binding.name, %component, "stopping component");
                self.components.stop(&binding.name, component).await;
            }
            Action::Detach(reach) => {
                tracing::warn!(binding = binding.name, ?reach, "detaching a worker by force");
                let left = detach(&self.computing, binding, reach).await?;
                self.finalizer(binding, BINDING_SYNCER, Finalizer::Absent).await?;
                let (severity, reason) = (Severity::Warning, "ForcedDetach");
                self.tell(binding, News { severity, reason, message: left.to_string() });
            }
            Action::Tell(news) => self.tell(binding, news),
        }
        Ok(())
    }

    /// Server-side apply: conditions and fields of others stay (API-806).
    async fn write_status(&self, binding: &Binding, status: &ClusterBindingStatus) -> Result<(), ApplyError> {
        let object = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "ClusterBinding",
            "metadata": {"name": binding.name, "uid": binding.uid},
            "status": status,
        });
        let path = paths::binding_status(&binding.name);
        match apply_patch(&self.computing, &path, manager::MANAGER, Force::Yes, &object).await {
            Ok(_) => {
                tracing::info!(binding = binding.name, phase = status.phase, "status written");
                Ok(())
            }
            // Gone meanwhile: the watch says so.
            Err(ApplyError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Changes a finalizer on a fresh copy of the binding, so that others stay.
    async fn finalizer(&self, binding: &Binding, ours: &str, wanted: Finalizer) -> Result<(), ApplyError> {
        let path = paths::binding(&binding.name);
        let Some(object) = get_json(&self.computing, &path).await? else { return Ok(()) };
        if object.pointer("/metadata/uid").and_then(Value::as_str) != Some(binding.uid.as_str()) {
            return Ok(());
        }
        let mut finalizers: Vec<Value> =
            object.pointer("/metadata/finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
        let present = finalizers.iter().any(|one| one == ours);
        match wanted {
            Finalizer::Present if !present => finalizers.push(ours.into()),
            Finalizer::Absent if present => finalizers.retain(|one| one != ours),
            Finalizer::Present | Finalizer::Absent => return Ok(()),
        }
        let patch = json!({"metadata": {
            "uid": binding.uid,
            "resourceVersion": object.pointer("/metadata/resourceVersion"),
            "finalizers": finalizers,
        }});
        let path = format!("{path}?fieldManager={}", manager::MANAGER);
        merge_patch(&self.computing, &path, &patch).await.map(drop)
    }

    fn tell(&self, binding: &Binding, news: News) {
        self.events.publish(Event {
            regarding: Regarding::binding(&binding.name, &binding.uid),
            severity: news.severity,
            reason: news.reason,
            message: news.message,
        });
    }
}

#[cfg(test)]
mod tests {
    use kubeocean_runtime::error::Verb;

    use super::*;

    #[test]
    fn only_a_status_may_fail_and_only_of_a_binding_that_is_deleted() {
        let of = |deleting| Binding { deleting, ..Binding::default() };
        let object = || "clusterbindings/b/status".to_owned();
        let refused = ApplyError::Rejected {
            verb: Verb::Patch,
            object: object(),
            fields: Vec::new(),
            message: "etcd: request is too large".to_owned(),
        };
        let outdated = ApplyError::Conflict { verb: Verb::Patch, object: object() };
        assert!(goes_on(&of(true), true, &refused));
        assert!(!goes_on(&of(false), true, &refused), "of another one the next step may depend on it");
        assert!(!goes_on(&of(true), false, &refused), "a step");
        assert!(!goes_on(&of(true), true, &outdated), "another binding has the name");
    }
}
