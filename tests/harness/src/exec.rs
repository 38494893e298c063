//! `kubectl exec` with input and with each of its protocols, for tests and benches that look at every byte.

use std::process::Output;

use anyhow::Result;
use tokio::process::Command;

use crate::cluster::Cluster;
use crate::feed::output_with_input;

/// What kubectl and the API server speak, as [KEP-4006](https://kep.k8s.io/4006) names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Spdy,
    WebSocket,
}

/// Both.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Spdy, Protocol::WebSocket];

/// The pod to run commands in.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
}

impl Cluster {
    /// `kubectl exec` of a command in the pod's first container, with `stdin` passed on or without any. Its output is
    /// piped, and it is killed when its handle is dropped.
    ///
    /// # Errors
    /// kubectl is missing.
    pub fn exec_command(
        &self,
        protocol: Protocol,
        target: Target<'_>,
        command: &[&str],
        stdin: bool,
    ) -> Result<Command> {
        let mut args = vec!["exec", target.pod, "-n", target.namespace];
        args.extend(stdin.then_some("-i"));
        args.push("--");
        args.extend(command);
        let mut kubectl = self.kubectl_command(&args)?;
        kubectl.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", (protocol == Protocol::WebSocket).to_string());
        Ok(kubectl)
    }

    /// Runs a command in the pod to its end. With `input`, that and then the end of input is what it reads.
    ///
    /// # Errors
    /// kubectl cannot be run. An exit code of the command is part of the output.
    pub async fn exec(
        &self,
        protocol: Protocol,
        target: Target<'_>,
        command: &[&str],
        input: Option<&[u8]>,
    ) -> Result<Output> {
        let mut kubectl = self.exec_command(protocol, target, command, input.is_some())?;
        output_with_input(&mut kubectl, "kubectl", input.unwrap_or_default()).await
    }
}

/// Bytes that never repeat, so that a lost, doubled or exchanged piece of a transfer is seen.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}
