//! `kubeocean worker`: what the administrator of a worker cluster does to attach it.

mod kubeconfig;
mod manifest;
mod trust;

use clap::{Args as ClapArgs, Subcommand};

use crate::failure::Failure;

/// What to do with a worker cluster.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a kubeconfig with a bounded token and only the rights of the worker chart, checked by a call
    Kubeconfig(Box<kubeconfig::Args>),
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Kubeconfig(args) => kubeconfig::run(args),
    }
}
