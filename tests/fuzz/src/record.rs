//! Lines that `kubeocean policy replay` is given: read, written again, and asked of a module (PO-1007).

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use kubeocean_engine::{Module, ModuleLimits, Recorded, module_digest};
use serde_json::Value;

use crate::{
    Target,
    module::engine,
    seeds::{frozen, is_without_fractions},
};

pub(crate) const TARGET: Target = Target {
    name: "record",
    run,
    prepare: || assert!(!modules().is_empty()),
    seeds,
    max_bytes: 4 << 10,
    max_seconds: 5,
    max_mebibytes: 2048,
    mutants: 1000,
};

/// The modules the frozen records are of, with the settings recorded there.
fn modules() -> &'static BTreeMap<String, Module> {
    static MODULES: OnceLock<BTreeMap<String, Module>> = OnceLock::new();
    MODULES.get_or_init(|| {
        let bytes: BTreeMap<String, Arc<[u8]>> =
            frozen(".wasm").into_iter().map(|bytes| (module_digest(&bytes), bytes.into())).collect();
        let mut modules = BTreeMap::new();
        for line in seeds() {
            let record: Value = serde_json::from_slice(&line).unwrap();
            let digest = record["digest"].as_str().unwrap();
            if !modules.contains_key(digest) {
                let settings = serde_json::from_str(record["settings"].as_str().unwrap()).unwrap();
                let limits = ModuleLimits { timeout_ms: 1000, ..ModuleLimits::default() };
                let module = engine().load_module(&bytes[digest], &settings, limits, &[]).unwrap();
                modules.insert(digest.to_owned(), module);
            }
        }
        modules
    })
}

fn run(bytes: &[u8]) {
    let Ok(line) = std::str::from_utf8(bytes) else { return };
    let Ok(recorded) = Recorded::from_json(line) else { return };
    let written = serde_json::to_string(&recorded).unwrap();
    let again = Recorded::from_json(&written).unwrap_or_else(|error| panic!("{error}: {written}"));
    if serde_json::from_str(&written).is_ok_and(|value: Value| is_without_fractions(&value)) {
        assert_eq!(again, recorded);
    }
    // Whether the module answers, and what, is its own business.
    match &recorded {
        Recorded::Lease(record) => drop(module(&record.digest).replay(record)),
        Recorded::Place(record) => drop(module(&record.digest).replay_place(record)),
    }
}

/// A damaged digest is no reason to ask nobody.
fn module(digest: &str) -> &'static Module {
    modules().get(digest).or_else(|| modules().values().next()).unwrap()
}

fn seeds() -> Vec<Vec<u8>> {
    let lines = frozen(".jsonl");
    lines
        .iter()
        .flat_map(|lines| lines.split(|byte| *byte == b'\n'))
        .filter(|line| !line.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}
