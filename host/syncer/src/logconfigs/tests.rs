//! Translation, and plans applied to a model of one LogConfig and its copies.

#![expect(clippy::needless_pass_by_value, reason = "callers write JSON in place")]

use kubeocean_api::keys::{annotation, label, synced_by};
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    index::{LogConfigStore, Side},
    plan::{Action, Plan},
    translate::translate,
    view::LogConfig,
};
use crate::objects::Scope;

fn scope(binding: &str, computing_uid: &str) -> Scope {
    Scope {
        binding: binding.to_owned(),
        cluster_id: binding.to_owned(),
        computing_uid: computing_uid.to_owned(),
        mount_namespace: "mount".to_owned(),
    }
}

fn east() -> Scope {
    scope("east", "cc")
}

fn translated(input: Value) -> (Vec<(String, Value)>, Vec<String>) {
    let spec = json!({"inputDetail": input, "clsDetail": {"topicId": "t"}});
    let translation = translate("mine", spec.as_object().unwrap(), &east());
    let copies = translation.copies.into_iter().map(|copy| {
        assert_eq!(copy.spec["clsDetail"], json!({"topicId": "t"}));
        (copy.base, copy.spec["inputDetail"].clone())
    });
    (copies.collect(), translation.not_mapped)
}

fn ours(more: Value) -> Value {
    let mut labels = json!({(label::CLUSTER_BINDING): "east"});
    labels.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    labels
}

#[rstest]
#[case::everything(
    "container_stdout", "containerStdout", json!({"allContainers": true}),
    json!({"allContainers": false, "namespace": "mount", "includeLabels": ours(json!({}))}),
)]
#[case::namespaces(
    "container_stdout", "containerStdout",
    json!({"namespace": "a,b", "includeLabels": {"app": "web"}, "metadataLabels": ["x"]}),
    json!({
        "namespace": "mount", "metadataLabels": ["x"],
        "includeLabels": ours(json!({"app": "web", (label::VIRTUAL_NAMESPACE): "a,b"})),
    }),
)]
#[case::all_but(
    "container_stdout", "containerStdout", json!({"excludeNamespace": "a,b", "excludeLabels": {"app": "web"}}),
    json!({
        "namespace": "mount", "includeLabels": ours(json!({})),
        "excludeLabels": {"app": "web", (label::VIRTUAL_NAMESPACE): "a,b"},
    }),
)]
#[case::forged_selection(
    "container_stdout", "containerStdout",
    json!({"namespace": "a", "includeLabels": {(label::CLUSTER_BINDING): "west", (label::VIRTUAL_NAMESPACE): "b"}}),
    json!({"namespace": "mount", "includeLabels": ours(json!({(label::VIRTUAL_NAMESPACE): "a"}))}),
)]
#[case::a_workloads_files(
    "container_file", "containerFile",
    json!({"namespace": "a", "logPath": "/logs", "workload": {"kind": "Deployment", "name": "web"}}),
    json!({"namespace": "mount", "logPath": "/logs", "includeLabels": ours(json!({
        (label::VIRTUAL_NAMESPACE): "a", (label::WORKLOAD_TYPE): "deployment", (label::WORKLOAD_NAME): "web",
    }))}),
)]
fn pods_of_the_computing_cluster_are_found_in_the_mount_namespace(
    #[case] kind: &str,
    #[case] section: &str,
    #[case] source: Value,
    #[case] expected: Value,
) {
    let mut source = source;
    let mut expected = expected;
    for source in [&mut source, &mut expected] {
        source["future"] = json!([1]);
    }
    let (copies, not_mapped) = translated(json!({"type": kind, section: source}));
    assert_eq!(not_mapped, [""; 0]);
    assert_eq!(copies, [("mine".to_owned(), json!({"type": kind, section: expected}))]);
}

