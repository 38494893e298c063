//! Watches the clusters and writes what changes.
//!
//! In: watch streams into the Syncer's index, samples of usage. Out: lines of the file, in order of time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Write,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use jiff::Timestamp;
use kube::{Api, Client, runtime::watcher::Config};
use kubeocean_engine::NodeFacts;
use kubeocean_runtime::{
    request::get_json,
    sink::Sink,
    watch::{WatchHealth, WatchSpec, watch_into},
};
use kubeocean_syncer::{
    nodes::{
        index::{Identity, Index, VnodeName},
        measured::{self, Measured},
        snapshot::facts,
        view::{NodeObject, WorkerPod},
        watch::{HasIndex, WorkerNodes, WorkerPods},
    },
    policies::view::PolicyView,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    Args, Report,
    file::{Header, Writer},
};
use crate::{
    cluster::list,
    failure::{Failure, OrFailure},
    policy::gather::{Clusters, Computing, decode_all, identity},
    progress::Steps,
};

/// Pods that are on a node and not over.
const PODS: &str = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";
/// Pause between two questions for usage (PO-405).
const SAMPLING: Duration = Duration::from_mins(1);
/// Changes are written together for so long, as a burst of pods changes the same sums many times.
const GATHERING: Duration = Duration::from_secs(1);
/// How long the first lists may take.
const LISTING: Duration = Duration::from_mins(2);

/// What the watches fill.
struct Picture {
    index: Mutex<Index>,
    dirty: Mutex<BTreeSet<VnodeName>>,
    changed: Notify,
}

impl HasIndex for Picture {
    fn change(&self, work: impl FnOnce(&mut Index) -> BTreeSet<VnodeName>) {
        let dirty = work(&mut self.index.lock());
        self.dirty.lock().extend(dirty);
        self.changed.notify_one();
    }
}

struct Vnodes(Arc<Picture>);

impl Sink<NodeObject> for Vnodes {
    fn apply(&self, vnode: NodeObject) {
        self.0.change(|index| index.set_vnode(*vnode.view).into_iter().collect());
    }
    fn delete(&self, vnode: NodeObject) {
        let vnode = vnode.view;
        let at = vnode.version();
        self.0.change(|index| index.remove_vnode(vnode.name(), vnode.uid(), at).into_iter().collect());
    }
    fn reset(&self, all: Vec<NodeObject>) {
        self.0.change(|index| index.reset_vnodes(NodeObject::views(all)));
    }
}

/// A recording that has begun.
pub(super) struct Recording<'a> {
    args: &'a Args,
    worker: Client,
    picture: Arc<Picture>,
    identity: Identity,
    lists: Vec<(&'static str, Arc<WatchHealth>)>,
    cancel: CancellationToken,
    output: Output,
    measured: Measured,
}

impl<'a> Recording<'a> {
    /// Asks both clusters once, so that a missing right or a cluster that does not answer is told at once, and begins to
    /// watch them.
    pub(super) async fn start(
        args: &'a Args,
        clusters: &Clusters,
        computing: Option<Computing>,
        binding: &str,
        policies: &[PolicyView],
    ) -> Result<Self, Failure> {
        let worker = clusters.worker.clone();
        list(&worker, "/api/v1/nodes?limit=1").await?;
        let pods = list(&worker, "/api/v1/pods?limit=500").await?.unwrap_or_default();
        let pods: Vec<WorkerPod> = decode_all(pods, "a pod")?;
        let identity = identity(binding, computing.as_ref(), policies, &pods);
        let mut index = Index::new(identity.clone());
        if let Some(computing) = &computing {
            index.own_pods_are_in(&computing.binding.mount_namespace);
        }
        let picture =
            Arc::new(Picture { index: Mutex::new(index), dirty: Mutex::default(), changed: Notify::new() });
        let (mut lists, cancel) = (Vec::new(), CancellationToken::new());
        let mut health = |name| {
            let health = Arc::<WatchHealth>::default();
            lists.push((name, Arc::clone(&health)));
            health
        };
        let spec = |name, client: &Client, config| WatchSpec { name, api: Api::all(client.clone()), config };
        let nodes = spec("nodes", &worker, Config::default());
        tokio::spawn(watch_into(
            nodes,
            Arc::new(WorkerNodes(Arc::clone(&picture))),
            health("nodes"),
            cancel.clone(),
        ));
        let pods =
            WatchSpec { name: "pods", api: Api::all(worker.clone()), config: Config::default().fields(PODS) };
        tokio::spawn(watch_into(
            pods,
            Arc::new(WorkerPods(Arc::clone(&picture))),
            health("pods"),
            cancel.clone(),
        ));
        if let (Some(client), Some(_)) = (&clusters.computing, &computing) {
            let vnodes = spec("virtual nodes", client, Config::default().labels(&vnodes_of(binding)));
            let sink = Arc::new(Vnodes(Arc::clone(&picture)));
            tokio::spawn(watch_into(vnodes, sink, health("virtual nodes"), cancel.clone()));
        }
        let output = Output::create(args)?;
        Ok(Self { args, worker, picture, identity, lists, cancel, output, measured: Measured::default() })
    }

