//! Resource record sets (RFC 2181 section 5): all records of one name and type, with one TTL.

use std::{fmt, sync::Arc};

/// Largest TTL (RFC 2181 section 8).
pub const MAX_TTL: u32 = 0x7fff_ffff;

/// A record type by its number (IANA "DNS Parameters").
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct RecordType(pub u16);

macro_rules! record_types {
    ($($name:ident = $number:literal),* $(,)?) => {
        impl RecordType {
            $(pub const $name: Self = Self($number);)*

            /// The mnemonic, for types that have one here.
            pub fn mnemonic(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }

        const MNEMONICS: &[(&str, RecordType)] = &[$((stringify!($name), RecordType($number))),*];
    };
}

record_types! {
    A = 1, NS = 2, CNAME = 5, SOA = 6, NULL = 10, PTR = 12, HINFO = 13, MX = 15, TXT = 16, RP = 17, AFSDB = 18,
    AAAA = 28, LOC = 29, SRV = 33, NAPTR = 35, KX = 36, CERT = 37, DNAME = 39, OPT = 41, APL = 42, DS = 43, SSHFP = 44,
    RRSIG = 46, NSEC = 47, DNSKEY = 48, DHCID = 49, NSEC3 = 50, NSEC3PARAM = 51, TLSA = 52, SMIMEA = 53, CDS = 59,
    CDNSKEY = 60, OPENPGPKEY = 61, CSYNC = 62, ZONEMD = 63, SVCB = 64, HTTPS = 65, SPF = 99, EUI48 = 108, EUI64 = 109,
    TKEY = 249, TSIG = 250, IXFR = 251, AXFR = 252, ANY = 255, URI = 256, CAA = 257,
}

impl RecordType {
    /// Reads a mnemonic in any case, or `TYPEn` (RFC 3597 section 5).
    pub fn parse(text: &str) -> Option<Self> {
        if let Some((_, found)) = MNEMONICS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(text))
        {
            return Some(*found);
        }
        let digits = text
            .get(..4)
            .filter(|p| p.eq_ignore_ascii_case("TYPE"))
            .and(text.get(4..))?;
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse().ok().map(Self)).flatten()
    }

    /// Whether the type exists only in questions or messages and can never be data of a zone
    /// (RFC 6895 section 3.1: meta-types, query types and the reserved type 0).
    pub fn is_meta(self) -> bool {
        matches!(self.0, 0 | 41 | 128..=255)
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mnemonic() {
            Some(name) => f.pad(name),
            None => f.pad(&format!("TYPE{}", self.0)),
        }
    }
}

impl fmt::Debug for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The records of one type at one name: a TTL in seconds and at least one record's data, sorted, each once.
///
/// Data is uncompressed wire form, checked and case-folded by `model::rdata` before it gets here, so that equality of
/// octets is equality of records. All data sits in one allocation: a node holds a million of these.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Rrset {
    rtype: RecordType,
    ttl: u32,
    /// Each record as a big-endian length of two octets and its data.
    packed: Arc<[u8]>,
}

impl Rrset {
    /// Makes a set of `rdata`, sorting it and dropping repeats. None when there is no record, or one exceeds 65,535 octets.
    pub fn new<D: AsRef<[u8]>>(
        rtype: RecordType,
        ttl: u32,
        rdata: impl IntoIterator<Item = D>,
    ) -> Option<Self> {
        let mut records: Vec<D> = rdata.into_iter().collect();
        records.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        records.dedup_by(|a, b| a.as_ref() == b.as_ref());
        let mut packed = Vec::with_capacity(records.iter().map(|r| r.as_ref().len() + 2).sum());
        for record in &records {
            packed.extend_from_slice(&u16::try_from(record.as_ref().len()).ok()?.to_be_bytes());
            packed.extend_from_slice(record.as_ref());
        }
        (!records.is_empty()).then(|| Self {
            rtype,
            ttl,
            packed: packed.into(),
        })
    }

