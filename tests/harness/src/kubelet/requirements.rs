//! What a machine must have for a real node, and the one line that says what it lacks.
//!
//! Called once for each cluster that is to have real nodes. `KUBEOCEAN_REAL_NODE=required` turns "not here" into a
//! failure: a machine that is known to be able (CI) must not skip the tests unnoticed.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Why there is no real node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// This machine cannot run one; callers may fall back to kwok's nodes. One line for people.
    NotHere(String),
    /// It should have started, but did not: a defect, never a reason to fall back. Holds the ends of the logs.
    Failed(String),
}

impl WhyNot {
    /// "Not here", or a failure where real nodes are required.
    pub(super) fn not_here(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        match std::env::var("KUBEOCEAN_REAL_NODE") {
            Ok(value) if value == "required" => {
                Self::Failed(format!("KUBEOCEAN_REAL_NODE=required, but {reason}"))
            }
            _ => Self::NotHere(reason),
        }
    }
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHere(reason) => write!(f, "no real node here: {reason}"),
            Self::Failed(error) => write!(f, "the real node did not start: {error}"),
        }
    }
}

impl std::error::Error for WhyNot {}

impl From<anyhow::Error> for WhyNot {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

/// Programs of the machine that the node is made of.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) containerd: PathBuf,
    /// Statically linked: it is all that the images hold.
    pub(super) busybox: PathBuf,
    /// The folder with the CNI plugins.
    pub(super) cni: PathBuf,
}

const PACKAGES: &str = "apt-get install --no-install-recommends containerd runc containernetworking-plugins \
     busybox-static iptables conntrack socat iproute2";
/// Called by name, here or by containerd.
const CALLED: [&str; 10] = [
    "ip",
    "unshare",
    "nsenter",
    "setpriv",
    "mount",
    "flock",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
];
/// See `init.sh`.
const NODES_OWN: [&str; 3] = ["/var/lib", "/var/log", "/run"];
const CNI_FOLDERS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
const CNI_PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// Looks for everything that can be looked for; whether the kernel plays along is seen when the network is made.
pub(super) fn check() -> Result<Programs, WhyNot> {
    if !cfg!(target_os = "linux") {
        return Err(WhyNot::not_here("this is not Linux"));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(WhyNot::not_here("this user is not root"));
    }
    if let Some(folder) = hidden(&std::env::temp_dir()) {
        return Err(WhyNot::not_here(format!(
            "the temporary folder is below {folder}, which a node has of its own"
        )));
    }
    if let Some(missing) = CALLED.into_iter().find(|name| program(name).is_none()) {
        return Err(WhyNot::not_here(format!("{missing} is not installed ({PACKAGES})")));
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    if !has_cgroups(&mounts) {
        return Err(WhyNot::not_here(
            "cgroups are not mounted or read-only, as in a container without privileges",
        ));
    }
    let has_plugins = |folder: &Path| CNI_PLUGINS.iter().all(|plugin| folder.join(plugin).is_file());
    let Some(cni) = CNI_FOLDERS.map(PathBuf::from).into_iter().find(|folder| has_plugins(folder)) else {
        return Err(WhyNot::not_here(format!("the CNI plugins are not installed ({PACKAGES})")));
    };
    let Some(busybox) = program("busybox").filter(|path| is_static(path)) else {
        return Err(WhyNot::not_here(format!("no statically linked busybox is installed ({PACKAGES})")));
    };
    let containerd = program("containerd").ok_or_else(|| WhyNot::not_here("containerd has disappeared"))?;
    Ok(Programs { containerd, busybox, cni })
}

/// The folder that a node replaces by its own, if `path` is in one: it is not seen from inside.
pub(super) fn hidden(path: &Path) -> Option<&'static str> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    NODES_OWN.into_iter().find(|folder| path.starts_with(folder))
}

/// The folders where programs are: those of `PATH` and those that a user's `PATH` may lack.
pub(super) fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

fn program(name: &str) -> Option<PathBuf> {
    let path = search_path();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Whether all hierarchies of cgroups (`/proc/mounts`) can be written.
fn has_cgroups(mounts: &str) -> bool {
    let options = mounts.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        matches!(fields.get(2), Some(&"cgroup" | &"cgroup2")).then(|| fields.get(3).copied())?
    });
    let mut writable = options.map(|options| options.split(',').any(|option| option == "rw")).peekable();
    writable.peek().is_some() && writable.all(|writable| writable)
}

/// A dynamically linked program names its loader near its beginning.
fn is_static(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head));
    read.is_ok() && !head.windows(4).any(|bytes| bytes == b"/ld-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamically_linked_program_is_told_from_a_static_one() {
        let folder = std::env::temp_dir();
        for (name, content, expected) in [
            ("dynamic", b"\x7fELF../lib64/ld-linux.so.2".as_slice(), false),
            ("static", b"\x7fELF....", true),
        ] {
            let path = folder.join(format!("kubeocean-test-{name}-{}", std::process::id()));
            std::fs::write(&path, content).unwrap();
            assert_eq!(is_static(&path), expected, "{name}");
            std::fs::remove_file(&path).unwrap();
        }
        assert!(!is_static(Path::new("/no/such/file")));
    }

    #[test]
    fn a_folder_that_a_node_replaces_is_known() {
        assert_eq!(hidden(Path::new("/var/lib/jenkins/cache")), Some("/var/lib"));
        assert_eq!(hidden(Path::new("/var/library")), None);
    }

    #[test]
    fn cgroups_must_be_writable() {
        let mounts =
            "tmpfs /sys/fs/cgroup tmpfs ro,mode=755 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        assert!(has_cgroups(mounts));
        assert!(!has_cgroups(&mounts.replace("rw,", "ro,")));
        assert!(!has_cgroups("proc /proc proc rw 0 0\n"));
    }

    #[test]
    fn the_reason_is_one_line() {
        let text = WhyNot::NotHere("this user is not root".to_owned()).to_string();
        assert_eq!(text, "no real node here: this user is not root");
        assert!(!PACKAGES.contains('\n'));
    }
}
