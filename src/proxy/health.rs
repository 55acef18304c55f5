//! The verdict on one backend: rise and fall counting. Deciding code: `now` comes in, the next deadline goes out.
//!
//! A backend begins *presumed up*: it takes connections at once, and the first probe, made within a second, decides (one
//! failure is then enough to take it down). Waiting for `rise` probes first would make every restart an outage. After the
//! first probe, `fall` failures in a row take it down and `rise` successes in a row bring it up again.

use std::time::{Duration, Instant};

use crate::model::health::HealthCheck;

/// Whether a backend works, as far as this node can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Up,
    Down,
}

/// What one probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    Passed,
    Failed,
    /// It could not be made, for want of something on this node: it says nothing of the backend.
    Unmade,
}

/// First probes are spread over this time, or the interval if shorter, so that a thousand backends are not all probed in
/// the same millisecond.
const LONGEST_START_DELAY: Duration = Duration::from_secs(1);

/// Rise and fall counting for one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    verdict: Verdict,
    /// No probe has finished yet.
    presumed: bool,
    /// Results in a row that speak against the verdict.
    against: u8,
    timing: Timing,
    due: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timing {
    interval: Duration,
    down_interval: Duration,
    rise: u8,
    fall: u8,
}

impl From<&HealthCheck> for Timing {
    fn from(check: &HealthCheck) -> Self {
        let HealthCheck {
            probe: _,
            interval,
            down_interval,
            timeout: _,
            rise,
            fall,
        } = check;
        Self {
            interval: *interval,
            down_interval: *down_interval,
            rise: *rise,
            fall: *fall,
        }
    }
}

impl Health {
    /// Presumed up, with the first probe due at a point of the start delay given by `spread` (0 = now, `u16::MAX` = its end).
    pub fn new(check: &HealthCheck, now: Instant, spread: u16) -> Self {
        let timing = Timing::from(check);
        let window = timing.interval.min(LONGEST_START_DELAY);
        Self {
            verdict: Verdict::Up,
            presumed: true,
            against: 0,
            timing,
            due: now + window * u32::from(spread) / u32::from(u16::MAX),
        }
    }

    /// Counts the result of a probe that began at `begun`. Returns the new verdict if it changed. One that could not be made
    /// leaves everything as it is but for the time of the next.
    pub fn handle_probe(
        &mut self,
        result: ProbeResult,
        begun: Instant,
        now: Instant,
    ) -> Option<Verdict> {
        if result == ProbeResult::Unmade {
            self.due = (begun + self.interval()).max(now);
            return None;
        }
        let supports = match self.verdict {
            Verdict::Up => ProbeResult::Passed,
            Verdict::Down => ProbeResult::Failed,
        };
        self.against = if result == supports {
            0
        } else {
            self.against.saturating_add(1)
        };
        let enough = match self.verdict {
            Verdict::Up if self.presumed => 1,
            Verdict::Up => self.timing.fall,
            Verdict::Down => self.timing.rise,
        };
        self.presumed = false;
        let changed = (self.against > 0 && self.against >= enough).then(|| self.flip());
        self.due = (begun + self.interval()).max(now);
        changed
    }

    fn flip(&mut self) -> Verdict {
        self.against = 0;
        self.verdict = match self.verdict {
            Verdict::Up => Verdict::Down,
            Verdict::Down => Verdict::Up,
        };
        self.verdict
    }

    /// Takes on a changed definition. The verdict and the count stay; the next probe is due no later than one new
    /// interval from `now`, so a shorter interval takes effect at once.
    pub fn redefine(&mut self, check: &HealthCheck, now: Instant) {
        self.timing = Timing::from(check);
        self.due = self.due.min(now + self.interval());
    }

    /// When the next probe is to begin.
    pub fn next_deadline(&self) -> Instant {
        self.due
    }

    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether the verdict is only presumed: no probe has finished yet.
    pub fn is_presumed(&self) -> bool {
        self.presumed
    }

    /// Results in a row that speak against the verdict.
    pub fn against(&self) -> u8 {
        self.against
    }

