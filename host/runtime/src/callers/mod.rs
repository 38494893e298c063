//! Who calls a server of ours, and what the caller may: asked of the computing cluster, remembered for a while.

pub mod access;
pub mod cache;
pub mod token;
pub mod user;

use kube::Client;
use serde_json::Value;

use crate::{error::ApplyError, request::create_json};

/// Has the computing cluster judge a review; without an answer the text says why, and what to do about it.
async fn judge(computing: &Client, path: &str, body: &Value) -> Result<Value, String> {
    create_json(computing, path, body).await.map_err(|error| match error {
        ApplyError::Forbidden { .. } => format!(
            "{}; let this program's ServiceAccount create tokenreviews and subjectaccessreviews, as the chart does",
            error.chain()
        ),
        _ => error.chain(),
    })
}
