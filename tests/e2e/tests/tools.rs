//! The commands for people on real clusters: what `policy explain` says is what the Syncer does, and a Syncer runs with
//! nothing but what `worker kubeconfig` printed.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::path::Path;
use std::process::{Output, Stdio};

use jiff::Timestamp;
use kube::api::Api;
use kube::config::Kubeconfig;
use kubeocean_api::keys::{annotation, namespace, taint};
use kubeocean_api::{quantity::Rounding, resource::to_base_units};
use kubeocean_e2e::leasing::{DEADLINE, Leasing, amount, is_offered, is_ready, percent};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::author::example_module;
use kubeocean_harness::program::kubeocean_binary;
use kubeocean_harness::{BindingSpec, Cluster, NodeShape, shared_site};
use kubeocean_hostile_policies::digest;
use serde_json::{Value, json};

/// Runs the binary as a person does, with no environment that could help it.
async fn kubeocean(args: &[&str]) -> Output {
    let binary = kubeocean_binary().unwrap();
    tokio::process::Command::new(binary)
        .args(args)
        .env_remove("KUBECONFIG")
        .env("HOME", "/nowhere")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

/// Standard output of a command that must succeed.
async fn printed(args: &[&str]) -> String {
    let output = kubeocean(args).await;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Exit code and standard error of a command that must fail.
async fn refused(args: &[&str]) -> (i32, String) {
    let output = kubeocean(args).await;
    assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

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
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "tool-explain", "namespace": namespace::POLICIES},
        "binaryData": {"policy.wasm": base64(&module)},
    });
    worker.apply_objects(vec![config_map]).await.unwrap();
    let policy = json!({
        "timeZone": "Asia/Shanghai",
        "resourceLimits": [percent("memory", 50)],
        "policies": [
            {
                "name": "headroom", "module": {"configMap": {"name": "tool-explain"}, "digest": digest(&module)},
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

fn base64(bytes: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
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

    let rlp = json!({"kind": "ResourceLeasingPolicy", "metadata": {"name": "tool-snap"}, "spec": policy});
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
