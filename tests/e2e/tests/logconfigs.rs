//! LogConfigs of a log agent (TD section 15, API section 7 and its check 12).
//!
//! In: two clusters that get the kind only after the first Syncer ran, with a schema that knows nothing of the fields. Out:
//! copies that select ppods, follow their originals and go with them; and nothing where the kind or a right is missing.

use http::Method;
use kubeocean_api::keys::{annotation, label, object_finalizer, synced_by};
use kubeocean_e2e::logconfigs::{API, all, original, path, serve, stdout};
use kubeocean_e2e::pods::{DEADLINE, Objects, Stage, text};
use kubeocean_e2e::rights::{LimitedAccount, assert_rights, requests};
use kubeocean_e2e::veto::Veto;
use kubeocean_harness::{Binding, BindingSpec, shared_site, wait_until};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

fn asked(binding: &Binding<'_>) -> Vec<String> {
    let (computing, worker) = requests(binding);
    let about = computing.iter().chain(&worker).filter(|event| event.uri.contains("cls.cloud.tencent.com"));
    about.map(|event| event.uri.clone()).collect()
}

/// Both clusters serve the kind from here on. Before that a Syncer asks once whether it is there.
async fn served() {
    static SERVED: OnceCell<()> = OnceCell::const_new();
    SERVED
        .get_or_init(|| async {
            let stage = Stage::start(BindingSpec::new("logs-none"), 1).await;
            stage.scene("logs-none").await.barrier("p").await;
            assert_eq!(asked(&stage.binding), [API], "no kind, nothing to watch");
            let fleet = shared_site().await.fleet();
            for cluster in [&fleet.computing, &fleet.workers[0]] {
                serve(cluster).await;
            }
        })
        .await;
}

/// The copies of a LogConfig that the binding of the first test made: every binding makes its own.
async fn copies(worker: &Objects, name: &str) -> Vec<Value> {
    copies_for(worker, "logs", name).await
}

async fn copies_for(worker: &Objects, cluster_id: &str, name: &str) -> Vec<Value> {
    let all = worker.list(&all()).await;
    let is_one = |copy: &Value| {
        let metadata = &copy["metadata"];
        metadata["annotations"][annotation::VIRTUAL_NAME] == name
            && metadata["labels"][synced_by(cluster_id)] == "true"
    };
    all.into_iter().filter(is_one).collect()
}

async fn wait_copies(
    worker: &Objects,
    name: &str,
    what: &str,
    settled: impl Fn(&[Value]) -> bool,
) -> Vec<Value> {
    wait_until(what, DEADLINE, async || {
        let found = copies(worker, name).await;
        if settled(&found) { Ok(found) } else { Err(json!(found).to_string()) }
    })
    .await
}

/// Among others of that reason: while a test beside this one makes an admission policy, the API server refuses anybody.
async fn wait_event(computing: &Objects, object: &str, reason: &str, says: &str) {
    let events = format!(
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{object}%2Creason%3D{reason}"
    );
    wait_until(&format!("the event {reason} on {object} that says {says:?}"), DEADLINE, async || {
        let messages: Vec<String> =
            computing.list(&events).await.iter().map(|event| text(&event["message"]).to_owned()).collect();
        if messages.iter().any(|message| message.contains(says)) { Ok(()) } else { Err(messages) }
    })
    .await;
}

