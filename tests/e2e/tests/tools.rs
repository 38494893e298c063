//! The commands for people on real clusters: what `policy explain` says is what the Syncer does, and a Syncer runs with
//! nothing but what `worker kubeconfig` printed.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::path::Path;

use jiff::Timestamp;
use kube::api::Api;
use kube::config::Kubeconfig;
use kubeocean_api::keys::{annotation, namespace, taint};
use kubeocean_api::{quantity::Rounding, resource::to_base_units};
use kubeocean_e2e::commands::{kubeocean, printed, refused, told};
use kubeocean_e2e::leasing::{DEADLINE, Leasing, amount, is_offered, is_ready, percent};
use kubeocean_e2e::modules::publish;
use kubeocean_e2e::pods::{Objects, condition, pod_path};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::author::example_module;
use kubeocean_harness::{BindingSpec, Cluster, ClusterSpec, Fleet, Kwoks, NodeShape, Site, shared_site};
use kubeocean_hostile_policies::place_guest;
use serde_json::{Value, json};

fn path_of(cluster: &Cluster) -> String {
    cluster.kubeconfig_path().to_str().unwrap().to_owned()
}

/// A pod on a worker node whose requests are not simply a sum: an init container asks for more than the main one, and a
/// sidecar runs beside both.
async fn pod_of_the_owner(leasing: &Leasing, node: &str) {
    let home = format!("{}-owner", leasing.binding.name());
    leasing.binding.worker().create_namespace(&home).await.unwrap();
    let asks = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "online", "namespace": home},
        "spec": {
            "nodeName": node,
            "initContainers": [
                {"name": "sidecar", "image": "i", "restartPolicy": "Always", "resources": asks("250m", "1Gi")},
                {"name": "init", "image": "i", "resources": asks("6", "1Gi")},
            ],
            "containers": [{"name": "c", "image": "i", "resources": asks("1500m", "6Gi")}],
        },
    });
    leasing.binding.worker().apply_objects(vec![pod]).await.unwrap();
}

/// A pod of a user of the computing cluster on a vnode. Resolves when it has its counterpart.
async fn pod_of_a_user(leasing: &Leasing, vnode: &str) {
    let home = format!("{}-users", leasing.binding.name());
    let computing = leasing.binding.computing();
    computing.create_namespace(&home).await.unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "batch", "namespace": home},
        "spec": {
            "nodeName": vnode,
            "tolerations": [{"key": taint::VNODE, "operator": "Exists"}],
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}}}],
        },
    });
    computing.apply_objects(vec![pod]).await.unwrap();
    let pods: Api<k8s_openapi::api::core::v1::Pod> =
        Api::namespaced(computing.client().await.unwrap(), &home);
    leasing
        .until("the pod to run in the worker cluster", DEADLINE, async || {
            let pod = pods.get("batch").await.map_err(|error| error.to_string())?;
            let mapped = pod
                .metadata
                .annotations
                .as_ref()
                .is_some_and(|all| all.contains_key(annotation::PHYSICAL_POD_UID));
            if mapped { Ok(()) } else { Err(format!("{:?}", pod.status)) }
        })
        .await;
}

/// What a vnode publishes, in the base units of an explanation.
fn published(vnode: &k8s_openapi::api::core::v1::Node) -> Value {
    let allocatable = vnode.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default();
    let amounts: std::collections::BTreeMap<String, i64> = allocatable
        .iter()
        .map(|(resource, quantity)| {
            (resource.clone(), to_base_units(resource, &quantity.0, Rounding::Down).unwrap())
        })
        .collect();
    json!(amounts)
}

