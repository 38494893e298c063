//! Policies of a file with their modules, in a host of the Syncer's engine and without any cluster.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use clap::Args as ClapArgs;
use jiff::{Timestamp, tz::TimeZone};
use kubeocean_api::policy::{FileModule, ModuleRef, PolicyEntry};
use kubeocean_engine::{BindingFacts, Engine, EntryState, ModuleFetch, PolicyHost, PolicySpec};
use serde::Serialize;

use super::{
    module,
    policy_file::{FilePolicy, policies},
};
use crate::{failure::Failure, registry::Login};

/// How long modules may take to load.
const LOADING: Duration = Duration::from_mins(1);

/// Where the modules of a file's entries are.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct ModuleFlags {
    /// Module of an entry, instead of where the policy says: a path, builtin:NAME, or oci://IMAGE. ENTRY may be
    /// POLICY/ENTRY. May be given several times
    #[arg(long = "module", value_name = "ENTRY=MODULE", value_parser = entry_module)]
    modules: Vec<(String, String)>,
    #[command(flatten)]
    pub(super) login: Login,
}

fn entry_module(text: &str) -> Result<(String, String), String> {
    let (entry, module) = text
        .split_once('=')
        .filter(|(entry, module)| !entry.is_empty() && !module.is_empty())
        .ok_or_else(|| format!("{text:?} is not ENTRY=MODULE, for example night-gpu=night_gpu.wasm"))?;
    Ok((entry.to_owned(), module.to_owned()))
}

impl ModuleFlags {
    /// Modules by entry, as the flags would name them.
    pub(super) fn new(modules: BTreeMap<String, String>, login: Login) -> Self {
        Self { modules: modules.into_iter().collect(), login }
    }

    /// The policies of a file with the bytes of their modules. `file: {path}` is looked for beside the file.
    pub(super) fn read(&self, file: &Path) -> Result<Vec<PolicySpec>, Failure> {
        let known = known(file)?;
        self.check_names(&known)?;
        self.with_modules_of(known, file)
    }

    /// The same, for one of several files: a flag may be for an entry of another.
    pub(super) fn read_what_fits(&self, file: &Path) -> Result<Vec<PolicySpec>, Failure> {
        self.with_modules_of(known(file)?, file)
    }

    /// A flag for an entry that is not there is a mistake.
    fn check_names(&self, policies: &[FilePolicy]) -> Result<(), Failure> {
        let names: Vec<String> = policies
            .iter()
            .flat_map(|policy| {
                policy.spec.policies.iter().map(|entry| format!("{}/{}", policy.name, entry.name))
            })
            .collect();
        let fits = |name: &str| names.iter().any(|full| full == name || full.ends_with(&format!("/{name}")));
        match self.modules.iter().find(|(name, _)| !fits(name)) {
            None => Ok(()),
            Some((name, _)) => Err(Failure::unusable(format!(
                "--module {name}=...: the file has no such entry, it has {}",
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            ))),
        }
    }

    fn with_modules_of(&self, known: Vec<FilePolicy>, file: &Path) -> Result<Vec<PolicySpec>, Failure> {
        let folder = file.parent().map(Path::to_path_buf).unwrap_or_default();
        known.into_iter().zip(0..).map(|(policy, order)| self.with_modules(policy, order, &folder)).collect()
    }

    /// `order` stands for the creation time: the first policy of a file is the oldest.
    fn with_modules(&self, policy: FilePolicy, order: i64, folder: &Path) -> Result<PolicySpec, Failure> {
        let (mut policy, mut modules) = (policy, BTreeMap::new());
        for entry in &mut policy.spec.policies {
            let full = format!("{}/{}", policy.name, entry.name);
            let given = self.modules.iter().rev().find(|(name, _)| *name == full || *name == entry.name);
            let wanted = match (given, place(entry, folder)) {
                (Some((_, module)), _) => {
                    // Another place, so what the policy says of the old one does not hold.
                    entry.module = from_file(module);
                    module.clone()
                }
                (None, Place::Module(module)) => module,
                (None, Place::Builtin) => continue,
                (None, Place::Elsewhere(what)) => {
                    return Err(Failure::unusable(format!(
                        "entry {full}: its module is in {what}; give it with --module {}=FILE",
                        entry.name
                    )));
                }
            };
            let bytes = module::read(&wanted, &self.login)?;
            modules.insert(entry.name.clone(), ModuleFetch::Ready(bytes.into()));
        }
        Ok(PolicySpec {
            uid: policy.name.clone(),
            name: policy.name,
            created_unix: order,
            generation: 1,
            spec: policy.spec,
            modules,
        })
    }
}

fn known(file: &Path) -> Result<Vec<FilePolicy>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::unusable(format!("cannot read {}: {error}", file.display())))?;
    policies(&text).map_err(|why| Failure::unusable(format!("{}: {why}", file.display())))
}

