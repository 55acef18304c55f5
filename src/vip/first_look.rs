//! Decides for how long a VIP that no member has held since it was added is not claimed, while it is looked whether a foreign host has it.
//!
//! The state remembers which VIPs these are, so that whoever leads next looks too. Whatever else changes in the state meanwhile: each
//! VIP has a time of its own, which begins when this node could claim it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::machine::Target;

/// How long it is looked whether a foreign host has a VIP that is claimed for the first time: four questions, a quarter of a second apart.
///
/// DEVIATION from RFC 5227 section 2.1.1: shorter than its four to seven seconds, which are meant for hosts that switch on
/// together behind slow switches.
pub const FIRST_LOOK: Duration = Duration::from_secs(1);

/// Whether there is reason and means to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayLook {
    /// This node could not claim a VIP now.
    NotYet,
    Yes,
    /// It could, and sees no other hosts: it claims at once.
    Never,
}

/// VIPs that nobody held before, and how far the look at each has come.
#[derive(Clone, Debug, Default)]
pub struct FirstLooks(BTreeMap<Target, FirstLook>);

#[derive(Clone, Copy, Debug)]
struct FirstLook {
    /// The revision at which the VIP was added: one that was added anew is another one.
    added_at: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    NotBegun,
    /// Until then at least.
    Looking(Instant),
    /// No foreign host spoke for it.
    Passed,
}

impl FirstLooks {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a VIP could be claimed but for the look.
    pub fn is_looking(&self, target: &Target) -> bool {
        let look = self.0.get(target);
        look.is_some_and(|look| matches!(look.stage, Stage::Looking(_)))
    }

    /// What is not to be claimed.
    pub fn withheld(&self) -> BTreeSet<Target> {
        let held_back = self.0.iter().filter(|(_, l)| l.stage != Stage::Passed);
        held_back.map(|(target, _)| target.clone()).collect()
    }

    /// Takes in those that no member held, and the revision at which each was added.
    pub fn begin(&mut self, new: &BTreeMap<Target, u64>) {
        for (target, added_at) in new {
            let known = self.0.get(target).map(|look| look.added_at);
            if known != Some(*added_at) {
                let look = FirstLook {
                    added_at: *added_at,
                    stage: Stage::NotBegun,
                };
                self.0.insert(target.clone(), look);
            }
        }
    }

    /// Forgets what is not in the state any more, and what a member has held.
    pub fn forget_unless(&mut self, new: &BTreeMap<Target, u64>) {
        self.0.retain(|target, _| new.contains_key(target));
    }

    /// Takes in the time. One whose time is over has passed, unless a foreign host spoke for it. Whether anything changed.
    pub fn observe(
        &mut self,
        may_look: MayLook,
        is_spoken_for: impl Fn(&Target) -> bool,
        now: Instant,
    ) -> bool {
        let mut news = false;
        for (target, look) in &mut self.0 {
            let stage = match (may_look, look.stage) {
                (MayLook::NotYet, _) => Stage::NotBegun,
                (MayLook::Yes, Stage::NotBegun) => Stage::Looking(now + FIRST_LOOK),
                (MayLook::Never, Stage::NotBegun) => Stage::Passed,
                (_, Stage::Looking(until)) if now >= until && !is_spoken_for(target) => {
                    Stage::Passed
                }
                (_, stage) => stage,
            };
            news |= stage != look.stage;
            look.stage = stage;
        }
        news
    }

