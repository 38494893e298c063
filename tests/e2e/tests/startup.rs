//! How the Syncer starts and ends: what is wrong is said with its remedy, mending it is enough, a standby takes over.

use std::process::{Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use kubeocean_api::{
    keys::{annotation, condition_type, label},
    name::vnode_name,
};
use kubeocean_e2e::pods::Objects;
use kubeocean_harness::program::kubeocean_binary;
use kubeocean_harness::site::SYSTEM_NAMESPACE;
use kubeocean_harness::{
    AuditEvent, Binding, BindingSpec, Cluster, NodeShape, Program, ProgramSpec, shared, shared_site,
    wait_until,
};
use serde_json::json;

/// For what takes a second or two on an idle machine.
const DEADLINE: Duration = Duration::from_mins(1);
/// What the product promises for a repaired connection and for a clean stop; asserted five times as long.
const PROMISE: Duration = Duration::from_secs(5);

/// A binding that takes nodes labelled for it, however many sets of them are made.
async fn bind(name: &str) -> Binding<'static> {
    let expression = json!({"key": "e2e.test/startup", "operator": "In", "values": [name]});
    let selector = json!({"nodeSelectorTerms": [{"matchExpressions": [expression]}]});
    let site = shared_site().await;
    let binding = site.bind(BindingSpec::new(name).field("nodeSelector", selector)).await.expect("a binding");
    let all = json!({"resourceLimits": [{"resource": "cpu", "percent": 100}]});
    binding.policy(name, all).await.expect("a policy");
    binding
}

/// Makes a worker node for the binding and returns the path of its future vnode.
async fn node(binding: &Binding<'_>, prefix: &str) -> String {
    let shape = NodeShape::default().label("e2e.test/startup", binding.name());
    let names = binding.worker().create_nodes(prefix, 1, &shape).await.expect("a worker node");
    format!("/api/v1/nodes/{}", vnode_name(binding.cluster_id(), &names[0]))
}

async fn wait_vnode(computing: &Objects, path: &str) {
    computing
        .wait("the vnode", path, |vnode| {
            vnode["metadata"]["labels"][label::CLUSTER_BINDING].as_str().map(|_| ())
        })
        .await;
}

/// Waits until an event on the binding names the Secret and says `text`, and the log says it too.
async fn wait_told(computing: &Objects, binding: &Binding<'_>, syncer: &mut Program, text: &str) {
    let path = format!(
        "/api/v1/events?fieldSelector=involvedObject.kind%3DClusterBinding%2CinvolvedObject.name%3D{}",
        binding.name()
    );
    let secret = format!("{SYSTEM_NAMESPACE}/{}", binding.secret_name());
    let message = wait_until(&format!("an event that says {text:?}"), DEADLINE, async || {
        let events = computing.list(&path).await;
        let messages: Vec<_> =
            events.iter().map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect();
        let found = messages.iter().find(|message| message.contains(text)).cloned();
        found.ok_or(messages)
    })
    .await;
    assert!(message.contains(&secret), "the event names {secret}: {message}");
    syncer.wait_log(text, DEADLINE).await;
    assert!(syncer.process().exited().expect("a process").is_none(), "the Syncer stays alive");
    assert_eq!(syncer.health("/healthz").await.expect("an answer").0, 200);
}

/// Waits until the Syncer ends by itself.
async fn ended(syncer: &mut Program) -> ExitStatus {
    wait_until("the Syncer to end", DEADLINE, async || {
        syncer.process().exited().map_err(|error| error.to_string())?.ok_or_else(|| "it runs".to_owned())
    })
    .await
}

