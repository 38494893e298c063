//! Runs a program that reads its input to the end.

use std::process::{Output, Stdio};

use anyhow::{Context, Result};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Starts `command` with piped input, writes `input` and then its end, and waits for what it printed. `name` is for errors.
pub(crate) async fn output_with_input(command: &mut Command, name: &str, input: &[u8]) -> Result<Output> {
    let mut child = command.stdin(Stdio::piped()).spawn().with_context(|| format!("starting {name}"))?;
    let mut stdin = child.stdin.take().with_context(|| format!("{name} has no standard input"))?;
    let feed = async {
        // A program that does not read all its input has its reason, and says it in its output.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    output.with_context(|| format!("running {name}"))
}
