//! The states of a leased node and the clock of a forced reclaim (BU section 8, BU-906, BU-907).
//!
//! In: the decision, what the vnode carries, now. Out: state, taint, start of the grace period, and when to look again.
//! Invariant: only a good decision starts a countdown; an error continues one at most, an invalid policy not even that.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use kubeocean_api::keys::{annotation, taint};

use super::{
    decision::{Decision, Reclaim, Standing, Verdict},
    terms::{Terms, earlier, unless_to_come},
    view::{NO_EXECUTE, NO_SCHEDULE, NodeView, Taint},
};
use kubeocean_runtime::clock::{parse_rfc3339, rfc3339};

/// State of a node that stays leased (BU-906). Withdrawn nodes are [`super::withdraw`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Every entry offers.
    Open,
    /// An earlier state stands, because the policy is invalid or a module does not answer.
    Held,
    /// Closed, pods stay.
    Withheld,
    /// Closed, pods are evicted at `until`.
    Closing {
        /// End of the grace period.
        until: Timestamp,
    },
    /// Closed, pods are being evicted.
    Closed,
    /// Closed, and pods stay as long as the worker is out of reach.
    Suspended,
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Held => f.write_str("held"),
            Self::Withheld => f.write_str("withheld"),
            Self::Closing { until } => write!(f, "closing, pods are evicted at {}", rfc3339(*until)),
            Self::Closed => f.write_str("closed, pods are evicted"),
            Self::Suspended => f.write_str("closed, pods are evicted when the worker answers"),
        }
    }
}

/// What follows from a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reclaiming {
    /// State.
    pub state: LeaseState,
    /// The out-of-window taint, if any.
    pub taint: Option<Taint>,
    /// Start of a forced reclaim; kept on the vnode while it is under way.
    pub since: Option<Timestamp>,
}

impl Reclaiming {
    /// The same while the worker is out of reach: nothing is evicted by what its owner cannot change meanwhile, and no copy
    /// would end of it. The countdown goes on.
    #[must_use]
    pub fn suspended(mut self) -> Self {
        if self.state == LeaseState::Closed {
            self.state = LeaseState::Suspended;
            self.taint = self.taint.map(|taint| Taint { effect: NO_SCHEDULE.into(), ..taint });
        }
        self
    }
}

/// What the vnode tells about a reclaim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// When its out-of-window taint was set.
    added: Option<Timestamp>,
    /// Start of a forced reclaim that runs already.
    since: Option<Timestamp>,
    /// Announced by the last good decision.
    announced: Option<Reclaim>,
}

impl Observed {
    /// Reads a vnode. What a user broke is read as absent, and what is known beside it counts where it is stricter.
    pub fn of(vnode: Option<&NodeView>, known: &Terms, now: Timestamp) -> Self {
        let Some(vnode) = vnode else { return Self::default() };
        let taint = vnode.taint(taint::OUT_OF_TIME_WINDOWS);
        let added = taint.and_then(|taint| parse_rfc3339(taint.time_added.as_deref()?));
        let added = unless_to_come(added, now);
        // With the taint both go in one write, so it counts also where a user took the taint off. The original records no
        // start and marks it by the taint's effect.
        let recorded = vnode.annotation(annotation::RECLAIM_SINCE).and_then(parse_rfc3339);
        let marked = taint.filter(|taint| taint.effect == NO_EXECUTE).and(added);
        let announced = vnode.annotation(annotation::RECLAIM).and_then(parse_reclaim);
        Self {
            added,
            since: earlier(
                unless_to_come(recorded, now).or(marked),
                unless_to_come(known.reclaim_since, now),
            ),
            announced: [announced, known.announced].into_iter().flatten().reduce(Reclaim::stricter),
        }
    }
}

/// See the module documentation.
pub fn reclaiming(decision: &Decision, observed: &Observed, now: Timestamp) -> Reclaiming {
    if !decision.withheld {
        let state = if decision.verdict == Verdict::Held { LeaseState::Held } else { LeaseState::Open };
        return Reclaiming { state, taint: None, since: None };
    }
    let resting = if decision.verdict == Verdict::Held { LeaseState::Held } else { LeaseState::Withheld };
    let (mode, since) = match observed.since {
        _ if decision.policy_invalid => (Reclaim::Keep, None),
        Some(since) => (decision.reclaim.stricter(standing(decision, observed)), Some(since)),
        None => (decision.reclaim, None),
    };
    let Some(grace) = grace_of(mode) else {
        return Reclaiming {
            state: resting,
            taint: Some(withholding(NO_SCHEDULE, observed, now)),
            since: None,
        };
    };
    let since = since.unwrap_or(now);
    let until = since.saturating_add(grace).unwrap_or(Timestamp::MAX);
    let (state, effect) = if now >= until {
        (LeaseState::Closed, NO_EXECUTE)
    } else {
        (LeaseState::Closing { until }, NO_SCHEDULE)
    };
    Reclaiming { state, taint: Some(withholding(effect, observed, now)), since: Some(since) }
}

