//! Writing master files: one canonical, readable text for a zone, which `parse` reads back to the same zone.

use std::{collections::BTreeMap, fmt::Write};

use crate::model::{
    name::{Name, NameKey},
    rdata::{self, Soa},
    rrset::{RecordType, Rrset},
    zone::Zone,
};

/// Widest column of owners; longer ones push the rest of their line to the right.
const MAX_OWNER_WIDTH: usize = 32;

/// A zone as a master file; see `write`.
pub fn write_zone(zone: &Zone) -> String {
    write(&zone.apex, zone.rrsets())
}

/// The records of a zone as a master file: the SOA first, then the other sets of the apex, then names in canonical order
/// (RFC 4034 section 6.1). Owners are relative to `apex`, names in data absolute. The commonest TTL becomes the `$TTL`,
/// and records that have it show none.
pub fn write<'r>(apex: &Name, records: impl IntoIterator<Item = (Name, &'r Rrset)>) -> String {
    let mut sets: Vec<(Name, &Rrset)> = records.into_iter().collect();
    sets.sort_by_cached_key(|(owner, set)| {
        let key = NameKey::of(owner, apex);
        (key.is_none(), key, rank(set.rtype()))
    });
    let owners: Vec<String> = sets.iter().map(|(o, _)| relative(o, apex)).collect();
    let layout = Layout {
        owner_width: owners
            .iter()
            .map(String::len)
            .max()
            .unwrap_or(0)
            .min(MAX_OWNER_WIDTH),
        ttl: commonest_ttl(sets.iter().map(|(_, set)| *set)),
    };
    let mut out = format!("$ORIGIN {apex}\n");
    if let Some(ttl) = layout.ttl {
        out.push_str(&format!("$TTL {ttl}\n"));
    }
    for ((_, set), owner) in sets.iter().zip(owners) {
        layout.write_set(&owner, set, &mut out);
    }
    out
}

/// The order of sets at one name: the two that every zone starts with, then by number.
fn rank(rtype: RecordType) -> (u8, RecordType) {
    match rtype {
        RecordType::SOA => (0, rtype),
        RecordType::NS => (1, rtype),
        _ => (2, rtype),
    }
}

/// `owner` as it stands behind `$ORIGIN apex`; absolute when it lies outside.
fn relative(owner: &Name, apex: &Name) -> String {
    if owner == apex {
        return "@".to_owned();
    }
    let labels = owner.label_count().saturating_sub(apex.label_count());
    let below = owner
        .is_within(apex)
        .then(|| Name::from_labels(owner.labels().take(labels)));
    let Some(Ok(below)) = below else {
        return owner.to_string();
    };
    let mut text = below.to_string();
    // The final dot, which would make it absolute.
    text.pop();
    text
}

/// The TTL that most sets have, of several the lowest.
fn commonest_ttl<'r>(sets: impl Iterator<Item = &'r Rrset>) -> Option<u32> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for set in sets {
        *counts.entry(set.ttl()).or_default() += 1;
    }
    let commonest = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    commonest.map(|(ttl, _)| ttl)
}

struct Layout {
    owner_width: usize,
    /// What `$TTL` says.
    ttl: Option<u32>,
}

impl Layout {
    fn write_set(&self, owner: &str, set: &Rrset, out: &mut String) {
        let ttl = match Some(set.ttl()) == self.ttl {
            true => String::new(),
            false => set.ttl().to_string(),
        };
        let width = self.owner_width;
        for data in set.rdata() {
            let start = out.len();
            // Writing to a string cannot fail.
            let _ = write!(out, "{owner:<width$} {ttl:>7} IN {:<10} ", set.rtype());
            let column = out.len() - start;
            match Soa::from_wire(data)
                .ok()
                .filter(|_| set.rtype() == RecordType::SOA)
            {
                Some(soa) => write_soa(&soa, column, out),
                None => drop(rdata::format(set.rtype(), data, out)),
            }
            // Data may be empty; blanks inside of it are never last.
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
    }
}

/// The numbers of an SOA record below one another, each with its meaning.
fn write_soa(soa: &Soa, column: usize, out: &mut String) {
    let _ = writeln!(out, "{} {} (", soa.mname, soa.rname);
    for (number, meaning) in [
        (soa.serial.0, "serial"),
        (soa.refresh, "refresh"),
        (soa.retry, "retry"),
        (soa.expire, "expire"),
        (soa.minimum, "minimum"),
    ] {
        let _ = writeln!(out, "{:column$}{number:<10} ; {meaning}", "");
    }
    let _ = write!(out, "{:column$})", "");
}