#[tokio::test]
async fn an_explanation_is_what_the_vnode_publishes() {
    let module = example_module("keep-headroom").await.unwrap();
    let worker = shared_site().await.fleet().workers.first().unwrap();
    let reference = publish(worker, "tool-explain", &module).await;
    let policy = json!({
        "timeZone": "Asia/Shanghai",
        "resourceLimits": [percent("memory", 50)],
        "policies": [
            {
                "name": "headroom", "module": reference,
                "settings": {"reserve": [{"resource": "cpu", "percent": 10}]},
            },
            {
                "name": "less", "enforcement": "Audit", "module": {"builtin": "cpu-percentage"},
                "settings": {"limits": [{"resource": "cpu", "percent": 1}]},
            },
        ],
    });
    let shape = NodeShape::new("32", "64Gi");
    let leasing = Leasing::start("tool-explain", 2, &shape, policy).await;
    leasing.all("two leased nodes", DEADLINE, |vnode| is_ready(vnode) && is_offered(vnode)).await;
    let node = leasing.nodes[0].clone();
    let vnode_name = leasing.vnode_name(&node);
    pod_of_the_owner(&leasing, &node).await;
    pod_of_a_user(&leasing, &vnode_name).await;
    // 32 cores, 6.25 of others, a tenth of 32 in reserve.
    let vnode =
        leasing.one(&node, "the reserve and the owner's pod", |v| amount(v, "cpu") == Some("22550m")).await;

    let worker_config = path_of(leasing.binding.worker());
    let computing_config = path_of(leasing.binding.computing());
    let from_worker = ["policy", "explain", &node, "--kubeconfig", &worker_config];
    // The same moment for all, because a decision says until when it holds.
    let now = Timestamp::now().to_string();
    let both = [&from_worker[..], &["--at", &now, "--computing-kubeconfig", &computing_config, "-o", "json"]]
        .concat();
    let told: Value =
        serde_json::from_str(&printed(&[&both[..], &["--binding", "tool-explain"]].concat()).await).unwrap();
    assert_eq!(told["decision"]["amounts"], published(&vnode), "{told:#}");
    assert_eq!((&told["vnode"], &told["zone"]), (&json!(vnode_name), &json!("Asia/Shanghai")));
    assert_eq!(told["facts"]["used"]["cpu"], 6250);
    assert_eq!(
        (&told["facts"]["leased"]["cpu"], &told["facts"]["vnodeExists"]),
        (&json!(2000), &json!(true))
    );
    assert_eq!(told["notRunning"], json!([]));
    // The binding is found by its policy, and without the computing cluster the worker's own objects say enough.
    let chosen: Value = serde_json::from_str(&printed(&both).await).unwrap();
    assert_eq!(chosen["decision"], told["decision"]);
    let alone: Value = serde_json::from_str(
        &printed(&[&from_worker[..], &["--at", &now, "--binding", "tool-explain", "-ojson"]].concat()).await,
    )
    .unwrap();
    assert_eq!(alone["decision"]["amounts"], told["decision"]["amounts"]);
    assert_eq!(alone["facts"]["leased"], told["facts"]["leased"], "pods of the binding are its own");

    let text = printed(
        &[&from_worker[..], &["--computing-kubeconfig", &computing_config, "--at", "2026-03-07T14:02"]]
            .concat(),
    )
    .await;
    println!("{text}");
    let first = text.lines().next().unwrap();
    assert!(
        first.contains("at 2026-03-07 14:02 Asia/Shanghai") && first.ends_with("governed by tool-explain"),
        "{first}"
    );
    for (name, cell) in
        [("- others", "6.25"), ("headroom", "22.55"), ("less  (audit)", "0.257"), ("= lease", "22.55")]
    {
        let row = text.lines().find(|line| line.trim_start().starts_with(name));
        assert!(row.is_some_and(|row| row.contains(cell)), "{name} {cell}: {text}");
    }

    let (code, error) = refused(&["policy", "explain", "no-such-node", "--kubeconfig", &worker_config]).await;
    assert_eq!((code, error.contains("no node no-such-node")), (2, true), "{error}");
    let (code, error) = refused(&["policy", "explain", &vnode_name, "--kubeconfig", &computing_config]).await;
    assert_eq!((code, error.contains("install the worker chart")), (2, true), "{error}");
    assert_rights(&leasing.binding);
}

