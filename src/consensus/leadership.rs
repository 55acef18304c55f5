//! What this node may claim about its leadership, from what openraft reports.
//!
//! "Leader" alone is no permission. The lease runs from the *send* time of a heartbeat round that a quorum acknowledged:
//! each of those voters promised, after that instant, not to elect anybody for the largest election timeout. It is cut to
//! nine tenths of that, which covers monotonic clocks that run up to 5 % apart on both sides. It is given only after a
//! commit in this node's own term, and never again in a term in which leadership was handed over, because a hand-over
//! voids those promises.

use std::time::{Duration, Instant};

use crate::model::{leadership::Leadership, node::NodeId};

/// What openraft reports of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub term: u64,
    pub leader: Option<NodeId>,
    /// This node is the established leader.
    pub leading: bool,
    /// Term of the last entry this node knows to be committed.
    pub committed_term: Option<u64>,
    /// When the newest round that a quorum acknowledged was sent.
    pub quorum_acked: Option<Instant>,
    /// This node alone is the quorum: nobody else can be elected.
    pub sole_voter: bool,
    /// Consensus runs; a failed disk ends it.
    pub running: bool,
}

/// The leases of this process.
#[derive(Clone, Copy, Debug)]
pub struct LeaseBook {
    length: Duration,
    /// The last term in which this node gave leadership up of its own will.
    abdicated: Option<u64>,
    /// The end of the longest lease given out so far.
    given_until: Option<Instant>,
}

impl LeaseBook {
    pub fn new(length: Duration) -> Self {
        Self {
            length,
            abdicated: None,
            given_until: None,
        }
    }

    /// What the servers and the VIP may know now.
    pub fn observe(&mut self, standing: &Standing, now: Instant) -> Leadership {
        if !standing.running {
            return Leadership {
                term: standing.term,
                leader: None,
                lease_until: None,
            };
        }
        let lease_until = self.lease(standing, now);
        self.given_until = self.given_until.max(lease_until);
        Leadership {
            term: standing.term,
            leader: standing.leader,
            lease_until,
        }
    }

    fn lease(&self, standing: &Standing, now: Instant) -> Option<Instant> {
        let entitled = standing.leading
            && standing.committed_term == Some(standing.term)
            && self.abdicated < Some(standing.term);
        let from = match standing.sole_voter {
            true => Some(now),
            false => standing.quorum_acked,
        };
        from.filter(|_| entitled).map(|from| from + self.length)
    }

    /// Gives no lease any more in `term`. Returns until when the leases already given out may be relied upon elsewhere.
    pub fn abdicate(&mut self, term: u64) -> Option<Instant> {
        self.abdicated = self.abdicated.max(Some(term));
        self.given_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Duration = Duration::from_millis(270);

    fn leading(now: Instant) -> Standing {
        Standing {
            term: 5,
            leader: Some(NodeId(1)),
            leading: true,
            committed_term: Some(5),
            quorum_acked: Some(now),
            sole_voter: false,
            running: true,
        }
    }

    #[test]
    fn a_lease_needs_leadership_a_commit_of_the_term_and_an_acknowledged_round() {
        let now = Instant::now();
        let full = leading(now);
        let cases = [
            (full, true),
            (
                Standing {
                    leading: false,
                    ..full
                },
                false,
            ),
            (
                Standing {
                    committed_term: Some(4),
                    ..full
                },
                false,
            ),
            (
                Standing {
                    committed_term: None,
                    ..full
                },
                false,
            ),
            (
                Standing {
                    quorum_acked: None,
                    ..full
                },
                false,
            ),
            (
                Standing {
                    running: false,
                    ..full
                },
                false,
            ),
            (
                Standing {
                    sole_voter: true,
                    quorum_acked: None,
                    ..full
                },
                true,
            ),
        ];
        for (standing, given) in cases {
            let seen = LeaseBook::new(LEASE).observe(&standing, now);
            assert_eq!(
                seen.lease_until,
                given.then_some(now + LEASE),
                "{standing:?}"
            );
        }
    }

    #[test]
    fn the_lease_runs_from_the_send_time() {
        let sent = Instant::now();
        let heard = sent + Duration::from_millis(200);
        let seen = LeaseBook::new(LEASE).observe(&leading(sent), heard);
        assert_eq!(seen.lease_until, Some(sent + LEASE));
        assert!(seen.holds(sent + Duration::from_millis(269)));
        assert!(!seen.holds(sent + LEASE));
    }

    #[test]
    fn a_term_that_was_given_up_is_never_leased_again() {
        let now = Instant::now();
        let mut book = LeaseBook::new(LEASE);
        assert!(book.observe(&leading(now), now).lease_until.is_some());
        assert_eq!(book.abdicate(5), Some(now + LEASE));
        for later in [0, 100, 10_000] {
            let later = now + Duration::from_millis(later);
            assert_eq!(book.observe(&leading(later), later).lease_until, None);
        }
        let next = Standing {
            term: 6,
            committed_term: Some(6),
            ..leading(now)
        };
        assert!(book.observe(&next, now).lease_until.is_some());
    }

    #[test]
    fn a_failed_node_follows_nobody() {
        let now = Instant::now();
        let failed = Standing {
            running: false,
            ..leading(now)
        };
        assert_eq!(LeaseBook::new(LEASE).observe(&failed, now).leader, None);
    }

    proptest! {
        /// Whatever is reported, a lease never outlasts the voters' promise from the acknowledged send time.
        #[test]
        fn no_lease_outlasts_the_promise(
            term in 0u64..4, committed in proptest::option::of(0u64..4), acked in proptest::option::of(0u64..500),
            is_leading: bool, running: bool, abdicated in proptest::option::of(0u64..4), at in 500u64..1000,
        ) {
            let start = Instant::now();
            let mut book = LeaseBook::new(LEASE);
            if let Some(term) = abdicated { book.abdicate(term); }
            let acked = acked.map(|ms| start + Duration::from_millis(ms));
            let standing = Standing {
                term, leader: None, leading: is_leading, committed_term: committed, quorum_acked: acked,
                sole_voter: false, running,
            };
            let seen = book.observe(&standing, start + Duration::from_millis(at));
            if let Some(until) = seen.lease_until {
                prop_assert!(is_leading && running && committed == Some(term));
                prop_assert!(abdicated.is_none_or(|given_up| given_up < term));
                prop_assert!(until <= acked.unwrap() + LEASE);
            }
        }
    }
}
