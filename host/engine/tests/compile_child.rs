//! Compiling in a child process (PO-906). This program is both sides: started with `compile` it is the child.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test with a main of its own")]

use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_engine::{
    BindingFacts, CompileMode, Engine, EngineConfig, EntryState, LoadCode, MAX_EVALUATORS, ModuleFetch,
    ModuleLimits, NodeFacts, PolicyHost, PolicySpec, accepted_settings, builtin, compile_child_main,
    module_digest,
};
use kubeocean_hostile_policies::guest;
use serde_json::json;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("compile") {
        return compile_child_main();
    }
    // First, while nothing has been given back that it could use.
    schema_bombs_cost_little_memory();
    let program = std::env::current_exe().unwrap();
    let compile = CompileMode::Child { program, args: vec!["compile".to_owned()] };
    let engine = Engine::start(EngineConfig { compile, threads: 1, ..EngineConfig::default() }).unwrap();
    a_module_compiled_by_the_child_decides(&engine);
    a_large_module_is_compiled(&engine);
    errors_of_the_child_keep_their_code(&engine);
    a_child_has_its_limits_before_it_reads();
    a_memory_bomb_costs_what_it_may_have(&engine);
    entries_stay_within_their_memory(&engine);
    a_compile_bomb_kills_only_the_child(&engine);
    a_compiler_that_cannot_start_is_tried_again();
    the_modules_of_one_worker_do_not_hold_up_those_of_another();
    what_was_compiled_once_is_loaded();
    println!("compile_child: 11 checks passed");
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

