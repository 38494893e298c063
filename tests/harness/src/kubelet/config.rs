//! kubelet inside a node's namespaces: its identity, configuration and command line.

use std::ffi::OsString;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::containerd::SOCKET;
use super::machine::Machine;
use super::requirements::search_path;
use crate::assets::{self, Binary};
use crate::cluster::Cluster;
use crate::nodes::NODE_SET;
use crate::process::{Process, ProcessSpec};

/// Inside.
const FOLDER: &str = "/var/lib/kubelet";
/// The usual port: the network namespace has only this kubelet.
const PORT: u16 = 10250;
/// Fewer than the addresses of its place on the network: those of pods that are just gone are not given away at once.
const MAX_PODS: u32 = 56;

/// Starts kubelet as the node `name` of `cluster`. It runs, but is not ready yet.
pub(super) fn start(cluster: &Cluster, name: &str, machine: &Machine) -> Result<Process> {
    let (directory, place) = (machine.directory(), &machine.place);
    let folder = directory.join("lib/kubelet");
    std::fs::create_dir_all(folder.join("pki")).context("making kubelet's folder")?;
    let write = |file: &str, content: &str| {
        std::fs::write(folder.join(file), content).with_context(|| format!("writing kubelet's {file}"))
    };
    // The group and the form of the name are what Node authorization goes by.
    write("kubeconfig", &cluster.user_kubeconfig(&format!("system:node:{name}"), "system:nodes")?)?;
    let serving = cluster.pki().kubelet_serving(name, place.address().into())?;
    write("pki/ca.crt", &cluster.pki().authority())?;
    write("pki/serving.crt", &serving.certificate)?;
    write("pki/serving.key", &serving.key)?;
    write("config.json", &config(place.address(), &place.name()).to_string())?;

    let (program, mut args) = machine.namespace.entrance();
    let kubelet = assets::find(Binary::Kubelet)?.context("kubelet has disappeared")?;
    args.push(kubelet.into_os_string());
    let flags = [
        format!("--config={FOLDER}/config.json"),
        format!("--kubeconfig={FOLDER}/kubeconfig"),
        format!("--root-dir={FOLDER}"),
        format!("--cert-dir={FOLDER}/pki"),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", place.address()),
        format!("--node-labels={NODE_SET}={name}"),
        "--v=2".to_owned(),
    ];
    args.extend(flags.map(OsString::from));
    Process::spawn(ProcessSpec {
        name: "kubelet".to_owned(),
        program,
        args,
        env: vec![("PATH".into(), OsString::from(search_path()))],
        log: directory.join("kubelet.log"),
    })
}

fn config(address: Ipv4Addr, cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "port": PORT,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": format!("{FOLDER}/pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": format!("{FOLDER}/pki/serving.crt"),
        "tlsPrivateKeyFile": format!("{FOLDER}/pki/serving.key"),
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        // The machine's own hierarchy, whichever it is, but a part of it that is this node's.
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [],
        "maxPods": MAX_PODS,
        "oomScoreAdj": 0,
        // The machine is shared: how full it is says nothing about the node, and images must not be collected.
        "failSwapOn": false,
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false,
        // Else it makes a folder of the machine.
        "volumePluginDir": format!("{FOLDER}/volume-plugins"),
        // The machine's may be a link into its /run, and names of the outside lead nowhere.
        "resolvConf": "",
    })
}
