//! What a decision costs (policy spec section 16): a fresh sandbox, a warm call, 256 rows, 5,000 rows in one call,
//! each beside the same policy as native Rust, and whole decisions through a host.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_engine::{
    BindingFacts, Engine, EngineConfig, Fit, Module, ModuleFetch, ModuleLimits, NodeFacts, PlaceNode,
    PlaceRequest, PodFacts, PolicyHost, PolicySpec, Stage, builtin,
};
use kubeocean_hostile_policies::{digest, place_guest};
use kubeocean_policy_twins::{Clock, CpuPercentageTwin, NodeLabelsTwin, TimeWindowsTwin};
use serde_json::{Value, json};

const UTC: TimeZone = TimeZone::UTC;

fn now() -> Timestamp {
    Timestamp::from_second(1_772_452_800).expect("a constant in range")
}

fn nodes(count: i64) -> Vec<NodeFacts> {
    (0..count)
        .map(|i| NodeFacts {
            node_name: format!("node-{i}"),
            labels: [
                ("pool".to_owned(), format!("pool-{}", i % 7)),
                ("zone".to_owned(), format!("z{}", i % 3)),
            ]
            .into(),
            allocatable: [("cpu".to_owned(), 64_000), ("memory".to_owned(), 256 << 30)].into(),
            used: [("cpu".to_owned(), 1000 + i), ("memory".to_owned(), (i + 1) << 20)].into(),
            ready: true,
            schedulable: true,
            ..NodeFacts::default()
        })
        .collect()
}

fn limits() -> Value {
    json!({"limits": [
        {"resource": "cpu", "percent": 50, "quantity": "40"}, {"resource": "memory", "percent": 80},
        {"resource": "cpu", "reserve": "2", "of": "allocatable"}
    ]})
}

fn windows() -> Value {
    json!({"windows": [
        {"start": "18:00", "end": "08:00", "days": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]},
        {"start": "00:00", "end": "23:59", "days": ["Saturday", "Sunday"]}
    ], "overnight": "sameDay", "endMinute": "inclusive"})
}

fn selector() -> Value {
    json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "pool", "operator": "In", "values": ["pool-1", "pool-2", "pool-3"]},
        {"key": "zone", "operator": "NotIn", "values": ["z2"]}
    ]}]})
}

/// The native twin of one built-in module, deciding one node.
type Twin = Box<dyn Fn(&NodeFacts) -> i64>;

fn twins() -> Vec<(&'static str, Value, Twin)> {
    let caps = CpuPercentageTwin::new(&limits());
    let time = TimeWindowsTwin::new(&windows());
    let labels = NodeLabelsTwin::new(&selector());
    vec![
        (
            "cpu-percentage",
            limits(),
            Box::new(move |node| {
                let available: BTreeMap<String, i64> =
                    node.allocatable.keys().map(|r| (r.clone(), node.available(r))).collect();
                caps.caps(&available, &node.allocatable).values().sum()
            }),
        ),
        (
            "time-windows",
            windows(),
            Box::new(move |_| i64::from(time.verdict(Clock { weekday: 1, minute_of_day: 720 }).offer)),
        ),
        (
            "node-labels",
            json!({ "nodeSelector": selector() }),
            Box::new(move |node| i64::from(labels.matches(&node.labels, &node.node_name))),
        ),
    ]
}

fn load(engine: &Engine, name: &str, settings: &Value) -> Module {
    let bytes: Arc<[u8]> = builtin(name).expect("built in").into();
    engine.load_module(&bytes, settings, ModuleLimits::default(), &[]).expect("built-in modules load")
}

fn modules(c: &mut Criterion) {
    let engine = Engine::start(EngineConfig::default()).expect("the engine starts");
    for (name, settings, twin) in twins() {
        let module = load(&engine, name, &settings);
        let mut group = c.benchmark_group(name);
        let one = nodes(1);
        group.bench_function("fresh unit, create, 1 row", |b| {
            b.iter(|| black_box(module.lease(now(), &UTC, &one).expect("answers")));
        });
        let mut open = module.open().expect("instantiates");
        for count in [1, 256, 5000] {
            let nodes = nodes(count);
            let rows = open.rows(now(), &UTC, &nodes);
            group.bench_function(BenchmarkId::new("warm call, rows", count), |b| {
                b.iter(|| black_box(open.count_offers(now(), &UTC, &rows).expect("answers")));
            });
            group.bench_function(BenchmarkId::new("warm call with projection, rows", count), |b| {
                b.iter(|| {
                    let rows = open.rows(now(), &UTC, &nodes);
                    black_box(open.count_offers(now(), &UTC, &rows).expect("answers"))
                });
            });
            group.bench_function(BenchmarkId::new("native twin, rows", count), |b| {
                b.iter(|| nodes.iter().map(|node| black_box(twin(node))).sum::<i64>());
            });
        }
        group.finish();
    }
}