#[tokio::test]
async fn a_syncer_leases_with_nothing_but_the_printed_secret() {
    let site = shared_site().await;
    let binding = site.bind(BindingSpec::new("tool-join")).await.unwrap();
    // What the harness made for the binding is taken away again.
    let secret = binding.secret_name();
    binding.computing().kubectl_text(&["-n", namespace::SYSTEM, "delete", "secret", &secret]).await.unwrap();
    let worker_config = path_of(binding.worker());
    let area = binding.mount_namespace().to_owned();
    let make = ["worker", "kubeconfig", "--kubeconfig", &worker_config, "--namespace", &area, "--ttl", "1h"];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret.yaml");
    let for_binding = ["--binding-name", binding.name(), "-o", file.to_str().unwrap()];
    assert_eq!(printed(&[&make[..], &for_binding].concat()).await, "", "the token is in the file only");
    assert_eq!(mode(&file), 0o600);
    binding.computing().apply(&std::fs::read_to_string(&file).unwrap()).await.unwrap();

    let nodes = binding.worker().create_nodes("tool-join", 2, &NodeShape::new("8", "16Gi")).await.unwrap();
    binding.policy("tool-join", json!({"resourceLimits": [percent("cpu", 50)]})).await.unwrap();
    let started = std::time::Instant::now();
    let mut syncer = binding.syncer(&[]).await.unwrap();
    syncer.wait_ready().await;
    let leasing = Leasing { binding, syncer, nodes, started };
    leasing.all("half of two nodes", DEADLINE, |v| is_ready(v) && amount(v, "cpu") == Some("4")).await;
    assert_rights(&leasing.binding);

    // The token ends. Its rights are compared with the chart's in newcomer.rs.
    let kubeconfig = printed(&[&make[..], &["--format", "kubeconfig"]].concat()).await;
    let lifetime = token_end(&kubeconfig).duration_since(Timestamp::now());
    assert!(lifetime.as_secs() > 3000 && lifetime.as_secs() <= 3601, "{lifetime:?}");
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// When the token of a kubeconfig ends.
fn token_end(kubeconfig: &str) -> Timestamp {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let kubeconfig: Value = serde_saphyr::from_str(kubeconfig).unwrap();
    let token = kubeconfig["users"][0]["user"]["token"].as_str().unwrap();
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    Timestamp::from_second(claims["exp"].as_i64().unwrap()).unwrap()
}

#[tokio::test]
async fn a_kubeconfig_that_would_not_work_is_not_printed() {
    let site = shared_site().await;
    let binding = site.bind(BindingSpec::new("tool-refused")).await.unwrap();
    let (worker, computing) = (binding.worker(), binding.computing());
    let worker_config = path_of(worker);
    let make = ["worker", "kubeconfig", "--kubeconfig", &worker_config, "--secret", "s"];
    let with =
        |more: &[&str]| -> Vec<String> { make.iter().chain(more).map(|word| (*word).to_owned()).collect() };
    let directory = tempfile::tempdir().unwrap();
    let foreign = directory.path().join("ca.pem");
    std::fs::write(&foreign, authority(computing.kubeconfig())).unwrap();
    let foreign = foreign.to_str().unwrap();
    let own = directory.path().join("own.pem");
    std::fs::write(&own, authority(worker.kubeconfig())).unwrap();
    let own = own.to_str().unwrap();
    let area = binding.mount_namespace();
    // Nothing listens on the first port of all.
    let nobody = "https://127.0.0.1:1";
    let other_name = format!("https://localhost.example:{}", worker.port());
    for (more, code, expected) in [
        (vec!["--namespace", "no-such"], 2, "no namespace no-such; install the worker chart"),
        (
            vec!["--namespace", "default"],
            2,
            "no ServiceAccount default/kubeocean-syncer; install the worker chart",
        ),
        (vec!["--namespace", area, "--ca-file", foreign], 3, "not signed by the given authority"),
        (vec!["--namespace", area, "--tls-server-name", "elsewhere.example"], 3, "--tls-server-name"),
        (
            vec!["--namespace", area, "--server", nobody, "--ca-file", own],
            3,
            "https://127.0.0.1:1/ does not answer",
        ),
        (vec!["--namespace", area, "--server", &other_name], 3, "does not answer"),
        (
            vec!["--namespace", area, "--server", computing.server(), "--ca-file", foreign],
            2,
            "does not accept the new token",
        ),
        (vec!["--namespace", area, "--ttl", "1m"], 2, "10 minutes"),
        (vec!["--namespace", area, "--ca-file", "/nowhere/ca"], 2, "/nowhere/ca"),
    ] {
        let args = with(&more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = kubeocean(&args).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{more:?}: {error}");
        assert!(error.contains(expected), "{more:?}: {error}");
        assert!(output.stdout.is_empty() && !error.contains("eyJ"), "no token is printed: {more:?}");
    }
    let short = printed(&[&make[..], &["--namespace", area, "--ttl", "600s"]].concat()).await;
    let secret: Value = serde_saphyr::from_str(&short).unwrap();
    assert_eq!(
        (&secret["kind"], &secret["metadata"]["namespace"]),
        (&json!("Secret"), &json!(namespace::SYSTEM))
    );
}

/// The certificate authority of a kubeconfig, PEM.
fn authority(kubeconfig: &str) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let cluster = kubeconfig.clusters[0].cluster.clone().unwrap();
    STANDARD.decode(cluster.certificate_authority_data.unwrap()).unwrap()
}

/// The lines of a snapshot that are complete.
fn lines(snapshot: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(snapshot).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A member of a node's facts as the snapshot says last.
fn last<'l>(lines: &'l [Value], node: &str, member: &str) -> Option<&'l Value> {
    lines.iter().rev().filter(|line| line["node"] == node).find_map(|line| line["facts"].get(member))
}

