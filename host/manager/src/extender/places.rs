//! Candidates grouped by binding, and what is said of those whose Syncer is silent (PO-605, PO-608).
//!
//! Invariant: a Syncer has a say about nodes it was asked about and no others, and what two say of one node can only make it a
//! worse place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Instant,
};

use futures::future::{BoxFuture, join_all};
use kubeocean_api::{
    name::vnode_name_prefix,
    place::{Answer, Fit, OnError, Question, Row, Stage},
};
use parking_lot::Mutex;
use serde_json::Value;

/// What policies say about one vnode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The vnode.
    pub node: String,
    /// Whether the pod may go there.
    pub fit: Fit,
    /// How good a place it is, 0..=100.
    pub score: u8,
    /// Why not, `<code>: <message> (policy <entry>)`.
    pub why: String,
}

/// Highest score of a place.
const MAX_SCORE: u8 = 100;

impl From<Row> for Place {
    fn from(row: Row) -> Self {
        let Row { node, fit, score, code, message, entry, .. } = row;
        let why = if code.is_empty() { code } else { format!("{code}: {message} (policy {entry})") };
        Self { node, fit, score: score.min(MAX_SCORE), why }
    }
}

impl Place {
    /// Of two answers about one node the worse fit, and the lower score.
    fn worse(self, other: Self) -> Self {
        let rank = |fit| match fit {
            Fit::Accept => 0,
            Fit::Later => 1,
            Fit::Reject => 2,
        };
        let score = self.score.min(other.score);
        let worse = if rank(other.fit) > rank(self.fit) { other } else { self };
        Self { score, ..worse }
    }
}

/// One place per node.
fn one_each(places: impl Iterator<Item = Place>) -> BTreeMap<String, Place> {
    let mut of: BTreeMap<String, Place> = BTreeMap::new();
    for place in places {
        let place = match of.remove(&place.node) {
            Some(known) => known.worse(place),
            None => place,
        };
        of.insert(place.node.clone(), place);
    }
    of
}

/// A binding whose Syncer may have a say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Name of the binding.
    pub binding: String,
    /// Its clusterID.
    pub cluster_id: String,
}

/// The Syncers, wherever they run.
pub trait Syncers: Send + Sync + Debug + 'static {
    /// Who has a say; `None`: nobody knows here, because this process does not lead, or has not seen all bindings.
    fn served(&self) -> Option<Vec<Served>>;

    /// UID of a binding, where it is known: what one said is not believed of another of its name.
    fn uid(&self, _binding: &str) -> Option<String> {
        None
    }

    /// Asks one; `None`: it is silent.
    fn ask(
        &self,
        served: Served,
        question: Arc<Question>,
        deadline: Instant,
    ) -> BoxFuture<'static, Option<Answer>>;
}

/// See the module documentation.
#[derive(Debug)]
pub struct Places {
    syncers: Arc<dyn Syncers>,
    /// What each binding said last about not being asked, with its UID.
    on_error: Mutex<BTreeMap<String, (Option<String>, OnError)>>,
}

impl Places {
    /// Asks these Syncers.
    pub fn new(syncers: Arc<dyn Syncers>) -> Self {
        Self { syncers, on_error: Mutex::default() }
    }

    /// Asks about a pod. At most one place per node, and a node nobody says anything about is not ours; `None`: nobody
    /// decides here.
    pub async fn ask(&self, pod: Value, nodes: &[String], deadline: Instant) -> Option<Vec<Place>> {
        let pod = Arc::new(pod);
        let served = self.syncers.served()?;
        self.forget_all_but(&served);
        let asking = served.into_iter().filter_map(|served| {
            let prefix = vnode_name_prefix(&served.cluster_id);
            let names: Vec<String> = nodes.iter().filter(|name| name.starts_with(&prefix)).cloned().collect();
            (!names.is_empty()).then(|| self.ask_one(served, &pod, names, deadline))
        });
        let (answered, silent): (Vec<_>, Vec<_>) =
            join_all(asking).await.into_iter().partition(|said| said.answered);
        // Prefixes may be cut alike: what somebody says of its own vnode counts, not that another one is silent.
        let mut places = one_each(silent.into_iter().flat_map(|said| said.places));
        places.extend(one_each(answered.into_iter().flat_map(|said| said.places)));
        Some(places.into_values().collect())
    }

    fn forget_all_but(&self, served: &[Served]) {
        let mut known = self.on_error.lock();
        if known.len() > served.len() {
            let names: BTreeSet<&str> = served.iter().map(|one| one.binding.as_str()).collect();
            known.retain(|binding, _| names.contains(binding.as_str()));
        }
    }