#[tokio::test]
async fn logs_of_ppods_are_collected_as_the_logconfig_of_their_pods_says() {
    served().await;
    let stage = Stage::start(BindingSpec::new("logs"), 1).await;
    let (computing, worker) =
        (Objects::of(stage.binding.computing()).await, Objects::of(stage.binding.worker()).await);
    computing.create(&all(), &original("web", &stdout("team-a,team-b"))).await;
    let made = wait_copies(&worker, "web", "a copy", |found| found.len() == 1).await;
    let (metadata, spec) = (&made[0]["metadata"], &made[0]["spec"]);
    assert_eq!(text(&metadata["labels"]["team"]), "a");
    assert_eq!(text(&metadata["labels"][label::MANAGED_BY]), label::MANAGED_BY_VALUE);
    assert_eq!(text(&metadata["labels"][synced_by("logs")]), "true");
    assert_eq!(text(&metadata["labels"][label::VIRTUAL_LOGCONFIG]), "web");
    assert_eq!(spec["clsDetail"], json!({"topicId": "t", "advancedConfig": {"ClsAgentMaxDepth": 3}}));
    let selection = json!({
        "namespace": stage.binding.mount_namespace(),
        "includeLabels": {
            label::VIRTUAL_NAMESPACE: "team-a,team-b", label::CLUSTER_BINDING: "logs",
        },
    });
    assert_eq!(spec["inputDetail"]["containerStdout"], selection);

    // Both sides are followed: the original's edits arrive, the worker's are undone, a deleted copy comes back.
    let kafka = json!({"spec": {"kafkaDetail": {"topic": "k"}, "clsDetail": {"topicId": null}}});
    computing.merge(&path("web"), &kafka).await;
    let spec_of =
        |copy: &Value| (copy["spec"]["kafkaDetail"].clone(), copy["spec"]["clsDetail"]["topicId"].clone());
    let followed =
        |found: &[Value]| found.iter().all(|it| spec_of(it) == (json!({"topic": "k"}), Value::Null));
    let copy = path(text(&metadata["name"]));
    wait_copies(&worker, "web", "the edit", followed).await;
    worker.merge(&copy, &json!({"spec": {"kafkaDetail": {"topic": "theirs"}}})).await;
    wait_copies(&worker, "web", "the edit by hand to go", followed).await;
    worker.delete(&copy, None).await;
    let is_new = |found: &[Value]| found.len() == 1 && found[0]["metadata"]["uid"] != metadata["uid"];
    wait_copies(&worker, "web", "another copy", is_new).await;

    // Workloads of several namespaces and kinds become several.
    let workloads = json!([
        {"kind": "deployment", "name": "b", "namespace": "team-a"},
        {"kind": "deployment", "name": "a", "namespace": "team-a"},
        {"kind": "cronjob", "name": "nightly", "namespace": "team-a"},
        {"kind": "statefulset", "name": "db", "namespace": "team-b"},
    ]);
    let input =
        json!({"spec": {"inputDetail": {"containerStdout": {"namespace": null, "workloads": workloads}}}});
    computing.merge(&path("web"), &input).await;
    let two = wait_copies(&worker, "web", "two copies", |found| {
        found.len() == 2 && found.iter().all(|copy| text(&copy["metadata"]["name"]).starts_with("web-g"))
    })
    .await;
    let names: Vec<&str> = two
        .iter()
        .map(|copy| {
            text(&copy["spec"]["inputDetail"]["containerStdout"]["includeLabels"][label::WORKLOAD_NAME])
        })
        .collect();
    assert_eq!(names, ["a,b", "db"]);
    wait_event(&computing, "web", "LogConfigNotMapped", "nightly").await;

    // Files of the worker's nodes are not the computing cluster's.
    let files = json!({"type": "host_file", "hostFile": {"logPath": "/var/lib/kubelet", "filePattern": "*"}});
    computing.create(&all(), &original("hosts", &files)).await;
    wait_event(&computing, "hosts", "LogConfigNotMapped", "host_file").await;
    assert_eq!(copies(&worker, "hosts").await, [] as [Value; 0]);
    let hosts = computing.get(&path("hosts")).await.expect("it is there");
    assert!(hosts["metadata"]["finalizers"].is_null(), "nothing is held for nothing");

    // Nor is what a second source names, whatever the type says.
    let mut two = stdout("team-a");
    two["containerFile"] = json!({"namespace": "kube-system", "logPath": "/logs"});
    two["hostFile"] = json!({"logPath": "/var/lib/kubelet"});
    computing.create(&all(), &original("two", &two)).await;
    let made = wait_copies(&worker, "two", "a copy", |found| found.len() == 1).await;
    let input = made[0]["spec"]["inputDetail"].as_object().expect("an input");
    assert_eq!(input.keys().collect::<Vec<_>>(), ["containerStdout", "type"]);
    wait_event(&computing, "two", "LogConfigNotMapped", "inputDetail.").await;

    // Somebody else's LogConfig of the name is not touched, nor is it in the way.
    let theirs = worker.create(&all(), &original("taken-99341d", &stdout("kube-system"))).await;
    computing.create(&all(), &original("taken", &stdout("team-a"))).await;
    let own = wait_copies(&worker, "taken", "a copy", |found| found.len() == 1).await;
    assert_ne!(own[0]["metadata"]["name"], theirs["metadata"]["name"]);
    assert_eq!(worker.get(&path("taken-99341d")).await.expect("theirs"), theirs);

    // A copy that the worker does not accept holds up no other, but its original.
    // Other Syncers of this program see the same LogConfig, and assert that nothing is refused to them.
    let account = format!("system:serviceaccount:{}:", stage.binding.mount_namespace());
    let condition = format!(
        "object.metadata.name == 'partly-g0-probe' || object.metadata.name.startsWith('partly-g0-') \
         && request.userInfo.username.startsWith('{account}')"
    );
    let veto = Veto {
        cluster: stage.binding.worker(),
        name: "refused-logconfigs",
        operation: "CREATE",
        of: ["cls.cloud.tencent.com", "v1", "logconfigs"],
        condition: &condition,
        allowed: "false",
        reason: "Forbidden",
    };
    let (dry, probe) = (format!("{}?dryRun=All", all()), original("partly-g0-probe", &stdout("a")));
    veto.begin(async || worker.attempt(Method::POST, &dry, &probe).await).await;
    let workloads = json!([
        {"kind": "deployment", "name": "a", "namespace": "team-a"},
        {"kind": "deployment", "name": "b", "namespace": "team-b"},
    ]);
    let input = json!({"type": "container_stdout", "containerStdout": {"workloads": workloads}});
    computing.create(&all(), &original("partly", &input)).await;
    let made = wait_copies(&worker, "partly", "the other copy", |found| found.len() == 1).await;
    assert!(text(&made[0]["metadata"]["name"]).starts_with("partly-g1-"), "{made:?}");
    wait_event(&computing, "partly", "LogConfigNotMapped", "not accepted").await;
    computing.delete(&path("partly"), None).await;
    computing.wait_gone(&path("partly")).await;
    assert_eq!(copies(&worker, "partly").await, [] as [Value; 0]);

    computing.delete(&path("web"), None).await;
    computing.wait_gone(&path("web")).await;
    assert_eq!(copies(&worker, "web").await, [] as [Value; 0]);

    // The end of the binding lets all go.
    computing.create(&all(), &original("last", &stdout("team-a"))).await;
    wait_copies(&worker, "last", "a copy", |found| found.len() == 1).await;
    let binding = "/apis/cloud.tencent.com/v1beta1/clusterbindings/logs";
    computing.delete(binding, None).await;
    computing.wait_gone(binding).await;
    assert_eq!(copies(&worker, "last").await, [] as [Value; 0]);
    let last = computing.get(&path("last")).await.expect("the user's own");
    let ours = object_finalizer("logs");
    assert!(!last["metadata"]["finalizers"].to_string().contains(&format!("\"{ours}\"")), "{last:#}");
    let (_, requests) = requests(&stage.binding);
    let refused = requests.iter().filter(|event| event.response_status.code == 403);
    assert!(refused.clone().count() > 0, "what the worker does not accept was tried");
    assert!(refused.clone().all(|event| event.uri.starts_with(&all())), "and nothing else: {refused:#?}");
}

