//! The binary as a person without any cluster runs it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a step that fails is a failed test")]
#![allow(dead_code, reason = "each test file uses what it needs")]

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) fn kubeocean(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubeocean"))
        .args(args)
        .env("KUBECONFIG", "/nowhere/kubeconfig")
        .output()
        .expect("the binary runs")
}

/// What a person sees of standard error, which is a terminal; standard output goes elsewhere.
pub(crate) fn seen_on_a_terminal(args: &[&str]) -> String {
    let quoted = |arg: &&str| format!("'{arg}'");
    let words: Vec<String> = [env!("CARGO_BIN_EXE_kubeocean")].iter().chain(args).map(quoted).collect();
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &format!("{} >/dev/null", words.join(" ")), "/dev/null"])
        .env("TERM", "xterm")
        // A registry of a test is on this machine.
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::null())
        .output()
        .expect("script, of util-linux, which lends a terminal");
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {seen}");
    seen
}

/// What a bar with this verb showed before `unit`, each text once.
pub(crate) fn drawn<'s>(seen: &'s str, verb: &str, unit: char) -> Vec<&'s str> {
    let begin = format!("{verb} [");
    let bars = seen.split(&begin).skip(1);
    let mut texts: Vec<&str> =
        bars.filter_map(|bar| Some(bar.split_once("] ")?.1.split_once(unit)?.0)).collect();
    texts.dedup();
    texts
}

/// Exit code, standard output and standard error.
pub(crate) fn said(args: &[&str]) -> (i32, String, String) {
    let output = kubeocean(args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

pub(crate) fn json(args: &[&str]) -> (i32, Value) {
    let (code, out, error) = said(args);
    (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code}: {out}{error}")))
}

/// A file in a folder that lives as long as the test.
pub(crate) fn file(directory: &TempDir, name: &str, content: &[u8]) -> String {
    let path = directory.path().join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}
