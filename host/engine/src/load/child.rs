//! Compiling in a child process with limits (PO-906).
//!
//! Parent and child are the same program: the parent sends the module on stdin and gets one status byte and then
//! machine code or an error on stdout. Only what the child's own compiler made is ever deserialized.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, setpriority_process, setrlimit};
use wasmtime::component::Component;

use super::component::componentize;
use super::error::{LoadCode, LoadError};
use crate::config::MAX_MODULE_BYTES;
use crate::wasm::runtime::{Allocation, config};

/// Wall clock time of one compilation.
const WALL: Duration = Duration::from_secs(30);
/// CPU seconds of one compilation.
const CPU_SECONDS: u64 = 20;
/// Address space of the child in bytes.
const MEMORY_BYTES: u64 = 1 << 30;
/// Machine code of a module: so many times its bytes, or this many bytes if that is more. Compilers make some five times; more
/// is not read, since it would stay in memory.
const CODE_PER_BYTE: u64 = 16;
const SMALL_CODE_BYTES: u64 = 8 << 20;

/// First byte of the child's answer.
const STATUS_CODE: u8 = 0;
const STATUS_NOT_A_POLICY: u8 = 1;
const STATUS_WRONG_WORLD: u8 = 2;
const STATUS_COMPILE_FAILED: u8 = 3;

/// One child with somebody else's module at a time: two would need twice the memory limit.
static ONE: Mutex<()> = Mutex::new(());

/// Whose code a child compiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Author {
    /// It came with the program: small, known, and everything waits for it.
    Ourselves,
    /// Somebody else: alone, and behind whatever else the machine has to do.
    Others,
}

/// Niceness of a child with somebody else's module.
const NICE: i32 = 10;

fn failed(text: &str) -> LoadError {
    LoadError::new(LoadCode::CompileFailed, text)
}

/// The machine may be the cause: no process, no pipe, no time. A limit on CPU time or memory is the module's fault.
fn hindered(text: &str) -> LoadError {
    failed(text).passing()
}

/// The machine code of `bytes`, made in `program args`.
pub(crate) fn compile(
    program: &Path,
    args: &[String],
    bytes: &[u8],
    author: Author,
) -> Result<Vec<u8>, LoadError> {
    let _turn = (author == Author::Others).then(|| ONE.lock());
    let child = Command::new(program)
        .args(args)
        .env_clear()
        // The C library reserves 64 MiB of addresses for each thread's heap, and the child may have 1 GiB of them.
        .env("MALLOC_ARENA_MAX", "2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| hindered(&format!("start the compiler process: {error}")))?;
    if author == Author::Others {
        // A courtesy; a system that refuses it compiles all the same.
        let _ = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .map(|child| setpriority_process(Some(child), NICE));
    }
    let max_bytes = max_code_bytes(bytes.len());
    let mut answer = exchange(child, bytes, max_bytes)?;
    if u64::try_from(answer.len()).is_ok_and(|got| got > max_bytes) {
        return Err(failed(&format!("more than {} MiB of machine code", max_bytes >> 20)));
    }
    let status = *answer.first().ok_or_else(|| failed("the compiler exceeded its limits"))?;
    let payload = answer.split_off(1);
    let code = match status {
        STATUS_CODE => return Ok(payload),
        STATUS_NOT_A_POLICY => LoadCode::NotAPolicy,
        STATUS_WRONG_WORLD => LoadCode::WrongWorld,
        _ => LoadCode::CompileFailed,
    };
    Err(LoadError::new(code, &String::from_utf8_lossy(&payload)))
}

/// Most bytes of code that are taken for a module of so many.
fn max_code_bytes(module_bytes: usize) -> u64 {
    u64::try_from(module_bytes).unwrap_or(u64::MAX).saturating_mul(CODE_PER_BYTE).max(SMALL_CODE_BYTES)
}

/// Makes code ready to run that [`compile`] made, in this process or an earlier one.
#[expect(unsafe_code, reason = "machine code is trusted because our own child made it")]
pub(crate) fn deserialize(engine: &wasmtime::Engine, code: &[u8]) -> Result<Component, LoadError> {
    // SAFETY: the bytes come over a private pipe from a process started from our own binary, whose only input was a
    // module that wasmtime validated there, or from a folder that nobody but this user could write to since. wasmtime
    // checks version and configuration itself.
    unsafe { Component::deserialize(engine, code) }.map_err(|error| failed(&format!("{error:#}")))
}

/// Sends the module, reads the answer, and kills the child when it takes too long. Of an answer longer than `max_bytes` one
/// byte more is read; the child then writes to nobody, and ends.
fn exchange(mut child: Child, bytes: &[u8], max_bytes: u64) -> Result<Vec<u8>, LoadError> {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(hindered("the compiler process has no pipes"));
    };
    let (done, finished) = channel::<()>();
    std::thread::scope(|scope| {
        // A child that dies early closes the pipe; the write error says nothing more than the missing answer.
        scope.spawn(move || {
            let _ = stdin.write_all(bytes);
        });
        let reader = scope.spawn(move || {
            let mut answer = Vec::new();
            let read = stdout.take(max_bytes.saturating_add(1)).read_to_end(&mut answer);
            drop(done);
            read.map(|_| answer)
        });
        let late = finished.recv_timeout(WALL) == Err(RecvTimeoutError::Timeout);
        if late {
            // It may have ended in this moment; then there is nothing to kill.
            let _ = child.kill();
        }
        let waited = child.wait();
        let answer = reader.join().map_err(|_| hindered("reading from the compiler failed"))?;
        if late {
            return Err(hindered("the compiler took longer than 30 s"));
        }
        waited.map_err(|error| hindered(&error.to_string()))?;
        answer.map_err(|error| hindered(&error.to_string()))
    })
}

