//! What is said to upstream servers and what they say.

use crate::model::rrset::RecordType;

use super::{
    EDNS_UDP, HEADER, Rcode, class, flag,
    record::{Read, Record, read},
    skip_name, u16_at,
};

/// A question to an upstream server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamQuestion {
    /// Uncompressed wire form in lower case.
    pub name: Box<[u8]>,
    pub rtype: RecordType,
    /// DO: signatures are wanted.
    pub dnssec_ok: bool,
    /// CD: the client checks signatures itself.
    pub checking_disabled: bool,
}

impl UpstreamQuestion {
    /// The query message. Without EDNS for servers that do not know it.
    pub fn encode(&self, id: u16, edns: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.name.len() + 15);
        let checking = if self.checking_disabled { flag::CD } else { 0 };
        let words = [id, flag::RD | checking, 1, 0, 0, u16::from(edns)];
        out.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        out.extend_from_slice(&self.name);
        out.extend_from_slice(&self.rtype.0.to_be_bytes());
        out.extend_from_slice(&class::IN.to_be_bytes());
        if edns {
            out.extend_from_slice(&[0, 0, RecordType::OPT.0 as u8]);
            out.extend_from_slice(&(EDNS_UDP as u16).to_be_bytes());
            out.extend_from_slice(&[0, 0, u8::from(self.dnssec_ok) << 7, 0, 0, 0]);
        }
        out
    }

    /// Whether `message` is a response with this id to this question; whatever is not is taken for an attempt to forge one
    /// (RFC 5452 section 9.1).
    pub fn is_answered_by(&self, id: u16, message: &[u8]) -> bool {
        let flags = u16_at(message, 2).unwrap_or(0);
        let end = HEADER + self.name.len();
        u16_at(message, 0) == Some(id)
            && flags & (flag::QR | flag::OPCODE) == flag::QR
            && u16_at(message, 4) == Some(1)
            && message
                .get(HEADER..end)
                .is_some_and(|name| name.eq_ignore_ascii_case(&self.name))
            && u16_at(message, end) == Some(self.rtype.0)
            && u16_at(message, end + 2) == Some(class::IN)
    }
}

/// A message taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub id: u16,
    pub flags: u16,
    /// The extended code, where there was an OPT record.
    pub rcode: Rcode,
    pub answer: Vec<Record>,
    pub authority: Vec<Record>,
    pub additional: Vec<Record>,
}

impl Message {
    /// None when `message` is malformed.
    pub fn decode(message: &[u8]) -> Option<Self> {
        let flags = u16_at(message, 2)?;
        let mut decoded = Self {
            id: u16_at(message, 0)?,
            flags,
            rcode: Rcode(flags & flag::RCODE),
            answer: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
        };
        let mut at = HEADER;
        for _ in 0..u16_at(message, 4)? {
            at = skip_name(message, at)? + 4;
        }
        let counts = [
            u16_at(message, 6)?,
            u16_at(message, 8)?,
            u16_at(message, 10)?,
        ];
        for (section, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let (read, next) = read(message, at)?;
                at = next;
                decoded.take(section, read);
            }
        }
        Some(decoded)
    }

    fn take(&mut self, section: usize, read: Read) {
        match (read, section) {
            (Read::Record(record), 0) => self.answer.push(record),
            (Read::Record(record), 1) => self.authority.push(record),
            (Read::Record(record), _) => self.additional.push(record),
            (Read::Opt { extended_rcode }, _) => {
                self.rcode.0 |= u16::from(extended_rcode) << 4;
            }
            (Read::Other, _) => {}
        }
    }

    pub fn is_truncated(&self) -> bool {
        self.flags & flag::TC != 0
    }
}
