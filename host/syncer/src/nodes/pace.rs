//! How many nodes may lose their lease per minute (`--reclaim-max-nodes-per-minute`): a policy that is deleted, or a
//! selector that is edited, by mistake then takes the work of a few nodes and not of all.
//!
//! Only the beginning of a withdrawal is paced, and only one that has no other reason than a policy or selector: a node
//! that is gone waits for nobody.

use std::{collections::VecDeque, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_mins(1);

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Pace {
    /// 0 is unlimited.
    per_minute: u32,
    begun: Mutex<VecDeque<Instant>>,
}

impl Pace {
    /// `per_minute` withdrawals at most; 0 is unlimited.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, begun: Mutex::default() }
    }

    /// Takes a turn; or says how long to wait for one.
    pub fn begin(&self, now: Instant) -> Option<Duration> {
        if self.per_minute == 0 {
            return None;
        }
        let mut begun = self.begun.lock();
        while begun.front().is_some_and(|at| now.duration_since(*at) >= MINUTE) {
            begun.pop_front();
        }
        match begun.front() {
            Some(first) if begun.len() >= usize::try_from(self.per_minute).unwrap_or(usize::MAX) => {
                Some(MINUTE.saturating_sub(now.duration_since(*first)))
            }
            _ => {
                begun.push_back(now);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_minute_begin_and_the_others_wait() {
        let (pace, start) = (Pace::new(2), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(pace.begin(at(0)), None);
        assert_eq!(pace.begin(at(10)), None);
        assert_eq!(pace.begin(at(20)), Some(Duration::from_secs(40)));
        assert_eq!(pace.begin(at(60)), None);
        assert_eq!(pace.begin(at(60)), Some(Duration::from_secs(10)));
        let free = Pace::new(0);
        assert!((0..1000).all(|_| free.begin(start).is_none()));
    }
}