/// An agent that looks at more than the type would collect what the other source says, in the worker cluster.
#[rstest]
#[case::of_another_type("containerFile", json!({"namespace": "kube-system", "logPath": "/logs"}))]
#[case::files_of_nodes("hostFile", json!({"logPath": "/var/log"}))]
#[case::future("journal", json!(["kubelet"]))]
fn a_source_beside_the_one_of_the_type_stays_behind(#[case] section: &str, #[case] source: Value) {
    let own = json!({"namespace": "a"});
    let mut input = json!({"type": "container_stdout", "containerStdout": own, (section): source});
    let (copies, not_mapped) = translated(input.clone());
    let fields: Vec<_> = copies[0].1.as_object().unwrap().keys().cloned().collect();
    assert_eq!(fields, ["containerStdout", "type"]);
    assert!(not_mapped.len() == 1 && not_mapped[0].contains(section), "{not_mapped:?}");
    // What says nothing is no news.
    input[section] = json!({});
    assert_eq!(translated(input), (copies, vec![]));
}

#[test]
fn workloads_are_grouped_in_one_order_whatever_theirs_is() {
    let workload = |namespace: &str, kind: &str, name: &str, container: Value| json!({"namespace": namespace, "kind": kind, "name": name, "container": container});
    let mut all = vec![
        workload("b", "deployment", "web", Value::Null),
        workload("a", "statefulset", "db", Value::Null),
        workload("a", "deployment", &"x".repeat(70), Value::Null),
        workload("a", "deployment", "web", Value::Null),
        workload("a", "deployment", "web", json!("side")),
        workload("a", "cronjob", "nightly", Value::Null),
    ];
    let of = |all: &[Value]| {
        translated(json!({"type": "container_stdout", "containerStdout": {"workloads": all, "keep": 1}}))
    };
    let (copies, not_mapped) = of(&all);
    all.reverse();
    assert_eq!(of(&all).0, copies);
    assert!(not_mapped[0].contains("\"nightly\"") && not_mapped.len() == 1, "{not_mapped:?}");
    let shown: Vec<_> = copies
        .iter()
        .map(|(base, input)| {
            let source = &input["containerStdout"];
            assert_eq!((&source["keep"], source.get("workloads")), (&json!(1), None));
            let labels = &source["includeLabels"];
            let of = |key: &str| labels[key].as_str().unwrap().to_owned();
            let container = source["container"].as_str().unwrap_or("-");
            format!(
                "{base} {} {} {} {container}",
                of(label::VIRTUAL_NAMESPACE),
                of(label::WORKLOAD_TYPE),
                of(label::WORKLOAD_NAME)
            )
        })
        .collect();
    let long = kubeocean_api::name::distinct_label_value(&"x".repeat(70));
    assert_eq!(
        shown,
        [
            format!("mine-g0 a deployment web,{long} -"),
            "mine-g1 a deployment web side".to_owned(),
            "mine-g2 a statefulset db -".to_owned(),
            "mine-g3 b deployment web -".to_owned(),
        ]
    );
}

#[rstest]
#[case::files_of_nodes(json!({"type": "host_file", "hostFile": {"logPath": "/var/log"}}), "host_file")]
#[case::labels_of_namespaces(
    json!({"type": "container_stdout", "containerStdout": {"nsLabelSelector": "a in (b)"}}), "nsLabelSelector")]
#[case::of_a_cron_job(
    json!({"type": "container_file", "containerFile": {"workload": {"kind": "cronjob", "name": "n"}}}), "CronJob")]
#[case::unknown(json!({"type": "journal"}), "inputDetail.type")]
#[case::without_a_source(json!({"type": "container_stdout"}), "containerStdout is missing")]
fn what_has_no_counterpart_is_not_copied_and_told(#[case] input: Value, #[case] told: &str) {
    let (copies, not_mapped) = translated(input);
    assert_eq!(copies, []);
    assert!(not_mapped[0].contains(told), "{not_mapped:?}");
}

/// Both clusters, as far as LogConfigs go.
#[derive(Debug, Default)]
struct World {
    store: LogConfigStore,
    clock: u32,
    closing: bool,
}

impl World {
    /// With one LogConfig.
    fn with(input: Value) -> Self {
        let mut world = Self::default();
        world.put(Side::Original, &original(input));
        world
    }

    fn put(&mut self, side: Side, config: &Value) -> LogConfig {
        self.clock += 1;
        let mut config = config.clone();
        config["metadata"]["resourceVersion"] = self.clock.to_string().into();
        let config: LogConfig = serde_json::from_value(config).unwrap();
        self.store.seen(side, config.clone());
        config
    }

    fn plan(&self, scope: &Scope) -> Plan {
        self.store.plan(scope, "myconfig", self.closing).0
    }