/// What entries without an answer add to a countdown that runs.
fn standing(decision: &Decision, observed: &Observed) -> Reclaim {
    match decision.standing {
        Standing::Mode(mode) => mode,
        Standing::Recorded => observed.announced.unwrap_or(Reclaim::Keep),
    }
}

/// The taint, with the time it was first set.
fn withholding(effect: &str, observed: &Observed, now: Timestamp) -> Taint {
    let time_added = observed.added.map_or_else(|| rfc3339(now), rfc3339);
    Taint {
        time_added: Some(time_added.into()),
        ..Taint::new(taint::OUT_OF_TIME_WINDOWS, Some("true"), effect)
    }
}

/// Grace of a mode that evicts.
fn grace_of(mode: Reclaim) -> Option<SignedDuration> {
    match mode {
        Reclaim::Keep => None,
        Reclaim::Graceful(seconds) => Some(SignedDuration::from_secs(i64::from(seconds))),
        Reclaim::Force => Some(SignedDuration::ZERO),
    }
}

/// Value of annotation `reclaim`.
pub fn format_reclaim(mode: Reclaim) -> String {
    match mode {
        Reclaim::Keep => "keep".to_owned(),
        Reclaim::Graceful(seconds) => format!("graceful:{seconds}"),
        Reclaim::Force => "force".to_owned(),
    }
}

