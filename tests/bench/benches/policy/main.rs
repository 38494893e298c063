//! The table of section 16 of the policy specification: what an author's build, a module and a whole host cost, beside the
//! targets.
//!
//! `cargo xtask bench policy` runs it. `KUBEOCEAN_BENCH_JSON` names a file for the figures, `KUBEOCEAN_BENCH_ALLOW` how many
//! times the target a figure may be before the run fails (for machines that are slower or busy); without it nothing fails.

mod author;
mod extender;
mod host;
mod module;

use kubeocean_bench::{check_allowed, table};

fn main() -> anyhow::Result<()> {
    // Cargo passes --bench, and names of benches to whoever has several.
    let mut figures = author::figures()?;
    figures.extend(module::figures()?);
    let packing = host::packing()?;
    figures.extend(host::figures(&packing)?);
    figures.extend(extender::figures(&packing)?);
    println!("{}", table(&figures));
    if let Some(path) = std::env::var_os("KUBEOCEAN_BENCH_JSON") {
        std::fs::write(path, serde_json::to_vec_pretty(&figures)?)?;
    }
    let allowed = std::env::var("KUBEOCEAN_BENCH_ALLOW").ok();
    check_allowed(&figures, allowed.as_deref()).map_err(anyhow::Error::msg)
}