    fn perform(&mut self, action: &Action, prune: &str) {
        let (side, mut config, patch) = match action {
            Action::Hold { name, patch } | Action::LetGo { name, patch } => {
                (Side::Original, self.json(Side::Original, name), patch)
            }
            Action::Create { manifest, .. } => {
                (Side::Copy, json!({"metadata": {"uid": self.clock}}), manifest)
            }
            Action::Update { copy, patch } => (Side::Copy, self.json(Side::Copy, copy.name()), patch),
            Action::Delete { copy } => {
                let gone = self.store.get(Side::Copy, copy.name()).unwrap();
                return self.store.gone(Side::Copy, &gone);
            }
        };
        let before = config.clone();
        crate::simulation::merge(&mut config, patch);
        config["metadata"]["uid"] = format!("u{}", config["metadata"]["name"]).into();
        if let (Side::Copy, Some(spec)) = (side, config["spec"].as_object_mut()) {
            spec.remove(prune);
        }
        let same =
            before["spec"] == config["spec"] && before["metadata"]["labels"] == config["metadata"]["labels"];
        let stored = match self.store.get(side, config["metadata"]["name"].as_str().unwrap()) {
            Some(known) if same && side == Side::Copy => known,
            _ => self.put(side, &config),
        };
        if side == Side::Copy {
            let original = self.store.get(Side::Original, "myconfig").unwrap();
            self.store.settled(&stored, &original);
        }
    }

    fn json(&self, side: Side, name: &str) -> Value {
        let config = self.store.get(side, name).unwrap();
        json!({"metadata": config.metadata, "spec": config.spec})
    }

    /// Until nothing is left to do; the number of writes.
    fn run(&mut self, scope: &Scope, prune: &str) -> usize {
        for done in 0..20 {
            let plan = self.plan(scope);
            let Some(action) = plan.actions.first() else { return done };
            self.perform(action, prune);
        }
        panic!("no end: {:?}", self.plan(scope));
    }

    fn names(&self) -> Vec<String> {
        self.store.names(Side::Copy)
    }
}

fn original(input: Value) -> Value {
    json!({
        "metadata": {
            "name": "myconfig", "uid": "v", "labels": {"team": "a", (label::MANAGED_BY): "forged"},
            "annotations": {(annotation::COMPUTING_CLUSTER_UID): "forged"},
        },
        "spec": {"inputDetail": input, "unknown": {"to": ["us"]}},
    })
}

fn stdout(source: Value) -> Value {
    json!({"type": "container_stdout", "containerStdout": source})
}

