//! A snapshot as text: the table of vnodes, and one line of totals.

use comfy_table::{ContentArrangement, Table, presets};

use super::observe::{Amounts, Snapshot, Vnode};

const GIB: i64 = 1 << 30;
const GPU: &str = "nvidia.com/gpu";

/// The table, then the totals.
pub(crate) fn full(snapshot: &Snapshot, totals: &str) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["vnode", "cpu", "memory", "gpu", "pods", "policy", "lease", "why"]);
    for vnode in &snapshot.vnodes {
        table.add_row([
            vnode.name.clone(),
            of(vnode, "cpu", |millis| decimal(millis, 1_000)),
            of(vnode, "memory", |bytes| format!("{}Gi", bytes / GIB)),
            of(vnode, GPU, |count| count.to_string()),
            vnode.pods.to_string(),
            vnode.policy.clone(),
            state(vnode),
            why(vnode),
        ]);
    }
    format!("{table}\n{totals}")
}

/// Leased of what the worker node has.
fn of(vnode: &Vnode, resource: &str, show: impl Fn(i64) -> String) -> String {
    let amount = |amounts: &Amounts| amounts.get(resource).copied().unwrap_or(0);
    match (amount(&vnode.amounts), amount(&vnode.origin)) {
        (_, 0) => "-".to_owned(),
        (leased, origin) => format!("{} of {}", show(leased), show(origin)),
    }
}

fn state(vnode: &Vnode) -> String {
    match (vnode.lease.0.as_str(), vnode.ready) {
        ("True", true) => "open",
        ("True", false) => "not ready",
        ("False", _) => "withheld",
        ("Unknown", _) => "held",
        _ => "-",
    }
    .to_owned()
}

/// Reason, what limits which resource, and until when that holds.
fn why(vnode: &Vnode) -> String {
    let mut parts = vec![vnode.lease.1.clone()];
    if let Some(limits) = vnode.decision["limitedBy"].as_object() {
        let short = |resource: &str| resource.rsplit('/').next().unwrap_or(resource).to_owned();
        parts.extend(limits.iter().filter_map(|(resource, entry)| {
            Some(format!("{} by {}", short(resource), entry.as_str()?.trim_start_matches("legacy-")))
        }));
    }
    if let Some(until) = vnode.decision["validUntil"].as_str().and_then(local_time) {
        parts.push(format!("until {until}"));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

fn local_time(text: &str) -> Option<String> {
    let instant: jiff::Timestamp = text.parse().ok()?;
    Some(instant.to_zoned(super::clock::zone().0).strftime("%a %H:%M").to_string())
}

/// `3.5` of 3500 and 1000.
fn decimal(amount: i64, unit: i64) -> String {
    let tenths = amount * 10 / unit;
    if tenths % 10 == 0 { (tenths / 10).to_string() } else { format!("{}.{}", tenths / 10, tenths % 10) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_vnode_says_what_it_offers_and_why() {
        let vnode = Vnode {
            name: "vnode-dc-east-batch-0".to_owned(),
            ready: true,
            amounts: [("cpu".to_owned(), 3_500)].into(),
            origin: [("cpu".to_owned(), 8_000)].into(),
            lease: ("True".to_owned(), "CpuPercentage".to_owned()),
            decision: json!({"limitedBy": {"cpu": "legacy-resource-limits"}}),
            ..Vnode::default()
        };
        assert_eq!(of(&vnode, "cpu", |millis| decimal(millis, 1_000)), "3.5 of 8");
        assert_eq!(of(&vnode, GPU, |count| count.to_string()), "-");
        assert_eq!(state(&vnode), "open");
        assert_eq!(why(&vnode), "CpuPercentage, cpu by resource-limits");
    }
}
