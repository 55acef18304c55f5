//! Records of other people's messages, with every name written out.

use crate::model::{name::MAX_NAME, rrset::RecordType};

use super::{class, record_at, u16_at};

/// One record as an upstream sent it, uncompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Wire form, in the sender's spelling.
    pub owner: Box<[u8]>,
    pub rtype: RecordType,
    /// Seconds; at most 2^31 - 1 (RFC 2181 section 8).
    pub ttl: u32,
    pub data: Box<[u8]>,
}

impl Record {
    /// Its type, or that of the set that a signature is for (RFC 4034 section 3.1.1).
    pub fn covered(&self) -> RecordType {
        match (self.rtype, u16_at(&self.data, 0)) {
            (RecordType::RRSIG, Some(rtype)) => RecordType(rtype),
            (rtype, _) => rtype,
        }
    }

    /// Whether a validator needs it, in an authority section: what denies, what says that a zone is not signed, and the
    /// signatures of both (RFC 4035 section 3.1.3).
    pub fn is_proof(&self) -> bool {
        matches!(
            self.covered(),
            RecordType::SOA | RecordType::NSEC | RecordType::NSEC3 | RecordType::DS
        )
    }

    /// Octets that this record keeps in memory.
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.owner.len() + self.data.len()
    }
}

/// A record as it was read, or a pseudo record.
pub(super) enum Read {
    Record(Record),
    /// An OPT record with the upper octet of the response code.
    Opt {
        extended_rcode: u8,
    },
    /// Of another class, or a transaction signature: of no use to us.
    Other,
}

/// Reads the record at `at` and says where the next one starts.
pub(super) fn read(message: &[u8], at: usize) -> Option<(Read, usize)> {
    let header = record_at(message, at)?;
    let end = header.data.end;
    if header.rtype == RecordType::OPT {
        let extended_rcode = (header.ttl >> 24) as u8;
        return Some((Read::Opt { extended_rcode }, end));
    }
    if header.class != class::IN || header.rtype.is_meta() {
        return Some((Read::Other, end));
    }
    let record = Record {
        owner: read_name(message, header.owner)?.0.into(),
        rtype: header.rtype,
        // A TTL with the top bit set is to be read as zero.
        ttl: if header.ttl > i32::MAX as u32 {
            0
        } else {
            header.ttl
        },
        data: read_data(message, header.rtype, header.data)?.into(),
    };
    Some((Read::Record(record), end))
}

/// Reads the name at `at`, compressed or not, and says where what follows it starts.
pub fn read_name(message: &[u8], at: usize) -> Option<(Vec<u8>, usize)> {
    let mut name = Vec::with_capacity(32);
    let (mut at, mut after, mut floor) = (at, None, at);
    loop {
        match *message.get(at)? {
            0 => {
                name.push(0);
                return Some((name, after.unwrap_or(at + 1)));
            }
            length @ 1..=63 => {
                let end = at + 1 + usize::from(length);
                name.extend_from_slice(message.get(at..end)?);
                if name.len() >= MAX_NAME {
                    return None;
                }
                at = end;
            }
            0xc0.. => {
                after = after.or(Some(at + 2));
                at = usize::from(u16_at(message, at)? & 0x3fff);
                // Each pointer must go further back than the one before: then there can be no circle.
                if at >= floor {
                    return None;
                }
                floor = at;
            }
            _ => return None,
        }
    }
}

/// Reads data, writing out the names that RFC 1035 types and those of RFC 3597 section 4 may have compressed.
fn read_data(message: &[u8], rtype: RecordType, data: std::ops::Range<usize>) -> Option<Vec<u8>> {
    let octets = message.get(data.clone())?;
    let (before, names, behind) = match rtype.0 {
        1 => return (octets.len() == 4).then(|| octets.to_vec()),
        28 => return (octets.len() == 16).then(|| octets.to_vec()),
        2..=5 | 7..=9 | 12 | 39 => (0, 1, 0),
        6 => (0, 2, 20),
        14 | 17 => (0, 2, 0),
        15 | 18 | 21 | 36 => (2, 1, 0),
        26 => (2, 2, 0),
        33 => (6, 1, 0),
        35 => (naptr_front(octets)?, 1, 0),
        _ => return Some(octets.to_vec()),
    };
    let mut out = octets.get(..before)?.to_vec();
    let mut at = data.start + before;
    for _ in 0..names {
        let (name, after) = read_name(message, at)?;
        out.extend_from_slice(&name);
        at = after;
    }
    out.extend_from_slice(message.get(at..data.end)?);
    (data.end - at == behind).then_some(out)
}

/// Octets of NAPTR data in front of the replacement: order, preference and three strings (RFC 3403 section 4.1).
fn naptr_front(octets: &[u8]) -> Option<usize> {
    (0..3).try_fold(4, |at, _| Some(at + 1 + usize::from(*octets.get(at)?)))
}
