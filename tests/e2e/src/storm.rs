//! Pods that begin, change and end while an API server, or the way to it, is ill.
//!
//! In: a [`Shelter`], which is a stage whose Syncer reaches both clusters through fault proxies, and what goes wrong. Out:
//! nothing, or a panic. Each [`Shelter::weather`] is the same story: pods with a ConfigMap, a Secret, a token and a claim run; it
//! begins to fail; meanwhile some of the pods are changed, some deleted and new ones created, with a ConfigMap and a claim of
//! their own; it ends; and then within [`RECOVERED`] everything is as if nothing had happened, but for what the worker's own
//! controllers take: each pod has one copy and
//! always had the same, and one Secret with its token; nothing was made twice, nothing is left of what was deleted, content
//! and status are those of the other side. Neither the log nor the API servers were flooded.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kubeocean_api::keys::{annotation, label};
use kubeocean_harness::faults::{Fault, Refusal, Requests, Rule, Served};
use kubeocean_harness::site::{SYNCER_ACCOUNT, SYSTEM_NAMESPACE};
use kubeocean_harness::{BindingSpec, Cluster, FaultProxy, Program, ProgramSpec, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::pods::{Scene, Stage, text};
use crate::rights::requests;
use crate::volumes::{CLAIMS, create_claim, create_volume, volume_copy, volume_path};

/// The longest pause between two attempts at anything, 10 s, and the time for the work itself.
pub const RECOVERED: Duration = Duration::from_secs(15);
/// How much later the worker's own controller may bind a claim: its second try, if two of its writes met.
const BINDER: Duration = Duration::from_secs(20);
/// What its scheduler says of pods until then.
const UNBOUND: &str = "unbound immediate PersistentVolumeClaims";
/// From a claim that is bound to a pod that runs.
const BOUND: Duration = Duration::from_secs(5);
/// In the Syncer's directory.
const TOKEN_FILE: &str = "token";
/// Pods of each fate: they stay, they go, they come.
const PODS: usize = 4;
/// Lines the Syncer may log a second while it fails, beside [`LINES`].
const LINES_A_SECOND: u64 = 4;
/// Lines about each pod that changes: it was created, deleted, finished, tried again at growing pauses.
const LINES: u64 = 20 * PODS as u64;
/// Which server is ill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Computing,
    Worker,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Computing => "computing",
            Self::Worker => "worker",
        }
    }
}

/// A stage behind proxies. Its Syncer reads the token for the computing cluster from a file.
#[derive(Debug)]
pub struct Shelter {
    pub stage: Stage,
    computing: FaultProxy,
    worker: FaultProxy,
    worker_token: String,
    home: TempDir,
}

impl Shelter {
    /// Binds two nodes and starts a Syncer between two proxies.
    ///
    /// # Panics
    /// Something does not start.
    pub async fn start(name: &str) -> Self {
        let binding = Stage::bind(BindingSpec::new(name), 2).await;
        let computing = FaultProxy::start(binding.computing()).await.expect("a proxy");
        let worker = FaultProxy::start(binding.worker()).await.expect("a proxy");

        let home = tempfile::tempdir().expect("a directory");
        let (kubeconfig, token) = account(binding.computing(), SYSTEM_NAMESPACE).await;
        let file = home.path().join(TOKEN_FILE);
        std::fs::write(&file, &token).expect("a file");
        let by_file =
            kubeconfig.replace(&format!("token: {token}"), &format!("tokenFile: {}", file.display()));
        let spec = ProgramSpec::syncer(name).kubeconfig(&computing.through(&by_file));

        let (kubeconfig, worker_token) = account(binding.worker(), binding.mount_namespace()).await;
        binding.write_kubeconfig(&worker.through(&kubeconfig)).await.expect("a Secret");
        let syncer = Program::start(binding.computing(), spec).await.expect("a Syncer");
        let stage = Stage::served_by(binding, 2, syncer).await;
        Self { stage, computing, worker, worker_token, home }
    }

