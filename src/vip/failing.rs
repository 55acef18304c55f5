//! Decides which VIPs this node cannot put on their device, so that another node is to hold them: outcomes and the time in,
//! verdicts out.
//!
//! A failure counts once it has lasted for `LASTS` while the node was to hold the VIP. While another node holds it nothing is added
//! here that could succeed: the failure counts until a look finds nothing in its way, where a look can tell (`Again`).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::machine::Target;

/// How long a VIP cannot be put on its device before another node is to hold it.
const LASTS: Duration = Duration::from_secs(1);
/// Between two looks at what was found in the way.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a failure counts at least that a look does not find: the VIP must not come back to it at once.
const REST: Duration = Duration::from_secs(60);

/// When it is worth a look whether a VIP could be added again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// A look finds what is in the way, or that it is gone.
    Look,
    /// A look finds only whether the kernel answers.
    Later,
    /// Nothing changes while this process lives, unless it is tried.
    Never,
}

/// The VIPs that could not be added, and what is known of the cause.
#[derive(Clone, Debug, Default)]
pub struct Failing(BTreeMap<Target, Failure>);

#[derive(Clone, Debug)]
struct Failure {
    since: Instant,
    problem: String,
    again: Again,
    /// When it came to count.
    counts_since: Option<Instant>,
    looked: Option<Instant>,
}

impl Failing {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// It could not be added.
    pub fn failed(&mut self, target: &Target, problem: String, again: Again, now: Instant) {
        let failure = self.0.entry(target.clone()).or_insert_with(|| Failure {
            since: now,
            problem: String::new(),
            again,
            counts_since: None,
            looked: None,
        });
        (failure.problem, failure.again) = (problem, again);
        if now >= failure.since + LASTS {
            failure.counts_since.get_or_insert(now);
        }
    }

    /// It was added, or nothing is in its way any more.
    pub fn solved(&mut self, target: &Target) {
        self.0.remove(target);
    }

    /// A look found it in the way still.
    pub fn found(&mut self, target: &Target, problem: String, again: Again) {
        if let Some(failure) = self.0.get_mut(target) {
            (failure.problem, failure.again) = (problem, again);
        }
    }

    /// Why another node is to hold it.
    pub fn problem(&self, target: &Target) -> Option<&str> {
        let failure = self.0.get(target)?;
        failure.counts_since.map(|_| failure.problem.as_str())
    }

    /// Takes in the time. `claims`: this node is to hold VIPs and tries by itself. Returns whom to look at now; each is to be answered by
    /// `solved` or `found`.
    pub fn observe(
        &mut self,
        known: impl Fn(&Target) -> bool,
        claims: bool,
        now: Instant,
    ) -> Vec<Target> {
        self.0.retain(|target, failure| {
            if claims && now >= failure.since + LASTS {
                failure.counts_since.get_or_insert(now);
            }
            known(target) && (claims || failure.counts_since.is_some())
        });
        let due = self.0.iter_mut().filter_map(|(target, failure)| {
            let at = failure.look_at().filter(|_| !claims)?;
            (at <= now).then(|| {
                failure.looked = Some(now);
                target.clone()
            })
        });
        due.collect()
    }

    /// When to call `observe` though nothing happened.
    pub fn next_deadline(&self, claims: bool) -> Option<Instant> {
        let failures = self.0.values();
        let at = failures.filter_map(|failure| match (claims, failure.counts_since) {
            (true, None) => Some(failure.since + LASTS),
            (true, Some(_)) => None,
            (false, _) => failure.look_at(),
        });
        at.min()
    }
}

