//! What the conditions of a binding say, and its phase (API-106, API-802, API-803). Pure.

use jiff::{SignedDuration, Timestamp};
use kubeocean_api::{ClusterBindingStatus, Condition, condition::binding_type, condition::phase, validate};
use kubeocean_runtime::clock::{parse_rfc3339, rfc3339};

use super::snapshot::Snapshot;
use crate::{
    components::{Component, State},
    worker::report::{Connection, Credentials, Report},
};

/// After this long on its way to `Ready` a binding counts as failed.
pub const PATIENCE: SignedDuration = SignedDuration::from_mins(5);

/// Status of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// True.
    True,
    /// False.
    False,
}

/// What one condition is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Type.
    pub type_: &'static str,
    /// Status.
    pub is: Is,
    /// Reason.
    pub reason: String,
    /// Message.
    pub message: String,
}

impl Verdict {
    /// A verdict.
    pub fn new(type_: &'static str, is: Is, reason: &str, message: impl Into<String>) -> Self {
        Self { type_, is, reason: reason.to_owned(), message: message.into() }
    }

    fn holds(&self) -> bool {
        self.is == Is::True
    }
}

/// Everything that is said of a binding that is not being deleted; of one that is, the same and `Terminating`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdicts {
    /// Whether the spec can be served. Nothing is started for one that cannot.
    pub spec: Verdict,
    /// `None` until the worker has been asked.
    pub credentials: Option<Verdict>,
    /// `None` until the worker has been asked.
    pub connected: Option<Verdict>,
    /// `None` until it is started.
    pub syncer: Option<Verdict>,
    /// `None` until it is started.
    pub proxier: Option<Verdict>,
}

impl Verdicts {
    /// What the snapshot says.
    pub fn of(snapshot: &Snapshot) -> Self {
        let (credentials, connected) = worker(snapshot);
        let running = &snapshot.running;
        Self {
            spec: spec(snapshot),
            credentials,
            connected,
            syncer: component(Component::Syncer, &running.syncer),
            proxier: component(Component::Proxier, &running.proxier),
        }
    }

    /// Whether the worker can be served: its credentials hold and it answers.
    pub fn worker_usable(&self) -> bool {
        [&self.credentials, &self.connected]
            .iter()
            .all(|verdict| verdict.as_ref().is_some_and(Verdict::holds))
    }

    /// The condition `Ready`: True iff all others are; else it names the first, in this order, that is not (API-803).
    pub fn ready(&self) -> Verdict {
        let of = |is, reason: &str, message: &str| Verdict::new(binding_type::READY, is, reason, message);
        let initializing = || of(Is::False, "Initializing", "ClusterBinding is being initialized");
        if !self.spec.holds() {
            return of(Is::False, "ValidationFailed", &self.spec.message);
        }
        for verdict in [&self.credentials, &self.connected] {
            match verdict {
                None => return initializing(),
                Some(verdict) if !verdict.holds() => {
                    return of(Is::False, "ConnectivityFailed", &verdict.message);
                }
                Some(_) => {}
            }
        }
        for (verdict, failed) in [(&self.proxier, "ProxierFailed"), (&self.syncer, "SyncerFailed")] {
            match verdict {
                None => return of(Is::False, "ComponentsStarting", "the components are being started"),
                Some(verdict) if verdict.holds() => {}
                Some(verdict) if verdict.reason == "Progressing" => {
                    return of(Is::False, "ComponentsStarting", &verdict.message);
                }
                Some(verdict) => return of(Is::False, failed, &verdict.message),
            }
        }
        of(Is::True, "ValidationPassed", "ClusterBinding validation and connectivity check passed")
    }

    /// The phase, and when it changes by time alone (API-803). `since` is when `Ready` became False.
    pub fn phase(&self, since: Timestamp, now: Timestamp) -> (&'static str, Option<SignedDuration>) {
        if self.ready().holds() {
            return (phase::READY, None);
        }
        let fails = |verdict: &Option<Verdict>| verdict.as_ref().is_some_and(|verdict| !verdict.holds());
        let broken = |verdict: &Option<Verdict>| {
            verdict.as_ref().is_some_and(|one| matches!(one.reason.as_str(), "CreateFailed" | "NameConflict"))
        };
        let failed = !self.spec.holds()
            || fails(&self.credentials)
            || fails(&self.connected)
            || broken(&self.syncer)
            || broken(&self.proxier);
        let left = PATIENCE - now.duration_since(since);
        if failed || left <= SignedDuration::ZERO {
            (phase::FAILED, None)
        } else {
            (phase::PENDING, Some(left))
        }
    }

