//! API servers, and ways to them, that fail while pods begin, change and end (see [`kubeocean_e2e::storm`]).
//!
//! Each test is one kind of trouble, first with the computing cluster's server, then with the worker's. Everything is whole
//! again within [`RECOVERED`], 15 s, after the trouble ended.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use http::Method;
use kubeocean_api::keys::annotation;
use kubeocean_e2e::pods::{Objects, Scene, text};
use kubeocean_e2e::storm::{RECOVERED, Shelter, Side, assert_few, pass, storm};
use kubeocean_harness::faults::{Fault, Refusal, Requests, Rule, Served};
use kubeocean_harness::wait_until;
use serde_json::{Value, json};

const SIDES: [Side; 2] = [Side::Computing, Side::Worker];
const SECONDS: Duration = Duration::from_secs(8);
/// Requests a second while a server fails: two dozen watches and a dozen pods try again after seconds, not sooner.
const FEW: u64 = 25;
/// The same while all writes meet a conflict: what changed is read and written again at once.
const AT_ONCE: u64 = 80;

fn each(requests: Requests, fault: Fault) -> Vec<Rule> {
    vec![Rule::new(requests, fault)]
}

#[tokio::test]
async fn slow_answers() {
    let shelter = Shelter::start("slow").await;
    for side in SIDES {
        let slow = each(Requests::all(), Fault::Slow(Duration::from_millis(700)));
        let asked = shelter.weather("slow", side, slow, SECONDS).await;
        assert_few(&asked, SECONDS, FEW);
    }
}

#[tokio::test]
async fn connections_that_break_in_the_middle_of_an_answer() {
    let shelter = Shelter::start("cut").await;
    for side in SIDES {
        let cut = vec![
            Rule::new(Requests::watches(), Fault::CutAfter(700)).every(3),
            Rule::new(Requests::reads(), Fault::CutAfter(100)).every(3),
            Rule::new(Requests::writes(), Fault::CutAfter(100)).every(4),
        ];
        let asked = shelter.weather("cut", side, cut, SECONDS).await;
        assert_few(&asked, SECONDS, FEW);
    }
}

#[tokio::test]
async fn answers_that_get_lost() {
    let shelter = Shelter::start("lost").await;
    for side in SIDES {
        let lost = vec![Rule::new(Requests::writes(), Fault::LoseAnswer).every(2)];
        let asked = shelter.weather("lost", side, lost, SECONDS).await;
        assert_few(&asked, SECONDS, FEW);
    }
}

#[tokio::test]
async fn conflicts() {
    let shelter = Shelter::start("conflicts").await;
    for side in SIDES {
        let conflict = each(Requests::writes(), Fault::Refuse(Refusal::Conflict));
        let asked = shelter.weather("conflicts", side, conflict, SECONDS).await;
        assert_few(&asked, SECONDS, AT_ONCE);
    }
}

#[tokio::test]
async fn versions_that_are_gone() {
    let shelter = Shelter::start("gone").await;
    for side in SIDES {
        let gone = vec![
            Rule::new(Requests::watches(), Fault::Refuse(Refusal::Gone)).every(2),
            Rule::new(Requests::watches(), Fault::ExpireWatch),
            Rule::new(Requests::reads().about("continue="), Fault::Refuse(Refusal::Gone)),
        ];
        let asked = shelter.weather("gone", side, gone, SECONDS).await;
        assert_few(&asked, SECONDS, FEW);
    }
}

#[tokio::test]
async fn a_server_that_is_too_busy() {
    let shelter = Shelter::start("busy").await;
    for side in SIDES {
        let busy = each(Requests::all(), Fault::Refuse(Refusal::TooManyRequests(2)));
        let asked = shelter.weather("busy", side, busy, SECONDS).await;
        assert_patient(&asked, Duration::from_secs(2));
        // Of what is made in the computing cluster, events, nothing is tried twice.
        if side == Side::Worker {
            assert_tried_again(&asked, Duration::from_secs(2));
        }
        assert_few(&asked, SECONDS, FEW);
    }
}

/// The same is asked again no sooner than the server said.
fn assert_patient(asked: &[Served], wait: Duration) {
    let mut last = HashMap::new();
    for request in asked.iter().filter(|request| request.is_write()) {
        let same = (&request.method, &request.path, &request.made);
        if let Some(before) = last.insert(same, request.at) {
            let pause = request.at.duration_since(before);
            assert!(pause >= wait, "{} {} {} after {pause:?}", request.method, request.path, request.made);
        }
    }
}

