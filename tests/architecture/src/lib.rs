//! The sources of the workspace as data, for tests of rules that no compiler checks.

use std::path::{Path, PathBuf};

/// One Rust file.
#[derive(Debug)]
pub struct Source {
    /// Relative to the repository, with `/`.
    pub path: String,
    /// Its text.
    pub text: String,
}

impl Source {
    /// The lines that are code, numbered from 1: no comments, and nothing from `#[cfg(test)]` on.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
            .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All Rust files below a folder of the repository, in order.
///
/// # Panics
/// A folder or file cannot be read.
pub fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root(), Path::new(folder), &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    let entries = std::fs::read_dir(root.join(folder)).expect("a folder of the repository");
    for entry in entries {
        let name = entry.expect("an entry").file_name();
        let path = folder.join(name);
        let full = root.join(&path);
        if full.is_dir() {
            if !path.ends_with("target") {
                collect(root, &path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(full).expect("a Rust file");
            found.push(Source { path: path.to_string_lossy().into_owned(), text });
        }
    }
}