/// Reads annotation `reclaim`; garbage is absent.
pub fn parse_reclaim(text: &str) -> Option<Reclaim> {
    match text {
        "keep" => Some(Reclaim::Keep),
        "force" => Some(Reclaim::Force),
        _ => text.strip_prefix("graceful:")?.parse().ok().map(Reclaim::Graceful),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::{decision::DecisionReason, view::NodeSpec};
    use rstest::rstest;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn decision(verdict: Verdict, withheld: bool, reclaim: Reclaim, announce: bool, code: &str) -> Decision {
        let reason = DecisionReason { entry: String::new(), code: code.into(), message: String::new() };
        Decision { verdict, withheld, reclaim, announce, reason: Some(reason), ..Decision::default() }
    }

    /// An entry gives no answer, and what stands for it withholds.
    fn held(standing: Standing) -> Decision {
        let held = decision(Verdict::Held, true, Reclaim::Keep, false, "ModuleFailed");
        Decision { standing, ..held }
    }

    fn closed(reclaim: Reclaim) -> Decision {
        decision(Verdict::Withhold, true, reclaim, true, "OutsideTimeWindow")
    }

    /// The vnode after the answer was written.
    fn written(reclaiming: &Reclaiming, announced: Reclaim) -> Observed {
        Observed {
            added: reclaiming.taint.as_ref().and_then(|t| parse_rfc3339(t.time_added.as_deref()?)),
            since: reclaiming.since,
            announced: Some(announced),
        }
    }

    fn effect(reclaiming: &Reclaiming) -> Option<&str> {
        reclaiming.taint.as_ref().map(|taint| taint.effect.as_str())
    }

    #[rstest]
    #[case::open(decision(Verdict::Offer, false, Reclaim::Force, true, "Offered"), LeaseState::Open, None)]
    #[case::last_known_open(
        decision(Verdict::Held, false, Reclaim::Keep, false, "ModuleFailed"),
        LeaseState::Held,
        None
    )]
    #[case::invalid(
        Decision { policy_invalid: true, ..held(Standing::Recorded) },
        LeaseState::Held,
        Some("NoSchedule")
    )]
    #[case::held_by_force_starts_nothing(
        held(Standing::Mode(Reclaim::Force)),
        LeaseState::Held,
        Some("NoSchedule")
    )]
    #[case::keep(closed(Reclaim::Keep), LeaseState::Withheld, Some("NoSchedule"))]
    #[case::graceful(closed(Reclaim::Graceful(60)), LeaseState::Closing { until: at(60) }, Some("NoSchedule"))]
    #[case::force(closed(Reclaim::Force), LeaseState::Closed, Some("NoExecute"))]
    #[case::graceful_zero(closed(Reclaim::Graceful(0)), LeaseState::Closed, Some("NoExecute"))]
    fn states_of_a_fresh_node(
        #[case] decision: Decision,
        #[case] state: LeaseState,
        #[case] taint: Option<&str>,
    ) {
        let answer = reclaiming(&decision, &Observed::default(), at(0));
        assert_eq!(answer.state, state);
        assert_eq!(effect(&answer), taint);
    }

    #[test]
    fn the_grace_period_survives_restarts_and_keeps_the_first_time() {
        let first = reclaiming(&closed(Reclaim::Graceful(60)), &Observed::default(), at(0));
        let vnode = written(&first, Reclaim::Graceful(60));
        let later = reclaiming(&closed(Reclaim::Graceful(60)), &vnode, at(59));
        assert_eq!(later, first);
        let over = reclaiming(&closed(Reclaim::Graceful(60)), &vnode, at(60));
        assert_eq!(over.state, LeaseState::Closed);
        assert_eq!(effect(&over), Some("NoExecute"));
        assert_eq!(over.taint.unwrap().time_added, first.taint.unwrap().time_added);
    }

    #[test]
    fn a_reclaim_that_is_forced_late_starts_its_grace_then() {
        let withheld = reclaiming(&closed(Reclaim::Keep), &Observed::default(), at(0));
        let vnode = written(&withheld, Reclaim::Keep);
        let forced = reclaiming(&closed(Reclaim::Graceful(60)), &vnode, at(1000));
        assert_eq!(forced.state, LeaseState::Closing { until: at(1060) });
        assert_eq!(forced.taint.unwrap().time_added, withheld.taint.unwrap().time_added);
    }

    #[test]
    fn an_original_vnode_under_forced_reclaim_keeps_its_start() {
        let taint = Taint {
            time_added: Some(rfc3339(at(0)).into()),
            ..Taint::new(taint::OUT_OF_TIME_WINDOWS, Some("true"), NO_EXECUTE)
        };
        let vnode = NodeView {
            spec: NodeSpec { taints: [taint].into(), ..NodeSpec::default() },
            ..NodeView::default()
        };
        let vnode = Observed::of(Some(&vnode), &Terms::default(), at(30));
        let answer = reclaiming(&closed(Reclaim::Graceful(60)), &vnode, at(30));
        assert_eq!(answer.state, LeaseState::Closing { until: at(60) });
    }

    #[test]
    fn opening_forgets_the_countdown() {
        let closing = reclaiming(&closed(Reclaim::Graceful(60)), &Observed::default(), at(0));
        let open = decision(Verdict::Offer, false, Reclaim::Graceful(60), true, "Offered");
        let answer = reclaiming(&open, &written(&closing, Reclaim::Graceful(60)), at(10));
        assert_eq!(answer, Reclaiming { state: LeaseState::Open, taint: None, since: None });
    }

    const GRACEFUL: Standing = Standing::Mode(Reclaim::Graceful(60));

    #[rstest]
    #[case::an_error_continues_a_countdown(held(GRACEFUL), 60, LeaseState::Closed)]
    #[case::and_does_not_hurry_it(held(GRACEFUL), 59, LeaseState::Closing { until: at(60) })]
    #[case::nobody_remembers_but_the_vnode(held(Standing::Recorded), 59, LeaseState::Closing { until: at(60) })]
    #[case::the_entry_kept_pods(held(Standing::default()), 60, LeaseState::Held)]
    #[case::a_good_answer_keeps_pods(
        Decision { verdict: Verdict::Withhold, ..held(Standing::default()) }, 60, LeaseState::Withheld
    )]
    #[case::a_good_answer_is_stricter(
        Decision { verdict: Verdict::Withhold, reclaim: Reclaim::Graceful(10), ..held(GRACEFUL) }, 10, LeaseState::Closed
    )]
    #[case::an_invalid_policy_stops_it(
        Decision { policy_invalid: true, ..held(GRACEFUL) }, 60, LeaseState::Held
    )]
    fn countdown_under_an_error(#[case] failed: Decision, #[case] second: i64, #[case] state: LeaseState) {
        let closing = reclaiming(&closed(Reclaim::Graceful(60)), &Observed::default(), at(0));
        let answer = reclaiming(&failed, &written(&closing, Reclaim::Graceful(60)), at(second));
        assert_eq!(answer.state, state);
    }

    #[rstest]
    fn an_error_starts_no_countdown(
        #[values(Standing::Recorded, Standing::Mode(Reclaim::Force), GRACEFUL)] standing: Standing,
        #[values(Verdict::Held, Verdict::Withhold)] verdict: Verdict,
    ) {
        let withheld = reclaiming(&closed(Reclaim::Keep), &Observed::default(), at(0));
        let vnode = Observed { announced: Some(Reclaim::Force), ..written(&withheld, Reclaim::Force) };
        let answer = reclaiming(&Decision { verdict, ..held(standing) }, &vnode, at(5));
        assert_eq!((effect(&answer), answer.since), (Some("NoSchedule"), None));
    }

    #[rstest]
    #[case("keep", Some(Reclaim::Keep))]
    #[case("force", Some(Reclaim::Force))]
    #[case("graceful:600", Some(Reclaim::Graceful(600)))]
    #[case("graceful:-1", None)]
    #[case("soon", None)]
    fn the_reclaim_annotation(#[case] text: &str, #[case] mode: Option<Reclaim>) {
        assert_eq!(parse_reclaim(text), mode);
        if let Some(mode) = mode {
            assert_eq!(format_reclaim(mode), text);
        }
    }
}
