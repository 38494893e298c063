//! Placement policies on real clusters: what the Syncer does not admit, and what a real scheduler is told (PO-605, PO-606).
//!
//! The module is `place.wat`: a worker node says by the amounts of extended resources what the answer about it is.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::time::Duration;

use axum::body::Body;
use jiff::Timestamp;
use kube::Config;
use kubeocean_api::keys::{annotation, condition_type, label, namespace, taint};
use kubeocean_api::place::{AUDIENCE, Endpoint, syncer_lease};
use kubeocean_e2e::exposition::Page;
use kubeocean_e2e::modules::publish;
use kubeocean_e2e::pods::{DEADLINE, Objects, Stage, condition, pod_path, text};
use kubeocean_e2e::rights::{assert_manager_rights, assert_rights};
use kubeocean_harness::chart::{Chart, helm_template};
use kubeocean_harness::{
    BindingSpec, Cluster, Fleet, NodeShape, Program, Site, wait::try_wait_until, wait_until,
};
use kubeocean_hostile_policies::{Guest, place_guest};
use kubeocean_runtime::{request::paths, tls::PinnedClient};
use serde_json::{Value, json};

/// An entry that does what worker nodes say.
async fn entry(worker: &Cluster, name: &str) -> Value {
    let mut entry = published(worker, name, &place_guest('a')).await;
    entry["name"] = "where".into();
    entry
}

/// An entry of that name which runs a module.
async fn published(worker: &Cluster, name: &str, guest: &Guest) -> Value {
    json!({"name": name, "module": publish(worker, name, &guest.bytes()).await})
}

/// Makes a worker node say what the answer about it is.
async fn answer(worker: &Objects, node: &str, fit: u32, score: u32) {
    let amounts = json!({"a.test/fit": fit.to_string(), "a.test/score": score.to_string()});
    let patch = json!({"status": {"capacity": amounts, "allocatable": amounts}});
    worker.merge(&format!("/api/v1/nodes/{node}/status"), &patch).await;
}

#[tokio::test]
async fn a_pod_that_policies_do_not_admit_waits_and_runs_when_a_fact_or_the_policy_changes() {
    let stage = Stage::start(BindingSpec::new("place-admit"), 1).await;
    let scene = stage.scene("place-admit").await;
    let vnode = stage.wait_vnodes().await.remove(0);
    let node = text(&vnode["metadata"]["annotations"][annotation::PHYSICAL_NODE_NAME]).to_owned();
    let vnode = text(&vnode["metadata"]["name"]).to_owned();
    scene.run_pod("before", json!({"nodeName": vnode})).await;

    let entry = entry(stage.binding.worker(), "place-admit").await;
    answer(&scene.worker, &node, 1, 0).await;
    stage.binding.policy("place-admit", json!({"policies": [entry]})).await.unwrap();
    let vnode_path = format!("/api/v1/nodes/{vnode}");
    scene
        .computing
        .wait("the vnode to say it", &vnode_path, |vnode| {
            (vnode["status"]["allocatable"]["a.test/fit"] == "1").then_some(())
        })
        .await;

    let denied = |pod: &Value| {
        let told = condition(pod, condition_type::POLICY_ADMITTED);
        (told["status"] == "False" && told["reason"] == "Hostile").then(|| told.clone())
    };
    for (name, admit) in [("fact", 0), ("policy", 1)] {
        scene.create_pod(&scene.pod(name, json!({"nodeName": vnode}))).await;
        let told = scene.computing.wait("the pod to be denied", &scene.vpod(name), denied).await;
        assert_eq!(text(&told["message"]), "on purpose (policy place-admit/where)");
        let event = scene.wait_event(name, "PolicyDenied").await;
        assert_eq!(event, "Hostile: on purpose (policy place-admit/where)");
        assert!(scene.worker.get(&scene.ppod(name)).await.is_none(), "nothing was made for it");
        if admit == 0 {
            answer(&scene.worker, &node, 0, 0).await;
        } else {
            let all = json!({"resourceLimits": [{"resource": "cpu", "percent": 100}]});
            stage.binding.policy("place-admit", all).await.unwrap();
        }
        let (pod, _) = scene.wait_running(name).await;
        assert_eq!(condition(&pod, condition_type::POLICY_ADMITTED)["status"], "True");
        if admit == 0 {
            answer(&scene.worker, &node, 1, 0).await;
            scene
                .computing
                .wait("the vnode to say it again", &vnode_path, |vnode| {
                    (vnode["status"]["allocatable"]["a.test/fit"] == "1").then_some(())
                })
                .await;
        }
    }
    let before = scene.computing.get(&scene.vpod("before")).await.unwrap();
    assert_eq!(before["status"]["phase"], "Running", "what has a copy keeps it");
    assert!(condition(&before, condition_type::POLICY_ADMITTED).is_null());
    assert_rights(&stage.binding);
}