    /// All conditions but `Ready` and those that follow from the phase.
    pub fn parts(&self) -> impl Iterator<Item = &Verdict> {
        let optional = [&self.credentials, &self.connected, &self.syncer, &self.proxier];
        std::iter::once(&self.spec).chain(optional.into_iter().flatten())
    }
}

fn spec(snapshot: &Snapshot) -> Verdict {
    let spec = &snapshot.managed.binding.spec;
    let name = &snapshot.managed.binding.name;
    let wrong = |reason, message| Verdict::new(binding_type::SPEC_VALID, Is::False, reason, message);
    if spec.cluster_id.is_empty() {
        return wrong("FieldMissing", "clusterID is required".to_owned());
    }
    let serves = snapshot.running.identity.as_ref().filter(|one| one.uid == snapshot.managed.binding.uid);
    if let Some(serves) = serves.filter(|one| one.cluster_id != spec.cluster_id) {
        let (old, new) = (&serves.cluster_id, &spec.cluster_id);
        let message =
            format!("clusterID cannot be changed for ClusterBinding {name}: existing={old}, new={new}");
        return wrong("ClusterIDChanged", message);
    }
    if let Some(owner) = &snapshot.owner {
        let id = &spec.cluster_id;
        let message =
            format!("clusterID {id} is already used by ClusterBinding {owner}, cannot be used by {name}");
        return wrong("ClusterIDConflict", message);
    }
    // What was served already goes on as it is.
    let problem = if snapshot.managed.binding.has_finalizer {
        validate::binding(spec)
    } else {
        validate::new_binding(name, spec)
    };
    if let Err(problem) = problem {
        return wrong("FieldMissing", problem);
    }
    if let Some(serves) = serves.filter(|one| one.mount_namespace != spec.mount_namespace) {
        let (old, new) = (&serves.mount_namespace, &spec.mount_namespace);
        let message =
            format!("mountNamespace cannot be changed for ClusterBinding {name}: existing={old}, new={new}");
        return wrong("MountNamespaceChanged", message);
    }
    let note = if spec.service_namespaces.is_empty() { "" } else { "; serviceNamespaces has no effect" };
    Verdict::new(binding_type::SPEC_VALID, Is::True, "Valid", format!("ClusterBinding spec is valid{note}"))
}

/// `CredentialsValid` and `Connected`. What was said before stays until the worker has been asked, and `Connected` also
/// until it was silent often enough (MC section 2).
fn worker(snapshot: &Snapshot) -> (Option<Verdict>, Option<Verdict>) {
    let stored = |type_: &'static str| {
        let condition = snapshot.managed.condition(type_)?;
        let is = if condition.status == "True" { Is::True } else { Is::False };
        Some(Verdict::new(type_, is, &condition.reason, condition.message.clone()))
    };
    let Some(report) = &snapshot.report else {
        return (stored(binding_type::CREDENTIALS_VALID), stored(binding_type::CONNECTED));
    };
    let credentials = match &report.credentials {
        Credentials::Unproven => {
            stored(binding_type::CREDENTIALS_VALID).filter(Verdict::holds).or_else(|| {
                let text = "the kubeconfig is well-formed; the worker has not accepted it yet";
                Some(Verdict::new(binding_type::CREDENTIALS_VALID, Is::True, "KubeconfigValid", text))
            })
        }
        Credentials::Valid { reason, note } => {
            let text = "the worker accepts the kubeconfig";
            let text = if note.is_empty() { text.to_owned() } else { format!("{text}; {note}") };
            Some(Verdict::new(binding_type::CREDENTIALS_VALID, Is::True, reason, text))
        }
        Credentials::Invalid { reason, message } => {
            Some(Verdict::new(binding_type::CREDENTIALS_VALID, Is::False, reason, message.clone()))
        }
    };
    (credentials, connected(report, stored(binding_type::CONNECTED)))
}

