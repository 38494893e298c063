//! A policy that makes both decisions: the test of the SDK builds it for wasm and looks at its exports.

use kubeocean_policy_sdk::prelude::*;

/// Leases nothing, and lets every pod pass.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Both {}

impl LeasePolicy for Both {
    fn needs(&self) -> Needs {
        Needs::new()
    }

    fn lease(&self, _now: &Now, _node: Node<'_>) -> Lease {
        Lease::withhold("Both", "nothing is leased")
    }
}

impl PlacePolicy for Both {
    fn needs(&self) -> Needs {
        Needs::new()
    }

    fn place(&self, _stage: Stage, _now: &Now, _pod: Pod<'_>, _node: Node<'_>) -> Fit {
        Fit::accept()
    }
}

export_policy!(Both: lease, place);