/// A module as of a file, which needs no digest.
pub(super) fn from_file(path: &str) -> ModuleRef {
    ModuleRef { file: Some(FileModule { path: path.to_owned() }), ..ModuleRef::default() }
}

/// Where an entry says its module is.
enum Place {
    Builtin,
    /// As a command line names it.
    Module(String),
    Elsewhere(&'static str),
}

fn place(entry: &PolicyEntry, folder: &Path) -> Place {
    let module = &entry.module;
    if module.builtin.is_some() {
        return Place::Builtin;
    }
    if let Some(file) = &module.file {
        let path: PathBuf = folder.join(&file.path);
        return Place::Module(path.display().to_string());
    }
    match (&module.oci, &module.config_map) {
        (Some(oci), _) => Place::Module(format!("oci://{}", oci.image)),
        (None, Some(_)) => Place::Elsewhere("a ConfigMap"),
        (None, None) => Place::Elsewhere("no place the file names"),
    }
}

/// An entry that does not run, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct NotRunning {
    pub(super) policy: String,
    pub(super) entry: String,
    pub(super) error: String,
}

impl std::fmt::Display for NotRunning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = [self.policy.as_str(), self.entry.as_str()].into_iter().filter(|part| !part.is_empty());
        write!(f, "{} does not run: {}", name.collect::<Vec<_>>().join("/"), self.error)
    }
}

/// A host, and when something in it has loaded.
#[derive(Debug)]
pub(super) struct LocalHost {
    pub(super) host: PolicyHost,
    loaded: mpsc::Receiver<()>,
}

impl LocalHost {
    /// A host without policies.
    pub(super) fn new(engine: &Engine, binding: BindingFacts, zone: TimeZone) -> Self {
        let (tell, loaded) = mpsc::channel();
        let changed = Box::new(move || {
            // Nobody waits any more.
            let _ = tell.send(());
        });
        Self { host: PolicyHost::new(engine, binding, zone, changed), loaded }
    }

    /// Until every entry, also one that only reports, runs or has failed.
    pub(super) fn wait_loaded(&self) {
        let started = Instant::now();
        let settled = || {
            let statuses = self.host.status(Timestamp::now());
            let mut entries = statuses.iter().flat_map(|status| &status.entries);
            self.host.ready()
                && entries.all(|entry| entry.state != EntryState::Loading || entry.last_error.is_some())
        };
        while !settled() {
            let left = LOADING.saturating_sub(started.elapsed());
            if left.is_zero() || self.loaded.recv_timeout(left).is_err() {
                return;
            }
        }
    }

    /// Takes policies and waits for their modules.
    pub(super) fn set(&self, policies: Vec<PolicySpec>) {
        self.host.set_policies(policies);
        self.wait_loaded();
    }

    /// Entries that do not run, and policies that are invalid.
    pub(super) fn not_running(&self, at: Timestamp) -> Vec<NotRunning> {
        let mut all = Vec::new();
        for status in self.host.status(at) {
            if let Err(error) = &status.valid {
                all.push(NotRunning {
                    policy: status.name.clone(),
                    entry: String::new(),
                    error: format!("PolicyInvalid: {error}"),
                });
            }
            for entry in status.entries.iter().filter(|entry| entry.state != EntryState::Active) {
                let error = entry.last_error.as_ref().map(|(text, _)| text.clone());
                all.push(NotRunning {
                    policy: status.name.clone(),
                    entry: entry.name.clone(),
                    error: error.unwrap_or_else(|| entry.state.as_str().to_owned()),
                });
            }
        }
        all
    }

    /// Every entry has to run, or there is nothing to be learned from decisions.
    pub(super) fn all_run(&self, at: Timestamp) -> Result<(), Failure> {
        match self.not_running(at).as_slice() {
            [] => Ok(()),
            missing => {
                let lines: Vec<String> = missing.iter().map(ToString::to_string).collect();
                Err(Failure::unusable(lines.join("; ")))
            }
        }
    }
}

/// The zone of decisions that are shown: of the policies, if they agree.
pub(super) fn zone_of(policies: &[PolicySpec]) -> TimeZone {
    let mut zones = policies.iter().map(|policy| policy.spec.time_zone.as_deref());
    let first = zones.next().flatten();
    let same = zones.all(|zone| zone == first);
    first.filter(|_| same).and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC)
}

/// A policy of one entry that runs `module`.
pub(super) fn one_entry(
    module: &Arc<[u8]>,
    entry: PolicyEntry,
    time_zone: Option<String>,
    policy: &str,
) -> PolicySpec {
    let modules = BTreeMap::from([(entry.name.clone(), ModuleFetch::Ready(Arc::clone(module).into()))]);
    let spec = kubeocean_api::ResourceLeasingPolicySpec {
        time_zone,
        policies: vec![entry],
        ..kubeocean_api::ResourceLeasingPolicySpec::default()
    };
    PolicySpec {
        name: policy.to_owned(),
        uid: policy.to_owned(),
        created_unix: 0,
        generation: 1,
        spec,
        modules,
    }
}
