//! API servers, and ways to them, that fail while pods begin, change and end (see [`kubeocean_e2e::storm`]).
//!
//! Each test is one kind of trouble, first with the computing cluster's server, then with the worker's. Everything is whole
//! again within [`RECOVERED`], 15 s, after the trouble ended. What becomes of pods that wait for a node is in `scheduling`.

#[path = "faults/content.rs"]
mod content;
#[path = "faults/scheduling.rs"]
mod scheduling;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use http::Method;
use kubeocean_api::keys::{annotation, label};
use kubeocean_e2e::in_place::{report_resources, resize, set_image, wait_cpu};
use kubeocean_e2e::pods::{Objects, Scene, text};
use kubeocean_e2e::rights::features_off;
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
            Rule::new(Requests::reads(), Fault::CutAfter(100)),
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

/// Makes lists of ConfigMaps longer than a page in both clusters, and the Syncer watch both: that of the namespace in which
/// something is missing, and that of the copies. None of the many is anything to it.
async fn lengthen_lists(shelter: &Shelter) {
    const MORE_THAN_A_PAGE: usize = 501;
    let scene = shelter.stage.scene("gone-many").await;
    let [originals, copies] = [scene.namespace.as_str(), shelter.stage.binding.mount_namespace()]
        .map(|namespace| format!("/api/v1/namespaces/{namespace}/configmaps"));
    stream::iter(0..MORE_THAN_A_PAGE)
        .for_each_concurrent(32, async |number| {
            let name = format!("one-of-many-{number}");
            let managed = json!({label::MANAGED_BY: label::MANAGED_BY_VALUE});
            let copy = json!({"metadata": {"name": name, "labels": managed}});
            scene.computing.create(&originals, &json!({"metadata": {"name": name}})).await;
            scene.worker.create(&copies, &copy).await;
        })
        .await;
    let missing = json!({"volumes": [{"name": "v", "configMap": {"name": "missing"}}]});
    scene.create_pod(&scene.pod("waits", missing)).await;
    wait_until("what is missing to be watched", RECOVERED, async || {
        let served = shelter.proxy(Side::Computing).served();
        served.iter().any(|request| request.watch && request.path == originals)
    })
    .await;
}

#[tokio::test]
async fn versions_that_are_gone() {
    let shelter = Shelter::start("gone").await;
    lengthen_lists(&shelter).await;
    for side in SIDES {
        let gone = vec![
            // What is listed anew at once, and takes more than a page.
            Rule::new(Requests::watches().about("/configmaps?"), Fault::ExpireWatch),
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
        // In the computing cluster nothing is made but events, most of which are not tried twice.
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

/// Runs a pod that can be resized.
async fn run_resizable(scene: &Scene<'_>, name: &str) {
    scene.run_pod(name, json!({})).await;
    report_resources(scene, name).await;
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
    resize(&scene, "vanishes", "20m").await;
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

    resize(&scene, "stays", "20m").await;
    wait_cpu(&scene, "stays", "20m").await;
    assert_eq!(features_off(&scene.computing, "resize-gone").await, Vec::<Value>::new());
}

/// The same 404 about a copy that lives (TD-808).
#[tokio::test]
async fn a_worker_that_resizes_nothing_is_asked_once_and_the_rest_goes_on() {
    let shelter = Shelter::start("old-worker").await;
    let scene = shelter.stage.scene("old-worker").await;
    let unserved = Rule::new(Requests::writes().about("/resize"), Fault::Refuse(Refusal::NoServer));
    shelter.proxy(Side::Worker).inject(unserved);
    for name in ["first", "second"] {
        run_resizable(&scene, name).await;
        resize(&scene, name, "20m").await;
        assert!(scene.wait_event(name, "FeatureDisabled").await.contains("pods/resize"));
    }
    set_image(&scene, "first", "example.test/image:2").await;
    let copy = scene.worker.get(&scene.ppod("first")).await.expect("the copy");
    assert_eq!(copy["spec"]["containers"][0]["resources"]["requests"]["cpu"], "10m");
    let asked = shelter.proxy(Side::Worker).served();
    let asked: Vec<_> = asked.iter().filter(|request| request.path.ends_with("/resize")).collect();
    assert_eq!(asked.len(), 1, "{asked:#?}");
    let told = features_off(&scene.computing, "old-worker").await;
    assert_eq!(told.len(), 1, "{told:#?}");
}

/// TD section 8: what comes up does not wait for what goes down.
#[tokio::test]
async fn a_change_that_fails_for_long_keeps_no_status_back() {
    let shelter = Shelter::start("resize-fails").await;
    let scene = shelter.stage.scene("resize-fails").await;
    run_resizable(&scene, "resized").await;
    let fails = Rule::new(Requests::writes().about("/resize"), Fault::Refuse(Refusal::InternalError));
    shelter.proxy(Side::Worker).inject(fails);
    resize(&scene, "resized", "20m").await;
    wait_until("the change to fail", RECOVERED, async || {
        shelter.proxy(Side::Worker).served().iter().any(|request| request.spoiled)
    })
    .await;
    let news = json!({"status": {"message": "the worker says so"}});
    scene.worker.merge(&format!("{}/status", scene.ppod("resized")), &news).await;
    let told = |pod: &Value| (pod["status"]["message"] == "the worker says so").then_some(());
    scene.computing.wait("the status to come up", &scene.vpod("resized"), told).await;
    shelter.proxy(Side::Worker).heal();
    wait_cpu(&scene, "resized", "20m").await;
}
