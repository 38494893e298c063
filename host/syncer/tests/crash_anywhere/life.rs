//! A binding that lives through the stages of a story, and a Syncer that dies in it.
//!
//! In: a [`Story`]. [`whole`] is one uninterrupted run of it; in any other [`run`] the Syncer may stop dead, and another one
//! goes on. All runs live on the two control planes of this binary, each with a binding, a worker node, a policy and
//! namespaces of its own.

use std::{collections::BTreeSet, fmt::Debug, ops::Deref, sync::Arc, time::Duration};

use kube::Client;
use kubeocean_harness::{
    Binding, BindingSpec, NodeShape, shared_site, site::SYNCER_ACCOUNT, site::SYSTEM_NAMESPACE, wait_until,
};
use kubeocean_runtime::request::{DeleteOptions, delete_json, get_json, paths};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{
    door::{Door, Trouble, Write},
    syncer::Syncer,
};

/// For a stage, a crash in it included, on a machine that runs some of them side by side.
const DEADLINE: Duration = Duration::from_mins(1);

/// What happens to a binding, and how one sees what came of it.
pub(crate) trait Story: Deref<Target = Place> + Sized {
    /// Begins the names of what its runs need.
    const NAME: &'static str;
    /// Every kind of write the story is about, each of which an uninterrupted run makes.
    const KINDS: &'static [&'static str];
    /// Those that say the same again, as often as a cluster finds it: a Syncer dies after the first of each.
    const REPEATED: &'static [&'static str] = &[];
    /// Runs at a time. One: it is about what there is once in a cluster, and no other story goes on meanwhile.
    const SIDE_BY_SIDE: usize;
    type Stage: Copy + Debug + 'static;
    /// In order. Everything must come to rest before the next one begins.
    const STAGES: &'static [Self::Stage];
    /// Writes that are made so often, however often the Syncer dies.
    const ONCE: &'static [(&'static str, usize)];

    async fn new(name: String) -> Self;
    /// Where [`whole`] keeps its run.
    fn whole() -> &'static OnceCell<Run>;
    /// What is wrong with the writes of a Syncer that found what another one had written.
    fn goes_on(_writes: &[Write]) -> Result<(), &'static str> {
        Ok(())
    }
    /// Whether writes of this kind are for the sake of the story.
    fn counts(kind: &str) -> bool {
        Self::KINDS.contains(&kind)
    }
    /// What users and the worker cluster do.
    async fn act(&self, stage: Self::Stage);
    /// Both clusters, without what differs between two runs.
    async fn picture(&self) -> Value;
    /// Whether an uninterrupted run has come to the end of a stage.
    async fn is_over(&self, stage: Self::Stage, shown: &Value) -> bool;
}

/// Where a story takes place.
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) computing: Client,
    pub(crate) worker: Client,
    pub(crate) pnode: String,
    pub(crate) vnode: String,
    pub(crate) namespace: String,
    pub(crate) mount: String,
    pub(crate) binding: Binding<'static>,
    /// The Syncer's own clients of both clusters.
    accounts: (Client, Client),
}

impl Place {
    pub(crate) async fn new(name: &str) -> Self {
        let site = shared_site().await;
        let binding = site.bind(BindingSpec::new(name)).await.unwrap();
        let pnodes =
            binding.worker().create_nodes(name, 1, &NodeShape::default().label("colour", "red")).await;
        let pnode = pnodes.unwrap().remove(0);
        let (computing, worker) = (site.computing(), binding.worker());
        let namespace = format!("team-{name}");
        computing.create_namespace(&namespace).await.unwrap();
        let mount = binding.mount_namespace().to_owned();
        Self {
            name: name.to_owned(),
            computing: computing.client().await.unwrap(),
            worker: worker.client().await.unwrap(),
            vnode: format!("vnode-{name}-{pnode}"),
            pnode,
            namespace,
            accounts: (
                computing.service_account_client(SYSTEM_NAMESPACE, SYNCER_ACCOUNT).await.unwrap(),
                worker.service_account_client(&mount, SYNCER_ACCOUNT).await.unwrap(),
            ),
            mount,
            binding,
        }
    }

    /// A Syncer behind a door.
    async fn syncer(&self, door: &Arc<Door>) -> Syncer {
        let (computing, worker) = self.accounts.clone();
        let (computing, worker) = (door.to("computing", computing).await, door.to("worker", worker).await);
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": worker}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            "users": [{"name": "c", "user": {}}],
        });
        if get_json(&self.computing, &paths::binding(&self.name)).await.unwrap().is_some() {
            self.binding.write_kubeconfig(&kubeconfig.to_string()).await.unwrap();
        }
        Syncer::start(&self.name, &computing)
    }
}

