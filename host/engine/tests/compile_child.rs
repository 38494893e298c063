//! Compiling in a child process (PO-906). This program is both sides: started with `compile` it is the child.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test with a main of its own")]

use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_engine::{
    BindingFacts, CompileMode, Engine, EngineConfig, EntryState, LoadCode, ModuleFetch, ModuleLimits,
    NodeFacts, PolicyHost, PolicySpec, builtin, compile_child_main, module_digest,
};
use kubeocean_hostile_policies::guest;
use serde_json::json;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("compile") {
        return compile_child_main();
    }
    let program = std::env::current_exe().unwrap();
    let compile = CompileMode::Child { program, args: vec!["compile".to_owned()] };
    let engine = Engine::start(EngineConfig { compile, threads: 1, ..EngineConfig::default() }).unwrap();
    a_module_compiled_by_the_child_decides(&engine);
    errors_of_the_child_keep_their_code(&engine);
    a_child_has_its_limits_before_it_reads();
    a_compile_bomb_kills_only_the_child(&engine);
    a_compiler_that_cannot_start_is_tried_again();
    what_was_compiled_once_is_loaded();
    println!("compile_child: 6 checks passed");
    ExitCode::SUCCESS
}

fn a_module_compiled_by_the_child_decides(engine: &Engine) {
    let bytes: Arc<[u8]> = builtin("cpu-percentage").unwrap().into();
    let module =
        engine.load_module(&bytes, &json!({"cpuPercent": 50}), ModuleLimits::default(), &[]).unwrap();
    let node = NodeFacts { allocatable: [("cpu".to_owned(), 4000)].into(), ..NodeFacts::default() };
    let answer = module.lease(Timestamp::UNIX_EPOCH, &TimeZone::UTC, &[node]).unwrap().remove(0);
    assert_eq!(answer.caps["cpu"], 2000);
    let plain = guest().bytes();
    let plain = engine.load_module(&plain, &json!({}), ModuleLimits::default(), &[]).unwrap();
    assert_eq!(plain.describe().name, "hostile");
}

fn errors_of_the_child_keep_their_code(engine: &Engine) {
    let load =
        |bytes: &Arc<[u8]>| engine.load_module(bytes, &json!({}), ModuleLimits::default(), &[]).unwrap_err();
    assert_eq!(load(&Arc::from(*b"no module at all")).code, LoadCode::NotAPolicy);
    let env = guest().with("IMPORTS", "(import \"env\" \"now\" (func (result i64)))").bytes();
    assert_eq!(load(&env).code, LoadCode::WrongWorld);
    let component = builtin("cpu-percentage").unwrap();
    assert_eq!(load(&component[..component.len() / 2].into()).code, LoadCode::CompileFailed);
}

/// Twenty seconds of CPU and 1 GiB of addresses, soft and hard.
fn a_child_has_its_limits_before_it_reads() {
    let program = std::env::current_exe().unwrap();
    let mut child =
        Command::new(program).arg("compile").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let limits = format!("/proc/{}/limits", child.id());
    let deadline = Instant::now() + Duration::from_secs(30);
    let limited = |text: &str| {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
        };
        value("Max cpu time") == ["20"; 2] && value("Max address space") == ["1073741824"; 2]
    };
    // It waits for a module all the while.
    while !limited(&std::fs::read_to_string(&limits).unwrap()) {
        assert!(Instant::now() < deadline, "{}", std::fs::read_to_string(&limits).unwrap());
        std::thread::yield_now();
    }
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// One function of nested branch tables, several MiB of it.
fn a_compile_bomb_kills_only_the_child(engine: &Engine) {
    const DEPTH: usize = 60;
    let targets = (0..60_000).map(|i| (i % DEPTH).to_string()).collect::<Vec<_>>().join(" ");
    let table = format!("(if (local.get 0) (then (br_table {targets} (local.get 0))))");
    let tables = table.repeat(100);
    let nested = format!("{}{tables}{}", "(block ".repeat(DEPTH), ")".repeat(DEPTH));
    let bomb = guest().with("START", &format!("(func (export \"bomb\") (param i32) {nested})")).bytes();
    assert!(bomb.len() > 5 << 20, "{}", bomb.len());
    let before = resident_bytes();
    let result = engine.load_module(&bomb, &json!({}), ModuleLimits::default(), &[]);
    // A machine that is fast enough compiles it within the limits; then it is a module like any other.
    if let Err(error) = result {
        assert_eq!(error.code, LoadCode::CompileFailed, "{error}");
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 256 << 20, "the parent grew by {grown} bytes");
}

