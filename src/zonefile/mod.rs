//! Master files (RFC 1035 section 5, RFC 2308 section 4): text to record sets and back, and what is wrong with a zone.
//!
//! `parse` reads text, `write` writes it tidily, `check` judges a zone as `named-checkzone` does, and `load` does what an
//! import needs: reading, leaving out what lies outside of the zone, and judging the rest. Nothing here touches disk except
//! `include::SameDirectory`, through which a caller may allow `$INCLUDE`.

mod check;
mod fault;
mod generate;
pub mod include;
mod parse;
mod write;

pub use check::{Finding, Report, Severity, check};
pub use fault::{Fault, Faults, Place};
pub use include::Loader;
pub use parse::{ParsedZone, parse};
pub use write::{write, write_zone};

use crate::model::{
    name::Name,
    rrset::{RecordType, Rrset},
};

/// A zone read from a master file: what lies within its apex, and what is to be said about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub apex: Name,
    pub records: Vec<(Name, Rrset)>,
    /// With an error in it, the zone must not be served.
    pub report: Report,
}

/// Reads and judges a zone. Without an `apex`, the owner of the first SOA record is taken, and relative names are
/// completed with the root. Data outside of the apex is left out with a warning, as BIND does.
pub fn load(
    text: &[u8],
    apex: Option<&Name>,
    source: &str,
    loader: &mut dyn Loader,
) -> Result<Loaded, Faults> {
    let origin = apex.cloned().unwrap_or_else(Name::root);
    let parsed = parse(text, &origin, source, loader)?;
    let apex = match apex {
        Some(apex) => apex.clone(),
        None => first_soa(&parsed.records).cloned().unwrap_or(origin),
    };
    let mut report = check(&apex, &parsed.records, &parsed.places);
    report.add_warnings(&parsed.warnings);
    let mut records = parsed.records;
    records.retain(|(owner, _)| owner.is_within(&apex));
    Ok(Loaded {
        apex,
        records,
        report,
    })
}

fn first_soa(records: &[(Name, Rrset)]) -> Option<&Name> {
    let soa = records
        .iter()
        .find(|(_, set)| set.rtype() == RecordType::SOA);
    soa.map(|(owner, _)| owner)
}

#[cfg(test)]
mod tests;
