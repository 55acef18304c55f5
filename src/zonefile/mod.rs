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

pub use check::{Finding, Report, Severity, Standard, check, check_names};
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

/// The zone cannot be told from its file: without its name, the file must name it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct NoApex {
    pub place: Place,
    pub problem: String,
}

/// Reads and judges a zone by what we serve: what could not be read are errors of the report, beside those of the records that
/// could. Data outside of the apex is left out with a warning, as BIND does.
///
/// # Errors
/// Without an `apex` the owner of the first SOA record is taken. It must be absolute, or stand behind a `$ORIGIN`.
pub fn load(
    text: &[u8],
    apex: Option<&Name>,
    source: &str,
    loader: &mut dyn Loader,
) -> Result<Loaded, NoApex> {
    load_by(Standard::Served, text, apex, source, loader)
}

/// As `load`, judged by `standard`.
pub fn load_by(
    standard: Standard,
    text: &[u8],
    apex: Option<&Name>,
    source: &str,
    loader: &mut dyn Loader,
) -> Result<Loaded, NoApex> {
    let origin = apex.cloned().unwrap_or_else(Name::root);
    let mut read = parse::read(text, &origin, apex.is_some(), source, loader);
    if let Some(place) = read.unnamed {
        let problem = "a name is relative, and neither a $ORIGIN nor anybody else has said to what";
        return Err(NoApex {
            place,
            problem: problem.into(),
        });
    }
    let apex = match apex {
        Some(apex) => apex.clone(),
        None => first_soa(&read.zone.records).cloned().unwrap_or(origin),
    };
    // Relative names in data were completed with the root, before it was known whose zone this is.
    if read.guessed {
        read = parse::read(text, &apex, true, source, loader);
    }
    let parse::Read {
        zone,
        faults,
        doubt,
        ..
    } = read;
    let mut report = Report::default();
    report.add_faults(&faults);
    report.add(check::check_doubting(
        standard,
        &apex,
        &zone.records,
        &zone.places,
        &doubt,
    ));
    report.add_warnings(&zone.warnings);
    let mut records = zone.records;
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