/// Rejects every candidate until a second of the clock, saying how long that still is.
fn later_until(second: i64) -> Guest {
    let now = "(i64.load offset=8 (local.get $args))";
    let code = format!(
        "(if (i64.lt_s {now} (i64.const {second})) (then
          (block $end (loop $each
            (br_if $end (i32.ge_u (local.get $row) (call $rows (local.get $args))))
            (i32.store8 (local.get $at) (i32.const 2))
            (i32.store offset=4 (local.get $at) (i32.wrap_i64 (i64.sub (i64.const {second}) {now})))
            (i32.store8 offset=12 (local.get $at) (i32.const 1))
            (local.set $at (i32.add (local.get $at) (i32.const 20)))
            (local.set $row (i32.add (local.get $row) (i32.const 1)))
            (br $each)))
          (return (i32.const 272))))"
    );
    place_guest('l').with("PLACE", &code)
}

#[tokio::test]
async fn a_pod_told_later_waits_and_gets_its_copy_after_these_seconds() {
    let stage = Stage::start(BindingSpec::new("place-later"), 1).await;
    let scene = stage.scene("place-later").await;
    let vnode = stage.wait_vnodes().await.remove(0);
    let vnode = text(&vnode["metadata"]["name"]).to_owned();
    let open = Timestamp::now().as_second() + 25;
    let entry = published(stage.binding.worker(), "place-later", &later_until(open)).await;
    stage.binding.policy("place-later", json!({"policies": [entry]})).await.unwrap();
    wait_active(&scene.worker, "place-later", 1).await;

    scene.create_pod(&scene.pod("waits", json!({"nodeName": vnode}))).await;
    let denied = |pod: &Value| {
        let told = condition(pod, condition_type::POLICY_ADMITTED);
        (told["status"] == "False" && told["reason"] == "Hostile").then_some(())
    };
    scene.computing.wait("the pod to be told later", &scene.vpod("waits"), denied).await;
    assert!(Timestamp::now().as_second() < open, "the machine was too slow to see the pod wait");
    assert!(scene.worker.get(&scene.ppod("waits")).await.is_none(), "nothing was made for it");

    let (_, copy) = scene.wait_running("waits").await;
    let made: Timestamp = text(&copy["metadata"]["creationTimestamp"]).parse().unwrap();
    let after = made.as_second() - open;
    assert!((0..8).contains(&after), "{after} s after it was allowed");
    assert_rights(&stage.binding);
}

/// A free port of this machine's first loopback address.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until so many entries of a policy run.
async fn wait_active(worker: &Objects, policy: &str, count: usize) {
    wait_until("the entries to run", DEADLINE, async || {
        let policy = worker.get(&paths::policy(policy)).await.unwrap_or_default();
        let entries = policy["status"]["policies"].as_array().cloned().unwrap_or_default();
        let active = entries.iter().filter(|entry| entry["state"] == "Active").count();
        if active == count { Ok(()) } else { Err(policy["status"].to_string()) }
    })
    .await;
}

/// A pod for vnodes of the binding, `more` in its spec.
fn pod(name: &str, binding: &str, more: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "automountServiceAccountToken": false,
            "nodeSelector": {label::CLUSTER_BINDING: binding},
            "tolerations": [{"key": taint::VNODE, "operator": "Exists"}],
            "containers": [{"name": "c", "image": "batch:1", "resources": {"requests": {"cpu": "10m"}}}],
        },
    });
    for (key, value) in more.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

/// Waits until a pod has a node, and returns that node's name.
async fn scheduled(computing: &Objects, name: &str) -> String {
    let node = |pod: &Value| pod["spec"]["nodeName"].as_str().map(str::to_owned);
    computing.wait(&format!("{name} to be scheduled"), &pod_path("default", name), node).await
}

/// A Manager with the scheduler extender, and a scheduler that asks it.
async fn extending_manager(site: &Site<'_>, args: &[&str]) -> Program {
    let address = format!("127.0.0.1:{}", free_port());
    let flag = format!("--scheduler-extender-bind-address={address}");
    let mut manager = site.manager(&[&[flag.as_str()], args].concat()).await.unwrap();
    manager.wait_ready().await;
    let mut extender = charted_extender(&format!("https://{address}/scheduler")).await;
    // The scheduler's own scores shall not decide.
    extender["weight"] = 100.into();
    site.computing().restart_scheduler_with(&[extender]).await.unwrap();
    manager
}