#[tokio::test]
async fn a_wrong_kubeconfig_is_told_and_mending_it_is_enough() {
    let binding = bind("mending").await;
    let computing = Objects::of(binding.computing()).await;
    let secret = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets/{}", binding.secret_name());
    let good = binding
        .worker()
        .service_account_kubeconfig(binding.mount_namespace(), "kubeocean-syncer")
        .await
        .expect("a kubeconfig");
    let first = node(&binding, "mending-a").await;

    computing.delete(&secret, None).await;
    computing.wait_gone(&secret).await;
    let mut syncer = binding.syncer(&[]).await.expect("a Syncer");
    wait_told(&computing, &binding, &mut syncer, "not found; create it with").await;
    let mended = Instant::now();
    binding.write_kubeconfig(&good).await.expect("the Secret");
    wait_vnode(&computing, &first).await;
    println!("missing Secret: working {:?} after it was made", mended.elapsed());
    assert!(mended.elapsed() < 5 * PROMISE, "{:?}", mended.elapsed());
    syncer.wait_ready().await;

    // Nothing listens on the discard port of this machine.
    let unreachable = good.replace(binding.worker().server(), "https://127.0.0.1:9");
    assert_ne!(unreachable, good);
    for (prefix, broken, text) in [
        ("mending-b", unreachable.as_str(), "check the address, the network and the CA"),
        ("mending-c", "no kubeconfig at all", "invalid kubeconfig format"),
    ] {
        binding.write_kubeconfig(broken).await.expect("the Secret");
        wait_told(&computing, &binding, &mut syncer, text).await;
        let vnode = node(&binding, prefix).await;
        let mended = Instant::now();
        binding.write_kubeconfig(&good).await.expect("the Secret");
        wait_vnode(&computing, &vnode).await;
        println!("{text}: working {:?} after it was mended", mended.elapsed());
        assert!(mended.elapsed() < 5 * PROMISE, "{:?}", mended.elapsed());
    }

    // Gone and made anew while it is used, as by a tool that replaces Secrets.
    computing.delete(&secret, None).await;
    wait_until("the Secret to be missed again", DEADLINE, async || {
        let missed = syncer.log().matches("not found; create it with").count();
        if missed > 1 { Ok(()) } else { Err(missed) }
    })
    .await;
    let vnode = node(&binding, "mending-d").await;
    let mended = Instant::now();
    binding.write_kubeconfig(&good).await.expect("the Secret");
    wait_vnode(&computing, &vnode).await;
    println!("deleted Secret: working {:?} after it was made anew", mended.elapsed());
    assert!(mended.elapsed() < 5 * PROMISE, "{:?}", mended.elapsed());

    let stopping = Instant::now();
    let status = syncer.stop().await.expect("an end");
    println!("stopped within {:?}", stopping.elapsed());
    assert!(status.success(), "{status}");
    assert!(stopping.elapsed() < 5 * PROMISE, "{:?}", stopping.elapsed());
}

