//! Developer commands, run as `cargo xtask <command>`.

mod assets;
mod bench;
mod compiler;
mod demo;
mod dist;
mod fuzz;
mod generate;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Kubeocean")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the control plane programs that tests and demo need, once for this machine, and print where they are
    Assets(assets::Args),
    /// Measure a Syncer on real clusters, or the policy engine, against what is allowed, print the table and store it
    Bench(bench::Args),
    /// Lease nodes of two worker clusters to a computing cluster, on this machine, and watch it happen
    Demo(demo::Args),
    /// Build the program around what a Syncer does all day: smaller in memory, and faster (Linux)
    Dist(dist::Args),
    /// Look for modules, settings, records and questions that break something, guided by coverage
    Fuzz(fuzz::Args),
    /// Rewrite the checked-in files that are generated from code
    Generate,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse_from(without_separator(std::env::args_os())).command {
        Command::Assets(args) => assets::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Generate => generate::run(),
    }
}

/// In `cargo demo -- --once` Cargo's alias already ends with `-- demo`, so the second `--` arrives here. It separates
/// nothing: no command takes words that begin with a dash.
fn without_separator(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments.filter(|argument| argument != "--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readmes_command_is_understood() {
        for given in [["xtask", "demo", "--", "--once"].as_slice(), &["xtask", "demo", "--once"]] {
            let arguments = without_separator(given.iter().map(OsString::from));
            assert!(
                matches!(Cli::try_parse_from(arguments).unwrap().command, Command::Demo(args) if args.once)
            );
        }
    }
}