/// What came of a run.
pub(crate) struct Run {
    /// What the first Syncer wrote.
    pub(crate) writes: Vec<Write>,
    /// Kinds of all its writes, also those that do not count.
    pub(crate) made: BTreeSet<String>,
    /// It was made to die.
    pub(crate) died: bool,
    /// What [`Door::told`] says of the first Syncer.
    pub(crate) told: Vec<String>,
    /// After each stage.
    pub(crate) pictures: Vec<Value>,
}

impl Run {
    /// How many writes of a kind the first Syncer made.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.writes.iter().filter(|(other, _)| other == kind).count()
    }
}

/// The right to run a story: see [`Story::SIDE_BY_SIDE`].
pub(crate) enum Turn {
    #[expect(dead_code, reason = "held")]
    WithOthers(RwLockReadGuard<'static, ()>),
    #[expect(dead_code, reason = "held")]
    Alone(RwLockWriteGuard<'static, ()>),
}

impl Turn {
    pub(crate) async fn of<S: Story>() -> Self {
        static STAGE: RwLock<()> = RwLock::const_new(());
        if S::SIDE_BY_SIDE == 1 {
            Self::Alone(STAGE.write().await)
        } else {
            Self::WithOthers(STAGE.read().await)
        }
    }
}

/// The uninterrupted run, made once for all tests.
pub(crate) async fn whole<S: Story>() -> &'static Run {
    S::whole()
        .get_or_init(async || {
            let _turn = Turn::of::<S>().await;
            run(&S::new(format!("{}-whole", S::NAME)).await, Trouble::None, None).await
        })
        .await
}

/// Goes through all stages with a Syncer that has `trouble`, and one that follows it when it dies. Every stage must end as
/// it does in `expected`.
pub(crate) async fn run<S: Story>(story: &S, trouble: Trouble, expected: Option<&Vec<Value>>) -> Run {
    let (door, next) = (Door::new(trouble, S::counts), Door::new(Trouble::None, S::counts));
    let mut first = Some(story.syncer(&door).await);
    let mut second = None;
    let succession = async {
        door.shut().await;
        first = None;
        second = Some(story.syncer(&next).await);
        std::future::pending::<()>().await;
    };
    let pictures = tokio::select! {
        pictures = stages(story, expected) => pictures,
        () = succession => unreachable!("the second Syncer stays"),
    };
    // The write whose effect ended the story counts when its answer has passed, for which its Syncer must live.
    let (writes, more) = (door.writes().await, next.writes().await);
    drop((first, second));
    if let (Trouble::DeathAfter(last), true) = (door.trouble(), door.is_shut()) {
        assert_eq!(writes.last(), Some(last), "a dead Syncer wrote");
    }
    for (kind, times) in S::ONCE {
        let made = writes.iter().chain(&more).filter(|(other, _)| other == kind).count();
        assert_eq!(made, *times, "{kind} in {}: {writes:?}, then {more:?}", story.name);
    }
    assert_eq!(S::goes_on(&more), Ok(()), "in {}: {writes:?}, then {more:?}", story.name);
    Run { writes, made: door.made(), died: door.is_shut(), told: door.told(), pictures }
}

async fn stages<S: Story>(story: &S, expected: Option<&Vec<Value>>) -> Vec<Value> {
    let mut pictures = Vec::new();
    for (number, stage) in S::STAGES.iter().enumerate() {
        story.act(*stage).await;
        let what = format!("the end of stage {stage:?} of {}", story.name);
        let shown = wait_until(&what, DEADLINE, async || {
            let shown = story.picture().await;
            match expected {
                Some(expected) if shown != expected[number] => Err(differences(&shown, &expected[number])),
                None if !story.is_over(*stage, &shown).await => Err(shown.to_string()),
                _ => Ok(shown),
            }
        })
        .await;
        pictures.push(shown);
    }
    pictures
}

/// The parts of two pictures that differ.
fn differences(shown: &Value, expected: &Value) -> String {
    let keys = expected.as_object().unwrap().iter().filter(|(key, value)| shown[key.as_str()] != **value);
    let told: Vec<String> =
        keys.map(|(key, value)| format!("{key}: {} instead of {value}", shown[key.as_str()])).collect();
    told.join("\n")
}

pub(crate) async fn get(client: &Client, path: &str) -> Value {
    get_json(client, path).await.unwrap().unwrap_or_default()
}

pub(crate) async fn list(client: &Client, path: &str) -> Vec<Value> {
    let mut list = get(client, path).await;
    list["items"].as_array_mut().map(std::mem::take).unwrap_or_default()
}

pub(crate) async fn delete(client: &Client, path: &str) {
    delete_json(client, path, &DeleteOptions::default()).await.unwrap();
}
