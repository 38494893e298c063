//! Takes links and cgroups off the machine: when a node or a network is dropped, when the test process was killed (by
//! the reaper's watchdog), and, should the watchdog have been killed too, before the next network is made.
//!
//! Links and cgroups are all that a node leaves behind when its processes are gone: its mounts are in a mount namespace,
//! its other links in a network namespace, and its files in the directory of the test process.

use std::path::Path;
use std::process::Command;

use super::run::run;

/// A shell script; its arguments are names of links and cgroups.
const SCRIPT: &str = include_str!("undo.sh");

/// Removes the links and cgroups of these names. Blocking; what is not there is no failure.
pub(super) fn undo(names: &[String]) {
    // What cannot be removed stays for the next start, which reports it if it is in the way.
    let _ = run(Command::new("sh").args(["-c", SCRIPT, "kubeocean-undo"]).args(names));
}

/// The same for the watchdog, which acts only if nobody has taken over `marker`, and then empties it.
pub(super) fn script(marker: &Path, names: &[String]) -> String {
    let marker = marker.display();
    let names = names.join(" ");
    format!("exec 9<>{marker}\nflock --nonblock 9 || exit 0\nset -- {names}\n{SCRIPT}: >{marker}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdogs_script_is_valid_and_spares_a_network_that_was_taken_over() {
        let marker = std::env::temp_dir().join(format!("kubeocean-test-marker-{}", std::process::id()));
        std::fs::write(&marker, "process 1\n").unwrap();
        let script = script(&marker, &["kubeocean-no-such".to_owned()]);
        let lock = std::fs::File::open(&marker).unwrap();
        lock.try_lock().unwrap();
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        assert_eq!(std::fs::read_to_string(&marker).unwrap(), "process 1\n");
        drop(lock);
        // A child that another test starts at this moment holds the lock too, until it has become its program.
        let tries = (0..100).take_while(|_| {
            assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
            !std::fs::read_to_string(&marker).unwrap().is_empty()
        });
        assert!(tries.count() < 100, "the network that nobody has is undone");
        std::fs::remove_file(&marker).unwrap();
    }
}
