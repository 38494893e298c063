//! Pods that begin, change and end while an API server, or the way to it, is ill.
//!
//! In: a [`Shelter`], which is a stage whose Syncer reaches both clusters through fault proxies, and what goes wrong. Out:
//! nothing, or a panic. Each [`Shelter::weather`] is the same story (`story`): pods with a ConfigMap, a Secret, a token and a
//! claim run; it begins to fail; meanwhile some of the pods are changed, some deleted and new ones created, with a ConfigMap
//! and a claim of their own, and the worker says something about one; it ends; and then within [`RECOVERED`] everything is as
//! if nothing had happened, but for what the worker's own controllers take: each pod has one copy and always had the same,
//! and one Secret with its token; nothing was made or told twice, nothing is left of what was deleted, content and status are
//! those of the other side. Neither the log nor the API servers were flooded.

mod story;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kubeocean_harness::faults::{Fault, Refusal, Requests, Rule, Served};
use kubeocean_harness::site::{SYNCER_ACCOUNT, SYSTEM_NAMESPACE};
use kubeocean_harness::{BindingSpec, Cluster, FaultProxy, Program, ProgramSpec, wait_until};
use tempfile::TempDir;

use crate::pods::Stage;
use crate::rights::requests;
use crate::volumes::CLAIMS;
use story::Story;

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
        Self::start_with(name, &[]).await
    }

    /// As [`Shelter::start`], with flags of the Syncer.
    ///
    /// # Panics
    /// As [`Shelter::start`].
    pub async fn start_with(name: &str, args: &[&str]) -> Self {
        let binding = Stage::bind(BindingSpec::new(name), 2).await;
        let computing = FaultProxy::start(binding.computing()).await.expect("a proxy");
        let worker = FaultProxy::start(binding.worker()).await.expect("a proxy");

        let home = tempfile::tempdir().expect("a directory");
        let (kubeconfig, token) = account(binding.computing(), SYSTEM_NAMESPACE).await;
        let file = home.path().join(TOKEN_FILE);
        std::fs::write(&file, &token).expect("a file");
        let by_file =
            kubeconfig.replace(&format!("token: {token}"), &format!("tokenFile: {}", file.display()));
        let spec = ProgramSpec::syncer(name).args(args).kubeconfig(&computing.through(&by_file));

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
    /// Something was lost, doubled, late or flooded, or a rule had no request.
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
            let (asked, unmet) = (proxy.served(), proxy.unmet());
            proxy.heal();
            (asked, unmet)
        };
        let (asked, unmet) = storm(&self.stage, &namespace, RECOVERED, begin, end).await;
        assert!(unmet.is_empty(), "{namespace}: no request met {unmet:#?}");
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

/// No more was asked than so much a second on average. A write that came through is no repetition, however many pods could
/// be served meanwhile; none was done more than once a second.
///
/// # Panics
/// It was.
pub fn assert_few(asked: &[Served], time: Duration, a_second: u64) {
    let (done, others): (Vec<&Served>, Vec<&Served>) =
        asked.iter().partition(|request| request.is_write() && !request.spoiled);
    let most = a_second * time.as_secs();
    assert!(
        others.len() as u64 <= most,
        "{} requests in {time:?} beside writes that were done, not {most}: {:#?}",
        others.len(),
        by_kind(asked)
    );
    let mut times = BTreeMap::<(&str, &str, &str), u64>::new();
    for write in done {
        *times.entry((write.method.as_str(), &write.path, &write.made)).or_default() += 1;
    }
    times.retain(|_, times| *times > time.as_secs());
    assert!(times.is_empty(), "done again and again in {time:?}: {times:?}");
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
