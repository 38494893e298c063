//! API servers that die, stay away for a while and come back, while pods begin, change and end.
//!
//! One test, because it kills servers of its fleet.

use std::time::Duration;

use kubeocean_e2e::pods::Stage;
use kubeocean_e2e::storm::{RECOVERED, pass, storm};
use kubeocean_harness::{BindingSpec, Component};

const AWAY: Duration = Duration::from_secs(20);

#[tokio::test]
async fn restarts_of_api_servers_are_survived() {
    let stage = Stage::start(BindingSpec::new("restarts"), 2).await;
    for (name, server) in [("computing", stage.binding.computing()), ("worker", stage.binding.worker())] {
        let restart = async || {
            server.kill(Component::ApiServer).expect("a server");
            pass(AWAY).await;
            server.restart(Component::ApiServer).await.expect("a server that is back");
            // Pods need them, and they come back up to 30 s later by themselves: it is the Syncer whose time is taken.
            server.restart(Component::Scheduler).await.expect("a scheduler");
            server.restart(Component::ControllerManager).await.expect("controllers, which bind claims");
            if name == "worker" {
                server.restart(Component::Kwok).await.expect("kubelets");
            }
        };
        storm(&stage, &format!("restart-of-{name}"), RECOVERED, || {}, restart).await;
        let log = stage.syncer.log();
        assert!(
            !log.contains("feature turned off"),
            "a server that has just begun knows no roles yet:\n{log}"
        );
    }
}
