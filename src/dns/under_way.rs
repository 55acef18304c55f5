//! The questions to upstreams that are under way: who asks for what, and how many there may be.
//!
//! A pure type. A question is shared by all who would ask the same servers for it, unless its answer was to be forgotten
//! meanwhile. `A` is how the answer is waited for.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use crate::model::{forwarder::Forwarder, name::Name};

use super::message::upstream::UpstreamQuestion;

/// Questions under way at one time, all and of each forwarder.
#[derive(Debug)]
pub(super) struct UnderWay<A> {
    limit: usize,
    total: usize,
    by_suffix: HashMap<Name, usize>,
    /// The youngest of each question.
    by_question: HashMap<UpstreamQuestion, Shared<A>>,
    begun: u64,
}

#[derive(Debug)]
struct Shared<A> {
    number: u64,
    forwarder: Arc<Forwarder>,
    epoch: u64,
    answer: A,
}

/// The right to have one question under way. Give it back with `end`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn {
    number: u64,
    suffix: Name,
}

/// What may be asked beside all else that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// The only forwarder: everything there is room for.
    Whole,
    /// One of several: half of it, so that servers that are slow leave room for those of other suffixes.
    Half,
}

impl Share {
    /// What one forwarder may have of `limit`.
    pub fn of(self, limit: usize) -> usize {
        match self {
            Self::Whole => limit,
            Self::Half => half(limit),
        }
    }
}

impl<A: Clone> UnderWay<A> {
    /// Room for `limit` questions.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            total: 0,
            by_suffix: HashMap::new(),
            by_question: HashMap::new(),
            begun: 0,
        }
    }

    /// The answer to wait for and the epoch of its beginning, if `question` is under way to the servers of `forwarder`, since an epoch
    /// that `is_current`.
    pub fn find(
        &self,
        question: &UpstreamQuestion,
        forwarder: &Forwarder,
        is_current: impl FnOnce(u64) -> bool,
    ) -> Option<(A, u64)> {
        let shared = self.by_question.get(question)?;
        let same = *shared.forwarder == *forwarder && is_current(shared.epoch);
        same.then(|| (shared.answer.clone(), shared.epoch))
    }

    /// Takes a place for a question that `find` does not find. Who asks it from now on waits for `answer`; who waits for an
    /// older one still gets that. None: there is no room.
    pub fn begin(
        &mut self,
        question: &UpstreamQuestion,
        forwarder: &Arc<Forwarder>,
        epoch: u64,
        share: Share,
        answer: A,
    ) -> Option<Turn> {
        let suffix = &forwarder.suffix;
        let own = self.by_suffix.get(suffix).copied().unwrap_or(0);
        if self.total >= self.limit || own >= share.of(self.limit) {
            return None;
        }
        self.total += 1;
        *self.by_suffix.entry(suffix.clone()).or_insert(0) += 1;
        self.begun += 1;
        let shared = Shared {
            number: self.begun,
            forwarder: Arc::clone(forwarder),
            epoch,
            answer,
        };
        self.by_question.insert(question.clone(), shared);
        Some(Turn {
            number: self.begun,
            suffix: suffix.clone(),
        })
    }

    /// `question` is no longer under way by this turn.
    pub fn end(&mut self, question: &UpstreamQuestion, turn: &Turn) {
        self.total = self.total.saturating_sub(1);
        if let Some(own) = self.by_suffix.get_mut(&turn.suffix) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                self.by_suffix.remove(&turn.suffix);
            }
        }
        if let Entry::Occupied(shared) = self.by_question.entry(question.clone())
            && shared.get().number == turn.number
        {
            shared.remove();
        }
    }

    pub fn total(&self) -> usize {
        self.total
    }

    /// Questions under way by the forwarder that has the most.
    pub fn most_of_one(&self) -> usize {
        self.by_suffix.values().copied().max().unwrap_or(0)
    }
}

