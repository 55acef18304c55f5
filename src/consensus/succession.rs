//! Decides to whom leadership goes, and when a leader gives it away of its own accord: to a fit voter when it is unfit to hold the
//! VIPs, and to the preferred one when that has been fit and caught up for the cool-down.
//!
//! Where the VIPs would only go round, since each voter becomes unfit as soon as it holds them, the moves get rarer (`damping`).
//!
//! Leading and holding go together, so a node that cannot serve should not lead. It does all the same when no voter is fit: VIPs
//! that answer badly are better than none, and an alarm says so.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::model::{leadership::Preference, node::NodeId};

/// Between two tries to give leadership away.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// A voter other than the leader, as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub id: NodeId,
    /// It answered within the last second and has caught up.
    pub ready: bool,
    /// For how much longer others come before it, as leadership was offered to it in vain; zero: it was not.
    pub declined: Duration,
    /// It said lately that it is fit to hold VIPs.
    pub fit: bool,
    /// It became unfit several times of late, and was not fit for long enough since: see `damping`.
    pub damped: bool,
    /// Heartbeats that it seems to have missed, in units that a healthy voter never fills.
    pub missed: u64,
    /// Log entries it is behind.
    pub lag: u64,
}

/// The best of those that are ready: who did not decline lately before others, then the fit.
pub fn best(candidates: &[Candidate]) -> Option<NodeId> {
    let ready = candidates.iter().filter(|c| c.ready);
    ready
        .min_by_key(|c| (c.declined, !c.fit, c.missed, c.lag, c.id))
        .map(|c| c.id)
}

/// As `best`, of those alone that are fit: the VIPs are not to go where they would be dead.
pub fn best_fit(candidates: &[Candidate]) -> Option<NodeId> {
    let fit: Vec<Candidate> = candidates.iter().filter(|c| c.fit).copied().collect();
    best(&fit)
}

/// Who may be given leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heirs {
    Named(NodeId),
    /// As named; but others may do, so one that declines is not asked again.
    Chosen(NodeId),
    /// The voter that is best off: when a node stops, an unfit one is better than none.
    Any,
    /// The fit voter that is best off.
    Fit,
}

impl Heirs {
    pub fn named(self) -> Option<NodeId> {
        match self {
            Self::Named(id) | Self::Chosen(id) => Some(id),
            Self::Any | Self::Fit => None,
        }
    }

    /// If one cannot have it, another may.
    pub fn are_several(self) -> bool {
        self.named().is_none()
    }
}

/// What a leader sees.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    pub me: NodeId,
    /// This leader is fit to hold VIPs.
    pub fit: bool,
    /// It holds the right to: what it does not have it cannot give away.
    pub leased: bool,
    pub preference: Option<Preference>,
    pub candidates: &'a [Candidate],
}

/// Why leadership is given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Unfit,
    Preferred,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Unfit => "this node is unfit to hold the VIPs",
            Why::Preferred => "the preferred node has been fit for the cool-down",
        })
    }
}

/// Follows what a leader sees, from its election on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mover {
    /// In which this node leads.
    term: Option<u64>,
    /// Since when the preferred node has been fit and caught up, as far as this leader saw.
    preferred: Option<(Preference, Instant)>,
    tried: Option<Instant>,
}

impl Mover {
    /// Whom to give leadership to now, if to anybody. A try that failed is repeated after a while.
    pub fn decide(&mut self, seen: &Seen<'_>, now: Instant) -> Option<(NodeId, Why)> {
        let ripe = self.ripe(seen, now);
        let lately = self.tried.is_some_and(|at| now < at + TRY_AGAIN);
        if lately || !seen.leased {
            return None;
        }
        let chosen = match seen.fit {
            true => {
                let declined = |c: &&Candidate| !c.declined.is_zero();
                let mut declined = seen.candidates.iter().filter(declined);
                let ripe = ripe.filter(|id| declined.all(|c| c.id != *id));
                (ripe?, Why::Preferred)
            }
            false => {
                // What makes this node unfit may make each of the others so once it holds the VIPs.
                let is_steady = |c: &&Candidate| c.fit && !c.damped && c.declined.is_zero();
                let steady = seen.candidates.iter().filter(is_steady);
                let steady: Vec<Candidate> = steady.copied().collect();
                let ripe = ripe.filter(|id| steady.iter().any(|c| c.id == *id));
                (ripe.or_else(|| best(&steady))?, Why::Unfit)
            }
        };
        self.tried = Some(now);
        Some(chosen)
    }

    /// What was decided last came to nothing before anything was given up: the node was found to be unfit, or declined.
    pub fn choose_again(&mut self) {
        self.tried = None;
    }

    /// This node leads in `term`. In a new one the cool-down begins anew, though nobody looked while another node led.
    pub fn lead_in(&mut self, term: u64) {
        if self.term != Some(term) {
            *self = Self {
                term: Some(term),
                ..Self::default()
            };
        }
    }

