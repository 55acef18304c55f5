//! Form of zones, names and record sets.

use super::{invalid, too_many};
use crate::{
    model::{
        name::Name,
        rdata,
        rrset::{MAX_TTL, RecordType, Rrset},
    },
    state::{limits, outcome::Refusal},
};

/// The zone as the operator knows it.
pub fn zone_object(zone: &Name) -> String {
    format!("zone {zone}")
}

/// The record set as the operator knows it.
pub fn record_object(name: &Name, rtype: RecordType) -> String {
    format!("record {name} {rtype}")
}

/// The whole contents of a zone, set by set. What must be true of them together is decided at apply.
pub fn contents(zone: &Name, records: &[(Name, Rrset)]) -> Result<(), Refusal> {
    let mut count = 0u64;
    for (name, set) in records {
        rrset(zone, name, set)?;
        count += set.len() as u64;
    }
    if count > limits::RECORDS_PER_ZONE {
        return Err(too_many(
            zone_object(zone),
            format!(
                "it has {count} records; at most {} are allowed",
                limits::RECORDS_PER_ZONE
            ),
        ));
    }
    Ok(())
}

/// One set and its owner.
pub fn rrset(zone: &Name, name: &Name, set: &Rrset) -> Result<(), Refusal> {
    owner(zone, name)?;
    data_type(name, set.rtype())?;
    let object = || record_object(name, set.rtype());
    if set.ttl() > MAX_TTL {
        return Err(invalid(
            object(),
            format!("the TTL {} is above {MAX_TTL} seconds", set.ttl()),
            "use a TTL from 0 to 2147483647 seconds",
        ));
    }
    place(zone, name, set.rtype())?;
    set_size(name, set)?;
    singleton(name, set)?;
    set.rdata().try_for_each(|wire| {
        data(set.rtype(), wire).map_err(|problem| invalid(object(), problem, ""))
    })
}

/// That `name` lies in `zone`.
pub fn owner(zone: &Name, name: &Name) -> Result<(), Refusal> {
    if name.is_within(zone) {
        return Ok(());
    }
    Err(invalid(
        format!("name {name}"),
        format!("it does not lie in zone {zone}"),
        format!("names of this zone end in {zone}"),
    ))
}

/// That records of this type can be data of a zone.
pub fn data_type(name: &Name, rtype: RecordType) -> Result<(), Refusal> {
    if rtype.is_meta() {
        return Err(invalid(
            record_object(name, rtype),
            "this type exists only in questions and messages",
            "",
        ));
    }
    Ok(())
}

/// That the set may stand where it does: an SOA at the apex and nowhere else, a DS anywhere but there.
fn place(zone: &Name, name: &Name, rtype: RecordType) -> Result<(), Refusal> {
    match rtype {
        RecordType::SOA if name != zone => Err(invalid(
            record_object(name, rtype),
            format!("an SOA stands only at the apex, {zone}"),
            "create a zone of that name instead",
        )),
        RecordType::DS if name == zone => Err(invalid(
            record_object(name, rtype),
            "a DS stands at a delegation, not at the apex of the zone itself (RFC 4035 section 2.4)",
            "add it to the parent zone",
        )),
        _ => Ok(()),
    }
}

/// That an answer with the whole set fits a message.
pub fn set_size(name: &Name, set: &Rrset) -> Result<(), Refusal> {
    let wire = set.packed_len() + set.len() * (limits::RECORD_OVERHEAD - 2);
    if wire <= limits::RRSET_WIRE_OCTETS {
        return Ok(());
    }
    Err(too_many(
        record_object(name, set.rtype()),
        format!(
            "its {} records take {wire} octets of a message; at most {} are allowed",
            set.len(),
            limits::RRSET_WIRE_OCTETS
        ),
    ))
}

/// That types of which a name has only one record have one.
pub fn singleton(name: &Name, set: &Rrset) -> Result<(), Refusal> {
    let single = matches!(
        set.rtype(),
        RecordType::SOA | RecordType::CNAME | RecordType::DNAME
    );
    if !single || set.len() == 1 {
        return Ok(());
    }
    Err(invalid(
        record_object(name, set.rtype()),
        format!("{} records where a name can have only one", set.len()),
        "use `record set` to put another in its place",
    ))
}

/// That a name may be emptied.
pub fn deletable_name(zone: &Name, name: &Name) -> Result<(), Refusal> {
    owner(zone, name)?;
    if name == zone {
        return Err(invalid(
            format!("name {name}"),
            "the apex of a zone cannot be emptied: it holds the SOA and NS sets",
            format!("delete single sets, or the zone with `zone delete {zone}`"),
        ));
    }
    Ok(())
}

/// That the data is a record of its type, and in canonical form: equal octets must mean equal records.
fn data(rtype: RecordType, wire: &[u8]) -> Result<(), String> {
    rdata::check(rtype, wire).map_err(|e| e.problem)?;
    let upper = |name: rdata::EmbeddedName<'_>| name.wire.iter().any(u8::is_ascii_uppercase);
    match rdata::names(rtype, wire).any(upper) {
        true => Err("a name in its data is not in lower case".into()),
        false => Ok(()),
    }
}
