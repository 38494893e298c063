//! What a Syncer's policy server is asked and answers (PO-608), and where it says that it is.

use std::{fmt, net::SocketAddr, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Path of questions about places; also what a role allows (`post`).
pub const PLACE_PATH: &str = "/policy/place";
/// Path of the recorded decisions; also what a role allows (`get`).
pub const DECISIONS_PATH: &str = "/policy/decisions";

/// Audience of the token a Manager shows to policy servers: with it nothing else can be had, wherever it gets.
pub const AUDIENCE: &str = "kubeocean.io/policy-server";

/// The leader Lease of the Syncer of a clusterID, as the chart names it (MC-701).
pub fn syncer_lease(cluster_id: &str) -> String {
    format!("kubeocean-syncer-{cluster_id}")
}

/// What holds while an entry gives no answer (PO-803).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnError {
    /// Its last good answer, else what is published.
    #[default]
    LastKnown,
    /// Withheld without reclaim; no pod gets there.
    Deny,
    /// The entry is left out.
    Ignore,
}

/// Who asks (PO-107).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The scheduler compares candidates.
    Schedule,
    /// The pod is bound, and its copy is about to be made.
    Admit,
}

/// Body of a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Who asks.
    pub stage: Stage,
    /// The whole pod, as the scheduler sent it.
    pub pod: Arc<Value>,
    /// Names of vnodes.
    pub nodes: Vec<String>,
    /// How long whoever asks waits for the answer, in milliseconds.
    pub timeout_milliseconds: u64,
}

/// Whether a pod may go to a vnode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// It may.
    Accept,
    /// It may not, and it would not help if other pods left.
    Reject,
    /// Not now.
    Later,
}

/// Body of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// What holds for the vnodes of this Syncer while it cannot be asked.
    pub on_error: OnError,
    /// One per vnode that is its own, in the order asked; names of others are left out.
    pub rows: Vec<Row>,
}

/// What holds for one vnode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The vnode.
    pub node: String,
    /// Whether the pod may go there.
    pub fit: Fit,
    /// After how many seconds to ask again; only with [`Fit::Later`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u32>,
    /// How good a place it is, 0..=100.
    pub score: u8,
    /// Code of the reason; empty when accepted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// Its text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// `<policy>/<entry>` that gave it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub entry: String,
}

/// Where a Syncer's policy server is, and how to know that it is the right one: `https://<address>#<SHA-256, hex>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// SHA-256 of its certificate.
    pub sha256: [u8; 32],
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}#{}", self.address, hex::encode(self.sha256))
    }
}

/// A text that is no [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no https://<address>:<port>#<SHA-256 in hex>")]
pub struct NoEndpoint(String);

impl FromStr for Endpoint {
    type Err = NoEndpoint;

    fn from_str(text: &str) -> Result<Self, NoEndpoint> {
        let read = || {
            let (address, sha256) = text.strip_prefix("https://")?.split_once('#')?;
            let sha256 = hex::decode(sha256).ok()?.try_into().ok()?;
            Some(Self { address: address.parse().ok()?, sha256 })
        };
        read().ok_or_else(|| NoEndpoint(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_endpoint_is_read_as_it_is_written() {
        for address in ["10.0.0.7:9443", "[fd00::7]:9443"] {
            let endpoint = Endpoint { address: address.parse().unwrap(), sha256: [0xab; 32] };
            let text = endpoint.to_string();
            assert_eq!(text, format!("https://{address}#{}", "ab".repeat(32)));
            assert_eq!(text.parse(), Ok(endpoint));
        }
        for wrong in [
            "",
            "https://10.0.0.7:9443",
            "https://10.0.0.7:9443#ab",
            "http://10.0.0.7:9443#",
            "https://h:1#00",
        ] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn bodies_are_those_of_the_specification() {
        let pod = json!({"metadata": {"name": "p"}});
        let question = Question {
            stage: Stage::Schedule,
            pod: Arc::new(pod.clone()),
            nodes: vec!["vnode-a-1".to_owned()],
            timeout_milliseconds: 700,
        };
        let said = serde_json::to_value(&question).unwrap();
        assert_eq!(
            said,
            json!({"stage": "schedule", "pod": pod, "nodes": ["vnode-a-1"], "timeoutMilliseconds": 700})
        );
        assert_eq!(serde_json::from_value::<Question>(said).unwrap(), question);
        let answer = json!({"onError": "Deny", "rows": [
            {"node": "a", "fit": "accept", "score": 7},
            {"node": "b", "fit": "later", "seconds": 5, "score": 0, "code": "C", "message": "m", "entry": "p/e"},
        ]});
        let read: Answer = serde_json::from_value(answer.clone()).unwrap();
        assert_eq!(
            (read.on_error, read.rows[1].fit, read.rows[1].seconds),
            (OnError::Deny, Fit::Later, Some(5))
        );
        assert_eq!(serde_json::to_value(&read).unwrap(), answer);
    }
}