    /// From now on a server does not accept the token the Syncer has had so far.
    ///
    /// # Panics
    /// The token cannot be read.
    pub fn expire_token(&self, side: Side) {
        let token = match side {
            Side::Computing => std::fs::read_to_string(self.home.path().join(TOKEN_FILE)).expect("a token"),
            Side::Worker => self.worker_token.clone(),
        };
        let requests = Requests::all().with_token(&token);
        self.proxy(side).inject(Rule::new(requests, Fault::Refuse(Refusal::Unauthorized)));
    }

    /// Gives the Syncer a new token, where it looks for one.
    ///
    /// # Panics
    /// There is none.
    pub async fn renew_token(&self, side: Side) {
        let binding = &self.stage.binding;
        match side {
            Side::Computing => {
                let (_, token) = account(binding.computing(), SYSTEM_NAMESPACE).await;
                std::fs::write(self.home.path().join(TOKEN_FILE), token).expect("a file");
            }
            Side::Worker => {
                let (kubeconfig, _) = account(binding.worker(), binding.mount_namespace()).await;
                binding.write_kubeconfig(&self.worker.through(&kubeconfig)).await.expect("a Secret");
            }
        }
    }

    /// The proxy in front of a server.
    pub fn proxy(&self, side: Side) -> &FaultProxy {
        match side {
            Side::Computing => &self.computing,
            Side::Worker => &self.worker,
        }
    }

    /// The story, with rules for one side that hold for some time. All connections are broken as it begins, so that
    /// watches come under the rules too. Returns what was asked of the ill server meanwhile.
    ///
    /// # Panics
    /// Something was lost, doubled, late or flooded.
    pub async fn weather(&self, what: &str, side: Side, rules: Vec<Rule>, hold: Duration) -> Vec<Served> {
        let proxy = self.proxy(side);
        let begin = || {
            rules.iter().cloned().for_each(|rule| proxy.inject(rule));
            proxy.break_connections();
            proxy.forget();
        };
        let namespace = format!("{what}-{}", side.name());
        let end = async || {
            pass(hold).await;
            let asked = proxy.served();
            proxy.heal();
            asked
        };
        let asked = storm(&self.stage, &namespace, RECOVERED, begin, end).await;
        assert!(asked.iter().any(|request| request.spoiled), "{what}: no request failed");
        asked
    }
}

/// The story, with any trouble: `begin` lets it begin, `end` lets it last and ends it. All must be well `within` some time
/// after that.
///
/// # Panics
/// As [`Shelter::weather`].
pub async fn storm<T>(
    stage: &Stage,
    namespace: &str,
    within: Duration,
    begin: impl FnOnce(),
    end: impl AsyncFnOnce() -> T,
) -> T {
    let scene = stage.scene(namespace).await;
    let story = Story::begin(&scene).await;
    let log = stage.syncer.log().len();
    let began = Instant::now();
    begin();
    story.go_on().await;
    let result = end().await;
    let lasted = began.elapsed();
    let healed = Instant::now();
    let mut excused = healed;
    wait_until(&format!("{namespace} to be as if nothing had happened"), within + BINDER, async || {
        let whole = story.is_whole().await;
        if let Err(why) = &whole {
            if why.contains(UNBOUND) {
                excused = Instant::now();
            }
            let in_time = healed.elapsed() <= within || excused.elapsed() <= BOUND;
            assert!(
                in_time,
                "{namespace}: not as if nothing had happened {:?} later: {why}",
                healed.elapsed()
            );
        }
        whole
    })
    .await;
    let told = stage.syncer.log().split_off(log);
    let lines = told.lines().count() as u64;
    println!("{namespace}: recovered {:?} after {lasted:?}; {lines} lines", healed.elapsed());
    let most = LINES + LINES_A_SECOND * (lasted + healed.elapsed()).as_secs();
    assert!(lines <= most, "{namespace}: more than {most} lines:\n{told}");
    story.end().await;
    assert_made_once(stage);
    result
}

