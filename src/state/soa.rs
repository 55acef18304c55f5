//! The SOA record's serial (RFC 1035 section 3.3.13): kept by the state, so read, written and left out of comparisons here.

use crate::model::{
    rdata::Soa,
    rrset::{RecordType, Rrset},
    serial::Serial,
};

/// The serial in the first record of an SOA set; none when its data is too short to hold one.
pub fn serial_of(soa: &Rrset) -> Option<Serial> {
    Soa::serial_of(soa.rdata().next()?)
}

/// The set with `serial` in every record; sets of other types and records too short for one stay as they are.
pub fn with_serial(soa: &Rrset, serial: Serial) -> Rrset {
    if soa.rtype() != RecordType::SOA {
        return soa.clone();
    }
    let stamp = |data: &[u8]| Soa::with_serial(data, serial).unwrap_or_else(|| data.to_vec());
    Rrset::new(soa.rtype(), soa.ttl(), soa.rdata().map(stamp)).unwrap_or_else(|| soa.clone())
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
