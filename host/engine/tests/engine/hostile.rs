//! Modules that want to do harm, each beside a good one whose decisions must not change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kubeocean_engine::{
    Engine, EngineConfig, EngineError, EntryState, FaultKind, ModuleFetch, NodeFacts, Verdict, builtin,
    finished_component,
};
use rstest::rstest;
use serde_json::json;

use crate::support::*;
use kubeocean_hostile_policies::{Guest, digest, guest};

/// The hostile entry ignores its errors, so whatever is left is the good entry's decision.
fn beside_a_good_one(bytes: &Arc<[u8]>) -> Host {
    let host = host(vec![policy(json!({})).module("bad", bytes, json!({"onError": "Ignore"})).builtin(
        "good",
        "cpu-percentage",
        json!({"cpuPercent": 50}),
    )]);
    assert_eq!(host.state("good"), EntryState::Active);
    assert_eq!(cpu(&host.one(noon(), node("a"))), 5900);
    host
}

pub(crate) fn refused(bytes: &Arc<[u8]>, error: &str) {
    let host = beside_a_good_one(bytes);
    assert!(host.error("bad").starts_with(error), "expected {error}, got {}", host.error("bad"));
    assert_eq!(host.state("bad"), EntryState::Invalid);
}

#[test]
fn the_plain_guest_is_a_policy() {
    let host = beside_a_good_one(&guest().bytes());
    assert_eq!(host.state("bad"), EntryState::Active, "{}", host.error("bad"));
    assert_eq!(host.numbers("p/bad").counters.errors, 0);
}

/// Policy spec section 8: two memories a component, and nothing says in how many modules of it.
#[test]
fn a_second_memory_within_the_limit_is_no_harm() {
    let host = beside_a_good_one(&guest().with("START", "(memory $second 1)").bytes());
    assert_eq!(host.state("bad"), EntryState::Active, "{}", host.error("bad"));
}