/// BU-1802: the right kubeconfig of the wrong cluster takes no vnode away.
#[tokio::test]
async fn another_cluster_behind_the_kubeconfig_is_not_touched_until_that_is_meant() {
    let binding = bind("moving").await;
    let computing = Objects::of(binding.computing()).await;
    let uid = async |cluster: &Cluster| {
        let namespace =
            Objects::of(cluster).await.get("/api/v1/namespaces/kube-system").await.expect("it is there");
        namespace["metadata"]["uid"].as_str().expect("a UID").to_owned()
    };
    let (worker_uid, other_uid) = (uid(binding.worker()).await, uid(binding.computing()).await);
    let recorded = async |expected: &str| {
        let path = format!("/apis/cloud.tencent.com/v1beta1/clusterbindings/{}", binding.name());
        computing
            .wait("the worker's UID on the binding", &path, |object| {
                (object["metadata"]["annotations"][annotation::WORKER_CLUSTER_UID] == *expected).then_some(())
            })
            .await;
    };
    let good = binding
        .worker()
        .service_account_kubeconfig(binding.mount_namespace(), "kubeocean-syncer")
        .await
        .expect("a kubeconfig");
    let mut syncer = binding.syncer(&[]).await.expect("a Syncer");
    let vnode = node(&binding, "moving-a").await;
    wait_vnode(&computing, &vnode).await;
    recorded(&worker_uid).await;
    let before = computing.get(&vnode).await.expect("it is there");

    binding.write_kubeconfig(binding.computing().kubeconfig()).await.expect("the Secret");
    wait_told(&computing, &binding, &mut syncer, "leads to another worker cluster than before").await;
    let told = computing
        .wait("the vnode to tell it", &vnode, |vnode| {
            let all = vnode["status"]["conditions"].as_array()?;
            let reachable = all.iter().find(|it| it["type"] == condition_type::WORKER_REACHABLE)?;
            (reachable["reason"] == "OtherCluster").then(|| vnode.clone())
        })
        .await;
    assert_eq!(told["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(told["metadata"].get("deletionTimestamp"), None, "{told}");
    assert_eq!(told["spec"].get("unschedulable"), None, "it is not withdrawn: {told}");
    recorded(&worker_uid).await;

    binding.write_kubeconfig(&good).await.expect("the Secret");
    let next = node(&binding, "moving-b").await;
    wait_vnode(&computing, &next).await;
    let after = computing.get(&vnode).await.expect("it is there");
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);

    binding.write_kubeconfig(binding.computing().kubeconfig()).await.expect("the Secret");
    wait_until("the other cluster to be told of again", DEADLINE, async || {
        let told = syncer.log().matches("leads to another worker cluster than before").count();
        if told > 1 { Ok(()) } else { Err(told) }
    })
    .await;
    let path = format!("/apis/cloud.tencent.com/v1beta1/clusterbindings/{}", binding.name());
    let meant = json!({"metadata": {"annotations": {(annotation::WORKER_CLUSTER_UID): null}}});
    computing.merge(&path, &meant).await;
    recorded(&other_uid).await;
    syncer.stop().await.expect("an end");
}

#[tokio::test]
async fn a_standby_says_who_leads_and_takes_over() {
    let binding = bind("standby").await;
    let computing = Objects::of(binding.computing()).await;
    let spec = |identity: &str| {
        ProgramSpec::syncer(binding.name()).args(&["--leader-elect=true"]).env("POD_NAME", identity)
    };
    let mut first = Program::start(binding.computing(), spec("first")).await.expect("a Syncer");
    first.wait_log("leading", DEADLINE).await;
    let a = node(&binding, "standby-a").await;
    wait_vnode(&computing, &a).await;

    let mut second = Program::start(binding.computing(), spec("second")).await.expect("a second Syncer");
    second.wait_ready().await;
    second.wait_log("standby: another process leads", DEADLINE).await;
    let line = second.log().lines().find(|line| line.contains("standby:")).unwrap_or_default().to_owned();
    assert!(line.contains("first_"), "the log names the leader: {line}");
    let mount_account = format!("system:serviceaccount:{}:kubeocean-syncer", binding.mount_namespace());
    assert!(!second.log().contains("connected to the worker cluster"), "a standby does no work");

    let stopping = Instant::now();
    let status = first.stop().await.expect("an end");
    println!("the leader stopped within {:?}", stopping.elapsed());
    assert!(status.success(), "{status}");
    assert!(stopping.elapsed() < 5 * PROMISE, "{:?}", stopping.elapsed());
    let freed = Instant::now();
    second.wait_log("connected to the worker cluster", DEADLINE).await;
    println!("the standby took over after {:?}", freed.elapsed());
    let b = node(&binding, "standby-b").await;
    wait_vnode(&computing, &b).await;
    let events = binding.worker().audit_events().expect("an audit log");
    let forbidden = events
        .iter()
        .filter(|event| event.user.username == mount_account && event.response_status.code == 403);
    assert_eq!(forbidden.count(), 0);

    // A leader that dies without a word is followed when its Lease has run out.
    let third = Program::start(binding.computing(), spec("third")).await.expect("a third Syncer");
    third.wait_log("standby: another process leads", DEADLINE).await;
    second.kill();
    let killed = Instant::now();
    third.wait_log("connected to the worker cluster", DEADLINE).await;
    println!("the standby of a killed leader took over after {:?}", killed.elapsed());
    let c = node(&binding, "standby-c").await;
    wait_vnode(&computing, &c).await;
}

/// BU-104: whoever has the Lease now must not meet another one that acts.
#[tokio::test]
async fn a_leader_whose_lease_was_taken_ends_and_leaves_everything_to_the_other() {
    const NAME: &str = "usurped";
    let binding = bind(NAME).await;
    let computing = Objects::of(binding.computing()).await;
    let spec = ProgramSpec::syncer(NAME).args(&["--leader-elect=true"]);
    let mut leader = Program::start(binding.computing(), spec).await.expect("a Syncer");
    let served = node(&binding, "usurped-a").await;
    wait_vnode(&computing, &served).await;

    let lease =
        format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM_NAMESPACE}/leases/kubeocean-syncer-{NAME}");
    // It need not be renewed while this test runs.
    let taken = json!({"spec": {"holderIdentity": "another", "leaseDurationSeconds": 3600}});
    computing.merge(&lease, &taken).await;
    let since = Instant::now();
    let status = ended(&mut leader).await;
    let end = jiff::Timestamp::now();
    println!("the leader ended {:?} after its Lease was taken", since.elapsed());
    assert_eq!(status.code(), Some(1));
    assert!(leader.log().contains("leadership lost"), "{}", leader.log());

    let next = node(&binding, "usurped-b").await;
    let account = format!("system:serviceaccount:{}:kubeocean-syncer", binding.mount_namespace());
    let acts = |event: &AuditEvent| {
        let user = &event.user.username;
        let own =
            *user == account || user.ends_with(":kubeocean-syncer") && event.object_ref.name.contains(NAME);
        let at: jiff::Timestamp = event.request_received_timestamp.parse().expect("a time");
        own && event.is_write() && at > end
    };
    for cluster in [binding.computing(), binding.worker()] {
        let events = cluster.audit_events().expect("an audit log");
        let late: Vec<_> = events.into_iter().filter(acts).map(|event| event.uri).collect();
        assert!(late.is_empty(), "{late:#?}");
    }
    assert_eq!(computing.get(&next).await, None, "nobody acts");
    let held = computing.get(&lease).await.expect("the Lease");
    assert_eq!(held["spec"]["holderIdentity"], "another");
}

