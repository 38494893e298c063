//! Maintenance that is announced on a node closes it in time, so that it is empty when the work begins.

use kubeocean_policy_sdk::prelude::*;

/// When the work begins: an RFC 3339 instant in UTC, such as `2026-03-07T12:00:00Z`. Without it the node is closed
/// from now on.
const FROM: &str = "maintenance/from";
/// When the work is over. Without it the node stays closed while [`FROM`] is there.
const UNTIL: &str = "maintenance/until";

/// Closes nodes ahead of a maintenance that their annotations announce.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DrainWindow {
    /// Minutes before the work begins at which a node is closed for new pods
    #[serde(default = "ahead_minutes")]
    #[schemars(range(max = 10_080))]
    ahead_minutes: u16,
    /// What happens to pods that are there when it is closed; by default they stay
    #[serde(default)]
    reclaim: ReclaimSettings,
}

fn ahead_minutes() -> u16 {
    60
}

/// What the annotations of a node say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    None,
    /// Unix seconds.
    Work {
        from: Option<i64>,
        until: Option<i64>,
    },
    Unreadable(&'static str),
}

fn plan(node: Node<'_>) -> Plan {
    let read = |key: &'static str| match node.annotation(key) {
        None => Ok(None),
        Some(text) => text.parse::<Instant>().map(|instant| Some(instant.unix_seconds())).map_err(|_| key),
    };
    match (read(FROM), read(UNTIL)) {
        (Err(key), _) | (_, Err(key)) => Plan::Unreadable(key),
        (Ok(None), Ok(None)) => Plan::None,
        (Ok(from), Ok(until)) => Plan::Work { from, until },
    }
}

impl LeasePolicy for DrainWindow {
    fn validate(&self) -> Result<(), String> {
        self.reclaim.resolve().map(drop)
    }

    fn needs(&self) -> Needs {
        Needs::new().annotation(FROM).annotation(UNTIL)
    }

    fn lease(&self, now: &Now, node: Node<'_>) -> Lease {
        let (from, until) = match plan(node) {
            Plan::None => return Lease::offer().until(None),
            Plan::Unreadable(key) => {
                return Lease::withhold(
                    "Unreadable",
                    format!("annotation {key} is no time such as 2026-03-07T12:00:00Z"),
                )
                .until(None);
            }
            Plan::Work { from, until } => (from, until),
        };
        let now = now.unix_seconds();
        if until.is_some_and(|until| until <= now) {
            return Lease::offer().until(None);
        }
        let closes = from.map(|from| from - i64::from(self.ahead_minutes) * 60);
        if let Some(closes) = closes.filter(|closes| now < *closes) {
            // Of two times in the wrong order, the earlier is when the answer may change.
            let next = until.map_or(closes, |until| until.min(closes));
            return Lease::offer().until(next);
        }
        Lease::withhold("Maintenance", "the node is about to be worked on")
            .reclaim(self.reclaim.resolve().unwrap_or_default())
            .until(until)
    }
}

export_policy!(DrainWindow: lease);

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: &str = r#"{"aheadMinutes": 30, "reclaim": {"mode": "Graceful", "graceSeconds": 1800}}"#;

    fn announced() -> Fixture {
        node! { "annotations": {
            "maintenance/from": "2026-03-07T12:00:00Z", "maintenance/until": "2026-03-07T14:00:00Z",
        } }
    }

    fn at(time: &str, node: Fixture) -> LeaseAnswer {
        Harness::<DrainWindow>::new(SETTINGS).node(node).at(time, "UTC").lease()
    }

    #[test]
    fn a_node_is_closed_ahead_of_the_work_and_open_after_it() {
        let early = at("2026-03-07T11:29", announced());
        assert_eq!(early.verdict, Verdict::Offer);
        assert_eq!(early.valid_until_local.as_deref(), Some("2026-03-07T11:30"));
        let closed = at("2026-03-07T11:30", announced());
        assert_eq!((closed.verdict, closed.code()), (Verdict::Withhold, "Maintenance"));
        assert_eq!(closed.reclaim, Reclaim::Graceful(1800), "its pods have left when the work begins");
        assert_eq!(closed.valid_until_local.as_deref(), Some("2026-03-07T14:00"));
        let over = at("2026-03-07T14:00", announced());
        assert_eq!((over.verdict, over.valid_until), (Verdict::Offer, None));
    }

    #[test]
    fn a_node_without_announcement_is_open() {
        let answer = at("2026-03-07T12:00", node! {});
        assert_eq!((answer.verdict, answer.valid_until), (Verdict::Offer, None));
    }

    #[test]
    fn work_without_an_end_closes_until_the_annotation_goes() {
        let answer =
            at("2026-03-09T12:00", node! { "annotations": {"maintenance/from": "2026-03-07T12:00:00Z"} });
        assert_eq!((answer.verdict, answer.valid_until), (Verdict::Withhold, None));
    }

    #[test]
    fn a_time_nobody_can_read_closes_the_node() {
        for text in
            ["tomorrow", "2026-02-29T12:00:00Z", "2026-03-07T24:00:00Z", "2026-03-07T12:00:00+01:00", ""]
        {
            let answer = at("2026-03-07T12:00", node! { "annotations": {"maintenance/until": text} });
            assert_eq!((answer.verdict, answer.code()), (Verdict::Withhold, "Unreadable"), "{text}");
        }
    }
}
