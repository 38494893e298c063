//! A placement policy and nothing else: the test of the SDK builds it for wasm and looks at its exports.

use kubeocean_policy_sdk::prelude::*;

/// Keeps every pod away from nodes that are not ready.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct ReadyOnly {}

impl PlacePolicy for ReadyOnly {
    fn needs(&self) -> Needs {
        Needs::new().number("node.ready")
    }

    fn place(&self, _stage: Stage, _now: &Now, _pod: Pod<'_>, node: Node<'_>) -> Fit {
        if node.number("node.ready") == Some(1) {
            Fit::accept()
        } else {
            Fit::reject("NotReady", "the node is not ready")
        }
    }
}

export_policy!(ReadyOnly: place);