/// The extender at an address, as the chart writes it into the configuration of a scheduler.
async fn charted_extender(prefix: &str) -> Value {
    let values = json!({"manager": {"schedulerExtender": {"enabled": true, "urlPrefix": prefix}}});
    let objects = helm_template(Chart::Kubeocean, "kubeocean", "kubeocean-system", &values).await.unwrap();
    let objects: Vec<Value> = serde_saphyr::from_multiple(&objects).unwrap();
    let is_ours = |object: &&Value| {
        object["kind"] == "ConfigMap" && object["metadata"]["name"] == "kubeocean-scheduler-extender"
    };
    let text = text(&objects.iter().find(is_ours).unwrap()["data"]["kube-scheduler.yaml"]);
    let configuration: Value = serde_saphyr::from_str(text).unwrap();
    let extenders = configuration["extenders"].as_array().unwrap();
    assert_eq!(extenders.len(), 1, "{text}");
    assert_eq!(extenders[0]["urlPrefix"], prefix);
    extenders[0].clone()
}

/// Waits until pods may go to a vnode that says what the answer about it is.
async fn wait_offered(computing: &Objects, vnode: &str) {
    let ready = |vnode: &Value| {
        let taints = vnode["spec"]["taints"].as_array();
        let keys = taints.into_iter().flatten().map(|taint| text(&taint["key"]));
        let told = vnode["status"]["allocatable"]["a.test/fit"].is_string();
        let ready = condition(vnode, "Ready")["status"] == "True";
        (told && ready && keys.filter(|key| key.starts_with("node.kubernetes.io/")).count() == 0)
            .then_some(())
    };
    computing.wait("the vnode", &format!("/api/v1/nodes/{vnode}"), ready).await;
}

/// Part of a pod's spec that leaves the scheduler one node.
fn only_on(node: &str) -> Value {
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": [node]},
        ]}],
    }}}})
}

/// Waits for an event by which the scheduler says why a pod gets no node, with a word in it.
async fn scheduler_says(computing: &Objects, pod: &str, word: &str) -> String {
    let events = format!(
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{pod}%2Creason%3DFailedScheduling"
    );
    wait_until("the scheduler to say why", DEADLINE, async || {
        let events = computing.list(&events).await;
        let texts: Vec<String> = events.iter().map(|event| text(&event["message"]).to_owned()).collect();
        texts.iter().find(|text| text.contains(word)).cloned().ok_or(texts)
    })
    .await
}

#[tokio::test]
async fn a_real_scheduler_keeps_away_from_rejected_vnodes_and_prefers_good_ones() {
    let fleet = Fleet::start(1).await.unwrap();
    let site = Site::install(&fleet).await.unwrap();
    let computing = Objects::of(&fleet.computing).await;
    let binding = site.bind(BindingSpec::new("ext")).await.unwrap();
    let nodes = binding.worker().create_nodes("ext", 3, &NodeShape::new("8", "32Gi")).await.unwrap();
    let worker = Objects::of(binding.worker()).await;
    for (node, fit, score) in [(0, 1, 0), (1, 0, 11), (2, 0, 101)] {
        answer(&worker, &nodes[node], fit, score).await;
    }
    let where_to = entry(binding.worker(), "ext").await;
    let forever = place_guest('z').with("POISONED", "(call $forever)");
    let mut loops = published(binding.worker(), "ext-loops", &forever).await;
    loops["onError"] = "Ignore".into();
    binding.policy("ext", json!({"policies": [where_to, loops]})).await.unwrap();

    let manager = extending_manager(&site, &[]).await;
    let vnode = |node: &str| format!("vnode-{}-{node}", binding.cluster_id());
    for node in &nodes {
        wait_offered(&computing, &vnode(node)).await;
    }
    wait_active(&worker, "ext", 2).await;

    // From now on the second entry loops at every question, until it is in quarantine; nobody waits for it for long.
    let looping =
        json!({"status": {"capacity": {"z.test/fit": "666"}, "allocatable": {"z.test/fit": "666"}}});
    worker.merge(&format!("/api/v1/nodes/{}/status", nodes[1]), &looping).await;
    let says = |vnode: &Value| vnode["status"]["allocatable"]["z.test/fit"].is_string().then_some(());
    computing.wait("the vnode", &format!("/api/v1/nodes/{}", vnode(&nodes[1])), says).await;
    for number in 0..5 {
        let name = format!("best-{number}");
        computing.create("/api/v1/namespaces/default/pods", &pod(&name, "ext", &json!({}))).await;
        assert_eq!(scheduled(&computing, &name).await, vnode(&nodes[2]), "the place with the best score");
    }
    let given_up = |policy: &Value| {
        let looping = &policy["status"]["policies"][1];
        (looping["state"] == "Quarantined").then(|| looping.clone())
    };
    let looping = worker.wait("the looping entry to be given up", &paths::policy("ext"), given_up).await;
    assert!(text(&looping["lastError"]).starts_with("Timeout"), "{looping}");
    assert!(looping["errors"].as_u64() >= Some(3), "{looping}");
    let only = only_on(&vnode(&nodes[0]));
    computing.create("/api/v1/namespaces/default/pods", &pod("rejected", "ext", &only)).await;
    let said = scheduler_says(&computing, "rejected", "Hostile").await;
    assert!(said.contains("Hostile: on purpose (policy ext/where)"), "{said}");
    println!("the scheduler says: {said}");
    // By which a person sees that it asks: a row for each vnode and pod, where its copy alone would be one.
    let page = Page::parse(&manager.metrics().await.unwrap());
    let rows = |result| {
        let labels =
            [("clusterbinding", "ext"), ("entry", "ext/where"), ("kind", "place"), ("result", result)];
        page.value("kubeocean_policy_rows_total", &labels)
    };
    let asked: f64 = ["accept", "reject"].into_iter().filter_map(rows).sum();
    assert!(asked >= 15.0, "{asked} rows for five pods and three vnodes");

    // Without the extender the scheduler goes on: it is ignorable.
    drop(manager);
    computing.create("/api/v1/namespaces/default/pods", &pod("alone", "ext", &only)).await;
    assert_eq!(scheduled(&computing, "alone").await, vnode(&nodes[0]));
}

