//! What a node has on this machine, and that it is gone with the node.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kubeocean_harness::exec::Protocol;
use kubeocean_harness::{Cluster, RealNode, wait_until};
use serde_json::json;

use super::{DEADLINE, exec, run_pod, shared, text};

/// What a node or a network has on this machine, to be looked for when it is gone.
pub(crate) struct Traces {
    pub(crate) processes: Vec<u32>,
    names: Vec<String>,
    marks: BTreeSet<String>,
    pub(crate) directory: String,
}

impl Traces {
    fn of(node: &RealNode) -> Self {
        let directory = node.directory().display().to_string();
        Self::new(node.processes().expect("a /proc"), vec![node.system_name()], directory)
    }

    /// Of processes, of links and cgroups with these names, and of a directory.
    pub(crate) fn new(processes: Vec<u32>, names: Vec<String>, directory: String) -> Self {
        let marks = marks(&names);
        assert!(
            names.iter().all(|name| marks.iter().any(|mark| mark.contains(name))),
            "{names:?}: {marks:?}"
        );
        Self { processes, names, marks, directory }
    }

    /// What of it is still there. Another test process may have taken over a name meanwhile: that does not count.
    fn left(&self) -> Vec<String> {
        let now = marks(&self.names);
        let mut left: Vec<_> = self.marks.intersection(&now).cloned().collect();
        left.extend(self.processes.iter().filter(|id| runs(**id)).map(|id| format!("process {id}")));
        // Another test's panic makes it evidence.
        let kept = Path::new(&self.directory).parent().is_some_and(|parent| parent.join("keep").exists());
        if Path::new(&self.directory).exists() && !kept {
            left.push(self.directory.clone());
        }
        // Of every process: a mount may hide in a namespace that somebody keeps.
        for id in processes() {
            let mounts = std::fs::read_to_string(format!("/proc/{id}/mountinfo")).unwrap_or_default();
            let ours = mounts.lines().filter(|line| line.contains(&self.directory));
            left.extend(ours.map(|line| format!("mount of {id}: {line}")));
        }
        left
    }

    /// Links and cgroups that are still there.
    pub(crate) fn marks_left(&self) -> Vec<String> {
        self.marks.intersection(&marks(&self.names)).cloned().collect()
    }

    pub(crate) async fn wait_gone(&self) {
        wait_until("everything to be gone", Duration::from_secs(20), async || {
            let left = self.left();
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    }
}

pub(crate) fn processes() -> BTreeSet<u32> {
    let entries = std::fs::read_dir("/proc").expect("Linux");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether a process exists and is not merely waiting to be collected by init.
pub(crate) fn runs(id: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| !rest.trim_start().starts_with('Z')))
        .unwrap_or(false)
}

/// Links and cgroups of these names, each with the number that no second one gets.
fn marks(names: &[String]) -> BTreeSet<String> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).expect("a root of cgroups");
    let hierarchies: Vec<_> =
        hierarchies.filter_map(|entry| Some(entry.ok()?.path())).chain([root.to_owned()]).collect();
    let mut marks = BTreeSet::new();
    for name in names {
        if let Ok(index) = std::fs::read_to_string(Path::new("/sys/class/net").join(name).join("ifindex")) {
            marks.insert(format!("link {name}, {}", index.trim()));
        }
        for path in hierarchies.iter().map(|folder| folder.join(name)) {
            if let Ok(metadata) = path.metadata() {
                marks.insert(format!("cgroup {}, {}", path.display(), metadata.ino()));
            }
        }
    }
    marks
}

/// Waits until commands run in the pod of namespace `leaves`.
async fn serves(cluster: &Cluster) {
    wait_until("the node to serve again", DEADLINE, async || {
        let output = exec(cluster, Protocol::WebSocket, "leaves", &["echo", "again"], None).await;
        if output.stdout == b"again\n" { Ok(()) } else { Err(text(&output.stderr).to_owned()) }
    })
    .await;
}

#[tokio::test]
async fn a_second_node_survives_restarts_of_its_programs_and_leaves_nothing() {
    let Some((cluster, _)) = shared().await else { return };
    let mut node = cluster.start_real_node("real-1").await.unwrap();
    println!("second node in {:?}", node.start_time());
    let fields = json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    run_pod(cluster, "real-1", "leaves", "sleep 100000", fields).await;
    let sleeps = |node: &RealNode| {
        let line = |id: u32| std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        node.processes().unwrap().into_iter().find(|id| line(*id).contains("sleep\x00100000"))
    };
    let container = sleeps(&node).expect("the container is among the node's processes");
    for restart in [RealNode::containerd, RealNode::kubelet] {
        restart(&mut node).restart().unwrap();
        serves(cluster).await;
    }
    assert_eq!(sleeps(&node), Some(container), "the container survived");
    let traces = Traces::of(&node);
    assert!(traces.processes.len() > 4, "{:?}", traces.processes);
    let mounts = node.command("cat").unwrap().arg("/proc/self/mountinfo").output().unwrap();
    assert!(text(&mounts.stdout).contains("overlay") && text(&mounts.stdout).contains("tmpfs"));
    let there = traces.marks_left();
    assert!(
        ["link ", "cgroup "].iter().all(|kind| there.iter().any(|mark| mark.starts_with(kind))),
        "{there:?}"
    );
    let started = Instant::now();
    drop(node);
    println!("dropped in {:?}", started.elapsed());
    traces.wait_gone().await;
    let rebooted = cluster.start_real_node("real-1").await.unwrap();
    println!("rebooted in {:?}", rebooted.start_time());
    serves(cluster).await;
}

#[tokio::test]
async fn the_machine_keeps_its_settings() {
    let Some((_, node)) = shared().await else { return };
    let mut inside = node.command("cat").unwrap();
    let inside = inside.arg("/proc/sys/vm/overcommit_memory").output().unwrap();
    assert_eq!(text(&inside.stdout).trim(), "1", "what kubelet wants");
    let log = std::fs::read_to_string(node.directory().join("kubelet.log")).unwrap();
    assert!(!log.contains("Updating kernel flag"), "kubelet found everything set");
}