/// PO-1502: what the machine hindered is not the module's fault and passes without an edit of the policy.
fn a_compiler_that_cannot_start_is_tried_again() {
    let folder = std::env::temp_dir().join(format!("kubeocean-compile-child-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let program = folder.join("compiler");
    let compile = CompileMode::Child { program: program.clone(), args: vec!["compile".to_owned()] };
    let engine = Engine::start(EngineConfig { compile, threads: 1, ..EngineConfig::default() }).unwrap();
    let (sender, changes) = std::sync::mpsc::channel();
    let on_change = Box::new(move || {
        // The test may be over.
        let _ = sender.send(());
    });
    let host = PolicyHost::new(&engine, BindingFacts::default(), TimeZone::UTC, on_change);
    let bytes = guest().bytes();
    let entry = json!({"name": "x", "module": {"configMap": {"name": "m"}, "digest": module_digest(&bytes)}});
    host.set_policies(vec![PolicySpec {
        name: "p".into(),
        uid: "u".into(),
        created_unix: 0,
        generation: 1,
        spec: serde_json::from_value(json!({"cluster": "c", "policies": [entry]})).unwrap(),
        modules: [("x".to_owned(), ModuleFetch::Ready(bytes.into()))].into(),
    }]);
    let entry = || host.status(Timestamp::UNIX_EPOCH).remove(0).entries.remove(0);
    let wait = || changes.recv_timeout(Duration::from_mins(1)).unwrap();
    wait();
    let failing = entry();
    assert_eq!(failing.state, EntryState::Loading, "{failing:?}");
    assert!(failing.failure.unwrap().message.starts_with("start the compiler process"));
    assert!(!host.ready(), "the entry is waited for");
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &program).unwrap();
    while entry().state == EntryState::Loading {
        wait();
    }
    let healed = entry();
    assert_eq!((healed.state, healed.failure), (EntryState::Active, None));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// PO-905: a process compiles nothing that one before it compiled, and nothing it cannot trust is loaded.
fn what_was_compiled_once_is_loaded() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("code");
    let module = guest().bytes();
    let run = |program: std::path::PathBuf| {
        let compile = CompileMode::Child { program, args: vec!["compile".to_owned()] };
        let code_folders = vec![folder.clone()];
        let config = EngineConfig { compile, code_folders, threads: 1, ..EngineConfig::default() };
        let engine = Engine::start(config).unwrap();
        let mut names = Vec::new();
        let modules =
            ["cpu-percentage", "time-windows", "node-labels"].map(|name| builtin(name).unwrap().into());
        for bytes in modules.iter().chain([&module]) {
            let settings = json!({});
            let loaded = engine.load_module(bytes, &settings, ModuleLimits::default(), &[]);
            names.push(loaded.map(|module| module.describe().name).map_err(|error| error.code));
        }
        (names, engine.numbers().compile_misses)
    };
    let files = || {
        let mut files: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    };
    let program = std::env::current_exe().unwrap();
    let first = run(program.clone());
    assert_eq!((first.1, files().len()), (4, 4));
    // Nothing can be compiled, and nothing has to be.
    let second = run(home.path().join("no-compiler"));
    assert_eq!(second, (first.0.clone(), 0));
    // What others could have written, and what is not code, is made anew.
    let (open, odd) = (files()[0].clone(), files()[1].clone());
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::write(&odd, b"no code at all").unwrap();
    assert_eq!(run(program.clone()), (first.0.clone(), 2));
    assert_eq!(run(program), (first.0, 0), "and kept again");
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