#[tokio::test]
async fn requests_are_as_slow_as_the_flags_ask_for() {
    const NODES: usize = 24;
    let binding = bind("slow").await;
    let shape = NodeShape::default().label("e2e.test/startup", "slow");
    binding.worker().create_nodes("slow", NODES, &shape).await.expect("worker nodes");
    let limits = ["--physical-client-qps=5", "--physical-client-burst=4"];
    let mut syncer = binding.syncer(&limits).await.expect("a Syncer");
    syncer.wait_ready().await;
    let account = format!("system:serviceaccount:{}:kubeocean-syncer", binding.mount_namespace());
    let labelled = wait_until("all worker nodes to be labelled", DEADLINE, async || {
        let events = binding.worker().audit_events().map_err(|error| error.to_string())?;
        let mine: Vec<_> = events.into_iter().filter(|event| event.user.username == account).collect();
        let patches =
            mine.iter().filter(|event| event.verb == "patch" && event.object_ref.resource == "nodes").count();
        if patches >= NODES { Ok(mine) } else { Err(format!("{patches} of {NODES}")) }
    })
    .await;
    let times: Vec<f64> = labelled
        .iter()
        .map(|event| {
            let at: jiff::Timestamp = event.request_received_timestamp.parse().expect("a time");
            at.as_duration().as_secs_f64()
        })
        .collect();
    let first = times.iter().copied().fold(f64::INFINITY, f64::min);
    let span = times.iter().copied().fold(0.0, f64::max) - first;
    println!("{} requests in {span:.1} s", times.len());
    // The burst, five a second, and what was on its way for longer than others.
    let count = f64::from(u32::try_from(times.len()).expect("a small number"));
    assert!(count <= 4.0 + 5.0 * span + 4.0, "{count} requests in {span} s");
}

#[tokio::test]
async fn a_port_in_use_ends_the_start_and_is_named() {
    let binding = bind("port-in-use").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for flag in ["--metrics-bind-address", "--health-probe-bind-address"] {
        let mut syncer = binding.syncer(&[&format!("{flag}={address}")]).await.expect("a Syncer");
        assert_eq!(ended(&mut syncer).await.code(), Some(1), "{flag}");
        let log = syncer.log();
        assert!(log.contains(&address) && log.contains(flag), "{log}");
    }
}

async fn run(arguments: &'static [&'static str]) -> Output {
    let run = move || Command::new(kubeocean_binary().expect("the program")).args(arguments).output();
    tokio::task::spawn_blocking(run).await.expect("a task").expect("a run")
}

#[tokio::test]
async fn a_missing_binding_name_ends_the_start_and_is_named() {
    for arguments in [&["syncer"] as &[&str], &["syncer", "--cluster-binding-name="]] {
        let output = run(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains("--cluster-binding-name is required"), "{message}");
    }
}

#[tokio::test]
async fn the_printed_definitions_are_accepted_by_a_server() {
    let output = run(&["crd"]).await;
    assert!(output.status.success());
    let yaml = String::from_utf8(output.stdout).expect("YAML is UTF-8");
    let fleet = shared().await;
    for cluster in [&fleet.computing, fleet.worker()] {
        let apply = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--filename=-"];
        let applied = cluster.kubectl_with_input(&apply, &yaml).await.expect("kubectl");
        let said = String::from_utf8_lossy(&applied.stdout);
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        for name in ["clusterbindings.cloud.tencent.com", "resourceleasingpolicies.cloud.tencent.com"] {
            assert!(said.contains(name), "{said}");
        }
    }
}
