//! `kubeocean policy`: write, check, ship and understand leasing policies (policy spec section 11).
//!
//! Everything that decides is the engine the Syncer runs, and everything that is read from a cluster is read by the
//! Syncer's own code, so what these commands say is what would happen.

mod bench;
mod check;
mod diff;
mod explain;
mod gather;
mod inspect;
mod keygen;
mod local;
mod module;
mod moment;
mod new;
mod policy_file;
mod policy_schema;
mod publish;
mod pull;
mod push;
mod records;
mod replay;
mod sign;
mod simulate;
mod snapshot;
mod test;
mod verify;

use clap::{Args as ClapArgs, Subcommand};

use crate::failure::Failure;

/// What to do with a policy.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a Cargo project of a new policy, which builds and passes its tests as it is
    New(new::Args),
    /// Load a module as the Syncer does, and test that it is pure and keeps its promises
    Check(check::Args),
    /// Decide recorded nodes over time: what a policy would have leased
    Simulate(simulate::Args),
    /// Decide the cases of YAML files and compare with what they expect
    Test(test::Args),
    /// Record what policies decide from, once or over days, to prove a policy on it
    Snapshot(snapshot::Args),
    /// Tell step by step what the policies of a worker cluster decide about one of its nodes
    Explain(explain::Args),
    /// Show what a module is: what it does, what it reads, what its settings are
    Inspect(inspect::Args),
    /// Measure what a module costs, and compare with an earlier measurement
    Bench(bench::Args),
    /// Ask recorded decisions again, bit for bit
    Replay(replay::Args),
    /// Tell what two versions of a policy or module decide differently
    Diff(diff::Args),
    /// Make a pair of keys to sign modules with
    Keygen(keygen::Args),
    /// Put a module into a registry
    Push(push::Args),
    /// Get a module from a registry
    Pull(pull::Args),
    /// Sign a module in a registry
    Sign(sign::Args),
    /// Check the signatures of a module in a registry, as a Syncer does
    Verify(verify::Args),
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::New(args) => new::run(args),
        Command::Check(args) => check::run(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Test(args) => test::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Keygen(args) => keygen::run(args),
        Command::Push(args) => push::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Sign(args) => sign::run(args),
        Command::Verify(args) => verify::run(args),
    }
}
