//! What a flush of the disk takes, judged by the last few.
//!
//! Told is what is typical, the median: one that hung for seconds is told by the alarm on a disk that hangs, and says nothing of the next
//! election. A mean would show it for as many flushes as it was long.

use std::time::{Duration, Instant};

/// Flushes by which it is judged.
const KEPT: usize = 16;
/// Fewer say nothing.
const ENOUGH: usize = 8;
/// For how long the newest counts as lately.
const FRESH: Duration = Duration::from_secs(60);

/// How long the last flushes took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flushes {
    /// In no order; the first `count`.
    took: [Duration; KEPT],
    count: usize,
    /// The place of the next one.
    next: usize,
    newest: Option<Instant>,
}

impl Flushes {
    /// One took so long, and ended now.
    pub fn note(&mut self, took: Duration, now: Instant) {
        if let Some(oldest) = self.took.get_mut(self.next) {
            *oldest = took;
        }
        self.next = (self.next + 1) % KEPT;
        self.count = KEPT.min(self.count + 1);
        self.newest = Some(now);
    }

    /// What one takes: half of the last took longer, or as long. None before there were enough to go by.
    pub fn typical(&self) -> Option<Duration> {
        let mut known = self.took.get(..self.count)?.to_vec();
        known.sort_unstable();
        let median = known.get(self.count.saturating_sub(1) / 2).copied();
        median.filter(|_| self.count >= ENOUGH)
    }

    /// The same, if the newest was within the last minute.
    pub fn typical_lately(&self, now: Instant) -> Option<Duration> {
        let age = now.saturating_duration_since(self.newest?);
        self.typical().filter(|_| age <= FRESH)
    }

    /// How long ago the newest ended.
    pub fn since_newest(&self) -> Option<Duration> {
        self.newest.map(|at| at.elapsed())
    }

    /// Whether one ended after that; `None`: ever.
    pub fn is_newer_than(&self, then: Option<Instant>) -> bool {
        self.newest.is_some() && self.newest > then
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn after(took: impl IntoIterator<Item = u64>, now: Instant) -> Flushes {
        let mut flushes = Flushes::default();
        for took in took {
            flushes.note(ms(took), now);
        }
        flushes
    }

    #[test]
    fn one_hang_among_flushes_is_not_what_is_typical() {
        let now = Instant::now();
        // (flushes, typical)
        let cases = [
            (vec![], None),
            (vec![2; 7], None),
            (vec![2; 8], Some(2)),
            (vec![2, 2, 2, 2, 2, 2, 2, 20_000], Some(2)),
            (vec![20_000, 2, 2, 2, 2, 2, 2, 2], Some(2)),
            // A slow disk is told once most are slow, and no more once most are not.
            ([vec![2; 16], vec![100; 8]].concat(), Some(2)),
            ([vec![2; 16], vec![100; 9]].concat(), Some(100)),
            ([vec![100; 90], vec![2; 8]].concat(), Some(2)),
        ];
        for (took, typical) in cases {
            let flushes = after(took.clone(), now);
            assert_eq!(flushes.typical(), typical.map(ms), "{took:?}");
        }
    }

    #[test]
    fn what_was_long_ago_says_nothing_of_now() {
        let now = Instant::now();
        let flushes = after([3; 8], now);
        assert_eq!(flushes.typical_lately(now + FRESH), Some(ms(3)));
        assert_eq!(flushes.typical_lately(now + FRESH + ms(1)), None);
        assert!(flushes.is_newer_than(None) && flushes.is_newer_than(now.checked_sub(ms(1))));
        assert!(!flushes.is_newer_than(Some(now)));
        assert!(!Flushes::default().is_newer_than(None));
    }

    proptest! {
        /// Whatever came before: up to seven that hung, wherever among the last sixteen, leave what the others took.
        #[test]
        fn hangs_that_are_fewer_than_half_do_not_count(
            before in prop::collection::vec(0u64..60_000, 0..40),
            hung in prop::collection::vec(prop::bool::weighted(0.4), KEPT),
        ) {
            prop_assume!(hung.iter().filter(|hung| **hung).count() < KEPT / 2);
            let last = hung.into_iter().map(|hung| if hung { 20_000 } else { 4 });
            let flushes = after(before.into_iter().chain(last), Instant::now());
            prop_assert_eq!(flushes.typical(), Some(ms(4)));
        }
    }
}
