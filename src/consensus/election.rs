//! When this node asks to be elected, and when a leader sends heartbeats: numbers in, instants out.
//!
//! openraft's own timers are off, because they cannot be changed while it runs. Voters campaign in the order of their rank, a
//! `stagger` apart: drawn at random, two of them would now and then split the votes, and the election take twice as long.
//! Every campaign begins with a pre-vote, so that one in vain disturbs nobody.

use std::time::{Duration, Instant};

use crate::model::timing::Timing;

/// What a voter without a leader sees.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub timing: Timing,
    /// Not before this: the process was started a moment ago.
    pub opens_at: Instant,
    /// The last sign of life of a leader.
    pub heard: Option<Instant>,
    /// Until when this node promised a leader to elect nobody else, itself included: longer than the present timing says, if that was
    /// shortened since.
    pub promised_until: Option<Instant>,
    /// When this node last gave its vote, to itself or another.
    pub voted: Option<Instant>,
    /// Its place among the voters that may campaign, from 0.
    pub rank: u32,
    /// There is no other voter: nobody can have been promised anything.
    pub alone: bool,
}

/// The attempts since a leader was last heard.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attempts {
    last: Option<Instant>,
    count: u32,
    heard: Option<Instant>,
}

impl Attempts {
    /// When to campaign, if nothing happens before.
    pub fn due(&mut self, seen: &Seen) -> Instant {
        if seen.heard > self.heard {
            *self = Self {
                heard: seen.heard,
                ..Self::default()
            };
        }
        let turn = seen.timing.stagger() * seen.rank;
        let silence = seen
            .heard
            .map(|at| at + seen.timing.election_timeout_max + turn);
        let vote = seen
            .voted
            .map(|at| at + seen.timing.election_timeout_min + turn);
        let again = self.last.map(|at| at + self.pause(&seen.timing));
        let others = [silence, vote].map(|at| at.filter(|_| !seen.alone));
        let promise = seen.promised_until.map(|at| at + turn);
        // Nodes that start together have heard nobody: their turns are all that keeps their campaigns apart.
        let opens = match seen.alone {
            true => seen.opens_at,
            false => seen.opens_at + turn,
        };
        [Some(opens), again, promise]
            .into_iter()
            .chain(others)
            .flatten()
            .max()
            .unwrap_or(opens)
    }

    pub fn made(&mut self, at: Instant) {
        self.last = Some(at);
        self.count = self.count.saturating_add(1);
    }

    /// Soon at first: another voter heard one heartbeat more. Then ever more seldom: there is no quorum.
    fn pause(&self, timing: &Timing) -> Duration {
        let doublings = self.count.saturating_sub(1).min(8);
        (timing.stagger() * (1 << doublings)).min(timing.election_timeout_max)
    }
}

/// Between two rounds of heartbeats. While the voters do not all count time alike yet, the shortest refusal sets the pace.
pub fn heartbeat_every(timing: &Timing, smallest_refusal: Option<Duration>) -> Duration {
    let bearable = smallest_refusal.map_or(timing.heartbeat, |refusal| refusal / 5);
    timing
        .heartbeat
        .min(bearable)
        .max(Duration::from_millis(10))
}