    /// Until `end`, or once.
    pub(super) async fn run(mut self, end: Option<Timestamp>) -> Result<Report, Failure> {
        let listed = tokio::time::timeout(LISTING, self.listed()).await;
        listed.map_err(|_| {
            let missing = self.lists.iter().find(|(_, health)| !health.is_synced());
            let what = missing.map_or("nodes", |(name, _)| *name);
            Failure::unreachable(format!("the list of {what} did not come within {} s", LISTING.as_secs()))
        })?;
        let started = Timestamp::now();
        let identity = &self.identity;
        let header = Header::new(&identity.binding, &identity.cluster_id, started, self.args.hash_names);
        self.output.write(&Writer::header(&header))?;
        self.sample().await;
        self.write_changes(started.as_second())?;
        if let Some(end) = end {
            self.follow(started, end).await?;
        }
        self.cancel.cancel();
        let until = Timestamp::now();
        self.output.write(&Writer::end(until.as_second()))?;
        self.output.file.sync_all().context("cannot write the snapshot").or_unusable()?;
        Ok(Report {
            file: self.args.out.clone(),
            binding: self.identity.binding,
            nodes: self.output.writer.nodes().count(),
            changes: self.output.changes,
            from: started,
            until,
            measured: self.output.measured.len(),
        })
    }

    async fn listed(&self) {
        for (_, health) in &self.lists {
            health.synced().await;
        }
    }

    async fn follow(&mut self, started: Timestamp, end: Timestamp) -> Result<(), Failure> {
        let seconds = |at: Timestamp| u64::try_from(at.as_second() - started.as_second()).unwrap_or(0);
        let bar = Steps::long("recording", seconds(end));
        let left = Duration::from_secs(seconds(end).saturating_sub(seconds(Timestamp::now())));
        let over = tokio::time::sleep(left);
        tokio::pin!(over);
        let mut sampling = tokio::time::interval(SAMPLING);
        sampling.tick().await;
        let picture = Arc::clone(&self.picture);
        loop {
            tokio::select! {
                () = &mut over => break,
                // A person who has seen enough; what is written stays.
                _ = tokio::signal::ctrl_c() => break,
                _ = sampling.tick() => self.sample().await,
                () = picture.changed.notified() => tokio::time::sleep(GATHERING).await,
            }
            let now = Timestamp::now();
            bar.at(seconds(now));
            self.write_changes(now.as_second())?;
        }
        bar.end();
        self.write_changes(Timestamp::now().as_second())
    }

    /// Usage, where it is served.
    async fn sample(&mut self) {
        // Not served, not allowed or not there right now: as the Syncer, without a measurement (PO-405).
        if let Ok(Some(list)) = get_json(&self.worker, measured::PATH).await {
            self.measured.take(&list);
        }
        let means = self.measured.means(Timestamp::now().as_second());
        self.picture.change(|index| index.set_measured(&means));
    }

    fn write_changes(&mut self, at: i64) -> Result<(), Failure> {
        let dirty = std::mem::take(&mut *self.picture.dirty.lock());
        for vnode in dirty {
            let snapshot = self.picture.index.lock().snapshot(&vnode);
            let Some(pnode) = snapshot.pnode.filter(|node| !node.excluded()) else {
                self.output.gone(at, &vnode)?;
                continue;
            };
            let name = if self.identity.cluster_id.is_empty() { "" } else { &*vnode };
            let facts = facts(&pnode, name, snapshot.vnode.as_deref(), &snapshot.usage);
            self.output.node(at, &vnode, facts)?;
        }
        Ok(())
    }
}

