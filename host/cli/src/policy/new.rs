//! `kubeocean policy new`: a project that builds and passes its tests before anything in it is edited.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use serde::Serialize;

use crate::{
    failure::{Failure, OrFailure},
    output::Format,
};

/// Longest name of a ConfigMap that is also a Cargo package and a file name.
const MAX_NAME: usize = 63;
/// Longest name of an entry (PO-710).
const MAX_ENTRY: usize = 16;

/// What to write.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy new cheap-nights
  kubeocean policy new own-pods --kind place --path policies/own-pods
  kubeocean policy new cheap-nights --sdk ../kubeocean/policy-sdk

With --sdk the project needs that folder to build. A folder that holds anything is left alone.")]
pub(crate) struct Args {
    /// Name of the policy: lower-case letters, digits and dashes. A folder of that name is made here
    name: String,
    /// Which decisions it makes
    #[arg(long, default_value = "lease")]
    kind: Kind,
    /// Folder to make instead of ./NAME
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Folder of the policy SDK [default: this release of it from crates.io]
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// What of a node is leased, and when
    Lease,
    /// Which pods may go to a virtual node
    Place,
    /// Both
    Both,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Report {
    folder: PathBuf,
    /// Paths within the folder.
    files: Vec<&'static str>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    check_name(&args.name).map_err(Failure::unusable)?;
    let sdk = match &args.sdk {
        Some(path) => local_sdk(path).or_unusable()?,
        None => released_sdk(),
    };
    let folder = args.path.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let files = files(&args.name, args.kind, &sdk);
    write(&folder, &files).or_unusable()?;
    let report = Report { folder, files: files.into_iter().map(|(path, _)| path).collect() };
    args.output.show(&report, |report| next_steps(&report.folder, &args.name, args.sdk.is_some()))
}

/// `own_sdk`: the SDK is a folder the person named, and not the released one.
fn next_steps(folder: &Path, name: &str, own_sdk: bool) -> String {
    let sdk = if own_sdk {
        String::new()
    } else {
        format!(
            "The project names kubeocean-policy-sdk {} of crates.io; until that is published, --sdk DIR takes the one of a checkout.\n",
            env!("CARGO_PKG_VERSION")
        )
    };
    format!(
        "{sdk}{folder} is ready. Next:\n  cd {folder}\n  cargo test\n  cargo build --target wasm32-unknown-unknown --release\n  \
         kubeocean policy check target/wasm32-unknown-unknown/release/{file}.wasm -f rlp.yaml\n",
        folder = folder.display(),
        file = name.replace('-', "_"),
    )
}

/// A name that fits Cargo, Rust and Kubernetes.
fn check_name(name: &str) -> Result<(), String> {
    let shaped = name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && !name.contains("--")
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    // Cargo refuses packages that are called like these.
    let reserved = ["test", "core", "std", "alloc", "proc-macro", "self", "crate", "super", "build", "deps"];
    if shaped && !reserved.contains(&name) && !KEYWORDS.contains(&name) {
        return Ok(());
    }
    Err(format!(
        "{name:?} cannot be the name of a policy: use up to {MAX_NAME} lower-case letters, digits and single dashes, \
         a letter first, and no word of Rust or Cargo"
    ))
}

/// Words of Rust that Cargo refuses as names of packages.
const KEYWORDS: [&str; 40] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "do", "dyn", "else",
    "enum", "extern", "false", "final", "fn", "for", "if", "impl", "in", "let", "loop", "macro", "match",
    "mod", "move", "mut", "override", "pub", "ref", "return", "static", "struct", "trait", "true", "type",
    "unsafe", "use", "where",
];

/// The SDK of the release this program belongs to, as published.
fn released_sdk() -> String {
    format!("{:?}", env!("CARGO_PKG_VERSION"))
}

