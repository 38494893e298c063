//! Leases nodes while power is cheap, or clean: a table says what it costs, by the hour of the day or by instants.

use kubeocean_policy_sdk::prelude::*;

/// Hours of a day.
const HOURS: usize = 24;

/// Leases nodes while power is cheap or clean, by a table of prices.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PriceWindow {
    /// Nodes are leased while the price is below this; any unit, that of the table
    below: i64,
    /// Price of each hour of the day in the policy's time zone, from 0 o'clock on
    #[serde(default)]
    #[schemars(length(min = 24, max = 24))]
    hourly: Option<Vec<i64>>,
    /// Prices from instants on, in order of time
    #[serde(default)]
    #[schemars(length(min = 1, max = 1024))]
    prices: Option<Vec<Price>>,
    /// When the last of the prices ends
    #[serde(default)]
    until: Option<Instant>,
    /// What holds before the first of the prices and after the last
    #[serde(default)]
    without_price: WithoutPrice,
    /// What happens to pods that are there when a node is closed; by default they stay
    #[serde(default)]
    reclaim: ReclaimSettings,
}

/// A price that holds until the next one.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Price {
    /// When it begins, such as 2026-03-07T12:00:00Z
    from: Instant,
    price: i64,
}

#[derive(Clone, Copy, Default, Deserialize, JsonSchema)]
enum WithoutPrice {
    /// The nodes are closed
    #[default]
    Close,
    /// The nodes are leased
    Offer,
}

/// How a price is for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Low,
    High,
    Unknown,
}

impl PriceWindow {
    fn level(&self, price: i64) -> Level {
        if price < self.below { Level::Low } else { Level::High }
    }

    fn by_hour(&self, prices: &[i64], now: &Now) -> (Level, Option<i64>) {
        let minute = now.minute_of_day();
        let from_now = || prices.iter().cycle().skip(usize::from(minute / 60)).take(HOURS);
        let levels = || from_now().map(|price| self.level(*price));
        let level = levels().next().unwrap_or(Level::Unknown);
        let other = (0u16..).zip(levels()).find(|(_, other)| *other != level);
        (level, other.map(|(hours, _)| now.after(u32::from(hours * 60 - minute % 60))))
    }

    fn by_instant(&self, prices: &[Price], now: &Now) -> (Level, Option<i64>) {
        let end = self.until.map(Instant::unix_seconds);
        let known = prices.iter().map(|price| (price.from.unix_seconds(), self.level(price.price)));
        let steps = known.chain(end.map(|end| (end, Level::Unknown)));
        let mut level = Level::Unknown;
        for (from, next) in steps {
            if from <= now.unix_seconds() {
                level = next;
            } else if next != level {
                return (level, Some(from));
            }
        }
        (level, None)
    }
}

impl LeasePolicy for PriceWindow {
    fn validate(&self) -> Result<(), String> {
        match (&self.hourly, &self.prices) {
            (Some(_), None) if self.until.is_some() => {
                return Err("settings.until: only with prices".to_owned());
            }
            (Some(_), None) => {}
            (None, Some(prices)) => {
                let instants = prices.iter().map(|price| price.from).chain(self.until);
                if !instants.is_sorted_by(|before, after| before < after) {
                    return Err("settings.prices: must be in order of time, and until the last".to_owned());
                }
            }
            _ => return Err("settings: needs hourly or prices, and not both".to_owned()),
        }
        self.reclaim.resolve().map(drop)
    }

    fn needs(&self) -> Needs {
        Needs::new()
    }

    fn lease(&self, now: &Now, _node: Node<'_>) -> Lease {
        let (level, changes_at) = match (&self.hourly, &self.prices) {
            (Some(prices), _) => self.by_hour(prices, now),
            (None, Some(prices)) => self.by_instant(prices, now),
            (None, None) => (Level::Unknown, None),
        };
        let lease = match (level, self.without_price) {
            (Level::Low, _) => Lease::offer().because("LowPrice", "power is cheap"),
            (Level::Unknown, WithoutPrice::Offer) => {
                Lease::offer().because("NoPrice", "nobody knows the price")
            }
            (Level::High, _) => Lease::withhold("HighPrice", "power is expensive"),
            (Level::Unknown, WithoutPrice::Close) => Lease::withhold("NoPrice", "nobody knows the price"),
        };
        lease.reclaim(self.reclaim.resolve().unwrap_or_default()).until(changes_at)
    }
}

export_policy!(PriceWindow: lease);

#[cfg(test)]
mod tests {
    use super::*;

