//! What was flushed while questions to upstreams were under way: whose answers are from before it.
//!
//! A pure type. The last few flushes are remembered one by one; of those before it is not known what they covered.

use std::collections::VecDeque;

use super::cache::Flush;

/// Flushes remembered at one time.
const REMEMBERED: usize = 64;

/// The flushes so far, counted, and the last of them.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    number: u64,
    last: VecDeque<Flush>,
}

impl Flushes {
    /// How many there were: a moment to ask about later.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn add(&mut self, flush: Flush) {
        self.number += 1;
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(flush);
    }

    /// Whether one of them after the moment `since` is one that `covers` says yes to, or may have been.
    pub fn any_since(&self, since: u64, covers: impl Fn(&Flush) -> bool) -> bool {
        self.any_between(since, self.number, covers)
    }

    /// The same of those after the moment `since` and up to the moment `until`.
    pub fn any_between(&self, since: u64, until: u64, covers: impl Fn(&Flush) -> bool) -> bool {
        if since >= until {
            return false;
        }
        let forgotten = self.number - self.last.len() as u64;
        let numbered = (forgotten + 1..).zip(&self.last);
        let mut between = numbered.filter(|(number, _)| (since + 1..=until).contains(number));
        since < forgotten || between.any(|(_, flush)| covers(flush))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        dns::{
            cache::{CacheLimits, Entry},
            message::{
                Rcode,
                record::Record,
                upstream::{Message, UpstreamQuestion},
            },
            testing::{name, rdata},
        },
        model::rrset::RecordType,
    };

    const NAMES: [&str; 6] = ["test.", "a.test.", "b.a.test.", "ba.test.", "x.", "a.x."];

    fn wire(name_number: usize) -> Box<[u8]> {
        name(NAMES[name_number]).as_wire().into()
    }

    /// A flush of one of `NAMES`, and which names it covers.
    fn flush(kind: u8, name_number: usize) -> (Flush, impl Fn(usize) -> bool) {
        let top = NAMES[name_number];
        let flush = match kind {
            0 => Flush::All,
            1 => Flush::Name(wire(name_number)),
            _ => Flush::Subtree(wire(name_number)),
        };
        let covers = move |other: usize| match kind {
            0 => true,
            1 => other == name_number,
            _ => NAMES[other] == top || NAMES[other].ends_with(&format!(".{top}")),
        };
        (flush, covers)
    }

    /// An answer whose aliases lead from one name to the next.
    fn answer(chain: &[usize]) -> (UpstreamQuestion, Entry) {
        let question = UpstreamQuestion {
            name: wire(chain[0]),
            rtype: RecordType::A,
            dnssec_ok: false,
            checking_disabled: false,
        };
        let alias = |pair: &[usize]| Record {
            owner: wire(pair[0]),
            rtype: RecordType::CNAME,
            ttl: 60,
            data: rdata(RecordType::CNAME, &[NAMES[pair[1]]]).into(),
        };
        let message = Message {
            id: 0,
            flags: 0,
            rcode: Rcode::NO_ERROR,
            answer: chain.windows(2).map(alias).collect(),
            authority: Vec::new(),
            additional: Vec::new(),
        };
        let limits = CacheLimits::default();
        let entry = Entry::of_message(message, &question, &limits, Instant::now());
        (question, entry)
    }

    proptest! {
        /// An answer is kept, or told to who asked at `until`, just if no flush meanwhile covers its question or one of its aliases. Where more
        /// flushes came than are remembered, none that covers it is missed.
        #[test]
        fn an_answer_counts_if_no_flush_after_its_question_covers_it(
            all in prop::collection::vec((prop::sample::select(vec![0u8, 1, 1, 1, 2, 2]), 0..NAMES.len()), 0..12),
            others in prop::sample::select(vec![0, 1, REMEMBERED - 6, REMEMBERED, 2 * REMEMBERED]),
            chain in Just((0..NAMES.len()).collect::<Vec<_>>()).prop_shuffle(),
            aliases in 0usize..3,
            (since, until) in (0usize..13, 0usize..13),
        ) {
            let (question, entry) = answer(&chain[..=aliases]);
            prop_assert_eq!(entry.aliases.len(), aliases);
            let until = until.min(all.len());
            let since = since.min(until);
            let mut flushes = Flushes::default();
            let mut expected = false;
            for (number, (kind, at)) in all.iter().enumerate() {
                let (flush, covers) = flush(*kind, *at);
                flushes.add(flush);
                let meanwhile = (since..until).contains(&number);
                expected |= meanwhile && chain[..=aliases].iter().any(|name| covers(*name));
            }
            let other = Flush::Name(name("other.").as_wire().into());
            (0..others).for_each(|_| flushes.add(other.clone()));
            let covers = |flush: &Flush| flush.covers_answer(&question, &entry);
            let said = flushes.any_between(since as u64, until as u64, covers);
            let all_known = since == until || all.len() + others - since <= REMEMBERED;
            prop_assert!(said == expected || (said && !all_known), "{said} {expected}");
            prop_assert!(flushes.last.len() <= REMEMBERED);
        }
    }
}