#[rstest]
#[case::describe_loops(guest().with("DESCRIBE", "(call $forever)"), "DescribeFailed: Timeout")]
#[case::describe_traps(guest().with("DESCRIBE", "(unreachable)"), "DescribeFailed: Trap")]
#[case::start_loops(guest().with("START", "(start $forever)"), "DescribeFailed: Timeout")]
#[case::create_loops(guest().with("CREATE", "(call $forever)"), "SettingsRejected: Timeout")]
#[case::create_says_err(
    guest().with("CREATE", "(i32.store8 (i32.const 256) (i32.const 1)) (i32.store (i32.const 260) (i32.const 1120)) (i32.store (i32.const 264) (i32.const 7)) (return (i32.const 256))"),
    "SettingsRejected: Hostile"
)]
#[case::a_long_name(
    guest().with("DESCRIBE", "(i32.store (i32.const 20) (i32.const 129))"), "DescribeFailed: Invalid: the name has 129 bytes"
)]
#[case::a_name_of_two_lines(
    guest().with("DESCRIBE", "(i32.store8 (i32.const 1025) (i32.const 10))"),
    "DescribeFailed: Invalid: the name has control characters: \"h\\nstile\""
)]
#[case::a_version_with_an_escape(
    guest().with("DESCRIBE", "(i32.store8 (i32.const 1032) (i32.const 27))"),
    "DescribeFailed: Invalid: the version has control characters"
)]
#[case::a_long_description(
    guest().with("START", "(start $fill) (func $fill (memory.fill (i32.const 2000) (i32.const 120) (i32.const 1025)))")
        .with("DESCRIBE", "(i32.store (i32.const 32) (i32.const 2000)) (i32.store (i32.const 36) (i32.const 1025))"),
    "DescribeFailed: Invalid: the description has 1025 bytes"
)]
#[case::needs_loops(guest().with("NEEDS", "(call $forever)"), "TrialFailed: Timeout")]
#[case::needs_an_unknown_fact(guest().with("NEEDS", "(i32.store8 (i32.const 1088) (i32.const 120))"), "UnknownFact: fact \"xode.created\"")]
#[case::caps_a_resource_of_two_lines(
    guest().with("NEEDS", "(i32.store8 (i32.const 1105) (i32.const 10))"),
    "UnknownFact: needs.caps has control characters: \"c u\""
)]
#[case::schema_is_no_json(guest().with("DESCRIBE", "(i32.store8 (i32.const 1048) (i32.const 40))"), "SchemaInvalid")]
#[case::lease_loops(guest().with("LEASE", "(call $forever)"), "TrialFailed: Timeout")]
#[case::lease_traps(guest().with("LEASE", "(unreachable)"), "TrialFailed: Trap")]
#[case::recursion(guest().with("LEASE", "(drop (call $deep (i32.const 0)))"), "TrialFailed: Trap: wasm trap: call stack exhausted")]
#[case::memory_bomb(guest().with("LEASE", "(call $grow_forever)"), "TrialFailed: Memory")]
#[case::too_much_memory_at_start(
    guest().with("MEMORY", "(memory (export \"memory\") 1000)"), "DescribeFailed: Memory"
)]
#[case::four_gigabytes_at_start(guest().with("MEMORY", "(memory (export \"memory\") 65536)"), "CompileFailed")]
#[case::a_third_memory_of_a_module(guest().with("START", "(memory $second 1) (memory $third 1)"), "CompileFailed")]
#[case::two_memories_that_are_too_much_together(
    guest().with("MEMORY", "(memory (export \"memory\") 300)").with("START", "(memory $second 300)"), "DescribeFailed: Memory"
)]
#[case::a_huge_string(
    guest().with("MEMORY", "(memory (export \"memory\") 256)").with("DESCRIBE", "(i32.store (i32.const 36) (i32.const 10485760))"),
    "DescribeFailed: Output"
)]
#[case::a_huge_list_header(guest().with("LEASE", "(i32.store (i32.const 280) (i32.const 100000000))"), "TrialFailed: Trap")]
#[case::a_list_of_a_megabyte(
    guest().with("MEMORY", "(memory (export \"memory\") 256)").with("LEASE", "(i32.store (i32.const 280) (i32.const 200000))"),
    "TrialFailed: Output"
)]
#[case::wrong_row_count(guest().with("LEASE", "(i32.store (i32.const 280) (i32.const 1))"), "TrialFailed: Invalid: 1 rows")]
#[case::valid_until_in_the_past(
    guest().with("LEASE", "(i32.store8 offset=16 (i32.load (i32.const 276)) (i32.const 1)) (i64.store offset=24 (i32.load (i32.const 276)) (i64.load offset=8 (local.get $args)))"),
    "TrialFailed: Invalid: valid-until"
)]
#[case::a_negative_cap(guest().with("LEASE", "(call $cap_all (local.get $args) (i64.const -2))"), "TrialFailed: Invalid: cap -2")]
#[case::no_such_verdict(guest().with("LEASE", "(i32.store8 (i32.load (i32.const 276)) (i32.const 9))"), "TrialFailed: Trap")]
#[case::withhold_without_reason(
    guest().with("LEASE", "(i32.store8 (i32.load (i32.const 276)) (i32.const 1))"),
    "TrialFailed: Invalid: a row that does not offer"
)]
#[case::answers_by_position(
    guest().with("LEASE", "(call $cap_all (local.get $args) (i64.const 9)) (i64.store (i32.load (i32.const 284)) (i64.const 1))"),
    "NotPure"
)]
#[case::handle_flood(
    guest().with("CREATE", "(loop $again (drop (call $resource_new (i32.const 1))) (br $again))"),
    "SettingsRejected: Trap"
)]
#[case::imports_env(
    guest().with("IMPORTS", "(import \"env\" \"now\" (func (result i64)))"), "WrongWorld: import env is not allowed"
)]
#[case::imports_wasi(
    guest().with("IMPORTS", "(import \"wasi:clocks/wall-clock@0.2.0\" \"now\" (func (param i32)))"),
    "WrongWorld: import wasi:clocks/wall-clock@0.2.0 is not allowed"
)]
fn a_module_that_misbehaves_at_once_is_refused(#[case] guest: Guest, #[case] error: &str) {
    refused(&guest.bytes(), error);
}

