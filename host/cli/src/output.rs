//! What commands for people print: text in columns, JSON, files nobody else may read.

use std::{fs, io::Write, path::Path};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;

use crate::failure::{Failure, OrFailure};

/// Form of a command's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    /// Prints a report: `text` makes what a person reads, JSON is the report itself.
    pub(crate) fn show<R: Serialize>(
        self,
        report: &R,
        text: impl FnOnce(&R) -> String,
    ) -> Result<(), Failure> {
        match self {
            Self::Text => print(&text(report)),
            Self::Json => print_json(report),
        }
    }
}

/// Writes to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
        .map_err(Failure::Failed)
}

/// Writes JSON with a final newline to standard output.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value).context("cannot be written as JSON").or_unusable()?;
    text.push('\n');
    print(&text)
}

/// Rows in columns, each as wide as its widest cell and two apart. The last cell of a row may be as long as it likes.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate().take(row.len().saturating_sub(1)) {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(known) => *known = (*known).max(width),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if column + 1 < row.len() {
                let missing = widths.get(column).copied().unwrap_or(0).saturating_sub(cell.chars().count());
                line.push_str(&" ".repeat(missing + 2));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One line per name and value, in two columns.
pub(crate) fn pairs(rows: &[(&str, String)]) -> String {
    let row = |(name, value): &(&str, String)| vec![(*name).to_owned(), value.clone()];
    columns(&rows.iter().map(row).collect::<Vec<_>>())
}

/// What a word means, for its colour on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Bad,
    Bar,
}

/// `text` in colour, if standard output is a terminal and the user did not set `NO_COLOR`.
pub(crate) fn paint(tone: Tone, text: &str) -> String {
    use std::io::IsTerminal;
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if text.is_empty() || unwanted || !std::io::stdout().is_terminal() {
        return text.to_owned();
    }
    let code = match tone {
        Tone::Good => 32,
        Tone::Bad => 31,
        Tone::Bar => 36,
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Writes a file that only its owner may read, all of it or nothing.
pub(crate) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let name = path.file_name().with_context(|| format!("{} is no file name", path.display()))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    written
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let text =
            columns(&[row(&["", "cpu", "memory"]), row(&["half", "", "x"]), row(&["a long last cell"])]);
        assert_eq!(text, "      cpu  memory\nhalf       x\na long last cell\n");
    }

    #[test]
    fn a_private_file_replaces_a_public_one() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret.yaml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write_private(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
