//! containerd inside a node's namespaces: configuration, start, images.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::image::{self, PAUSE_IMAGE};
use super::machine::Machine;
use super::network::Place;
use super::requirements::search_path;
use super::run::run;
use crate::process::{Process, ProcessSpec};
use crate::wait::try_wait_until;

/// Inside, as below.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";
const CONFIG: &str = "/var/lib/containerd/config.toml";
const CNI: &str = "/var/lib/containerd/cni";
const IMAGES: &str = "/var/lib/containerd/images.tar";

const UP_DEADLINE: Duration = Duration::from_mins(1);

/// Starts containerd and waits for its socket.
pub(super) async fn start(machine: &Machine) -> Result<Process> {
    let (directory, place) = (machine.directory(), &machine.place);
    let programs = place.network().programs();
    let snapshotter = snapshotter(directory)?;
    let folder = directory.join("lib/containerd");
    std::fs::create_dir_all(folder.join("cni")).context("making containerd's folder")?;
    let write = |name: &str, content: &str| {
        std::fs::write(folder.join(name), content).with_context(|| format!("writing containerd's {name}"))
    };
    write("config.toml", &config(&snapshotter, &programs.cni))?;
    write("cni/10-node.conflist", &pod_network(place).to_string())?;
    image::write_archive(&programs.busybox, &folder.join("images.tar"))?;

    let (program, mut args) = machine.namespace.entrance();
    args.extend([programs.containerd.clone().into_os_string(), "--config".into(), CONFIG.into()]);
    let mut process = Process::spawn(ProcessSpec {
        name: "containerd".to_owned(),
        program,
        args,
        env: vec![("PATH".into(), OsString::from(search_path()))],
        log: directory.join("containerd.log"),
    })?;
    let socket = directory.join(SOCKET.trim_start_matches('/'));
    try_wait_until("containerd's socket", UP_DEADLINE, async || match process.exited() {
        Ok(None) if socket.exists() => Ok(Ok(())),
        Ok(None) => Err("no socket".to_owned()),
        ended => Ok(Err(anyhow!("containerd ended ({ended:?}): {}", process.log_tail(15)))),
    })
    .await??;
    Ok(process)
}

/// Loads the images into a running containerd. Blocking.
pub(super) fn import_images(machine: &Machine) -> Result<()> {
    let snapshotter = snapshotter(machine.directory())?;
    let import = ["--address", SOCKET, "--namespace", "k8s.io", "images", "import", "--snapshotter"];
    run(machine.namespace.command("ctr").args(import).arg(snapshotter).arg(IMAGES)).map(drop)
}

/// What the first process of the namespaces found to work.
fn snapshotter(directory: &Path) -> Result<String> {
    let name = std::fs::read_to_string(directory.join("snapshotter")).context("reading the snapshotter")?;
    Ok(name.trim().to_owned())
}

fn config(snapshotter: &str, cni: &Path) -> String {
    let cni = cni.display();
    // The disabled plugin makes a folder of the machine. The machine's limits may forbid lowering a score (no CAP_SYS_RESOURCE), and its kernel may have no huge pages.
    format!(
        r#"version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
disable_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{CNI}"
"#
    )
}

/// Pods are members of the node's bridge, with addresses of the node's share.
fn pod_network(place: &Place) -> Value {
    let (first, last) = place.pods();
    let range = json!({
        "subnet": place.subnet(), "rangeStart": first, "rangeEnd": last, "gateway": place.gateway(),
    });
    json!({
        "cniVersion": "0.4.0",
        "name": "node",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "hairpinMode": true,
                "ipam": {"type": "host-local", "ranges": [[range]], "routes": [{"dst": "0.0.0.0/0"}]},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}