    /// This node does not lead, or does no more: what it saw says nothing about the next time.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The preferred node, if it has been ready and fit for the cool-down, and is trusted to stay so.
    fn ripe(&mut self, seen: &Seen<'_>, now: Instant) -> Option<NodeId> {
        let wanted = seen.preference.filter(|p| p.node != seen.me);
        let Some(preference) = wanted.filter(|p| is_fit(seen, p.node)) else {
            self.preferred = None;
            return None;
        };
        let since = match self.preferred {
            Some((known, since)) if known == preference => since,
            _ => now,
        };
        self.preferred = Some((preference, since));
        (now.saturating_duration_since(since) >= preference.cool_down).then_some(preference.node)
    }
}

fn is_fit(seen: &Seen<'_>, id: NodeId) -> bool {
    let mut candidates = seen.candidates.iter();
    candidates.any(|c| c.id == id && c.ready && c.fit && !c.damped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn voter(id: u64) -> Candidate {
        Candidate {
            id: NodeId(id),
            ready: true,
            fit: true,
            damped: false,
            declined: Duration::ZERO,
            missed: 0,
            lag: 0,
        }
    }

    fn declined(id: u64, left: u64) -> Candidate {
        Candidate {
            declined: ms(left),
            ..voter(id)
        }
    }

    fn not_ready(id: u64) -> Candidate {
        Candidate {
            ready: false,
            ..voter(id)
        }
    }

    fn unfit(id: u64) -> Candidate {
        Candidate {
            fit: false,
            ..voter(id)
        }
    }

    fn damped(id: u64) -> Candidate {
        Candidate {
            damped: true,
            ..voter(id)
        }
    }

    fn late(id: u64, missed: u64, lag: u64) -> Candidate {
        Candidate {
            missed,
            lag,
            ..voter(id)
        }
    }

    fn prefer(id: u64) -> Option<Preference> {
        Some(Preference {
            node: NodeId(id),
            cool_down: ms(10_000),
        })
    }

    #[test]
    fn the_fit_come_first_then_those_that_answer_then_those_that_keep_up() {
        // (candidates, best)
        let cases = [
            (vec![], None),
            (vec![not_ready(2)], None),
            (vec![unfit(2)], Some(2)),
            (vec![unfit(2), voter(3)], Some(3)),
            (vec![late(2, 1, 0), voter(3)], Some(3)),
            (vec![late(2, 0, 9), voter(3)], Some(3)),
            (vec![unfit(2), late(3, 0, 900)], Some(3)),
            (vec![voter(3), voter(2)], Some(2)),
            (vec![declined(2, 9), voter(3)], Some(3)),
            (vec![declined(2, 9), unfit(3)], Some(3)),
            // All declined: who did so longest ago.
            (vec![declined(2, 9), declined(3, 8)], Some(3)),
        ];
        for (candidates, expected) in cases {
            assert_eq!(best(&candidates), expected.map(NodeId), "{candidates:?}");
        }
    }

    #[test]
    fn the_vips_move_on_to_a_fit_voter_that_is_ready_and_to_no_other() {
        let late = late(4, 9, 900);
        // (candidates, best of the fit)
        let cases = [
            (vec![], None),
            (vec![unfit(3)], None),
            (vec![not_ready(2), unfit(3)], None),
            (vec![not_ready(2), unfit(3), late], Some(4)),
            (vec![voter(2), late], Some(2)),
        ];
        for (candidates, expected) in cases {
            assert_eq!(
                best_fit(&candidates),
                expected.map(NodeId),
                "{candidates:?}"
            );
        }
    }

    #[test]
    fn an_unfit_leader_gives_way_to_a_fit_one_and_else_stays() {
        let now = Instant::now();
        // (this one fit, leased, candidates, goes to)
        let cases = [
            (true, true, vec![voter(2)], None),
            (false, true, vec![voter(2)], Some(2)),
            (false, false, vec![voter(2)], None),
            (false, true, vec![unfit(2)], None),
            (false, true, vec![unfit(2), voter(3)], Some(3)),
            (false, true, vec![], None),
            (false, true, vec![damped(2)], None),
            (false, true, vec![damped(2), voter(3)], Some(3)),
            (false, true, vec![declined(2, 9)], None),
            (false, true, vec![declined(2, 9), voter(3)], Some(3)),
        ];
        for (fit, leased, candidates, expected) in cases {
            let seen = Seen {
                me: NodeId(1),
                fit,
                leased,
                preference: None,
                candidates: &candidates,
            };
            let decided = Mover::default().decide(&seen, now);
            let expected = expected.map(|id| (NodeId(id), Why::Unfit));
            assert_eq!(decided, expected, "{seen:?}");
        }
    }

    #[test]
    fn a_preferred_node_that_is_not_trusted_yet_has_to_wait() {
        let now = Instant::now();
        let mut mover = Mover::default();
        let mut decide = |candidate: Candidate, at: u64| {
            let seen = Seen {
                me: NodeId(1),
                fit: true,
                leased: true,
                preference: prefer(2),
                candidates: &[candidate],
            };
            mover.decide(&seen, now + ms(at)).is_some()
        };
        let decided = [
            (damped(2), 0),
            (damped(2), 60_000),
            (voter(2), 61_000),
            (voter(2), 70_000),
            (voter(2), 71_000),
        ];
        assert_eq!(
            decided.map(|(c, at)| decide(c, at)),
            [false, false, false, false, true]
        );
    }

    #[test]
    fn a_failed_try_is_repeated_after_a_while() {
        let now = Instant::now();
        let seen = Seen {
            me: NodeId(1),
            fit: false,
            leased: true,
            preference: None,
            candidates: &[voter(2)],
        };
        let mut mover = Mover::default();
        let tries: Vec<u64> = (0..5000)
            .step_by(200)
            .filter(|at| mover.decide(&seen, now + ms(*at)).is_some())
            .collect();
        assert_eq!(tries, [0, 2000, 4000]);
    }

    #[test]
    fn the_preferred_node_gets_the_vips_after_the_cool_down_and_not_while_it_comes_and_goes() {
        let start = Instant::now();
        let ready = [voter(2), voter(3)];
        let unfit = [unfit(2), voter(3)];
        let seen = |candidates| Seen {
            me: NodeId(1),
            fit: true,
            leased: true,
            preference: prefer(2),
            candidates,
        };
        let mut mover = Mover::default();
        for at in (0..9_000).step_by(200) {
            assert_eq!(mover.decide(&seen(&ready), start + ms(at)), None);
        }
        assert_eq!(mover.decide(&seen(&unfit), start + ms(9_000)), None);
        for at in (9_200..19_200).step_by(200) {
            assert_eq!(mover.decide(&seen(&ready), start + ms(at)), None);
        }
        let ripe = Some((NodeId(2), Why::Preferred));
        assert_eq!(mover.decide(&seen(&ready), start + ms(19_200)), ripe);
        // Whoever is preferred itself stays.
        let own = Seen {
            preference: prefer(1),
            ..seen(&ready)
        };
        assert_eq!(mover.decide(&own, start + ms(60_000)), None);
    }

    #[test]
    fn the_cool_down_begins_anew_with_every_term() {
        let start = Instant::now();
        let ready = [voter(2), voter(3)];
        let seen = Seen {
            me: NodeId(1),
            fit: true,
            leased: true,
            preference: prefer(2),
            candidates: &ready,
        };
        let mut mover = Mover::default();
        // The other node leads in terms 2 and 4, too briefly for this one to look meanwhile. (term, from, to)
        for (term, from, to) in [(1, 0, 10_000), (3, 10_200, 20_200), (5, 20_400, 30_400)] {
            for at in (from..to).step_by(200) {
                mover.lead_in(term);
                assert_eq!(mover.decide(&seen, start + ms(at)), None, "{term}, at {at}");
            }
            mover.lead_in(term);
            let ripe = Some((NodeId(2), Why::Preferred));
            assert_eq!(mover.decide(&seen, start + ms(to)), ripe);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Three nodes whose interfaces come and go at random, each leader beginning anew: VIPs go to the preferred node at most once a
        /// cool-down, and only to a node that is fit.
        #[test]
        fn at_most_one_move_by_preference_a_cool_down(turns in prop::collection::vec((0u64..3, any::<bool>()), 0..400)) {
            let start = Instant::now();
            let (mut leader, mut mover) = (1u64, Mover::default());
            let mut fit = [true; 3];
            let mut by_preference: Vec<u64> = vec![];
            for (step, (node, is_fit)) in (0u64..).zip(turns) {
                fit[usize::try_from(node).unwrap()] = is_fit;
                let at = step * 700;
                let candidates: Vec<Candidate> = (1..=3u64)
                    .filter(|id| *id != leader)
                    .map(|id| Candidate { fit: fit[usize::try_from(id - 1).unwrap()], ..voter(id) })
                    .collect();
                let seen = Seen {
                    me: NodeId(leader),
                    fit: fit[usize::try_from(leader - 1).unwrap()],
                    leased: true,
                    preference: prefer(2),
                    candidates: &candidates,
                };
                if let Some((to, why)) = mover.decide(&seen, start + ms(at)) {
                    prop_assert!(fit[usize::try_from(to.0 - 1).unwrap()]);
                    prop_assert_ne!(to.0, leader);
                    if why == Why::Preferred {
                        prop_assert!(by_preference.last().is_none_or(|last| at - last >= 10_000));
                        by_preference.push(at);
                    }
                    leader = to.0;
                    mover.clear();
                }
            }
        }
    }
}