/// The policy server of a Syncer, as its Lease names it.
async fn endpoint(computing: &Objects, cluster_id: &str) -> Endpoint {
    let lease = paths::lease(namespace::SYSTEM, &syncer_lease(cluster_id));
    let named =
        |lease: &Value| lease["metadata"]["annotations"][annotation::POLICY_ENDPOINT].as_str()?.parse().ok();
    computing.wait("the Lease to say where the policy server is", &lease, named).await
}

/// An account of the computing cluster, and whom its token is for.
type Account<'a> = (&'a str, &'a str, &'a [&'a str]);

/// What a policy server answers to a question about a pod, asked as an account, or as nobody.
async fn ask(
    site: &Site<'_>,
    server: &Endpoint,
    account: Option<Account<'_>>,
    nodes: &[String],
) -> (u16, Value) {
    let mut ours = Config::new("https://elsewhere.test".parse().unwrap());
    if let Some((namespace, name, audiences)) = account {
        let lifetime = Duration::from_mins(10);
        let token = site.computing().token_for(namespace, name, lifetime, audiences).await.unwrap();
        ours.auth_info.token = Some(token.into());
    }
    let question = json!({
        "stage": "schedule", "pod": {"metadata": {"name": "p", "namespace": "default"}, "spec": {}},
        "nodes": nodes, "timeoutMilliseconds": 5000,
    });
    let client = PinnedClient::new(server, Some(&ours)).unwrap();
    let request = http::Request::post("/policy/place").body(Body::from(question.to_string())).unwrap();
    let answer = client.send(request).await.unwrap();
    let code = answer.status().as_u16();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (code, serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into()))
}

