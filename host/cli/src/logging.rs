//! Logging flags, shared by all programs: the original's `--zap-*`, ours, and `RUST_LOG`, the strongest last (MC-102).

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// The target of what modules of policies log.
const GUESTS: &str = "kubeocean::policy";

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
    let filter = filter(&directives)
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

/// Of what modules of policies log, warnings and above, unless the directives speak of it or ask for less: how much they say
/// is their authors' affair (PO-1504).
fn filter(directives: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    let is_quiet = |one: &str| ["off", "error"].iter().any(|level| one.trim().eq_ignore_ascii_case(level));
    let plain = EnvFilter::try_new(directives)?;
    let is_less = plain.max_level_hint().is_some_and(|most| most < LevelFilter::WARN);
    if is_less || directives.contains(GUESTS) || directives.split(',').any(is_quiet) {
        return Ok(plain);
    }
    EnvFilter::try_new(format!("{directives},{GUESTS}=warn"))
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Written {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// Which of some lines are logged with these directives.
    fn logged(directives: &str) -> Vec<String> {
        let written = Written::default();
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter(directives).unwrap())
            .with_writer(written.clone())
            .without_time()
            .with_level(false)
            .with_target(false)
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::info!("ours");
            tracing::info!(target: "kubeocean::policy", "guest says");
            tracing::warn!(target: "kubeocean::policy", "guest warns");
        });
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn modules_of_policies_are_heard_from_warnings_on_unless_asked_for() {
        assert_eq!(logged("info"), ["ours", "guest warns"]);
        assert_eq!(logged("debug"), ["ours", "guest warns"]);
        assert_eq!(logged("info,kubeocean::policy=info"), ["ours", "guest says", "guest warns"]);
        for nothing in ["kubeocean::policy=off", "off", "ERROR", "1", ""] {
            assert_eq!(logged(nothing), Vec::<String>::new(), "{nothing}");
        }
        assert!(filter("loud=!").is_err());
    }
}