/// Whether a leader that no quorum has answered for `unanswered` sends a heartbeat. One that only a minority hears must let it
/// go now and then, or it would keep those voters from electing a leader whom a quorum hears.
pub fn may_heartbeat(unanswered: Duration, timing: &Timing) -> bool {
    let slot = timing.election_timeout_max * 3;
    let Some(lost) = unanswered.checked_sub(timing.election_timeout_max * 2) else {
        return true;
    };
    (lost.as_nanos() / slot.as_nanos().max(1)) % 2 == 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn seen(start: Instant) -> Seen {
        Seen {
            timing: Timing::LAN,
            opens_at: start,
            heard: Some(start + ms(1000)),
            promised_until: None,
            voted: None,
            rank: 0,
            alone: false,
        }
    }

    #[test]
    fn campaigns_are_due_by_rank_after_the_refusal() {
        let start = Instant::now();
        let full = seen(start);
        // (what is seen, due after the start)
        let cases = [
            (full, 1280),
            (Seen { rank: 1, ..full }, 1320),
            (Seen { rank: 3, ..full }, 1400),
            (
                Seen {
                    heard: None,
                    ..full
                },
                0,
            ),
            (
                Seen {
                    alone: true,
                    ..full
                },
                0,
            ),
            (
                Seen {
                    opens_at: start + ms(5000),
                    ..full
                },
                5000,
            ),
            // All were started together.
            (
                Seen {
                    opens_at: start + ms(5000),
                    heard: None,
                    rank: 2,
                    ..full
                },
                5080,
            ),
            (
                Seen {
                    opens_at: start + ms(5000),
                    heard: None,
                    rank: 2,
                    alone: true,
                    ..full
                },
                5000,
            ),
            (
                Seen {
                    promised_until: Some(start + ms(3500)), // before the timing was shortened
                    rank: 1,
                    ..full
                },
                3540,
            ),
            (
                Seen {
                    voted: Some(start + ms(1285)),
                    ..full
                },
                1485,
            ),
            (
                Seen {
                    voted: Some(start + ms(1285)),
                    rank: 2,
                    ..full
                },
                1565,
            ),
        ];
        for (seen, due) in cases {
            assert_eq!(Attempts::default().due(&seen), start + ms(due), "{seen:?}");
        }
    }

    #[test]
    fn attempts_in_vain_become_rarer_until_a_leader_is_heard() {
        let start = Instant::now();
        let full = seen(start);
        let mut attempts = Attempts::default();
        let mut at = start;
        let mut gaps = vec![];
        for _ in 0..6 {
            let due = attempts.due(&full);
            gaps.push((due - at).as_millis());
            at = due;
            attempts.made(at);
        }
        assert_eq!(gaps, [1280, 40, 80, 160, 280, 280]);
        let heard = Seen {
            heard: Some(at),
            ..full
        };
        assert_eq!(attempts.due(&heard), at + ms(280));
    }

    #[test]
    fn the_shortest_refusal_sets_the_pace() {
        assert_eq!(heartbeat_every(&Timing::LAN, None), ms(40));
        assert_eq!(heartbeat_every(&Timing::LAN, Some(ms(280))), ms(40));
        assert_eq!(heartbeat_every(&Timing::WAN, Some(ms(180))), ms(36));
        assert_eq!(heartbeat_every(&Timing::FAST, Some(ms(2500))), ms(20));
    }

    #[test]
    fn a_leader_without_a_quorum_falls_silent_by_turns() {
        // (unanswered for, sends)
        for (unanswered, sends) in [
            (0, true),
            (559, true),
            (560, false),
            (1399, false),
            (1400, true),
            (2239, true),
            (2240, false),
        ] {
            assert_eq!(
                may_heartbeat(ms(unanswered), &Timing::LAN),
                sends,
                "{unanswered}"
            );
        }
    }

    proptest! {
        /// Nobody campaigns before its own promise has ended.
        #[test]
        fn no_campaign_within_the_refusal(
            heard in 0u64..10_000,
            promised in prop::option::of(0u64..40_000),
            voted in prop::option::of(0u64..10_000),
            rank in 0u32..5,
            alone: bool,
            tries in 0u32..20,
        ) {
            let start = Instant::now();
            let seen = Seen {
                heard: Some(start + ms(heard)),
                promised_until: promised.map(|at| start + ms(at)),
                alone,
                voted: voted.map(|at| start + ms(at)),
                rank,
                ..seen(start)
            };
            let mut attempts = Attempts::default();
            for _ in 0..=tries {
                let due = attempts.due(&seen);
                prop_assert!(alone || due >= start + ms(heard) + seen.timing.election_timeout_max);
                prop_assert!(seen.promised_until <= Some(due));
                attempts.made(due);
            }
        }
    }
}
