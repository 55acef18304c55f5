//! What this node may claim about its leadership, from what openraft reports.
//!
//! "Leader" alone is no permission. The lease runs from the *send* time of a heartbeat round that a quorum acknowledged:
//! each of those voters promised, after that instant, not to elect anybody for a time that it stated (`promise`). It is nine
//! tenths of the smallest of those, which covers monotonic clocks that run up to 5 % apart on both sides. It is given only
//! after the first entry of this node's own term was applied here, and never again in a term in which leadership was handed over.
//!
//! **Hand-over.** The votes that follow a transfer do not wait for the lease to lapse. So a leader first commits whom it gives
//! the VIPs to (`VipRelease`), lets them go, and gives that node, its heir, a *grant* for what is left of its own lease. A new
//! leader that finds a release in its log takes the VIPs at once only if it is the heir; else after a further full lease.

use std::time::{Duration, Instant};

use crate::{
    defect::{self, Defect},
    model::{leadership::Leadership, node::NodeId, timing::lease_of},
    state::cluster::VipRelease,
};

/// What openraft reports of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub term: u64,
    pub leader: Option<NodeId>,
    /// This node is the established leader.
    pub leading: bool,
    /// Term of the last entry that was applied here.
    pub applied_term: Option<u64>,
    /// The release in the state after that entry.
    pub release: Option<VipRelease>,
    /// The smallest time of refusal that the acknowledging voters stated; none while one is not known.
    pub refusal: Option<Duration>,
    /// When the newest round that a quorum acknowledged was sent.
    pub quorum_acked: Option<Instant>,
    /// This node alone is the quorum: nobody else can be elected.
    pub sole_voter: bool,
    /// Consensus runs; a failed disk ends it.
    pub running: bool,
}

/// The right to hold the VIPs that a leader gave away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The term of the leader that gave it.
    pub term: u64,
    /// No later than the end of that leader's lease.
    pub until: Instant,
}

/// The leases of this process.
#[derive(Clone, Copy, Debug)]
pub struct LeaseBook {
    id: NodeId,
    /// The last term in which this node gave leadership up of its own will.
    abdicated: Option<u64>,
    /// The end of the longest lease given out so far.
    given_until: Option<Instant>,
    /// The newest term that this node led, and when it was first seen to.
    elected: Option<(u64, Instant)>,
    grant: Option<Grant>,
    /// A term that this node leads, and that of the grant which lasted until its own lease began.
    unbroken: Option<(u64, u64)>,
}