#[test]
fn what_is_no_policy_is_refused() {
    let good = guest().bytes();
    let component = builtin("cpu-percentage").unwrap();
    let random: Vec<u8> =
        (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    refused(&Arc::from(random), "NotAPolicy");
    refused(&Arc::from(*b"\x7fELF\x02\x01\x01\0machine code"), "NotAPolicy");
    refused(&guest().core().into(), "NotAPolicy: the module does not say which world");
    refused(&good[..good.len() / 2].into(), "NotAPolicy");
    refused(&component[..component.len() / 2].into(), "CompileFailed");
    refused(&vec![0; 9 << 20].into(), "TooLarge");
    refused(&vec![0; 60 << 20].into(), "TooLarge");
}

#[rstest]
#[case::wasi(
    r#"(component (import "wasi:random/random@0.2.0" (instance (export "get-random-u64" (func (result u64))))))"#,
    "WrongWorld: import wasi:random/random@0.2.0 is not allowed"
)]
#[case::empty("(component)", "WrongWorld: export kubeocean:policy/meta is missing")]
#[case::a_later_interface(
    r#"(component (component $c) (instance $i (instantiate $c)) (export "kubeocean:policy/transform@1.1.0" (instance $i)))"#,
    "WrongWorld: export kubeocean:policy/transform@1.1.0 needs host >= 1.1"
)]
#[case::another_major(
    r#"(component (component $c) (instance $i (instantiate $c)) (export "kubeocean:policy/lease@2.0.0" (instance $i)))"#,
    "WrongWorld: export kubeocean:policy/lease@2.0.0 is not of a version"
)]
#[case::an_empty_lease(
    r#"(component
        (core module $m (func (export "f") (result i32) (i32.const 0)))
        (core instance $i (instantiate $m))
        (func $describe (result u32) (canon lift (core func $i "f")))
        (component $c (import "f" (func $f (result u32))) (export "describe" (func $f)))
        (instance $meta (instantiate $c (with "f" (func $describe))))
        (component $e)
        (instance $lease (instantiate $e))
        (export "kubeocean:policy/meta@1.0.0" (instance $meta))
        (export "kubeocean:policy/lease@1.0.0" (instance $lease)))"#,
    "WrongWorld"
)]
fn a_component_of_another_world_is_refused(#[case] text: &str, #[case] error: &str) {
    refused(&wat::parse_str(text).unwrap().into(), error);
}

/// What a minor version adds this module does not use, so nothing is missing here.
#[test]
fn a_module_of_a_later_minor_version_that_only_leases_runs() {
    let core = guest().cap(7).of_version("1.1.0").bytes();
    let component: Arc<[u8]> = finished_component(&core).unwrap().into();
    for (form, bytes) in [("core module", core), ("component", component)] {
        let named = b"kubeocean:policy/lease@1.1.0";
        assert!(bytes.windows(named.len()).any(|part| part == named), "{form}");
        let host = host(vec![policy(json!({})).module("later", &bytes, json!({}))]);
        assert_eq!(host.state("later"), EntryState::Active, "{form}: {}", host.error("later"));
        assert_eq!(cpu(&host.one(noon(), node("n"))), 7, "{form}");
    }
}

