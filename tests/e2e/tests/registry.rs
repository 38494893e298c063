//! Policy modules in a real registry: pushed and signed by the commands, attached, moved, lost, and found again.
//!
//! Every test has a registry, a binding, a node and a Syncer of its own. Where no registry is installed it says so.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kubeocean_api::keys::{condition_type, label, namespace, taint};
use kubeocean_e2e::leasing::{
    DEADLINE, Leasing, amount, condition, entry, entry_error, entry_state, is_offered, is_ready,
    is_withheld_gently, merge, policy_condition, summary, taint_of,
};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_engine::builtin;
use kubeocean_harness::nodes::NODE_SET;
use kubeocean_harness::program::kubeocean_binary;
use kubeocean_harness::registry::{PASSWORD, Registry, Tls, Trick, docker_config};
use kubeocean_harness::{BindingSpec, Cluster, NodeShape};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

/// A registry and a folder with what a person and a Syncer need for it.
struct Scene {
    registry: Registry,
    home: TempDir,
}

impl Scene {
    async fn start() -> Option<Self> {
        let registry = Registry::start(Tls::On).await?;
        let home = tempfile::tempdir().unwrap();
        let config = docker_config(&[&registry.host()], PASSWORD);
        std::fs::write(home.path().join("config.json"), config.to_string()).unwrap();
        Some(Self { registry, home })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn image(&self, name: &str) -> String {
        format!("{}/policies/{name}", self.registry.host())
    }

    /// `kubeocean policy ...` with the registry's authority and the person's password.
    async fn policy(&self, args: &[&str]) -> Output {
        Command::new(kubeocean_binary().unwrap())
            .arg("policy")
            .args(args)
            .arg(format!("--registry-ca={}", self.registry.authority().display()))
            .arg(format!("--registry-config={}", self.path("config.json").display()))
            .output()
            .await
            .unwrap()
    }

    /// The same, and it must succeed; what it says as JSON.
    async fn does(&self, args: &[&str]) -> Value {
        let output = self.policy(&[args, &["--output=json"]].concat()).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Pushes the built-in module for limits, marked so that each mark is another module; returns its digest.
    async fn push(&self, image: &str, mark: u8) -> String {
        let module = [builtin("cpu-percentage").unwrap(), &[0, 3, 2, b'm', mark]].concat();
        let file = self.path("module.wasm");
        std::fs::write(&file, module).unwrap();
        let pushed = self.does(&["push", file.to_str().unwrap(), image]).await;
        pushed["digest"].as_str().unwrap().to_owned()
    }

    /// A binding with one node and a Syncer that knows the registry.
    async fn lease(&self, name: &str, policy: Value, flags: &[String]) -> Leasing {
        self.lease_nodes(name, 1, policy, flags).await
    }

    /// The same with more nodes.
    async fn lease_nodes(&self, name: &str, nodes: usize, policy: Value, flags: &[String]) -> Leasing {
        let mut all = vec![
            format!("--registry-ca={}", self.registry.authority().display()),
            format!("--policy-cache-dir={}", self.path("cache").display()),
        ];
        all.extend_from_slice(flags);
        let flags: Vec<&str> = all.iter().map(String::as_str).collect();
        Leasing::start_as(BindingSpec::new(name), nodes, &shape(), policy, &flags).await
    }
}

/// Every node of these tests.
fn shape() -> NodeShape {
    NodeShape::new("32", "64Gi")
}

/// A Secret as `kubectl create secret docker-registry` makes it.
async fn pull_secret(worker: &Cluster, name: &str, host: &str, password: &str) {
    write_secret(worker, name, &docker_config(&[host], password)).await;
}

/// A change of the pull secret that changes no password: the tag is looked up now, not in five minutes.
async fn look_again(worker: &Cluster, name: &str, host: &str, why: &str) {
    write_secret(worker, name, &docker_config(&[host, why], PASSWORD)).await;
}

async fn write_secret(worker: &Cluster, name: &str, config: &Value) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": name, "namespace": namespace::POLICIES},
        "data": {".dockerconfigjson": STANDARD.encode(config.to_string())},
    });
    worker.apply_objects(vec![secret]).await.unwrap();
}

/// A policy of one entry that leases half of the cpu by a module.
fn half(module: &Value) -> Value {
    let settings = json!({"limits": [{"resource": "cpu", "percent": 50}]});
    json!({"policies": [{"name": "half", "module": module, "settings": settings}]})
}

