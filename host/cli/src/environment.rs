//! Every flag is also an environment variable `KUBEOCEAN_<FLAG IN UPPER SNAKE CASE>`; the flag wins (MC-109).

use clap::Command;

/// Gives each long flag of `command` and of its subcommands its variable. A flag that names one itself keeps it.
pub(crate) fn with_variables(command: Command) -> Command {
    let command = command.mut_args(|argument| {
        let own = argument.get_env().is_some();
        match argument.get_long() {
            Some(long) if !own && !matches!(long, "help" | "version") => {
                let variable = variable(long);
                argument.env(variable).hide_env(true)
            }
            _ => argument,
        }
    });
    command.mut_subcommands(with_variables)
}

fn variable(flag: &str) -> String {
    format!("KUBEOCEAN_{}", flag.replace('-', "_").to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_named_after_flags() {
        assert_eq!(variable("leader-elect"), "KUBEOCEAN_LEADER_ELECT");
    }

    #[test]
    fn subcommands_get_theirs_too() {
        let flag = clap::Arg::new("a").long("some-flag");
        let kept = clap::Arg::new("b").long("other").env("OTHER");
        let command = with_variables(Command::new("x").subcommand(Command::new("y").args([flag, kept])));
        let sub = command.find_subcommand("y").unwrap();
        let of = |id: &str| sub.get_arguments().find(|a| a.get_id() == id).and_then(|a| a.get_env()).unwrap();
        assert_eq!((of("a"), of("b")), ("KUBEOCEAN_SOME_FLAG".as_ref(), "OTHER".as_ref()));
    }
}
