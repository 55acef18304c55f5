//! Service parameters of SVCB and HTTPS records (RFC 9460 section 2, 7 and appendix A; RFC 9461; RFC 9540).

use std::{
    fmt::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
};

use data_encoding::BASE64;

use super::{
    text::{Fault, mismatch, shown, text_number, unescape},
    token::Token,
    write::{big_endian, write_quoted},
};

const MANDATORY: u16 = 0;
const ALPN: u16 = 1;
const NO_DEFAULT_ALPN: u16 = 2;
const PORT: u16 = 3;
const IPV4HINT: u16 = 4;
const ECH: u16 = 5;
const IPV6HINT: u16 = 6;
const DOHPATH: u16 = 7;
const OHTTP: u16 = 8;
/// Reserved as the invalid key (RFC 9460 section 14.3.2).
const INVALID: u16 = 65_535;

/// IANA "Service Parameter Keys (SvcParamKeys)".
const KEYS: &[(&str, u16)] = &[
    ("mandatory", MANDATORY),
    ("alpn", ALPN),
    ("no-default-alpn", NO_DEFAULT_ALPN),
    ("port", PORT),
    ("ipv4hint", IPV4HINT),
    ("ech", ECH),
    ("ipv6hint", IPV6HINT),
    ("dohpath", DOHPATH),
    ("ohttp", OHTTP),
];

#[derive(Clone, Copy)]
struct Param<'a> {
    key: u16,
    value: &'a [u8],
}

/// The parameters in wire form, up to the first that is cut short.
struct Params<'a>(&'a [u8]);

impl<'a> Iterator for Params<'a> {
    type Item = Param<'a>;

    fn next(&mut self) -> Option<Param<'a>> {
        let ([k1, k2, l1, l2], rest) = self.0.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([*l1, *l2])))?;
        self.0 = rest;
        Some(Param {
            key: u16::from_be_bytes([*k1, *k2]),
            value,
        })
    }
}

/// Whether `octets` are parameters, each well-formed, keys ascending.
pub(super) fn check(octets: &[u8]) -> Result<usize, String> {
    let mut params = Params(octets);
    let mut previous = None;
    for Param { key, value } in &mut params {
        if previous.is_some_and(|p| key <= p) {
            return Err(format!(
                "{}: expected each key once, in ascending order",
                key_name(key)
            ));
        }
        previous = Some(key);
        check_value(key, value)
            .map_err(|expected| format!("{}: expected {expected}", key_name(key)))?;
    }
    if params.0.is_empty() {
        Ok(octets.len())
    } else {
        Err("the data ends inside a parameter".to_owned())
    }
}

/// What a value should have been, when it is not.
fn check_value(key: u16, value: &[u8]) -> Result<(), &'static str> {
    let whole = |size: usize| !value.is_empty() && value.len().is_multiple_of(size);
    let (good, expected) = match key {
        MANDATORY => (
            whole(2) && is_ascending(value),
            "one or more keys, each once and in ascending order",
        ),
        ALPN => (
            !value.is_empty() && alpn_ids(value).is_some(),
            "one or more protocol ids of 1 to 255 octets",
        ),
        NO_DEFAULT_ALPN | OHTTP => (value.is_empty(), "no value"),
        PORT => (value.len() == 2, "a port from 0 to 65535"),
        IPV4HINT => (whole(4), "one or more IPv4 addresses"),
        ECH => (!value.is_empty(), "base64"),
        IPV6HINT => (whole(16), "one or more IPv6 addresses"),
        DOHPATH => (
            !value.is_empty() && std::str::from_utf8(value).is_ok(),
            "a URI template",
        ),
        INVALID => (false, "another key: this one is reserved"),
        _ => (true, ""),
    };
    if good { Ok(()) } else { Err(expected) }
}

fn is_ascending(keys: &[u8]) -> bool {
    let keys: Vec<u32> = keys.chunks(2).map(big_endian).collect();
    keys.windows(2).all(|pair| pair[0] < pair[1])
}

fn alpn_ids(value: &[u8]) -> Option<Vec<&[u8]>> {
    let mut ids = Vec::new();
    let mut rest = value;
    while let Some((&length, tail)) = rest.split_first() {
        let (id, tail) = tail.split_at_checked(usize::from(length))?;
        if id.is_empty() {
            return None;
        }
        ids.push(id);
        rest = tail;
    }
    Some(ids)
}

