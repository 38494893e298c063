//! From the watch's objects to what is written, without a server.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kubeocean_api::name::{ObjectKey, phys_name};
use kubeocean_runtime::clock::Clock;
use serde_json::{Value, json};

use super::{
    index::EventStore,
    plan::{About, BURST, INTERVAL, NEWS_FOR, Plan, Snapshot, WAIT_FOR_POD, Write, plan},
    view::{EventObject, Seen},
};
use crate::{
    config::{PodEvents, StatusMessages},
    pods::{
        names::Names,
        view::{Ppod, Vpod},
        wording::MESSAGE_MAX_BYTES,
    },
};

const POD: &str = "11111111-2222-3333-4444-555555555555";
const MOUNT: &str = "kubeocean-worker";
const START: &str = "2026-01-05T12:00:00Z";

#[derive(Debug)]
struct Fixed(Timestamp);

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        self.0
    }
}

fn start() -> Timestamp {
    START.parse().unwrap()
}

fn after(seconds: i64) -> Timestamp {
    start() + SignedDuration::from_secs(seconds)
}

fn store() -> Arc<EventStore> {
    store_of(PodEvents::Warning)
}

fn store_of(wanted: PodEvents) -> Arc<EventStore> {
    EventStore::new("kubeocean-syncer-east".to_owned(), wanted, Arc::new(Fixed(start())))
}

/// A kubelet's event about the pod.
fn event(name: &str, message: &str, count: i64, at: Timestamp) -> Value {
    json!({
        "metadata": {"name": name, "namespace": MOUNT},
        "involvedObject": {
            "kind": "Pod", "namespace": MOUNT, "name": phys_name("web-0", "team-a"), "uid": POD,
            "fieldPath": "spec.containers{main}",
        },
        "type": "Warning", "reason": "BackOff", "message": message,
        "source": {"component": "kubelet", "host": "node-1"},
        "firstTimestamp": START, "lastTimestamp": at.to_string(), "count": count,
    })
}

fn see(store: &EventStore, event: &Value) {
    store.saw(EventObject::deserialize(event).view);
}

impl EventObject {
    fn deserialize(event: &Value) -> Self {
        serde_json::from_value(event.clone()).unwrap()
    }
}

fn vpod() -> Vpod {
    Vpod::from_json(&json!({
        "metadata": {"namespace": "team-a", "name": "web-0", "uid": "v-uid", "resourceVersion": "1"},
        "spec": {
            "nodeName": "vnode-east-node-1",
            "volumes": [{"name": "a", "configMap": {"name": "settings"}}],
            "imagePullSecrets": [{"name": "registry"}],
        },
    }))
    .unwrap()
}

fn names(more: Vec<(String, String)>) -> Names {
    let ppod = Ppod::from_json(&json!({
        "metadata": {"namespace": MOUNT, "name": phys_name("web-0", "team-a"), "uid": POD},
    }))
    .unwrap();
    let copies = more.into_iter().chain([(phys_name("pv-7", ""), "pv-7".to_owned())]);
    Names::of(&vpod(), (&ppod.key, &ppod.uid), Some("node-1"), copies, ["web-0-token-secret".to_owned()])
}

fn copy() -> About {
    copy_with(vec![])
}

fn copy_with(more: Vec<(String, String)>) -> About {
    About::Copy {
        vpod: ObjectKey::new("team-a", "web-0"),
        uid: "v-uid".to_owned(),
        vnode: "vnode-east-node-1".to_owned(),
        ending: false,
        names: names(more),
    }
}

fn snapshot(store: &EventStore, now: Timestamp, about: About) -> Snapshot {
    let news = store.stories(POD).expect("news of the pod");
    Snapshot {
        now,
        wanted: store.wanted(),
        messages: StatusMessages::Full,
        about,
        since: news.since,
        stories: news.stories,
        budget: news.budget,
    }
}

/// Plans, and takes what is planned for written.
fn act(store: &EventStore, now: Timestamp) -> Plan {
    let plan = plan(&snapshot(store, now, copy()));
    for Write { story, reflection, budget } in &plan.write {
        let (count, first, last) = (reflection.count, reflection.first, reflection.last);
        store.told(POD, story, Seen { count, first, last }, *budget);
    }
    plan
}