/// No copy was made twice in all this time, of whatever kind.
fn assert_made_once(stage: &Stage) {
    let (_, worker) = requests(&stage.binding);
    let mut made = BTreeMap::<(&str, &str), usize>::new();
    for event in worker.iter().filter(|event| event.verb == "create" && event.response_status.code < 300) {
        *made.entry((&event.object_ref.resource, &event.object_ref.name)).or_default() += 1;
    }
    for kind in ["pods", "configmaps", "secrets", CLAIMS, "persistentvolumes"] {
        assert!(made.keys().any(|(resource, _)| *resource == kind), "no {kind} were made: {made:?}");
    }
    // Events and the like have no names when they are asked for.
    made.retain(|(_, name), times| *times > 1 && !name.is_empty());
    assert!(made.is_empty(), "copies made more than once: {made:?}");
}

/// Lets time go by: how long it lasts is what is tested.
pub async fn pass(time: Duration) {
    let began = Instant::now();
    wait_until("time to pass", time * 2, async || began.elapsed() >= time).await;
}

/// No more was asked than so much a second on average.
///
/// # Panics
/// It was.
pub fn assert_few(asked: &[Served], time: Duration, a_second: u64) {
    let most = a_second * time.as_secs();
    assert!(
        asked.len() as u64 <= most,
        "{} requests in {time:?}, not {most}: {:#?}",
        asked.len(),
        by_kind(asked)
    );
}

/// How often what was asked.
fn by_kind(asked: &[Served]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for request in asked {
        let watch = if request.watch { "watch " } else { "" };
        *kinds.entry(format!("{watch}{} {}", request.method, request.path)).or_default() += 1;
    }
    kinds
}

/// The kubeconfig of a Syncer's account, and the token in it.
async fn account(cluster: &Cluster, namespace: &str) -> (String, String) {
    let kubeconfig = cluster.service_account_kubeconfig(namespace, SYNCER_ACCOUNT).await.expect("a token");
    let line = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("token: "));
    let token = line.expect("a token in a kubeconfig").to_owned();
    (kubeconfig, token)
}

/// What users do, and what must come of it.
struct Story<'a> {
    scene: &'a Scene<'a>,
    /// UIDs of pods and of their copies, of those that ran before.
    before: BTreeMap<String, (String, String)>,
}

fn names(fate: &str) -> impl Iterator<Item = String> {
    (0..PODS).map(move |number| format!("{fate}-{number}"))
}

impl<'a> Story<'a> {
    async fn begin(scene: &'a Scene<'a>) -> Self {
        scene.create_object("configmaps", "settings", json!({"data": {"weather": "fair"}})).await;
        scene.create_object("secrets", "password", json!({"stringData": {"word": "sun"}})).await;
        let story = Self { scene, before: BTreeMap::new() };
        story.create_claim("settings").await;
        let mut before = BTreeMap::new();
        for name in names("stays").chain(names("goes")) {
            scene.create_pod(&scene.pod(&name, Self::spec("settings"))).await;
        }
        for name in names("stays").chain(names("goes")) {
            let (vpod, ppod) = scene.wait_running(&name).await;
            let uid = |pod: &Value| text(&pod["metadata"]["uid"]).to_owned();
            before.insert(name, (uid(&vpod), uid(&ppod)));
        }
        Self { before, ..story }
    }

    /// Name of the volume behind a claim; volumes have no namespace.
    fn volume(&self, claim: &str) -> String {
        format!("{}-{claim}", self.scene.namespace)
    }

    async fn create_claim(&self, name: &str) {
        let volume = self.volume(name);
        create_volume(&self.scene.computing, &volume, json!({})).await;
        create_claim(&self.scene.computing, &self.scene.namespace, name, &volume, json!({})).await;
    }

    /// A pod with a ConfigMap and a claim of this name.
    fn spec(settings: &str) -> Value {
        let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
        json!({
            "terminationGracePeriodSeconds": 1,
            "volumes": [
                {"name": "settings", "configMap": {"name": settings}},
                {"name": "password", "secret": {"secretName": "password"}},
                {"name": "identity", "projected": {"sources": [token]}},
                {"name": "data", "persistentVolumeClaim": {"claimName": settings}},
            ],
        })
    }

