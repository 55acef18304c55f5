//! Counts how often each node became unfit to hold VIPs, and decides for how long it is no target of a hand-over for that.
//!
//! Some faults show only at the holder: a VIP that cannot be bound, as long as a stopped process keeps its address. Each node
//! that gets such a VIP becomes unfit, gives it on, and is fit again a moment later: without a memory the VIPs and leadership would
//! go round for ever. Every node keeps its own, of what the others say of themselves, so that it outlasts each leader.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::model::node::NodeId;

/// Faults that cost nothing: a node that was mended may get the VIPs at once.
const FREE_FAULTS: u32 = 1;
/// Pause after the first fault beyond those; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Fit for so long, a node has no faults any more.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// The faults of the other nodes.
#[derive(Clone, Debug, Default)]
pub struct Damping(BTreeMap<NodeId, Faults>);

/// Those of one node.
#[derive(Clone, Copy, Debug)]
struct Faults {
    count: u32,
    /// When it said last that it is unfit.
    last: Instant,
    /// It says so still.
    lasts: bool,
}

impl Damping {
    /// Takes in what a node said of itself at `now`.
    pub fn observe(&mut self, node: NodeId, fit: bool, now: Instant) {
        let known = self.0.get(&node).copied();
        let known = known.filter(|faults| !faults.is_forgiven(now));
        let next = match (known, fit) {
            (None, true) => None,
            (Some(faults), true) => Some(Faults {
                lasts: false,
                ..faults
            }),
            (known, false) => Some(Faults {
                count: match known {
                    None => 1,
                    Some(faults) if faults.lasts => faults.count,
                    Some(faults) => faults.count.saturating_add(1),
                },
                last: now,
                lasts: true,
            }),
        };
        match next {
            Some(faults) => self.0.insert(node, faults),
            None => self.0.remove(&node),
        };
    }

    /// Whether this node is not to get VIPs now from one that is unfit.
    pub fn is_damped(&self, node: NodeId, now: Instant) -> bool {
        let faults = self.0.get(&node);
        faults.is_some_and(|faults| now.saturating_duration_since(faults.last) < faults.pause())
    }

    /// Forgets nodes that are not asked any more.
    pub fn retain(&mut self, asked: impl Fn(NodeId) -> bool) {
        self.0.retain(|node, _| asked(*node));
    }
}

impl Faults {
    fn is_forgiven(&self, now: Instant) -> bool {
        !self.lasts && now.saturating_duration_since(self.last) >= FORGIVEN_AFTER
    }

    /// How long the node has to be fit before it gets VIPs.
    fn pause(&self) -> Duration {
        match self.count.checked_sub(FREE_FAULTS + 1) {
            None => Duration::ZERO,
            Some(doubled) => FIRST_PAUSE
                .saturating_mul(2_u32.saturating_pow(doubled))
                .min(LONGEST_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::consensus::succession::{Candidate, Mover, Seen};

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_pause_grows_with_each_fault_and_ends_after_a_quiet_time() {
        let (start, node) = (Instant::now(), NodeId(2));
        let mut damping = Damping::default();
        let mut at = start;
        for pause in [0, 10, 20, 40, 80, 160, 300, 300] {
            // One fault, however often it is told.
            for _ in 0..3 {
                at += s(1);
                damping.observe(node, false, at);
            }
            damping.observe(node, true, at + s(1));
            let until = at + s(pause);
            assert!(!damping.is_damped(node, until), "{pause}");
            if pause > 0 {
                assert!(damping.is_damped(node, until - s(1)), "{pause}");
            }
            at = until;
        }
        at += s(600);
        damping.observe(node, true, at);
        damping.observe(node, false, at);
        assert!(!damping.is_damped(node, at), "all is forgiven");
        damping.observe(node, true, at);
        damping.observe(node, false, at);
        assert!(damping.is_damped(node, at));
        damping.retain(|_| false);
        assert!(!damping.is_damped(node, at));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Three nodes none of which can hold the VIPs: whoever gets them is unfit some seconds later, and fit again some seconds
        /// after it gave them away. Without damping they would move several hundred times an hour.
        #[test]
        fn vips_that_nobody_can_hold_move_ever_more_seldom(
            falls in prop::collection::vec(1u64..8, 3),
            rises in prop::collection::vec(1u64..8, 3),
        ) {
            let start = Instant::now();
            let (mut leader, mut since, mut mover) = (0usize, 0u64, Mover::default());
            let mut let_go = [None::<u64>; 3];
            let mut seen_by: [Damping; 3] = Default::default();
            let mut moves: Vec<u64> = vec![];
            for second in 0..3_600u64 {
                let now = start + s(second);
                let fit = |node: usize| match node == leader {
                    true => second < since + falls[node],
                    false => let_go[node].is_none_or(|at| second >= at + rises[node]),
                };
                let fits = [fit(0), fit(1), fit(2)];
                for (node, damping) in seen_by.iter_mut().enumerate() {
                    for other in (0..3).filter(|other| *other != node) {
                        damping.observe(NodeId(other as u64), fits[other], now);
                    }
                }
                let candidates: Vec<Candidate> = (0..3)
                    .filter(|other| *other != leader)
                    .map(|other| Candidate {
                        id: NodeId(other as u64),
                        ready: true,
                        fit: fits[other],
                        damped: seen_by[leader].is_damped(NodeId(other as u64), now),
                        declined: Duration::ZERO,
                        missed: 0,
                        lag: 0,
                    })
                    .collect();
                let seen = Seen {
                    me: NodeId(leader as u64),
                    fit: fits[leader],
                    leased: true,
                    preference: None,
                    candidates: &candidates,
                };
                if let Some((to, _)) = mover.decide(&seen, now) {
                    moves.push(second);
                    let_go[leader] = Some(second);
                    (leader, since) = (to.0 as usize, second);
                    mover.clear();
                }
            }
            let within = |from: u64, to: u64| moves.iter().filter(|at| (from..to).contains(*at)).count();
            prop_assert!(within(0, 600) <= 24, "{moves:?}");
            for from in (600..3_000).step_by(300) {
                prop_assert!(within(from, from + 600) <= 15, "{from}: {moves:?}");
            }
            // It goes on trying.
            prop_assert!(within(2_400, 3_600) > 0, "{moves:?}");
        }
    }
}