fn pinned(image: &str, secret: &str, digest: &str) -> Value {
    json!({"oci": {"image": image, "pullSecret": {"name": secret}}, "digest": digest})
}

fn is_half(vnode: &Node) -> bool {
    is_ready(vnode) && is_offered(vnode) && amount(vnode, "cpu") == Some("16")
}

/// Waits until the entry runs the module with this digest, and leases half by it.
async fn runs(leasing: &Leasing, digest: &str) -> Value {
    let policy = leasing
        .policy_until(leasing.binding.name(), &format!("the module {digest}"), |policy| {
            entry_state(policy, "half") == "Active" && entry(policy, "half")["digest"] == digest
        })
        .await;
    leasing.all("half of the node", DEADLINE, is_half).await;
    policy
}

/// Waits until the entry is in a state for a reason.
async fn fails(leasing: &Leasing, state: &str, code: &str) -> Value {
    let what = format!("the entry to be {state} by {code}");
    let fits = |policy: &Value| entry_state(policy, "half") == state && entry_error(policy, "half") == code;
    leasing.policy_until(leasing.binding.name(), &what, fits).await
}

#[tokio::test]
async fn a_pushed_module_decides_and_neither_its_tag_nor_its_registry_takes_it_away() {
    let Some(mut scene) = Scene::start().await else { return };
    let image = scene.image("half:1");
    let first = scene.push(&image, 1).await;
    let leasing = scene.lease("reg-tag", json!({"policies": []}), &[]).await;
    pull_secret(leasing.binding.worker(), "reg-tag", &scene.registry.host(), PASSWORD).await;
    leasing.edit(half(&pinned(&image, "reg-tag", &first))).await;
    let policy = runs(&leasing, &first).await;
    assert_eq!(policy_condition(&policy, "Pinned").unwrap().0, "True");
    assert_eq!(entry(&policy, "half")["module"], "cpu-percentage");

    // The tag moves: the pin holds. A pin the tag does not lead to is refused, and the old version decides.
    let second = scene.push(&image, 2).await;
    let absent = format!("sha256:{}", "0".repeat(64));
    leasing.edit(half(&pinned(&image, "reg-tag", &absent))).await;
    let policy = fails(&leasing, "Degraded", "DigestMismatch").await;
    assert_eq!(
        (&entry(&policy, "half")["digest"], &entry(&policy, "half")["desiredDigest"]),
        (&json!(first), &json!(absent))
    );
    let error = entry(&policy, "half")["lastError"].as_str().unwrap();
    assert!(error.contains(&second), "the module there is named: {error}");
    leasing.all("still half of the node", DEADLINE, is_half).await;
    leasing.edit(half(&pinned(&image, "reg-tag", &second))).await;
    runs(&leasing, &second).await;
    // Back: the disk has it, the tag leads elsewhere.
    leasing.edit(half(&pinned(&image, "reg-tag", &first))).await;
    runs(&leasing, &first).await;

    // The registry is down, the Syncer starts anew: the same module decides.
    scene.registry.stop();
    let mut leasing = leasing;
    let mark = leasing.syncer.log().len();
    leasing.syncer.restart().unwrap();
    leasing.syncer.wait_ready().await;
    let loaded = async || {
        let log = leasing.syncer.log();
        let loaded =
            log.get(mark..).is_some_and(|log| log.contains("policy entry loaded") && log.contains(&first));
        if loaded { Ok(()) } else { Err("not loaded yet".to_owned()) }
    };
    kubeocean_harness::wait_until("the module from the disk", DEADLINE, loaded).await;
    runs(&leasing, &first).await;
    assert_rights(&leasing.binding);
}

/// Nodes of which this label has one of these values.
fn selecting(label: &str, values: &[String]) -> Value {
    let expression = json!({"key": label, "operator": "In", "values": values});
    json!({"nodeSelectorTerms": [{"matchExpressions": [expression]}]})
}