    /// When to call `observe` though nothing happened.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let ends = self.0.values().filter_map(|look| match look.stage {
            Stage::Looking(until) => Some(until),
            Stage::NotBegun | Stage::Passed => None,
        });
        ends.filter(|until| now < *until).min()
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
        // Two VIPs, and the first one on another interface.
        let vip = |name: &char| match name {
            'a' => on("lan", 1),
            'b' => on("lan", 2),
            _ => on("wan", 1),
        };
        // The unclaimed VIPs of each state, those that are withheld then, and those 600 ms later.
        type Round = (&'static [(char, u64)], &'static [char], &'static [char]);
        let cases: [(&str, Vec<Round>); 6] = [
            (
                "the same again",
                vec![
                    (&[('a', 1)], &['a'], &['a']),
                    (&[('a', 1)], &['a'], &[]),
                    (&[('a', 1)], &[], &[]),
                ],
            ),
            (
                "another one comes",
                vec![
                    (&[('a', 1)], &['a'], &['a']),
                    (&[('a', 1), ('b', 2)], &['a', 'b'], &['b']),
                    (&[('a', 1), ('b', 2)], &['b'], &[]),
                ],
            ),
            (
                "it goes and comes back",
                vec![
                    (&[('a', 1)], &['a'], &['a']),
                    (&[], &[], &[]),
                    (&[('a', 3)], &['a'], &['a']),
                    (&[('a', 3)], &['a'], &[]),
                ],
            ),
            (
                "it went and came back between two looks at the state",
                vec![
                    (&[('a', 1)], &['a'], &['a']),
                    (&[('a', 1)], &['a'], &[]),
                    (&[('a', 3)], &['a'], &['a']),
                    (&[('a', 3)], &['a'], &[]),
                ],
            ),
            (
                "it goes to another interface meanwhile",
                vec![
                    (&[('a', 1)], &['a'], &['a']),
                    (&[('m', 1)], &['m'], &['m']),
                    (&[('m', 1)], &['m'], &[]),
                ],
            ),
            (
                "a member has held it",
                vec![(&[('a', 1)], &['a'], &['a']), (&[], &[], &[])],
            ),
        ];
        for (name, rounds) in cases {
            let mut now = Instant::now();
            let mut looks = FirstLooks::default();
            for (number, (new, at_once, later)) in rounds.into_iter().enumerate() {
                let new = new.iter().map(|(name, at)| (vip(name), *at)).collect();
                looks.begin(&new);
                looks.forget_unless(&new);
                looks.observe(MayLook::Yes, |_| false, now);
                let expected: BTreeSet<Target> = at_once.iter().map(vip).collect();
                assert_eq!(looks.withheld(), expected, "{name}, state {number}");
                now += Duration::from_millis(600);
                looks.observe(MayLook::Yes, |_| false, now);
                let expected: BTreeSet<Target> = later.iter().map(vip).collect();
                assert_eq!(looks.withheld(), expected, "{name}, after state {number}");
            }
        }
    }

    #[test]
    fn one_that_a_foreign_host_speaks_for_waits_until_it_does_not() {
        let now = Instant::now();
        let mut looks = FirstLooks::default();
        looks.begin(&[(on("lan", 1), 1)].into());
        looks.observe(MayLook::Yes, |_| true, now);
        assert_eq!(looks.next_deadline(now), Some(now + FIRST_LOOK));
        let later = now + FIRST_LOOK * 5;
        looks.observe(MayLook::Yes, |_| true, later);
        assert!(looks.is_looking(&on("lan", 1)));
        assert_eq!(
            looks.next_deadline(later),
            None,
            "whoever hears the host tells"
        );
        assert!(looks.observe(MayLook::Yes, |_| false, later));
        assert!(looks.withheld().is_empty());
    }

    #[test]
    fn the_time_begins_when_this_node_could_claim_it_and_anew_each_time() {
        let (mut now, vip) = (Instant::now(), on("lan", 1));
        let mut looks = FirstLooks::default();
        looks.begin(&[(vip.clone(), 1)].into());
        for _ in 0..2 {
            // However long another one leads.
            now += FIRST_LOOK * 9;
            looks.observe(MayLook::NotYet, |_| false, now);
            assert!(looks.withheld().contains(&vip) && !looks.is_looking(&vip));
            assert_eq!(looks.next_deadline(now), None);
            assert!(looks.observe(MayLook::Yes, |_| false, now));
            assert_eq!(looks.next_deadline(now), Some(now + FIRST_LOOK));
            now += FIRST_LOOK;
            looks.observe(MayLook::Yes, |_| false, now);
            assert!(looks.withheld().is_empty());
        }
        looks.observe(MayLook::NotYet, |_| false, now);
        looks.observe(MayLook::Never, |_| false, now);
        assert!(looks.withheld().is_empty(), "nobody to look with");
    }

    proptest! {
        /// Whatever the state does, a VIP waits for one look from when it came, and not longer.
        #[test]
        fn each_waits_for_its_own_time(
            states in prop::collection::vec((0u64..700, prop::collection::btree_set(0u8..4, 0..4)), 1..40),
        ) {
            let mut now = Instant::now();
            let mut looks = FirstLooks::default();
            let mut came: BTreeMap<Target, (u64, Instant)> = BTreeMap::new();
            for (revision, (pause, vips)) in states.into_iter().enumerate() {
                now += Duration::from_millis(pause);
                let targets: BTreeSet<Target> = vips.into_iter().map(|n| on("lan", n)).collect();
                came.retain(|target, _| targets.contains(target));
                for target in &targets {
                    came.entry(target.clone()).or_insert((revision as u64, now));
                }
                let new = came.iter().map(|(target, (at, _))| (target.clone(), *at)).collect();
                looks.begin(&new);
                looks.forget_unless(&new);
                looks.observe(MayLook::Yes, |_| false, now);
                let waiting = came.iter().filter(|(_, (_, came))| now < *came + FIRST_LOOK);
                let waiting: BTreeSet<Target> = waiting.map(|(target, _)| target.clone()).collect();
                prop_assert_eq!(looks.withheld(), waiting);
            }
        }
    }
}
