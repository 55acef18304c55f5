//! DNS messages on the wire (RFC 1035 section 4, RFC 6891): reading requests, writing replies, talking to upstreams.
//!
//! Octets in, values out and back again; no sockets. Nothing read here is trusted: lengths are checked, compression
//! pointers may only point backwards, and the work for one message is bounded by its size.

pub mod record;
pub mod reply;
pub mod request;
pub mod upstream;

use crate::model::rrset::RecordType;

/// Octets of a message header.
pub const HEADER: usize = 12;
/// Largest UDP message to a client without EDNS (RFC 1035 section 2.3.4).
pub const PLAIN_UDP: usize = 512;
/// Largest UDP message that we send or ask for: it fits the smallest IPv6 packet (RFC 9715).
pub const EDNS_UDP: usize = 1232;

/// The flags word of the header (RFC 1035 section 4.1.1, RFC 4035 section 3).
pub mod flag {
    pub const QR: u16 = 0x8000;
    pub const AA: u16 = 0x0400;
    pub const TC: u16 = 0x0200;
    pub const RD: u16 = 0x0100;
    pub const RA: u16 = 0x0080;
    pub const AD: u16 = 0x0020;
    pub const CD: u16 = 0x0010;
    pub const OPCODE: u16 = 0x7800;
    pub const RCODE: u16 = 0x000f;
}

/// DNS classes (RFC 6895 section 3.2).
pub mod class {
    pub const IN: u16 = 1;
    pub const CHAOS: u16 = 3;
    pub const ANY: u16 = 255;
}

/// A response code, the extended ones included (RFC 6895 section 2.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rcode(pub u16);

impl Rcode {
    pub const NO_ERROR: Self = Self(0);
    pub const FORM_ERR: Self = Self(1);
    pub const SERV_FAIL: Self = Self(2);
    pub const NX_DOMAIN: Self = Self(3);
    pub const NOT_IMP: Self = Self(4);
    pub const REFUSED: Self = Self(5);
    pub const YX_DOMAIN: Self = Self(6);
    pub const BAD_VERS: Self = Self(16);

    /// The mnemonic of the IANA registry; none for codes without one here.
    pub fn mnemonic(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "NOERROR",
            1 => "FORMERR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            4 => "NOTIMP",
            5 => "REFUSED",
            6 => "YXDOMAIN",
            7 => "YXRRSET",
            8 => "NXRRSET",
            9 => "NOTAUTH",
            10 => "NOTZONE",
            11 => "DSOTYPENI",
            16 => "BADVERS",
            17 => "BADKEY",
            18 => "BADTIME",
            19 => "BADMODE",
            20 => "BADNAME",
            21 => "BADALG",
            22 => "BADTRUNC",
            23 => "BADCOOKIE",
            _ => return None,
        })
    }
}

impl std::fmt::Display for Rcode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.mnemonic() {
            Some(name) => f.pad(name),
            None => f.pad(&format!("RCODE{}", self.0)),
        }
    }
}

impl std::fmt::Debug for Rcode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Why an answer is what it is, in an EDNS option (RFC 8914).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedError {
    pub code: u16,
    pub text: &'static str,
}

