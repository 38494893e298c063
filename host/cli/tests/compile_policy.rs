//! The program as the compiler of policy modules (PO-906): it fits its own limits, every time.

use std::sync::Arc;

use kubeocean_engine::{CompileMode, Engine, EngineConfig, ModuleLimits, builtin};
use serde_json::json;

/// A custom section, so that the module is another one and is compiled anew.
fn numbered(module: &[u8], number: u8) -> Arc<[u8]> {
    let mut bytes = module.to_vec();
    // Id 0, four bytes long: a name of one letter, and two bytes of content.
    bytes.extend([0, 4, 1, b'n', 0, number]);
    bytes.into()
}

#[test]
fn ordinary_modules_compile_every_time() {
    let program = env!("CARGO_BIN_EXE_kubeocean").into();
    let compile = CompileMode::Child { program, args: vec!["compile-policy".to_owned()] };
    let engine = Engine::start(EngineConfig { compile, threads: 1, ..EngineConfig::default() }).unwrap();
    let module = builtin("node-labels").unwrap();
    // Where the allocator reserves memory differs from start to start, so one good one proves little.
    for number in 0..12 {
        let bytes = numbered(module, number);
        engine.load_module(&bytes, &json!({}), ModuleLimits::default(), &[]).unwrap();
    }
}
