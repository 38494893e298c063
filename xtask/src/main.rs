//! Developer commands, run as `cargo xtask <command>`.

mod assets;
mod demo;
mod generate;

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
    /// Lease nodes of two worker clusters to a computing cluster, on this machine, and watch it happen
    Demo(demo::Args),
    /// Rewrite the checked-in files that are generated from code
    Generate,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Assets(args) => assets::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Generate => generate::run(),
    }
}
