//! Copies of replies, so that a question asked again costs no look-up and no encoding.
//!
//! Each worker has its own, so there is no lock. The key is every octet of the query but its id, with the name in lower
//! case: what a reply from our zones depends on, the client's address aside. A hit patches id, RA and the spelling of the
//! name. An entry lives as long as each name that was looked up for it lies in the same zone at the same revision: a zone
//! that is made or deleted around one of them ends it too. That is checked anew only after another snapshot came.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use crate::model::{name::MAX_NAME, rrset::RecordType, snapshot::Snapshot};

use super::{
    answer::Source,
    message::{HEADER, Rcode, flag, u16_at},
    respond::{Client, recursion_available},
};

/// Replies kept by one worker. Together with `LONGEST_REPLY` this bounds its memory, at about 16 MiB.
const MAX_ENTRIES: usize = 16_384;
/// Longest reply kept, in octets, with the names that aliases led to.
const LONGEST_REPLY: usize = 512;
/// Octets of an OPT record without options. Queries with options (cookies, say) differ each time and are not kept.
const BARE_OPT: usize = 11;
/// Octets of the longest query that is kept, its id left out.
const LONGEST_KEY: usize = HEADER - 2 + MAX_NAME + 4 + BARE_OPT;
/// Questions remembered as asked once. Only what is asked twice is kept, so that a flood of random names displaces nothing.
const ASKED_ONCE: usize = 4096;

pub(super) struct FastPath {
    entries: HashMap<Box<[u8]>, Entry>,
    asked_once: Box<[u32; ASKED_ONCE]>,
    hasher: RandomState,
    /// The snapshot that was seen last, and how many there were.
    snapshot: Arc<Snapshot>,
    generation: u64,
}

/// A reply that is a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    pub rcode: Rcode,
    pub truncated: bool,
}

struct Entry {
    reply: Box<[u8]>,
    source: Source,
    /// The last generation in which its zones were found unchanged.
    generation: u64,
}

/// What identifies a query, on the stack.
struct Key {
    octets: [u8; LONGEST_KEY],
    length: usize,
    /// Octets of the name, the root label included.
    name: usize,
}

/// Where the name starts in a key.
const NAME_AT: usize = HEADER - 2;

impl Key {
    /// None when the query is none of the plain kind.
    fn of(message: &[u8]) -> Option<Self> {
        let mut octets = [0; LONGEST_KEY];
        let rest = message.get(2..)?;
        let end = super::message::skip_name(message, HEADER)?;
        let opt = message.len().checked_sub(end + 4)?;
        if !matches!(opt, 0 | BARE_OPT) {
            return None;
        }
        octets.get_mut(..rest.len())?.copy_from_slice(rest);
        let name = end - HEADER;
        octets
            .get_mut(NAME_AT..NAME_AT + name)?
            .make_ascii_lowercase();
        Some(Self {
            octets,
            length: rest.len(),
            name,
        })
    }

    fn as_bytes(&self) -> &[u8] {
        &self.octets[..self.length]
    }

    fn name(&self) -> &[u8] {
        &self.octets[NAME_AT..NAME_AT + self.name]
    }

    fn rtype(&self) -> RecordType {
        RecordType(u16_at(&self.octets, NAME_AT + self.name).unwrap_or(0))
    }
}

impl FastPath {
    pub fn new() -> Self {
        Self {
            entries: HashMap::new(),
            asked_once: Box::new([0; ASKED_ONCE]),
            hasher: RandomState::new(),
            snapshot: Arc::default(),
            generation: 0,
        }
    }

    /// Writes the reply to `message` if a copy is at hand, and says what is counted of it.
    pub fn answer(
        &mut self,
        snapshot: &Arc<Snapshot>,
        message: &[u8],
        client: Client,
        out: &mut Vec<u8>,
    ) -> Option<Copied> {
        self.follow(snapshot);
        let key = Key::of(message)?;
        let entry = self.entries.get_mut(key.as_bytes())?;
        if entry.generation != self.generation {
            if !entry.source.holds(snapshot, key.name(), key.rtype()) {
                self.entries.remove(key.as_bytes());
                return None;
            }
            entry.generation = self.generation;
        }
        out.clear();
        out.extend_from_slice(&entry.reply);
        let name = HEADER..HEADER + key.name;
        out.get_mut(..2)?.copy_from_slice(message.get(..2)?);
        out.get_mut(name.clone())?
            .copy_from_slice(message.get(name)?);
        let mut flags = u16_at(out, 2)? & !flag::RA;
        if recursion_available(snapshot, client.address) {
            flags |= flag::RA;
        }
        out.get_mut(2..4)?.copy_from_slice(&flags.to_be_bytes());
        Some(Copied {
            rcode: Rcode(flags & flag::RCODE),
            truncated: flags & flag::TC != 0,
        })
    }

    /// Keeps `reply`, if its question was asked before.
    pub fn keep(&mut self, snapshot: &Arc<Snapshot>, message: &[u8], reply: &[u8], source: Source) {
        self.follow(snapshot);
        if reply.len() + source.followed_octets() > LONGEST_REPLY {
            return;
        }
        let Some(key) = Key::of(message) else {
            return;
        };
        let hash = self.hasher.hash_one(key.as_bytes());
        let mark = (hash >> 32) as u32 | 1;
        let seen = &mut self.asked_once[hash as usize % ASKED_ONCE];
        if *seen != mark {
            *seen = mark;
            return;
        }
        if self.entries.len() >= MAX_ENTRIES {
            // Seldom, and what matters is asked again at once.
            self.entries.clear();
        }
        let entry = Entry {
            reply: reply.into(),
            source,
            generation: self.generation,
        };
        self.entries.insert(key.as_bytes().into(), entry);
    }

