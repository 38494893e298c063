//! The scheduler extender as a scheduler meets it: over HTTPS, one question after the other, each about 5,000 vnodes.
//!
//! The Manager's listener, the engine and the modules are the real ones; the Syncer's stores are a map of facts.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures::{FutureExt, future::BoxFuture};
use kube::{Client, Config};
use kubeocean_api::{
    name::vnode_name_prefix,
    place::{Answer, OnError, Question, Row},
};
use kubeocean_bench::Figure;
use kubeocean_engine::{Engine, EngineConfig, NodeFacts, PlaceNode, PlaceRequest, PolicyHost, Stage};
use kubeocean_hostile_policies::place_guest;
use kubeocean_manager::extender::{
    certificate::{CertificateFiles, server_config},
    places::{Places, Served, Syncers},
    serve::serve,
};
use kubeocean_syncer::placement::{desk::PlaceRow, facts_of_pod};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::host::{NODES, Placing, as_asked_next, bound, placing_host};
use crate::module::{at, nodes, now};

const CLUSTER: &str = "c1";
const PODS: usize = 200;
/// An entry that loops is in quarantine after three calls, so each of these begins with a fresh host, and has two pods.
const LOOPS: usize = 15;
/// What the scheduler's configuration says.
const TIMEOUT: Duration = Duration::from_secs(1);

/// One binding and its policies.
#[derive(Debug)]
struct OneSyncer {
    host: Arc<PolicyHost>,
    vnodes: Mutex<HashMap<String, PlaceNode>>,
}

impl Syncers for OneSyncer {
    fn served(&self) -> Option<Vec<Served>> {
        Some(vec![Served { binding: "b".to_owned(), cluster_id: CLUSTER.to_owned() }])
    }

    fn ask(
        &self,
        _: Served,
        question: Arc<Question>,
        deadline: Instant,
    ) -> BoxFuture<'static, Option<Answer>> {
        let host = Arc::clone(&self.host);
        let nodes = {
            let vnodes = self.vnodes.lock().unwrap_or_else(PoisonError::into_inner);
            question.nodes.iter().filter_map(|name| vnodes.get(name).cloned()).collect()
        };
        let asking = tokio::task::spawn_blocking(move || {
            let pod = Arc::new(facts_of_pod(&question.pod));
            let placements = host.place(now(), PlaceRequest { stage: Stage::Schedule, pod, nodes, deadline });
            let rows = question.nodes.iter().cloned().zip(placements);
            let rows = rows.map(|(node, placement)| Row::from(PlaceRow { node, placement })).collect();
            Answer { on_error: OnError::Deny, rows }
        });
        asking.map(Result::ok).boxed()
    }
}

fn pod(number: usize) -> Value {
    json!({
        "metadata": {"name": format!("batch-{number}"), "namespace": "team", "labels": {"app": "batch", "tier": "low"}},
        "spec": {
            "priority": 100,
            "containers": [{
                "name": "main", "image": "registry.example/batch:1", "command": ["run", "--all"],
                "env": (0..20).map(|n| json!({"name": format!("NAME_{n}"), "value": "some value"})).collect::<Vec<_>>(),
                "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
            }],
        },
    })
}

/// Sorted milliseconds of filter and prioritize about some pods.
async fn ask(host: PolicyHost, vnodes: &[(String, PlaceNode)], pods: usize) -> anyhow::Result<Vec<f64>> {
    let known = Mutex::new(vnodes.iter().cloned().collect());
    let syncers = Arc::new(OneSyncer { host: Arc::new(host), vnodes: known });
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let listener = tokio::net::TcpListener::bind(SocketAddr::new(here, 0)).await?;
    let address = listener.local_addr()?;
    let tls = Arc::new(server_config(&CertificateFiles::default(), here)?);
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(
        listener,
        tls,
        Arc::new(Places::new(Arc::clone(&syncers) as Arc<dyn Syncers>)),
        TIMEOUT,
        stop.clone(),
    ));

    let mut config = Config::new(format!("https://{address}").parse()?);
    config.accept_invalid_certs = true;
    let client = Client::try_from(config)?;
    let mut names: Vec<&String> = vnodes.iter().map(|(name, _)| name).collect();
    let mut times = Vec::new();
    for number in 0..pods {
        as_asked_next(&mut names, number, |name| {
            let mut vnodes = syncers.vnodes.lock().unwrap_or_else(PoisonError::into_inner);
            vnodes.get_mut(*name).into_iter().for_each(bound);
        });
        let question = serde_json::to_vec(&json!({"Pod": pod(number), "NodeNames": names}))?;
        for verb in ["filter", "prioritize"] {
            let request = http::Request::post(format!("/scheduler/{verb}"))
                .header("content-type", "application/json")
                .body(question.clone())?;
            let begun = Instant::now();
            let answer = client.request_text(request).await?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            let answer: Value = serde_json::from_str(&answer)?;
            let said = answer["NodeNames"].as_array().or(answer.as_array()).map_or(0, Vec::len);
            ensure!(pods < PODS || said == vnodes.len(), "an entry gave no answer");
        }
    }
    stop.cancel();
    serving.await.context("the extender")?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

pub(crate) fn figures(packing: &Placing) -> anyhow::Result<Vec<Figure>> {
    let engine = Engine::start(EngineConfig::default())?;
    let prefix = vnode_name_prefix(CLUSTER);
    let mut facts: Vec<NodeFacts> = nodes(NODES);
    for node in &mut facts {
        node.vnode_name = format!("{prefix}{}", node.node_name);
    }
    // At one candidate the fourth never ends.
    let last = facts.last_mut().context("no nodes")?;
    last.allocatable.insert("d.test/fit".to_owned(), 666);
    let vnodes: Vec<(String, PlaceNode)> = facts
        .into_iter()
        .map(|node| {
            (node.vnode_name.clone(), PlaceNode { facts: Arc::new(node), policy: Some(Arc::from("p")) })
        })
        .collect();
    let three = vec![packing.clone(); 3];
    let looping = (place_guest('d').with("POISONED", "(call $forever)").bytes(), json!({}));
    let runtime = tokio::runtime::Runtime::new()?;
    let quiet = runtime.block_on(ask(placing_host(&engine, &three)?, &vnodes, PODS))?;
    let four = [three, vec![looping]].concat();
    let mut disturbed = Vec::new();
    for _ in 0..LOOPS {
        disturbed.extend(runtime.block_on(ask(placing_host(&engine, &four)?, &vnodes, 2))?);
    }
    disturbed.sort_by(f64::total_cmp);
    // What the extender has of the scheduler's patience.
    let deadline = TIMEOUT.as_secs_f64() * 0.8 * 1e3;
    Ok(vec![
        Figure::new("extender, 5,000 vnodes, 3 entries, p50", at(&quiet, 50), "ms"),
        Figure::new("extender, 5,000 vnodes, 3 entries, p99", at(&quiet, 99), "ms").budget(20.0),
        Figure::new("the same with a fourth that loops, p50", at(&disturbed, 50), "ms"),
        Figure::new("the same with a fourth that loops, p99", at(&disturbed, 99), "ms").budget(deadline),
    ])
}
