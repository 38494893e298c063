//! Plans as tables, and the life of a binding in a model that carries plans out.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kubeocean_api::{
    ClusterBinding, ClusterBindingStatus,
    condition::binding_type::{
        CONNECTED, CREDENTIALS_VALID, PROXIER_READY, READY, RECONCILING, SPEC_VALID, STALLED, SYNCER_READY,
        TERMINATING,
    },
    keys::finalizer,
};
use kubeocean_runtime::sink::Sink;
use rstest::rstest;

use super::{
    action::Action,
    index::Index,
    plan::{plan_absent, plan_binding},
    snapshot::Snapshot,
    view::ManagedBinding,
};
use crate::{
    components::{Component, Running, State},
    worker::report::{Connection, Credentials, Report, Silence},
};

const T0: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(T0 + seconds).unwrap()
}

fn object(name: &str, created: i64, spec: &str) -> ClusterBinding {
    let mut object: ClusterBinding = serde_saphyr::from_str(&format!(
        "{{metadata: {{name: {name}, uid: uid-{name}, generation: 1, creationTimestamp: '{}'}}, spec: {spec}}}",
        at(created)
    ))
    .unwrap();
    object.metadata.finalizers = Some(Vec::new());
    object
}

fn good(cluster_id: &str) -> String {
    format!("{{clusterID: {cluster_id}, secretRef: {{name: s, namespace: n}}, mountNamespace: m}}")
}

fn valid() -> Report {
    Report {
        credentials: Credentials::Valid { reason: "KubeconfigValid", note: String::new() },
        connection: Some(Connection::Up),
        version: Some("v1.34.2".to_owned()),
        expires_at: Some(at(604_800)),
        insecure: false,
    }
}

fn invalid(reason: &'static str) -> Report {
    let credentials = Credentials::Invalid { reason, message: "secret n/s is wrong".to_owned() };
    Report { credentials, connection: None, version: None, expires_at: None, insecure: false }
}

fn silent(connection: fn(Silence) -> Connection) -> Report {
    let silence = Silence { reason: "Refused", message: "connection refused".to_owned() };
    Report {
        credentials: Credentials::Unproven,
        connection: Some(connection(silence)),
        version: None,
        expires_at: Some(at(604_800)),
        insecure: false,
    }
}

fn down() -> Report {
    silent(Connection::Down)
}

/// A binding, its worker and its components; carries out what plans ask for.
struct Model {
    object: ClusterBinding,
    owner: Option<String>,
    report: Option<Report>,
    running: Running,
    /// The role forbids a forced detach.
    detach_forbidden: bool,
    /// What the Syncer becomes when it is started.
    syncer: State,
    now: i64,
    log: Vec<String>,
}

impl Model {
    fn new(spec: &str) -> Self {
        Self {
            object: object("b", 0, spec),
            owner: None,
            report: None,
            running: Running::default(),
            detach_forbidden: false,
            syncer: State::Available,
            now: 1,
            log: Vec::new(),
        }
    }

    /// A binding that is Ready and served.
    fn ready() -> Self {
        let mut model = Self::new(&good("c"));
        model.report = Some(valid());
        model.settle();
        model.finalizers().push(finalizer::BINDING_SYNCER.to_owned());
        model.settle();
        assert_eq!(model.status().phase, "Ready", "{:?}", model.status());
        model.log.clear();
        model
    }

    fn finalizers(&mut self) -> &mut Vec<String> {
        self.object.metadata.finalizers.get_or_insert_default()
    }