#[tokio::test]
async fn without_the_right_it_is_off_and_holds_nothing() {
    served().await;
    let mut stage = Stage::start(BindingSpec::new("logs-limited"), 1).await;
    let computing = Objects::of(stage.binding.computing()).await;
    let held = |config: &Value| {
        let finalizer = json!(object_finalizer("logs-limited"));
        config["metadata"]["finalizers"].as_array().is_some_and(|all| all.contains(&finalizer))
    };
    computing.create(&all(), &original("limited", &stdout("team-a"))).await;
    computing.wait("it to be held", &path("limited"), |config| held(config).then_some(())).await;

    let limited = LimitedAccount::without(&stage.binding, "logconfigs").await;
    stage.binding.write_kubeconfig(&limited.kubeconfig).await.expect("a Secret");
    stage.syncer.kill();
    stage.syncer.restart().expect("a Syncer");
    stage.syncer.wait_ready().await;
    wait_event(&computing, "logs-limited", "FeatureDisabled", "LogConfigs").await;
    computing.wait("it to be let go", &path("limited"), |config| (!held(config)).then_some(())).await;
    stage.scene("logs-limited").await.barrier("p").await;
}

#[tokio::test]
async fn a_deleted_binding_goes_only_when_it_can_see_that_no_copy_is_left() {
    served().await;
    let mut stage = Stage::start(BindingSpec::new("logs-end"), 1).await;
    let (computing, worker) =
        (Objects::of(stage.binding.computing()).await, Objects::of(stage.binding.worker()).await);
    let limited = LimitedAccount::new(&stage.binding).await;
    stage.binding.write_kubeconfig(&limited.kubeconfig).await.expect("a Secret");
    stage.syncer.kill();
    stage.syncer.restart().expect("a Syncer");
    stage.syncer.wait_ready().await;
    computing.create(&all(), &original("end", &stdout("team-a"))).await;
    let copies = async || copies_for(&worker, "logs-end", "end").await.len();
    wait_until("a copy", DEADLINE, async || (copies().await == 1).then_some(()).ok_or("none")).await;

    limited.hide("logconfigs").await;
    let binding = "/apis/cloud.tencent.com/v1beta1/clusterbindings/logs-end";
    computing.delete(binding, None).await;
    let told = |binding: &Value| {
        let conditions = binding["status"]["conditions"].as_array()?;
        let cleanup = conditions.iter().find(|it| it["type"] == "SyncerCleanup")?;
        text(&cleanup["message"]).contains("list and delete of logconfigs").then_some(())
    };
    computing.wait("the missing right to be told", binding, told).await;
    assert_eq!(copies().await, 1);
    limited.may_everything().await;
    computing.wait_gone(binding).await;
    assert_eq!(copies().await, 0);
    let config = computing.get(&path("end")).await.expect("the user's own");
    let ours = format!("\"{}\"", object_finalizer("logs-end"));
    assert!(!config["metadata"]["finalizers"].to_string().contains(&ours), "{config:#}");
}

