use kubeocean_api::keys::annotation;

use super::{
    super::secret::tests::{meta, scope},
    *,
};

#[derive(Debug)]
struct At(Timestamp);
impl Clock for At {
    fn now(&self) -> Timestamp {
        self.0
    }
}

fn found(name: &str, pod: &str, expires: &str) -> Found {
    Found::of(&meta(name, pod, expires, Some(("cc", "east"))), &scope()).expect("a token Secret")
}

fn secret(name: &str, pod: &str, expires: &str) -> TokenSecret {
    match found(name, pod, expires) {
        Found::Ours(secret) => secret,
        Found::Unstamped(_) => panic!("it is stamped"),
    }
}

#[test]
fn a_secret_that_vanishes_is_lost_and_one_that_was_removed_is_not() {
    let store = TokenStore::new(Pods::default(), Arc::new(At("2026-01-01T00:00:00Z".parse().unwrap())));
    let (web, db) = (secret("a", "web", "2026-01-01T01:00:00Z"), secret("b", "db", "2026-01-01T01:00:00Z"));
    store.reset(vec![Found::Ours(web.clone()), Found::Ours(db.clone())]);
    assert!(matches!(store.look(web.owner()), Look::Due(_)));
    store.forget("b");
    store.vanished("b");
    assert_eq!(store.look(db.owner()), Look::Nothing);
    store.reset(vec![]);
    assert_eq!(store.look(web.owner()), Look::Now);
    store.written(web.clone(), "2026-01-01T00:40:00Z".parse().unwrap());
    assert_eq!(store.look(web.owner()), Look::Due("2026-01-01T00:40:00Z".parse().unwrap()));
    store.seen(Found::Ours(web.clone()));
    assert_eq!(
        store.look(web.owner()),
        Look::Due("2026-01-01T00:40:00Z".parse().unwrap()),
        "our own write comes back through the watch and keeps its time"
    );
}

#[test]
fn of_two_that_vanish_each_is_missed_until_it_is_there_again() {
    let store = TokenStore::new(Pods::default(), Arc::new(At("2026-01-01T00:00:00Z".parse().unwrap())));
    let renewal: Timestamp = "2026-01-01T00:40:00Z".parse().unwrap();
    let [first, second] = ["a", "b"].map(|name| secret(name, "web", "2026-01-01T01:00:00Z"));
    store.reset(vec![Found::Ours(first.clone()), Found::Ours(second.clone())]);
    store.vanished("a");
    store.vanished("b");
    store.written(first.clone(), renewal);
    assert_eq!(store.look(first.owner()), Look::Now, "the other is still missing");
    store.misses_only(first.owner(), &["a", "b"]);
    assert_eq!(store.look(first.owner()), Look::Now, "it is needed");
    store.written(second, renewal);
    assert_eq!(store.look(first.owner()), Look::Due(renewal));
    store.vanished("b");
    store.misses_only(first.owner(), &["a"]);
    assert_eq!(store.look(first.owner()), Look::Due(renewal), "a volume that is no more needs none");
}

#[test]
fn the_answer_to_a_write_tells_when_to_renew_also_after_its_event() {
    let store = TokenStore::new(Pods::default(), Arc::new(At("2026-01-01T00:59:00Z".parse().unwrap())));
    let web = secret("a", "web", "2026-01-01T01:00:00Z");
    store.seen(Found::Ours(web.clone()));
    store.written(web.clone(), "2026-01-01T00:59:48Z".parse().unwrap());
    assert_eq!(store.look(web.owner()), Look::Due("2026-01-01T00:59:48Z".parse().unwrap()));
}

