//! The README, and the page about shipping a policy, as a newcomer follows them: their commands are run as they stand there,
//! on clusters that have nothing of Kubeocean, with nothing but two contexts of an administrator.
//!
//! Blocks marked `sh` are run in order in one shell, the block marked `diff` is applied. Blocks marked `console` are not:
//! they build what this test run has built already, and start the Manager, which the test starts itself.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use kube::Api;
use kube::api::PostParams;
use kubeocean_e2e::pods::{DEADLINE, Objects, condition};
use kubeocean_e2e::rights::assert_manager_rights;
use kubeocean_harness::assets::{Binary, find};
use kubeocean_harness::author::{cache_folder, lock_of_new, repository};
use kubeocean_harness::chart::{Chart, helm, helm_template};
use kubeocean_harness::cluster::client_of;
use kubeocean_harness::program::kubeocean_binary;
use kubeocean_harness::registry::{PASSWORD, Registry, Tls, USER, docker_config};
use kubeocean_harness::{Cluster, Fleet, NodeShape, Program, ProgramSpec, wait_until};
use kubeocean_runtime::request::paths;
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a newcomer has for the way from `policy new` to `policy explain`, compilation included (acceptance check 1).
const WAY: Duration = Duration::from_mins(15);

/// A fenced block of a page.
struct Block {
    /// `sh` or `diff`.
    kind: String,
    text: String,
}

/// The blocks to run below a heading of the second level.
fn blocks(page: &str, heading: &str) -> Vec<Block> {
    let start = page.find(&format!("\n## {heading}\n")).expect("the heading") + 4;
    let section = &page[start..];
    let section = section.find("\n## ").map_or(section, |end| &section[..end]);
    let mut blocks = Vec::new();
    let mut parts = section.split("\n```");
    parts.next();
    while let (Some(block), _) = (parts.next(), parts.next()) {
        let (kind, text) = block.split_once('\n').expect("a block with content");
        if ["sh", "diff"].contains(&kind) {
            blocks.push(Block { kind: kind.to_owned(), text: format!("{text}\n") });
        }
    }
    blocks
}