    /// What users do meanwhile. They reach both clusters.
    async fn go_on(&self) {
        let Scene { computing, worker, .. } = self.scene;
        self.scene.create_object("configmaps", "late", json!({"data": {"weather": "foul"}})).await;
        self.create_claim("late").await;
        for name in names("comes") {
            self.scene.create_pod(&self.scene.pod(&name, Self::spec("late"))).await;
        }
        computing
            .merge(&self.scene.object("configmaps", "settings"), &json!({"data": {"weather": "foul"}}))
            .await;
        computing
            .merge(&self.scene.object("secrets", "password"), &json!({"stringData": {"word": "rain"}}))
            .await;
        for name in names("stays") {
            let colour = json!({"metadata": {"labels": {"colour": "grey"}}});
            computing.merge(&self.scene.vpod(&name), &colour).await;
            let news = json!({"status": {"message": "the worker says so"}});
            worker.merge(&format!("{}/status", self.scene.ppod(&name)), &news).await;
        }
        for name in names("goes") {
            computing.delete(&self.scene.vpod(&name), None).await;
        }
    }

    /// Everything is where it belongs.
    async fn is_whole(&self) -> Result<(), String> {
        let Scene { computing, worker, .. } = self.scene;
        let vpods = by_name(self.scene.vpods().await, |pod| text(&pod["metadata"]["name"]).to_owned());
        let mut wanted: Vec<String> = names("comes").chain(names("stays")).collect();
        wanted.sort();
        let present: Vec<String> = vpods.keys().cloned().collect();
        if present != wanted {
            return Err(format!("the pods are {present:?}"));
        }
        let of_ours = |pod: &Value| {
            pod["metadata"]["annotations"][annotation::VIRTUAL_POD_NAMESPACE] == *self.scene.namespace
        };
        let copies: Vec<Value> = self.scene.copies("pods").await.into_iter().filter(of_ours).collect();
        if copies.len() != wanted.len() {
            return Err(format!("{} copies of {} pods", copies.len(), wanted.len()));
        }
        let original =
            |pod: &Value| text(&pod["metadata"]["annotations"][annotation::VIRTUAL_POD_NAME]).to_owned();
        let copies = by_name(copies, original);
        for (name, vpod) in &vpods {
            let ppod = copies.get(name).ok_or_else(|| format!("{name} has no copy"))?;
            self.is_copy(name, vpod, ppod)?;
        }
        for name in ["settings", "late"] {
            let copy = worker.get(&self.scene.copy("configmaps", name)).await.unwrap_or_default();
            if copy["data"]["weather"] != "foul" {
                return Err(format!("the copy of {name} is {copy}"));
            }
            let claim = worker.get(&self.scene.copy(CLAIMS, name)).await.unwrap_or_default();
            let volume = worker.get(&volume_copy(&self.volume(name))).await.unwrap_or_default();
            let pair = (&claim["status"]["phase"], &volume["spec"]["claimRef"]["uid"]);
            if pair != (&json!("Bound"), &claim["metadata"]["uid"]) {
                return Err(format!("the copy of the claim {name} is {claim}, that of its volume {volume}"));
            }
        }
        self.are_identified(&copies).await?;
        let secret = |object: Option<Value>| object.unwrap_or_default()["data"].clone();
        let original = secret(computing.get(&self.scene.object("secrets", "password")).await);
        let copy = secret(worker.get(&self.scene.copy("secrets", "password")).await);
        if copy == original { Ok(()) } else { Err("the copy of the Secret is old".to_owned()) }
    }

    /// Each pod has one Secret with its token, and its copy uses that.
    async fn are_identified(&self, copies: &BTreeMap<String, Value>) -> Result<(), String> {
        let secrets = self.tokens().await;
        let owner = |secret: &Value| {
            text(&secret["metadata"]["annotations"][annotation::VIRTUAL_POD_NAME]).to_owned()
        };
        let mut owners: Vec<String> = secrets.iter().map(owner).collect();
        owners.sort();
        if !owners.iter().eq(copies.keys()) {
            return Err(format!("there are tokens of {owners:?}"));
        }
        for secret in &secrets {
            let name = text(&secret["metadata"]["name"]);
            let uses = copies[&owner(secret)]["spec"]["volumes"].to_string().contains(&format!("\"{name}\""));
            assert!(uses, "{} does not use {name}", owner(secret));
            if secret["data"].as_object().is_none_or(serde_json::Map::is_empty) {
                return Err(format!("{name} is empty"));
            }
        }
        Ok(())
    }

