//! Where inputs to begin with come from.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Files in a folder below the root of the repository whose names end so, in order.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file() && path.to_str().unwrap().ends_with(ending))
        .collect();
    files.sort();
    files
}

/// Inputs that were findings once.
pub(crate) fn kept(target: &str) -> Vec<Vec<u8>> {
    files(&format!("tests/fuzz/seeds/{target}"), "").iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Modules of earlier releases, of every folder.
pub(crate) fn frozen(ending: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/policies/frozen");
    let mut releases: Vec<String> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    releases.sort();
    let folders = releases.iter().map(|release| format!("tests/policies/frozen/{release}"));
    let files = folders.flat_map(|folder| files(&folder, ending));
    files.map(|path| std::fs::read(path).unwrap()).collect()
}

/// Nothing in it is a fraction: whether those are read back as they were written is the business of a library.
pub(crate) fn is_without_fractions(value: &Value) -> bool {
    match value {
        Value::Number(number) => !number.is_f64(),
        Value::Array(items) => items.iter().all(is_without_fractions),
        Value::Object(members) => members.values().all(is_without_fractions),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

/// What is seldom found by changing bytes: keywords of schemas, names of settings, facts and members of records.
pub fn words() -> impl Iterator<Item = &'static str> {
    include_str!("words.txt").lines().filter(|line| !line.is_empty())
}
