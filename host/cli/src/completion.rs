//! `kubeocean completion SHELL`: what a shell completes, from the definition of the commands themselves.

use clap::{Args as ClapArgs, Command};
use clap_complete::Shell;

use crate::{failure::Failure, output::print};

/// For which shell.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  source <(kubeocean completion bash)
  kubeocean completion zsh > ~/.zfunc/_kubeocean
  kubeocean completion fish > ~/.config/fish/completions/kubeocean.fish")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &Args, command: &mut Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "kubeocean", &mut script);
    print(&String::from_utf8_lossy(&script))
}