    fn status(&self) -> ClusterBindingStatus {
        self.object.status.clone().unwrap_or_default()
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            managed: Arc::new(ManagedBinding::of(&self.object)),
            owner: self.owner.clone(),
            report: self.report.clone(),
            running: self.running.clone(),
            detach_forbidden: self.detach_forbidden,
            now: at(self.now),
        }
    }

    /// Deletes the binding and gives its worker up.
    fn give_up(&mut self) {
        self.object.metadata.deletion_timestamp = Some(k8s_time(3));
        self.object.metadata.annotations =
            Some([("kubeocean.io/force-detach".to_owned(), "true".to_owned())].into());
    }

    /// What was done, without what was said.
    fn done(&self) -> Vec<&String> {
        let said = |it: &&String| !it.starts_with("event") && !it.starts_with("status");
        self.log.iter().filter(said).collect()
    }

    /// Carries out plans until there is nothing to do.
    fn settle(&mut self) -> &mut Self {
        for _ in 0..20 {
            let plan = plan_binding(&self.snapshot());
            let works = |action: &&Action| !matches!(action, Action::Attend(_) | Action::Leave);
            if plan.actions.iter().filter(works).count() == 0 {
                return self;
            }
            for action in plan.actions {
                self.perform(action);
            }
        }
        panic!("no end: {:?}", self.log);
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Attend(_) | Action::Leave => return,
            Action::AddFinalizer => self.finalizers().push(finalizer::BINDING_MANAGER.to_owned()),
            Action::RemoveFinalizer => self.finalizers().retain(|one| one != finalizer::BINDING_MANAGER),
            Action::WriteStatus(ref status) => self.object.status = Some((**status).clone()),
            Action::Start(ref identity) => {
                self.running.identity = Some(identity.clone());
                self.running.syncer = self.syncer.clone();
                self.running.proxier = State::Available;
            }
            Action::Stop(Component::Syncer) => self.running.syncer = State::Stopped,
            Action::Stop(Component::Proxier) => self.running = Running::default(),
            Action::Detach(_) => self.finalizers().retain(|one| one != finalizer::BINDING_SYNCER),
            Action::Tell(_) => {}
        }
        let line = match action {
            Action::WriteStatus(status) => format!("status {}", status.phase),
            Action::Tell(news) => format!("event {}", news.reason),
            Action::Start(_) => "start".to_owned(),
            Action::Stop(component) => format!("stop {component}"),
            other => format!("{other:?}"),
        };
        self.log.push(line);
    }

    fn says(&self, type_: &str) -> String {
        let status = self.status();
        let condition = status.conditions.iter().find(|condition| condition.type_ == type_);
        condition.map_or_else(|| "absent".to_owned(), |one| format!("{}/{}", one.status, one.reason))
    }

    fn message(&self, type_: &str) -> String {
        let status = self.status();
        let condition = status.conditions.iter().find(|condition| condition.type_ == type_);
        condition.map(|condition| condition.message.clone()).unwrap_or_default()
    }
}

#[test]
fn a_new_binding_becomes_ready_in_the_order_of_mc_201() {
    let mut model = Model::new(&good("c"));
    model.settle();
    assert_eq!(model.log[..2], ["AddFinalizer", "status Pending"]);
    assert_eq!(model.says(READY), "False/Initializing");
    assert_eq!(model.running, Running::default(), "nothing runs before the worker was asked");
    model.log.clear();
    model.report = Some(valid());
    model.now = 2;
    model.settle();
    assert_eq!(
        model.log,
        [
            "start",
            "status Pending",
            "event Reconciling",
            "status Ready",
            "event Ready",
            "event StatusUpdated",
        ]
    );
    assert_eq!(model.says(READY), "True/ValidationPassed");
    assert_eq!(model.says(SPEC_VALID), "True/Valid");
    assert_eq!(model.says(CREDENTIALS_VALID), "True/KubeconfigValid");
    assert_eq!(model.says(CONNECTED), "True/ConnectivityPassed");
    assert_eq!(model.says(SYNCER_READY), "True/Available");
    assert_eq!(model.says(PROXIER_READY), "True/Available");
    assert_eq!((model.says(RECONCILING), model.says(STALLED)), ("absent".into(), "absent".into()));
    let status = model.status();
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.worker_version.as_deref(), Some("v1.34.2"));
    assert_eq!(status.last_sync_time, Some(kubeocean_runtime::clock::rfc3339(at(2))));
    assert_eq!(status.credentials_expire_at, Some(kubeocean_runtime::clock::rfc3339(at(604_800))));
}

