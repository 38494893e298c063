//! Records of the Syncer's ring buffer (PO-1007): JSON lines, and the modules that made them.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    path::Path,
    sync::Arc,
};

use kubeocean_engine::{
    BUILTINS, CallFailed, Engine, FaultKind, Module, ModuleLimits, PlaceRowAnswer, Recorded, ReplayError,
    RowAnswer, module_digest,
};
use serde_json::Value;

use super::module;
use crate::{failure::Failure, registry::Login};

/// Attempts at a call that took too long: the limit is of real time, and the machine may be busy.
const ATTEMPTS: usize = 5;
/// The widest limits a policy may set: with which ones an answer was given is not recorded, and it was given within them.
const LIMITS: ModuleLimits = ModuleLimits { timeout_ms: 1000, memory_mib: 128 };

/// A record and where it is.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) number: usize,
    pub(super) record: Recorded,
}

impl Line {
    /// `<policy>/<entry>` that answered, its module and its settings.
    pub(super) fn who(&self) -> (&str, &str, &str) {
        match &self.record {
            Recorded::Lease(record) => (&record.entry, &record.digest, &record.settings),
            Recorded::Place(record) => (&record.entry, &record.digest, &record.settings),
        }
    }
}

/// All records of a file; `-` is standard input.
pub(super) fn read(path: &Path) -> Result<Vec<Line>, Failure> {
    let cannot =
        |error: &std::io::Error| Failure::unusable(format!("cannot read {}: {error}", path.display()));
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().lock().read_to_string(&mut text).map_err(|error| cannot(&error))?;
    } else {
        text = std::fs::read_to_string(path).map_err(|error| cannot(&error))?;
    }
    parse(&text).map_err(|why| Failure::unusable(format!("{}: {why}", path.display())))
}

fn parse(text: &str) -> Result<Vec<Line>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let records = lines
        .map(|(index, line)| {
            let number = index + 1;
            let record = Recorded::from_json(line)
                .map_err(|error| format!("line {number} is no record of a decision: {error}"))?;
            Ok(Line { number, record })
        })
        .collect::<Result<Vec<_>, String>>()?;
    if records.is_empty() { Err("there are no records in it".to_owned()) } else { Ok(records) }
}

/// Modules by digest, and evaluators by module and settings.
#[derive(Debug)]
pub(super) struct Modules<'e> {
    engine: &'e Engine,
    bytes: BTreeMap<String, Arc<[u8]>>,
    loaded: HashMap<(String, String), Module>,
}

impl<'e> Modules<'e> {
    /// The built-in modules and those a command line names.
    pub(super) fn new(engine: &'e Engine, named: &[String], login: &Login) -> Result<Self, Failure> {
        let mut bytes: BTreeMap<String, Arc<[u8]>> =
            BUILTINS.iter().map(|(_, bytes)| (module_digest(bytes), Arc::from(*bytes))).collect();
        for name in named {
            let module = module::read(name, login)?;
            bytes.insert(module_digest(&module), module);
        }
        Ok(Self { engine, bytes, loaded: HashMap::new() })
    }

    /// Adds a module; its digest.
    pub(super) fn add(&mut self, module: Arc<[u8]>) -> String {
        let digest = module_digest(&module);
        self.bytes.insert(digest.clone(), module);
        digest
    }

    /// The module of a digest with settings as recorded.
    pub(super) fn with(&mut self, digest: &str, settings: &str) -> Result<&Module, Failure> {
        let key = (digest.to_owned(), settings.to_owned());
        if !self.loaded.contains_key(&key) {
            let bytes = self.bytes.get(digest).ok_or_else(|| {
                Failure::unusable(format!("the module {digest} is not here; give it with --module FILE"))
            })?;
            let settings: Value = serde_json::from_str(settings)
                .map_err(|error| Failure::unusable(format!("recorded settings are no JSON: {error}")))?;
            let module = self
                .engine
                .load_module(bytes, &settings, LIMITS, &[])
                .map_err(|error| Failure::unusable(format!("{digest}: {error}")))?;
            self.loaded.insert(key.clone(), module);
        }
        self.loaded.get(&key).ok_or_else(|| Failure::unusable("a module was lost"))
    }
}

/// What a module answers otherwise than was recorded, as one line; `None`: the same. It is asked again while only time is
/// missing.
pub(super) fn differs(module: &Module, record: &Recorded) -> Option<String> {
    let again = match record {
        Recorded::Lease(record) => {
            patiently(|| module.replay(record)).map(|answer| difference(&record.answer(), &answer))
        }
        Recorded::Place(record) => {
            patiently(|| module.replay_place(record)).map(|answer| place_difference(&record.answer, &answer))
        }
    };
    again.unwrap_or_else(|error| Some(error.to_string()))
}

fn patiently<A>(ask: impl Fn() -> Result<A, ReplayError>) -> Result<A, ReplayError> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match ask() {
            Err(ReplayError::Call(CallFailed(text)))
                if left > 0 && text.starts_with(FaultKind::Timeout.as_str()) => {}
            answer => return answer,
        }
    }
}

fn difference(old: &RowAnswer, new: &RowAnswer) -> Option<String> {
    differing([
        ("verdict", json(&old.verdict), json(&new.verdict)),
        ("reclaim", json(&old.reclaim), json(&new.reclaim)),
        ("caps", json(&old.caps), json(&new.caps)),
        ("validUntil", json(&old.valid_until), json(&new.valid_until)),
        ("reason", json(&old.reason), json(&new.reason)),
    ])
}

fn place_difference(old: &PlaceRowAnswer, new: &PlaceRowAnswer) -> Option<String> {
    differing([
        ("fit", json(&old.fit), json(&new.fit)),
        ("score", json(&old.score), json(&new.score)),
        ("reason", json(&old.reason), json(&new.reason)),
    ])
}

/// The members that differ, as one line; `None`: none does.
fn differing<const N: usize>(members: [(&str, String, String); N]) -> Option<String> {
    let differ = members.into_iter().filter(|(_, old, new)| old != new);
    let parts: Vec<String> = differ.map(|(name, old, new)| format!("{name} {old} -> {new}")).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_record_is_named_by_its_line() {
        assert!(parse("").unwrap_err().contains("no records"));
        assert!(parse("\n{}\n").unwrap_err().starts_with("line 2 is no record"), "{:?}", parse("\n{}\n"));
    }
}
