//! The one Kubeocean binary. Which program it is comes from the subcommand, or from the name it is called by: under
//! `manager`, `syncer` or `proxier`, the entry points of the original's images, it is that subcommand; as
//! `kubectl-kubeocean` it is the plugin `kubectl kubeocean` with all subcommands.

#![deny(unsafe_code)]

mod cluster;
mod completion;
mod computing;
mod crd;
mod environment;
mod failure;
mod go_flags;
mod in_process;
mod logging;
mod manager;
mod memory;
mod output;
mod policy;
mod process;
mod program;
mod progress;
mod proxier;
mod registry;
mod sources;
mod syncer;
mod worker;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "kubeocean", version, about = "Leases idle Kubernetes capacity between clusters")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch over all ClusterBindings, and lease their nodes and run pods there in this one process
    Manager(Box<manager::Args>),
    /// Lease the nodes of one worker cluster and run pods there, both directions for one ClusterBinding
    Syncer(Box<syncer::Args>),
    /// Serve the kubelet API of one ClusterBinding's virtual nodes: logs, exec, attach, port-forward
    Proxier(Box<proxier::Args>),
    /// Print the CustomResourceDefinitions as YAML
    Crd(crd::Args),
    /// Write, check, ship and understand leasing policies
    Policy(Box<policy::Args>),
    /// Print a script that completes commands and flags in a shell
    Completion(completion::Args),
    /// Attach worker clusters
    Worker(worker::Args),
    /// Compile a policy module from stdin within limits, for the Syncer that started this process (PO-906)
    #[command(name = kubeocean_syncer::config::COMPILE_POLICY, hide = true)]
    CompilePolicy,
}

/// Commands for people. Their exit codes are those of [`failure::Failure`]; the programs' end with 1 for any error.
const FOR_PEOPLE: [&str; 3] = ["completion", "policy", "worker"];

fn main() -> ExitCode {
    let arguments = go_flags::normalise(std::env::args());
    let usage_error = match arguments.get(1) {
        Some(command) if FOR_PEOPLE.contains(&command.as_str()) => 2,
        _ => 1,
    };
    let command = environment::with_variables(Cli::command());
    let parsed = command.try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; a usage error ends with 1, as the original's programs do.
            let code = if error.use_stderr() { usage_error } else { 0 };
            if error.print().is_err() {
                return ExitCode::FAILURE;
            }
            return ExitCode::from(code);
        }
    };
    let result = match cli.command {
        Command::Manager(args) => manager::run(&args),
        Command::Syncer(args) => syncer::run(&args),
        Command::Proxier(args) => proxier::run(&args),
        Command::Crd(args) => crd::run(&args),
        Command::Policy(args) => return ended(policy::run(&args)),
        Command::Completion(args) => return ended(completion::run(&args, &mut Cli::command())),
        Command::Worker(args) => return ended(worker::run(&args)),
        Command::CompilePolicy => return kubeocean_engine::compile_child_main(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ended(result: Result<(), failure::Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands of `command` that have none below them, each with its whole name.
    fn leaves(command: &clap::Command, above: &str) -> Vec<(String, clap::Command)> {
        let name = format!("{above}{}", command.get_name());
        if !command.has_subcommands() {
            return vec![(name, command.clone())];
        }
        command.get_subcommands().flat_map(|below| leaves(below, &format!("{name} "))).collect()
    }

    #[test]
    fn the_help_of_every_command_of_policy_has_examples_of_it() {
        let program = Cli::command();
        let commands = leaves(program.find_subcommand("policy").unwrap(), "kubeocean ");
        assert!(commands.len() >= 15, "they were not found: {commands:?}");
        for (name, command) in commands {
            let help = command.get_after_long_help().or_else(|| command.get_after_help());
            let help = help.map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") && help.contains(&format!("  {name} ")), "{name}: {help:?}");
        }
    }
}