impl Failure {
    fn look_at(&self) -> Option<Instant> {
        let first = match self.again {
            Again::Look => self.counts_since? + LOOK_EVERY,
            Again::Later => self.counts_since? + REST,
            Again::Never => return None,
        };
        Some(self.looked.map_or(first, |at| first.max(at + LOOK_EVERY)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn vip() -> Target {
        Target {
            address: [10, 77, 0, 100].into(),
            interface: "vip".parse().unwrap(),
        }
    }

    fn all(_: &Target) -> bool {
        true
    }

    #[test]
    fn a_failure_counts_when_it_has_lasted_while_the_node_claims() {
        let start = Instant::now();
        let mut failing = Failing::default();
        failing.failed(&vip(), "taken".into(), Again::Look, start);
        assert_eq!(failing.next_deadline(true), Some(start + LASTS));
        failing.failed(&vip(), "taken".into(), Again::Look, start + ms(750));
        assert_eq!(failing.problem(&vip()), None);
        assert!(failing.observe(all, true, start + LASTS).is_empty());
        assert_eq!(failing.problem(&vip()), Some("taken"));
        assert_eq!(failing.next_deadline(true), None, "it is tried by itself");
        failing.solved(&vip());
        assert_eq!(failing.problem(&vip()), None);

        failing.failed(&vip(), "taken".into(), Again::Look, start);
        failing.observe(all, false, start + LASTS);
        assert_eq!(failing.problem(&vip()), None, "it did not last");
        failing.failed(&vip(), "taken".into(), Again::Look, start + LASTS);
        assert_eq!(failing.problem(&vip()), None, "nor did it again");
    }

    #[test]
    fn a_look_ends_what_it_can_tell() {
        // (what can tell, first look after it counts)
        let cases = [
            (Again::Look, Some(LOOK_EVERY)),
            (Again::Later, Some(REST)),
            (Again::Never, None),
        ];
        for (again, first) in cases {
            let start = Instant::now();
            let counts = start + LASTS;
            let mut failing = Failing::default();
            failing.failed(&vip(), "taken".into(), again, start);
            failing.failed(&vip(), "taken".into(), again, counts);
            let due = failing.next_deadline(false);
            assert_eq!(due, first.map(|first| counts + first), "{again:?}");
            let Some(due) = due else { continue };
            assert!(failing.observe(all, false, due - ms(1)).is_empty());
            assert_eq!(failing.observe(all, false, due), [vip()]);
            failing.found(&vip(), "still taken".into(), again);
            assert_eq!(failing.problem(&vip()), Some("still taken"));
            assert_eq!(failing.next_deadline(false), Some(due + LOOK_EVERY));
            assert_eq!(failing.observe(all, false, due + LOOK_EVERY), [vip()]);
            failing.solved(&vip());
            assert_eq!(failing.next_deadline(false), None);
        }
    }

    #[test]
    fn a_vip_that_is_configured_no_more_is_forgotten() {
        let start = Instant::now();
        let mut failing = Failing::default();
        failing.failed(&vip(), "taken".into(), Again::Look, start);
        failing.failed(&vip(), "taken".into(), Again::Look, start + LASTS);
        failing.observe(|_| false, true, start + LASTS);
        assert_eq!(failing.problem(&vip()), None);
    }

    proptest! {
        /// Whatever comes: nothing counts that was not failing for `LASTS` while the node claimed, and nothing is looked at while it
        /// does.
        #[test]
        fn only_what_lasted_counts(script in prop::collection::vec((1u64..900, 0u8..4), 0..60)) {
            let mut now = Instant::now();
            let (mut failing, mut claims) = (Failing::default(), true);
            let mut since: Option<Instant> = None;
            for (pause, event) in script {
                now += ms(pause);
                match event {
                    0 if claims => {
                        since.get_or_insert(now);
                        failing.failed(&vip(), "taken".into(), Again::Look, now);
                    }
                    1 => {
                        since = None;
                        failing.solved(&vip());
                    }
                    2 => claims = !claims,
                    _ => {}
                }
                let looks = failing.observe(all, claims, now);
                prop_assert!(!claims || looks.is_empty());
                if failing.problem(&vip()).is_some() {
                    prop_assert!(since.is_some_and(|at| now >= at + LASTS));
                }
                if !claims && failing.problem(&vip()).is_none() {
                    since = None;
                }
            }
        }
    }
}
