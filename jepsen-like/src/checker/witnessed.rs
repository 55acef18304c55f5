//! What the witness saw of a VIP, found by time without going through all of it: a long run has millions of answers.

use std::time::Duration;

use crate::history::{Answer, Moment, Responder};

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

    /// The node that held the VIP for the whole of this time, for certain: it answered before and after, never silent for `longest` or
    /// more, and nobody else did. Whoever calls sees to it that no leader was elected meanwhile: two planned moves may bring a VIP back sooner.
    pub fn holder(&self, from: Moment, to: Moment, longest: Duration) -> Option<&'a str> {
        let early = from.0.saturating_sub(Moment::after(longest).0);
        let late = Duration::from_nanos(to.0).saturating_add(longest);
        let mut holder = None;
        let mut held: Option<(Moment, Moment)> = None;
        for answer in self.between(Moment(early), Moment::after(late)) {
            let Responder::Node(node) = &answer.by else {
                return None;
            };
            if *holder.get_or_insert(node.as_str()) != node.as_str() {
                return None;
            }
            held = Some(match held {
                None => (answer.latest, answer.earliest),
                Some((_, until)) if answer.latest.since(until) >= longest => return None,
                Some((since, until)) => (since, until.max(answer.earliest)),
            });
        }
        let (since, until) = held?;
        holder.filter(|_| since <= from && until >= to)
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

    const MS: u64 = 1_000_000;

    /// Who answered at which millisecond; `!` for a stranger.
    fn holder(answers: &[(u64, &str)], from: u64, to: u64) -> Option<String> {
        let answers: Vec<_> = (answers.iter())
            .map(|(at, by)| Answer {
                by: match by.strip_prefix('!') {
                    Some(mac) => Responder::Stranger(mac.to_owned()),
                    None => Responder::Node((*by).to_owned()),
                },
                ..answer((at * MS, 0))
            })
            .collect();
        let longest = Duration::from_millis(100);
        let (from, to) = (Moment(from * MS), Moment(to * MS));
        let holder = Witnessed::of(&answers).holder(from, to, longest);
        holder.map(str::to_owned)
    }

    #[test]
    fn a_holder_is_known_where_nobody_else_can_have_held_it() {
        let steady = [(10, "a"), (50, "a"), (140, "a"), (200, "a")];
        assert_eq!(holder(&steady, 50, 140).as_deref(), Some("a"));
        assert_eq!(holder(&steady, 60, 190).as_deref(), Some("a"));
        // Not before, not after, silent in between.
        assert_eq!(holder(&steady, 9, 60), None);
        assert_eq!(holder(&steady, 60, 201), None);
        assert_eq!(holder(&[(10, "a"), (110, "a")], 20, 30), None);
        assert_eq!(holder(&[], 20, 30), None);
        // Another one, or a stranger, within or right beside it.
        for other in ["b", "!02:00"] {
            for at in [40, 55, 170] {
                let mut answers = steady.to_vec();
                answers.push((at, other));
                assert_eq!(holder(&answers, 50, 140), None, "{other} at {at}");
            }
            let mut answers = steady.to_vec();
            answers.push((241, other));
            assert_eq!(holder(&answers, 50, 140).as_deref(), Some("a"));
        }
    }

    #[test]
    fn an_answer_of_uncertain_time_proves_no_hold() {
        let wide = [(0, 60), (50, 60), (90, 60)].map(|(at, width)| answer((at * MS, width * MS)));
        let witnessed = Witnessed::of(&wide);
        let longest = Duration::from_millis(200);
        let holder = |from, to| witnessed.holder(Moment(from * MS), Moment(to * MS), longest);
        assert_eq!(holder(60, 90), Some("n1"));
        assert_eq!(holder(59, 90), None);
        assert_eq!(holder(60, 91), None);
    }

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
