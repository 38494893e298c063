//! The measurements, in the order in which one Syncer meets them: start, idle, policy change, pods of others, a restart,
//! single pods, the burst and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kubeocean_api::quantity::{Quantity, Rounding};
use kubeocean_bench::{Figure, RequestCount, Scale};
use kubeocean_harness::site::{SYNCER_ACCOUNT, SYSTEM_NAMESPACE};
use kubeocean_harness::{Binding, Program};
use serde_json::json;

use crate::goal::Goal;
use crate::pods;
use crate::running::{Running, quantile};
use crate::{NAME, NODE_CPU};

const SINGLE_PODS: usize = 21;
const BURST: &str = "bench-burst";
const SINGLE: &str = "bench-single";
const DIRECTLY: &str = "the same directly in the worker cluster";

/// The policy before and after the change, in percent.
const LEASED: (i64, i64) = (50, 25);

/// A second in which the Syncer uses less CPU than this is quiet.
const QUIET_SECONDS: f64 = 0.05;
const QUIET_DEADLINE: Duration = Duration::from_mins(1);
/// How long after its work the Syncer has given back what that needed for a moment.
const GIVEN_BACK: Duration = Duration::from_secs(11);

/// A started Syncer and what it was started for.
pub(crate) struct Run<'a> {
    pub(crate) binding: &'a Binding<'a>,
    pub(crate) scale: Scale,
    pub(crate) syncer: Program,
    vnodes_ready: Duration,
    start_cpu: f64,
}

impl<'a> Run<'a> {
    /// Starts the Syncer and waits for its vnodes.
    pub(crate) async fn start(binding: &'a Binding<'a>, scale: Scale) -> Result<Self> {
        let computing = binding.computing();
        for namespace in [BURST, SINGLE] {
            computing.create_namespace(namespace).await?;
        }
        lease(binding, LEASED.0).await?;
        let nodes: Api<Node> = Api::all(computing.client().await?);
        let leased = leased_millis(LEASED.0)?;
        eprintln!("starting the Syncer");
        let goal = Goal::start("vnodes Ready", nodes, scale.nodes, move |node| {
            is_ready(node) && cpu_millis(node) == Some(leased)
        });
        let flags = std::env::var("KUBEOCEAN_BENCH_SYNCER_FLAGS").unwrap_or_default();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let mut syncer = binding.syncer(&flags).await?;
        let started = Instant::now();
        let ready = match goal.reached().await {
            Ok(ready) => ready,
            Err(error) => {
                bail!("{error:#}\n--- the end of the Syncer's log:\n{}", syncer.process().log_tail(40))
            }
        };
        let start_cpu = syncer.process().cpu_seconds()?;
        let vnodes_ready = ready.saturating_duration_since(started);
        Ok(Self { binding, scale, syncer, vnodes_ready, start_cpu })
    }

    /// All figures.
    pub(crate) async fn measure(&mut self) -> Result<Vec<Figure>> {
        let Scale { nodes, foreign, pods, .. } = self.scale;
        let mut figures = vec![
            Figure::new(format!("{nodes} vnodes Ready from start"), self.vnodes_ready.as_secs_f64(), "s")
                .budget(3.0),
            Figure::new("CPU for it", self.start_cpu, "s"),
        ];
        self.quiet().await?;
        figures.extend(self.resident(format!("RSS with {nodes} vnodes"), None).await?);
        figures.extend(self.idle().await?);
        figures.extend(self.policy_change().await?);
        if foreign > 0 {
            figures.extend(self.foreign().await?);
        }
        figures.extend(self.restart().await?);
        if pods > 0 {
            figures.push(self.single_pods().await?);
            figures.extend(self.burst().await?);
        }
        Ok(figures)
    }

    /// The memory of the Syncer at rest, and how much of it is its own: the rest are pages of its file, of which the kernel
    /// maps as many at once as it read or wrote at once.
    pub(crate) async fn resident(&mut self, work: String, budget: Option<f64>) -> Result<[Figure; 2]> {
        self.quiet().await?;
        tokio::time::sleep(GIVEN_BACK).await;
        let process = self.syncer.process();
        let (all, own) = (process.rss_kib()?, process.anonymous_kib()?);
        let all = Figure::new(work, mebibytes(all)?, "MiB");
        let all = match budget {
            Some(budget) => all.budget(budget),
            None => all,
        };
        Ok([all, Figure::new("of it heap and stacks", mebibytes(own)?, "MiB")])
    }