#[tokio::test]
async fn a_manager_asks_the_syncer_of_another_process_and_takes_its_place_when_it_is_gone() {
    let fleet = Fleet::start(1).await.unwrap();
    let site = Site::install(&fleet).await.unwrap();
    let computing = Objects::of(&fleet.computing).await;
    let binding = site.bind(BindingSpec::new("apart")).await.unwrap();
    let nodes = binding.worker().create_nodes("apart", 2, &NodeShape::new("8", "32Gi")).await.unwrap();
    let worker = Objects::of(binding.worker()).await;
    for (node, fit, score) in [(0, 1, 0), (1, 0, 71)] {
        answer(&worker, &nodes[node], fit, score).await;
    }
    let where_to = entry(binding.worker(), "apart").await;
    binding.policy("apart", json!({"policies": [where_to]})).await.unwrap();
    let elects = ["--leader-elect=true", "--policy-bind-address=:0"];
    let mut syncer = binding.syncer(&elects).await.unwrap();
    syncer.wait_ready().await;
    let vnodes: Vec<String> = nodes.iter().map(|node| format!("vnode-apart-{node}")).collect();
    for vnode in &vnodes {
        wait_offered(&computing, vnode).await;
    }
    wait_active(&worker, "apart", 1).await;

    // Only the Manager may ask, and gets what the specification says.
    let server = endpoint(&computing, "apart").await;
    let asked = [&vnodes[..], &["vnode-apart-nobodys".to_owned(), "a-real-node".to_owned()]].concat();
    assert_eq!(ask(&site, &server, None, &asked).await.0, 401);
    let (code, why) = ask(&site, &server, Some(("default", "default", &[AUDIENCE])), &asked).await;
    assert!(code == 403 && why.to_string().contains("may not post /policy/place"), "{code} {why}");
    let good_for_more: Account<'_> = (namespace::SYSTEM, "kubeocean-manager", &[]);
    assert_eq!(ask(&site, &server, Some(good_for_more), &asked).await.0, 401);
    let managers: Account<'_> = (namespace::SYSTEM, "kubeocean-manager", &[AUDIENCE]);
    let (code, said) = ask(&site, &server, Some(managers), &asked).await;
    let expected = json!({"onError": "Deny", "rows": [
        {"node": vnodes[0], "fit": "reject", "score": 0, "code": "Hostile", "message": "on purpose", "entry": "apart/where"},
        {"node": vnodes[1], "fit": "accept", "score": 70},
    ]});
    assert_eq!((code, said), (200, expected));
    // In the worker cluster the Manager will be this account as well.
    assert_rights(&binding);

    // The Manager's own Syncer waits for the Lease.
    let manager = extending_manager(&site, &["--leader-elect=true"]).await;
    let create = async |name: &str, more: &Value| {
        computing.create("/api/v1/namespaces/default/pods", &pod(name, "apart", more)).await;
    };
    manager.wait_log("standby: another process leads", DEADLINE).await;
    create("best", &json!({})).await;
    assert_eq!(scheduled(&computing, "best").await, vnodes[1]);
    create("rejected", &only_on(&vnodes[0])).await;
    let said = scheduler_says(&computing, "rejected", "Hostile").await;
    assert!(said.contains("Hostile: on purpose (policy apart/where)"), "{said}");

    // The next Syncer is found where it is: on another port, with another certificate.
    let frozen = manager.freeze().unwrap();
    syncer.stop().await.unwrap();
    let mut syncer = binding.syncer(&elects).await.unwrap();
    wait_until("the next Syncer to lead", DEADLINE, async || {
        let found = endpoint(&computing, "apart").await;
        if found == server { Err(found.to_string()) } else { Ok(()) }
    })
    .await;
    wait_until("it to decide", DEADLINE, async || {
        let next = endpoint(&computing, "apart").await;
        let (code, said) = ask(&site, &next, Some(managers), &vnodes).await;
        let rows = said["rows"].as_array().map_or(0, Vec::len);
        assert!(
            code == 503 || code == 200 && rows == 2 && said["onError"] == "Deny",
            "it does not know yet, and says {said}"
        );
        if said["rows"][0]["code"] == "Hostile" { Ok(()) } else { Err(format!("{code} {said}")) }
    })
    .await;
    drop(frozen);
    create("again", &only_on(&vnodes[0])).await;
    let said = scheduler_says(&computing, "again", "Hostile").await;
    assert!(said.contains("Hostile: on purpose (policy apart/where)"), "{said}");

    // Nobody answers until the Lease is over, and what the entries said last about that stands.
    syncer.kill();
    create("silent", &only_on(&vnodes[1])).await;
    let said = scheduler_says(&computing, "silent", "PolicyUnavailable").await;
    assert!(said.contains("the policies of binding apart cannot be asked"), "{said}");
    // Then the Manager's own Syncer leads, and nobody is sent where the other one was.
    let lease = paths::lease(namespace::SYSTEM, &syncer_lease("apart"));
    let forgotten =
        |lease: &Value| lease["metadata"]["annotations"][annotation::POLICY_ENDPOINT].is_null().then_some(());
    computing.wait("the Lease to forget the policy server", &lease, forgotten).await;
    wait_until("the Manager's own Syncer to decide", DEADLINE, async || {
        let pod = pod(&format!("after-{}", Timestamp::now().as_nanosecond()), "apart", &only_on(&vnodes[1]));
        computing.create("/api/v1/namespaces/default/pods", &pod).await;
        let name = text(&pod["metadata"]["name"]).to_owned();
        let node = async || {
            let pod = computing.get(&pod_path("default", &name)).await.unwrap_or_default();
            if pod["spec"]["nodeName"].is_string() { Ok(()) } else { Err(pod["status"].to_string()) }
        };
        try_wait_until("it to be scheduled", Duration::from_secs(3), node)
            .await
            .map_err(|error| format!("{error:#}"))
    })
    .await;
    assert_manager_rights(&fleet.computing);
}