impl ExtendedError {
    pub const NOT_READY: Self = Self {
        code: 14,
        text: "too many questions are waiting for upstream servers",
    };
    pub const NO_RESOURCES: Self = Self {
        code: 14,
        text: "this server has no files, memory or ports left to ask upstream servers",
    };
    pub const PROHIBITED: Self = Self {
        code: 18,
        text: "recursion is not allowed from this address",
    };
    pub const NOT_AUTHORITATIVE: Self = Self {
        code: 20,
        text: "not in a zone of this server, and recursion was not desired",
    };
    pub const NO_FORWARDER: Self = Self {
        code: 20,
        text: "not in a zone of this server, and no forwarder is set for the name",
    };
    pub const NOT_SUPPORTED: Self = Self {
        code: 21,
        text: "this server does not answer that type",
    };
    pub const UPSTREAM_SILENT: Self = Self {
        code: 22,
        text: "no upstream server answered in time",
    };
    pub const UPSTREAM_SERVFAIL: Self = Self {
        code: 22,
        text: "the upstream server answered SERVFAIL",
    };
    pub const UPSTREAM_REFUSED: Self = Self {
        code: 22,
        text: "the upstream server answered REFUSED",
    };
    pub const UPSTREAM_ERROR: Self = Self {
        code: 22,
        text: "the upstream server answered with an error",
    };
    pub const UPSTREAM_NONSENSE: Self = Self {
        code: 22,
        text: "the upstream server's answer does not fit the question",
    };
    pub const UPSTREAM_UNREACHABLE: Self = Self {
        code: 23,
        text: "no upstream server can be reached",
    };
    pub const ENDLESS: Self = Self {
        code: 0,
        text: "the aliases go in a circle, or lead on too often",
    };
    pub const INVALID_ZONE: Self = Self {
        code: 14,
        text: "the zone is not complete: it has no SOA record",
    };
}

/// Types that are asked for in no query that we answer, and the code they are refused with.
///
/// OPT is a pseudo record and NXNAME (128) a signal (RFC 9824 section 3.4): a question for them is malformed. Zone transfer
/// is not offered. The rest of 128 to 254, and 0, are no data types (RFC 6895 section 3.1).
pub fn refused_type(rtype: RecordType) -> Option<Rcode> {
    match rtype.0 {
        0 | 41 | 128 => Some(Rcode::FORM_ERR),
        251 | 252 => Some(Rcode::REFUSED),
        129..=250 | 253 | 254 => Some(Rcode::NOT_IMP),
        _ => None,
    }
}

/// Two octets at `at`, big-endian.
pub(crate) fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*octets.get(at..)?.first_chunk::<2>()?))
}

/// Four octets at `at`, big-endian.
pub(crate) fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*octets.get(at..)?.first_chunk::<4>()?))
}

/// Where the name at `at` ends in `message`, by its own labels or at its first pointer.
pub(crate) fn skip_name(message: &[u8], at: usize) -> Option<usize> {
    let mut at = at;
    // A name has at most 127 labels and a root or pointer.
    for _ in 0..128 {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return message.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
    None
}

/// The EDNS options of a message, code and data (RFC 6891 section 6.1.2); nothing from where it is malformed on.
pub fn options(message: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    let Some(mut rest) = opt_data(message) else {
        return found;
    };
    while let (Some(code), Some(length)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let end = 4 + usize::from(length);
        let Some((option, after)) = rest.split_at_checked(end) else {
            break;
        };
        found.push((code, option.get(4..).unwrap_or_default()));
        rest = after;
    }
    found
}

/// The data of the first OPT record.
fn opt_data(message: &[u8]) -> Option<&[u8]> {
    let mut at = HEADER;
    for _ in 0..u16_at(message, 4)? {
        at = skip_name(message, at)? + 4;
    }
    let records = [6, 8, 10].map(|count| u16_at(message, count).map_or(0, u32::from));
    for _ in 0..records.iter().sum::<u32>() {
        let record = record_at(message, at)?;
        if record.rtype == RecordType::OPT {
            return message.get(record.data);
        }
        at = record.data.end;
    }
    None
}

/// The record at `at`, up to its data.
pub(crate) struct RecordHeader {
    pub owner: usize,
    pub rtype: RecordType,
    pub class: u16,
    pub ttl: u32,
    /// Where the data starts and ends in the message.
    pub data: std::ops::Range<usize>,
}

/// Reads the fixed part of the record at `at`; none when the message ends too early.
pub(crate) fn record_at(message: &[u8], at: usize) -> Option<RecordHeader> {
    let fixed = skip_name(message, at)?;
    let start = fixed + 10;
    let end = start + usize::from(u16_at(message, fixed + 8)?);
    message.get(start..end)?;
    Some(RecordHeader {
        owner: at,
        rtype: RecordType(u16_at(message, fixed)?),
        class: u16_at(message, fixed + 2)?,
        ttl: u32_at(message, fixed + 4)?,
        data: start..end,
    })
}