/// PO-803: nobody remembers an answer any more, neither the registry nor the disk gives a module, and `onError` says what holds.
#[tokio::test]
async fn after_a_restart_without_registry_and_disk_on_error_decides() {
    let Some(mut scene) = Scene::start().await else { return };
    let image = scene.image("half:1");
    let digest = scene.push(&image, 1).await;
    // A policy for one node that is there, and for one that comes when nothing can be asked.
    let names = ["reg-lost", "reg-lost-deny", "reg-lost-ignore"];
    let policy_of = |index: usize, on_error: &str| {
        let mut policy = half(&pinned(&image, names[0], &digest));
        policy["policies"][0]["onError"] = json!(on_error);
        let nodes = [format!("reg-lost-{index}"), format!("reg-lost-late-{index}")];
        policy["nodeSelector"] = selecting(label::HOSTNAME, &nodes);
        policy
    };
    let mut leasing = scene.lease_nodes(names[0], 3, policy_of(0, "LastKnown"), &[]).await;
    leasing.binding.policy(names[1], policy_of(1, "Deny")).await.unwrap();
    leasing.binding.policy(names[2], policy_of(2, "Ignore")).await.unwrap();
    pull_secret(leasing.binding.worker(), names[0], &scene.registry.host(), PASSWORD).await;
    leasing.all("half of three nodes", DEADLINE, is_half).await;

    let recording = leasing.record().await;
    scene.registry.stop();
    leasing.syncer.kill();
    std::fs::remove_dir_all(scene.path("cache")).unwrap();
    leasing.syncer.restart().unwrap();
    leasing.syncer.wait_ready().await;
    for name in names {
        leasing
            .policy_until(name, "no module to be had", |policy| {
                (entry_state(policy, "half"), entry_error(policy, "half")) == ("Loading", "FetchFailed")
            })
            .await;
    }
    let [published, denied, whole] = [0, 1, 2].map(|index| leasing.nodes[index].clone());
    let is_open = |vnode: &Node| taint_of(vnode, taint::OUT_OF_TIME_WINDOWS).is_none();
    let stands = |vnode: &Node| is_open(vnode) && amount(vnode, "cpu") == Some("16");
    let undecided = Some(("Unknown", "PoliciesLoading"));
    leasing
        .one(&published, "what it published", |vnode| {
            stands(vnode) && condition(vnode, condition_type::LEASE) == undecided
        })
        .await;
    leasing
        .one(&denied, "a closed vnode", |vnode| {
            is_withheld_gently(vnode) && amount(vnode, "cpu") == Some("16")
        })
        .await;
    let is_whole = |vnode: &Node| is_offered(vnode) && amount(vnode, "cpu") == Some("32");
    leasing.one(&whole, "all of the node", is_whole).await;
    let sets = selecting(NODE_SET, &["reg-lost", "reg-lost-late"].map(str::to_owned));
    merge(&leasing.bindings().await, names[0], json!({"spec": {"nodeSelector": sets}})).await;
    let late = leasing.binding.worker().create_nodes("reg-lost-late", 3, &shape()).await;
    leasing.nodes.extend(late.unwrap());
    leasing.one("reg-lost-late-2", "all of the late node", is_whole).await;
    for node in ["reg-lost-late-0", "reg-lost-late-1"] {
        assert!(leasing.vnode(node).await.is_none(), "nobody said what of {node} is leased");
    }

    scene.registry.restart().await;
    leasing.all("half of all nodes", DEADLINE, is_half).await;
    // In between as well, nobody was asked to go, and what stands stood.
    let published = leasing.vnode_name(&published);
    for vnode in recording.states() {
        assert!(is_open(&vnode) || is_withheld_gently(&vnode), "{}", summary(&vnode));
        assert!(vnode.name_any() != published || stands(&vnode), "{}", summary(&vnode));
    }
    assert_rights(&leasing.binding);
}

#[tokio::test]
async fn a_pull_secret_is_read_again_when_it_changes() {
    let Some(scene) = Scene::start().await else { return };
    let image = scene.image("half:1");
    let digest = scene.push(&image, 1).await;
    let leasing = scene.lease("reg-secret", half(&pinned(&image, "reg-secret", &digest)), &[]).await;
    fails(&leasing, "Loading", "FetchForbidden").await;
    let worker = leasing.binding.worker();
    pull_secret(worker, "reg-secret", &scene.registry.host(), "guess").await;
    let policy = leasing
        .policy_until("reg-secret", "the wrong password to be refused", |policy| {
            entry(policy, "half")["lastError"].as_str().is_some_and(|error| error.contains("401"))
        })
        .await;
    assert_eq!(entry_error(&policy, "half"), "FetchForbidden");
    assert!(!policy.to_string().contains("guess"));
    pull_secret(worker, "reg-secret", &scene.registry.host(), PASSWORD).await;
    runs(&leasing, &digest).await;
    assert_rights(&leasing.binding);
}