#[test]
fn a_logconfig_is_held_copied_followed_and_let_go() {
    let mut world = World::with(stdout(json!({"namespace": "a"})));
    insta::assert_json_snapshot!(world.plan(&east()));
    assert_eq!(world.run(&east(), ""), 2);
    assert_eq!(world.names(), ["myconfig-f1879b"]);

    let mut changed = world.json(Side::Original, "myconfig");
    changed["spec"] = json!({"inputDetail": stdout(json!({"namespace": "b"})), "more": 1});
    world.put(Side::Original, &changed);
    assert_eq!(world.run(&east(), ""), 1, "one object, one write");
    let spec = world.json(Side::Copy, "myconfig-f1879b")["spec"].clone();
    assert_eq!((spec.get("unknown"), &spec["more"]), (None, &json!(1)));

    let mut edited = world.json(Side::Copy, "myconfig-f1879b");
    edited["spec"]["more"] = json!(2);
    world.put(Side::Copy, &edited);
    assert_eq!(world.run(&east(), ""), 1, "an edit by hand");

    let workloads = json!({"workloads": [{"kind": "job", "name": "j"}, {"kind": "deployment", "name": "d"}]});
    changed = world.json(Side::Original, "myconfig");
    changed["spec"]["inputDetail"] = stdout(workloads);
    world.put(Side::Original, &changed);
    assert_eq!(world.run(&east(), ""), 3, "two new ones, the old one goes");
    assert_eq!(world.names().len(), 2);

    let mut deleting = world.json(Side::Original, "myconfig");
    deleting["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    world.put(Side::Original, &deleting);
    let plan = world.plan(&east());
    assert!(matches!(
        &plan.actions[..],
        [Action::Delete { .. }, Action::Delete { .. }, Action::LetGo { .. }]
    ));
    world.run(&east(), "");
    let held = world.json(Side::Original, "myconfig")["metadata"]["finalizers"].to_string();
    assert!(!held.contains("kubeocean.io"), "{held}");
}

/// A Syncer that begins when another one has removed the copies already makes none anew.
#[test]
fn of_a_binding_that_goes_copies_serve_what_is_left_and_none_is_made() {
    let mut going = World { closing: true, ..World::with(stdout(json!({"namespace": "a"}))) };
    assert_eq!(going.plan(&east()).actions, [], "neither held nor copied");

    let mut world = World::with(stdout(json!({"namespace": "a"})));
    world.run(&east(), "");
    world.closing = true;
    assert_eq!(world.plan(&east()).actions, []);
    let mut edited = world.json(Side::Original, "myconfig");
    edited["spec"]["more"] = json!(1);
    world.put(Side::Original, &edited);
    assert_eq!(world.run(&east(), ""), 1, "pods that are left go on as it says");
    going.put(Side::Original, &edited);
    assert_eq!(going.run(&east(), ""), 0);
}

#[test]
fn a_worker_that_prunes_a_field_is_not_written_for_ever() {
    let mut world = World::with(stdout(json!({"namespace": "a"})));
    assert_eq!(world.run(&east(), "unknown"), 2);
    // A Syncer that starts knows nothing of what was stored: one write, which changes nothing.
    let restarted = World::default();
    for side in [Side::Original, Side::Copy] {
        for name in world.store.names(side) {
            restarted.store.seen(side, world.store.get(side, &name).unwrap());
        }
    }
    let mut world = World { clock: world.clock, ..restarted };
    assert_eq!(world.run(&east(), "unknown"), 1);
    assert_eq!(world.run(&east(), "unknown"), 0);
}

#[rstest]
#[case::another_binding(&scope("west", "cc"))]
#[case::another_cluster(&scope("east", "other"))]
fn a_copy_of_somebody_else_is_left_alone_and_not_in_the_way(#[case] other: &Scope) {
    let mut world = World::with(stdout(json!({"namespace": "a"})));
    world.run(&east(), "");
    let theirs = world.json(Side::Copy, "myconfig-f1879b");
    assert_eq!(world.run(other, ""), if other.binding == "east" { 1 } else { 2 });
    assert_eq!(world.names().len(), 2);
    world.store.start_releasing();
    world.run(other, "");
    assert_eq!(world.names(), ["myconfig-f1879b"]);
    assert_eq!(world.json(Side::Copy, "myconfig-f1879b"), theirs);
}

#[test]
fn a_copy_of_the_original_kubeocean_is_taken_over_while_what_it_copies_exists() {
    let mut world = World::with(stdout(json!({"namespace": "a"})));
    let legacy = json!({
        "metadata": {
            "name": "myconfig-f1879b", "uid": "p",
            "labels": {
                (label::MANAGED_BY): label::MANAGED_BY_VALUE, synced_by("east"): "true",
                (label::VIRTUAL_LOGCONFIG): "myconfig",
            },
            "annotations": {(annotation::VIRTUAL_NAME): "myconfig"},
        },
        "spec": {},
    });
    world.put(Side::Copy, &legacy);
    let mut alone = World::default();
    alone.put(Side::Copy, &legacy);
    assert_eq!(alone.plan(&east()).actions, [], "nothing proves whose it is");
    assert_eq!(world.run(&east(), ""), 2);
    assert_eq!(world.names(), ["myconfig-f1879b"]);
    let copy = world.json(Side::Copy, "myconfig-f1879b");
    assert_eq!(copy["metadata"]["annotations"][annotation::COMPUTING_CLUSTER_UID], "cc");
}

#[test]
fn names_that_are_taken_are_told() {
    let mut world = World::with(stdout(json!({"namespace": "a"})));
    world.store.is_taken("myconfig-f1879b");
    world.run(&east(), "");
    let [second] = &world.names()[..] else { panic!("{:?}", world.names()) };
    let mut world = World::with(stdout(json!({"namespace": "a"})));
    for name in ["myconfig-f1879b", second] {
        world.store.is_taken(name);
    }
    assert_eq!(world.run(&east(), ""), 1, "it is held, and that is all");
    assert!(world.plan(&east()).blocked);
}