/// A newcomer's home folder: a kubeconfig with both contexts, the programs of the README on the PATH.
struct Newcomer {
    home: TempDir,
    /// More variables of the shell.
    variables: Vec<(&'static str, String)>,
}

impl Newcomer {
    fn new(fleet: &Fleet) -> Self {
        let home = tempfile::tempdir().unwrap();
        let kubeconfig = kubeconfig(&[("main", &fleet.computing), ("east", fleet.worker())]);
        std::fs::write(home.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let programs = home.path().join("bin");
        std::fs::create_dir(&programs).unwrap();
        let kubectl = find(Binary::Kubectl).unwrap().unwrap();
        let helm = find(Binary::Helm).unwrap().unwrap();
        for (name, program) in
            [("kubeocean", kubeocean_binary().unwrap()), ("kubectl", kubectl), ("helm", helm)]
        {
            std::os::unix::fs::symlink(program, programs.join(name)).unwrap();
        }
        Self { home, variables: Vec::new() }
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs a script in the home folder, printing each command with its duration; returns what it printed.
    async fn run(&self, script: &str) -> String {
        let root = repository().unwrap();
        let path = format!("{}:{}", self.path("bin"), std::env::var("PATH").unwrap());
        let mut shell = tokio::process::Command::new("bash");
        for (name, _) in std::env::vars_os() {
            // What cargo sets for this test is not a newcomer's.
            let text = name.to_string_lossy();
            let kept =
                ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "RUSTUP_HOME"];
            if (text.starts_with("CARGO") || text.starts_with("RUST"))
                && !kept.iter().any(|kept| text.starts_with(kept))
            {
                shell.env_remove(&name);
            }
        }
        let output: Output = shell
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.home.path())
            .env("PATH", path)
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("KUBEOCEAN", &root)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("{out}{error}");
        assert!(output.status.success(), "{script}\nended with {}:\n{out}{error}", output.status);
        out.into_owned()
    }
}

/// One kubeconfig with a context for each cluster.
fn kubeconfig(clusters: &[(&str, &Cluster)]) -> Value {
    let (mut parts, mut contexts, mut users) = (Vec::new(), Vec::new(), Vec::new());
    for (name, cluster) in clusters {
        let one: Value = serde_saphyr::from_str(cluster.kubeconfig()).unwrap();
        parts.push(json!({"name": name, "cluster": one["clusters"][0]["cluster"]}));
        users.push(json!({"name": name, "user": one["users"][0]["user"]}));
        contexts.push(json!({"name": name, "context": {"cluster": name, "user": name}}));
    }
    json!({"apiVersion": "v1", "kind": "Config", "clusters": parts, "contexts": contexts, "users": users})
}

/// What the README's installation leads to.
struct Installed {
    fleet: Fleet,
    newcomer: Newcomer,
    computing: Objects,
    _manager: Program,
}

/// Follows the README until two nodes are leased. The Manager is started as it says, with `environment` beside.
async fn install(variables: Vec<(&'static str, String)>, environment: &[(&str, &str)]) -> Installed {
    let root = repository().unwrap();
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let install = blocks(&readme, "Install");
    assert_eq!(install.len(), 4, "blocks to run in the README");
    let fleet = Fleet::start(1).await.unwrap();
    fleet.worker().create_nodes("east", 2, &NodeShape::new("8", "16Gi")).await.unwrap();
    // Built if it is not there yet.
    helm(&["version"], "").await.unwrap();
    let newcomer = Newcomer { variables, ..Newcomer::new(&fleet) };

    // The charts, the binding, the Manager's kubeconfig; files of the checkout are not written.
    let script = install[..3].iter().map(|block| block.text.as_str()).collect::<String>();
    let home = newcomer.path("");
    newcomer
        .run(&script.replace("cd \"$KUBEOCEAN\"", "cp -r \"$KUBEOCEAN/charts\" \"$KUBEOCEAN/examples\" ."))
        .await;
    let account = std::fs::read_to_string(Path::new(&home).join("manager.kubeconfig")).unwrap();
    let spec = ProgramSpec::manager().kubeconfig(&account);
    let spec = environment.iter().fold(spec, |spec, (name, value)| spec.env(name, value));
    let mut manager = Program::start(&fleet.computing, spec).await.unwrap();
    manager.wait_ready().await;
    newcomer.run(&install[3].text).await;
    let computing = Objects::of(&fleet.computing).await;
    wait_for_vnodes(&computing, "half of the free cpu", |vnode| vnode["status"]["allocatable"]["cpu"] == "4")
        .await;
    Installed { fleet, newcomer, computing, _manager: manager }
}

#[tokio::test]
async fn the_readme_leads_from_nothing_to_a_policy_of_ones_own() {
    let readme = std::fs::read_to_string(repository().unwrap().join("README.md")).unwrap();
    let policy = blocks(&readme, "Your own policy in ten minutes");
    assert_eq!(policy.len(), 5, "blocks to run in the README");
    let site = install(Vec::new(), &[]).await;
    rights_are_those_of_the_chart(&site.newcomer, site.fleet.worker()).await;
    own_policy(&site.newcomer, &policy).await;
    // One node, in maintenance, is closed, the other one goes on.
    wait_until("one closed vnode", DEADLINE, async || {
        let vnodes = vnodes(&site.computing).await;
        let reasons: Vec<_> =
            vnodes.iter().map(|vnode| condition(vnode, "kubeocean.io/Lease")["reason"].clone()).collect();
        let closed = reasons.iter().filter(|reason| *reason == "Maintenance").count();
        if closed == 1 && reasons.len() == 2 { Ok(()) } else { Err(reasons) }
    })
    .await;
    assert_manager_rights(&site.fleet.computing);
}

/// With nothing compiled before; only the registry of crates is spared.
#[tokio::test]
async fn a_policy_of_ones_own_is_shipped_through_a_registry_in_a_quarter_of_an_hour() {
    let Some(registry) = Registry::start(Tls::On).await else { return };
    let home = tempfile::tempdir().unwrap();
    // `docker login`, and a machine that trusts the registry's certificate.
    let login = docker_config(&[&registry.host()], PASSWORD);
    std::fs::write(home.path().join("config.json"), login.to_string()).unwrap();
    let trusted = home.path().join("certificates.pem");
    let machine = std::fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
    let authority = std::fs::read_to_string(registry.authority()).unwrap();
    std::fs::write(&trusted, format!("{machine}{authority}")).unwrap();
    let trusted = trusted.to_str().unwrap().to_owned();
    let variables = vec![
        ("DOCKER_CONFIG", home.path().to_str().unwrap().to_owned()),
        ("SSL_CERT_FILE", trusted.clone()),
        ("READER", USER.to_owned()),
        ("READER_PASSWORD", PASSWORD.to_owned()),
    ];
    let site = install(variables, &[("SSL_CERT_FILE", &trusted)]).await;

    let page = std::fs::read_to_string(repository().unwrap().join("docs/ship-a-policy.md")).unwrap();
    let page = page.replace("registry.example.com", &registry.host());
    let mut script = String::new();
    for (step, count) in
        [("Begin", 1), ("Edit", 1), ("Build and try", 1), ("Push", 1), ("Attach", 2), ("Explain", 1)]
    {
        let blocks = blocks(&page, step);
        assert_eq!(blocks.len(), count, "blocks to run in {step}");
        script.push_str("BEGUN=$SECONDS\n");
        for block in &blocks {
            script.push_str(&command(block));
        }
        writeln!(script, "echo \"== {step}: $((SECONDS - BEGUN)) s\"").unwrap();
    }
    // The versions that are tested; a registry of crates is asked for none.
    std::fs::write(site.newcomer.path("tested.lock"), lock_of_new("quiet-nights").unwrap()).unwrap();
    let script = script.replacen("cargo test", "cp ../tested.lock Cargo.lock\ncargo test", 1);
    let started = Instant::now();
    let said = site.newcomer.run(&script).await;
    wait_for_vnodes(&site.computing, "half of the free memory", |vnode| {
        vnode["status"]["allocatable"]["memory"] == "8Gi" && vnode["status"]["allocatable"]["cpu"] == "4"
    })
    .await;
    let took = started.elapsed();
    for line in said.lines().filter(|line| line.starts_with("== ")) {
        println!("{line}");
    }
    println!("from policy new to vnodes that follow in {took:?}");
    assert!(took < WAY, "{took:?}");
    assert!(said.contains("3 passed, 0 failed") && said.contains("1000 random nodes"), "{said}");
    let (_, explained) = said.rsplit_once("governed by quiet-nights").expect("an explanation of a node");
    assert!(explained.contains("offer") && explained.contains("8Gi"), "{explained}");
    let policy = Objects::of(site.fleet.worker()).await.get(&paths::policy("quiet-nights")).await.unwrap();
    let pushed = std::fs::read_to_string(site.newcomer.path("quiet-nights/pushed.txt")).unwrap();
    let (_, pushed) = pushed.split_once("digest: ").expect("what push prints");
    assert_eq!(policy["status"]["policies"][0]["digest"], pushed.trim(), "{policy:#}");
    assert_manager_rights(&site.fleet.computing);
}

/// A block as the shell runs it.
fn command(block: &Block) -> String {
    match block.kind.as_str() {
        "diff" => format!("git apply - <<'EDIT'\n{}EDIT\n", block.text),
        _ => block.text.clone(),
    }
}

/// What `kubectl auth can-i --list` says with the printed kubeconfig is what the worker chart's roles say, neither more nor
/// less, in each namespace that they name.
async fn rights_are_those_of_the_chart(newcomer: &Newcomer, worker: &Cluster) {
    newcomer.run("kubeocean worker kubeconfig --context east --format kubeconfig -o syncer.kubeconfig").await;
    let printed = std::fs::read_to_string(newcomer.path("syncer.kubeconfig")).unwrap();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody", "namespace": "default"}});
    worker.apply_objects(vec![account]).await.unwrap();
    let nobody = worker.service_account_kubeconfig("default", "nobody").await.unwrap();
    let chart =
        helm_template(Chart::KubeoceanWorker, "kubeocean-worker", "kubeocean-worker", &json!({})).await;
    let roles: Vec<Value> = serde_saphyr::from_multiple(&chart.unwrap()).unwrap();
    for namespace in ["kubeocean-worker", "kubeocean-worker-system", "default", "kube-system"] {
        let of_the_chart: BTreeSet<String> = roles
            .iter()
            .filter(|role| match role["kind"].as_str() {
                Some("ClusterRole") => role["metadata"]["name"] == "kubeocean-syncer",
                Some("Role") => {
                    let name = role["metadata"]["name"].as_str().unwrap();
                    name.starts_with("kubeocean-syncer") && role["metadata"]["namespace"] == namespace
                }
                _ => false,
            })
            .flat_map(|role| role["rules"].as_array().unwrap())
            .flat_map(rights)
            .collect();
        let everyone = rules(&nobody, namespace).await;
        let granted: BTreeSet<String> =
            rules(&printed, namespace).await.difference(&everyone).cloned().collect();
        assert_eq!(granted, of_the_chart, "in {namespace}");
        assert!(granted.len() > 30, "{granted:?}");
    }
}

/// A rule as one line for each verb and resource.
fn rights(rule: &Value) -> Vec<String> {
    let list = |key: &str| -> Vec<String> {
        let items = rule[key].as_array().into_iter().flatten();
        items.map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let names = list("resourceNames").join(",");
    let mut all = Vec::new();
    for (group, resource) in list("apiGroups")
        .iter()
        .flat_map(|group| list("resources").into_iter().map(move |resource| (group.clone(), resource)))
    {
        all.extend(list("verbs").iter().map(|verb| format!("{verb} {resource}.{group} [{names}]")));
    }
    all
}

/// What the account of a kubeconfig may do in a namespace.
async fn rules(kubeconfig: &str, namespace: &str) -> BTreeSet<String> {
    let api: Api<SelfSubjectRulesReview> = Api::all(client_of(kubeconfig).await.unwrap());
    let spec = SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) };
    let review = SelfSubjectRulesReview { spec, ..SelfSubjectRulesReview::default() };
    let status = api.create(&PostParams::default(), &review).await.unwrap().status.unwrap();
    status.resource_rules.iter().flat_map(|rule| rights(&serde_json::to_value(rule).unwrap())).collect()
}

/// From `policy new` to `explain`.
async fn own_policy(newcomer: &Newcomer, blocks: &[Block]) {
    let started = Instant::now();
    let commands = |(number, block): (usize, &Block)| {
        let mut text = command(block);
        if number == 0 {
            let (new, test) = text.split_once("cargo test").expect("the first block tests");
            text = format!("{new}{}\ncargo test{test}", prepared(newcomer));
        }
        format!("echo \"== {number} at $SECONDS s\"\n{text}")
    };
    let script: String = blocks.iter().enumerate().map(commands).collect();
    let said = newcomer.run(&script).await;
    println!("from policy new to explain in {:?}", started.elapsed());
    let (before, after) = said.rsplit_once("governed by cheap-nights").expect("an explanation of a node");
    assert!(before.contains("governed by cheap-nights") && before.contains("offer"), "{before}");
    assert!(before.contains("1000 random nodes"), "{before}");
    assert!(after.contains("withhold") && after.contains("Maintenance"), "{after}");
}

/// Commands that spare the test the registry and most of the compilation.
fn prepared(newcomer: &Newcomer) -> String {
    let file = newcomer.path("prepared.lock");
    std::fs::write(&file, lock_of_new("cheap-nights").unwrap()).unwrap();
    let target = cache_folder().unwrap();
    format!("cp {file} Cargo.lock\nln -s {} target\n", target.display())
}

async fn vnodes(computing: &Objects) -> Vec<Value> {
    computing.list("/api/v1/nodes?labelSelector=kubeocean.io%2Fcluster-binding%3Ddc-east").await
}

async fn wait_for_vnodes(computing: &Objects, what: &str, fits: impl Fn(&Value) -> bool) {
    wait_until(&format!("two vnodes with {what}"), DEADLINE, async || {
        let vnodes = vnodes(computing).await;
        let good = vnodes.iter().filter(|vnode| condition(vnode, "Ready")["status"] == "True" && fits(vnode));
        if good.count() == 2 { Ok(()) } else { Err(vnodes) }
    })
    .await;
}