    async fn policy_change(&mut self) -> Result<[Figure; 2]> {
        self.quiet().await?;
        let (before, after) = LEASED;
        eprintln!("changing the policy from {before} % to {after} %");
        let nodes: Api<Node> = Api::all(self.binding.computing().client().await?);
        let leased = leased_millis(after)?;
        let goal = Goal::start("vnodes changed", nodes, self.scale.nodes, move |node| {
            cpu_millis(node) == Some(leased)
        });
        let (cpu, started) = (self.cpu()?, Instant::now());
        lease(self.binding, after).await?;
        let took = goal.reached().await?.saturating_duration_since(started);
        let cpu = self.cpu()? - cpu;
        let work = format!("policy change reaches {} vnodes", self.scale.nodes);
        Ok([
            Figure::new(work, took.as_secs_f64(), "s").budget(1.5),
            Figure::new("CPU for it", cpu, "s").budget(1.5),
        ])
    }

    async fn single_pods(&mut self) -> Result<Figure> {
        self.quiet().await?;
        eprintln!("running {SINGLE_PODS} pods one after the other");
        let (pods, copies) = self.pods(SINGLE).await?;
        let times = pods::one_by_one(&pods, |done| done < SINGLE_PODS).await?;
        pods::delete_all(&pods, &copies).await?;
        Ok(Figure::new("scheduled -> Running, one pod, p50", quantile(&times, 0.5), "s").budget(0.05))
    }

    async fn burst(&mut self) -> Result<Vec<Figure>> {
        self.quiet().await?;
        let count = self.scale.pods;
        eprintln!("creating {count} pods");
        let (pods, copies) = self.pods(BURST).await?;
        let (computing, worker) = (self.binding.computing(), self.binding.worker());
        let marks = (computing.audit_mark()?, worker.audit_mark()?);
        let (other, _) = self.pods(SINGLE).await?;
        let cpu = self.cpu()?;
        let Burst { took, each, others } = Burst::run(&pods, count, &other).await?;
        let created = self.cpu()? - cpu;
        let peak = self.syncer.process().peak_rss_kib()?;
        let [resident, own] = self.resident(format!("RSS with {count} pods Running"), Some(35.0)).await?;

        // A pod goes after its copy, and copies of both namespaces share one.
        pods::delete_all(&other, &other).await?;
        let running = self.cpu()?;
        eprintln!("deleting {count} pods");
        let deleting = Instant::now();
        pods::delete_all(&pods, &copies).await?;
        let deleted = deleting.elapsed();
        let gone = self.cpu()?;
        let mut requests = RequestCount::default();
        let events = computing.audit_events_since(marks.0)?;
        requests.add("computing", &Self::computing_account(), &events);
        let events = worker.audit_events_since(marks.1)?;
        requests.add("worker", &self.worker_account(), &events);
        for (line, number) in requests.lines() {
            eprintln!("  {number:>8} {line}");
        }

        let directly = self.directly().await?;

        let all = count + u32::try_from(others.len())?;
        let a_pod = |amount: f64| amount / f64::from(all);
        let through = took.as_secs_f64();
        let direct = directly.took.as_secs_f64();
        let mut figures = vec![
            Figure::new(format!("{count} pods Running from creation"), through, "s"),
            Figure::new(DIRECTLY, direct, "s"),
            Figure::new("so many times as long on vnodes", through / direct, "").budget(3.0),
        ];
        let what = "scheduled -> Running, one pod of another namespace during it";
        let [p50, p99] = latencies(what, &others);
        figures.extend([p50.budget(0.1), p99.budget(0.5)]);
        figures.extend(latencies(DIRECTLY, &directly.others));
        figures.extend(latencies("scheduled -> Running of the burst's own pods", &each));
        figures.extend(latencies(DIRECTLY, &directly.each));
        figures.extend([
            Figure::new("CPU a pod until Running", a_pod(created * 1000.0), "ms").budget(2.5),
            resident,
            own,
            Figure::new("RSS at its peak until then", mebibytes(peak)?, "MiB"),
            Figure::new(format!("{count} pods gone from deletion"), deleted.as_secs_f64(), "s"),
            Figure::new("CPU a pod for its deletion", (gone - running) * 1000.0 / f64::from(count), "ms")
                .budget(1.5),
            Figure::new("API requests a pod, create to delete", a_pod(f64::from(requests.total())), "")
                .budget(6.0),
        ]);
        Ok(figures)
    }

