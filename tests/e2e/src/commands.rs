//! The program as a person runs it.

use std::process::{Output, Stdio};

use kubeocean_harness::program::kubeocean_binary;
use tokio::io::AsyncWriteExt;

/// Runs the binary as a person does, with no environment that could help it.
///
/// # Panics
/// It cannot be built or started.
pub async fn kubeocean(args: &[&str]) -> Output {
    told(args, "").await
}

/// The same with something on its standard input.
///
/// # Panics
/// It cannot be built or started.
pub async fn told(args: &[&str], input: &str) -> Output {
    let binary = kubeocean_binary().expect("the program is built");
    let mut child = tokio::process::Command::new(binary)
        .args(args)
        .env_remove("KUBECONFIG")
        .env("HOME", "/nowhere")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let writing = async {
        // A program that does not read ends without it.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let ((), output) = tokio::join!(writing, child.wait_with_output());
    output.expect("the program runs")
}

/// Standard output of a command that must succeed.
///
/// # Panics
/// It does not.
pub async fn printed(args: &[&str]) -> String {
    let output = kubeocean(args).await;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Exit code and standard error of a command that must fail.
///
/// # Panics
/// It does not.
pub async fn refused(args: &[&str]) -> (i32, String) {
    let output = kubeocean(args).await;
    assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}