    async fn ask_one(&self, served: Served, pod: &Arc<Value>, names: Vec<String>, deadline: Instant) -> Said {
        let left = deadline.saturating_duration_since(Instant::now());
        let question = Arc::new(Question {
            stage: Stage::Schedule,
            pod: Arc::clone(pod),
            nodes: names.clone(),
            timeout_milliseconds: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        });
        let binding = served.binding.clone();
        let uid = self.syncers.uid(&binding);
        let asking = self.syncers.ask(served, question, deadline);
        if let Ok(Some(answer)) = tokio::time::timeout_at(deadline.into(), asking).await {
            self.on_error.lock().insert(binding, (uid, answer.on_error));
            let asked: BTreeSet<&String> = names.iter().collect();
            let rows = answer.rows.into_iter().filter(|row| asked.contains(&row.node));
            return Said { answered: true, places: rows.map(Place::from).collect() };
        }
        let said = self.on_error.lock().get(&binding).cloned();
        let stands = said.filter(|(of, _)| *of == uid).map(|(_, on_error)| on_error);
        if stands == Some(OnError::Ignore) {
            return Said { answered: false, places: Vec::new() };
        }
        let why = format!("PolicyUnavailable: the policies of binding {binding} cannot be asked");
        let silent = |node| Place { node, fit: Fit::Later, score: 0, why: why.clone() };
        Said { answered: false, places: names.into_iter().map(silent).collect() }
    }
}