#[rstest]
#[case("{}", "FieldMissing", "clusterID is required")]
#[case("{clusterID: c}", "FieldMissing", "secretRef.name is required")]
#[case("{clusterID: c, secretRef: {name: s}}", "FieldMissing", "secretRef.namespace is required")]
#[case("{clusterID: c, secretRef: {name: s, namespace: n}}", "FieldMissing", "mountNamespace is required")]
#[case(
    "{clusterID: c, secretRef: {name: s, namespace: n}, mountNamespace: m, serviceNamespaces: ['']}",
    "FieldMissing",
    "serviceNamespaces[0] cannot be empty"
)]
fn an_invalid_spec_is_named_and_nothing_is_started(
    #[case] spec: &str,
    #[case] reason: &str,
    #[case] message: &str,
) {
    let mut model = Model::new(spec);
    model.report = Some(valid());
    model.settle();
    assert_eq!(model.says(SPEC_VALID), format!("False/{reason}"));
    assert_eq!(model.says(READY), "False/ValidationFailed");
    assert_eq!(model.message(READY), message);
    assert_eq!(model.says(STALLED), "True/ValidationFailed");
    assert_eq!(model.status().phase, "Failed");
    assert!(model.log.contains(&"event ValidationFailed".to_owned()));
    assert_eq!(model.running, Running::default());
}

#[test]
fn who_lost_the_cluster_id_starts_nothing_and_goes_without_touching_the_owner() {
    let mut model = Model::new(&good("c"));
    model.owner = Some("a".to_owned());
    model.report = Some(valid());
    model.settle();
    assert_eq!(model.says(SPEC_VALID), "False/ClusterIDConflict");
    assert_eq!(model.message(READY), "clusterID c is already used by ClusterBinding a, cannot be used by b");
    assert_eq!(model.running, Running::default());
    assert!(
        !plan_binding(&model.snapshot()).actions.iter().any(|action| matches!(action, Action::Attend(_)))
    );
    model.log.clear();
    model.object.metadata.deletion_timestamp = Some(k8s_time(2));
    model.settle();
    assert_eq!(model.log, ["RemoveFinalizer", "event Deleted"]);
}

fn k8s_time(seconds: i64) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(seconds))
}

#[rstest]
#[case("SecretNotFound")]
#[case("KeyMissing")]
#[case("KubeconfigUnsafe")]
#[case("Unauthorized")]
fn unusable_credentials_fail_the_binding_and_mending_them_is_enough(#[case] reason: &'static str) {
    let mut model = Model::new(&good("c"));
    model.report = Some(invalid(reason));
    model.settle();
    assert_eq!(model.says(CREDENTIALS_VALID), format!("False/{reason}"));
    assert_eq!(model.says(READY), "False/ConnectivityFailed");
    assert_eq!(model.status().phase, "Failed");
    assert_eq!(model.running, Running::default());
    model.report = Some(valid());
    model.settle();
    assert_eq!(model.status().phase, "Ready");
}

#[test]
fn a_worker_that_falters_is_kept_one_that_is_down_is_told_and_back_after_one_answer() {
    let mut model = Model::ready();
    model.report = Some(silent(Connection::Faltering));
    model.settle();
    assert_eq!(model.says(CONNECTED), "True/ConnectivityPassed");
    assert_eq!(model.log, [] as [&str; 0]);
    model.report = Some(down());
    model.settle();
    assert_eq!(model.says(CONNECTED), "False/Refused");
    assert_eq!(model.says(CREDENTIALS_VALID), "True/KubeconfigValid", "nothing is known against them");
    assert_eq!(model.status().phase, "Failed");
    assert_eq!(model.running.syncer, State::Available, "nothing is stopped because of a worker");
    model.report = Some(valid());
    model.settle();
    assert_eq!(model.status().phase, "Ready");
}