#[rstest]
#[case::trap("(unreachable)", FaultKind::Trap)]
#[case::endless_loop("(call $forever)", FaultKind::Timeout)]
#[case::memory("(call $grow_forever)", FaultKind::Memory)]
#[case::invalid("(i32.store (i32.const 280) (i32.const 0))", FaultKind::Invalid)]
fn a_fault_in_production_spares_the_other_rows_and_leads_to_quarantine(
    #[case] code: &str,
    #[case] kind: FaultKind,
) {
    let bytes = guest().cap(100).with("POISONED", code).bytes();
    let host = host(vec![policy(json!({})).module("bad", &bytes, json!({"onError": "LastKnown"}))]);
    let nodes = [node("a"), poisoned(node("b")), node("c")].map(Arc::new);
    let decisions = host.host.decide(noon(), &nodes);
    assert_eq!(decisions.iter().map(cpu).collect::<Vec<_>>()[0], 100);
    assert_eq!((cpu(&decisions[2]), decisions[2].verdict), (100, Verdict::Offer));
    assert_eq!(
        (decisions[1].verdict, decisions[1].may_create, decisions[1].announce),
        (Verdict::Withhold, false, false)
    );
    assert_eq!(decisions[1].reason.as_ref().unwrap().code, "ModuleFailed");
    let faults =
        host.numbers("p/bad").counters.faults[FaultKind::ALL.iter().position(|k| *k == kind).unwrap()];
    assert_eq!(faults, 2, "the batch, then the row alone");
    assert_eq!(host.state("bad"), EntryState::Active);
    // The third fault within a minute.
    host.one(seconds(30), poisoned(node("b")));
    assert_eq!(host.state("bad"), EntryState::Quarantined);
    host.wait(|_| true);
    let mut unknown = node("new");
    unknown.created_unix = 5;
    let stays = host.one(seconds(31), unknown);
    assert_eq!((stays.verdict, stays.wake_at), (Verdict::Withhold, Some(seconds(60).as_second())));
    let known = host.one(seconds(31), node("a"));
    assert_eq!((cpu(&known), known.verdict), (100, Verdict::Held), "its last good answer stands");
    // A node nobody knows has the same row: `onError` holds for it, and not the memo.
    let twin = host.one(seconds(31), node("twin"));
    assert_eq!((twin.verdict, twin.may_create), (Verdict::Withhold, false));
    // The first probe fails, the second one succeeds.
    let mut other = poisoned(node("b"));
    other.labels.clear();
    assert_eq!(host.one(seconds(60), other).wake_at, Some(seconds(120).as_second()));
    assert_eq!(host.state("bad"), EntryState::Quarantined);
    let mut healthy = node("d");
    healthy.created_unix = 7;
    let back = host.one(seconds(120), healthy);
    assert_eq!((cpu(&back), back.verdict), (100, Verdict::Offer));
    assert_eq!(host.state("bad"), EntryState::Active);
}

#[test]
fn four_endless_loops_delay_a_good_policy_only_a_little() {
    let bytes = guest().with("POISONED", "(call $forever)").bytes();
    let bad: Vec<Host> = (0..4)
        .map(|i| {
            let entry = format!("loop{i}");
            host(vec![policy(json!({})).module(
                &entry,
                &bytes,
                json!({"limits": {"timeoutMilliseconds": 990 + i}}),
            )])
        })
        .collect();
    let good = host(vec![policy(json!({"resourceLimits": [{"resource": "cpu", "percent": 50}]}))]);
    let ended = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for host in &bad {
            let (host, ended) = (&host.host, &ended);
            scope.spawn(move || {
                host.decide(noon(), &[Arc::new(poisoned(node("a")))]);
                ended.fetch_add(1, Ordering::SeqCst);
            });
        }
        let deadline = Instant::now() + Duration::from_mins(1);
        while engine().numbers().instances_in_use < bad.len() {
            assert!(Instant::now() < deadline, "the loops do not begin");
            std::thread::yield_now();
        }
        let started = Instant::now();
        assert_eq!(cpu(&good.one(noon(), node("a"))), 5900);
        let took = started.elapsed();
        assert_eq!(ended.load(Ordering::SeqCst), 0, "it waited for a loop to end: {took:?}");
        assert!(!strict() || took.as_millis() < 300, "took {took:?}");
    });
}

/// Policy spec section 14: in one host, the rows of a policy that answers do not wait for those of policies that loop.
#[test]
fn endless_loops_of_one_host_do_not_hold_up_the_rows_of_a_good_policy() {
    let select = |pool: &str| json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": [pool]}]}]}});
    let of_pool = |name: &str, pool: &str| {
        let mut node = node(name);
        node.labels.insert("pool".into(), pool.into());
        node
    };
    let bytes = guest().with("POISONED", "(call $forever)").bytes();
    let mut policies: Vec<_> = (0..4)
        .map(|i| {
            let limits = json!({"limits": {"timeoutMilliseconds": 1000}});
            policy(select(&format!("bad{i}"))).module("loops", &bytes, limits).named(&format!("bad{i}"), i)
        })
        .collect();
    policies.push(
        policy(select("built-in"))
            .builtin("good", "cpu-percentage", json!({"cpuPercent": 50}))
            .named("built-in", 8),
    );
    policies
        .push(policy(select("custom")).module("good", &guest().cap(7).bytes(), json!({})).named("custom", 9));
    let host = host(policies);
    let mut nodes: Vec<Arc<NodeFacts>> = (0..4)
        .flat_map(|i| {
            let pool = format!("bad{i}");
            [Arc::new(poisoned(of_pool(&format!("a{i}"), &pool))), Arc::new(of_pool(&format!("b{i}"), &pool))]
        })
        .collect();
    nodes.push(Arc::new(of_pool("good", "built-in")));
    nodes.push(Arc::new(of_pool("custom", "custom")));
    let started = Instant::now();
    let mut told: BTreeMap<usize, (Duration, Verdict, i64)> = BTreeMap::new();
    let mut order = Vec::new();
    host.host.decide_each(noon(), &nodes, |index, decision| {
        order.push(index);
        let entry = (started.elapsed(), decision.verdict, cpu(&decision));
        assert!(told.insert(index, entry).is_none(), "each node is told once");
    });
    assert_eq!(told.len(), nodes.len());
    assert_eq!((told[&8].2, told[&9].2), (5900, 7));
    order[..2].sort_unstable();
    assert_eq!(order[..2], [8, 9], "a good policy waited for a loop to end: {told:?}");
    for good in [8, 9] {
        assert!(!strict() || told[&good].0.as_millis() < 300, "a good policy waited {:?}", told[&good].0);
    }
    assert!(told[&0].0.as_millis() >= 1000, "the loops were really on");
    assert_eq!(told[&0].1, Verdict::Withhold);
    assert_eq!(
        (told[&1].1, told[&1].2),
        (Verdict::Offer, 11_800),
        "a good row beside a looping one is answered"
    );
}

