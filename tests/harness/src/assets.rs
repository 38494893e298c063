//! The programs of a control plane: found where the user keeps them, else built once from pinned modules.
//!
//! In: `KUBEBUILDER_ASSETS` (a folder), `KWOK_BIN` (a file), the pins in `tests/control-plane/`. Out: paths of
//! executables. Called by [`crate::Cluster::start`] and by `cargo xtask assets`.
//!
//! Order for each program: the user's own, then the cache, then `go build` into the cache. The cache folder is named
//! by a hash of everything that decides the result (pins, flags, platform), so a changed pin never meets an old binary,
//! and a finished binary appears by rename, so a half-written one is never run.

mod build;
mod stages;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};

pub use stages::kwok_stages;

/// A program the harness runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Binary {
    Etcd,
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubectl,
    /// Only node-level tests need it, see `Binary::CONTROL_PLANE`.
    Kubelet,
    Kwok,
    Helm,
}

impl Binary {
    /// Everything that can be built.
    pub const ALL: [Self; 8] = [
        Self::Etcd,
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubectl,
        Self::Kwok,
        Self::Helm,
        Self::Kubelet,
    ];

    /// What [`crate::Cluster::start`] needs.
    pub const CONTROL_PLANE: [Self; 6] = [
        Self::Etcd,
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubectl,
        Self::Kwok,
    ];

    /// The name of the executable file, as upstream releases name it.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubectl => "kubectl",
            Self::Kubelet => "kubelet",
            Self::Kwok => "kwok",
            Self::Helm => "helm",
        }
    }

    const fn pin(self) -> Pin {
        match self {
            Self::Etcd => Pin::Etcd,
            Self::Kwok => Pin::Kwok,
            Self::Helm => Pin::Helm,
            _ => Pin::Kubernetes,
        }
    }

    /// The Go package that is the program.
    fn package(self) -> String {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3".to_owned(),
            Self::Kwok => "sigs.k8s.io/kwok/cmd/kwok".to_owned(),
            Self::Helm => "helm.sh/helm/v3/cmd/helm".to_owned(),
            _ => format!("k8s.io/kubernetes/cmd/{}", self.file_name()),
        }
    }
}

/// A folder of `tests/control-plane/`: one Go module that pins one upstream project and all it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pin {
    Etcd,
    Kubernetes,
    Kwok,
    Helm,
}

impl Pin {
    const fn folder(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Kubernetes => "kubernetes",
            Self::Kwok => "kwok",
            Self::Helm => "helm",
        }
    }

    const fn module(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::Kubernetes => "k8s.io/kubernetes",
            Self::Kwok => "sigs.k8s.io/kwok",
            Self::Helm => "helm.sh/helm/v3",
        }
    }

    fn source(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane").join(self.folder())
    }

    fn read(self, file: &str) -> Result<String> {
        let path = self.source().join(file);
        std::fs::read_to_string(&path).with_context(|| format!("reading the pin {}", path.display()))
    }

    /// The pinned version, with its leading `v`.
    fn version(self) -> Result<String> {
        pinned_version(&self.read("go.mod")?, self.module())
            .ok_or_else(|| anyhow!("{}/go.mod does not require {}", self.source().display(), self.module()))
    }

    /// Linker flags. Without the version variables the programs call themselves `v0.0.0-master`, which kubectl and
    /// anything else that compares versions would take for an ancient server.
    fn ldflags(self) -> Result<String> {
        let mut flags = vec!["-s -w".to_owned()];
        if self == Self::Kubernetes {
            let version = self.version()?;
            let mut parts = version.trim_start_matches('v').split('.');
            let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
            for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
                for (variable, value) in [
                    ("gitVersion", version.as_str()),
                    ("gitMajor", major),
                    ("gitMinor", minor),
                    ("gitTreeState", "clean"),
                ] {
                    flags.push(format!("-X {package}.{variable}={value}"));
                }
            }
        }
        if self == Self::Helm {
            flags.push(format!("-X helm.sh/helm/v3/internal/version.version={}", self.version()?));
        }
        Ok(flags.join(" "))
    }

    /// The cache folder of this pin: everything that decides the bytes of its programs is in the name.
    fn cache_dir(self) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        for part in [
            self.read("go.mod")?,
            self.read("go.sum")?,
            self.ldflags()?,
            build::FLAGS.join(" "),
            format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        ] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        let hash = hex::encode(hash.finalize());
        Ok(cache_root()?.join(format!("{}-{}", self.folder(), &hash[..16])))
    }
}

/// The version of Kubernetes that the harness runs, for example `v1.34.4`.
pub fn kubernetes_version() -> Result<String> {
    Pin::Kubernetes.version()
}

/// Makes all of `wanted` runnable, building what is nowhere to be found; returns the paths in the same order.
///
/// The first build takes 10 to 15 minutes on two cores and reports its progress on standard error; afterwards this is
/// a few file checks. Blocking: call it through `spawn_blocking` from async code.
///
/// # Errors
/// A program is missing and Go is not installed, or its build fails; the message says what to do.
pub fn ensure(wanted: &[Binary]) -> Result<Vec<PathBuf>> {
    let mut missing = Vec::new();
    for &binary in wanted {
        if find(binary)?.is_none() {
            missing.push(binary);
        }
    }
    build::build_all(&missing)?;
    wanted
        .iter()
        .map(|&binary| {
            find(binary)?.ok_or_else(|| anyhow!("{} is missing after its build", binary.file_name()))
        })
        .collect()
}

/// The path of one program, if it is there already.
pub fn find(binary: Binary) -> Result<Option<PathBuf>> {
    if binary == Binary::Kwok
        && let Some(path) = std::env::var_os("KWOK_BIN").map(PathBuf::from)
    {
        return if path.is_file() {
            Ok(Some(path))
        } else {
            Err(anyhow!("KWOK_BIN names {}, which is not a file", path.display()))
        };
    }
    if let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS") {
        let path = Path::new(&folder).join(binary.file_name());
        if path.is_file() {
            return Ok(Some(path));
        }
    }
    let path = binary.pin().cache_dir()?.join(binary.file_name());
    Ok(path.is_file().then_some(path))
}

fn cache_root() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    Ok(base.join("kubeocean").join("control-plane"))
}

/// The version a `go.mod` requires of `module`, in both the one-line and the block form.
fn pinned_version(go_mod: &str, module: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next().map(str::to_owned)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_both_forms_of_require() {
        let go_mod = "module example.test/x\n\nrequire a.test/one v1.2.3\n\nrequire (\n\tb.test/two v0.1.0 // indirect\n)\n";
        assert_eq!(pinned_version(go_mod, "a.test/one").as_deref(), Some("v1.2.3"));
        assert_eq!(pinned_version(go_mod, "b.test/two").as_deref(), Some("v0.1.0"));
        assert_eq!(pinned_version(go_mod, "a.test"), None);
    }

    #[test]
    fn every_program_has_a_pin_that_names_a_version() {
        for binary in Binary::ALL {
            assert!(binary.pin().version().unwrap().starts_with('v'), "{binary:?}");
        }
    }

    #[test]
    fn kubernetes_programs_carry_their_version() {
        let flags = Pin::Kubernetes.ldflags().unwrap();
        assert!(
            flags.contains(&format!("component-base/version.gitVersion={}", kubernetes_version().unwrap()))
        );
        assert!(flags.contains("component-base/version.gitMajor=1 "));
    }
}
