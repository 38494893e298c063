//! `cargo xtask assets`: what the first test would otherwise build, in one go, for images and offline machines.

use anyhow::Result;
use clap::Args as ClapArgs;
use kubeocean_harness::assets::{self, Binary};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Only show what is there, build nothing
    #[arg(long)]
    list: bool,
    /// Only these programs, by file name, for example kubectl
    #[arg(value_name = "PROGRAM", value_parser = binary)]
    programs: Vec<Binary>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = if args.programs.is_empty() { Binary::ALL.to_vec() } else { args.programs.clone() };
    if !args.list {
        assets::ensure(&wanted)?;
        assets::kwok_stages()?;
    }
    for binary in wanted {
        let path = assets::find(binary)?;
        let place = path.map_or_else(|| "not built".to_owned(), |path| path.display().to_string());
        println!("{:<24} {place}", binary.file_name());
    }
    Ok(())
}

fn binary(name: &str) -> Result<Binary, String> {
    Binary::ALL.into_iter().find(|binary| binary.file_name() == name).ok_or_else(|| {
        let known: Vec<_> = Binary::ALL.iter().map(|binary| binary.file_name()).collect();
        format!("one of {}", known.join(", "))
    })
}