#[tokio::test]
async fn a_snapshot_records_what_the_syncer_decides_from_and_a_simulation_decides_the_same() {
    let policy = json!({"timeZone": "Asia/Shanghai", "resourceLimits": [percent("cpu", 50)]});
    let leasing = Leasing::start("tool-snap", 1, &NodeShape::new("32", "64Gi"), policy.clone()).await;
    leasing.all("a leased node", DEADLINE, |v| is_offered(v) && amount(v, "cpu") == Some("16")).await;
    let node = leasing.nodes[0].clone();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("day.snap");
    let (worker, computing) = (path_of(leasing.binding.worker()), path_of(leasing.binding.computing()));
    let clusters = ["--kubeconfig", &worker, "--computing-kubeconfig", &computing, "--binding", "tool-snap"];
    let record = ["policy", "snapshot", "-o", file.to_str().unwrap(), "--for", "20s"];
    let args = [&record[..], &clusters].concat();
    let change = async {
        let begun = async || {
            last(&lines(&file), &node, "allocatable")
                .map(drop)
                .ok_or_else(|| "no line of the node".to_owned())
        };
        leasing.until("the first lines of the snapshot", DEADLINE, begun).await;
        leasing.foreign_pod(&node, "4").await;
        leasing.one(&node, "half of what is left", |v| amount(v, "cpu") == Some("14")).await
    };
    let (recorded, _) = tokio::join!(printed(&args), change);
    assert!(recorded.contains("tool-snap") && recorded.contains("changes"), "{recorded}");

    let lines = lines(&file);
    assert_eq!(lines[0]["binding"], "tool-snap");
    assert_eq!(lines.last().unwrap()["end"], true);
    let first = lines.iter().find(|line| line["node"] == node.as_str()).unwrap();
    assert_eq!(first["facts"]["used"].get("cpu"), None, "nobody was there at first");
    let now = Timestamp::now().to_string();
    let explain = [&["policy", "explain", &node, "--at", &now, "-o", "json"], &clusters[..]].concat();
    let told: Value = serde_json::from_str(&printed(&explain).await).unwrap();
    for member in ["used", "leased", "labels", "allocatable", "published", "vnodeExists", "ready"] {
        assert_eq!(last(&lines, &node, member), Some(&told["facts"][member]), "{member}");
    }

    let mut rlp = json!({"kind": "ResourceLeasingPolicy", "metadata": {"name": "tool-snap"}, "spec": policy});
    rlp["spec"]["cluster"] = "tool-snap".into();
    let policy = directory.path().join("rlp.yaml");
    std::fs::write(&policy, rlp.to_string()).unwrap();
    let simulate = [
        "policy",
        "simulate",
        "-f",
        policy.to_str().unwrap(),
        "--snapshot",
        file.to_str().unwrap(),
        "-ojson",
    ];
    let simulated: Value = serde_json::from_str(&printed(&simulate).await).unwrap();
    let amounts = &simulated["atEnd"][&node]["amounts"];
    assert_eq!((&amounts["cpu"], amounts), (&json!(14_000), &told["decision"]["amounts"]));

    let hashed = directory.path().join("hashed.snap");
    let once = ["policy", "snapshot", "-o", hashed.to_str().unwrap(), "--hash-names", "--output", "json"];
    let report: Value = serde_json::from_str(&printed(&[&once[..], &clusters].concat()).await).unwrap();
    assert!(report["nodes"].as_u64() >= Some(1), "{report}");
    assert!(!std::fs::read_to_string(&hashed).unwrap().contains(&node));

    let mut other = clusters;
    other[3] = "/nowhere/kubeconfig";
    let (code, error) = refused(&[&record[..], &other].concat()).await;
    assert_eq!((code, error.contains("/nowhere/kubeconfig")), (2, true), "{error}");
}