/// Policy spec sections 8 and 14: what is just within a limit loads, and one more does not.
#[rstest]
#[case::a_call_hands_over_one_mebibyte(
    |bytes| guest().with("MEMORY", "(memory (export \"memory\") 32)").with("LEASE", &format!("(i32.store (i32.const 168) (i32.const 200000)) (i32.store (i32.const 172) (i32.const {bytes}))")),
    [1_040_000, 1_060_000],
    "TrialFailed: Output"
)]
#[case::memory_is_32_mebibytes(
    |pages| guest().with("LEASE", &format!("(drop (memory.grow (i32.const {pages})))")), [504, 505], "TrialFailed: Memory"
)]
#[case::a_table_has_20_000_elements(
    |more| guest().with("LEASE", &format!("(drop (table.grow 0 (ref.null func) (i32.const {more})))")),
    [19_999, 20_000],
    "TrialFailed: Memory"
)]
fn a_limit_is_where_it_is_said_to_be(
    #[case] guest: fn(usize) -> Guest,
    #[case] at: [usize; 2],
    #[case] error: &str,
) {
    let within = beside_a_good_one(&guest(at[0]).bytes());
    assert_eq!(within.state("bad"), EntryState::Active, "{}", within.error("bad"));
    refused(&guest(at[1]).bytes(), error);
}

/// PO-711, PO-304: a panic, for example about a fact that was not declared, is told in the module's own words.
#[test]
fn the_text_of_a_panic_reaches_the_status() {
    let undeclared = "(i32.store (i32.const 1152) (i32.const 0)) (call $log (i32.const 4) (i32.const 1200) (i32.const 41)) (unreachable)";
    let text = "(data (i32.const 1200) \"fact \\22label/x\\22 is not declared in needs()\")";
    let bytes = guest().with("POISONED", undeclared).with("START", text).bytes();
    let host = host(vec![policy(json!({})).module("bad", &bytes, json!({}))]);
    assert_eq!(host.state("bad"), EntryState::Active, "{}", host.error("bad"));
    host.one(noon(), poisoned(node("a")));
    assert_eq!(host.error("bad"), "Trap: fact \"label/x\" is not declared in needs()");
}

/// A megabyte of one's own `Err`, with line breaks and a colour of terminals in it.
fn long_err() -> Guest {
    let text = "(data (i32.const 70000) \"no\\0a\\1b[31m \")";
    let fill = "(start $fill) (func $fill (memory.fill (i32.const 70008) (i32.const 10) (i32.const 999992)))";
    guest().with("MEMORY", "(memory (export \"memory\") 32)").with("START", &format!("{text} {fill}"))
}

/// What makes a result at `at` an `Err` of that text.
fn says_err(at: u32) -> String {
    format!(
        "(i32.store8 (i32.const {at}) (i32.const 1)) (i32.store (i32.const {}) (i32.const 70000)) \
         (i32.store (i32.const {}) (i32.const 1000000)) (return (i32.const {at}))",
        at + 4,
        at + 8
    )
}

