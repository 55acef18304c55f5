//! Names and record sets.

use bytes::Bytes;

use super::{WireError, narrowed, parsed, required, v1};
use crate::model::{
    name::Name,
    rrset::{MAX_TTL, RecordType, Rrset},
};

impl From<&Rrset> for v1::Rrset {
    fn from(set: &Rrset) -> Self {
        Self {
            r#type: set.rtype().0.into(),
            ttl: set.ttl(),
            rdata: set.rdata().map(Bytes::copy_from_slice).collect(),
        }
    }
}

impl TryFrom<v1::Rrset> for Rrset {
    type Error = WireError;

    fn try_from(message: v1::Rrset) -> Result<Self, WireError> {
        let v1::Rrset { r#type, ttl, rdata } = message;
        if ttl > MAX_TTL {
            return Err(WireError::new(
                "rrset.ttl",
                format!("{ttl} is above {MAX_TTL} (RFC 2181 section 8)"),
            ));
        }
        Rrset::new(record_type(r#type)?, ttl, rdata).ok_or_else(|| {
            WireError::new(
                "rrset.rdata",
                "holds no record, or one beyond 65,535 octets",
            )
        })
    }
}

/// Reads a record type.
pub fn record_type(number: u32) -> Result<RecordType, WireError> {
    Ok(RecordType(narrowed("type", number)?))
}

/// Writes a set with its owner.
pub fn owned_rrset(name: &Name, set: &Rrset) -> v1::OwnedRrset {
    v1::OwnedRrset {
        name: name.to_string(),
        rrset: Some(set.into()),
    }
}

/// Reads a set with its owner.
pub fn owned_rrset_from(message: v1::OwnedRrset) -> Result<(Name, Rrset), WireError> {
    let v1::OwnedRrset { name, rrset } = message;
    let rrset = required("rrset", rrset)?.try_into()?;
    Ok((parsed("name", &name)?, rrset))
}
