//! What must be true of a zone's records together: the rules for which BIND refuses to load a zone, and a few of its warnings.

use std::ops::Bound;

use super::{
    check::zones::{record_object, zone_object},
    limits,
    outcome::{Refusal, RefusalKind},
    records::ZoneRecords,
};
use crate::model::{
    name::{Name, NameKey},
    rrset::{RecordType, Rrset},
    zone::Node,
};

/// Holds the rules for every name.
pub fn whole(apex: &Name, records: &ZoneRecords) -> Result<(), Refusal> {
    self::apex(apex, records)?;
    // In canonical order everything below a name follows it directly.
    let mut dname: Option<&NameKey> = None;
    for (key, node) in records.nodes() {
        self::node(apex, key, node)?;
        match dname {
            Some(owner) if key.is_within(owner) => return Err(below_dname(apex, owner, key)),
            _ => dname = node.find(RecordType::DNAME).map(|_| key),
        }
    }
    size(apex, records)
}

/// Holds the rules for the names of `touched`, given that they held before for all others.
pub fn touched<'a>(
    apex: &Name,
    records: &ZoneRecords,
    touched: impl IntoIterator<Item = &'a NameKey>,
) -> Result<(), Refusal> {
    self::apex(apex, records)?;
    for key in touched {
        let Some(node) = records.nodes().get(key) else {
            continue;
        };
        self::node(apex, key, node)?;
        around_dname(apex, records, key, node)?;
    }
    size(apex, records)
}

fn apex(apex: &Name, records: &ZoneRecords) -> Result<(), Refusal> {
    for rtype in [RecordType::SOA, RecordType::NS] {
        if records.find(&NameKey::apex(), rtype).is_none() {
            return Err(Refusal::new(
                RefusalKind::Invalid,
                zone_object(apex),
                format!("it would have no {rtype} record at its apex"),
                format!("a zone needs one SOA record and at least one NS record at {apex}"),
            ));
        }
    }
    Ok(())
}

fn node(apex: &Name, key: &NameKey, node: &Node) -> Result<(), Refusal> {
    let owner = || key.to_name(apex).unwrap_or_else(|| apex.clone());
    if node.rrsets().len() > limits::TYPES_PER_NAME {
        return Err(Refusal::new(
            RefusalKind::LimitExceeded,
            format!("name {}", owner()),
            format!(
                "{} record types at one name; at most {} are allowed",
                node.rrsets().len(),
                limits::TYPES_PER_NAME
            ),
            "",
        ));
    }
    let has = |rtype| node.find(rtype).is_some();
    if has(RecordType::CNAME)
        && let Some(other) = node.rrsets().iter().find(|s| !stands_by_cname(s.rtype()))
    {
        return Err(Refusal::new(
            RefusalKind::Conflict,
            record_object(&owner(), RecordType::CNAME),
            format!(
                "the name also has {}; a CNAME stands alone (RFC 1034 section 3.6.2)",
                other.rtype()
            ),
            "delete the one or the other, in one batch if the name must never be empty",
        ));
    }
    if has(RecordType::DNAME) && has(RecordType::NS) && *key != NameKey::apex() {
        return Err(Refusal::new(
            RefusalKind::Conflict,
            record_object(&owner(), RecordType::DNAME),
            "the name is also delegated by NS records (RFC 6672 section 2.3)",
            "delete the one or the other",
        ));
    }
    Ok(())
}

/// Types that may stand beside a CNAME: itself and what DNSSEC puts there (RFC 4034 sections 3 and 4, RFC 2535 KEY).
fn stands_by_cname(rtype: RecordType) -> bool {
    const KEY: RecordType = RecordType(25);
    matches!(
        rtype,
        RecordType::CNAME | RecordType::RRSIG | RecordType::NSEC | KEY
    )
}

fn around_dname(
    apex: &Name,
    records: &ZoneRecords,
    key: &NameKey,
    node: &Node,
) -> Result<(), Refusal> {
    let above = std::iter::successors(key.parent(), NameKey::parent);
    for ancestor in above {
        if records.find(&ancestor, RecordType::DNAME).is_some() {
            return Err(below_dname(apex, &ancestor, key));
        }
    }
    if node.find(RecordType::DNAME).is_none() {
        return Ok(());
    }
    let after = (Bound::Excluded(key.clone()), Bound::Unbounded);
    match records.nodes().range(after).next() {
        Some((next, _)) if next.is_within(key) => Err(below_dname(apex, key, next)),
        _ => Ok(()),
    }
}

fn below_dname(apex: &Name, owner: &NameKey, below: &NameKey) -> Refusal {
    let name = |key: &NameKey| key.to_name(apex).unwrap_or_else(|| apex.clone());
    Refusal::new(
        RefusalKind::Conflict,
        record_object(&name(owner), RecordType::DNAME),
        format!(
            "there are records at {}; below a DNAME there can be none (RFC 6672 section 2.4)",
            name(below)
        ),
        "delete the one or the other",
    )
}

fn size(apex: &Name, records: &ZoneRecords) -> Result<(), Refusal> {
    for (what, count, limit) in [
        ("records", records.record_count(), limits::RECORDS_PER_ZONE),
        (
            "octets of data",
            records.data_bytes(),
            limits::DATA_PER_ZONE,
        ),
    ] {
        if count > limit {
            return Err(Refusal::new(
                RefusalKind::LimitExceeded,
                zone_object(apex),
                format!("it would have {count} {what}; at most {limit} are allowed"),
                "",
            ));
        }
    }
    Ok(())
}

/// A sound zone of `sets`, each given once; or the first rule they break.
pub fn gather(apex: &Name, sets: &[(Name, Rrset)]) -> Result<ZoneRecords, Refusal> {
    let mut keyed = Vec::with_capacity(sets.len());
    for (name, set) in sets {
        let key = NameKey::of(name, apex).ok_or_else(|| outside(apex, name))?;
        keyed.push((key, set));
    }
    keyed.sort_by(|(a, x), (b, y)| (a, x.rtype()).cmp(&(b, y.rtype())));
    let mut records = ZoneRecords::default();
    for group in keyed.chunk_by(|(a, _), (b, _)| a == b) {
        if let Some([(_, twice), _]) = group.windows(2).find_map(|pair| {
            <&[_; 2]>::try_from(pair)
                .ok()
                .filter(|[a, b]| a.1.rtype() == b.1.rtype())
        }) {
            let owner = group.first().and_then(|(key, _)| key.to_name(apex));
            return Err(Refusal::new(
                RefusalKind::Invalid,
                record_object(&owner.unwrap_or_else(|| apex.clone()), twice.rtype()),
                "the set is given twice",
                "give all records of one name and type in one set",
            ));
        }
        let node = Node::new(group.iter().map(|(_, set)| (*set).clone()));
        if let (Some((key, _)), Some(node)) = (group.first(), node) {
            // Groups have distinct keys, so the name cannot be there already.
            let _new = records.insert_node(key.clone(), node);
        }
    }
    Ok(records)
}

/// The refusal of a name that is not of the zone.
pub fn outside(apex: &Name, name: &Name) -> Refusal {
    Refusal::new(
        RefusalKind::Invalid,
        format!("name {name}"),
        format!("it does not lie in zone {apex}"),
        format!("names of this zone end in {apex}"),
    )
}