/// Vnodes of a binding, as the Syncer selects them.
fn vnodes_of(binding: &str) -> String {
    use kubeocean_api::{keys::label, name::fit_label_value};
    format!(
        "{}={},{}={}",
        label::MANAGED_BY,
        label::MANAGED_BY_VALUE,
        label::CLUSTER_BINDING,
        fit_label_value(binding)
    )
}

/// The file, and under which names nodes are in it.
struct Output {
    file: File,
    writer: Writer,
    changes: usize,
    measured: BTreeSet<String>,
    names: BTreeMap<VnodeName, String>,
    /// What names are hashed with; nobody can try names against the file.
    salt: Option<String>,
}

impl Output {
    fn create(args: &Args) -> Result<Self, Failure> {
        let file = File::create(&args.out)
            .with_context(|| format!("cannot write {}", args.out.display()))
            .or_unusable()?;
        let salt = args.hash_names.then(salt).transpose()?;
        let (writer, measured) = (Writer::default(), BTreeSet::new());
        Ok(Self { file, writer, changes: 0, measured, names: BTreeMap::new(), salt })
    }

    fn write(&mut self, line: &str) -> Result<(), Failure> {
        self.file.write_all(line.as_bytes()).context("cannot write the snapshot").or_unusable()
    }

    fn node(&mut self, at: i64, vnode: &VnodeName, facts: NodeFacts) -> Result<(), Failure> {
        let facts = match &self.salt {
            Some(salt) => hashed(facts, salt),
            None => facts,
        };
        if !facts.usage.is_empty() {
            self.measured.insert(facts.node_name.clone());
        }
        self.names.insert(Arc::clone(vnode), facts.node_name.clone());
        let line = self.writer.node(at, &facts);
        self.changed(line)
    }

    fn gone(&mut self, at: i64, vnode: &VnodeName) -> Result<(), Failure> {
        let Some(name) = self.names.remove(vnode) else { return Ok(()) };
        let line = self.writer.gone(at, &name);
        self.changed(line)
    }

    fn changed(&mut self, line: Option<String>) -> Result<(), Failure> {
        let Some(line) = line else { return Ok(()) };
        self.changes += 1;
        self.write(&line)
    }
}

fn salt() -> Result<String, Failure> {
    use std::io::Read;
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("no random numbers to hash names with")
        .or_unusable()?;
    Ok(kubeocean_engine::module_digest(&bytes))
}

/// Facts of the same node under another name, wherever its own stands.
fn hashed(mut facts: NodeFacts, salt: &str) -> NodeFacts {
    let digest = kubeocean_engine::module_digest(format!("{salt}/{}", facts.node_name).as_bytes());
    let short = digest.trim_start_matches("sha256:").get(..12).unwrap_or_default();
    let (name, own) = (format!("node-{short}"), facts.node_name.clone());
    let clean = |text: &mut String| {
        if !own.is_empty() && text.contains(&own) {
            *text = text.replace(&own, &name);
        }
    };
    facts
        .labels
        .values_mut()
        .chain(facts.annotations.values_mut())
        .chain(facts.taints.values_mut())
        .for_each(clean);
    clean(&mut facts.vnode_name);
    facts.node_name = name;
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hashed_name_is_nowhere_and_always_the_same() {
        let node = NodeFacts {
            node_name: "rack-7".into(),
            vnode_name: "vnode-c1-rack-7".into(),
            labels: [("kubernetes.io/hostname".to_owned(), "rack-7".to_owned()), ("pool".into(), "a".into())]
                .into(),
            annotations: [("address".to_owned(), "https://rack-7.example".to_owned())].into(),
            ..NodeFacts::default()
        };
        let first = hashed(node.clone(), "salt");
        let text = serde_json::to_string(&first).unwrap();
        assert!(!text.contains("rack-7") && text.contains("\"pool\":\"a\""), "{text}");
        assert_eq!(first.labels["kubernetes.io/hostname"], first.node_name);
        assert_eq!(first, hashed(node.clone(), "salt"));
        assert_ne!(first, hashed(node, "other"));
    }
}