/// Far from what is refused for being too much: honest code that computes, most of a megabyte of it.
fn a_large_module_is_compiled(engine: &Engine) {
    let step = "(local.set 0 (i64.add (i64.mul (local.get 0) (i64.const 6364136223846793005)) (i64.load (i32.const 8))))";
    let function = format!("(func (param i64) (result i64) {} (local.get 0))\n", step.repeat(40));
    let bytes = guest().with("START", &function.repeat(900)).bytes();
    assert!(bytes.len() > 700_000, "{} bytes", bytes.len());
    let began = Instant::now();
    let module = engine.load_module(&bytes, &json!({}), ModuleLimits::default(), &[]).unwrap();
    assert_eq!(module.describe().name, "hostile");
    println!("{} KiB are compiled in {:?}", bytes.len() >> 10, began.elapsed());
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

/// Policy spec section 14: less than 64 MiB, of which a module may have 32, and they are given back.
fn a_memory_bomb_costs_what_it_may_have(engine: &Engine) {
    let page = "(i32.mul (memory.grow (i32.const 1)) (i32.const 65536))";
    let writes = format!("(loop $on (memory.fill {page} (i32.const 1) (i32.const 65536)) (br $on))");
    let bomb = guest().with("LEASE", &writes).bytes();
    let before = resident_bytes();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let limits = ModuleLimits { timeout_ms: 1000, ..ModuleLimits::default() };
    let error = engine.load_module(&bomb, &json!({}), limits, &[]).unwrap_err().to_string();
    assert!(error.starts_with("TrialFailed: Memory"), "{error}");
    let grown = peak_bytes().saturating_sub(before);
    assert!(grown > 24 << 20, "it has written to its memory, but only {grown} bytes are seen");
    assert!(grown < 64 << 20, "{grown} bytes");
    let left = resident_bytes().saturating_sub(before);
    assert!(left < 8 << 20, "{left} bytes are left");
}

/// Neither a schema that is refused nor one that is applied, with violations everywhere, takes much memory.
fn schema_bombs_cost_little_memory() {
    let again = |times: usize, keywords: serde_json::Value| {
        json!({"allOf": vec![json!({"$ref": "#/$defs/d"}); times], "$defs": {"d": keywords}}).to_string()
    };
    let names: Vec<String> = (0..4000).map(|i| format!("n{i}")).collect();
    let known: serde_json::Map<String, serde_json::Value> =
        names.iter().map(|name| (name.clone(), json!(true))).collect();
    let text = "x".repeat(60_000);
    for (what, schema, settings) in [
        ("eight million names", again(2000, json!({"required": names})), json!({})),
        ("names by another", again(2000, json!({"dependentRequired": {"a": names}})), json!({"a": 1})),
        ("copied schemas", again(2000, json!({"not": {"properties": known}})), json!({})),
        ("names within the budget", again(40, json!({"required": names})), json!({})),
        ("names told in detail", again(4, json!({"required": names})), json!({})),
        (
            "branches told in detail",
            again(8, json!({"anyOf": vec![json!({"properties": {"a": {"maxLength": 3}}}); 1]})),
            json!({"a": text}),
        ),
    ] {
        let before = resident_bytes();
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        accepted_settings(&schema, &settings).unwrap_err();
        let grown = peak_bytes().saturating_sub(before);
        println!("{what}: {} KiB", grown >> 10);
        assert!(grown < 32 << 20, "{what}: {grown} bytes");
    }
}

/// Policy spec section 16: at most 8 MiB an entry with 5,000 nodes, with 16 entries and with as many as there may be.
fn entries_stay_within_their_memory(engine: &Engine) {
    const NODES: usize = 5000;
    let (sender, changes) = std::sync::mpsc::channel();
    let on_change = Box::new(move || {
        // The test may be over.
        let _ = sender.send(());
    });
    let host = PolicyHost::new(engine, BindingFacts::default(), TimeZone::UTC, on_change);
    // Each has code of its own, the first sixteen as much as a compiler makes.
    let modules: Vec<Arc<[u8]>> = (0..MAX_EVALUATORS)
        .map(|i| match u8::try_from(i).unwrap() {
            number @ 0..16 => [builtin("cpu-percentage").unwrap(), &[0, 2, 1, number]].concat().into(),
            number => guest().cap(i64::from(number)).bytes(),
        })
        .collect();
    let policy = |number: usize| {
        let entries = (0..16).map(|i| (format!("e{i}"), Arc::clone(&modules[number * 16 + i])));
        let listed: Vec<_> = entries
            .clone()
            .map(|(name, bytes)| {
                let module = json!({"configMap": {"name": "m"}, "digest": module_digest(&bytes)});
                json!({"name": name, "module": module, "settings": {"cpuPercent": 50}})
            })
            .collect();
        let pool = json!({"key": "pool", "operator": "In", "values": [number.to_string()]});
        let spec = json!({"cluster": "c", "policies": listed,
            "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [pool]}]}});
        PolicySpec {
            name: format!("p{number}"),
            uid: format!("u{number}"),
            created_unix: 0,
            generation: 1,
            spec: serde_json::from_value(spec).unwrap(),
            modules: entries.map(|(name, bytes)| (name, ModuleFetch::Ready(bytes.into()))).collect(),
        }
    };
    // No two nodes have the same row, so each costs every entry of its policy a line of the memo.
    let nodes = |policies: usize| -> Vec<Arc<NodeFacts>> {
        let node = |i: usize| NodeFacts {
            node_name: format!("node-{i}"),
            vnode_name: format!("vnode-c1-node-{i}"),
            labels: [("pool".to_owned(), (i % policies).to_string())].into(),
            allocatable: [("cpu".to_owned(), 4000 + i64::try_from(i).unwrap())].into(),
            created_unix: i64::try_from(i).unwrap(),
            ..NodeFacts::default()
        };
        (0..NODES).map(|i| Arc::new(node(i))).collect()
    };
    let before = resident_bytes();
    for policies in [1, 4] {
        host.set_policies((0..policies).map(policy).collect());
        while !host.ready() {
            changes.recv_timeout(Duration::from_mins(2)).unwrap();
        }
        let states = host.status(Timestamp::UNIX_EPOCH).into_iter().flat_map(|policy| policy.entries);
        let active = states.filter(|entry| entry.state == EntryState::Active).count();
        assert_eq!(active, policies * 16);
        let decisions = host.decide(Timestamp::UNIX_EPOCH, &nodes(policies));
        assert!(decisions.iter().all(|decision| decision.governed_by.is_some()));
        let lines: u64 = host.metrics().iter().map(|entry| entry.counters.memo_misses).sum();
        assert!(lines >= 16 * 5000, "{lines} lines are remembered");
        let entries = u64::try_from(active).unwrap();
        let each = resident_bytes().saturating_sub(before) / entries;
        println!("compile_child: {entries} entries and {NODES} nodes cost {} KiB an entry", each >> 10);
        assert!(each <= 8 << 20, "{each} bytes an entry of {entries}");
    }
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
    // It takes more memory than a compiler may have on every machine, or on a busy one before that too much time.
    let error = result.unwrap_err();
    assert_eq!(error.code, LoadCode::CompileFailed, "{error}");
    let ends =
        if error.passing { "the compiler took longer than 30 s" } else { "the compiler exceeded its limits" };
    assert_eq!(error.message, ends);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "the parent grew by {grown} bytes");
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
    host.set_policies(vec![policy_of(&[guest().bytes()])]);
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

/// A policy with an entry for each of these modules.
fn policy_of(modules: &[Arc<[u8]>]) -> PolicySpec {
    let named = || modules.iter().enumerate().map(|(index, bytes)| (format!("x{index}"), bytes));
    let entries: Vec<_> = named()
        .map(|(name, bytes)| {
            json!({"name": name, "module": {"configMap": {"name": "m"}, "digest": module_digest(bytes)}})
        })
        .collect();
    PolicySpec {
        name: "p".into(),
        uid: "u".into(),
        created_unix: 0,
        generation: 1,
        spec: serde_json::from_value(json!({"cluster": "c", "policies": entries})).unwrap(),
        modules: named().map(|(name, bytes)| (name, ModuleFetch::Ready(Arc::clone(bytes).into()))).collect(),
    }
}

/// PO-906: one process serves the bindings of several workers, and has one compiler for what their owners bring.
fn the_modules_of_one_worker_do_not_hold_up_those_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let (gate, runs) = (folder.path().join("gate"), folder.path().join("runs"));
    // Compiles nothing, and that not before the gate opens.
    let script = format!(
        "/bin/cat >/dev/null; printf . >>'{}'; while [ ! -e '{}' ]; do /bin/sleep 0.01; done; printf '\\003no'",
        runs.display(),
        gate.display()
    );
    let compile = CompileMode::Child { program: "/bin/sh".into(), args: vec!["-c".to_owned(), script] };
    let engine = Engine::start(EngineConfig { compile, threads: 1, ..EngineConfig::default() }).unwrap();
    let (sender, ends) = std::sync::mpsc::channel();
    let host = |name: &'static str| {
        let sender = sender.clone();
        let on_change = Box::new(move || {
            // The test may be over.
            let _ = sender.send(name);
        });
        PolicyHost::new(&engine, BindingFacts::default(), TimeZone::UTC, on_change)
    };
    let module = |index| guest().with("START", &format!("(func (result i32) (i32.const {index}))")).bytes();
    let modules = |indices: std::ops::Range<i32>| vec![policy_of(&indices.map(module).collect::<Vec<_>>())];
    let ended = || ends.recv_timeout(Duration::from_mins(1)).expect("a load ends");

    let (greedy, other, modest) = (host("greedy"), host("other"), host("modest"));
    greedy.set_policies(modules(0..3));
    other.set_policies(modules(10..13));
    modest.set_policies(modules(20..21));
    std::fs::write(&gate, "").unwrap();
    let order: Vec<&str> = (0..7).map(|_| ended()).collect();
    assert_eq!(order, ["greedy", "other", "modest", "greedy", "other", "greedy", "other"]);

    // The built-in ones come from this process where there is no compiler; none of them is under way any more.
    for name in ["cpu-percentage", "time-windows", "node-labels"] {
        let bytes: Arc<[u8]> = builtin(name).unwrap().into();
        engine.load_module(&bytes, &json!({}), ModuleLimits::default(), &[]).unwrap();
    }
    let runs = || std::fs::read(&runs).unwrap().len();
    // What needs no compiler waits for none: this one is known to be no policy.
    std::fs::remove_file(&gate).unwrap();
    let before = runs();
    modest.set_policies(vec![policy_of(&[module(21), module(0)])]);
    assert_eq!(ended(), "modest");
    let states: Vec<_> = modest.status(Timestamp::UNIX_EPOCH).remove(0).entries;
    let states: Vec<_> = states.iter().map(|entry| entry.state).collect();
    assert_eq!(states, [EntryState::Loading, EntryState::Invalid]);

    // Nobody compiles for a policy that is gone, or for one as it was before it was edited.
    greedy.set_policies(modules(30..34));
    greedy.set_policies(modules(40..41));
    other.set_policies(modules(50..54));
    other.set_policies(vec![]);
    std::fs::write(&gate, "").unwrap();
    assert_eq!([ended(), ended()], ["modest", "greedy"]);
    assert_eq!(runs() - before, 2, "one of modest's, and the last of greedy's");
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

/// Most that was resident since `clear_refs` was written.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
