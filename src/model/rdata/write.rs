//! Writing record data in presentation form by the table of fields.

use std::{
    fmt::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
};

use data_encoding::{BASE32HEX_NOPAD, BASE64, HEXUPPER};

use super::super::{name::Name, rrset::RecordType};
use super::{
    bitmap, location, prefixes, svcb,
    table::{self, Kind},
    timestamp, wire,
};

pub(super) fn write(rtype: RecordType, wire: &[u8], out: &mut impl Write) -> fmt::Result {
    if table::fields(rtype).is_none() || wire::check(rtype, wire).is_err() {
        return write_generic(wire, out);
    }
    let mut first = true;
    for field in wire::fields_of(rtype, wire) {
        // Some fields may be empty; they leave no blank behind.
        let empty = field.octets.is_empty() && !matches!(field.kind, Kind::Text { .. });
        if !first && !empty {
            out.write_char(' ')?;
        }
        first = false;
        write_field(field.kind, field.octets, out)?;
    }
    Ok(())
}

/// The form for data of any type (RFC 3597 section 5).
fn write_generic(wire: &[u8], out: &mut impl Write) -> fmt::Result {
    write!(out, r"\# {}", wire.len())?;
    if !wire.is_empty() {
        write!(out, " {}", HEXUPPER.encode(wire))?;
    }
    Ok(())
}

fn write_field(kind: Kind, octets: &[u8], out: &mut impl Write) -> fmt::Result {
    match kind {
        Kind::Name => write_name(octets, out),
        Kind::U8 | Kind::U16 | Kind::U32 | Kind::Seconds | Kind::Algorithm | Kind::CertType => {
            write!(out, "{}", big_endian(octets))
        }
        Kind::Type => write!(out, "{}", RecordType(big_endian(octets) as u16)),
        Kind::Time => timestamp::write(big_endian(octets), out),
        Kind::Ipv4 => write!(out, "{}", Ipv4Addr::from_bits(big_endian(octets))),
        Kind::Ipv6 => <[u8; 16]>::try_from(octets)
            .map_or(Err(fmt::Error), |o| write!(out, "{}", Ipv6Addr::from(o))),
        Kind::String => write_quoted(tail(octets), out),
        Kind::Strings => write_strings(octets, out),
        Kind::Text { .. } => write_quoted(octets, out),
        Kind::Tag => tail(octets)
            .iter()
            .try_for_each(|o| out.write_char(char::from(*o))),
        Kind::Base64 => out.write_str(&BASE64.encode(octets)),
        Kind::Hex => out.write_str(&HEXUPPER.encode(octets)),
        Kind::Salt if octets.len() <= 1 => out.write_char('-'),
        Kind::Salt => out.write_str(&HEXUPPER.encode(tail(octets))),
        Kind::Hash => out.write_str(&BASE32HEX_NOPAD.encode(tail(octets))),
        Kind::Types | Kind::MaybeTypes => separated(bitmap::types(octets), out),
        Kind::Eui(_) => write_eui(octets, out),
        Kind::Loc => location::write(octets, out),
        Kind::Prefixes => prefixes::write(octets, out),
        Kind::SvcParams => svcb::write(octets, out),
    }
}

/// What follows the octet of length.
fn tail(octets: &[u8]) -> &[u8] {
    octets.get(1..).unwrap_or_default()
}

/// The number in up to four octets.
pub(super) fn big_endian(octets: &[u8]) -> u32 {
    octets.iter().fold(0, |n, octet| n << 8 | u32::from(*octet))
}

fn write_name(octets: &[u8], out: &mut impl Write) -> fmt::Result {
    let name = Name::from_wire(octets).map_err(|_| fmt::Error)?;
    write!(out, "{name}")
}

fn write_strings(octets: &[u8], out: &mut impl Write) -> fmt::Result {
    let mut rest = octets;
    while let Ok(string) = wire::counted(rest) {
        if rest.len() < octets.len() {
            out.write_char(' ')?;
        }
        write_quoted(string, out)?;
        rest = rest.get(1 + string.len()..).unwrap_or_default();
    }
    Ok(())
}

/// A string in quotation marks.
pub(super) fn write_quoted(octets: &[u8], out: &mut impl Write) -> fmt::Result {
    out.write_char('"')?;
    write_escaped(octets, out)?;
    out.write_char('"')
}

fn write_escaped(octets: &[u8], out: &mut impl Write) -> fmt::Result {
    for &octet in octets {
        match octet {
            b'"' | b'\\' => {
                out.write_char('\\')?;
                out.write_char(char::from(octet))?;
            }
            b' '..=b'~' => out.write_char(char::from(octet))?,
            _ => write!(out, "\\{octet:03}")?,
        }
    }
    Ok(())
}

fn write_eui(octets: &[u8], out: &mut impl Write) -> fmt::Result {
    for (at, octet) in octets.iter().enumerate() {
        let dash = if at == 0 { "" } else { "-" };
        write!(out, "{dash}{octet:02x}")?;
    }
    Ok(())
}

/// Items with one blank between them.
pub(super) fn separated<I: fmt::Display>(
    items: impl Iterator<Item = I>,
    out: &mut impl Write,
) -> fmt::Result {
    for (at, item) in items.enumerate() {
        let blank = if at == 0 { "" } else { " " };
        write!(out, "{blank}{item}")?;
    }
    Ok(())
}