/// What became of one question.
struct Said {
    answered: bool,
    places: Vec<Place>,
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, AtomicU32, Ordering},
        time::Duration,
    };

    use futures::FutureExt;

    use super::*;

    /// Two clusterIDs with the same prefix of vnodes, of which each Syncer knows one node.
    #[derive(Debug, Default)]
    struct Two {
        /// These answer; others stay silent.
        answer: Mutex<Vec<(&'static str, OnError)>>,
        /// These never come to an end.
        hang: bool,
        /// Bindings made anew get another UID.
        generation: AtomicU32,
        /// The first is all there is.
        alone: AtomicBool,
    }

    const LONG: &str = "a-cluster-with-a-very-long-name";

    impl Syncers for Two {
        fn served(&self) -> Option<Vec<Served>> {
            let served = |binding: &str, last| Served {
                binding: binding.to_owned(),
                cluster_id: format!("{LONG}-{last}"),
            };
            let count = if self.alone.load(Ordering::Relaxed) { 1 } else { 2 };
            Some(vec![served("one", 1), served("two", 2)].into_iter().take(count).collect())
        }

        fn uid(&self, binding: &str) -> Option<String> {
            Some(format!("{binding}-{}", self.generation.load(Ordering::Relaxed)))
        }

        fn ask(
            &self,
            served: Served,
            question: Arc<Question>,
            _: Instant,
        ) -> BoxFuture<'static, Option<Answer>> {
            if self.hang {
                return std::future::pending().boxed();
            }
            let says = self.answer.lock().iter().find(|(name, _)| *name == served.binding).copied();
            let own = question.nodes.iter().filter(|node| node.ends_with(&served.binding)).cloned();
            let row = |node| Row {
                node,
                fit: Fit::Reject,
                seconds: None,
                score: 0,
                code: "Full".to_owned(),
                message: "no room".to_owned(),
                entry: "p/e".to_owned(),
            };
            let rows: Vec<Row> = own.map(row).collect();
            async move { says.map(|(_, on_error)| Answer { on_error, rows }) }.boxed()
        }
    }

    fn names() -> Vec<String> {
        let prefix = vnode_name_prefix(&format!("{LONG}-1"));
        vec!["a-real-node".to_owned(), format!("{prefix}one"), format!("{prefix}two")]
    }

    /// The last place of each candidate.
    async fn ask(places: &Places, names: &[String]) -> Vec<Option<(Fit, String)>> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let said = places.ask(Value::Null, names, deadline).await.unwrap();
        let last = |name: &String| said.iter().rfind(|place| place.node == *name);
        names.iter().map(|name| last(name).map(|place| (place.fit, place.why.clone()))).collect()
    }

    fn rejected() -> (Fit, String) {
        (Fit::Reject, "Full: no room (policy p/e)".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_stands_as_it_said_last_and_never_for_another_ones_vnode() {
        let two = Arc::new(Two::default());
        let (places, names) = (Places::new(Arc::clone(&two) as Arc<dyn Syncers>), names());
        let unavailable = |why: &Option<(Fit, String)>| {
            why.as_ref().is_some_and(|(fit, why)| *fit == Fit::Later && why.contains("PolicyUnavailable"))
        };
        // Nobody ever answered: that is no permission.
        let said = ask(&places, &names).await;
        assert!(said[0].is_none() && unavailable(&said[1]) && unavailable(&said[2]), "{said:?}");
        two.answer.lock().push(("one", OnError::Ignore));
        let said = ask(&places, &names).await;
        assert!(said[1] == Some(rejected()) && unavailable(&said[2]), "{said:?}");
        two.answer.lock().push(("two", OnError::Deny));
        assert_eq!(ask(&places, &names).await, [None, Some(rejected()), Some(rejected())]);
        // The first said that it may be left out; the second, that it may not.
        two.answer.lock().clear();
        let said = ask(&places, &names).await;
        assert!(said[0].is_none() && unavailable(&said[1]) && unavailable(&said[2]), "{said:?}");
        two.answer.lock().push(("two", OnError::Ignore));
        assert_eq!(ask(&places, &names).await, [None, None, Some(rejected())]);
        two.answer.lock().clear();
        assert_eq!(ask(&places, &names).await, [None, None, None]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_binding_said_is_forgotten_with_it() {
        let two = Arc::new(Two::default());
        let (places, names) = (Places::new(Arc::clone(&two) as Arc<dyn Syncers>), names());
        two.answer.lock().extend([("one", OnError::Ignore), ("two", OnError::Ignore)]);
        ask(&places, &names).await;
        two.answer.lock().clear();
        assert_eq!(ask(&places, &names).await, [None, None, None]);
        // Others of these names have said nothing yet.
        two.generation.store(1, Ordering::Relaxed);
        let said = ask(&places, &names).await;
        let later = |said: &Option<(Fit, String)>| matches!(said, Some((Fit::Later, _)));
        assert!(said[0].is_none() && later(&said[1]) && later(&said[2]), "{said:?}");
        two.alone.store(true, Ordering::Relaxed);
        ask(&places, &names).await;
        assert_eq!(places.on_error.lock().keys().collect::<Vec<_>>(), ["one"]);
    }

    /// One Syncer of two. The other is honest and says nothing.
    #[derive(Debug)]
    struct Liar(Vec<Row>);

    impl Syncers for Liar {
        fn served(&self) -> Option<Vec<Served>> {
            let served =
                |binding: &str| Served { binding: binding.to_owned(), cluster_id: binding.to_owned() };
            Some(vec![served("liar"), served("honest")])
        }

        fn ask(&self, served: Served, _: Arc<Question>, _: Instant) -> BoxFuture<'static, Option<Answer>> {
            let rows = if served.binding == "liar" { self.0.clone() } else { Vec::new() };
            async move { Some(Answer { on_error: OnError::Deny, rows }) }.boxed()
        }
    }

    #[tokio::test]
    async fn a_syncer_has_no_say_about_nodes_it_was_not_asked_about() {
        let row = |node: &str, fit, score| Row {
            node: node.to_owned(),
            fit,
            seconds: None,
            score,
            code: "Lie".to_owned(),
            message: String::new(),
            entry: "p/e".to_owned(),
        };
        let places = Places::new(Arc::new(Liar(vec![
            row("control-plane", Fit::Reject, 0),
            row("vnode-honest-a", Fit::Reject, 0),
            row("vnode-liar-unasked", Fit::Reject, 0),
            row("vnode-liar-a", Fit::Reject, 0),
            row("vnode-liar-a", Fit::Accept, 255),
            row("vnode-liar-b", Fit::Accept, 255),
            row("vnode-liar-c", Fit::Accept, 90),
            row("vnode-liar-c", Fit::Later, 30),
            row("vnode-liar-c", Fit::Accept, 40),
        ])));
        let nodes = ["control-plane", "vnode-honest-a", "vnode-liar-a", "vnode-liar-b", "vnode-liar-c"];
        let nodes = nodes.map(str::to_owned);
        let deadline = Instant::now() + Duration::from_secs(5);
        let said = places.ask(Value::Null, &nodes, deadline).await.unwrap();
        let said: Vec<_> = said.iter().map(|place| (place.node.as_str(), place.fit, place.score)).collect();
        let expected = [
            ("vnode-liar-a", Fit::Reject, 0),
            ("vnode-liar-b", Fit::Accept, 100),
            ("vnode-liar-c", Fit::Later, 30),
        ];
        assert_eq!(said, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_syncer_longer_than_the_deadline() {
        let places = Places::new(Arc::new(Two { hang: true, ..Two::default() }));
        let begun = tokio::time::Instant::now();
        let said = ask(&places, &names()).await;
        assert!(said[1].is_some() && begun.elapsed() <= Duration::from_secs(6), "{said:?}");
    }
}
