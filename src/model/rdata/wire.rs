//! Walking record data in wire form by the table of fields.

use super::super::{
    name::{MAX_LABEL, MAX_NAME, NameError},
    rrset::RecordType,
};
use super::{
    MAX_RDATA, bitmap, location, prefixes, rules, svcb,
    table::{self, Field, Kind},
};

/// One field of well-formed data.
#[derive(Clone, Copy, Debug)]
pub(super) struct WireField<'a> {
    pub kind: Kind,
    /// Where it starts, in octets.
    pub at: usize,
    pub octets: &'a [u8],
}

/// The fields of `wire`, up to the first that is malformed; none for unknown types.
pub(super) fn fields_of(rtype: RecordType, wire: &[u8]) -> impl Iterator<Item = WireField<'_>> {
    let fields = table::fields(rtype).unwrap_or_default();
    let mut at = 0;
    fields.iter().map_while(move |(_, kind)| {
        let rest = wire.get(at..)?;
        let length = length_of(*kind, rest).ok()?;
        let field = WireField {
            kind: *kind,
            at,
            octets: rest.get(..length)?,
        };
        at += length;
        Some(field)
    })
}

/// Types that exist only in messages have no data that a zone could hold.
pub(super) fn refuse_meta(rtype: RecordType) -> Result<(), String> {
    match rtype.is_meta() {
        true => Err(format!(
            "{rtype} exists only in messages: expected a type that can be data of a zone"
        )),
        false => Ok(()),
    }
}

/// Whether `wire` is well-formed data of `rtype`; what is wrong otherwise.
pub(super) fn check(rtype: RecordType, wire: &[u8]) -> Result<(), String> {
    refuse_meta(rtype)?;
    if wire.len() > MAX_RDATA {
        return Err(format!(
            "{} octets: expected at most {MAX_RDATA}",
            wire.len()
        ));
    }
    let Some(fields) = table::fields(rtype) else {
        return Ok(());
    };
    let left = fields
        .iter()
        .try_fold(wire, |rest, field| check_field(field, rest))?;
    if !left.is_empty() {
        return Err(format!("{} octets too many at the end", left.len()));
    }
    rules::check(rtype, wire)
}

/// Checks one field at the front of `rest` and returns what follows it.
fn check_field<'a>((name, kind): &Field, rest: &'a [u8]) -> Result<&'a [u8], String> {
    let length = length_of(*kind, rest).map_err(|problem| format!("{name}: {problem}"))?;
    rest.get(length..)
        .ok_or_else(|| format!("{name}: the data ends inside it"))
}

/// Octets of a field at the front of `rest`, or what is wrong with it.
fn length_of(kind: Kind, rest: &[u8]) -> Result<usize, String> {
    let length = match kind {
        Kind::U8 | Kind::Algorithm => 1,
        Kind::U16 | Kind::Type | Kind::CertType => 2,
        Kind::U32 | Kind::Seconds | Kind::Time | Kind::Ipv4 => 4,
        Kind::Ipv6 => 16,
        Kind::Eui(octets) => octets,
        Kind::Name => name_length(rest)?,
        Kind::String | Kind::Salt => 1 + counted(rest)?.len(),
        Kind::Hash => 1 + not_empty(counted(rest)?)?,
        Kind::Tag => 1 + tag(counted(rest)?)?,
        Kind::Strings => strings(rest)?,
        Kind::Text { least } => at_least(least, rest)?,
        Kind::Base64 | Kind::Hex => not_empty(rest)?,
        Kind::Types => not_empty(rest).and_then(|_| bitmap::check(rest))?,
        Kind::MaybeTypes => bitmap::check(rest)?,
        Kind::Loc => location::check(rest)?,
        Kind::Prefixes => prefixes::check(rest)?,
        Kind::SvcParams => svcb::check(rest)?,
    };
    if length > rest.len() {
        return Err(format!(
            "expected {length} octets, but only {} are left",
            rest.len()
        ));
    }
    Ok(length)
}

/// Octets of the uncompressed name at the front. Does not make a `Name`: this runs for every name of every answer.
fn name_length(rest: &[u8]) -> Result<usize, String> {
    let mut at = 0;
    loop {
        let label = match rest.get(at) {
            Some(&length) if usize::from(length) <= MAX_LABEL => usize::from(length),
            Some(_) => return Err(NameError::BadLabelType.to_string()),
            None => return Err(NameError::Truncated.to_string()),
        };
        at += 1 + label;
        if at > MAX_NAME {
            return Err(NameError::NameTooLong.to_string());
        }
        if label == 0 {
            return Ok(at);
        }
    }
}

/// What the octet of length at the front counts.
pub(super) fn counted(rest: &[u8]) -> Result<&[u8], String> {
    let (&length, rest) = rest
        .split_first()
        .ok_or_else(|| "expected an octet of length, but nothing is left".to_owned())?;
    rest.get(..usize::from(length))
        .ok_or_else(|| format!("expected {length} octets, but only {} are left", rest.len()))
}

fn not_empty(octets: &[u8]) -> Result<usize, String> {
    at_least(1, octets)
}

fn at_least(least: usize, octets: &[u8]) -> Result<usize, String> {
    if octets.len() < least {
        return Err(format!("expected at least {least} octets"));
    }
    Ok(octets.len())
}

fn tag(octets: &[u8]) -> Result<usize, String> {
    if octets.is_empty() || !octets.iter().all(u8::is_ascii_alphanumeric) {
        return Err(format!("expected {}", Kind::Tag.expected()));
    }
    Ok(octets.len())
}

fn strings(octets: &[u8]) -> Result<usize, String> {
    not_empty(octets)?;
    let mut rest = octets;
    while !rest.is_empty() {
        let length = 1 + counted(rest)?.len();
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(octets.len())
}

/// Folds the case of the names in `wire`, which must be well-formed.
pub(super) fn fold_names(rtype: RecordType, wire: &mut [u8]) {
    let spans: Vec<(usize, usize)> = fields_of(rtype, wire)
        .filter(|field| field.kind == Kind::Name)
        .map(|field| (field.at, field.octets.len()))
        .collect();
    for (at, length) in spans {
        if let Some(name) = wire.get_mut(at..at + length) {
            // Length octets are at most 63, below the letters.
            name.make_ascii_lowercase();
        }
    }
}
