//! What a Syncer recorded: the nodes of a week, and decisions; and policies that may be asked about them.

#![allow(dead_code, reason = "each test file uses what it needs")]

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binary::file;

/// Saturday, 2026-03-07, midnight in Shanghai.
const BEGIN: i64 = 1_772_812_800;
const HOUR: i64 = 3600;

/// 64 nodes with 8 GPUs each, of which others use 2; on Monday noon 20 nodes are used up.
pub(crate) fn week(directory: &TempDir) -> String {
    let begin = jiff::Timestamp::from_second(BEGIN).expect("an instant");
    let mut text = json!({
        "kubeoceanSnapshot": 1, "binding": "gpu-binding", "clusterId": "c1", "at": begin, "hashed": false
    })
    .to_string()
        + "\n";
    for number in 0..64 {
        let node = format!("node-{number}");
        let facts = json!({
            "nodeName": node, "labels": {"pool": "online"}, "allocatable": {"nvidia.com/gpu": 8, "cpu": 64000},
            "used": {"nvidia.com/gpu": 2}, "leased": {"pods": 1}, "ready": true, "schedulable": true,
        });
        text += &(json!({"at": BEGIN, "node": node, "facts": facts}).to_string() + "\n");
    }
    for number in 0..20 {
        let change = json!({
            "at": BEGIN + 60 * HOUR, "node": format!("node-{number}"), "facts": {"used": {"nvidia.com/gpu": 8}}
        });
        text += &(change.to_string() + "\n");
    }
    text += &(json!({"at": BEGIN + 7 * 24 * HOUR, "end": true}).to_string() + "\n");
    file(directory, "week.snap", text.as_bytes())
}

/// A file with one policy.
pub(crate) fn rlp(directory: &TempDir, name: &str, spec: &Value) -> String {
    let policy = json!({"kind": "ResourceLeasingPolicy", "metadata": {"name": "night"}, "spec": spec});
    file(directory, name, policy.to_string().as_bytes())
}

/// The record of a decision: 7 millicores of a node that was created then, by the module with this digest.
pub(crate) fn decision(created: i64, digest: &str) -> String {
    json!({
        "entry": "p/e", "digest": digest, "settings": "{}", "at": BEGIN, "utcOffsetSeconds": 0,
        "facts": {"node.created": created}, "verdict": "offer", "reclaim": "keep", "caps": {"cpu": 7},
        "validUntil": null, "reason": null,
    })
    .to_string()
        + "\n"
}
