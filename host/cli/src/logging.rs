//! Logging flags, shared by all programs: the original's `--zap-*`, ours, and `RUST_LOG`, the strongest last (MC-102).

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Flags that decide what is logged and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogFlags {
    /// Form of log lines [default: json, on a terminal text]
    #[arg(long)]
    log_format: Option<Format>,
    /// Least level shown: error, warn, info, debug or trace, or filter directives as in RUST_LOG [default: info]
    #[arg(long)]
    log_level: Option<String>,
    /// Level in the original's form: debug, info, error, panic or a verbosity above 0
    #[arg(long, hide_short_help = true)]
    zap_log_level: Option<String>,
    /// Form of log lines in the original's terms
    #[arg(long, hide_short_help = true)]
    zap_encoder: Option<Encoder>,
    /// Development mode: readable lines and debug level
    #[arg(long, hide_short_help = true, default_value_t = false, action = clap::ArgAction::Set)]
    zap_devel: bool,
    /// Accepted for compatibility, without effect
    #[arg(long, hide = true)]
    zap_stacktrace_level: Option<String>,
    /// Accepted for compatibility; times are always RFC 3339
    #[arg(long, hide = true)]
    zap_time_encoding: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Encoder {
    Json,
    Console,
}

/// Starts logging to standard error.
pub(crate) fn start(flags: &LogFlags) -> anyhow::Result<()> {
    let (source, directives) = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => ("RUST_LOG", directives),
        _ => ("--log-level", flags.log_level.clone().unwrap_or_else(|| zap_level(flags).to_owned())),
    };
    let filter = EnvFilter::try_new(&directives)
        .map_err(|error| anyhow::anyhow!("{source} {directives:?} is no level or filter: {error}"))?;
    let json = match (flags.log_format, flags.zap_encoder) {
        (Some(format), _) => format == Format::Json,
        (None, Some(encoder)) => encoder == Encoder::Json,
        (None, None) => !std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

fn zap_level(flags: &LogFlags) -> &'static str {
    match flags.zap_log_level.as_deref() {
        Some("debug" | "1") => "debug",
        Some("info") => "info",
        Some("error" | "panic" | "dpanic" | "fatal") => "error",
        Some("warn") => "warn",
        Some(verbosity) if verbosity.parse::<u32>().is_ok_and(|verbosity| verbosity > 1) => "trace",
        _ if flags.zap_devel => "debug",
        _ => "info",
    }
}