    fn follow(&mut self, snapshot: &Arc<Snapshot>) {
        if !Arc::ptr_eq(&self.snapshot, snapshot) {
            self.snapshot = Arc::clone(snapshot);
            self.generation += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::dns::{
        message::upstream::Message,
        respond::{Identity, Response, Transport, respond},
        testing::{at_revision, lines, query, snapshot},
    };

    use super::*;

    const ZONE: &str = "
site.test. 600 IN SOA ns1.site.test. admin.site.test. 5 7200 3600 86400 300
site.test. 600 IN NS ns1.site.test.
www.site.test. 60 IN A 192.0.2.80";

    struct Bench {
        fast: FastPath,
        snapshot: Arc<Snapshot>,
        client: Client,
    }

    impl Bench {
        /// The reply to `message`, and whether a copy was used.
        fn ask(&mut self, message: &[u8]) -> (Vec<u8>, bool) {
            let mut out = Vec::new();
            if self
                .fast
                .answer(&self.snapshot, message, self.client, &mut out)
                .is_some()
            {
                return (out, true);
            }
            let identity = Identity::default();
            let response = respond(&self.snapshot, &identity, message, self.client, &mut out);
            if let Response::Reply(replied) = response
                && let Some(source) = replied.source
            {
                self.fast.keep(&self.snapshot, message, &out, source);
            }
            (out, false)
        }
    }

    fn bench() -> Bench {
        Bench {
            fast: FastPath::new(),
            snapshot: Arc::new(snapshot(&[ZONE])),
            client: Client {
                address: [127, 0, 0, 1].into(),
                transport: Transport::Udp,
            },
        }
    }

    #[test]
    fn a_copy_differs_from_the_original_in_id_and_spelling_alone() {
        let mut bench = bench();
        let first = query(1, "www.site.test.", RecordType::A, flag::RD, Some(1232));
        assert!(!bench.ask(&first).1, "nothing is there yet");
        assert!(!bench.ask(&first).1, "asked once is not enough");
        let mut second = query(
            0x0203,
            "www.site.test.",
            RecordType::A,
            flag::RD,
            Some(1232),
        );
        second[13..16].copy_from_slice(b"WwW");
        let (copy, used) = bench.ask(&second);
        assert!(used);
        let mut original = Vec::new();
        respond(
            &bench.snapshot,
            &Identity::default(),
            &second,
            bench.client,
            &mut original,
        );
        assert_eq!(copy, original);
        for (other, rtype, flags, payload) in [
            ("site.test.", RecordType::A, flag::RD, Some(1232)),
            ("www.site.test.", RecordType(97), flag::RD, Some(1232)),
            ("www.site.test.", RecordType::A, 0, Some(1232)),
            ("www.site.test.", RecordType::A, flag::RD, None),
        ] {
            assert!(
                !bench.ask(&query(1, other, rtype, flags, payload)).1,
                "{other} {rtype}"
            );
        }
    }

    #[test]
    fn types_that_look_like_letters_are_not_folded() {
        let mut bench = bench();
        let https = query(1, "www.site.test.", RecordType::HTTPS, 0, None);
        (0..3).for_each(|_| drop(bench.ask(&https)));
        assert!(bench.ask(&https).1);
        assert!(
            !bench
                .ask(&query(1, "www.site.test.", RecordType(97), 0, None))
                .1
        );
    }

    #[test]
    fn a_copy_dies_with_the_revision_of_its_zone_and_with_no_other() {
        let mut bench = bench();
        let message = query(1, "www.site.test.", RecordType::A, 0, None);
        (0..2).for_each(|_| drop(bench.ask(&message)));
        let other = "other.test. 60 IN SOA a. b. 1 1 1 1 1";
        bench.snapshot = Arc::new(snapshot(&[ZONE, other]));
        assert!(bench.ask(&message).1, "another zone came");
        let changed = at_revision(snapshot(&[&ZONE.replace("192.0.2.80", "192.0.2.81")]), 2);
        bench.snapshot = Arc::new(changed);
        let (reply, used) = bench.ask(&message);
        let answer = Message::decode(&reply).map(|message| lines(&message.answer));
        assert!(!used);
        assert_eq!(
            answer,
            Some(vec!["www.site.test. 60 IN A 192.0.2.81".to_owned()])
        );
        (0..2).for_each(|_| drop(bench.ask(&message)));
        let child = "www.site.test. 60 IN SOA a. b. 1 1 1 1 1";
        bench.snapshot = Arc::new(snapshot(&[ZONE, child]));
        assert!(
            !bench.ask(&message).1,
            "a zone in between takes the name over"
        );
    }

    #[test]
    fn recursion_is_said_to_be_available_to_those_for_whom_it_is() {
        let mut bench = bench();
        let mut state = snapshot(&[ZONE]);
        let upstream = "192.0.2.1:53".parse().expect("an address");
        crate::dns::testing::add_forwarder(&mut state, ".", &[upstream]);
        bench.snapshot = Arc::new(state);
        let message = query(1, "www.site.test.", RecordType::A, 0, None);
        (0..2).for_each(|_| drop(bench.ask(&message)));
        let mut available = |address: [u8; 4]| {
            bench.client.address = address.into();
            let (reply, used) = bench.ask(&message);
            assert!(used);
            u16_at(&reply, 2).is_some_and(|flags| flags & flag::RA != 0)
        };
        assert!(available([10, 0, 0, 1]));
        assert!(!available([203, 0, 113, 1]));
    }
}