#[test]
fn the_end_of_a_ppod_brings_its_tokens_up_and_no_others() {
    let store = TokenStore::new(Pods::default(), Arc::new(At("2026-01-01T00:00:00Z".parse().unwrap())));
    let web = secret("a", "web", "2026-01-01T01:00:00Z");
    store.copy_gone(web.owner());
    assert!(store.queue.is_empty(), "it has none");
    store.state.lock().put(web.clone(), |_| "2026-01-01T00:40:00Z".parse().unwrap());
    store.copy_gone(web.owner());
    assert_eq!(store.queue.len(), 1);
}

#[test]
fn a_secret_about_to_end_is_due_at_once() {
    let store = TokenStore::new(Pods::default(), Arc::new(At("2026-01-01T00:59:00Z".parse().unwrap())));
    let web = secret("a", "web", "2026-01-01T01:00:00Z");
    store.seen(Found::Ours(web.clone()));
    assert_eq!(store.look(web.owner()), Look::Now);
}

/// Nothing else is known of the token than an end by a clock that is hours behind ours.
#[test]
fn a_secret_that_was_renewed_while_we_know_it_is_not_due_again_at_once() {
    let now: Timestamp = "2026-01-01T05:00:00Z".parse().unwrap();
    let store = TokenStore::new(Pods::default(), Arc::new(At(now)));
    let web = secret("a", "web", "2026-01-01T01:00:00Z");
    store.seen(Found::Ours(web.clone()));
    assert_eq!(store.look(web.owner()), Look::Now);
    store.seen(found("a", "web", "2026-01-01T01:10:00Z"));
    assert_eq!(store.look(web.owner()), Look::Due(now + SignedDuration::from_secs(30)));
}

#[test]
fn a_secret_that_no_volume_has_keeps_no_other_from_being_renewed() {
    let store = TokenStore::new(Pods::default(), Arc::new(At("2026-01-01T00:00:00Z".parse().unwrap())));
    let renewal: Timestamp = "2026-01-01T00:40:00Z".parse().unwrap();
    let web = secret("a", "web", "2026-01-01T01:00:00Z");
    let mut endless = meta("surplus", "web", "2026-01-01T01:00:00Z", Some(("cc", "east")));
    endless.annotations.as_mut().unwrap().remove(annotation::TOKEN_EXPIRATION);
    store.seen(Found::of(&endless, &scope()).expect("a token Secret"));
    store.written(web.clone(), renewal);
    assert_eq!(store.look(web.owner()), Look::Now, "it is due for ever");
    assert_eq!(store.next_renewal(web.owner(), &["a"]), Some(renewal));
    assert_eq!(store.next_renewal(web.owner(), &[]), None);
}

#[test]
fn unstamped_secrets_wait_for_a_verdict_whenever_they_are_listed() {
    let store = TokenStore::new(Pods::default(), Arc::new(At("2026-01-01T00:00:00Z".parse().unwrap())));
    let unstamped = |name: &str, pod: &str| {
        Found::of(&meta(name, pod, "2026-01-01T01:00:00Z", None), &scope()).expect("a token Secret")
    };
    let [web, db] = ["web", "db"].map(|pod| unstamped("x", pod).owner().clone());
    store.reset(vec![unstamped("a", "web"), unstamped("b", "web"), unstamped("c", "db")]);
    assert_eq!((store.queue.len(), store.named().len()), (2, 2));
    assert_eq!((store.owners(), store.look(&web)), (vec![], Look::Nothing), "nothing is ours yet");
    store.adopt(&web);
    assert_eq!((store.of_owner(&web).len(), store.unstamped_of(&web)), (2, vec![]));
    assert!(matches!(store.look(&web), Look::Due(_)));
    store.seen(unstamped("a", "web"));
    assert_eq!(store.unstamped_of(&web), [], "it was decided");
    store.copy_gone(&db);
    store.vanished("c");
    assert_eq!(
        (store.unstamped_of(&db), store.look(&db)),
        (vec![], Look::Nothing),
        "it was not ours to miss"
    );
    store.seen(unstamped("c", "db"));
    store.disown(&db);
    assert_eq!(store.named(), [web]);
}
