//! Address prefix lists (RFC 3123): items of a family, a prefix length, a negation and an address without its final zeros.

use std::{
    fmt::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    table::Kind,
    text::{Fault, mismatch, text_number},
    token::Token,
    write::separated,
};

/// Address families with a text form, and octets of an address.
const IPV4: (u16, usize) = (1, 4);
const IPV6: (u16, usize) = (2, 16);
const NEGATED: u8 = 0x80;

struct Prefix<'a> {
    family: u16,
    length: u8,
    negated: bool,
    /// The address without its final zero octets.
    address: &'a [u8],
}

pub(super) fn check(octets: &[u8]) -> Result<usize, String> {
    let mut rest = octets;
    while !rest.is_empty() {
        let (prefix, tail) =
            take(rest).ok_or_else(|| "the data ends inside a prefix".to_owned())?;
        let size = address_size(prefix.family).ok_or_else(|| {
            format!(
                "address family {}: expected 1 (IPv4) or 2 (IPv6)",
                prefix.family
            )
        })?;
        if prefix.address.len() > size || usize::from(prefix.length) > size * 8 {
            return Err(format!("expected a prefix of at most {} bits", size * 8));
        }
        if prefix.address.last() == Some(&0) {
            return Err("expected an address without zero octets at its end".to_owned());
        }
        rest = tail;
    }
    Ok(octets.len())
}

fn take(octets: &[u8]) -> Option<(Prefix<'_>, &[u8])> {
    let ([high, low, length, size], rest) = octets.split_first_chunk::<4>()?;
    let (address, rest) = rest.split_at_checked(usize::from(size & !NEGATED))?;
    let prefix = Prefix {
        family: u16::from_be_bytes([*high, *low]),
        length: *length,
        negated: size & NEGATED != 0,
        address,
    };
    Some((prefix, rest))
}

fn address_size(family: u16) -> Option<usize> {
    [IPV4, IPV6]
        .iter()
        .find(|(known, _)| *known == family)
        .map(|(_, size)| *size)
}

pub(super) fn read(words: &[Token<'_>], out: &mut Vec<u8>) -> Result<(), Fault> {
    for (at, word) in words.iter().enumerate() {
        let text = std::str::from_utf8(word.text).ok().filter(|_| !word.quoted);
        text.and_then(|text| read_prefix(text, out))
            .ok_or_else(|| mismatch(at, "prefix", Kind::Prefixes.expected(), word))?;
    }
    Ok(())
}

/// Reads `[!]family:address/length`.
fn read_prefix(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let (negated, text) = match text.strip_prefix('!') {
        Some(rest) => (NEGATED, rest),
        None => (0, text),
    };
    let (family, text) = text.split_once(':')?;
    let (address, length) = text.rsplit_once('/')?;
    let family: u16 = text_number(family)?;
    let address: Vec<u8> = match address.parse::<IpAddr>().ok()? {
        IpAddr::V4(v4) if family == IPV4.0 => v4.octets().to_vec(),
        IpAddr::V6(v6) if family == IPV6.0 => v6.octets().to_vec(),
        _ => return None,
    };
    let length = text_number::<u8>(length).filter(|l| usize::from(*l) <= address.len() * 8)?;
    let significant = address.iter().rposition(|o| *o != 0).map_or(0, |at| at + 1);
    out.extend_from_slice(&family.to_be_bytes());
    out.extend_from_slice(&[length, negated | significant as u8]);
    out.extend_from_slice(address.get(..significant)?);
    Some(())
}

/// Writes well-formed data.
pub(super) fn write(octets: &[u8], out: &mut impl Write) -> fmt::Result {
    let mut rest = octets;
    let prefixes = std::iter::from_fn(|| {
        let (prefix, tail) = take(rest)?;
        rest = tail;
        Some(prefix)
    });
    separated(prefixes, out)
}

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut octets = [0u8; 16];
        let known = octets.get_mut(..self.address.len()).ok_or(fmt::Error)?;
        known.copy_from_slice(self.address);
        let [a, b, c, d, ..] = octets;
        let address = match (self.family, self.address.len()) {
            (1, 0..=4) => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            (2, _) => IpAddr::V6(Ipv6Addr::from(octets)),
            _ => return Err(fmt::Error),
        };
        let not = if self.negated { "!" } else { "" };
        write!(f, "{not}{}:{address}/{}", self.family, self.length)
    }
}
