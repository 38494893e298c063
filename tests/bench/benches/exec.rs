//! What `kubectl exec` of much output costs on its way through a vnode: `cargo bench -p kubeocean-bench --bench exec`.
//!
//! One container on a real kubelet writes 1 GiB to kubectl, in the same run straight through the worker's API server and
//! through the computing cluster's, the Proxier and then the worker's. On one machine all of them share its cores, so that
//! the way with one API server more can at best be about half as fast; what the Proxier itself takes is in its own line.
//! Progress goes to standard error, the table to standard output. Needs a machine that can run a kubelet, as root.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kubeocean_api::keys::taint;
use kubeocean_api::name::phys_name;
use kubeocean_bench::{Figure, table};
use kubeocean_harness::exec::{PROTOCOLS, Protocol, Target};
use kubeocean_harness::kubelet::BUSYBOX_IMAGE;
use kubeocean_harness::wait::try_wait_until;
use kubeocean_harness::{BindingSpec, Cluster, ClusterSpec, Fleet, Site};
use serde_json::json;
use tokio::io::AsyncReadExt;

const NODE: &str = "real-0";
const NAMESPACE: &str = "bench";
const MEBIBYTES: u32 = 1024;
const DEADLINE: Duration = Duration::from_mins(2);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let selected = filters.is_empty() || filters.iter().any(|filter| "exec".contains(filter.as_str()));
    if !selected || !arguments.iter().any(|argument| argument == "--bench") {
        eprintln!("the exec bench was not asked for: cargo bench -p kubeocean-bench --bench exec");
        return Ok(());
    }
    eprintln!("starting a computing cluster and a worker cluster with a real kubelet");
    let fleet =
        Fleet::start_with(ClusterSpec::computing(), vec![ClusterSpec::worker("real").real_nodes()]).await?;
    let _node = fleet.worker().start_real_node(NODE).await?;
    let site = Site::install(&fleet).await?;
    let binding = site.bind(BindingSpec::new(NODE)).await?;
    binding.policy(NODE, json!({"resourceLimits": [{"resource": "cpu", "percent": 100}]})).await?;
    let mut manager = site.manager(&[]).await?;
    manager.try_wait_ready(DEADLINE).await?;
    run_pod(&fleet.computing).await?;

    let copy = phys_name("p", NAMESPACE);
    let direct = Target { namespace: binding.mount_namespace(), pod: &copy };
    let mut figures = Vec::new();
    for protocol in PROTOCOLS {
        let straight = transfer(fleet.worker(), protocol, direct).await?;
        let resident = manager.process().rss_kib()?;
        let cpu = manager.process().cpu_seconds()?;
        let through = transfer(&fleet.computing, protocol, Target { namespace: NAMESPACE, pod: "p" }).await?;
        let cpu = manager.process().cpu_seconds()? - cpu;
        let grown = manager.process().rss_kib()?.saturating_sub(resident);
        let named = |what: &str| format!("{protocol:?}: {what}");
        let rate = |took: Duration| f64::from(MEBIBYTES) / took.as_secs_f64();
        figures.extend([
            Figure::new(named("1 GiB straight from the worker"), rate(straight), "MiB/s"),
            Figure::new(named("1 GiB through a vnode"), rate(through), "MiB/s"),
            Figure::new(named("CPU of the process for it"), cpu, "s"),
            Figure::new(named("its memory grew by"), f64::from(u32::try_from(grown)?) / 1024.0, "MiB"),
        ]);
    }
    println!("{}", table(&figures));
    let status = manager.stop().await?;
    if status.success() { Ok(()) } else { bail!("the Manager ended with {status}") }
}

async fn run_pod(computing: &Cluster) -> Result<()> {
    computing.create_namespace(NAMESPACE).await?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": NAMESPACE},
        "spec": {
            "automountServiceAccountToken": false,
            "tolerations": [{"key": taint::VNODE, "operator": "Exists"}],
            "containers": [{
                "name": "c", "image": BUSYBOX_IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "3600"],
            }],
        },
    });
    try_wait_until("the pod to be admitted", DEADLINE, async || {
        computing.apply_objects(vec![pod.clone()]).await.map_err(|error| format!("{error:#}"))
    })
    .await?;
    try_wait_until("a command in the pod to run", DEADLINE, async || {
        let exec = ["exec", "p", "-n", NAMESPACE, "--", "true"];
        computing.kubectl_text(&exec).await.map_err(|error| format!("{error:#}"))
    })
    .await?;
    Ok(())
}

/// How long kubectl takes from its start to the last byte of 1 GiB.
async fn transfer(cluster: &Cluster, protocol: Protocol, target: Target<'_>) -> Result<Duration> {
    eprintln!("1 GiB with {protocol:?} from the cluster {}", cluster.name());
    let bytes = u64::from(MEBIBYTES) << 20;
    let script = format!("head -c {bytes} /dev/zero | cat");
    let mut kubectl = cluster.exec_command(protocol, target, &["sh", "-c", &script], false)?;
    let started = Instant::now();
    let mut child = kubectl.spawn().context("starting kubectl")?;
    let mut stdout = child.stdout.take().ok_or_else(|| anyhow!("kubectl has no standard output"))?;
    let (mut received, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let read = stdout.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        received += u64::try_from(read)?;
    }
    let took = started.elapsed();
    let status = child.wait().await?;
    ensure!(status.success() && received == bytes, "{received} of {bytes} bytes, {status}");
    Ok(took)
}
