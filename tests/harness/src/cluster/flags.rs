//! The command lines and configuration files of the control plane.
//!
//! Tuned for many short tests on few cores: no fsync, no priority queues, no leader election, generous client rates, no
//! listeners that nobody asks. What Kubernetes *does* is left at its defaults: admission, authorization, controllers.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{ClusterSpec, Component, Kwoks, Ports};
use crate::assets;

pub(super) const ADMIN_KUBECONFIG: &str = "admin.kubeconfig";
pub(super) const AUDIT_LOG: &str = "audit.log";
pub(super) const POD_LOG: &str = "pod.log";
const AUDIT_POLICY: &str = "audit-policy.yaml";
const SCHEDULER_CONFIG: &str = "scheduler.json";
const KWOK_CONFIG: &str = "kwok.yaml";

/// The annotation by which kwok knows its nodes; others, vnodes and real ones, it leaves alone.
pub(crate) const KWOK_NODE: &str = "kwok.x-k8s.io/node";
/// Its value on the nodes of [`Component::Kwok`].
pub(crate) const KWOK: &str = "fake";
/// Its value on the nodes of [`Component::KwokApart`].
pub(crate) const KWOK_APART: &str = "apart";

/// Arguments of `component`, whose files are in `directory`.
pub(super) fn args(
    component: Component,
    spec: &ClusterSpec,
    directory: &Path,
    ports: Ports,
) -> Vec<OsString> {
    let file = |name: &str| directory.join(name).display().to_string();
    let args = match component {
        Component::Etcd => etcd(&file("etcd"), ports),
        Component::ApiServer => apiserver(spec, &file, ports),
        Component::ControllerManager => controller_manager(spec, &file),
        Component::Scheduler => {
            vec![format!("--config={}", file(SCHEDULER_CONFIG)), "--secure-port=0".to_owned()]
        }
        Component::Kwok => kwok(&file, KWOK, ports.kwok),
        Component::KwokApart => kwok(&file, KWOK_APART, ports.kwok_apart),
    };
    args.into_iter().map(OsString::from).collect()
}

fn etcd(data: &str, ports: Ports) -> Vec<String> {
    let client = format!("http://127.0.0.1:{}", ports.etcd);
    vec![
        format!("--data-dir={data}"),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        // One member has no peers: any port will do, and nobody has to know it.
        "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
        "--unsafe-no-fsync".to_owned(),
        "--quota-backend-bytes=4294967296".to_owned(),
        "--auto-compaction-mode=periodic".to_owned(),
        "--auto-compaction-retention=5m".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

fn apiserver(spec: &ClusterSpec, file: &dyn Fn(&str) -> String, ports: Ports) -> Vec<String> {
    let mut args = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
        format!("--bind-address={}", ports.apiserver.ip()),
        // Loopback is no valid endpoint of the Service `kubernetes`, so nobody writes one.
        format!("--advertise-address={}", ports.apiserver.ip()),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--secure-port={}", ports.apiserver.port()),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--cert-dir={}", file("certs")),
        format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-signing-key-file={}", file("tokens.key")),
        format!("--service-account-key-file={}", file("tokens.pub")),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--enable-priority-and-fairness=false".to_owned(),
        "--max-requests-inflight=8000".to_owned(),
        "--max-mutating-requests-inflight=4000".to_owned(),
        "--profiling=false".to_owned(),
        "--v=1".to_owned(),
    ];
    if spec.audit {
        args.extend([
            format!("--audit-policy-file={}", file(AUDIT_POLICY)),
            format!("--audit-log-path={}", file(AUDIT_LOG)),
            // In MiB. Rotation would take lines away from a test that counts them.
            "--audit-log-maxsize=100000".to_owned(),
        ]);
    }
    args.extend(spec.apiserver_flags.iter().cloned());
    args
}