#[test]
fn a_new_binding_says_at_the_first_failure_that_its_worker_is_silent() {
    let mut model = Model::new(&good("c"));
    model.report = Some(down());
    model.settle();
    assert_eq!(model.says(CONNECTED), "False/Refused");
    assert_eq!(model.running, Running::default());
}

#[test]
fn after_a_restart_a_served_binding_is_served_before_its_worker_answers() {
    let mut model = Model::ready();
    model.running = Running::default();
    model.report = None;
    model.syncer = State::Progressing("listing".to_owned());
    model.settle();
    assert_eq!(model.log.first().map(String::as_str), Some("start"));
    assert_eq!(model.says(READY), "False/ComponentsStarting");
    assert_eq!(
        model.says(CONNECTED),
        "True/ConnectivityPassed",
        "what was said stays until it is known better"
    );
    assert_eq!(model.status().phase, "Pending");
    assert_eq!(model.says(RECONCILING), "True/ComponentsStarting");
}

#[test]
fn a_component_that_does_not_become_ready_fails_the_binding_after_five_minutes() {
    let mut model = Model::new(&good("c"));
    model.report = Some(valid());
    model.syncer = State::Progressing("listing".to_owned());
    model.settle();
    let plan = plan_binding(&model.snapshot());
    assert_eq!(model.status().phase, "Pending");
    let again = plan.again.expect("a look at the end of the patience");
    assert!(again.as_secs() <= 300, "{again:?}");
    model.now += 301;
    model.settle();
    assert_eq!(model.status().phase, "Failed");
    assert_eq!(model.says(STALLED), "True/ComponentsStarting");
}

#[test]
fn a_converged_binding_is_not_written() {
    let mut model = Model::ready();
    model.now += 3600;
    model.settle();
    assert_eq!(model.log, [] as [&str; 0]);
}

#[test]
fn a_transition_keeps_its_time_while_reasons_change() {
    let mut model = Model::new(&good("c"));
    model.report = Some(invalid("SecretNotFound"));
    model.settle();
    let since = |model: &Model| {
        let status = model.status();
        let ready = status.conditions.into_iter().find(|condition| condition.type_ == READY);
        ready.unwrap().last_transition_time
    };
    let before = since(&model);
    model.now += 10;
    model.report = Some(down());
    model.settle();
    assert_eq!(since(&model), before);
    model.report = Some(valid());
    model.settle();
    assert_ne!(since(&model), before);
}

#[test]
fn deletion_waits_for_the_syncer_then_stops_it_then_releases() {
    let mut model = Model::ready();
    model.object.metadata.deletion_timestamp = Some(k8s_time(3));
    model.now = 3;
    model.settle();
    assert_eq!(model.log, ["status Ready", "event WaitingSyncerCleanup"]);
    assert_eq!(model.says(TERMINATING), "True/WaitingForSyncer");
    assert_eq!(model.running.syncer, State::Available);
    model.log.clear();
    model.finalizers().retain(|one| one != finalizer::BINDING_SYNCER);
    model.settle();
    assert_eq!(
        model.log,
        ["status Ready", "event Cleanup", "stop syncer", "stop proxier", "RemoveFinalizer", "event Deleted"]
    );
}

#[test]
fn a_restart_during_deletion_starts_the_syncer_that_must_clean_up() {
    let mut model = Model::ready();
    model.object.metadata.deletion_timestamp = Some(k8s_time(3));
    model.running = Running::default();
    model.report = None;
    model.settle();
    assert!(model.log.contains(&"start".to_owned()), "{:?}", model.log);
}

