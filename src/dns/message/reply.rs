//! Writing replies: name compression, truncation between record sets, the OPT record.

use crate::model::rrset::RecordType;

use super::{EDNS_UDP, ExtendedError, HEADER, Rcode, flag, request::Edns};

const OPTION_NSID: u16 = 3;
const OPTION_EXTENDED_ERROR: u16 = 15;
/// Highest offset that a compression pointer reaches.
const MAX_POINTER: usize = 0x3fff;
/// Names remembered as targets of compression in one message; later ones are written out.
const MAX_KNOWN: usize = 64;
/// Pointers that a reader follows for one name at most: some resolvers take a name with more than 16 for an attack.
const MAX_JUMPS: u8 = 10;

/// A section that records go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    Answer,
    Authority,
    Additional,
}

/// Whether a record set found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Fit {
    Written,
    NoRoom,
}

/// Writes one reply into a buffer that is kept between replies. Sections are written in order.
pub struct ReplyWriter<'b> {
    out: &'b mut Vec<u8>,
    /// Octets for everything but the OPT record.
    limit: usize,
    counts: [u16; 4],
    known: [Known; MAX_KNOWN],
    known_count: usize,
    opt: Option<Opt<'b>>,
    class: u16,
}

/// What the OPT record of a reply will say.
#[derive(Clone, Copy, Debug)]
struct Opt<'b> {
    dnssec_ok: bool,
    identity: Option<&'b [u8]>,
    error: Option<ExtendedError>,
}

/// A name that stands in the message and can be pointed at.
#[derive(Clone, Copy, Default)]
struct Known {
    at: u16,
    /// Octets of the whole name, uncompressed.
    length: u8,
    /// Pointers that are followed to read it.
    jumps: u8,
}

/// What stands in the header of a reply.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub id: u16,
    /// Flags without the response code.
    pub flags: u16,
    pub rcode: Rcode,
}

impl<'b> ReplyWriter<'b> {
    /// Starts a reply of at most `limit` octets. An OPT record is added when the client sent one.
    pub fn new(
        out: &'b mut Vec<u8>,
        limit: usize,
        question: Option<&[u8]>,
        edns: Option<Edns>,
    ) -> Self {
        out.clear();
        out.resize(HEADER, 0);
        let mut writer = Self {
            out,
            limit,
            counts: [0; 4],
            known: [Known::default(); MAX_KNOWN],
            known_count: 0,
            opt: edns.map(|edns| Opt {
                dnssec_ok: edns.dnssec_ok,
                identity: None,
                error: None,
            }),
            // Records are of the class that was asked for; the question ends in it.
            class: question
                .and_then(|question| question.last_chunk::<2>())
                .map_or(super::class::IN, |class| u16::from_be_bytes(*class)),
        };
        writer.limit = limit.saturating_sub(writer.opt_length());
        if let Some(question) = question {
            writer.out.extend_from_slice(question);
            writer.counts[0] = 1;
            let name = &question[..question.len().saturating_sub(4)];
            writer.remember_new(HEADER, name, name.len(), 0);
        }
        writer
    }

    /// Says why, to clients with EDNS. Call before records are written, so that room is kept.
    pub fn set_error(&mut self, error: ExtendedError) {
        self.change_opt(|opt| opt.error = Some(error));
    }

    /// Names this server (RFC 5001), to clients with EDNS. Call before records are written.
    pub fn set_identity(&mut self, identity: &'b [u8]) {
        self.change_opt(|opt| opt.identity = Some(identity));
    }

    fn change_opt(&mut self, change: impl FnOnce(&mut Opt<'b>)) {
        let total = self.limit + self.opt_length();
        if let Some(opt) = &mut self.opt {
            change(opt);
        }
        self.limit = total.saturating_sub(self.opt_length());
    }

    /// Writes a whole set, or nothing of it.
    pub fn write_set<'d>(
        &mut self,
        section: Section,
        owner: &[u8],
        rtype: RecordType,
        ttl: u32,
        records: impl Iterator<Item = &'d [u8]>,
    ) -> Fit {
        let (length, known_count) = (self.out.len(), self.known_count);
        let count = self.counts[section as usize + 1];
        for data in records {
            self.write_record(owner, rtype, ttl, data);
            let counted = &mut self.counts[section as usize + 1];
            *counted = counted.saturating_add(1);
            if self.out.len() > self.limit {
                self.out.truncate(length);
                self.known_count = known_count;
                self.counts[section as usize + 1] = count;
                return Fit::NoRoom;
            }
        }
        Fit::Written
    }