    /// The same burst without us, on the worker's own nodes: what this machine and its clusters need for it.
    async fn directly(&mut self) -> Result<Burst> {
        self.quiet().await?;
        let count = self.scale.pods;
        eprintln!("creating {count} pods directly in the worker cluster");
        let worker = self.binding.worker();
        for namespace in [BURST, SINGLE] {
            worker.create_namespace(namespace).await?;
        }
        let client = worker.client().await?;
        let pods = Api::namespaced(client.clone(), BURST);
        let other = Api::namespaced(client, SINGLE);
        let burst = Burst::run(&pods, count, &other).await?;
        pods::delete_all(&other, &other).await?;
        pods::delete_all(&pods, &pods).await?;
        Ok(burst)
    }

    /// The user's pods and their copies.
    async fn pods(&self, namespace: &str) -> Result<(Api<Pod>, Api<Pod>)> {
        let (computing, worker) = (self.binding.computing(), self.binding.worker());
        let pods = Api::namespaced(computing.client().await?, namespace);
        let copies = Api::namespaced(worker.client().await?, self.binding.mount_namespace());
        Ok((pods, copies))
    }

    pub(crate) fn cpu(&mut self) -> Result<f64> {
        self.syncer.process().cpu_seconds()
    }

    /// Waits for a second in which the Syncer has next to nothing to do, so that one measurement does not pay for the
    /// one before. If there is none, the figures show it.
    pub(crate) async fn quiet(&mut self) -> Result<()> {
        let started = Instant::now();
        let mut cpu = self.cpu()?;
        while started.elapsed() < QUIET_DEADLINE {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = self.cpu()?;
            if now - cpu < QUIET_SECONDS {
                return Ok(());
            }
            cpu = now;
        }
        eprintln!("  the Syncer is still busy after {QUIET_DEADLINE:?}");
        Ok(())
    }

    pub(crate) fn syncer_log_tail(&mut self) -> String {
        self.syncer.process().log_tail(40)
    }

    /// Ends the Syncer as Kubernetes does.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let status = self.syncer.stop().await?;
        if status.success() { Ok(()) } else { bail!("the Syncer ended with {status}") }
    }
}

/// Many pods at once, and meanwhile pods of somebody else, one after the other.
struct Burst {
    /// From the first creation until all pods ran.
    took: Duration,
    /// From the scheduler's choice to Running, of each; sorted.
    each: Vec<Duration>,
    /// The same of the pods of somebody else.
    others: Vec<Duration>,
}

impl Burst {
    async fn run(pods: &Api<Pod>, count: u32, other: &Api<Pod>) -> Result<Self> {
        let running = Running::start(pods.clone(), count);
        let over = Arc::new(AtomicBool::new(false));
        let others = tokio::spawn({
            let (other, over) = (other.clone(), Arc::clone(&over));
            async move { pods::one_by_one(&other, |_| !over.load(Ordering::Relaxed)).await }
        });
        let started = Instant::now();
        pods::create_many(pods, count).await?;
        let times = running.reached().await?;
        over.store(true, Ordering::Relaxed);
        let others = others.await.context("running pods of another namespace")??;
        Ok(Self { took: times.all.saturating_duration_since(started), each: times.each, others })
    }
}

/// The names of the Syncer's accounts in both clusters.
impl Run<'_> {
    pub(crate) fn computing_account() -> String {
        account(SYSTEM_NAMESPACE)
    }

    pub(crate) fn worker_account(&self) -> String {
        account(self.binding.mount_namespace())
    }
}

/// Half of these times are not above the first, one in a hundred is above the second.
fn latencies(what: &str, sorted: &[Duration]) -> [Figure; 2] {
    [("p50", 0.5), ("p99", 0.99)]
        .map(|(name, part)| Figure::new(format!("{what}, {name}"), quantile(sorted, part), "s"))
}

async fn lease(binding: &Binding<'_>, percent: i64) -> Result<()> {
    let limits = ["cpu", "memory"].map(|resource| json!({"resource": resource, "percent": percent}));
    binding.policy(NAME, json!({"resourceLimits": limits})).await
}

/// What the policy leaves of a node that nobody else uses.
fn leased_millis(percent: i64) -> Result<i64> {
    let node: Quantity = NODE_CPU.parse()?;
    Ok(node.millis(Rounding::Down) * percent / 100)
}

fn cpu_millis(node: &Node) -> Option<i64> {
    let cpu = node.status.as_ref()?.allocatable.as_ref()?.get("cpu")?;
    Some(cpu.0.parse::<Quantity>().ok()?.millis(Rounding::Down))
}

pub(crate) fn is_ready(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn account(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:{SYNCER_ACCOUNT}")
}

fn mebibytes(kibibytes: u64) -> Result<f64> {
    Ok(f64::from(u32::try_from(kibibytes).context("memory out of range")?) / 1024.0)
}
