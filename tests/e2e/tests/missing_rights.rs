//! Rights that a role may lack (TD-107): what needs one is turned off and told of once, and everything else goes on.

use http::Method;
use kubeocean_api::keys::{DEFAULT_PRIORITY, DEFAULT_PRIORITY_CLASS};
use kubeocean_e2e::debug::{debug, debug_containers};
use kubeocean_e2e::in_place::set_image;
use kubeocean_e2e::pod_events::{said_of, say};
use kubeocean_e2e::pods::{DEADLINE, Scene, Stage, text};
use kubeocean_e2e::rights::{LimitedAccount, features_off, requests, take_from_role};
use kubeocean_harness::{AuditEvent, AuditMark, BindingSpec, Program, ProgramSpec, wait_until};
use serde_json::{Value, json};

/// Waits until the only thing the binding is told is that it does without `right`.
async fn wait_off(scene: &Scene<'_>, right: &str) {
    wait_until(&format!("word that {right} is missing"), DEADLINE, async || {
        match features_off(&scene.computing, scene.stage.binding.name()).await.as_slice() {
            [event] if text(&event["message"]).contains(right) => Ok(()),
            other => Err(json!(other).to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn without_the_right_to_debug_containers_everything_else_goes_on() {
    let stage = Stage::start(BindingSpec::new("no-debug"), 1).await;
    let scene = stage.scene("no-debug").await;
    take_from_role(&stage.binding, "pods/ephemeralcontainers").await;

    for name in ["patient", "another"] {
        scene.run_pod(name, json!({})).await;
        let tools = json!({"name": "tools", "image": "example.test/tools"});
        debug(&scene.computing, &scene.vpod(name), tools).await;
        assert!(scene.wait_event(name, "FeatureDisabled").await.contains("pods/ephemeralcontainers"));
        set_image(&scene, name, "example.test/image:2").await;
        let copy = scene.worker.get(&scene.ppod(name)).await.expect("the copy");
        assert_eq!(debug_containers(&copy), Vec::<Value>::new());
    }
    // Each pod is told, and nothing is asked again.
    let (_, worker) = requests(&stage.binding);
    let asked = worker.iter().filter(|event| event.object_ref.subresource == "ephemeralcontainers").count();
    assert_eq!(asked, 1);
    wait_off(&scene, "pods/ephemeralcontainers").await;
    let log = stage.syncer.log();
    assert!(!log.contains("does not settle"), "{log}");
}

/// TD-509.
#[tokio::test]
async fn without_the_right_to_make_the_default_priority_class_pods_run_once_somebody_made_it() {
    let binding = Stage::bind(BindingSpec::new("no-class"), 1).await;
    let limited = LimitedAccount::without(&binding, "priorityclasses").await;
    binding.write_kubeconfig(&limited.kubeconfig).await.expect("a Secret");
    let syncer = binding.syncer(&[]).await.expect("a Syncer");
    let stage = Stage::served_by(binding, 1, syncer).await;
    let scene = stage.scene("no-class").await;
    for name in ["first", "second"] {
        scene.create_pod(&scene.pod(name, json!({}))).await;
    }
    wait_off(&scene, "priorityclasses").await;

    // The Syncer of a test beside this one may have made it.
    let class = json!({"metadata": {"name": DEFAULT_PRIORITY_CLASS}, "value": DEFAULT_PRIORITY});
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    if let Err(refused) = scene.worker.attempt(Method::POST, classes, &class).await {
        assert_eq!(refused.reason, "AlreadyExists", "{refused:?}");
    }
    for name in ["first", "second"] {
        scene.wait_running(name).await;
    }
    wait_off(&scene, "priorityclasses").await;
}

/// TD-1707.
#[tokio::test]
async fn without_the_right_to_write_events_nothing_but_the_workers_words_is_missed() {
    let binding = Stage::bind(BindingSpec::new("no-events"), 1).await;
    let limited = LimitedAccount::in_computing(&binding).await;
    // Where events of what has no namespace are: whoever runs the binding is told there.
    limited.hide_but_in("events", "default").await;
    let spec = ProgramSpec::syncer(binding.name()).kubeconfig(&limited.kubeconfig);
    let syncer = Program::start(binding.computing(), spec).await.expect("a Syncer");
    let stage = Stage::served_by(binding, 1, syncer).await;
    let scene = stage.scene("no-events").await;
    for name in ["first", "second"] {
        let (_, ppod) = scene.run_pod(name, json!({})).await;
        say(&scene.worker, &said_of(&ppod, "Unhealthy", "Liveness probe failed")).await;
        wait_off(&scene, "create and patch of events here").await;
    }
    scene.barrier("third").await;
    let about_pods = |event: &AuditEvent| {
        let object = &event.object_ref;
        (object.resource.as_str(), object.namespace.as_str()) == ("events", "no-events")
            && event.user.username == limited.username
    };
    let asked = stage.binding.computing().audit_events_until(AuditMark::default(), 1, about_pods).await;
    let asked = asked.expect("an audit log");
    assert_eq!(asked.len(), 1, "{asked:#?}");
}
