//! The fields of an SOA record (RFC 1035 section 3.3.13).

use super::super::{name::Name, rrset::RecordType, serial::Serial};
use super::RdataError;

/// SOA data, taken apart. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Soa {
    /// The primary name server.
    pub mname: Name,
    /// The mailbox of the person responsible, its first label the local part.
    pub rname: Name,
    pub serial: Serial,
    pub refresh: u32,
    pub retry: u32,
    pub expire: u32,
    /// TTL of negative answers, at most that of the SOA itself (RFC 2308 section 5).
    pub minimum: u32,
}

/// Octets of the five numbers behind the two names.
const NUMBERS: usize = 20;

impl Soa {
    pub fn from_wire(wire: &[u8]) -> Result<Self, RdataError> {
        Self::read(wire).ok_or_else(|| RdataError {
            rtype: RecordType::SOA,
            problem: "expected two names and five numbers of 32 bits".to_owned(),
            word: None,
        })
    }

    fn read(wire: &[u8]) -> Option<Self> {
        let (mname, used) = Name::parse_wire(wire).ok()?;
        let rest = wire.get(used..)?;
        let (rname, used) = Name::parse_wire(rest).ok()?;
        let numbers: &[u8; NUMBERS] = rest.get(used..)?.try_into().ok()?;
        let mut numbers = numbers
            .as_chunks::<4>()
            .0
            .iter()
            .map(|n| u32::from_be_bytes(*n));
        Some(Self {
            mname,
            rname,
            serial: Serial(numbers.next()?),
            refresh: numbers.next()?,
            retry: numbers.next()?,
            expire: numbers.next()?,
            minimum: numbers.next()?,
        })
    }

    pub fn to_wire(&self) -> Vec<u8> {
        let mut wire = Vec::with_capacity(64);
        wire.extend_from_slice(self.mname.as_wire());
        wire.extend_from_slice(self.rname.as_wire());
        for number in [
            self.serial.0,
            self.refresh,
            self.retry,
            self.expire,
            self.minimum,
        ] {
            wire.extend_from_slice(&number.to_be_bytes());
        }
        wire
    }

    /// The serial of SOA data; none when it is too short to hold one.
    pub fn serial_of(wire: &[u8]) -> Option<Serial> {
        let at = wire.len().checked_sub(NUMBERS)?;
        let (number, _) = wire.get(at..)?.split_first_chunk::<4>()?;
        Some(Serial(u32::from_be_bytes(*number)))
    }

    /// SOA data with another serial; none when it is too short to hold one.
    pub fn with_serial(wire: &[u8], serial: Serial) -> Option<Vec<u8>> {
        let at = wire.len().checked_sub(NUMBERS)?;
        let mut patched = wire.to_vec();
        patched
            .get_mut(at..at + 4)?
            .copy_from_slice(&serial.0.to_be_bytes());
        Some(patched)
    }
}