#[test]
fn deletion_without_a_worker_says_so_and_never_gives_up() {
    let mut model = Model::ready();
    model.report = Some(down());
    model.object.metadata.deletion_timestamp = Some(k8s_time(3));
    model.now = 3;
    model.settle();
    assert_eq!(model.says(TERMINATING), "True/WorkerUnreachable");
    let again = plan_binding(&model.snapshot()).again.expect("a look after ten minutes");
    model.now += i64::try_from(again.as_secs()).unwrap() + 1;
    model.settle();
    assert!(model.message(TERMINATING).contains("as soon as the worker can be used again"));
    assert!(model.finalizers().contains(&finalizer::BINDING_MANAGER.to_owned()));
}

#[test]
fn a_forced_detach_ends_the_syncer_first_and_needs_no_worker() {
    let mut model = Model::ready();
    model.report = Some(down());
    model.object.metadata.annotations =
        Some([("kubeocean.io/force-detach".to_owned(), "true".to_owned())].into());
    model.settle();
    assert_eq!(model.running.syncer, State::Available, "only a binding that is deleted is detached");
    model.object.metadata.deletion_timestamp = Some(k8s_time(3));
    model.log.clear();
    model.settle();
    assert_eq!(model.says(TERMINATING), "True/ForcedDetach");
    assert_eq!(model.done(), ["stop syncer", "stop proxier", "Detach(ClusterId)", "RemoveFinalizer"]);
    assert!(model.finalizers().is_empty());
}

#[test]
fn a_forced_detach_that_the_role_forbids_is_not_begun_and_says_what_is_missing() {
    let mut model = Model::ready();
    model.report = Some(down());
    model.give_up();
    model.detach_forbidden = true;
    model.settle();
    assert_eq!(model.says(TERMINATING), "True/ForcedDetach");
    let message = model.message(TERMINATING);
    let named = ["delete leases", "kube-node-lease", "manager.forcedDetach.enabled=true"];
    assert!(named.iter().all(|part| message.contains(part)), "{message}");
    assert_eq!(model.done(), [] as [&str; 0]);
    assert_eq!(model.running.syncer, State::Available);
    assert!(plan_binding(&model.snapshot()).again.is_some(), "the right may be granted");
    model.detach_forbidden = false;
    model.settle();
    assert!(model.finalizers().is_empty());
}

#[test]
fn who_lost_the_cluster_id_detaches_nothing_of_its_owner() {
    let mut model = Model::ready();
    model.owner = Some("older".to_owned());
    model.object.metadata.deletion_timestamp = Some(k8s_time(3));
    model.settle();
    assert_eq!(model.done(), ["stop syncer", "stop proxier"], "it cleans up nothing of its owner's");
    let message = model.message(TERMINATING);
    let named = ["belongs to ClusterBinding older", "force-detach"];
    assert!(named.iter().all(|part| message.contains(part)), "{message}");
    model.log.clear();
    model.give_up();
    model.settle();
    assert_eq!(model.says(TERMINATING), "True/ForcedDetach");
    assert_eq!(model.done(), ["Detach(OwnVnodes)", "RemoveFinalizer"]);
    assert!(model.finalizers().is_empty());
}

#[test]
fn what_runs_for_who_turns_out_not_to_own_its_cluster_id_is_stopped() {
    let mut model = Model::new(&good("c"));
    model.report = Some(valid());
    model.settle();
    assert_eq!(model.running.syncer, State::Available);
    model.log.clear();
    model.owner = Some("a".to_owned());
    model.settle();
    assert_eq!(model.done(), ["stop syncer", "stop proxier"]);
    assert_eq!(model.says(SPEC_VALID), "False/ClusterIDConflict");
}

#[test]
fn a_binding_made_anew_under_the_same_name_gets_components_of_its_own() {
    let mut model = Model::ready();
    model.object.metadata.uid = Some("another".to_owned());
    model.settle();
    assert_eq!(model.log[..3], ["stop syncer", "stop proxier", "start"]);
    assert_eq!(model.running.identity.as_ref().unwrap().uid, "another");
}