/// The rules between parameters: what is mandatory is present and not `mandatory` itself (RFC 9460 section 8), and
/// `no-default-alpn` comes with `alpn` (section 7.1.1).
pub(super) fn check_together(octets: &[u8]) -> Result<(), String> {
    let present = |key: u16| Params(octets).any(|p| p.key == key);
    let mandatory = Params(octets).find(|p| p.key == MANDATORY);
    for key in mandatory.map_or(&[][..], |p| p.value).chunks(2) {
        let key = big_endian(key) as u16;
        if key == MANDATORY || !present(key) {
            return Err(format!(
                "mandatory: expected only keys that are present, and not `mandatory` itself, found `{}`",
                key_name(key)
            ));
        }
    }
    if present(NO_DEFAULT_ALPN) && !present(ALPN) {
        return Err("no-default-alpn: expected alpn beside it".to_owned());
    }
    Ok(())
}

pub(super) fn read(words: &[Token<'_>], out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut params: Vec<(u16, Vec<u8>)> = Vec::new();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let quoted = quoted_value(word, words.get(at + 1));
        let (key, value) = read_param(at, word, quoted)?;
        if params.iter().any(|(known, _)| *known == key) {
            return Err(Fault::at(
                at,
                format!("parameters: `{}` is given twice", key_name(key)),
            ));
        }
        params.push((key, value));
        at += 1 + usize::from(quoted.is_some());
    }
    params.sort_unstable();
    for (key, value) in params {
        let length = u16::try_from(value.len()).map_err(|_| Fault {
            problem: format!("{}: expected at most 65535 octets", key_name(key)),
            word: None,
        })?;
        out.extend_from_slice(&key.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&value);
    }
    Ok(())
}

/// The word after `key=` that is its value: quoted, with no blank between.
fn quoted_value<'a>(word: &Token<'a>, next: Option<&Token<'a>>) -> Option<&'a [u8]> {
    let next = next.filter(|n| n.quoted && n.joined)?;
    let opens = !word.quoted && word.text.ends_with(b"=") && !word.text.ends_with(b"\\=");
    opens.then_some(next.text)
}

fn read_param(at: usize, word: &Token<'_>, quoted: Option<&[u8]>) -> Result<(u16, Vec<u8>), Fault> {
    let expected = "key or key=value, with a key such as alpn, port or key65280";
    let (name, unquoted) = match word.text.iter().position(|octet| *octet == b'=') {
        Some(equals) => (&word.text[..equals], Some(&word.text[equals + 1..])),
        None => (word.text, None),
    };
    let wrong = || mismatch(at, "parameters", expected, word);
    // A quoted value stands right behind the only equals sign.
    if word.quoted || (quoted.is_some() && unquoted.is_some_and(|u| !u.is_empty())) {
        return Err(wrong());
    }
    if quoted.is_none() && word.joined {
        return Err(Fault::at(
            at,
            format!("parameters: expected a blank before {}", shown(word.text)),
        ));
    }
    let (key, generic) = parse_key(name).ok_or_else(wrong)?;
    let text = quoted.or(unquoted).unwrap_or_default();
    let mut raw = Vec::with_capacity(text.len());
    let value = unescape(text, &mut raw).and_then(|()| match generic {
        true => Some(raw),
        false => parse_value(key, &raw),
    });
    let value = value.ok_or_else(|| Fault::at(at, value_fault(key, text)))?;
    check_value(key, &value).map_err(|_| Fault::at(at, value_fault(key, text)))?;
    Ok((key, value))
}

fn value_fault(key: u16, text: &[u8]) -> String {
    let expected = match key {
        MANDATORY => "other keys with commas between, each once",
        ALPN => "protocol ids with commas between, each of 1 to 255 octets",
        NO_DEFAULT_ALPN | OHTTP => "no value",
        PORT => "a port from 0 to 65535",
        IPV4HINT => "IPv4 addresses with commas between",
        ECH => "base64",
        IPV6HINT => "IPv6 addresses with commas between",
        DOHPATH => "a URI template",
        INVALID => "another key: this one is reserved",
        _ => "a string whose backslashes are followed by a character or by three digits up to 255",
    };
    format!(
        "{}: expected {expected}, found {}",
        key_name(key),
        shown(text)
    )
}

/// A key by its name, or `keyN`, which takes its value as it stands; says which of the two it was.
fn parse_key(name: &[u8]) -> Option<(u16, bool)> {
    let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
    if let Some((_, key)) = KEYS.iter().find(|(known, _)| *known == name) {
        return Some((*key, false));
    }
    let digits = name.strip_prefix("key")?;
    let plain = digits == "0" || !digits.starts_with('0');
    Some((text_number(digits).filter(|_| plain)?, true))
}

