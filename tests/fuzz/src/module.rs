//! Bytes that a policy names as its module: every step of loading (PO-703), and decisions where it loads.

use std::sync::{Arc, OnceLock};

use jiff::{Timestamp, tz::TimeZone};
use kubeocean_engine::{
    Engine, EngineConfig, LoadCode, LoadError, ModuleLimits, NodeFacts, finished_component,
};
use kubeocean_hostile_policies::{guest, place_guest};
use serde_json::json;

use crate::{Target, seeds::frozen};

pub(crate) const TARGET: Target = Target {
    name: "module",
    run,
    prepare: || (),
    seeds,
    max_bytes: 12 << 10,
    max_seconds: 20,
    max_mebibytes: 2048,
    mutants: 60,
};

/// The engine of all targets: as a Syncer's, but modules are compiled in this process, where coverage is seen.
pub(crate) fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::start(EngineConfig { threads: 1, ..EngineConfig::default() }).unwrap())
}

/// A loop ends soon, so that other inputs get their turn; whether an answer comes in time is no finding here.
pub(crate) const LIMITS: ModuleLimits = ModuleLimits { timeout_ms: 50, memory_mib: 8 };

pub(crate) fn node() -> NodeFacts {
    NodeFacts {
        node_name: "a".to_owned(),
        vnode_name: "vnode-a".to_owned(),
        allocatable: [("cpu".to_owned(), 4000)].into(),
        ..NodeFacts::default()
    }
}

fn run(bytes: &[u8]) {
    use LoadCode::{
        CompileFailed, DescribeFailed, NotAPolicy, NotPure, SchemaInvalid, SettingsInvalid, SettingsRejected,
        TrialFailed, UnknownFact, WrongWorld,
    };
    match finished_component(bytes) {
        Ok(finished) => assert!(finished_component(&finished).unwrap() == finished, "finished is finished"),
        Err(error) => named(&error, &[NotAPolicy, WrongWorld]),
    }
    match engine().load_module(&Arc::from(bytes), &json!({}), LIMITS, &[]) {
        Ok(module) => {
            // It decided synthetic nodes twice; what it says about another one is its own business.
            let _ = module.lease(Timestamp::UNIX_EPOCH, &TimeZone::UTC, &[node()]);
        }
        Err(error) => named(
            &error,
            &[
                NotAPolicy,
                WrongWorld,
                CompileFailed,
                DescribeFailed,
                SchemaInvalid,
                SettingsInvalid,
                SettingsRejected,
                UnknownFact,
                TrialFailed,
                NotPure,
            ],
        ),
    }
}

/// A refusal names one of these steps, in one line of bounded length.
pub(crate) fn named(error: &LoadError, steps: &[LoadCode]) {
    assert!(steps.contains(&error.code), "{error}");
    assert!(error.message.len() <= 1024 && !error.message.contains('\n'), "{error}");
}

/// Small modules: what a compiler makes has as many kinds of sections and a hundred times the bytes.
fn seeds() -> Vec<Vec<u8>> {
    let hostile = [
        guest(),
        guest().with("LEASE", "(call $cap_all (local.get $args) (i64.const 1234))"),
        guest().with("LEASE", "(call $forever)"),
        guest().with("LEASE", "(call $grow_forever)"),
        guest().with("LEASE", "(drop (call $deep (i32.const 0)))"),
        guest().with("LEASE", "(call $flood)"),
        guest().with("LEASE", "(i32.store (i32.const 280) (i32.const 100000000))"),
        guest().with("DESCRIBE", "(i32.store (i32.const 36) (i32.const 10485760))"),
        guest().with("DESCRIBE", "(i32.store8 (i32.const 1048) (i32.const 40))"),
        guest().with("NEEDS", "(i32.store8 (i32.const 1088) (i32.const 120))"),
        guest().with("CREATE", "(unreachable)"),
        guest().with("START", "(start $forever)"),
        guest().with("MEMORY", "(memory (export \"memory\") 65536)"),
        guest().with("IMPORTS", "(import \"env\" \"now\" (func (result i64)))"),
        place_guest('a'),
    ];
    let mut all = frozen("by-hand.wasm");
    all.push(guest().core());
    for core in hostile.map(|guest| guest.bytes()) {
        all.extend(finished_component(&core).ok());
        all.push(core.to_vec());
    }
    all
}