    /// The Secrets with tokens of this story's pods.
    async fn tokens(&self) -> Vec<Value> {
        let mut secrets = self.scene.copies("secrets").await;
        secrets.retain(|secret| {
            let metadata = &secret["metadata"];
            metadata["labels"][label::SERVICE_ACCOUNT_TOKEN] == "true"
                && metadata["annotations"][annotation::VIRTUAL_POD_NAMESPACE] == *self.scene.namespace
        });
        secrets
    }

    fn is_copy(&self, name: &str, vpod: &Value, ppod: &Value) -> Result<(), String> {
        let uid = |pod: &Value| text(&pod["metadata"]["uid"]).to_owned();
        let uids = (uid(vpod), uid(ppod));
        let annotations = |pod: &Value, key: &str| text(&pod["metadata"]["annotations"][key]).to_owned();
        assert!(self.before.get(name).is_none_or(|before| *before == uids), "{name} is another one");
        assert_ne!(vpod["status"]["phase"], "Failed", "{name} was given up: {vpod}");
        if annotations(ppod, annotation::VIRTUAL_POD_UID) != uids.0 {
            return Err(format!("the copy of {name} is another pod's"));
        }
        if annotations(vpod, annotation::PHYSICAL_POD_UID) != uids.1 {
            return Err(format!("{name} does not name its copy"));
        }
        let stays = name.starts_with("stays");
        if stays && ppod["metadata"]["labels"]["colour"] != "grey" {
            return Err(format!("the copy of {name} has not followed"));
        }
        for field in ["phase", "podIP", "hostIP", "startTime", "containerStatuses", "message"] {
            if vpod["status"][field] != ppod["status"][field] {
                return Err(format!(
                    "{field} of {name}: {} here, {} there",
                    vpod["status"][field], ppod["status"][field]
                ));
            }
        }
        let told = !stays || vpod["status"]["message"] == "the worker says so";
        if vpod["status"]["phase"] == "Running" && told {
            Ok(())
        } else {
            Err(format!("{name}: {}", vpod["status"]))
        }
    }

    /// All goes, and nothing is left.
    async fn end(&self) {
        let Scene { computing, worker, namespace, .. } = self.scene;
        let deadline = crate::pods::DEADLINE;
        computing.delete(&format!("/api/v1/namespaces/{namespace}/pods"), None).await;
        wait_until("all pods to be gone", deadline, async || self.scene.vpods().await.is_empty()).await;
        let objects = [
            ("configmaps", "settings"),
            ("configmaps", "late"),
            ("secrets", "password"),
            (CLAIMS, "settings"),
            (CLAIMS, "late"),
        ];
        for (kind, name) in objects {
            computing.delete(&self.scene.object(kind, name), None).await;
        }
        for (kind, name) in objects {
            computing.wait_gone(&self.scene.object(kind, name)).await;
            worker.wait_gone(&self.scene.copy(kind, name)).await;
        }
        for volume in ["settings", "late"].map(|claim| self.volume(claim)) {
            computing.delete(&volume_path(&volume), None).await;
            computing.wait_gone(&volume_path(&volume)).await;
            worker.wait_gone(&volume_copy(&volume)).await;
        }
        for name in names("stays").chain(names("goes")).chain(names("comes")) {
            worker.wait_gone(&self.scene.ppod(&name)).await;
        }
        wait_until("all tokens to be gone", deadline, async || {
            let left = self.tokens().await;
            if left.is_empty() { Ok(()) } else { Err(format!("{} Secrets", left.len())) }
        })
        .await;
    }
}

fn by_name(pods: Vec<Value>, name: impl Fn(&Value) -> String) -> BTreeMap<String, Value> {
    pods.into_iter().map(|pod| (name(&pod), pod)).collect()
}
