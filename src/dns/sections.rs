//! Putting the parts of an answer into the sections of a reply: what has to be there, what may be left out for want of room,
//! and what is too old.

use std::time::Instant;

use crate::model::rrset::RecordType;

use super::{
    answer::{Answer, AnswerSet, Data},
    cache::Entry,
    chain::{Chain, Part},
    message::{
        record::Record,
        reply::{Fit, ReplyWriter, Section},
    },
};

/// Whether everything that has to be in the reply found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    Complete,
    Truncated,
}

/// The sections of one reply.
pub(super) struct Sections<'w, 'b> {
    writer: &'w mut ReplyWriter<'b>,
    asked: RecordType,
    /// When upstreams' answers are passed on; none when there are none.
    now: Option<Instant>,
    dnames: Dnames,
}

impl<'w, 'b> Sections<'w, 'b> {
    /// Nothing written yet of the reply to a question for `asked`, given at `now` as far as it comes from upstreams.
    pub fn new(writer: &'w mut ReplyWriter<'b>, asked: RecordType, now: Option<Instant>) -> Self {
        Self {
            writer,
            asked,
            now,
            dnames: Dnames::default(),
        }
    }

    /// Writes an answer, until something that has to be in the reply finds no room.
    pub fn write(mut self, chain: &Chain<'_>) -> Whole {
        for part in &chain.before {
            let whole = match part {
                Part::Own(own) => self.write_sets(Section::Answer, &own.answer),
                Part::Upstream { entry, records } => {
                    let records = entry.answer.get(..*records).unwrap_or(&entry.answer);
                    self.write_answer_records(records, self.age(entry))
                }
            };
            if whole == Whole::Truncated {
                return whole;
            }
        }
        match &chain.last {
            Part::Own(own) => self.write_own(own),
            Part::Upstream { entry, .. } => self.write_entry(entry),
        }
    }

    /// Seconds to take off an entry's TTLs.
    fn age(&self, entry: &Entry) -> u32 {
        self.now.map_or(0, |now| entry.age(now))
    }

    fn write_own(&mut self, own: &Answer<'_>) -> Whole {
        let sections = [
            (Section::Answer, &own.answer),
            (Section::Authority, &own.authority),
            (Section::Additional, &own.additional),
        ];
        for (section, sets) in sections {
            if self.write_sets(section, sets) == Whole::Truncated {
                return Whole::Truncated;
            }
        }
        Whole::Complete
    }

    /// Writes sets until a required one does not fit; others may be left out in silence (RFC 2181 section 9).
    fn write_sets(&mut self, section: Section, sets: &[AnswerSet<'_>]) -> Whole {
        for set in sets {
            let (owner, rtype, ttl) = (&*set.owner, set.rtype, set.ttl);
            if section == Section::Answer && self.dnames.repeat(owner, rtype, rtype) {
                continue;
            }
            let fit = match &set.data {
                Data::Set(data) => self
                    .writer
                    .write_set(section, owner, rtype, ttl, data.rdata()),
                Data::Made(data) => {
                    let data = std::iter::once(data.as_slice());
                    self.writer.write_set(section, owner, rtype, ttl, data)
                }
            };
            if fit == Fit::NoRoom && set.required {
                return Whole::Truncated;
            }
        }
        Whole::Complete
    }

    fn write_entry(&mut self, entry: &Entry) -> Whole {
        let age = self.age(entry);
        if self.write_answer_records(&entry.answer, age) == Whole::Truncated {
            return Whole::Truncated;
        }
        let negative = entry.is_negative(self.asked);
        for set in sets(&entry.authority).filter(|set| is_alive(set, age)) {
            // RFC 2181 section 9: what is needed is what denies, and what proves.
            let required = negative || set.iter().any(Record::is_proof);
            if self.write_records(Section::Authority, set, age) == Fit::NoRoom && required {
                return Whole::Truncated;
            }
        }
        for set in sets(&entry.additional).filter(|set| is_alive(set, age)) {
            // One that finds no room is left out; a smaller one behind it may find some.
            let _ = self.write_records(Section::Additional, set, age);
        }
        Whole::Complete
    }

    /// Writes records of an upstream's answer section until a set does not fit.
    fn write_answer_records(&mut self, records: &[Record], age: u32) -> Whole {
        for set in sets(records) {
            let repeated = set
                .first()
                .is_some_and(|r| self.dnames.repeat(&r.owner, r.rtype, r.covered()));
            if !repeated && self.write_records(Section::Answer, set, age) == Fit::NoRoom {
                return Whole::Truncated;
            }
        }
        Whole::Complete
    }

    fn write_records(&mut self, section: Section, set: &[Record], age: u32) -> Fit {
        let Some(first) = set.first() else {
            return Fit::Written;
        };
        let ttl = first.ttl.saturating_sub(age);
        let data = set.iter().map(|record| &*record.data);
        self.writer
            .write_set(section, &first.owner, first.rtype, ttl, data)
    }
}

/// Records of one owner, type and TTL that stand together.
fn sets(records: &[Record]) -> impl Iterator<Item = &[Record]> {
    records.chunk_by(|a, b| {
        a.rtype == b.rtype && a.owner.eq_ignore_ascii_case(&b.owner) && a.ttl == b.ttl
    })
}

/// Whether a set that is no part of the answer itself still holds after `age` seconds. The entry lives as long as its answer,
/// which may be longer. A TTL of 0 is for the one who asked (RFC 1035 section 3.2.1).
fn is_alive(set: &[Record], age: u32) -> bool {
    set.first().is_some_and(|first| age < first.ttl.max(1))
}

/// The DNAME sets, and their signatures, that a reply has so far: one that moves several names of a chain stands in it once.
#[derive(Default)]
struct Dnames(Vec<(Box<[u8]>, RecordType)>);

impl Dnames {
    /// Whether a set of `rtype`, itself a DNAME or one that signs what it has `covered`, is there already; from now on it is.
    fn repeat(&mut self, owner: &[u8], rtype: RecordType, covered: RecordType) -> bool {
        if covered != RecordType::DNAME {
            return false;
        }
        let set = (owner.to_ascii_lowercase().into_boxed_slice(), rtype);
        let repeated = self.0.contains(&set);
        if !repeated {
            self.0.push(set);
        }
        repeated
    }
}