fn host(c: &mut Criterion) {
    let engine = Engine::start(EngineConfig::default()).expect("the engine starts");
    let host = PolicyHost::new(&engine, BindingFacts::default(), UTC, Box::new(|| {}));
    let spec = json!({
        "nodeSelector": selector(), "timeWindows": windows()["windows"],
        "resourceLimits": [{"resource": "cpu", "percent": 50, "quantity": "40"}, {"resource": "memory", "percent": 80}]
    });
    let policy = |generation: i64, percent: i64| {
        let mut spec = spec.clone();
        spec["resourceLimits"][0]["percent"] = percent.into();
        PolicySpec {
            name: "p".to_owned(),
            uid: String::new(),
            created_unix: 0,
            generation,
            spec: serde_json::from_value(spec).expect("a valid spec"),
            modules: BTreeMap::new(),
        }
    };
    host.set_policies(vec![policy(1, 50)]);
    let nodes: Vec<Arc<NodeFacts>> = nodes(5000).into_iter().map(Arc::new).collect();
    let mut group = c.benchmark_group("host");
    group.sample_size(20);
    group.bench_function("5000 unchanged nodes", |b| b.iter(|| black_box(host.decide(now(), &nodes))));
    group.bench_function("1 unchanged node", |b| b.iter(|| black_box(host.decide(now(), &nodes[..1]))));
    let mut generation = 1;
    group.bench_function("policy edit, 5000 nodes again", |b| {
        b.iter(|| {
            generation += 1;
            host.set_policies(vec![policy(generation, generation % 100)]);
            black_box(host.decide(now(), &nodes))
        });
    });
    group.finish();
}

/// A place policy as an author would write it, at least in what it reads: three texts and three numbers of a node.
fn place(c: &mut Criterion) {
    let engine = Engine::start(EngineConfig::default()).expect("the engine starts");
    let bytes: Arc<[u8]> = place_guest('a').bytes();
    let host = PolicyHost::new(&engine, BindingFacts::default(), UTC, Box::new(|| {}));
    let pod = Arc::new(PodFacts::default());
    let candidates: Vec<PlaceNode> = nodes(5000)
        .into_iter()
        .map(|node| PlaceNode { facts: Arc::new(node), policy: Some(Arc::from("p")) })
        .collect();
    let mut group = c.benchmark_group("place5k");
    group.sample_size(20);
    for entries in [1, 3] {
        let names: Vec<String> = (0..entries).map(|i| format!("e{i}")).collect();
        let listed: Vec<Value> = names
            .iter()
            .map(|name| json!({"name": name, "module": {"configMap": {"name": "m"}, "digest": digest(&bytes)}}))
            .collect();
        let modules =
            names.iter().map(|name| (name.clone(), ModuleFetch::Ready(Arc::clone(&bytes).into()))).collect();
        host.set_policies(vec![PolicySpec {
            name: "p".to_owned(),
            uid: String::new(),
            created_unix: 0,
            generation: entries,
            spec: serde_json::from_value(json!({"cluster": "b", "policies": listed})).expect("a valid spec"),
            modules,
        }]);
        while !host.ready() {
            std::thread::yield_now();
        }
        let ask = || {
            let request = PlaceRequest {
                stage: Stage::Schedule,
                pod: Arc::clone(&pod),
                nodes: candidates.clone(),
                deadline: std::time::Instant::now() + std::time::Duration::from_secs(10),
            };
            host.place(now(), request)
        };
        assert!(ask().iter().all(|placement| placement.fit == Fit::Accept), "every entry answers");
        group.bench_function(BenchmarkId::new("entries", entries), |b| b.iter(|| black_box(ask())));
    }
    group.finish();
}

criterion_group!(benches, modules, host, place);
criterion_main!(benches);