fn is_short_and_plain(text: &str) -> bool {
    text.len() <= 600 && !text.chars().any(char::is_control)
}

/// What a module says is told on every node and in the status, so it is cut and made one line.
#[test]
fn the_text_of_an_err_is_short_and_of_one_line() {
    let bytes = long_err().cap(100).with("POISONED", &says_err(272)).bytes();
    let host = host(vec![policy(json!({})).module("bad", &bytes, json!({}))]);
    assert_eq!(host.state("bad"), EntryState::Active, "{}", host.error("bad"));
    let decision = host.one(noon(), poisoned(node("a")));
    let reason = decision.reason.unwrap();
    assert_eq!(reason.code, "ModuleFailed");
    assert!(reason.message.contains("Err: no  [31m"), "{}", &reason.message[..80]);
    assert!(is_short_and_plain(&reason.message), "{} bytes", reason.message.len());
    assert!(host.error("bad").starts_with("Err: no  [31m") && is_short_and_plain(&host.error("bad")));
    let create = long_err().with("CREATE", &says_err(256)).bytes();
    refused(&create, "SettingsRejected: no  [31m");
    let create = beside_a_good_one(&create).error("bad");
    assert!(is_short_and_plain(&create), "{} bytes", create.len());
}

/// PO-1005: one in so many batches of several rows is run again with its rows reversed.
#[rstest]
#[case::answers_by_position("(i64.store (i32.load (i32.const 284)) (i64.const 1))", 1)]
#[case::a_pure_one("", 0)]
fn a_module_that_looks_at_the_order_of_rows_is_reported(#[case] code: &str, #[case] impure: u64) {
    // Only real nodes, so that the trial call does not see it.
    let code = format!(
        "(call $cap_all (local.get $args) (i64.const 9)) (if (i64.lt_u (i64.sub (call $number (local.get $args) (i32.const 0)) (i64.const 1)) (i64.const 99)) (then {code}))"
    );
    let bytes = guest().with("LEASE", &code).bytes();
    let engine = rechecking_engine();
    let host = host_of(&engine, vec![policy(json!({})).module("x", &bytes, json!({}))]);
    let batch = |first: i64| {
        let nodes: Vec<Arc<NodeFacts>> = (first..first + 2)
            .map(|created| Arc::new(NodeFacts { created_unix: created, ..node(&format!("n{created}")) }))
            .collect();
        host.host.decide(noon(), &nodes);
    };
    let counted = || host.numbers("p/x").counters.impure;
    batch(1);
    host.host.decide(noon(), &[Arc::new(NodeFacts { created_unix: 50, ..node("alone") })]);
    assert_eq!(counted(), 0, "the first batch is not run again, and a single row is none");
    batch(3);
    assert_eq!(counted(), impure);
}

#[test]
fn an_engine_refuses_modules_larger_than_it_may_take() {
    for bytes in [0, (64 << 20) + 1] {
        let config = EngineConfig { max_module_bytes: bytes, ..EngineConfig::default() };
        assert!(matches!(Engine::start(config), Err(EngineError::ModuleSize(refused)) if refused == bytes));
    }
}

#[test]
fn a_log_flood_is_cut_and_counted() {
    let host = beside_a_good_one(&guest().with("LEASE", "(call $flood)").bytes());
    assert_eq!(host.state("bad"), EntryState::Active);
    // Two trial calls and one decision, 100 lines each, 32 of them allowed.
    assert_eq!(host.numbers("p/bad").counters.log_dropped, 3 * 68);
}

#[test]
fn an_answer_does_not_depend_on_earlier_units() {
    // The cap is the number of calls the instance has seen.
    let code = "(call $cap_all (local.get $args) (global.get $calls))";
    let host = host(vec![policy(json!({})).guest("counts", &guest().with("LEASE", code))]);
    assert_eq!(host.state("counts"), EntryState::Active, "a fresh instance hides the counter");
    for i in 0..5 {
        let mut node = node("a");
        node.created_unix = i;
        assert_eq!(cpu(&host.one(noon(), node)), 1);
    }
}