/// What one of several forwarders may have of `limit`.
pub(super) fn half(limit: usize) -> usize {
    limit.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use crate::{dns::testing::name, model::rrset::RecordType};

    use super::*;

    fn question(text: &str) -> UpstreamQuestion {
        UpstreamQuestion {
            name: name(text).as_wire().into(),
            rtype: RecordType::A,
            dnssec_ok: false,
            checking_disabled: false,
        }
    }

    fn forwarder(suffix: &str, upstream: &str) -> Arc<Forwarder> {
        Arc::new(Forwarder {
            suffix: name(suffix),
            upstreams: vec![upstream.parse().expect("an address")],
            timeout: Duration::from_secs(1),
        })
    }

    #[test]
    fn a_question_is_shared_by_those_who_would_ask_the_same() {
        let mut under_way = UnderWay::new(10);
        let (asked, old) = (question("a.x."), forwarder("x.", "192.0.2.1:53"));
        let new = forwarder("x.", "192.0.2.2:53");
        let since = |moment| move |epoch: u64| epoch == moment;
        assert_eq!(under_way.find(&asked, &old, since(1)), None);
        let first = under_way.begin(&asked, &old, 1, Share::Whole, "first");
        let first = first.expect("room");
        let same = Arc::new(Forwarder::clone(&old));
        assert_eq!(under_way.find(&asked, &same, since(1)), Some(("first", 1)));
        assert_eq!(under_way.find(&question("b.x."), &old, since(1)), None);
        assert_eq!(
            under_way.find(&asked, &new, since(1)),
            None,
            "other servers"
        );
        assert_eq!(
            under_way.find(&asked, &old, since(2)),
            None,
            "after a flush"
        );
        let second = under_way.begin(&asked, &new, 2, Share::Whole, "second");
        under_way.end(&asked, &first);
        let found = under_way.find(&asked, &new, since(2));
        assert_eq!(found, Some(("second", 2)), "each ends its own");
        assert_eq!(under_way.total(), 1);
        under_way.end(&asked, &second.expect("room"));
        assert_eq!(
            (under_way.find(&asked, &new, since(2)), under_way.total()),
            (None, 0)
        );
    }

    #[test]
    fn one_of_several_forwarders_gets_half_of_the_room() {
        let mut under_way = UnderWay::new(5);
        let (slow, quick) = (
            forwarder("x.", "192.0.2.1:53"),
            forwarder("y.", "192.0.2.2:53"),
        );
        let mut begin = |qname: &str, forwarder: &Arc<Forwarder>, share| {
            let turn = under_way.begin(&question(qname), forwarder, 0, share, ());
            turn.is_some()
        };
        for (qname, admitted) in [
            ("a.x.", true),
            ("b.x.", true),
            ("c.x.", true),
            ("d.x.", false),
        ] {
            assert_eq!(begin(qname, &slow, Share::Half), admitted, "{qname}");
        }
        assert!(begin("a.y.", &quick, Share::Half));
        assert!(begin("d.x.", &slow, Share::Whole));
        assert!(!begin("b.y.", &quick, Share::Half), "all room is taken");
        assert_eq!((under_way.total(), under_way.most_of_one()), (5, 4));
    }

    proptest! {
        /// Whatever begins and ends: the counts are those of what is under way, within the bounds.
        #[test]
        fn counts_are_true_and_bounded(
            steps in proptest::collection::vec((any::<bool>(), 0usize..4, 0usize..3, 0u64..2), 1..200),
            limit in 1usize..8,
        ) {
            let questions = ["a.", "b.", "c.", "d."].map(question);
            let forwarders = ["x.", "y.", "z."].map(|suffix| forwarder(suffix, "192.0.2.1:53"));
            let mut under_way = UnderWay::new(limit);
            let mut held: Vec<(usize, usize, Turn)> = Vec::new();
            for (begins, question, forwarder, epoch) in steps {
                if begins {
                    let (asked, to) = (&questions[question], &forwarders[forwarder]);
                    let own = held.iter().filter(|(_, of, _)| *of == forwarder).count();
                    let room = held.len() < limit && own < half(limit);
                    let turn = under_way.begin(asked, to, epoch, Share::Half, held.len());
                    prop_assert_eq!(turn.is_some(), room);
                    held.extend(turn.map(|turn| (question, forwarder, turn)));
                } else if !held.is_empty() {
                    let (question, _, turn) = held.remove(question % held.len());
                    under_way.end(&questions[question], &turn);
                }
                prop_assert_eq!(under_way.total(), held.len());
                prop_assert!(under_way.by_question.len() <= held.len());
                prop_assert!(under_way.most_of_one() <= half(limit));
            }
            for (question, _, turn) in held {
                under_way.end(&questions[question], &turn);
            }
            prop_assert!(under_way.by_question.is_empty() && under_way.by_suffix.is_empty());
        }
    }
}