    /// Cheap at night and around noon.
    const HOURLY: &str = r#"{"below": 30, "hourly": [
        20, 18, 17, 17, 18, 24,  35, 45, 48, 40, 34, 29,  25, 24, 28, 30, 36, 48,  52, 50, 44, 38, 31, 30
    ]}"#;
    const PRICES: &str = r#"{"below": 200, "until": "2026-03-08T00:00:00Z", "prices": [
        {"from": "2026-03-07T00:00:00Z", "price": 310}, {"from": "2026-03-07T09:30:00Z", "price": 180},
        {"from": "2026-03-07T10:00:00Z", "price": 120}, {"from": "2026-03-07T15:30:00Z", "price": 200}
    ]}"#;

    fn at(settings: &str, time: &str, zone: &str) -> (Verdict, String, Option<String>) {
        let answer = Harness::<PriceWindow>::new(settings).at(time, zone).lease();
        (answer.verdict, answer.code().to_owned(), answer.valid_until_local)
    }

    fn told(verdict: Verdict, code: &str, until: Option<&str>) -> (Verdict, String, Option<String>) {
        (verdict, code.to_owned(), until.map(str::to_owned))
    }

    #[test]
    fn a_daily_table_opens_and_closes_at_the_hours_at_which_the_price_crosses_the_line() {
        let zone = "Europe/Rome";
        let open = |until| told(Verdict::Offer, "LowPrice", Some(until));
        let closed = |until| told(Verdict::Withhold, "HighPrice", Some(until));
        assert_eq!(at(HOURLY, "2026-03-07T00:00", zone), open("2026-03-07T06:00"));
        assert_eq!(at(HOURLY, "2026-03-07T05:59:59", zone), open("2026-03-07T06:00"));
        assert_eq!(at(HOURLY, "2026-03-07T06:00", zone), closed("2026-03-07T11:00"));
        assert_eq!(at(HOURLY, "2026-03-07T12:10", zone), open("2026-03-07T15:00"));
        assert_eq!(at(HOURLY, "2026-03-07T15:00", zone), closed("2026-03-08T00:00"), "30 is not below 30");
    }

    #[test]
    fn a_price_that_never_crosses_the_line_is_never_asked_about_again() {
        let always = HOURLY.replace("30, \"hourly\"", "99, \"hourly\"");
        assert_eq!(at(&always, "2026-03-07T12:00", "UTC"), told(Verdict::Offer, "LowPrice", None));
    }

    #[test]
    fn when_the_clock_changes_the_table_is_read_anew() {
        // Rome skips 02:00 to 03:00 on this day.
        let cheap_at_two =
            r#"{"below": 1, "hourly": [1,1,0,1, 1,1,1,1, 1,1,1,1, 1,1,1,1, 1,1,1,1, 1,1,1,1]}"#;
        let told_at = |time: &str| at(cheap_at_two, time, "Europe/Rome").2;
        assert_eq!(told_at("2026-03-29T01:30").as_deref(), Some("2026-03-29T03:00"));
        assert_eq!(told_at("2026-03-29T03:00").as_deref(), Some("2026-03-30T02:00"));
    }

    #[test]
    fn a_table_of_instants_opens_and_closes_at_them() {
        let open = |until| told(Verdict::Offer, "LowPrice", Some(until));
        let closed = |until| told(Verdict::Withhold, "HighPrice", Some(until));
        let at = |time| at(PRICES, time, "UTC");
        assert_eq!(at("2026-03-07T00:00"), closed("2026-03-07T09:30"));
        assert_eq!(at("2026-03-07T09:30"), open("2026-03-07T15:30"), "the price at 10:00 changes nothing");
        assert_eq!(at("2026-03-07T15:29:59"), open("2026-03-07T15:30"));
        assert_eq!(at("2026-03-07T15:30"), closed("2026-03-08T00:00"));
    }

    #[test]
    fn without_a_price_nodes_are_closed_unless_the_settings_say_otherwise() {
        let unknown =
            |time, until| assert_eq!(at(PRICES, time, "UTC"), told(Verdict::Withhold, "NoPrice", until));
        unknown("2026-03-06T12:00", Some("2026-03-07T00:00"));
        unknown("2026-03-08T00:00", None);
        let open = PRICES.replace("{\"below\"", r#"{"withoutPrice": "Offer", "below""#);
        assert_eq!(at(&open, "2026-03-09T00:00", "UTC"), told(Verdict::Offer, "NoPrice", None));
    }

    #[test]
    fn tables_that_say_nothing_or_two_things_are_refused() {
        let refused = |settings: &str| Harness::<PriceWindow>::new(settings).lease_all().unwrap_err();
        assert_eq!(refused(r#"{"below": 1}"#), "settings: needs hourly or prices, and not both");
        let backwards = PRICES.replace("T09:30", "T10:30");
        assert_eq!(refused(&backwards), "settings.prices: must be in order of time, and until the last");
        let tomorrow = PRICES.replace("2026-03-07T09:30:00Z", "tomorrow");
        assert!(refused(&tomorrow).starts_with("settings.prices[1].from: "), "{}", refused(&tomorrow));
    }
}