/// A copy's name is never longer than 63 bytes, its original's may have 253.
#[test]
fn a_message_that_grows_by_long_names_is_still_one_the_api_server_takes() {
    let store = store();
    let claim = "c".repeat(253);
    let copy = phys_name(&claim, "team-a");
    see(&store, &event("e1", &format!("waiting for {copy}, {copy}, {copy}, {copy} and {copy}"), 1, after(5)));
    let mut about = copy_with(vec![(copy, claim.clone())]);
    let told = plan(&snapshot(&store, after(6), about.clone())).write.remove(0).reflection.message;
    assert!(told.starts_with(&format!("waiting for {claim}, {claim}")), "{told}");
    assert_eq!((told.len(), told.ends_with("...")), (MESSAGE_MAX_BYTES, true), "{told}");
    if let About::Copy { names, .. } = &mut about {
        *names = Names::default();
    }
    let told = plan(&snapshot(&store, after(6), about)).write.remove(0).reflection.message;
    assert!(told.len() < MESSAGE_MAX_BYTES, "only translated is it too long: {told}");
}

#[test]
fn a_worker_event_becomes_one_of_the_vpod() {
    let store = store();
    let ppod = phys_name("web-0", "team-a");
    see(&store, &event("e1", &format!("Back-off restarting main in pod {ppod}_{MOUNT}({POD})"), 3, after(5)));
    let plan = act(&store, after(6));
    insta::assert_json_snapshot!(plan.write[0].reflection, @r#"
    {
      "name": "web-0-ae9ce14196c820871e72800f77527f3a",
      "vpod": "team-a/web-0",
      "uid": "v-uid",
      "severity": "Warning",
      "reason": "BackOff",
      "message": "Back-off restarting main in pod web-0_team-a(v-uid)",
      "field_path": "spec.containers{main}",
      "component": "kubelet",
      "host": "vnode-east-node-1",
      "count": 3,
      "first": "2026-01-05T12:00:00Z",
      "last": "2026-01-05T12:00:05Z",
      "known": false
    }
    "#);
    assert_eq!(act(&store, after(7)).write, [], "told once");
}

#[test]
fn an_event_of_the_new_recorder_counts_by_its_series() {
    let mut said = event("e1", "0/1 nodes are available", 1, start());
    // `null` is what a server answers for times that are not set.
    for field in ["firstTimestamp", "lastTimestamp", "count"] {
        said[field] = Value::Null;
    }
    said["source"] = json!({});
    said["eventTime"] = "2026-01-05T12:00:01.000000Z".into();
    said["reportingComponent"] = "default-scheduler".into();
    said["series"] = json!({"count": 4, "lastObservedTime": "2026-01-05T12:00:09.000000Z"});
    let view = EventObject::deserialize(&said).view;
    assert_eq!(view.seen, Seen { count: 4, first: after(1), last: after(9) });
    assert_eq!((&*view.news.component, view.news.on_node), ("default-scheduler", false));
}

#[test]
fn the_same_news_with_other_numbers_is_one_event_that_adds_up() {
    let store = store();
    see(&store, &event("e1", "0/5 nodes are available", 2, after(1)));
    let first = act(&store, after(1)).write.remove(0).reflection;
    assert!(!first.known);
    see(&store, &event("e2", "0/6 nodes are available", 1, after(3)));
    let second = act(&store, after(3)).write.remove(0).reflection;
    assert_eq!((&second.name, second.count, second.known), (&first.name, 3, true));
    assert_eq!(second.message, "0/6 nodes are available");
    assert_eq!((second.first, second.last), (start(), after(3)));
    // One that expires takes nothing away, and is no news.
    store.lost("e1");
    assert_eq!(act(&store, after(4)).write, []);
    see(&store, &event("e2", "0/6 nodes are available", 2, after(5)));
    assert_eq!(act(&store, after(5)).write[0].reflection.count, 4);
    // Another thing is another event.
    see(&store, &event("e3", "disk is full", 1, after(6)));
    assert_ne!(act(&store, after(6)).write[0].reflection.name, first.name);
}

#[test]
fn a_start_tells_the_same_once_more_and_nothing_old() {
    let told = |store: &EventStore, now| -> Vec<_> {
        act(store, now).write.into_iter().map(|write| write.reflection).collect()
    };
    let events =
        [event("e1", "disk is full", 7, after(1)), event("e2", "0/1 nodes are available", 1, after(100))];
    let (before, restarted) = (store(), store());
    for event in &events {
        see(&before, event);
    }
    let first = told(&before, after(101));
    restarted.listed(events.iter().map(|event| EventObject::deserialize(event).view).collect());
    let later = after(99) + NEWS_FOR;
    let again = told(&restarted, later);
    assert_eq!(first.len(), 2);
    assert_eq!(again, first[1..], "the same name and content, so nothing changes; the older one is no news");
}

#[test]
fn the_order_of_a_list_does_not_change_the_words() {
    let mut events = [
        event("b", "after 2m1s", 1, after(1)),
        event("a", "after 4m7s", 1, after(1)),
        event("c", "after 0m5s", 1, start()),
    ];
    let words = |events: &[Value]| {
        let store = store();
        for event in events {
            see(&store, event);
        }
        act(&store, after(2)).write.remove(0).reflection.message
    };
    let once = words(&events);
    events.reverse();
    assert_eq!((once.as_str(), words(&events)), ("after 2m1s", once.clone()));
}

#[test]
fn a_list_once_more_is_no_news() {
    let store = store();
    let said = event("e1", "disk is full", 1, after(1));
    see(&store, &said);
    act(&store, after(1));
    store.listed(vec![EventObject::deserialize(&said).view]);
    assert_eq!(act(&store, after(2)).write, []);
    store.listed(Vec::new());
    assert!(store.stories(POD).is_none(), "what is not there any more is not kept");
}

#[test]
fn a_pod_that_is_talked_about_much_is_told_little_and_in_the_end_everything() {
    let store = store();
    let mut written = 0;
    let said = 200;
    for second in 1..=said {
        see(&store, &event("e1", "Back-off restarting", second, after(second)));
        written += act(&store, after(second)).write.len();
    }
    let most = usize::try_from(BURST + said / INTERVAL.as_secs() + 1).unwrap();
    assert!(written <= most, "{written} events within {said} s");
    let wake = act(&store, after(said)).wake.expect("the rest comes later");
    let rest = act(&store, wake);
    assert_eq!(rest.write[0].reflection.count, said);
    assert_eq!(rest.wake, None);
}

#[test]
fn many_kinds_of_news_are_cut_off() {
    let store = store();
    for kind in 0..100_u8 {
        let word: String =
            format!("{kind:03}").bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
        see(&store, &event(&word, &word, 1, after(1)));
    }
    let stories = || store.stories(POD).unwrap().stories;
    assert_eq!(stories().len(), 17, "16 by their words, and one of those that come later");
    assert_eq!(stories().iter().map(|story| story.seen.count).sum::<i64>(), 100);
    // What a pod says of itself does not hide what is said of it.
    let mut failed = event("mount", "no such volume", 1, after(2));
    failed["reason"] = "FailedMount".into();
    see(&store, &failed);
    assert!(stories().iter().any(|story| *story.news.reason == *"FailedMount"));
    for reason in 'a'..='z' {
        let mut event = event(&format!("of-{reason}"), "words", 1, after(3));
        event["reason"] = format!("Reason-{reason}").into();
        see(&store, &event);
    }
    assert_eq!(stories().len(), 32);
}

#[test]
fn events_of_somebody_elses_pod_are_forgotten_and_of_an_unknown_one_after_a_while() {
    let store = store();
    see(&store, &event("e1", "disk is full", 1, after(1)));
    let foreign = plan(&snapshot(&store, after(1), About::Foreign));
    assert!(foreign.forget && foreign.write.is_empty());
    let unknown = plan(&snapshot(&store, after(1), About::Unknown));
    assert_eq!((unknown.forget, unknown.wake), (false, Some(after(2))));
    let patience = i64::try_from(WAIT_FOR_POD.as_secs()).unwrap();
    assert!(plan(&snapshot(&store, after(patience), About::Unknown)).forget);
    store.forget(POD);
    assert!(store.stories(POD).is_none());
}

#[test]
fn our_own_events_and_those_about_nobody_are_not_heard() {
    let store = store();
    let mut own = event("e1", "created", 1, start());
    own["source"]["component"] = "kubeocean-syncer-east".into();
    see(&store, &own);
    let mut nobody = event("e2", "created", 1, start());
    nobody["involvedObject"]["uid"] = Value::Null;
    see(&store, &nobody);
    assert!(store.stories(POD).is_none() && store.stories("").is_none() && store.queue().is_empty());
}

/// A kubelet says most of this as Normal.
#[test]
fn why_a_container_was_ended_is_told_but_not_to_who_deletes_it() {
    let normal = |reason: &str| {
        let mut said = event(reason, "Container main failed liveness probe, will be restarted", 1, after(1));
        said["type"] = "Normal".into();
        said["reason"] = reason.into();
        said
    };
    let told = |wanted, ending| -> Vec<String> {
        let store = store_of(wanted);
        for reason in ["BackOff", "Killing", "SuccessfulAttachVolume"] {
            see(&store, &normal(reason));
        }
        let mut about = copy();
        if let About::Copy { ending: is_ending, .. } = &mut about {
            *is_ending = ending;
        }
        let plan = plan(&snapshot(&store, after(2), about));
        let mut reasons: Vec<_> = plan.write.into_iter().map(|write| write.reflection.reason).collect();
        reasons.sort();
        reasons
    };
    assert_eq!(told(PodEvents::Warning, false), ["BackOff", "Killing"]);
    assert_eq!(told(PodEvents::Warning, true), ["BackOff"]);
    assert_eq!(told(PodEvents::All, true), ["BackOff", "Killing", "SuccessfulAttachVolume"]);
}

/// A write that fails costs no share: after an outage everything is told.
#[test]
fn what_was_not_written_costs_nothing() {
    let store = store();
    for kind in 'a'..='e' {
        see(&store, &event(&kind.to_string(), &kind.to_string(), 1, after(1)));
    }
    for _ in 0..10 {
        assert_eq!(plan(&snapshot(&store, after(2), copy())).write.len(), 5);
    }
    assert_eq!(act(&store, after(3)).write.len(), 5);
    assert_eq!(act(&store, after(4)).write, []);
}

#[test]
fn words_that_must_not_be_seen_are_not_shown() {
    let store = store();
    see(&store, &event("e1", "the internal registry refuses", 1, start()));
    let snapshot = Snapshot { messages: StatusMessages::ReasonOnly, ..snapshot(&store, start(), copy()) };
    let reflection = &plan(&snapshot).write[0].reflection;
    assert_eq!(reflection.reason, "BackOff");
    assert!(!reflection.message.contains("registry"), "{}", reflection.message);
}

#[test]
fn messages_speak_of_the_computing_cluster() {
    let (ppod, settings, registry) =
        (phys_name("web-0", "team-a"), phys_name("settings", "team-a"), phys_name("registry", "team-a"));
    for (said, told) in [
        (
            format!("Successfully assigned {MOUNT}/{ppod} to node-1"),
            "Successfully assigned team-a/web-0 to vnode-east-node-1".to_owned(),
        ),
        (
            format!(r#"MountVolume.SetUp failed for volume "a" : configmap "{settings}" not found."#),
            r#"MountVolume.SetUp failed for volume "a" : configmap "settings" not found."#.to_owned(),
        ),
        (format!("secret {registry}."), "secret registry.".to_owned()),
        (format!("pod={ppod}_{MOUNT}({POD})"), "pod=web-0_team-a(v-uid)".to_owned()),
        ("object \"web-0-token-secret\"".to_owned(), "object \"web-0-token\"".to_owned()),
        (
            format!("MountVolume failed for volume \"{}\"", phys_name("pv-7", "")),
            "MountVolume failed for volume \"pv-7\"".to_owned(),
        ),
        // Parts of other names, and other words, stay.
        (format!("node-10 {ppod}x my-node-1 été"), format!("node-10 {ppod}x my-node-1 été")),
    ] {
        assert_eq!(names(vec![]).translate(&said), told);
    }
}
