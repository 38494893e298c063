//! One command to its end: its output, or what it complained about.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::reaper;

/// Standard output of a command that must succeed. Blocking.
pub(super) fn run(command: &mut Command) -> Result<String> {
    reaper::adopt(command)?;
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{name} {}: {} ({})", args.join(" "), complaint.trim(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `ip` with the words of `line` as its arguments.
pub(super) fn ip(line: &str) -> Result<String> {
    run(Command::new("ip").args(line.split_whitespace()).env("PATH", super::requirements::search_path()))
}