/// Entry point of the child: reads a module from stdin, writes machine code to stdout. Call it from `main` when
/// started with the arguments of [`crate::CompileMode::Child`].
pub fn compile_child_main() -> ExitCode {
    let (status, payload) = match limited_compile() {
        Ok(code) => (STATUS_CODE, code),
        Err(error) => {
            let status = match error.code {
                LoadCode::NotAPolicy => STATUS_NOT_A_POLICY,
                LoadCode::WrongWorld => STATUS_WRONG_WORLD,
                _ => STATUS_COMPILE_FAILED,
            };
            (status, error.message.into_bytes())
        }
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(&[status]).and_then(|()| out.write_all(&payload)).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn limited_compile() -> Result<Vec<u8>, LoadError> {
    let limit = |amount| Rlimit { current: Some(amount), maximum: Some(amount) };
    setrlimit(Resource::As, limit(MEMORY_BYTES)).map_err(|error| failed(&error.to_string()))?;
    setrlimit(Resource::Cpu, limit(CPU_SECONDS)).map_err(|error| failed(&error.to_string()))?;
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(u64::try_from(MAX_MODULE_BYTES).unwrap_or(u64::MAX))
        .read_to_end(&mut bytes)
        .map_err(|error| failed(&error.to_string()))?;
    let component = componentize(&bytes)?;
    let mut config = config(Allocation::OnDemand, false);
    config.parallel_compilation(false);
    let engine = wasmtime::Engine::new(&config).map_err(|error| failed(&format!("{error:#}")))?;
    engine.precompile_component(&component).map_err(|error| failed(&format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A compiler that answers with so many bytes.
    fn answers(bytes: u64, module: &[u8]) -> Result<Vec<u8>, LoadError> {
        let args = ["-c".to_owned(), format!("/bin/cat >/dev/null; exec /usr/bin/head -c {bytes} /dev/zero")];
        compile(Path::new("/bin/sh"), &args, module, Author::Others)
    }

    #[test]
    fn more_code_than_a_module_can_need_is_not_taken() {
        assert_eq!(answers(SMALL_CODE_BYTES, b"").unwrap().len(), 8_388_607, "one byte is the status");
        let error = answers(1 << 30, b"").unwrap_err();
        assert_eq!(error.to_string(), "CompileFailed: more than 8 MiB of machine code");
        assert!(!error.passing, "it is the module's fault");
        let large = vec![0; 1 << 20];
        assert_eq!(answers(16 << 20, &large).unwrap().len(), 16_777_215);
        assert!(answers((16 << 20) + 1, &large).unwrap_err().message.contains("16 MiB"));
    }
}