    fn interval(&self) -> Duration {
        match self.verdict {
            Verdict::Up => self.timing.interval,
            Verdict::Down => self.timing.down_interval,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ProbeResult::*, Verdict::*, *};

    fn check(rise: u8, fall: u8) -> HealthCheck {
        HealthCheck {
            rise,
            fall,
            interval: Duration::from_secs(2),
            down_interval: Duration::from_secs(5),
            ..HealthCheck::default()
        }
    }

    fn feed(health: &mut Health, results: &[ProbeResult]) -> Vec<Option<Verdict>> {
        let now = health.next_deadline();
        results
            .iter()
            .map(|r| health.handle_probe(*r, now, now))
            .collect()
    }

    #[test]
    fn the_first_probe_decides() {
        let now = Instant::now();
        let mut health = Health::new(&check(2, 3), now, 0);
        assert_eq!((health.verdict(), health.is_presumed()), (Up, true));
        assert_eq!(feed(&mut health, &[Failed]), [Some(Down)]);
        let mut health = Health::new(&check(2, 3), now, 0);
        assert_eq!(feed(&mut health, &[Passed, Failed, Failed]), [None; 3]);
        assert_eq!((health.verdict(), health.is_presumed()), (Up, false));
    }

    #[test]
    fn a_probe_that_was_not_made_says_nothing() {
        let now = Instant::now();
        let mut health = Health::new(&check(2, 3), now, 0);
        let interval = Duration::from_secs(2);
        for _ in 0..10 {
            let begun = health.next_deadline();
            assert_eq!(health.handle_probe(Unmade, begun, begun), None);
            assert_eq!(health.next_deadline(), begun + interval);
        }
        assert_eq!((health.verdict(), health.is_presumed()), (Up, true));
        // In the middle of a count it neither counts nor begins it anew.
        feed(&mut health, &[Passed, Failed, Failed, Unmade]);
        assert_eq!((health.verdict(), health.against()), (Up, 2));
        assert_eq!(feed(&mut health, &[Failed]), [Some(Down)]);
        feed(&mut health, &[Passed, Unmade]);
        assert_eq!((health.verdict(), health.against()), (Down, 1));
        assert_eq!(feed(&mut health, &[Passed]), [Some(Up)]);
    }

    #[test]
    fn fall_and_rise_are_counted_in_a_row() {
        let mut health = Health::new(&check(2, 3), Instant::now(), 0);
        let results = [
            Passed, Failed, Failed, Passed, Failed, Failed, Failed, Passed, Failed, Passed, Passed,
        ];
        let mut expected = vec![None; 11];
        expected[6] = Some(Down);
        expected[10] = Some(Up);
        assert_eq!(feed(&mut health, &results), expected);
    }

    #[test]
    fn intervals_differ_up_and_down_and_run_from_the_begin_of_the_probe() {
        let start = Instant::now();
        let mut health = Health::new(&check(1, 1), start, 0);
        let second = Duration::from_secs(1);
        health.handle_probe(Passed, start, start + second);
        assert_eq!(health.next_deadline(), start + 2 * second);
        health.handle_probe(Failed, start + 2 * second, start + 3 * second);
        assert_eq!(health.next_deadline(), start + 7 * second);
        // a probe that took longer than the interval is followed by the next at once
        health.handle_probe(Failed, start + 7 * second, start + 60 * second);
        assert_eq!(health.next_deadline(), start + 60 * second);
    }

    #[test]
    fn first_probes_are_spread_over_at_most_a_second() {
        let now = Instant::now();
        assert_eq!(Health::new(&check(1, 1), now, 0).next_deadline(), now);
        let last = Health::new(&check(1, 1), now, u16::MAX);
        assert_eq!(last.next_deadline(), now + Duration::from_secs(1));
        let quick = HealthCheck {
            interval: Duration::from_millis(10),
            ..check(1, 1)
        };
        let last = Health::new(&quick, now, u16::MAX);
        assert_eq!(last.next_deadline(), now + Duration::from_millis(10));
    }

    #[test]
    fn a_shorter_interval_takes_effect_at_once_and_the_verdict_stays() {
        let now = Instant::now();
        let mut health = Health::new(&check(2, 1), now, 0);
        health.handle_probe(Failed, now, now);
        let quick = HealthCheck {
            down_interval: Duration::from_millis(100),
            ..check(3, 1)
        };
        health.redefine(&quick, now);
        assert_eq!(health.verdict(), Down);
        assert_eq!(health.next_deadline(), now + Duration::from_millis(100));
        assert_eq!(
            feed(&mut health, &[Passed, Passed, Passed]),
            [None, None, Some(Up)]
        );
    }

    /// What happens to a health check; times in milliseconds.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// It begins so long after it is due, and takes so long.
        Probe {
            result: ProbeResult,
            late: u64,
            takes: u64,
        },
        /// Another definition, so long after the last event.
        Redefine {
            after: u64,
            rise: u8,
            fall: u8,
            interval: u64,
            down_interval: u64,
        },
    }