fn local_sdk(path: &Path) -> anyhow::Result<String> {
    let path = path.canonicalize().with_context(|| format!("there is no SDK in {}", path.display()))?;
    let manifest = fs::read_to_string(path.join("Cargo.toml"))
        .with_context(|| format!("{} is no Cargo package", path.display()))?;
    if !manifest.contains("\"kubeocean-policy-sdk\"") {
        anyhow::bail!("{} is not the package kubeocean-policy-sdk", path.display());
    }
    let path = path.to_str().context("the path of the SDK is not UTF-8")?;
    Ok(format!("{{ path = {path:?} }}"))
}

/// Path within the project and content.
fn files(name: &str, kind: Kind, sdk: &str) -> Vec<(&'static str, String)> {
    let decisions = match kind {
        Kind::Lease => "[lease]",
        Kind::Place => "[place]",
        Kind::Both => "[lease, place]",
    };
    let (description, settings, source, tests, cases) = match kind {
        Kind::Lease => (
            "Leases a share of the free CPU at certain hours.",
            "{percent: 50, from: 22, until: 7}",
            include_str!("template/lease.rs.in"),
            include_str!("template/lease_tests.rs.in"),
            include_str!("template/lease_cases.yaml.in"),
        ),
        Kind::Place => (
            "Lets pods of certain namespaces run here.",
            "{namespaces: [ci]}",
            include_str!("template/place.rs.in"),
            include_str!("template/place_tests.rs.in"),
            include_str!("template/place_cases.yaml.in"),
        ),
        Kind::Both => (
            "Leases a share of the free CPU to pods of certain namespaces.",
            "{percent: 50, namespaces: [ci]}",
            include_str!("template/both.rs.in"),
            include_str!("template/both_tests.rs.in"),
            include_str!("template/both_cases.yaml.in"),
        ),
    };
    let entry = name.get(..name.len().min(MAX_ENTRY)).unwrap_or(name).trim_end_matches('-');
    let words = [
        ("@NAME@", name.to_owned()),
        ("@FILE@", name.replace('-', "_")),
        ("@TYPE@", type_name(name)),
        ("@ENTRY@", entry.to_owned()),
        ("@DESCRIPTION@", description.to_owned()),
        ("@SETTINGS@", settings.to_owned()),
        ("@DECISIONS@", decisions.to_owned()),
        ("@SDK@", sdk.to_owned()),
        ("@RUST@", toolchain().to_owned()),
    ];
    let fill = |template: &str| {
        words.iter().fold(template.to_owned(), |text, (mark, word)| text.replace(mark, word))
    };
    vec![
        ("Cargo.toml", fill(include_str!("template/Cargo.toml.in"))),
        ("src/lib.rs", fill(source)),
        ("src/tests.rs", fill(tests)),
        ("rlp.yaml", fill(include_str!("template/rlp.yaml.in"))),
        ("rust-toolchain.toml", fill(include_str!("template/rust-toolchain.toml.in"))),
        (".gitignore", fill(include_str!("template/gitignore.in"))),
        (".github/workflows/policy.yaml", fill(include_str!("template/ci.yaml.in"))),
        ("README.md", fill(include_str!("template/README.md.in"))),
        ("cases.yaml", fill(cases)),
    ]
}

/// The release of Rust this project, and with it the SDK, is tested with.
fn toolchain() -> &'static str {
    let channel = include_str!("../../../../rust-toolchain.toml")
        .lines()
        .find_map(|line| line.strip_prefix("channel = "));
    channel.unwrap_or("stable").trim_matches('"')
}

/// `night-gpu` is the type `NightGpu`.
fn type_name(name: &str) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    let plain: String = name.split('-').map(capital).collect();
    // Names of the SDK's prelude stay what they are.
    let taken = [
        "Days",
        "Fit",
        "Lease",
        "LeasePolicy",
        "Level",
        "Needs",
        "Node",
        "NodeSelector",
        "Now",
        "Phase",
        "PlacePolicy",
        "Pod",
        "Quantity",
        "Reclaim",
        "ReclaimMode",
        "ReclaimSettings",
        "Rounding",
        "Schedule",
        "Selector",
        "Stage",
        "Verdict",
        "Window",
        "Fixture",
        "Harness",
        "LeaseAnswer",
        "PlaceAnswer",
        "JsonSchema",
        "Deserialize",
        "Option",
        "Vec",
        "String",
        "Box",
        "Result",
        "Some",
        "None",
        "Ok",
        "Err",
        "Self",
    ];
    if taken.contains(&plain.as_str()) { format!("{plain}Rule") } else { plain }
}

