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
        Some(text) => instant(text).map(Some).ok_or(key),
    };
    match (read(FROM), read(UNTIL)) {
        (Err(key), _) | (_, Err(key)) => Plan::Unreadable(key),
        (Ok(None), Ok(None)) => Plan::None,
        (Ok(from), Ok(until)) => Plan::Work { from, until },
    }
}

/// Unix seconds of `2026-03-07T12:00:00Z`. Only this one form is taken: what else might be meant is not guessed.
fn instant(text: &str) -> Option<i64> {
    let form = b"0000-00-00T00:00:00Z";
    let fits = text.len() == form.len()
        && text.bytes().zip(form).all(|(is, of)| if *of == b'0' { is.is_ascii_digit() } else { is == *of });
    if !fits {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let of_month = usize::try_from(month - 1).ok().and_then(|index| days.get(index))?;
    if !(1..=*of_month).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days since 1970 in years that begin in March, so that a leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
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

    #[test]
    fn instants_are_unix_seconds() {
        assert_eq!(instant("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(instant("2000-02-29T00:00:01Z"), Some(951_782_401));
        assert_eq!(instant("2026-03-07T12:00:00Z"), Some(1_772_884_800));
        assert_eq!(instant("2100-02-29T00:00:00Z"), None, "2100 is no leap year");
    }
}