/// Whether an agent that follows this copy reads a pod of the mount namespace.
fn collects(copy: &Value, pod: &Value) -> bool {
    let source = &copy["spec"]["inputDetail"]["containerStdout"];
    let labels = source["includeLabels"].as_object();
    source["namespace"] == pod["metadata"]["namespace"]
        && labels.into_iter().flatten().all(|(key, values)| {
            text(values).split(',').any(|value| pod["metadata"]["labels"][key.as_str()] == value)
        })
}

/// TD-1504, TD-1505: bindings may share a worker cluster and a mount namespace. Each maps every LogConfig, for its own pods, so
/// that no line is collected twice; and one of them leaves without the other.
#[tokio::test]
async fn two_bindings_map_for_their_own_pods_and_one_leaves_without_the_other() {
    served().await;
    let one = Stage::start(BindingSpec::new("logs-one"), 1).await;
    let mount = one.binding.mount_namespace();
    let two = Stage::start(BindingSpec::new("logs-two").mount_namespace(mount), 1).await;
    let (computing, worker) =
        (Objects::of(one.binding.computing()).await, Objects::of(one.binding.worker()).await);
    computing.create(&all(), &original("both", &stdout("logs-both"))).await;
    let only = async |cluster_id: &str| {
        wait_until(&format!("the copy for {cluster_id}"), DEADLINE, async || {
            let mut found = copies_for(&worker, cluster_id, "both").await;
            if found.len() == 1 { Ok(found.remove(0)) } else { Err(json!(found).to_string()) }
        })
        .await
    };
    let (first, second) = (only("logs-one").await, only("logs-two").await);
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
    for (stage, pod) in [(&one, "of-one"), (&two, "of-two")] {
        let (_, ppod) = stage.scene("logs-both").await.run_pod(pod, json!({})).await;
        assert_eq!(ppod["metadata"]["namespace"], *mount);
        let read_by: Vec<Value> =
            worker.list(&all()).await.into_iter().filter(|copy| collects(copy, &ppod)).collect();
        let by: Vec<&Value> =
            read_by.iter().map(|copy| &copy["metadata"]["labels"][label::CLUSTER_BINDING]).collect();
        assert_eq!(by, [stage.binding.name()], "{read_by:#?}");
    }

    let binding = "/apis/cloud.tencent.com/v1beta1/clusterbindings/logs-one";
    computing.delete(binding, None).await;
    computing.wait_gone(binding).await;
    assert_eq!(copies_for(&worker, "logs-one", "both").await, [] as [Value; 0]);
    assert_eq!(only("logs-two").await["metadata"]["uid"], second["metadata"]["uid"], "the other's stays");
    let held = computing.get(&path("both")).await.expect("the user's own")["metadata"]["finalizers"].clone();
    let holds = |id: &str| held.as_array().is_some_and(|all| all.contains(&json!(object_finalizer(id))));
    assert_eq!((holds("logs-one"), holds("logs-two")), (false, true), "{held}");
    // The name that became free is no reason to make another copy, and edits arrive.
    computing.merge(&path("both"), &json!({"spec": {"clsDetail": {"topicId": "u"}}})).await;
    wait_until("the edit", DEADLINE, async || {
        let copy = only("logs-two").await;
        let (uid, topic) = (&copy["metadata"]["uid"], &copy["spec"]["clsDetail"]["topicId"]);
        if (uid, topic) == (&second["metadata"]["uid"], &json!("u")) { Ok(()) } else { Err(copy.to_string()) }
    })
    .await;
    computing.delete(&path("both"), None).await;
    wait_until("its copy to go", DEADLINE, async || copies_for(&worker, "logs-two", "both").await.is_empty())
        .await;
    assert_rights(&two.binding);
}