#[test]
fn what_runs_for_a_binding_that_vanished_is_stopped() {
    let mut model = Model::ready();
    let actions = plan_absent(&model.running);
    for action in actions {
        model.perform(action);
    }
    assert_eq!(model.log, ["stop syncer", "stop proxier"]);
    assert_eq!(plan_absent(&model.running), [Action::Leave]);
}

#[test]
fn a_changed_cluster_id_of_a_served_binding_is_refused() {
    let mut model = Model::ready();
    model.object.spec.cluster_id = "d".to_owned();
    model.settle();
    assert_eq!(model.says(SPEC_VALID), "False/ClusterIDChanged");
    assert_eq!(model.message(READY), "clusterID cannot be changed for ClusterBinding b: existing=c, new=d");
    assert_eq!(model.running.syncer, State::Available, "what runs goes on under the old one");
}

#[test]
fn the_older_binding_owns_a_cluster_id_and_of_equals_the_first_name() {
    let index = Index::new();
    index.reset(vec![
        object("young", 10, &good("c")),
        object("old", 0, &good("c")),
        object("also-old", 0, &good("c")),
        object("other", 0, &good("d")),
    ]);
    let owner = |name: &str| {
        let snapshot = index.snapshot(name, Running::default(), at(20));
        snapshot.expect("a binding").owner
    };
    assert_eq!(owner("also-old"), None);
    assert_eq!(owner("old").as_deref(), Some("also-old"));
    assert_eq!(owner("young").as_deref(), Some("also-old"));
    assert_eq!(owner("other"), None);
    index.delete(object("also-old", 0, &good("c")));
    assert_eq!(owner("old"), None);
    assert_eq!(owner("young").as_deref(), Some("old"));
}

#[test]
fn who_was_served_stays_the_owner_of_its_cluster_id() {
    let index = Index::new();
    let mut served = object("young", 10, &good("c"));
    served.metadata.finalizers = Some(vec![finalizer::BINDING_SYNCER.to_owned()]);
    index.reset(vec![served, object("old", 0, &good("c"))]);
    let owner = |name: &str| index.snapshot(name, Running::default(), at(20)).expect("a binding").owner;
    assert_eq!(owner("young"), None);
    assert_eq!(owner("old").as_deref(), Some("young"));
    // Both were: the older.
    let mut old = object("old", 0, &good("c"));
    old.metadata.finalizers = Some(vec![finalizer::BINDING_SYNCER.to_owned()]);
    index.apply(old);
    assert_eq!(owner("young").as_deref(), Some("old"));
    assert_eq!(owner("old"), None);
}

#[test]
fn a_mount_namespace_that_is_no_name_is_refused_until_something_was_served() {
    let bad = good("c").replace("mountNamespace: m", "mountNamespace: '../secrets'");
    let mut model = Model::new(&bad);
    model.report = Some(valid());
    model.settle();
    assert_eq!(model.says(SPEC_VALID), "False/FieldMissing");
    assert_eq!(model.message(READY), "mountNamespace \"../secrets\" must be a DNS-1123 label");
    assert_eq!(model.running, Running::default());
    model.finalizers().push(finalizer::BINDING_SYNCER.to_owned());
    model.settle();
    assert_eq!(model.says(SPEC_VALID), "True/Valid", "a stored one goes on");
}

#[test]
fn a_report_about_another_secret_is_not_used() {
    let index = Index::new();
    index.apply(object("b", 0, &good("c")));
    let target = index.snapshot("b", Running::default(), at(0)).unwrap().managed.target().unwrap();
    index.set_report(&target, valid());
    let report = |index: &Index| index.snapshot("b", Running::default(), at(0)).unwrap().report;
    assert_eq!(report(&index), Some(valid()));
    let elsewhere = good("c").replace("name: s,", "name: other,");
    index.apply(object("b", 0, &elsewhere));
    assert_eq!(report(&index), None);
    index.set_report(&target, valid());
    assert_eq!(report(&index), None);
}

#[test]
fn patience_is_five_minutes() {
    assert_eq!(super::conditions::PATIENCE, SignedDuration::from_mins(5));
}
