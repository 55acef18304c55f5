//! Decides for how long a VIP that is new in the state is not claimed, while it is looked whether a foreign host has it.
//!
//! Whatever else changes in the state meanwhile: each VIP has a time of its own, which begins when it is first seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::machine::Target;

/// How long it is looked whether a foreign host has a VIP that is claimed for the first time: four questions, a quarter of a second apart.
///
/// DEVIATION from RFC 5227 section 2.1.1: shorter than its four to seven seconds, which are meant for hosts that switch on
/// together behind slow switches.
pub const FIRST_LOOK: Duration = Duration::from_secs(1);

/// VIPs that nobody held before, and until when it is looked at least.
#[derive(Clone, Debug, Default)]
pub struct FirstLooks(BTreeMap<Target, Instant>);

impl FirstLooks {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, target: &Target) -> bool {
        self.0.contains_key(target)
    }

    /// What is not to be claimed.
    pub fn targets(&self) -> BTreeSet<Target> {
        self.0.keys().cloned().collect()
    }

    /// Begins to look for those of `targets`, the VIPs of the state, that are new. `before`: those that it had before.
    pub fn begin(&mut self, before: &BTreeSet<Target>, targets: &BTreeSet<Target>, now: Instant) {
        // One that goes to another interface is not new, if this node held it.
        let claimed = before.iter().filter(|target| !self.contains(target));
        let known: BTreeSet<IpAddr> = claimed.map(|target| target.address).collect();
        for target in targets.iter().filter(|t| !known.contains(&t.address)) {
            self.0.entry(target.clone()).or_insert(now + FIRST_LOOK);
        }
    }

    /// Forgets what is not in the state any more: if it comes back, it is new.
    pub fn forget_unless(&mut self, known: &BTreeSet<Target>) {
        self.0.retain(|target, _| known.contains(target));
    }

    /// Takes in the time: those are left that have to wait still, and those that a foreign host spoke for.
    pub fn observe(&mut self, is_spoken_for: impl Fn(&Target) -> bool, now: Instant) {
        self.0
            .retain(|target, until| now < *until || is_spoken_for(target));
    }

    /// Nobody waits any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// When to call `observe` though nothing happened.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.0.values().filter(|until| now < **until).min().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn on(interface: &str, n: u8) -> Target {
        Target {
            address: [10, 77, 0, n].into(),
            interface: interface.parse().unwrap(),
        }
    }

    #[test]
    fn changes_of_the_state_do_not_put_a_first_look_off() {
        let (a, b, moved) = (on("lan", 1), on("lan", 2), on("wan", 1));
        // The VIPs of each state, those that are waited for then, and those 600 ms later.
        type Round = (Vec<Target>, Vec<Target>, Vec<Target>);
        let cases: [(&str, Vec<Round>); 5] = [
            (
                "the same again",
                vec![
                    (vec![a.clone()], vec![a.clone()], vec![a.clone()]),
                    (vec![a.clone()], vec![a.clone()], vec![]),
                    (vec![a.clone()], vec![], vec![]),
                ],
            ),
            (
                "another one comes",
                vec![
                    (vec![a.clone()], vec![a.clone()], vec![a.clone()]),
                    (
                        vec![a.clone(), b.clone()],
                        vec![a.clone(), b.clone()],
                        vec![b.clone()],
                    ),
                    (vec![a.clone(), b.clone()], vec![b.clone()], vec![]),
                ],
            ),
            (
                "it goes and comes back",
                vec![
                    (vec![a.clone()], vec![a.clone()], vec![a.clone()]),
                    (vec![], vec![], vec![]),
                    (vec![a.clone()], vec![a.clone()], vec![a.clone()]),
                    (vec![a.clone()], vec![a.clone()], vec![]),
                ],
            ),
            (
                "it goes to another interface meanwhile",
                vec![
                    (vec![a.clone()], vec![a.clone()], vec![a.clone()]),
                    (
                        vec![moved.clone()],
                        vec![moved.clone()],
                        vec![moved.clone()],
                    ),
                    (vec![moved.clone()], vec![moved.clone()], vec![]),
                ],
            ),
            (
                "it goes to another interface when this node has it",
                vec![
                    (vec![a.clone()], vec![a.clone()], vec![a.clone()]),
                    (vec![a.clone()], vec![a.clone()], vec![]),
                    (vec![moved.clone()], vec![], vec![]),
                ],
            ),
        ];
        for (name, rounds) in cases {
            let mut now = Instant::now();
            let (mut looks, mut before) = (FirstLooks::default(), BTreeSet::new());
            for (number, (targets, at_once, later)) in rounds.into_iter().enumerate() {
                let targets = targets.into_iter().collect();
                looks.begin(&before, &targets, now);
                looks.forget_unless(&targets);
                before = targets;
                let at_once = at_once.into_iter().collect();
                assert_eq!(looks.targets(), at_once, "{name}, state {number}");
                now += Duration::from_millis(600);
                looks.observe(|_| false, now);
                let later = later.into_iter().collect();
                assert_eq!(looks.targets(), later, "{name}, after state {number}");
            }
        }
    }

    #[test]
    fn one_that_a_foreign_host_speaks_for_waits_until_it_does_not() {
        let now = Instant::now();
        let mut looks = FirstLooks::default();
        looks.begin(&BTreeSet::new(), &[on("lan", 1)].into(), now);
        assert_eq!(looks.next_deadline(now), Some(now + FIRST_LOOK));
        let later = now + FIRST_LOOK * 5;
        looks.observe(|_| true, later);
        assert!(looks.contains(&on("lan", 1)));
        assert_eq!(
            looks.next_deadline(later),
            None,
            "whoever hears the host tells"
        );
        looks.observe(|_| false, later);
        assert!(looks.is_empty());
    }

    proptest! {
        /// Whatever the state does, a VIP waits for one look from when it came, and not longer.
        #[test]
        fn each_waits_for_its_own_time(
            states in prop::collection::vec((0u64..700, prop::collection::btree_set(0u8..4, 0..4)), 1..40),
        ) {
            let mut now = Instant::now();
            let (mut looks, mut before) = (FirstLooks::default(), BTreeSet::new());
            let mut came: BTreeMap<Target, Instant> = BTreeMap::new();
            for (pause, vips) in states {
                now += Duration::from_millis(pause);
                looks.observe(|_| false, now);
                let targets: BTreeSet<Target> = vips.into_iter().map(|n| on("lan", n)).collect();
                looks.begin(&before, &targets, now);
                looks.forget_unless(&targets);
                came.retain(|target, _| targets.contains(target));
                for target in &targets {
                    came.entry(target.clone()).or_insert(now);
                }
                before = targets;
                let waiting = came.iter().filter(|(_, came)| now < **came + FIRST_LOOK);
                let waiting: BTreeSet<Target> = waiting.map(|(target, _)| target.clone()).collect();
                prop_assert_eq!(looks.targets(), waiting);
            }
        }
    }
}