#[tokio::test]
async fn where_a_signature_is_required_only_a_signed_module_decides() {
    let Some(mut scene) = Scene::start().await else { return };
    let trust = scene.path("trust");
    std::fs::create_dir(&trust).unwrap();
    for name in ["release", "stranger", "next"] {
        let pair = scene.path(name);
        let args = ["policy", "keygen", pair.to_str().unwrap()];
        let made = Command::new(kubeocean_binary().unwrap()).args(args).output().await.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    std::fs::copy(scene.path("release.pem"), trust.join("release.pem")).unwrap();
    let rules = format!("rules:\n- prefix: {}/policies\n  keys: [release.pem]\n", scene.registry.host());
    std::fs::write(trust.join("trust.yaml"), rules).unwrap();

    let image = scene.image("half:1");
    let digest = scene.push(&image, 1).await;
    let secret = json!({"oci": {"image": image, "pullSecret": {"name": "reg-signed"}}});
    let flags = [format!("--policy-trust-dir={}", trust.display())];
    let leasing = scene.lease("reg-signed", json!({"policies": []}), &flags).await;
    pull_secret(leasing.binding.worker(), "reg-signed", &scene.registry.host(), PASSWORD).await;
    leasing.edit(half(&secret)).await;
    fails(&leasing, "Invalid", "SignatureRejected").await;
    let verify = async |key: &Path| {
        let key = format!("--key={}", key.display());
        scene.policy(&["verify", &image, &key]).await.status.code()
    };
    assert_eq!(verify(&scene.path("release.pem")).await, Some(1));
    // A stranger's signature is as good as none; a digest does not replace one.
    scene.does(&["sign", &image, "--key", scene.path("stranger.key").to_str().unwrap()]).await;
    leasing.edit(half(&pinned(&image, "reg-signed", &digest))).await;
    let policy = leasing
        .policy_until("reg-signed", "the stranger's signature to be refused", |policy| {
            entry(policy, "half")["lastError"]
                .as_str()
                .is_some_and(|error| error.contains("none of 1 signatures"))
        })
        .await;
    assert_eq!(
        (entry_state(&policy, "half"), entry_error(&policy, "half")),
        ("Invalid", "SignatureRejected")
    );
    assert_eq!(
        (verify(&scene.path("release.pem")).await, verify(&scene.path("stranger.pem")).await),
        (Some(1), Some(0))
    );

    // Whoever writes a policy has no say in whose signature counts, wherever the key is put.
    let stranger = std::fs::read_to_string(scene.path("stranger.pem")).unwrap();
    let mut own_key = secret.clone();
    for place in ["/oci", ""] {
        let place = own_key.pointer_mut(place).unwrap();
        place["key"] = json!(stranger);
        place["keys"] = json!(["stranger.pem", stranger]);
    }
    merge(&leasing.policies().await, "reg-signed", json!({"spec": half(&own_key)})).await;
    let policy = fails(&leasing, "Invalid", "SignatureRejected").await;
    assert!(!policy["spec"].to_string().contains("PUBLIC KEY"), "{}", policy["spec"]);

    scene.does(&["sign", &image, "--key", scene.path("release.key").to_str().unwrap()]).await;
    assert_eq!(verify(&scene.path("release.pem")).await, Some(0));
    leasing.edit(half(&secret)).await;
    let policy = runs(&leasing, &digest).await;
    let (status, reason, _) = policy_condition(&policy, "Pinned").unwrap();
    assert_eq!((status, reason), ("False", "NotPinned"), "a signed tag needs no digest");

    // The tag moves to a module nobody signed: the old one decides. Once that is signed it takes over.
    let other = scene.push(&image, 2).await;
    look_again(leasing.binding.worker(), "reg-signed", &scene.registry.host(), "moved").await;
    let policy = fails(&leasing, "Degraded", "SignatureRejected").await;
    assert_eq!(entry(&policy, "half")["digest"], digest);
    leasing.all("still half of the node", DEADLINE, is_half).await;
    scene.does(&["sign", &image, "--key", scene.path("release.key").to_str().unwrap()]).await;
    look_again(leasing.binding.worker(), "reg-signed", &scene.registry.host(), "signed").await;
    runs(&leasing, &other).await;
    let digest = other;

    // What the disk keeps is believed no more than the registry: its signature is checked again.
    scene.registry.stop();
    let mut leasing = leasing;
    leasing.syncer.process().kill();
    std::fs::copy(scene.path("next.pem"), trust.join("release.pem")).unwrap();
    leasing.syncer.restart().unwrap();
    leasing.syncer.wait_ready().await;
    fails(&leasing, "Loading", "FetchFailed").await;
    std::fs::copy(scene.path("release.pem"), trust.join("release.pem")).unwrap();
    runs(&leasing, &digest).await;
    assert_rights(&leasing.binding);
}

/// PO-1204: where the rules say so, whoever writes a policy does not choose whom the Syncer talks to.
#[tokio::test]
async fn a_host_that_no_rule_names_is_not_asked() {
    let home = tempfile::tempdir().unwrap();
    let rules = |text: &str| std::fs::write(home.path().join("trust.yaml"), text).unwrap();
    rules("rules: []\nothers: refuse\n");
    let somebody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image = |name| format!("{}/policies/{name}:1", somebody.local_addr().unwrap());
    let module =
        |name| json!({"oci": {"image": image(name)}, "digest": format!("sha256:{}", "0".repeat(64))});
    let flag = format!("--policy-trust-dir={}", home.path().display());
    let name = "reg-unnamed";
    let leasing = Leasing::start_as(BindingSpec::new(name), 1, &shape(), half(&module("a")), &[&flag]).await;
    let policy = fails(&leasing, "Invalid", "SignatureRejected").await;
    let error = entry(&policy, "half")["lastError"].as_str().unwrap();
    assert!(
        error
            .contains(&format!("no rule of trust.yaml is for {}/policies/a", somebody.local_addr().unwrap()))
    );
    let asked = tokio::time::timeout(Duration::ZERO, somebody.accept()).await;
    assert!(asked.is_err(), "{asked:?}");
    // Without that line it is.
    rules("rules: []\n");
    leasing.edit(half(&module("b"))).await;
    tokio::time::timeout(DEADLINE, somebody.accept()).await.expect("it is asked").unwrap();
    assert_rights(&leasing.binding);
}

#[tokio::test]
async fn a_registry_that_answers_wrongly_is_asked_again() {
    let Some(scene) = Scene::start().await else { return };
    let digest = scene.push(&scene.image("half:1"), 1).await;
    let front = scene.registry.front().await;
    front.trick(Trick::Cut(20_000));
    let image = format!("{}/policies/half:1", front.host());
    let leasing = scene.lease("reg-front", json!({"policies": []}), &[]).await;
    pull_secret(leasing.binding.worker(), "reg-front", &front.host(), PASSWORD).await;
    leasing.edit(half(&pinned(&image, "reg-front", &digest))).await;
    fails(&leasing, "Loading", "FetchFailed").await;
    front.trick(Trick::Redirect(format!("http://{}", front.host())));
    leasing
        .policy_until("reg-front", "the redirect to be refused", |policy| {
            entry(policy, "half")["lastError"].as_str().is_some_and(|error| error.contains("without TLS"))
        })
        .await;
    // A page of maintenance in place of the module says nothing about it.
    front.trick(Trick::Instead(b"<html>Back at noon</html>".to_vec()));
    look_again(leasing.binding.worker(), "reg-front", &front.host(), "page").await;
    let policy = leasing
        .policy_until("reg-front", "the page to be no module", |policy| {
            entry(policy, "half")["lastError"].as_str().is_some_and(|error| error.contains("the content is"))
        })
        .await;
    assert_eq!((entry_state(&policy, "half"), entry_error(&policy, "half")), ("Loading", "FetchFailed"));
    front.trick(Trick::None);
    runs(&leasing, &digest).await;
}

#[tokio::test]
async fn a_file_of_the_development_folder_is_followed() {
    let home = tempfile::tempdir().unwrap();
    let marked = |mark: u8| [builtin("cpu-percentage").unwrap(), &[0, 3, 2, b'm', mark]].concat();
    let write = |mark: u8| {
        // As a linker would: the new file takes the place of the old one.
        std::fs::write(home.path().join("new"), marked(mark)).unwrap();
        std::fs::rename(home.path().join("new"), home.path().join("half.wasm")).unwrap();
        kubeocean_hostile_policies::digest(&marked(mark))
    };
    let module = json!({"file": {"path": "half.wasm"}});
    let flag = format!("--policy-dev-dir={}", home.path().display());
    let leasing = Leasing::start_as(BindingSpec::new("reg-file"), 1, &shape(), half(&module), &[&flag]).await;
    fails(&leasing, "Loading", "ModuleNotFound").await;
    for mark in [1, 2] {
        let digest = write(mark);
        let took = std::time::Instant::now();
        runs(&leasing, &digest).await;
        println!("build {mark} decides after {:?}", took.elapsed().min(Duration::from_mins(1)));
    }
}