fn connected(report: &Report, stored: Option<Verdict>) -> Option<Verdict> {
    let is =
        |is, reason: &str, message: &str| Some(Verdict::new(binding_type::CONNECTED, is, reason, message));
    match &report.connection {
        Some(Connection::Up) => {
            is(Is::True, "ConnectivityPassed", "Successfully connected to target cluster")
        }
        Some(Connection::Faltering(_)) if stored.as_ref().is_some_and(Verdict::holds) => stored,
        Some(Connection::Faltering(silence) | Connection::Down(silence)) => {
            is(Is::False, silence.reason, &silence.message)
        }
        None => match &report.credentials {
            Credentials::Invalid { message, .. } => is(Is::False, "ConnectivityFailed", message),
            Credentials::Unproven | Credentials::Valid { .. } => stored,
        },
    }
}

fn component(which: Component, state: &State) -> Option<Verdict> {
    let (type_, name) = match which {
        Component::Syncer => (binding_type::SYNCER_READY, "Syncer"),
        Component::Proxier => (binding_type::PROXIER_READY, "Proxier"),
    };
    match state {
        State::Stopped => None,
        State::Progressing(why) => {
            Some(Verdict::new(type_, Is::False, "Progressing", format!("the {name} is starting: {why}")))
        }
        State::Available => Some(Verdict::new(type_, Is::True, "Available", format!("the {name} is ready"))),
        State::CreateFailed(why) => Some(Verdict::new(type_, Is::False, "CreateFailed", why.clone())),
    }
}

/// The status to store: the verdicts as conditions, each with the time of its last transition, and the phase with what
/// follows from it.
pub fn status(
    snapshot: &Snapshot,
    verdicts: &Verdicts,
    terminating: Option<Verdict>,
) -> (ClusterBindingStatus, Option<SignedDuration>) {
    let (managed, now) = (&snapshot.managed, snapshot.now);
    let old = &managed.status;
    let ready = verdicts.ready();
    let false_since = managed.condition(binding_type::READY).filter(|condition| condition.status != "True");
    let since =
        false_since.and_then(|condition| parse_rfc3339(&condition.last_transition_time)).unwrap_or(now);
    let (phase, left) = verdicts.phase(since, now);
    let mut all = vec![ready.clone()];
    all.extend(verdicts.parts().cloned());
    let follows = match phase {
        phase::PENDING => Some(binding_type::RECONCILING),
        phase::FAILED => Some(binding_type::STALLED),
        _ => None,
    };
    all.extend(follows.map(|type_| Verdict::new(type_, Is::True, &ready.reason, ready.message.clone())));
    all.extend(terminating);
    let became_ready = phase == phase::READY && old.phase != phase::READY;
    let report = snapshot.report.as_ref();
    let status = ClusterBindingStatus {
        phase: phase.to_owned(),
        conditions: all.into_iter().map(|verdict| condition(snapshot, verdict)).collect(),
        last_sync_time: if became_ready { Some(rfc3339(now)) } else { old.last_sync_time.clone() },
        observed_generation: Some(managed.binding.generation),
        // The Syncer's, which it alone writes.
        nodes: None,
        pods: None,
        worker_version: report
            .and_then(|report| report.version.clone())
            .or_else(|| old.worker_version.clone()),
        credentials_expire_at: match report {
            Some(report) => report.expires_at.map(rfc3339),
            None => old.credentials_expire_at.clone(),
        },
    };
    (status, left)
}

fn condition(snapshot: &Snapshot, verdict: Verdict) -> Condition {
    let status = match verdict.is {
        Is::True => "True",
        Is::False => "False",
    };
    let stored = snapshot.managed.condition(verdict.type_).filter(|stored| stored.status == status);
    Condition {
        last_transition_time: stored
            .map_or_else(|| rfc3339(snapshot.now), |stored| stored.last_transition_time.clone()),
        message: verdict.message,
        observed_generation: Some(snapshot.managed.binding.generation),
        reason: verdict.reason,
        status: status.to_owned(),
        type_: verdict.type_.to_owned(),
    }
}
