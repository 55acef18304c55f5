//! Record data: the wire form of each type, checked, and its presentation form, read and written.
//!
//! Data is kept in *canonical* wire form: names uncompressed and in lower case, so that equal octets mean equal records.
//! Types we know nothing of are opaque octets (RFC 3597). `table` says what each type is made of; everything else walks it.

mod bitmap;
mod location;
mod prefixes;
mod rules;
mod soa;
mod svcb;
mod table;
mod text;
mod timestamp;
pub mod token;
mod wire;
mod write;

use std::fmt;

use super::{name::Name, rrset::RecordType};
pub use soa::Soa;
pub(crate) use text::{seconds, shown, text_number as number_of, unescaped};
use token::Token;

/// Most octets one record's data can have (RFC 1035 section 3.2.1: RDLENGTH is 16 bits).
pub const MAX_RDATA: usize = 65_535;

/// Why text or octets are no data of a type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rtype} data: {problem}")]
pub struct RdataError {
    pub rtype: RecordType,
    /// What was wrong and what was expected.
    pub problem: String,
    /// The word of the text it is about, counted from 0; none when it is about the whole or when there was no text.
    pub word: Option<usize>,
}

/// Reads one record's data in presentation form, such as `10 mail.example.`, into canonical wire form. Names without a
/// final dot are completed with `origin`. `\# length hex` is taken for every type (RFC 3597 section 5).
pub fn parse(rtype: RecordType, text: &str, origin: &Name) -> Result<Vec<u8>, RdataError> {
    let words = token::words(text.as_bytes()).map_err(|e| RdataError {
        rtype,
        problem: e.to_string(),
        word: None,
    })?;
    let mut wire = Vec::new();
    parse_words(rtype, &words, origin, &mut wire)?;
    Ok(wire)
}

/// As `parse`, of a text already split into words; the data is appended to `out`, which an error leaves as it was.
pub fn parse_words(
    rtype: RecordType,
    words: &[Token<'_>],
    origin: &Name,
    out: &mut Vec<u8>,
) -> Result<(), RdataError> {
    let start = out.len();
    text::read(rtype, words, origin, out).inspect_err(|_| out.truncate(start))
}

/// Whether `wire` is well-formed uncompressed data of `rtype`. Any octets are data of an unknown type; meta-types have none.
pub fn check(rtype: RecordType, wire: &[u8]) -> Result<(), RdataError> {
    wire::check(rtype, wire).map_err(|problem| RdataError {
        rtype,
        problem,
        word: None,
    })
}

/// Checks `wire` and folds the case of the names in it (RFC 4034 section 6.2; here in every known type).
pub fn canonical(rtype: RecordType, wire: &[u8]) -> Result<Vec<u8>, RdataError> {
    check(rtype, wire)?;
    let mut folded = wire.to_vec();
    wire::fold_names(rtype, &mut folded);
    Ok(folded)
}

/// Writes data in presentation form, names with their final dot. Data that is not well-formed, and that of unknown types,
/// is written as `\# length hex`; what was written parses back to the same octets.
pub fn format(rtype: RecordType, wire: &[u8], out: &mut impl fmt::Write) -> fmt::Result {
    write::write(rtype, wire, out)
}

/// `format` into a new string.
pub fn to_text(rtype: RecordType, wire: &[u8]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = format(rtype, wire, &mut text);
    text
}

/// A domain name inside record data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddedName<'a> {
    /// Where it starts in the data, in octets.
    pub at: usize,
    /// The name, uncompressed, root label included.
    pub wire: &'a [u8],
    /// Whether it may be compressed when the data is put into a message (RFC 3597 section 4).
    pub compressible: bool,
}

/// The domain names inside well-formed data, in order; nothing after the first malformed octet. Does not allocate.
pub fn names(rtype: RecordType, wire: &[u8]) -> impl Iterator<Item = EmbeddedName<'_>> {
    let compressible = table::may_compress(rtype);
    wire::fields_of(rtype, wire)
        .filter(|field| field.kind == table::Kind::Name)
        .map(move |field| EmbeddedName {
            at: field.at,
            wire: field.octets,
            compressible,
        })
}

/// The name that servers add addresses or further records for (RFC 1035 section 3.3, RFC 2782, RFC 9460 section 4.1):
/// the target of NS, MX, SRV, KX, AFSDB, SVCB and HTTPS.
pub fn additional_name(rtype: RecordType, wire: &[u8]) -> Option<Name> {
    let wanted = matches!(
        rtype,
        RecordType::NS
            | RecordType::MX
            | RecordType::SRV
            | RecordType::KX
            | RecordType::AFSDB
            | RecordType::SVCB
            | RecordType::HTTPS
    );
    let name = names(rtype, wire).next().filter(|_| wanted)?;
    Name::from_wire(name.wire).ok()
}

#[cfg(test)]
pub(crate) mod tests;