    fn event() -> impl Strategy<Value = Event> {
        let result = prop_oneof![5 => Just(Passed), 5 => Just(Failed), 2 => Just(Unmade)];
        let probe =
            (result, 0..300u64, 0..4000u64).prop_map(|(result, late, takes)| Event::Probe {
                result,
                late,
                takes,
            });
        let redefine = (0..3000u64, 1..5_u8, 1..5_u8, 100..5000u64, 100..9000u64).prop_map(
            |(after, rise, fall, interval, down_interval)| Event::Redefine {
                after,
                rise,
                fall,
                interval,
                down_interval,
            },
        );
        prop_oneof![5 => probe, 1 => redefine]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        /// Probes that begin late and take long, and definitions that change between them: the verdict is what the last results say by the
        /// definition of that moment, and the next probe is due one interval of it after the last began, or at once. Probes that could not
        /// be made are no results.
        #[test]
        fn in_virtual_time_verdicts_and_deadlines_follow_the_rules(
            events in prop::collection::vec(event(), 1..80),
            spread: u16,
        ) {
            let start = Instant::now();
            let ms = Duration::from_millis;
            let mut definition = check(2, 3);
            let mut health = Health::new(&definition, start, spread);
            let (mut now, mut expected, mut seen) = (start, Up, vec![]);
            for event in events {
                match event {
                    Event::Probe { result, late, takes } => {
                        let begun = health.next_deadline().max(now) + ms(late);
                        now = begun + ms(takes);
                        let before = expected;
                        if result != Unmade {
                            seen.push(result == Passed);
                            let in_a_row = |value: bool| seen.iter().rev().take_while(|p| **p == value).count();
                            if in_a_row(true) >= usize::from(definition.rise) { expected = Up; }
                            if in_a_row(false) >= usize::from(definition.fall) || seen == [false] { expected = Down; }
                        }
                        let told = health.handle_probe(result, begun, now);
                        prop_assert_eq!(told, (expected != before).then_some(expected));
                        let interval = match expected {
                            Up => definition.interval,
                            Down => definition.down_interval,
                        };
                        prop_assert_eq!(health.next_deadline(), now.max(begun + interval));
                        prop_assert_eq!(health.is_presumed(), seen.is_empty());
                    }
                    Event::Redefine { after, rise, fall, interval, down_interval } => {
                        now += ms(after);
                        let (interval, down_interval) = (ms(interval), ms(down_interval));
                        definition = HealthCheck { interval, down_interval, ..check(rise, fall) };
                        let due = health.next_deadline();
                        health.redefine(&definition, now);
                        let longest = if expected == Up { interval } else { down_interval };
                        prop_assert_eq!(health.next_deadline(), due.min(now + longest));
                    }
                }
                prop_assert_eq!(health.verdict(), expected);
            }
        }

        /// The rule restated by looking back over all results instead of counting forward.
        #[test]
        fn the_verdict_follows_the_last_results(
            rise in 1..5_u8,
            fall in 1..5_u8,
            passes in prop::collection::vec(any::<bool>(), 1..60),
        ) {
            let mut health = Health::new(&check(rise, fall), Instant::now(), 0);
            let mut expected = Up;
            for (n, passed) in passes.iter().enumerate() {
                let seen = &passes[..=n];
                let in_a_row = |value: bool| seen.iter().rev().take_while(|p| **p == value).count();
                if in_a_row(true) >= usize::from(rise) { expected = Up; }
                if in_a_row(false) >= usize::from(fall) || (n == 0 && !passed) { expected = Down; }
                let now = health.next_deadline();
                health.handle_probe(if *passed { Passed } else { Failed }, now, now);
                prop_assert_eq!(health.verdict(), expected);
                prop_assert!(health.next_deadline() > now);
            }
        }
    }
}