/// PO-901, PO-903: pages that stay mapped between two instances are empty again, near the start of a memory and far from it.
#[test]
fn an_instance_finds_nothing_in_its_memory_that_another_wrote() {
    const PLACES: [u32; 4] = [60_000, 500_000, 700_000, 2_000_000];
    let sum = PLACES.map(|at| format!("(i64.load (i32.const {at}))"));
    let sum = sum.into_iter().reduce(|sum, next| format!("(i64.add {sum} {next})")).unwrap();
    let leave = PLACES.map(|at| format!("(i64.store (i32.const {at}) (i64.const 1000))")).concat();
    // From half a megabyte to two and a half. The cap is one, and what was found.
    let code = format!(
        "(drop (memory.grow (i32.const 32)))
        (call $cap_all (local.get $args) (i64.add (i64.const 1) {sum}))
        {leave}"
    );
    let host = host(vec![policy(json!({})).guest("leaves", &guest().with("LEASE", &code))]);
    for i in 0..20 {
        let mut node = node("a");
        node.created_unix = i;
        assert_eq!(cpu(&host.one(noon(), node)), 1);
    }
}

#[test]
fn a_broken_promise_is_noticed_at_the_refresh_and_lasts_ten_minutes() {
    // The cap is the current hour, and no valid-until is given.
    let code =
        "(call $cap_all (local.get $args) (i64.div_s (i64.load offset=8 (local.get $args)) (i64.const 600)))";
    let host = host(vec![policy(json!({})).guest("liar", &guest().with("LEASE", code))]);
    let wakes = |now: i64| host.one(seconds(now), node("a")).wake_at.unwrap() - noon().as_second();
    assert_eq!((wakes(0), wakes(599)), (600, 600), "the refresh does not wait for another event");
    assert_eq!(host.numbers("p/liar").counters.impure, 0);
    assert_eq!(wakes(600), 900);
    host.wait(|_| true);
    assert_eq!(host.numbers("p/liar").counters.impure, 1);
    assert!(host.error("liar").starts_with("NotPure"));
    assert_eq!(host.state("liar"), EntryState::Active);
    assert_eq!(wakes(601), 900, "all nodes hear of the shorter period");
    host.one(seconds(901), node("a"));
    assert_eq!(host.numbers("p/liar").counters.calls, 3, "asked twice as often from now on");
}

/// PO-1006: a refresh is one occasion, however many nodes it is about.
#[test]
fn promises_that_break_together_halve_the_refresh_once() {
    let code =
        "(call $cap_all (local.get $args) (i64.div_s (i64.load offset=8 (local.get $args)) (i64.const 600)))";
    let host = host(vec![policy(json!({})).guest("liar", &guest().with("LEASE", code))]);
    let nodes: Vec<_> = (0..4)
        .map(|i| {
            std::sync::Arc::new(kubeocean_engine::NodeFacts { created_unix: i, ..node(&format!("n{i}")) })
        })
        .collect();
    host.host.decide(seconds(0), &nodes);
    let wakes: Vec<_> =
        host.host.decide(seconds(600), &nodes).iter().map(|decision| decision.wake_at.unwrap()).collect();
    assert_eq!(wakes, [900; 4].map(|second| seconds(second).as_second()));
    assert_eq!(host.numbers("p/liar").counters.impure, 4);
}

#[test]
fn too_large_settings_and_failed_fetches_are_named() {
    let bytes = guest().bytes();
    let big = json!({"settings": {"a": "x".repeat(1 << 20)}});
    let host = host(vec![
        policy(json!({}))
            .module("big", &bytes, big)
            .raw(
                json!({"name": "gone", "module": {"configMap": {"name": "m"}, "digest": digest(&bytes)}}),
                Some(ModuleFetch::Failed { code: kubeocean_engine::LoadCode::FetchForbidden, message: "403".into() }),
            )
            .raw(json!({"name": "later", "module": {"configMap": {"name": "m"}, "digest": digest(&bytes)}, "enforcement": "Audit"}), None),
    ]);
    assert!(host.error("big").starts_with("SettingsInvalid"));
    assert_eq!(
        (host.error("gone").as_str(), host.state("gone")),
        ("FetchForbidden: 403", EntryState::Loading)
    );
    assert_eq!((host.error("later").as_str(), host.state("later")), ("", EntryState::Loading));
    assert_eq!(host.entry("later").desired_digest, Some(digest(&bytes)));
}
