//! Looks for bytes from strangers that break something, guided by coverage (libFuzzer, on the pinned compiler).
//!
//! The program is the crate `kubeocean-fuzz` with counters in every branch, in a target folder of its own. What is found
//! interesting is kept there, so that the next run goes on where this one ended.

mod build;
mod report;

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};

use report::Report;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which kind of input: module, settings, record, place [default: each in turn]
    target: Option<String>,
    /// How long each target is tried
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    seconds: u32,
    /// Try this input alone, one that was found before
    #[arg(long, value_name = "FILE", requires = "target")]
    replay: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz");
    let program = build::build(&folder)?;
    let home = folder.join("runs");
    let status = Command::new(&program).env("KUBEOCEAN_FUZZ_PREPARE", &home).status();
    ensure!(status.context("starting the program")?.success(), "the seeds could not be written");
    let known = targets(&home)?;
    let wanted = match &args.target {
        Some(name) if known.contains(name) => vec![name.clone()],
        Some(name) => bail!("there is no target {name}: {}", known.join(", ")),
        None => known,
    };
    if let (Some(input), [name]) = (&args.replay, wanted.as_slice()) {
        let mut command = one(&program, &home, name)?;
        let status = command.arg(input).status().context("starting the program")?;
        ensure!(status.success(), "{name} ended with {status} on {}", input.display());
        println!("{name}: {} finds nothing", input.display());
        return Ok(());
    }
    let mut found = 0;
    for name in wanted {
        found += look(&program, &home, &name, args.seconds)?;
    }
    ensure!(found == 0, "{found} inputs were found that break something");
    Ok(())
}

/// Targets that the program has prepared, in order.
fn targets(home: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(home).with_context(|| format!("reading {}", home.display()))? {
        let entry = entry?;
        if entry.path().join("options").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The program for one target, with what holds for every run of it.
fn one(program: &Path, home: &Path, name: &str) -> Result<Command> {
    let options = home.join(name).join("options");
    let options =
        std::fs::read_to_string(&options).with_context(|| format!("reading {}", options.display()))?;
    let mut command = Command::new(program);
    command.env("KUBEOCEAN_FUZZ_TARGET", name).args(options.lines());
    Ok(command)
}

/// One run. Returns the number of findings.
fn look(program: &Path, home: &Path, name: &str, seconds: u32) -> Result<usize> {
    let folder = home.join(name);
    let (corpus, findings) = (folder.join("corpus"), folder.join("findings"));
    for folder in [&corpus, &findings] {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let before = files(&findings)?;
    let mut command = one(program, home, name)?;
    let mut prefix = OsString::from("-artifact_prefix=");
    prefix.push(findings.join(""));
    let mut words = OsString::from("-dict=");
    words.push(home.join("words"));
    command
        .arg(format!("-max_total_time={seconds}"))
        .args(["-print_final_stats=1", "-verbosity=1"])
        .args([prefix, words])
        .arg(&corpus)
        .arg(folder.join("seeds"));
    let (report, status) = watch(command, &folder.join("log"))?;
    println!("{name}: {report}");
    let new: Vec<PathBuf> = files(&findings)?.into_iter().filter(|file| !before.contains(file)).collect();
    for file in &new {
        println!("  found {}", file.display());
        println!("  again: cargo xtask fuzz {name} --replay {}", file.display());
    }
    if new.is_empty() && !status.success() {
        bail!("{name} ended with {status}; what it said is in {}", folder.join("log").display());
    }
    Ok(new.len())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Runs to the end, keeps what is said, and sums it up.
fn watch(mut command: Command, log: &Path) -> Result<(Report, ExitStatus)> {
    use std::io::Write as _;
    let mut kept = std::fs::File::create(log).with_context(|| format!("writing {}", log.display()))?;
    let mut child =
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("starting the program")?;
    let mut report = Report::default();
    if let Some(said) = child.stderr.take() {
        for line in BufReader::new(said).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            writeln!(kept, "{line}")?;
            report.line(&line);
        }
    }
    Ok((report, child.wait()?))
}