fn key_name(key: u16) -> String {
    let known = KEYS.iter().find(|(_, number)| *number == key);
    known.map_or_else(|| format!("key{key}"), |(name, _)| (*name).to_owned())
}

fn parse_value(key: u16, raw: &[u8]) -> Option<Vec<u8>> {
    if key == ALPN {
        return parse_alpn(raw);
    }
    if matches!(key, DOHPATH) {
        return Some(raw.to_vec());
    }
    let text = std::str::from_utf8(raw).ok()?;
    match key {
        MANDATORY => parse_mandatory(text),
        NO_DEFAULT_ALPN | OHTTP => raw.is_empty().then(Vec::new),
        PORT => Some(text_number::<u16>(text)?.to_be_bytes().to_vec()),
        IPV4HINT => list(text, |item| Some(item.parse::<Ipv4Addr>().ok()?.octets())),
        IPV6HINT => list(text, |item| Some(item.parse::<Ipv6Addr>().ok()?.octets())),
        ECH => BASE64.decode(raw).ok(),
        _ => None,
    }
}

fn list<const N: usize>(text: &str, read: impl Fn(&str) -> Option<[u8; N]>) -> Option<Vec<u8>> {
    let items: Option<Vec<[u8; N]>> = text.split(',').map(read).collect();
    Some(items?.concat())
}

/// Keys in any order; they are ascending on the wire.
fn parse_mandatory(text: &str) -> Option<Vec<u8>> {
    let keys: Option<Vec<u16>> = text
        .split(',')
        .map(|name| Some(parse_key(name.as_bytes())?.0))
        .collect();
    let mut keys = keys?;
    keys.sort_unstable();
    Some(keys.iter().flat_map(|key| key.to_be_bytes()).collect())
}

/// A value-list (RFC 9460 appendix A.1): within it, a backslash keeps a comma or a backslash from having a meaning.
fn parse_alpn(raw: &[u8]) -> Option<Vec<u8>> {
    let mut ids: Vec<Vec<u8>> = vec![Vec::new()];
    let mut rest = raw.iter();
    while let Some(&octet) = rest.next() {
        match octet {
            b',' => ids.push(Vec::new()),
            b'\\' => {
                let escaped = rest.next().filter(|o| matches!(o, b',' | b'\\'))?;
                ids.last_mut()?.push(*escaped);
            }
            _ => ids.last_mut()?.push(octet),
        }
    }
    let mut value = Vec::with_capacity(raw.len() + 1);
    for id in ids {
        value.push(u8::try_from(id.len()).ok().filter(|l| *l > 0)?);
        value.extend_from_slice(&id);
    }
    Some(value)
}

/// Writes well-formed parameters, in their order on the wire.
pub(super) fn write(octets: &[u8], out: &mut impl Write) -> fmt::Result {
    for (at, Param { key, value }) in Params(octets).enumerate() {
        if at > 0 {
            out.write_char(' ')?;
        }
        out.write_str(&key_name(key))?;
        if !value.is_empty() {
            out.write_char('=')?;
            write_value(key, value, out)?;
        }
    }
    Ok(())
}

fn write_value(key: u16, value: &[u8], out: &mut impl Write) -> fmt::Result {
    match key {
        MANDATORY => commas(value.chunks(2).map(|k| key_name(big_endian(k) as u16)), out),
        ALPN => write_quoted(&alpn_list(value), out),
        PORT => write!(out, "{}", big_endian(value)),
        IPV4HINT => {
            let addresses = value.chunks(4).map(|a| Ipv4Addr::from_bits(big_endian(a)));
            commas(addresses, out)
        }
        IPV6HINT => commas(
            value.as_chunks::<16>().0.iter().map(|a| Ipv6Addr::from(*a)),
            out,
        ),
        ECH => out.write_str(&BASE64.encode(value)),
        _ => write_quoted(value, out),
    }
}

/// Protocol ids as a value-list, before the escapes of strings.
fn alpn_list(value: &[u8]) -> Vec<u8> {
    let mut list = Vec::with_capacity(value.len());
    for (at, id) in alpn_ids(value).unwrap_or_default().into_iter().enumerate() {
        if at > 0 {
            list.push(b',');
        }
        for &octet in id {
            if matches!(octet, b',' | b'\\') {
                list.push(b'\\');
            }
            list.push(octet);
        }
    }
    list
}

fn commas<I: fmt::Display>(items: impl Iterator<Item = I>, out: &mut impl Write) -> fmt::Result {
    for (at, item) in items.enumerate() {
        let comma = if at == 0 { "" } else { "," };
        write!(out, "{comma}{item}")?;
    }
    Ok(())
}