/// Writes are asked again within the time, and each copy that was to be made early in it.
fn assert_tried_again(asked: &[Served], wait: Duration) {
    let mut tries = HashMap::<_, (Instant, usize)>::new();
    let mut end = None;
    for request in asked.iter().filter(|request| request.is_write()) {
        let same = (&request.method, &request.path, &request.made);
        tries.entry(same).or_insert((request.at, 0)).1 += 1;
        end = end.max(Some(request.at));
    }
    let end = end.expect("something is written");
    let early: Vec<_> =
        tries.into_iter().filter(|(_, (first, _))| end.duration_since(*first) > 2 * wait).collect();
    assert!(early.iter().any(|(_, (_, count))| *count > 1), "nothing was written again: {early:#?}");
    // Events are not tried again.
    let made_once = early.iter().find(|((method, path, made), (_, count))| {
        **method == Method::POST && !made.is_empty() && !path.ends_with("/events") && *count == 1
    });
    assert!(made_once.is_none(), "asked once and not again: {made_once:#?}");
}

#[tokio::test]
async fn a_server_that_fails() {
    let shelter = Shelter::start("fails").await;
    for side in SIDES {
        // Long: pauses between attempts must not have grown so far that recovery takes minutes.
        let fails = each(Requests::all(), Fault::Refuse(Refusal::InternalError));
        let long = Duration::from_secs(40);
        let asked = shelter.weather("fails", side, fails, long).await;
        assert_few(&asked, long, FEW);
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_yet() {
    let shelter = Shelter::start("unavailable").await;
    for side in SIDES {
        let unavailable = each(Requests::all(), Fault::Refuse(Refusal::Unavailable));
        let while_it_starts = Duration::from_secs(20);
        let asked = shelter.weather("unavailable", side, unavailable, while_it_starts).await;
        assert_few(&asked, while_it_starts, FEW);
    }
}

/// A load balancer says 404 while it has no server: nothing is gone because of that, no vnode and no pod.
#[tokio::test]
async fn a_load_balancer_that_finds_no_server() {
    let shelter = Shelter::start("nowhere").await;
    for side in SIDES {
        let nowhere = each(Requests::all(), Fault::Refuse(Refusal::NoServer));
        let asked = shelter.weather("nowhere", side, nowhere, SECONDS).await;
        assert_few(&asked, SECONDS, FEW);
    }

    let stage = &shelter.stage;
    let (computing, worker) =
        (Objects::of(stage.binding.computing()).await, Objects::of(stage.binding.worker()).await);
    let before = stage.wait_vnodes().await.remove(0);
    let vnode = format!("/api/v1/nodes/{}", text(&before["metadata"]["name"]));
    let writes = Requests::writes().about(&vnode);
    shelter.proxy(Side::Computing).forget();
    shelter.proxy(Side::Computing).inject(Rule::new(writes, Fault::Refuse(Refusal::NoServer)));
    let node = text(&before["metadata"]["annotations"][annotation::PHYSICAL_NODE_NAME]);
    let foul = json!({"metadata": {"labels": {"weather": "foul"}}});
    worker.merge(&format!("/api/v1/nodes/{node}"), &foul).await;
    wait_until("a write to fail", RECOVERED, async || {
        shelter.proxy(Side::Computing).served().iter().any(|request| request.spoiled)
    })
    .await;
    shelter.proxy(Side::Computing).heal();
    let shown = |vnode: &Value| (vnode["metadata"]["labels"]["weather"] == "foul").then(|| vnode.clone());
    let after = computing.wait("the vnode to follow its node", &vnode, shown).await;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
}

/// The client library reads a token file anew once a minute: a kubelet renews it long before it ends.
const TOKEN_FILE_READ: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_token_that_expires_and_is_replaced() {
    let shelter = Shelter::start("expired").await;
    for side in SIDES {
        let within = if side == Side::Computing { TOKEN_FILE_READ + RECOVERED } else { RECOVERED };
        let begin = || {
            shelter.expire_token(side);
            shelter.proxy(side).break_connections();
        };
        let end = async || {
            pass(SECONDS).await;
            shelter.renew_token(side).await;
        };
        storm(&shelter.stage, &format!("expired-{side:?}").to_lowercase(), within, begin, end).await;
        assert!(shelter.proxy(side).served().iter().any(|request| request.spoiled), "no token was refused");
    }
}

/// In a burst a watch would wait behind all answers, and be ended by the server for it.
#[tokio::test]
async fn watches_have_a_connection_of_their_own() {
    let shelter = Shelter::start("apart").await;
    shelter.stage.scene("apart").await.run_pod("apart", json!({})).await;
    for side in SIDES {
        let served = shelter.proxy(side).served();
        let of = |watch: bool| -> BTreeSet<usize> {
            served.iter().filter(|request| request.watch == watch).map(|request| request.connection).collect()
        };
        let (watches, requests) = (of(true), of(false));
        assert_eq!(watches.len(), 1, "{side:?}: {watches:?}");
        // Leases have one as well.
        assert!(requests.len() <= 2 && requests.is_disjoint(&watches), "{side:?}: {requests:?} {watches:?}");
    }
}

/// Runs a pod that can be resized: API servers do that only where a kubelet says what containers have.
async fn run_resizable(scene: &Scene<'_>, name: &str) {
    let (_, ppod) = scene.run_pod(name, json!({})).await;
    let mut statuses = ppod["status"]["containerStatuses"].clone();
    statuses[0]["resources"] = ppod["spec"]["containers"][0]["resources"].clone();
    let has = json!({"status": {"containerStatuses": statuses}});
    scene.worker.merge(&format!("{}/status", scene.ppod(name)), &has).await;
    let shown = |pod: &Value| pod["status"]["containerStatuses"][0]["resources"].is_object().then_some(());
    scene.computing.wait("what the container has", &scene.vpod(name), shown).await;
}

async fn resize(scene: &Scene<'_>, name: &str) {
    let mut containers =
        scene.computing.get(&scene.vpod(name)).await.expect("the pod")["spec"]["containers"].clone();
    containers[0]["resources"]["requests"]["cpu"] = json!("20m");
    let more = json!({"spec": {"containers": containers}});
    scene.computing.merge(&format!("{}/resize", scene.vpod(name)), &more).await;
}

/// Waits until the copy has what [`resize`] asks for.
async fn wait_resized(scene: &Scene<'_>, name: &str) {
    let resized =
        |pod: &Value| (pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "20m").then_some(());
    scene.worker.wait("the change to go down", &scene.ppod(name), resized).await;
}

/// A 404 on the subresource is also what an API server of before 1.33 says, which resizes nothing.
#[tokio::test]
async fn a_copy_that_vanishes_while_it_is_resized_turns_nothing_off() {
    let shelter = Shelter::start("resize-gone").await;
    let scene = shelter.stage.scene("resize-gone").await;
    for name in ["vanishes", "stays"] {
        run_resizable(&scene, name).await;
    }
    // The Syncer reads the copy before it resizes it: it is there in the answer, and gone when that arrives.
    let reads = Requests::reads().about(&scene.ppod("vanishes"));
    shelter.proxy(Side::Worker).inject(Rule::new(reads, Fault::Slow(Duration::from_secs(2))));
    resize(&scene, "vanishes").await;
    let read = || shelter.proxy(Side::Worker).served().iter().any(|request| request.spoiled);
    wait_until("the copy to be read", RECOVERED, async || read()).await;
    pass(Duration::from_secs(1)).await;
    scene.worker.delete(&scene.ppod("vanishes"), Some(0)).await;
    let path = format!("{}/resize", scene.ppod("vanishes"));
    wait_until("a resize of what is gone", RECOVERED, async || {
        shelter.proxy(Side::Worker).served().iter().any(|request| request.path == path)
    })
    .await;
    let lost = |pod: &Value| (pod["status"]["phase"] == "Failed").then_some(());
    scene.computing.wait("the end of the pod", &scene.vpod("vanishes"), lost).await;
    shelter.proxy(Side::Worker).heal();

    resize(&scene, "stays").await;
    wait_resized(&scene, "stays").await;
    let path = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dresize-gone,reason%3DFeatureDisabled";
    assert_eq!(scene.computing.list(path).await, Vec::<Value>::new());
}

/// TD section 8: what comes up does not wait for what goes down.
#[tokio::test]
async fn a_change_that_fails_for_long_keeps_no_status_back() {
    let shelter = Shelter::start("resize-fails").await;
    let scene = shelter.stage.scene("resize-fails").await;
    run_resizable(&scene, "resized").await;
    let fails = Rule::new(Requests::writes().about("/resize"), Fault::Refuse(Refusal::InternalError));
    shelter.proxy(Side::Worker).inject(fails);
    resize(&scene, "resized").await;
    wait_until("the change to fail", RECOVERED, async || {
        shelter.proxy(Side::Worker).served().iter().any(|request| request.spoiled)
    })
    .await;
    let news = json!({"status": {"message": "the worker says so"}});
    scene.worker.merge(&format!("{}/status", scene.ppod("resized")), &news).await;
    let told = |pod: &Value| (pod["status"]["message"] == "the worker says so").then_some(());
    scene.computing.wait("the status to come up", &scene.vpod("resized"), told).await;
    shelter.proxy(Side::Worker).heal();
    wait_resized(&scene, "resized").await;
}
