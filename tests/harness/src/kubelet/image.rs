//! The images of a real node, made of the machine's busybox: no registry is asked for anything.
//!
//! Out: one docker-archive with [`BUSYBOX_IMAGE`] and [`PAUSE_IMAGE`], which share their one layer. Pods that use them say
//! `imagePullPolicy: Never`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::run::run;
use super::tar::{Archive, Entry};

/// A shell and the usual small programs, among them `tar` for `kubectl cp`, `nc` and `httpd`.
pub const BUSYBOX_IMAGE: &str = "localhost/busybox:1";
/// What holds a pod's namespaces.
pub(super) const PAUSE_IMAGE: &str = "localhost/pause:1";

/// Writes the archive of both images to `path`. Blocking.
pub(super) fn write_archive(busybox: &Path, path: &Path) -> Result<()> {
    let program = std::fs::read(busybox).with_context(|| format!("reading {}", busybox.display()))?;
    let applets = run(Command::new(busybox).arg("--list"))?;
    let layer = layer(&program, &applets);
    std::fs::write(path, archive(&layer)).with_context(|| format!("writing {}", path.display()))
}

/// The file system: busybox, a link for each of its names, and what programs expect of a root.
fn layer(busybox: &[u8], applets: &str) -> Vec<u8> {
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
    let mut archive = Archive::default()
        .with("bin/", Entry::Folder { mode: 0o755 })
        .with("etc/", Entry::Folder { mode: 0o755 })
        .with("etc/passwd", Entry::File { mode: 0o644, content: passwd })
        .with("root/", Entry::Folder { mode: 0o700 })
        .with("tmp/", Entry::Folder { mode: 0o1777 })
        .with("bin/busybox", Entry::File { mode: 0o755, content: busybox });
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        archive = archive.with(&format!("bin/{applet}"), Entry::Link { target: "busybox" });
    }
    archive.finish()
}

fn archive(layer: &[u8]) -> Vec<u8> {
    let layer_digest = hex::encode(Sha256::digest(layer));
    let layer_path = format!("{layer_digest}.tar");
    let mut archive = Archive::default().with(&layer_path, Entry::File { mode: 0o644, content: layer });
    let mut manifest = Vec::new();
    for (name, command) in [(BUSYBOX_IMAGE, json!(["sh"])), (PAUSE_IMAGE, json!(["sleep", "2147483647"]))] {
        let config = config(&layer_digest, &command).to_string();
        let config_path = format!("{}.json", hex::encode(Sha256::digest(&config)));
        archive = archive.with(&config_path, Entry::File { mode: 0o644, content: config.as_bytes() });
        manifest.push(json!({"Config": config_path, "RepoTags": [name], "Layers": [layer_path]}));
    }
    let manifest = Value::Array(manifest).to_string();
    archive.with("manifest.json", Entry::File { mode: 0o644, content: manifest.as_bytes() }).finish()
}

fn config(layer_digest: &str, command: &Value) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": command, "Env": ["PATH=/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
    })
}
