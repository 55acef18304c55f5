//! Which fault comes when: drawn from a seed, and from nothing else.

use std::{collections::BTreeSet, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::{Kind, Lane};
use crate::{checker::visibility, workload::Workload};

/// Before the first fault: what the cluster does undisturbed is part of the picture.
const CALM: Duration = Duration::from_millis(2500);
/// Between two faults, in milliseconds. Well above the time in which a VIP must not come back (`Bounds::fastest_return`).
const GAP_MS: std::ops::Range<u64> = 500..2500;
/// Share of faults that begin while one of the other lane is open.
const OVERLAPPING: f64 = 0.3;
/// Share of faults aimed at the leader, where the kind leaves a choice.
const AT_LEADER: f64 = 0.6;

/// A run of so long has some of its time to spare for clients alone.
const SPARING: Duration = Duration::from_secs(300);
/// What was changed as peace began is owed a moment before the end: some looks for it then tell what became of it.
const MARGIN: Duration = Duration::from_secs(2);

/// A fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Since the beginning of the run.
    pub at: Duration,
    pub lasts: Duration,
    pub kind: Kind,
    /// Whoever leads then is hit; otherwise another node.
    pub at_leader: bool,
    /// Decides what is left open: which other node, how much.
    pub draw: u64,
}

/// The faults of a run of so long. Every kind comes once before any comes again; the first one that can hit a leader does.
pub fn plan(seed: u64, kinds: &BTreeSet<Kind>, time: Duration) -> Vec<Planned> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut planned: Vec<Planned> = vec![];
    let mut deck: Vec<Kind> = vec![];
    let mut now = CALM;
    while !kinds.is_empty() {
        if deck.is_empty() {
            deck.extend(kinds);
            deck.shuffle(&mut rng);
        }
        let Some(kind) = deck.pop() else { break };
        let (shortest, longest) = kind.lasts_ms();
        let lasts = Duration::from_millis(rng.random_range(shortest..=longest));
        let was_aimed = |before: &Planned| before.at_leader && before.kind.can_hit_leader();
        let at_leader =
            rng.random_bool(AT_LEADER) || (kind.can_hit_leader() && !planned.iter().any(was_aimed));
        let overlaps = rng.random_bool(OVERLAPPING);
        let part = rng.random_range(0.1..0.9);
        let gap = Duration::from_millis(rng.random_range(GAP_MS));
        let draw = rng.random();
        let at = match planned.last() {
            Some(last) if overlaps && may_overlap(&planned, last, kind) => {
                last.at + last.lasts.mul_f64(part)
            }
            Some(_) => now + gap,
            None => now,
        };
        if at + lasts > time {
            break;
        }
        now = now.max(at + lasts);
        planned.push(Planned {
            at,
            lasts,
            kind,
            at_leader,
            draw,
        });
    }
    planned
}

/// How long before its end a run of so long has its last fault: somebody looks in peace, too, for what was changed. `recovery` is the bound
/// that is given to the cluster after its faults.
///
/// Zero where there is nothing to make peace after, or nobody who looks ([`Workload::Acme`]); in a run of less than 300 s, whose time is all
/// for its faults; and where it would be more than half of the run.
pub fn peace(
    workloads: &BTreeSet<Workload>,
    kinds: &BTreeSet<Kind>,
    time: Duration,
    recovery: Duration,
) -> Duration {
    let needed = recovery + visibility::PATIENCE + MARGIN;
    let is_looked_for = !kinds.is_empty() && workloads.contains(&Workload::Acme);
    match is_looked_for && time >= SPARING && needed <= time / 2 {
        true => needed,
        false => Duration::ZERO,
    }
}

/// Only with one of the other lane, and only two at once.
fn may_overlap(planned: &[Planned], last: &Planned, kind: Kind) -> bool {
    let lanes = [last.kind.lane(), kind.lane()];
    let before = planned.len().checked_sub(2).and_then(|at| planned.get(at));
    !lanes.contains(&Lane::Alone)
        && lanes.first() != lanes.last()
        && before.is_none_or(|before| before.at + before.lasts <= last.at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn all() -> BTreeSet<Kind> {
        Kind::ALL.iter().copied().collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_faults_and_another_one_others() {
        assert_eq!(plan(7, &all(), LONG), plan(7, &all(), LONG));
        assert_ne!(plan(7, &all(), LONG), plan(8, &all(), LONG));
        assert_eq!(plan(7, &BTreeSet::new(), LONG), vec![]);
    }

    #[test]
    fn a_longer_run_begins_like_a_shorter_one() {
        let short = plan(7, &all(), LONG / 4);
        assert!(short.len() > 5);
        assert_eq!(short, plan(7, &all(), LONG)[..short.len()]);
    }

    #[test]
    fn a_long_run_ends_in_peace_where_somebody_looks_for_what_was_changed() {
        let second = Duration::from_secs;
        let every: BTreeSet<Workload> = Workload::ALL.iter().copied().collect();
        let of = |workloads: &BTreeSet<Workload>, kinds: &BTreeSet<Kind>, time, recovery| {
            peace(workloads, kinds, second(time), second(recovery)).as_secs()
        };
        assert_eq!(of(&every, &all(), 300, 20), 32);
        assert_eq!(of(&[Workload::Acme].into(), &all(), 300, 30), 42);
        assert_eq!(of(&every, &all(), 299, 20), 0, "too short");
        assert_eq!(of(&every, &BTreeSet::new(), 300, 20), 0, "no faults");
        let blind = every.iter().copied().filter(|one| *one != Workload::Acme);
        let blind: BTreeSet<Workload> = blind.collect();
        assert_eq!(of(&blind, &all(), 300, 20), 0, "nobody looks");
        assert_eq!(of(&every, &all(), 300, 138), 150);
        assert_eq!(of(&every, &all(), 300, 139), 0, "more than half");
    }

    proptest! {
        /// The least that `visibility` needs to judge what was changed in peace, and never most of the run.
        #[test]
        fn peace_is_long_enough_for_a_look_that_is_due(time in 1..86_400_u64, recovery in 1..600_u64) {
            let every = Workload::ALL.iter().copied().collect();
            let (time, recovery) = (Duration::from_secs(time), Duration::from_secs(recovery));
            let peace = peace(&every, &all(), time, recovery);
            prop_assert!(peace <= time / 2);
            prop_assert!(peace.is_zero() || peace > recovery + visibility::PATIENCE);
        }

        #[test]
        fn faults_end_in_time_and_never_hinder_each_other(seed: u64) {
            let planned = plan(seed, &all(), LONG);
            let used: BTreeSet<Kind> = planned.iter().map(|one| one.kind).collect();
            prop_assert_eq!(used, all());
            let mut able = planned.iter().filter(|fault| fault.kind.can_hit_leader());
            prop_assert!(able.next().is_none_or(|first| first.at_leader));
            for (place, one) in planned.iter().enumerate() {
                prop_assert!(one.at >= CALM && one.at + one.lasts <= LONG);
                let open = planned[..place].iter().filter(|other| other.at + other.lasts > one.at);
                let open: Vec<_> = open.collect();
                prop_assert!(open.len() <= 1, "{open:?} and {one:?}");
                for other in open {
                    prop_assert!(other.at <= one.at);
                    prop_assert_ne!(other.kind.lane(), one.kind.lane());
                    prop_assert!(other.kind.lane() != Lane::Alone && one.kind.lane() != Lane::Alone);
                }
            }
        }
    }
}
