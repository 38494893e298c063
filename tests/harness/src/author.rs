//! Policy projects built outside the workspace, as their authors do.
//!
//! What was compiled is kept in the user's cache, so that only the first time is slow.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// Target of policy modules.
const TARGET: &str = "wasm32-unknown-unknown";
/// How a build script says that a tool is missing.
const MISSING: i32 = 77;

/// A copy of a policy project in a folder that no workspace contains.
#[derive(Debug)]
pub struct PolicyProject {
    name: String,
    folder: PathBuf,
    /// Where cargo builds, if not in the user's cache.
    target: Option<PathBuf>,
    /// Removed with the value when the folder is ours.
    _temporary: Option<tempfile::TempDir>,
}

/// The root of this repository.
///
/// # Errors
/// It was moved since this was compiled.
pub fn repository() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().context("finding the repository")
}

impl PolicyProject {
    /// A copy of `examples/policies/<name>`.
    ///
    /// # Errors
    /// There is none, or it no longer names the SDK by path.
    pub fn example(name: &str) -> Result<Self> {
        let root = repository()?;
        let example = root.join("examples/policies").join(name);
        let temporary = tempfile::tempdir().context("making a folder")?;
        let folder = temporary.path().to_owned();
        let manifest = std::fs::read_to_string(example.join("Cargo.toml"))
            .with_context(|| format!("there is no example {name}"))?;
        let sdk = root.join("policy-sdk");
        let sdk = sdk.to_str().context("the path of the repository is not UTF-8")?;
        let with_path = manifest.replace("../../../policy-sdk", sdk);
        if with_path == manifest {
            bail!("the example {name} does not name the SDK by path");
        }
        std::fs::write(folder.join("Cargo.toml"), with_path)?;
        std::fs::create_dir(folder.join("src"))?;
        std::fs::copy(example.join("Cargo.lock"), folder.join("Cargo.lock"))
            .with_context(|| format!("the example {name} has no Cargo.lock"))?;
        for file in std::fs::read_dir(example.join("src"))? {
            let file = file?;
            std::fs::copy(file.path(), folder.join("src").join(file.file_name()))?;
        }
        // The workspace's toolchain has the target; a project elsewhere would get the user's default one.
        std::fs::copy(root.join("rust-toolchain.toml"), folder.join("rust-toolchain.toml"))?;
        Ok(Self { name: name.to_owned(), folder, target: None, _temporary: Some(temporary) })
    }

    /// A project that lies in `folder`.
    pub fn in_folder(name: &str, folder: &Path) -> Self {
        Self { name: name.to_owned(), folder: folder.to_owned(), target: None, _temporary: None }
    }

    /// Builds in this folder, where nothing of other runs lies.
    #[must_use]
    pub fn in_target(mut self, folder: &Path) -> Self {
        self.target = Some(folder.to_owned());
        self
    }

    /// Runs the project's own tests.
    ///
    /// # Errors
    /// They fail.
    pub async fn test(&self) -> Result<String> {
        self.cargo(&["test", "--quiet"]).await
    }

    /// Builds the module.
    ///
    /// # Errors
    /// It does not compile.
    pub async fn build(&self) -> Result<PathBuf> {
        let started = Instant::now();
        self.cargo(&["build", "--quiet", "--target", TARGET, "--release"]).await?;
        println!("{} built in {:?}", self.name, started.elapsed());
        let file = format!("{}.wasm", self.name.replace('-', "_"));
        Ok(self.target()?.join(TARGET).join("release").join(file))
    }

    fn target(&self) -> Result<PathBuf> {
        self.target.clone().map_or_else(cache_folder, Ok)
    }

    /// Runs cargo in the project and returns what it printed.
    ///
    /// # Errors
    /// It fails; the message has what it printed.
    pub async fn cargo(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("cargo");
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let registry = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];
            if (text.starts_with("CARGO") || text.starts_with("RUST"))
                && !registry.iter().any(|kept| text.starts_with(kept))
                && text != "RUSTUP_HOME"
            {
                command.env_remove(&name);
            }
        }
        let output = command
            .args(args)
            .env("CARGO_TARGET_DIR", self.target()?)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("running cargo")?;
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            bail!("cargo {} of {} failed:\n{out}{error}", args.join(" "), self.name);
        }
        Ok(out.into_owned())
    }
}

/// A `Cargo.lock` for a project of `kubeocean policy new`: the versions of dependencies that the examples are tested with, so
/// that a test asks no registry.
///
/// # Errors
/// The example it is taken from changed.
pub fn lock_of_new(name: &str) -> Result<String> {
    let example = repository()?.join("examples/policies/night-gpu/Cargo.lock");
    let lock = std::fs::read_to_string(&example).with_context(|| format!("reading {}", example.display()))?;
    let own = "name = \"night-gpu\"\nversion = \"1.2.0\"";
    if !lock.contains(own) {
        bail!("{} has another version", example.display());
    }
    Ok(lock.replace(own, &format!("name = \"{name}\"\nversion = \"0.1.0\"")))
}

/// The module of `examples/policies/<name>`.
///
/// # Errors
/// It does not compile.
pub async fn example_module(name: &str) -> Result<Vec<u8>> {
    let path = PolicyProject::example(name)?.build().await?;
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// The module of `examples/policies/<name>`, which has a build script instead of a Cargo project. `None`, and a line that says
/// why, where a tool of its language is missing; with `KUBEOCEAN_OTHER_LANGUAGES=required` that is an error.
///
/// # Errors
/// It does not compile.
pub async fn scripted_module(name: &str) -> Result<Option<Vec<u8>>> {
    let folder = tempfile::tempdir().context("making a folder")?;
    let script = repository()?.join("examples/policies").join(name).join("build.sh");
    let mut command = Command::new(script);
    command.arg(folder.path()).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.context("running the build script")?;
    let said = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(0) => {
            let module = folder.path().join(format!("{}.wasm", name.replace('-', "_")));
            let bytes = std::fs::read(&module).with_context(|| format!("reading {}", module.display()))?;
            Ok(Some(bytes))
        }
        Some(MISSING)
            if std::env::var_os("KUBEOCEAN_OTHER_LANGUAGES").is_none_or(|set| set != "required") =>
        {
            println!("skipped: {}", said.trim());
            Ok(None)
        }
        _ => bail!("{name} is not built:\n{said}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Where compiled policies of tests are kept.
///
/// # Errors
/// There is no home folder.
pub fn cache_folder() -> Result<PathBuf> {
    let set = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = match set {
        Some(cache) => cache,
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(cache.join("kubeocean/example-policies"))
}