/// Writes into a folder that has none of the files yet: nobody's work is overwritten.
fn write(folder: &Path, files: &[(&str, String)]) -> anyhow::Result<()> {
    let taken = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if taken || folder.is_file() {
        anyhow::bail!("{} exists already; choose another name or --path", folder.display());
    }
    for (path, content) in files {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("night-gpu", true)]
    #[case("a1", true)]
    #[case("Night", false)]
    #[case("1a", false)]
    #[case("a-", false)]
    #[case("a--b", false)]
    #[case("match", false)]
    #[case("test", false)]
    #[case("../x", false)]
    #[case("", false)]
    fn names(#[case] name: &str, #[case] good: bool) {
        assert_eq!(check_name(name).is_ok(), good);
    }

    #[test]
    fn types_are_named_after_the_policy() {
        assert_eq!(type_name("night-gpu"), "NightGpu");
        assert_eq!(type_name("lease"), "LeaseRule");
        assert_eq!(type_name("v2-x"), "V2X");
    }

    #[rstest]
    #[case(Kind::Lease)]
    #[case(Kind::Place)]
    #[case(Kind::Both)]
    fn every_mark_is_filled_in(#[case] kind: Kind) {
        for (path, content) in files("night-gpu-of-the-long-name", kind, &released_sdk()) {
            let mark = content
                .split('@')
                .find(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_uppercase()));
            assert_eq!(mark, None, "{path}");
        }
    }

    #[test]
    fn whoever_names_no_sdk_is_told_which_one_it_is() {
        let told = next_steps(Path::new("night-gpu"), "night-gpu", false);
        let wanted = format!("kubeocean-policy-sdk {} of crates.io", env!("CARGO_PKG_VERSION"));
        assert!(told.contains(&wanted) && told.contains("--sdk DIR"), "{told}");
        assert!(files("night-gpu", Kind::Lease, &released_sdk())[0].1.contains(env!("CARGO_PKG_VERSION")));
        assert!(!next_steps(Path::new("night-gpu"), "night-gpu", true).contains("sdk"));
    }

    #[test]
    fn the_toolchain_is_a_release() {
        assert!(toolchain().starts_with("1."), "{}", toolchain());
    }

    #[test]
    fn an_entry_name_is_short_enough() {
        let files = files("night-gpu-of-the-long-name", Kind::Lease, "x");
        let rlp = &files.iter().find(|(path, _)| *path == "rlp.yaml").unwrap().1;
        assert!(rlp.contains("- name: night-gpu-of-the\n"), "{rlp}");
    }

    /// Without `decisions` a module that was never loaded counts as one that places.
    #[rstest]
    #[case(Kind::Lease, "    decisions: [lease]\n")]
    #[case(Kind::Place, "    decisions: [place]\n")]
    #[case(Kind::Both, "    decisions: [lease, place]\n")]
    fn the_policy_says_what_the_module_decides(#[case] kind: Kind, #[case] line: &str) {
        let files = files("night-gpu", kind, "x");
        let rlp = &files.iter().find(|(path, _)| *path == "rlp.yaml").unwrap().1;
        assert!(rlp.contains(line), "{rlp}");
    }

    #[test]
    fn a_folder_with_content_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("p");
        write(&folder, &[("a/b", "1".to_owned())]).unwrap();
        assert_eq!(fs::read_to_string(folder.join("a/b")).unwrap(), "1");
        assert!(write(&folder, &[("c", "2".to_owned())]).is_err());
        assert!(!folder.join("c").exists());
    }
}
