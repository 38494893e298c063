//! Go's flag syntax on top of clap (MC-103): one or two dashes, `--flag=true|false` for booleans, `t`, `1`, `TRUE` and
//! the like as boolean values, and a boolean never swallows the next word. Only the original's programs take it; other
//! commands are clap's own, where `-ojson` is `-o json`.

/// Boolean flags, which may stand alone.
const BOOLEANS: [&str; 6] = [
    "leader-elect",
    "zap-devel",
    "allow-unpinned-policies",
    "allow-unsafe-kubeconfig",
    "metrics-enabled",
    "anonymous-auth",
];

/// Programs the binary may be called as.
const PROGRAMS: [&str; 3] = ["manager", "syncer", "proxier"];

/// The name under which kubectl finds the binary as its plugin.
const KUBECTL_PLUGIN: &str = "kubectl-kubeocean";

/// Rewrites the process arguments into the form clap takes.
pub(crate) fn normalise(arguments: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut arguments = arguments.into_iter().peekable();
    let program = arguments.next().unwrap_or_else(|| "kubeocean".to_owned());
    let called_as = program.rsplit('/').next().unwrap_or_default().to_owned();
    // What help texts call it.
    let mut out =
        vec![if called_as == KUBECTL_PLUGIN { "kubectl kubeocean" } else { "kubeocean" }.to_owned()];
    if PROGRAMS.contains(&called_as.as_str()) {
        out.push(called_as);
    } else if arguments.peek().is_none_or(|command| !PROGRAMS.contains(&command.as_str())) {
        out.extend(arguments);
        return out;
    }
    let mut plain = false;
    for argument in arguments {
        if plain || argument == "--" {
            plain = true;
            out.push(argument);
            continue;
        }
        out.push(flag(&argument).unwrap_or(argument));
    }
    out
}

fn flag(argument: &str) -> Option<String> {
    let body = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'))?;
    // `-h` and `-V` are clap's own, and a lone dash is a value.
    if body.len() < 2 || !body.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let (name, value) = match body.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (body, None),
    };
    if !BOOLEANS.contains(&name) {
        return Some(format!("--{body}"));
    }
    let value = match value {
        None | Some("1" | "t" | "T" | "TRUE" | "True") => "true",
        Some("0" | "f" | "F" | "FALSE" | "False") => "false",
        Some(other) => other,
    };
    Some(format!("--{name}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &[&str], expected: &[&str]) {
        let given = given.iter().map(|one| (*one).to_owned());
        assert_eq!(normalise(given)[1..], expected.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
    }

    #[test]
    fn one_or_two_dashes_and_boolean_forms() {
        check(
            &["/bin/kubeocean", "syncer", "-cluster-binding-name=a", "--leader-elect", "x"],
            &["syncer", "--cluster-binding-name=a", "--leader-elect=true", "x"],
        );
        check(&["kubeocean", "syncer", "--leader-elect=F"], &["syncer", "--leader-elect=false"]);
        check(&["kubeocean", "syncer", "-zap-devel"], &["syncer", "--zap-devel=true"]);
        check(&["proxier", "--anonymous-auth"], &["proxier", "--anonymous-auth=true"]);
        check(&["kubeocean", "-h"], &["-h"]);
    }

    #[test]
    fn commands_for_people_keep_short_flags_with_values() {
        check(&["kubeocean", "policy", "inspect", "-ojson", "m"], &["policy", "inspect", "-ojson", "m"]);
    }

    #[test]
    fn called_as_the_kubectl_plugin_it_is_the_whole_program() {
        let given = ["/usr/local/bin/kubectl-kubeocean", "policy", "inspect", "m"];
        check(&given, &["policy", "inspect", "m"]);
        assert_eq!(normalise(given.map(str::to_owned))[0], "kubectl kubeocean");
        check(&["kubectl-kubeocean", "syncer", "--leader-elect"], &["syncer", "--leader-elect=true"]);
    }

    #[test]
    fn called_as_the_originals_program_it_is_that_subcommand() {
        check(&["/syncer", "--cluster-binding-name", "a"], &["syncer", "--cluster-binding-name", "a"]);
    }
}