    fn write_record(&mut self, owner: &[u8], rtype: RecordType, ttl: u32, data: &[u8]) {
        self.write_name(owner);
        self.put_u16(rtype.0);
        self.put_u16(self.class);
        self.out.extend_from_slice(&ttl.to_be_bytes());
        let length_at = self.out.len();
        self.put_u16(0);
        self.write_data(rtype, data);
        let length = (self.out.len() - length_at - 2) as u16;
        self.out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    }

    /// Names inside data are compressed for the types of RFC 1035 alone (RFC 3597 section 4).
    fn write_data(&mut self, rtype: RecordType, data: &[u8]) {
        let (before, names) = match rtype {
            RecordType::NS | RecordType::CNAME | RecordType::PTR => (0, 1),
            RecordType::MX => (2, 1),
            RecordType::SOA => (0, 2),
            _ => (data.len(), 0),
        };
        let (front, mut rest) = data.split_at_checked(before).unwrap_or((data, &[]));
        self.out.extend_from_slice(front);
        for _ in 0..names {
            let Some(end) = super::skip_name(rest, 0) else {
                break;
            };
            let (name, after) = rest.split_at(end);
            self.write_name(name);
            rest = after;
        }
        self.out.extend_from_slice(rest);
    }

    /// Writes a name, pointing at the longest tail of it that is in the message already and within `MAX_JUMPS`.
    fn write_name(&mut self, name: &[u8]) {
        let mut rest = name;
        while let Some(&length) = rest.first().filter(|length| **length > 0) {
            if let Some(known) = self.find(rest) {
                let front = name.len() - rest.len();
                self.remember_new(self.out.len(), name, front, known.jumps + 1);
                self.out.extend_from_slice(&name[..front]);
                self.put_u16(0xc000 | known.at);
                return;
            }
            let Some(after) = rest.get(1 + usize::from(length)..) else {
                break;
            };
            rest = after;
        }
        self.remember_new(self.out.len(), name, name.len(), 0);
        self.out.extend_from_slice(name);
    }

    /// Where the name stands, so that a pointer at it is followed by fewer than `MAX_JUMPS` more.
    fn find(&self, name: &[u8]) -> Option<Known> {
        let known = &self.known[..self.known_count];
        let found = known.iter().find(|known| {
            usize::from(known.length) == name.len()
                && known.jumps < MAX_JUMPS
                && self.stands_at(usize::from(known.at), name)
        });
        found.copied()
    }

    /// Whether the name at `at` in the message is `name`, without regard to case.
    fn stands_at(&self, at: usize, name: &[u8]) -> bool {
        let (mut at, mut name) = (at, name);
        loop {
            let Some(&length) = self.out.get(at) else {
                return false;
            };
            if length >= 0xc0 {
                // Written by us: it points backwards.
                at = usize::from(super::u16_at(self.out, at).unwrap_or(0)) & MAX_POINTER;
                continue;
            }
            let size = 1 + usize::from(length);
            let (Some(ours), Some(theirs)) = (self.out.get(at..at + size), name.get(..size)) else {
                return false;
            };
            if !ours.eq_ignore_ascii_case(theirs) {
                return false;
            }
            if length == 0 {
                return true;
            }
            at += size;
            name = &name[size..];
        }
    }

    /// Remembers the tails of `name`, which will stand at `at`, that start within its first `front` octets. `jumps` pointers are
    /// followed to read them.
    fn remember_new(&mut self, at: usize, name: &[u8], front: usize, jumps: u8) {
        let mut offset = 0;
        while let Some(&length) = name.get(offset).filter(|length| **length > 0) {
            if offset >= front || at + offset > MAX_POINTER || self.known_count == MAX_KNOWN {
                return;
            }
            self.known[self.known_count] = Known {
                at: (at + offset) as u16,
                length: (name.len() - offset) as u8,
                jumps,
            };
            self.known_count += 1;
            offset += 1 + usize::from(length);
        }
    }

    fn opt_length(&self) -> usize {
        self.opt.map_or(0, |opt| {
            let identity = opt.identity.map_or(0, |identity| 4 + identity.len());
            11 + identity + opt.error.map_or(0, |error| 6 + error.text.len())
        })
    }

    /// Completes the message.
    pub fn finish(mut self, head: Head) {
        self.write_opt(head.rcode);
        let flags = head.flags | flag::QR | head.rcode.0 & flag::RCODE;
        let words = [
            head.id,
            flags,
            self.counts[0],
            self.counts[1],
            self.counts[2],
            self.counts[3],
        ];
        for (word, place) in words.iter().zip(self.out.chunks_exact_mut(2)) {
            place.copy_from_slice(&word.to_be_bytes());
        }
    }

