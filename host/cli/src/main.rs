//! The one Kubeocean binary. Which program it is comes from the subcommand, or from the name it is called by: under
//! `manager`, `syncer` or `proxier`, the entry points of the original's images, it is that subcommand.

#![forbid(unsafe_code)]

mod computing;
mod crd;
mod environment;
mod go_flags;
mod logging;
mod syncer;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(name = "kubeocean", version, about = "Leases idle Kubernetes capacity between clusters")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lease the nodes of one worker cluster and run pods there, both directions for one ClusterBinding
    Syncer(Box<syncer::Args>),
    /// Print the CustomResourceDefinitions as YAML
    Crd(crd::Args),
    /// Compile a policy module from stdin within limits, for the Syncer that started this process (PO-906)
    #[command(name = kubeocean_syncer::config::COMPILE_POLICY, hide = true)]
    CompilePolicy,
}

fn main() -> ExitCode {
    let arguments = go_flags::normalise(std::env::args());
    let command = environment::with_variables(Cli::command());
    let parsed = command.try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; a usage error ends with 1, as the original's programs do.
            let code = u8::from(error.use_stderr());
            if error.print().is_err() {
                return ExitCode::FAILURE;
            }
            return ExitCode::from(code);
        }
    };
    let result = match cli.command {
        Command::Syncer(args) => syncer::run(&args),
        Command::Crd(args) => crd::run(&args),
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