/// An account of the computing cluster that may find Syncers and, with the chart's role, read what they decided.
async fn viewer(computing: &Cluster, name: &str, may_view: bool) -> String {
    let bound = |role: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": format!("{name}-{role}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
        })
    };
    let finds = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "finds-syncers"},
        "rules": [
            {"apiGroups": ["cloud.tencent.com"], "resources": ["clusterbindings"], "verbs": ["get"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
            {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["create", "get"]},
        ],
    });
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "default"},
    });
    let mut objects = vec![account, finds, bound("finds-syncers")];
    objects.extend(may_view.then(|| bound("kubeocean-policy-view")));
    computing.apply_objects(objects).await.unwrap();
    computing.service_account_kubeconfig("default", name).await.unwrap()
}

#[tokio::test]
async fn what_a_syncer_decided_is_printed_and_replays_bit_for_bit() {
    let site = shared_site().await;
    let binding = site.bind(BindingSpec::new("tool-recorded")).await.unwrap();
    let nodes =
        binding.worker().create_nodes("tool-recorded", 2, &NodeShape::new("8", "16Gi")).await.unwrap();
    let worker = Objects::of(binding.worker()).await;
    let computing = Objects::of(binding.computing()).await;
    let rejects = json!({"status": {"capacity": {"a.test/fit": "1"}, "allocatable": {"a.test/fit": "1"}}});
    worker.merge(&format!("/api/v1/nodes/{}/status", nodes[0]), &rejects).await;
    let module = place_guest('a').bytes();
    let reference = publish(binding.worker(), "tool-recorded", &module).await;
    let policy = json!({"policies": [
        {"name": "half", "module": {"builtin": "cpu-percentage"}, "settings": {"cpuPercent": 50}},
        {"name": "where", "module": reference},
    ]});
    binding.policy("tool-recorded", policy).await.unwrap();
    let mut syncer = binding.syncer(&["--policy-bind-address=:0"]).await.unwrap();
    syncer.wait_ready().await;
    let vnode = format!("vnode-tool-recorded-{}", nodes[0]);
    let offered = |vnode: &Value| (vnode["status"]["allocatable"]["cpu"] == "4").then_some(());
    computing.wait("half a node", &format!("/api/v1/nodes/{vnode}"), offered).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tool-recorded", "namespace": "default"},
        "spec": {"nodeName": vnode, "containers": [{"name": "c", "image": "i"}]},
    });
    binding.computing().apply_objects(vec![pod]).await.unwrap();
    let denied = |pod: &Value| (condition(pod, "PolicyAdmitted")["reason"] == "Hostile").then_some(());
    computing.wait("the pod to be denied", &pod_path("default", "tool-recorded"), denied).await;

    // By JSON lines, which the module answers again as it did.
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let views = path("views", viewer(binding.computing(), "views", true).await.as_bytes());
    let blind = path("blind", viewer(binding.computing(), "blind", false).await.as_bytes());
    let (worker_config, admin) = (path_of(binding.worker()), path_of(binding.computing()));
    let explain =
        ["policy", "explain", &nodes[0], "--kubeconfig", &worker_config, "--binding", "tool-recorded"];
    let recorded = [&explain[..], &["--recorded", "--computing-kubeconfig", &views]].concat();
    let lines = printed(&[&recorded[..], &["-o", "json"]].concat()).await;
    let decisions: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |entry: &str| decisions.iter().rfind(|one| one["entry"] == entry).unwrap();
    let (half, place) = (of("tool-recorded/half"), of("tool-recorded/where"));
    assert_eq!((&half["nodes"], &half["caps"]["cpu"]), (&json!([nodes[0]]), &json!(4000)), "{half:#}");
    assert_eq!(
        (&place["vnode"], &place["pod"], &place["stage"], &place["fit"]),
        (&json!(vnode), &json!("default/tool-recorded"), &json!("admit"), &json!("reject")),
        "{place:#}"
    );
    let wasm = path("place.wasm", &module);
    let replayed = told(&["policy", "replay", "-", "--module", &wasm], &lines).await;
    let report = String::from_utf8_lossy(&replayed.stdout).into_owned();
    println!("{report}");
    assert!(replayed.status.success(), "{report}{}", String::from_utf8_lossy(&replayed.stderr));
    // The binding's selector is an entry as well.
    let whole = format!("replayed {} records of 3 entries and 3 modules, 0 differ", decisions.len());
    assert!(report.contains(&whole), "{report}");
    let forged = lines.replace(r#""fit":"reject""#, r#""fit":"accept""#);
    let replayed = told(&["policy", "replay", "-", "--module", &wasm], &forged).await;
    assert_eq!(replayed.status.code(), Some(1), "{}", String::from_utf8_lossy(&replayed.stdout));

    // As a table, and what is decided here is what the Syncer decided.
    let table = printed(&recorded).await;
    println!("{table}");
    assert!(
        table.contains("cpu 4") && table.contains("reject") && table.contains("Hostile: on purpose"),
        "{table}"
    );
    let of_pod = ["--pod", "default/tool-recorded", "--computing-kubeconfig", &admin];
    let here = printed(&[&explain[..], &of_pod, &["-o", "json"]].concat()).await;
    let here: Value = serde_json::from_str(&here).unwrap();
    assert_eq!(
        (&here["fit"], &here["stage"], &here["governedBy"]),
        (&place["fit"], &place["stage"], &json!("tool-recorded"))
    );
    assert_eq!(
        (&here["steps"][0]["entry"], &here["steps"][0]["reason"]),
        (&json!("where"), &place["reason"]),
        "{here:#}"
    );
    let text = printed(&[&explain[..], &of_pod].concat()).await;
    println!("{text}");
    assert!(
        text.contains("= place") && text.contains("Hostile: on purpose (policy tool-recorded/where)"),
        "{text}"
    );

    // Nobody else reads it.
    let with = |kubeconfig: &str| {
        let args = [&explain[..], &["--recorded", "--computing-kubeconfig", kubeconfig]].concat();
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    for (kubeconfig, why) in [(&blind, "kubeocean-policy-view"), (&admin, "bearer token")] {
        let args = with(kubeconfig);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (code, error) = refused(&args).await;
        assert_eq!((code, error.contains(why)), (2, true), "{error}");
    }
    let (code, error) = refused(&[&explain[..], &["--recorded"]].concat()).await;
    assert_eq!((code, error.contains("--computing-context")), (2, true), "{error}");
    assert_rights(&binding);
}

#[tokio::test]
async fn decisions_of_a_syncer_in_a_pod_come_through_a_forwarded_port() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("target");
    let connects = format!("exec 3<>/dev/tcp/$(cat {}); cat <&3 & exec cat >&3", target.display());
    let port_forward = ["bash", "-c", &connects].map(str::to_owned).into();
    let computing = ClusterSpec { kwok: Kwoks::One, port_forward, ..ClusterSpec::computing() };
    let fleet = Fleet::start_with(computing, vec![ClusterSpec::worker("worker-1")]).await.unwrap();
    let site = Site::install(&fleet).await.unwrap();
    let binding = site.bind(BindingSpec::new("in-a-pod")).await.unwrap();
    let nodes = binding.worker().create_nodes("in-a-pod", 1, &NodeShape::new("8", "16Gi")).await.unwrap();
    binding.policy("in-a-pod", json!({"resourceLimits": [percent("cpu", 50)]})).await.unwrap();
    let mut syncer = binding.syncer(&["--policy-bind-address=:0"]).await.unwrap();
    syncer.wait_ready().await;
    let objects = Objects::of(&fleet.computing).await;
    let offered = |vnode: &Value| (vnode["status"]["allocatable"]["cpu"] == "4").then_some(());
    objects.wait("half a node", &format!("/api/v1/nodes/vnode-in-a-pod-{}", nodes[0]), offered).await;

    // A pod with the Syncer's address; its kubelet connects forwarded ports with the Syncer.
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kubeocean-system/leases/kubeocean-syncer-in-a-pod";
    let told = |lease: &Value| {
        let text = lease["metadata"]["annotations"]["kubeocean.io/policy-endpoint"].as_str()?;
        Some(text.strip_prefix("https://")?.split_once('#')?.0.to_owned())
    };
    let address = objects.wait("the Lease to say where the policy server is", lease, told).await;
    std::fs::write(&target, address.replace(':', "/")).unwrap();
    let host = fleet.computing.create_nodes("host", 1, &NodeShape::new("8", "16Gi")).await.unwrap().remove(0);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "syncer", "namespace": namespace::SYSTEM},
        "spec": {"nodeName": host, "containers": [{"name": "c", "image": "i"}]},
    });
    fleet.computing.apply_objects(vec![pod]).await.unwrap();
    let path = pod_path(namespace::SYSTEM, "syncer");
    let running = |pod: &Value| (pod["status"]["phase"] == "Running").then_some(());
    objects.wait("the pod to run", &path, running).await;
    let ip = address.split(':').next().unwrap();
    let status = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
    objects.merge(&format!("{path}/status"), &status).await;

    let views = directory.path().join("views");
    std::fs::write(&views, viewer(&fleet.computing, "views", true).await).unwrap();
    let (worker, views) = (path_of(binding.worker()), views.to_str().unwrap().to_owned());
    let recorded = [
        "policy",
        "explain",
        &nodes[0],
        "--kubeconfig",
        &worker,
        "--recorded",
        "--computing-kubeconfig",
        &views,
    ];
    let lines = printed(&[&recorded[..], &["-o", "json"]].concat()).await;
    let mut decisions = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let half =
        |one: &Value| one["entry"] == "in-a-pod/legacy-resource-limits" && one["nodes"] == json!([nodes[0]]);
    assert!(decisions.any(|one| half(&one)), "{lines}");
    let forwarded = fleet.computing.audit_events().unwrap();
    let forwarded = forwarded.iter().filter(|event| event.uri.contains("/pods/syncer/portforward"));
    assert!(forwarded.count() > 0, "it came some other way");
}