    fn write_opt(&mut self, rcode: Rcode) {
        let Some(opt) = self.opt else {
            return;
        };
        let options = self.opt_length() - 11;
        self.counts[3] += 1;
        self.out.push(0);
        self.put_u16(RecordType::OPT.0);
        self.put_u16(EDNS_UDP as u16);
        let extended = u32::from(rcode.0 >> 4) << 24;
        let ttl = extended | u32::from(opt.dnssec_ok) << 15;
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.put_u16(options as u16);
        if let Some(identity) = opt.identity {
            self.put_u16(OPTION_NSID);
            self.put_u16(identity.len() as u16);
            self.out.extend_from_slice(identity);
        }
        if let Some(error) = opt.error {
            self.put_u16(OPTION_EXTENDED_ERROR);
            self.put_u16(2 + error.text.len() as u16);
            self.put_u16(error.code);
            self.out.extend_from_slice(error.text.as_bytes());
        }
    }

    fn put_u16(&mut self, value: u16) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dns::message::{record_at, u16_at};

    /// The name at `at`, and how many pointers were followed to read it.
    fn read(message: &[u8], at: usize) -> (Vec<u8>, u8) {
        let (mut at, mut name, mut jumps) = (at, vec![], 0);
        loop {
            match message[at] {
                0 => {
                    name.push(0);
                    return (name, jumps);
                }
                length @ 1..=63 => {
                    let end = at + 1 + usize::from(length);
                    name.extend_from_slice(&message[at..end]);
                    at = end;
                }
                _ => {
                    at = usize::from(u16_at(message, at).unwrap()) & MAX_POINTER;
                    jumps += 1;
                }
            }
        }
    }

    /// Aliases from name to name, as the message has them, and the deepest chain of pointers in it.
    fn aliases(names: &[Vec<u8>]) -> (Vec<[Vec<u8>; 2]>, u8) {
        let mut message = vec![];
        let question = [&names[0][..], &[0, 5, 0, 1]].concat();
        let mut writer = ReplyWriter::new(&mut message, 65_535, Some(&question), None);
        for pair in names.windows(2) {
            let data = std::iter::once(&pair[1][..]);
            let fit = writer.write_set(Section::Answer, &pair[0], RecordType::CNAME, 5, data);
            assert_eq!(fit, Fit::Written);
        }
        writer.finish(Head {
            id: 1,
            flags: 0,
            rcode: Rcode::NO_ERROR,
        });
        let (mut at, mut deepest, mut found) = (HEADER + question.len(), 0, vec![]);
        for _ in 1..names.len() {
            let record = record_at(&message, at).expect("a record");
            let (owner, to_owner) = read(&message, record.owner);
            let (target, to_target) = read(&message, record.data.start);
            deepest = deepest.max(to_owner).max(to_target);
            found.push([owner, target]);
            at = record.data.end;
        }
        assert_eq!(at, message.len());
        (found, deepest)
    }

    fn expect_readable(names: &[Vec<u8>]) {
        let (found, deepest) = aliases(names);
        let given = names
            .windows(2)
            .map(|pair| [pair[0].clone(), pair[1].clone()]);
        assert_eq!(found, given.collect::<Vec<_>>());
        assert!(deepest <= MAX_JUMPS, "{deepest} pointers for one name");
    }

    #[test]
    fn names_that_grow_at_the_front_are_read_with_few_pointers() {
        let mut names = vec![b"\x06dnself\x04test\0".to_vec()];
        while names.len() < 60 {
            let longer = [b"\x01x", &names[names.len() - 1][..]].concat();
            names.push(longer);
        }
        expect_readable(&names);
        let (_, deepest) = aliases(&names);
        assert_eq!(deepest, MAX_JUMPS, "compressed as far as may be");
    }

    proptest! {
        #[test]
        fn every_name_is_read_with_few_pointers(steps in prop::collection::vec((0usize..8, 0u8..3), 1..80)) {
            let mut names = vec![b"\x04test\0".to_vec()];
            for (back, letter) in steps {
                let parent = &names[names.len().saturating_sub(1 + back)];
                let longer = [&[1, b'a' + letter], &parent[..]].concat();
                names.push(if longer.len() > 255 { b"\0".to_vec() } else { longer });
            }
            expect_readable(&names);
        }
    }
}
