//! What the witness saw of a VIP, found by time without going through all of it: a long run has millions of answers.

use std::time::Duration;

use crate::history::{Answer, Moment};

/// The answers for one VIP.
#[derive(Debug)]
pub struct Witnessed<'a> {
    /// By `latest`.
    answers: Vec<&'a Answer>,
    /// The longest from `earliest` to `latest`.
    widest: Duration,
}

impl<'a> Witnessed<'a> {
    /// Goes through the answers once.
    pub fn of(answers: impl IntoIterator<Item = &'a Answer>) -> Self {
        let mut answers: Vec<_> = answers.into_iter().collect();
        answers.sort_by_key(|answer| (answer.latest, answer.earliest));
        let widths = (answers.iter()).map(|answer| answer.latest.since(answer.earliest));
        Self {
            widest: widths.max().unwrap_or_default(),
            answers,
        }
    }

    /// Those that may have been given within this time, its ends included, in order of `latest`.
    pub fn between(&self, from: Moment, to: Moment) -> impl Iterator<Item = &'a Answer> {
        let until = Moment::after(Duration::from_nanos(to.0).saturating_add(self.widest));
        let first = self.answers.partition_point(|answer| answer.latest < from);
        let end = (self.answers).partition_point(|answer| answer.latest <= until);
        let near = self.answers.get(first..end).unwrap_or_default();
        (near.iter().copied()).filter(move |answer| answer.earliest <= to)
    }

    /// The last one that had been given for certain.
    pub fn last_by(&self, at: Moment) -> Option<&'a Answer> {
        let end = self.answers.partition_point(|answer| answer.latest <= at);
        self.answers.get(..end)?.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::history::Responder;

    fn answer((earliest, width): (u64, u64)) -> Answer {
        Answer {
            vip: "v".into(),
            by: Responder::Node("n1".into()),
            earliest: Moment(earliest),
            latest: Moment(earliest + width),
            kind: "arp".into(),
        }
    }

    proptest! {
        /// The same as by going through all of them.
        #[test]
        fn what_was_then_is_found(
            all in prop::collection::vec((0..50u64, 0..9u64), 0..30),
            from in 0..60u64,
            lasts in 0..20u64,
        ) {
            let all: Vec<_> = all.into_iter().map(answer).collect();
            let (from, to) = (Moment(from), Moment(from + lasts));
            let witnessed = Witnessed::of(&all);
            let found: Vec<_> = witnessed.between(from, to).collect();
            let expected = all.iter().filter(|one| one.latest >= from && one.earliest <= to);
            prop_assert_eq!(found.len(), expected.count());
            prop_assert!(found.iter().all(|one| one.latest >= from && one.earliest <= to));
            prop_assert!(found.is_sorted_by_key(|one| one.latest));
            let last = all.iter().map(|one| one.latest).filter(|latest| *latest <= from).max();
            prop_assert_eq!(witnessed.last_by(from).map(|one| one.latest), last);
        }
    }
}