    /// Reads packed data, as `packed` gives it. None when it is not whole, sorted, without repeats and not empty.
    pub fn from_packed(rtype: RecordType, ttl: u32, packed: Arc<[u8]>) -> Option<Self> {
        let mut rest: &[u8] = &packed;
        let mut last: Option<&[u8]> = None;
        while !rest.is_empty() {
            let (length, tail) = rest.split_first_chunk::<2>()?;
            let (data, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            if last.is_some_and(|last| last >= data) {
                return None;
            }
            (last, rest) = (Some(data), tail);
        }
        last?;
        Some(Self { rtype, ttl, packed })
    }

    pub fn rtype(&self) -> RecordType {
        self.rtype
    }

    /// Time to live, in seconds.
    pub fn ttl(&self) -> u32 {
        self.ttl
    }

    /// The data of each record, in order.
    pub fn rdata(&self) -> RdataIter<'_> {
        RdataIter(&self.packed)
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.rdata().count()
    }

    /// Always false: an empty set does not exist. Here because `len` is.
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }

    pub fn contains(&self, rdata: &[u8]) -> bool {
        self.rdata().any(|r| r == rdata)
    }

    #[must_use]
    pub fn with_ttl(&self, ttl: u32) -> Self {
        Self {
            ttl,
            ..self.clone()
        }
    }

    /// Octets of data, two for each record's length included.
    pub fn packed_len(&self) -> usize {
        self.packed.len()
    }

    /// The packed data: for each record two octets of length, big-endian, and the data.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }
}

impl fmt::Debug for Rrset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.rtype, self.ttl)?;
        self.rdata()
            .try_for_each(|r| write!(f, " [{}]", data_encoding::HEXLOWER.encode(r)))
    }
}

/// The data of the records of a set.
#[derive(Clone)]
pub struct RdataIter<'a>(&'a [u8]);

impl<'a> Iterator for RdataIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let (data, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        self.0 = rest;
        Some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_by_name_and_by_number() {
        assert_eq!(RecordType::parse("aaaa"), Some(RecordType::AAAA));
        assert_eq!(RecordType::parse("TYPE65280"), Some(RecordType(65280)));
        assert_eq!(RecordType::parse("type1"), Some(RecordType::A));
        for bad in ["TYPE", "TYPE65536", "TYPE+1", "bogus", ""] {
            assert_eq!(RecordType::parse(bad), None, "{bad}");
        }
        assert_eq!(RecordType(65280).to_string(), "TYPE65280");
    }

    #[test]
    fn a_set_is_sorted_and_has_each_record_once() {
        let set = Rrset::new(
            RecordType::A,
            60,
            [[2u8, 0, 0, 1], [1, 0, 0, 1], [2, 0, 0, 1]],
        )
        .expect("not empty");
        assert_eq!(
            set.rdata().collect::<Vec<_>>(),
            [[1, 0, 0, 1], [2, 0, 0, 1]]
        );
        assert_eq!(set.len(), 2);
        let packed = |octets: &[u8]| Rrset::from_packed(RecordType::A, 60, octets.into());
        assert_eq!(packed(set.packed()), Some(set.clone()));
        for bad in [
            &[][..],
            &[0],
            &[0, 2, 7],
            &[0, 1, 7, 0, 1, 7],
            &[0, 1, 7, 0, 1, 6],
            &[0, 1, 7, 9],
        ] {
            assert_eq!(packed(bad), None, "{bad:?}");
        }
        assert!(Rrset::new(RecordType::A, 60, Vec::<Vec<u8>>::new()).is_none());
        assert!(Rrset::new(RecordType::TXT, 60, [vec![0; 70_000]]).is_none());
        assert_eq!(
            Rrset::new(RecordType::NULL, 1, [[]]).map(|s| s.len()),
            Some(1)
        );
    }
}
