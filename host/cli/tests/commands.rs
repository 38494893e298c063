//! The binary as a user meets it without any cluster: what it prints, and how it refuses.

use std::process::{Command, Output};

fn kubeocean(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubeocean"))
        .args(args)
        .env_remove("KUBEOCEAN_CLUSTER_BINDING_NAME")
        .env("KUBECONFIG", "/nowhere/kubeconfig")
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn crd_prints_both_definitions_or_the_named_one() {
    let both = text(&kubeocean(&["crd"]).stdout);
    assert_eq!(both.matches("kind: CustomResourceDefinition").count(), 2);
    assert_eq!(both.matches("\n---\n").count(), 1, "one YAML stream of two documents");
    let one = text(&kubeocean(&["crd", "clusterbinding"]).stdout);
    assert!(one.contains("clusterbindings.cloud.tencent.com") && !one.contains("resourceleasingpolicies"));
}

#[test]
fn a_syncer_without_a_binding_name_says_which_flag_is_missing() {
    let output = kubeocean(&["syncer"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--cluster-binding-name"), "{}", text(&output.stderr));
}

#[test]
fn a_proxier_without_a_binding_name_says_which_flag_is_missing() {
    let output = kubeocean(&["proxier"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--cluster-binding-name"), "{}", text(&output.stderr));
}

#[test]
fn an_unknown_flag_is_refused_by_name() {
    let output = kubeocean(&["syncer", "--cluster-binding-nam=a"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--cluster-binding-nam"));
}

#[test]
fn an_unreadable_kubeconfig_is_named() {
    let output = kubeocean(&[
        "syncer",
        "--cluster-binding-name=a",
        "--metrics-bind-address=0",
        "--health-probe-bind-address=0",
        "--kubeconfig=/nowhere/else",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nowhere/else"), "{}", text(&output.stderr));
}

#[test]
fn a_port_in_use_ends_the_start_with_the_address_and_what_to_change() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("a bound address").to_string();
    let output =
        kubeocean(&["syncer", "--cluster-binding-name=a", &format!("--metrics-bind-address={address}")]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains(&address) && message.contains("--metrics-bind-address"), "{message}");
}

#[test]
fn every_shell_gets_a_script_that_knows_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = kubeocean(&["completion", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = text(&output.stdout);
        assert!(script.contains("keygen") && script.contains("registry-ca"), "{shell}");
    }
    assert_eq!(kubeocean(&["completion", "cmd"]).status.code(), Some(2));
}
