//! How many nodes may lose their lease per minute (`--reclaim-max-nodes-per-minute`): a policy that is deleted, or a
//! selector that is edited, by mistake then takes the work of a few nodes and not of all.
//!
//! Only the beginning of a withdrawal is paced, and only one that has no other reason than a policy or selector: a node
//! that is gone waits for nobody.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::index::VnodeName;

const MINUTE: Duration = Duration::from_mins(1);

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Pace {
    /// 0 is unlimited.
    per_minute: u32,
    begun: Mutex<VecDeque<(Instant, VnodeName)>>,
}

impl Pace {
    /// `per_minute` withdrawals at most; 0 is unlimited.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, begun: Mutex::default() }
    }

    /// Takes a turn for a vnode; or says how long to wait for one. A turn is taken once, also if the first write of the
    /// withdrawal meets a conflict and is planned again.
    pub fn begin(&self, vnode: &VnodeName, now: Instant) -> Option<Duration> {
        if self.per_minute == 0 {
            return None;
        }
        let mut begun = self.begun.lock();
        while begun.front().is_some_and(|(at, _)| now.duration_since(*at) >= MINUTE) {
            begun.pop_front();
        }
        if begun.iter().any(|(_, taken)| taken == vnode) {
            return None;
        }
        match begun.front() {
            Some((first, _)) if begun.len() >= usize::try_from(self.per_minute).unwrap_or(usize::MAX) => {
                Some(MINUTE.saturating_sub(now.duration_since(*first)))
            }
            _ => {
                begun.push_back((now, Arc::clone(vnode)));
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
        let [a, b, c, d]: [VnodeName; 4] = ["a", "b", "c", "d"].map(Arc::from);
        assert_eq!(pace.begin(&a, at(0)), None);
        assert_eq!(pace.begin(&b, at(10)), None);
        assert_eq!(pace.begin(&a, at(11)), None, "it has its turn");
        assert_eq!(pace.begin(&c, at(20)), Some(Duration::from_secs(40)));
        assert_eq!(pace.begin(&c, at(60)), None);
        assert_eq!(pace.begin(&d, at(60)), Some(Duration::from_secs(10)));
        let free = Pace::new(0);
        assert!((0..1000).all(|_| free.begin(&a, start).is_none()));
    }
}
