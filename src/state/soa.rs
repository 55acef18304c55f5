//! The SOA record's serial (RFC 1035 section 3.3.13): kept by the state, so read, written and left out of comparisons here.

use crate::model::{
    rrset::{RecordType, Rrset},
    serial::Serial,
};

/// Octets after the two names: serial, refresh, retry, expire, minimum.
const NUMBERS: usize = 20;

/// The serial in the first record of an SOA set; none when its data is too short to hold one.
pub fn serial_of(soa: &Rrset) -> Option<Serial> {
    let data = soa.rdata().next()?;
    let numbers = data.get(data.len().checked_sub(NUMBERS)?..)?;
    let (serial, _) = numbers.split_first_chunk::<4>()?;
    Some(Serial(u32::from_be_bytes(*serial)))
}

/// The set with `serial` in every record; sets of other types and records too short for one stay as they are.
pub fn with_serial(soa: &Rrset, serial: Serial) -> Rrset {
    if soa.rtype() != RecordType::SOA {
        return soa.clone();
    }
    let stamped = soa.rdata().map(|data| {
        let mut data = data.to_vec();
        let at = data.len().saturating_sub(NUMBERS);
        if let Some(place) = data.get_mut(at..at + 4).filter(|_| at > 0) {
            place.copy_from_slice(&serial.0.to_be_bytes());
        }
        data
    });
    Rrset::new(soa.rtype(), soa.ttl(), stamped).unwrap_or_else(|| soa.clone())
}

/// Whether two sets are the same but for the serial of an SOA.
pub fn same_but_serial(one: Option<&Rrset>, other: Option<&Rrset>) -> bool {
    match (one, other) {
        (Some(a), Some(b)) if a.rtype() == RecordType::SOA && b.rtype() == RecordType::SOA => {
            with_serial(a, Serial(0)) == with_serial(b, Serial(0))
        }
        _ => one == other,
    }
}