impl LeaseBook {
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            abdicated: None,
            given_until: None,
            elected: None,
            grant: None,
            unbroken: None,
        }
    }

    /// What the servers and the VIP may know now.
    pub fn observe(&mut self, standing: &Standing, now: Instant) -> Leadership {
        if !standing.running {
            return Leadership {
                term: standing.term,
                ..Leadership::default()
            };
        }
        let newest = self.elected.map(|(term, _)| term);
        if standing.leading && newest < Some(standing.term) {
            self.elected = Some((standing.term, now));
        }
        self.drop_grant(standing, now);
        let own = self.lease(standing, now);
        if let Some(grant) = self.grant.filter(|_| own.is_some()) {
            self.unbroken = Some((standing.term, grant.term));
        }
        let lease_until = own.max(self.grant.map(|grant| grant.until));
        let granted_in = match own {
            Some(_) => self.unbroken.filter(|(term, _)| *term == standing.term),
            None => self.grant.map(|grant| (standing.term, grant.term)),
        };
        self.given_until = self.given_until.max(lease_until);
        Leadership {
            term: standing.term,
            leader: standing.leader,
            lease_until,
            given_up: self.abdicated >= Some(standing.term),
            heir: standing
                .release
                .filter(|r| r.term == standing.term && self.abdicated >= Some(r.term))
                .map(|release| release.to),
            granted_in: granted_in.map(|(_, term)| term),
        }
    }

    /// The lease of this node's own leadership, without what was granted to it.
    pub fn lease(&self, standing: &Standing, now: Instant) -> Option<Instant> {
        let entitled = standing.running
            && standing.leading
            && standing.applied_term == Some(standing.term)
            && self.abdicated < Some(standing.term)
            && self.may_claim(standing, now);
        let refusal = standing.refusal.filter(|_| entitled)?;
        let from = match standing.sole_voter || defect::is(Defect::VipWithoutLease) {
            true => now,
            false => standing.quorum_acked?,
        };
        Some(from + lease_of(refusal))
    }

    /// Whether the release in the state says nothing any more: this node has a lease of its own, in a later term or, as no
    /// abdication followed, in the same.
    pub fn is_release_over(&self, standing: &Standing, now: Instant) -> bool {
        let released = standing.release.is_some_and(|r| r.term <= standing.term);
        released && self.lease(standing, now).is_some()
    }

    /// Whether nobody else can hold a lease or a grant of an earlier term any more.
    fn may_claim(&self, standing: &Standing, now: Instant) -> bool {
        let of_another =
            |release: VipRelease| release.term < standing.term && release.to != self.id;
        if !standing.release.is_some_and(of_another) {
            return true;
        }
        let since = self.elected.map(|(_, at)| at);
        let (Some(since), Some(refusal)) = (since, standing.refusal) else {
            return false;
        };
        now >= since + refusal
    }

    /// A grant ends by its time, and when somebody else leads a later term.
    fn drop_grant(&mut self, standing: &Standing, now: Instant) {
        let id = self.id;
        self.grant = self.grant.filter(|grant| {
            let other = standing.leader.is_some_and(|leader| leader != id);
            now < grant.until && !(other && standing.term > grant.term)
        });
    }

    /// Takes a grant. That of an older term than is known here is late and void.
    pub fn take_grant(&mut self, grant: Grant, term: u64) {
        if grant.term >= term {
            self.grant = Some(grant);
        }
    }

    /// Whether leadership was given up in `term`.
    pub fn has_abdicated(&self, term: u64) -> bool {
        self.abdicated >= Some(term)
    }

    /// When this node was first seen to lead `term`.
    pub fn elected_at(&self, term: u64) -> Option<Instant> {
        self.elected
            .filter(|(led, _)| *led == term)
            .map(|(_, at)| at)
    }

    /// Gives no lease any more in `term`. Returns until when the leases already given out may be relied upon elsewhere.
    pub fn abdicate(&mut self, term: u64) -> Option<Instant> {
        self.abdicated = self.abdicated.max(Some(term));
        self.grant = None;
        self.given_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REFUSAL: Duration = Duration::from_millis(300);
    const LEASE: Duration = Duration::from_millis(270);
    const ME: NodeId = NodeId(1);

    fn leading(now: Instant) -> Standing {
        Standing {
            term: 5,
            leader: Some(NodeId(1)),
            leading: true,
            applied_term: Some(5),
            release: None,
            refusal: Some(REFUSAL),
            quorum_acked: Some(now),
            sole_voter: false,
            running: true,
        }
    }

    #[test]
    fn a_release_is_over_under_a_lease_of_ones_own() {
        let now = Instant::now();
        let after = |to, term| Standing {
            release: Some(VipRelease {
                to: NodeId(to),
                term,
            }),
            ..leading(now)
        };
        let mut book = LeaseBook::new(ME);
        assert!(!book.is_release_over(&leading(now), now), "there is none");
        assert!(book.is_release_over(&after(ME.0, 4), now));
        assert!(!book.is_release_over(&after(2, 4), now), "no lease yet");
        assert!(book.is_release_over(&after(2, 5), now), "no abdication");
        book.abdicate(5);
        assert!(!book.is_release_over(&after(2, 5), now));
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
                    applied_term: Some(4),
                    ..full
                },
                false,
            ),
            (
                Standing {
                    applied_term: None,
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
            (
                Standing {
                    refusal: None,
                    ..full
                },
                false,
            ),
        ];
        for (standing, given) in cases {
            let seen = LeaseBook::new(ME).observe(&standing, now);
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
        let seen = LeaseBook::new(ME).observe(&leading(sent), heard);
        assert_eq!(seen.lease_until, Some(sent + LEASE));
        assert!(seen.holds(sent + Duration::from_millis(269)));
        assert!(!seen.holds(sent + LEASE));
    }

    #[test]
    fn a_term_that_was_given_up_is_never_leased_again() {
        let now = Instant::now();
        let mut book = LeaseBook::new(ME);
        assert!(book.observe(&leading(now), now).lease_until.is_some());
        assert_eq!(book.abdicate(5), Some(now + LEASE));
        for later in [0, 100, 10_000] {
            let later = now + Duration::from_millis(later);
            assert_eq!(book.observe(&leading(later), later).lease_until, None);
        }
        let next = Standing {
            term: 6,
            applied_term: Some(6),
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
        assert_eq!(LeaseBook::new(ME).observe(&failed, now).leader, None);
    }

    fn released(to: u64, term: u64) -> Option<VipRelease> {
        Some(VipRelease {
            to: NodeId(to),
            term,
        })
    }

    #[test]
    fn after_a_release_the_heir_claims_at_once_and_others_after_a_full_lease() {
        let elected = Instant::now();
        let ms = Duration::from_millis;
        // (release in the log, milliseconds since the election, a lease)
        let cases = [
            (None, 0, true),
            (released(1, 4), 0, true),
            (released(2, 4), 0, false),
            (released(2, 4), 299, false),
            (released(2, 4), 300, true),
            // Its own release, not carried out yet.
            (released(2, 5), 0, true),
        ];
        for (release, after, given) in cases {
            let mut book = LeaseBook::new(ME);
            let at = |now| Standing {
                release,
                quorum_acked: Some(now),
                ..leading(now)
            };
            book.observe(&at(elected), elected);
            let now = elected + ms(after);
            let seen = book.observe(&at(now), now);
            assert_eq!(seen.lease_until.is_some(), given, "{release:?} {after}");
        }
    }

    #[test]
    fn a_grant_ends_by_its_time_and_when_another_leads_a_later_term() {
        let now = Instant::now();
        let until = now + Duration::from_millis(100);
        let follower = |term, leader: Option<u64>| Standing {
            term,
            leader: leader.map(NodeId),
            leading: false,
            applied_term: Some(5),
            release: released(1, 5),
            ..leading(now)
        };
        let granted = || {
            let mut book = LeaseBook::new(ME);
            book.take_grant(Grant { term: 5, until }, 5);
            book
        };
        // (standing, milliseconds later, holds)
        let cases = [
            (follower(5, Some(2)), 0, true),
            (follower(5, Some(2)), 99, true),
            (follower(5, Some(2)), 100, false),
            (follower(6, None), 10, true),
            (follower(6, Some(1)), 10, true),
            (follower(6, Some(3)), 10, false),
        ];
        for (standing, later, holds) in cases {
            let at = now + Duration::from_millis(later);
            let seen = granted().observe(&standing, at);
            assert_eq!(
                seen.lease_until,
                holds.then_some(until),
                "{standing:?} {later}"
            );
        }
        let mut late = LeaseBook::new(ME);
        late.take_grant(Grant { term: 5, until }, 6);
        assert_eq!(late.observe(&follower(6, None), now).lease_until, None);
        let mut elected = granted();
        let own = Standing {
            term: 6,
            applied_term: Some(6),
            release: released(1, 5),
            ..leading(now)
        };
        assert_eq!(
            elected.observe(&own, now).lease_until,
            Some(now + LEASE),
            "its own lease goes on where the grant ends"
        );
    }

    proptest! {
        /// Whatever is reported, a lease never outlasts the voters' promise from the acknowledged send time.
        #[test]
        fn no_lease_outlasts_the_promise(
            term in 0u64..4, committed in proptest::option::of(0u64..4), acked in proptest::option::of(0u64..500),
            is_leading: bool, running: bool, abdicated in proptest::option::of(0u64..4), at in 500u64..1000,
        ) {
            let start = Instant::now();
            let mut book = LeaseBook::new(ME);
            if let Some(term) = abdicated { book.abdicate(term); }
            let acked = acked.map(|ms| start + Duration::from_millis(ms));
            let standing = Standing {
                term, leader: None, leading: is_leading, applied_term: committed, release: None, refusal: Some(REFUSAL),
                quorum_acked: acked, sole_voter: false, running,
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