fn controller_manager(spec: &ClusterSpec, file: &dyn Fn(&str) -> String) -> Vec<String> {
    let mut args = vec![
        format!("--kubeconfig={}", file(ADMIN_KUBECONFIG)),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        // No pod network, no cloud; everything else as in a real cluster.
        "--controllers=*,-node-ipam-controller,-node-route-controller,-cloud-node-lifecycle-controller,\
         -service-lb-controller"
            .to_owned(),
        "--allocate-node-cidrs=false".to_owned(),
        format!("--service-account-private-key-file={}", file("tokens.key")),
        format!("--root-ca-file={}", file("ca.crt")),
        format!("--cluster-signing-cert-file={}", file("ca.crt")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        format!("--node-monitor-grace-period={}s", spec.node_monitor_grace.as_secs()),
        // Whoever binds a claim while its volume is being marked loses, and tries again in the next round only.
        "--pvclaimbinder-sync-period=1s".to_owned(),
        "--kube-api-qps=1000".to_owned(),
        "--kube-api-burst=2000".to_owned(),
        "--v=1".to_owned(),
    ];
    args.extend(spec.controller_manager_flags.iter().cloned());
    args
}

fn kwok(file: &dyn Fn(&str) -> String, nodes: &str, port: u16) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", file(ADMIN_KUBECONFIG)),
        format!("--config={}", file(KWOK_CONFIG)),
        "--manage-all-nodes=false".to_owned(),
        format!("--manage-nodes-with-annotation-selector={KWOK_NODE}={nodes}"),
        format!("--server-address=127.0.0.1:{port}"),
        "--node-ip=127.0.0.1".to_owned(),
        format!("--node-port={port}"),
        "--cidr=10.244.0.1/16".to_owned(),
    ]
}

const JOB_COPIES_COMPLETE: &str = include_str!("job_copies_complete.yaml");

/// Writes the configuration files that do not depend on ports or keys.
pub(super) fn write_files(spec: &ClusterSpec, directory: &Path) -> Result<()> {
    let write = |name: &str, content: &str| {
        std::fs::write(directory.join(name), content).with_context(|| format!("writing {name}"))
    };
    write(AUDIT_POLICY, &audit_policy().to_string())?;
    write_scheduler_config(directory, &spec.scheduler_extenders)?;
    if spec.kwok != Kwoks::None {
        write(POD_LOG, "2026-01-02T03:04:05.000000000Z stdout F hello from a fake container\n")?;
        let log = directory.join(POD_LOG).display().to_string();
        let mut config = assets::kwok_stages()?;
        config.push_str(JOB_COPIES_COMPLETE);
        config.push_str("\n---\n");
        for document in kubelet_api(&log, &spec.port_forward) {
            config.push_str(&document.to_string());
            config.push_str("\n---\n");
        }
        write(KWOK_CONFIG, &config)?;
    }
    Ok(())
}

pub(super) fn write_scheduler_config(directory: &Path, extenders: &[Value]) -> Result<()> {
    let config = json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": false},
        "clientConnection": {
            "kubeconfig": directory.join(ADMIN_KUBECONFIG).display().to_string(), "qps": 1000, "burst": 2000,
        },
        // A pod that did not fit is tried again soon: tests change nodes and wait for the effect.
        "podInitialBackoffSeconds": 1,
        "podMaxBackoffSeconds": 2,
        "extenders": extenders,
    });
    std::fs::write(directory.join(SCHEDULER_CONFIG), config.to_string())
        .context("writing the scheduler's configuration")
}

fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    })
}

/// What kwok's kubelet API answers: logs from a file, commands on this machine, attach to the same file, a program on every
/// port.
fn kubelet_api(log: &str, port_forward: &[String]) -> [Value; 4] {
    let document = |kind: &str, spec: Value| {
        json!({
            "apiVersion": "kwok.x-k8s.io/v1alpha1",
            "kind": kind,
            "metadata": {"name": "all"},
            "spec": spec,
        })
    };
    [
        document("ClusterLogs", json!({"logs": [{"logsFile": log, "follow": true}]})),
        document("ClusterExec", json!({"execs": [{"local": {}}]})),
        document("ClusterAttach", json!({"attaches": [{"logsFile": log}]})),
        document("ClusterPortForward", json!({"forwards": [{"command": port_forward}]})),
    ]
}
