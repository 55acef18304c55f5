//! Reading record data in presentation form by the table of fields.

use std::net::{Ipv4Addr, Ipv6Addr};

use data_encoding::{BASE32HEX_NOPAD, BASE64, HEXLOWER_PERMISSIVE};

use super::super::{
    name::{Name, take_escape},
    rrset::RecordType,
};
use super::{
    MAX_RDATA, RdataError, bitmap, location, prefixes, svcb,
    table::{self, ALGORITHMS, CERT_TYPES, Kind},
    timestamp,
    token::Token,
    wire,
};

/// Longest character-string, in octets.
const MAX_STRING: usize = 255;
/// How much of a wrong word an error repeats, in characters.
const MAX_SHOWN: usize = 60;

/// What was wrong, and at which word (relative to the words given).
pub(super) struct Fault {
    pub problem: String,
    pub word: Option<usize>,
}

impl Fault {
    pub(super) fn at(word: usize, problem: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            word: Some(word),
        }
    }
}

/// Appends the data that `words` describe to `out`. What an error leaves there is the caller's to remove.
pub(super) fn read(
    rtype: RecordType,
    words: &[Token<'_>],
    origin: &Name,
    out: &mut Vec<u8>,
) -> Result<(), RdataError> {
    let start = out.len();
    let read = wire::refuse_meta(rtype).map_err(|problem| Fault {
        problem,
        word: None,
    });
    let read = read.and_then(|()| match words.split_first() {
        Some((first, rest)) if is_generic(first) => read_generic(rest, out)
            .map(|()| wire::fold_names(rtype, out.get_mut(start..).unwrap_or_default()))
            .map_err(|f| Fault {
                word: f.word.map(|w| w + 1),
                ..f
            }),
        _ => read_fields(rtype, words, origin, out),
    });
    let checked = read.and_then(|()| {
        let wire = out.get(start..).unwrap_or_default();
        wire::check(rtype, wire).map_err(|problem| Fault {
            problem,
            word: None,
        })
    });
    checked.map_err(|fault| RdataError {
        rtype,
        problem: fault.problem,
        word: fault.word,
    })
}

/// `\#` announces data of any type (RFC 3597 section 5).
fn is_generic(word: &Token<'_>) -> bool {
    !word.quoted && word.text == br"\#"
}

fn read_generic(words: &[Token<'_>], out: &mut Vec<u8>) -> Result<(), Fault> {
    let Some((length, digits)) = words.split_first() else {
        return Err(Fault::at(0, r"expected a length in octets after \#"));
    };
    let octets: usize = number(length, MAX_RDATA as u64)
        .ok_or_else(|| mismatch(0, "length", "a number from 0 to 65535", length))?
        as usize;
    let start = out.len();
    if !digits.is_empty() {
        hexadecimal(digits, out)
            .ok_or_else(|| Fault::at(1, format!("data: expected {}", Kind::Hex.expected())))?;
    }
    let found = out.len() - start;
    if found != octets {
        return Err(Fault::at(
            0,
            format!("length: {octets} octets announced, but {found} follow"),
        ));
    }
    Ok(())
}

fn read_fields(
    rtype: RecordType,
    words: &[Token<'_>],
    origin: &Name,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let fields = table::fields(rtype).ok_or_else(|| {
        Fault::at(
            0,
            format!(r"expected \# length hex: {rtype} has no other form (RFC 3597)"),
        )
    })?;
    let mut at = 0;
    for (name, kind) in fields {
        let rest = words.get(at..).unwrap_or_default();
        at += read_field(name, *kind, rest, origin, out).map_err(|fault| Fault {
            word: fault.word.map(|word| word + at),
            ..fault
        })?;
    }
    match words.get(at) {
        None => Ok(()),
        Some(extra) => Err(Fault::at(
            at,
            format!("expected the data to end here, found {}", shown(extra.text)),
        )),
    }
}

/// Reads one field from the front of `words` and returns how many it took.
fn read_field(
    name: &str,
    kind: Kind,
    words: &[Token<'_>],
    origin: &Name,
    out: &mut Vec<u8>,
) -> Result<usize, Fault> {
    if let Some(result) = read_last(name, kind, words, out) {
        return result.map(|()| words.len());
    }
    let Some(word) = words.first() else {
        return Err(missing(name, kind));
    };
    match kind {
        Kind::Name => read_name(name, word, origin, out)?,
        Kind::String => read_string(name, 0, word, out)?,
        Kind::Text { .. } => {
            unescape(word.text, out).ok_or_else(|| Fault::at(0, format!("{name}: {BAD_ESCAPE}")))?
        }
        _ => match read_plain(kind, word) {
            Some(octets) => out.extend_from_slice(octets.as_slice()),
            None => return Err(mismatch(0, name, kind.expected(), word)),
        },
    }
    Ok(1)
}

/// Reads a field that takes all words that are left; none for the other kinds.
fn read_last(
    name: &str,
    kind: Kind,
    words: &[Token<'_>],
    out: &mut Vec<u8>,
) -> Option<Result<(), Fault>> {
    let wrong = || Fault::at(0, format!("{name}: expected {}", kind.expected()));
    let needs_word = matches!(
        kind,
        Kind::Strings | Kind::Base64 | Kind::Hex | Kind::Types | Kind::Loc
    );
    if needs_word && words.is_empty() {
        return Some(Err(missing(name, kind)));
    }
    Some(match kind {
        Kind::Strings => {
            (words.iter().enumerate()).try_for_each(|(at, word)| read_string(name, at, word, out))
        }
        Kind::Base64 => joined(words)
            .and_then(|text| BASE64.decode(&text).ok())
            .map(|octets| out.extend_from_slice(&octets))
            .ok_or_else(wrong),
        Kind::Hex => hexadecimal(words, out).ok_or_else(wrong),
        Kind::Types | Kind::MaybeTypes => read_types(name, words, out),
        Kind::Loc => location::read(words, out),
        Kind::Prefixes => prefixes::read(words, out),
        Kind::SvcParams => svcb::read(words, out),
        _ => return None,
    })
}

/// Octets of a field that is one unquoted word.
enum Plain {
    Short([u8; 16], usize),
    Long(Vec<u8>),
}

impl Plain {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Short(octets, length) => &octets[..*length],
            Self::Long(octets) => octets,
        }
    }

    fn of<const N: usize>(octets: [u8; N]) -> Self {
        let mut all = [0; 16];
        all[..N].copy_from_slice(&octets);
        Self::Short(all, N)
    }
}

fn read_plain(kind: Kind, word: &Token<'_>) -> Option<Plain> {
    if word.quoted {
        return None;
    }
    let text = std::str::from_utf8(word.text).ok()?;
    Some(match kind {
        Kind::U8 => Plain::of((number(word, 0xff)? as u8).to_be_bytes()),
        Kind::U16 => Plain::of((number(word, 0xffff)? as u16).to_be_bytes()),
        Kind::U32 => Plain::of((number(word, 0xffff_ffff)? as u32).to_be_bytes()),
        Kind::Seconds => Plain::of(seconds(word.text)?.to_be_bytes()),
        Kind::Time => Plain::of(timestamp::parse(word.text)?.to_be_bytes()),
        Kind::Ipv4 => Plain::of(text.parse::<Ipv4Addr>().ok()?.octets()),
        Kind::Ipv6 => Plain::of(text.parse::<Ipv6Addr>().ok()?.octets()),
        Kind::Type => Plain::of(RecordType::parse(text)?.0.to_be_bytes()),
        Kind::Algorithm => Plain::of([mnemonic(text, ALGORITHMS).or_else(|| text_number(text))?]),
        Kind::CertType => {
            let number: u16 = mnemonic(text, CERT_TYPES).or_else(|| text_number(text))?;
            Plain::of(number.to_be_bytes())
        }
        Kind::Tag => Plain::Long(with_length(text.as_bytes().to_vec())?),
        Kind::Salt if text == "-" => Plain::of([0]),
        Kind::Salt => Plain::Long(with_length(hex_of(word.text)?)?),
        Kind::Hash => {
            let digits = text.to_ascii_uppercase();
            Plain::Long(with_length(
                BASE32HEX_NOPAD.decode(digits.as_bytes()).ok()?,
            )?)
        }
        Kind::Eui(octets) => Plain::Long(eui(text, octets)?),
        _ => return None,
    })
}

fn read_name(name: &str, word: &Token<'_>, origin: &Name, out: &mut Vec<u8>) -> Result<(), Fault> {
    if word.quoted {
        return Err(mismatch(0, name, Kind::Name.expected(), word));
    }
    let target = Name::parse_octets(word.text, origin).map_err(|e| {
        Fault::at(
            0,
            format!(
                "{name}: expected a domain name, found {}: {e}",
                shown(word.text)
            ),
        )
    })?;
    out.extend_from_slice(target.as_wire());
    Ok(())
}

const BAD_ESCAPE: &str = "a backslash must be followed by a character or by three digits up to 255";

/// Reads a character-string: its length in one octet, then its octets.
fn read_string(name: &str, at: usize, word: &Token<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
    let start = out.len();
    out.push(0);
    unescape(word.text, out).ok_or_else(|| Fault::at(at, format!("{name}: {BAD_ESCAPE}")))?;
    let length = out.len() - start - 1;
    match (u8::try_from(length), out.get_mut(start)) {
        (Ok(length), Some(octet)) => {
            *octet = length;
            Ok(())
        }
        _ => Err(Fault::at(
            at,
            format!(
                "{name}: a string of {length} octets: expected at most {MAX_STRING}, split it into several quoted strings"
            ),
        )),
    }
}

fn read_types(name: &str, words: &[Token<'_>], out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut types = Vec::with_capacity(words.len());
    for (at, word) in words.iter().enumerate() {
        let rtype = std::str::from_utf8(word.text)
            .ok()
            .filter(|_| !word.quoted)
            .and_then(RecordType::parse);
        types.push(rtype.ok_or_else(|| mismatch(at, name, Kind::Type.expected(), word))?);
    }
    bitmap::write(types, out);
    Ok(())
}

/// A decimal number of digits only, up to `most`.
pub(super) fn number(word: &Token<'_>, most: u64) -> Option<u64> {
    let text = std::str::from_utf8(word.text).ok()?;
    text_number::<u64>(text).filter(|n| !word.quoted && *n <= most)
}

/// A decimal number of digits only: no sign, which Rust's own reading would allow.
pub(crate) fn text_number<N: std::str::FromStr>(text: &str) -> Option<N> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// Seconds, as a number or as numbers with units: `1w2d3h4m5s`, in any case and order; those of one unit
/// add up, as in BIND.
pub(crate) fn seconds(text: &[u8]) -> Option<u32> {
    let mut total: u64 = 0;
    let mut number: Option<u64> = None;
    let mut with_units = false;
    for octet in text {
        if octet.is_ascii_digit() {
            let digits = number.unwrap_or(0) * 10 + u64::from(octet - b'0');
            number = Some(digits).filter(|n| *n <= u64::from(u32::MAX));
            number?;
            continue;
        }
        let factor = match octet.to_ascii_lowercase() {
            b's' => 1,
            b'm' => 60,
            b'h' => 3_600,
            b'd' => 86_400,
            b'w' => 604_800,
            _ => return None,
        };
        with_units = true;
        total = total.checked_add(number.take()? * factor)?;
    }
    // A number without a unit stands alone.
    match (number, with_units) {
        (Some(plain), false) => u32::try_from(plain).ok(),
        (None, true) => u32::try_from(total).ok(),
        _ => None,
    }
}

fn mnemonic<N: Copy>(text: &str, known: &[(&str, N)]) -> Option<N> {
    let found = known.iter().find(|(m, _)| m.eq_ignore_ascii_case(text));
    found.map(|(_, number)| *number)
}

fn with_length(octets: Vec<u8>) -> Option<Vec<u8>> {
    let mut all = vec![u8::try_from(octets.len()).ok()?];
    all.extend_from_slice(&octets);
    Some(all)
}

fn eui(text: &str, octets: usize) -> Option<Vec<u8>> {
    let pairs: Option<Vec<u8>> = text
        .split('-')
        .map(|pair| hex_of(pair.as_bytes()).filter(|o| o.len() == 1)?.pop())
        .collect();
    pairs.filter(|p| p.len() == octets)
}

fn hex_of(text: &[u8]) -> Option<Vec<u8>> {
    HEXLOWER_PERMISSIVE.decode(text).ok()
}

fn hexadecimal(words: &[Token<'_>], out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(&hex_of(&joined(words)?)?);
    Some(())
}

/// Unquoted words as one; none when one is quoted.
fn joined(words: &[Token<'_>]) -> Option<Vec<u8>> {
    let mut all = Vec::with_capacity(words.iter().map(|w| w.text.len()).sum());
    for word in words {
        if word.quoted {
            return None;
        }
        all.extend_from_slice(word.text);
    }
    Some(all)
}

/// The octets that `text` stands for; none when an escape is wrong.
pub(crate) fn unescaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(text.len());
    unescape(text, &mut octets).map(|()| octets)
}

/// Appends the octets that `text` stands for; none when an escape is wrong.
pub(super) fn unescape(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = text;
    while let Some((&octet, tail)) = rest.split_first() {
        rest = tail;
        out.push(match octet {
            b'\\' => take_escape(&mut rest).ok()?,
            _ => octet,
        });
    }
    Some(())
}

fn missing(name: &str, kind: Kind) -> Fault {
    Fault {
        problem: format!(
            "{name}: expected {}, but the data ends here",
            kind.expected()
        ),
        word: None,
    }
}

pub(super) fn mismatch(at: usize, name: &str, expected: &str, found: &Token<'_>) -> Fault {
    let quoted = if found.quoted {
        "the quoted string "
    } else {
        ""
    };
    Fault::at(
        at,
        format!(
            "{name}: expected {expected}, found {quoted}{}",
            shown(found.text)
        ),
    )
}

/// A word as errors repeat it: quoted, on one line, not too long, its own escapes as they were written.
pub(crate) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut shown = String::new();
    for c in text.chars().take(MAX_SHOWN) {
        match c.is_control() {
            true => shown.push_str(&format!("\\{:03}", u32::from(c))),
            false => shown.push(c),
        }
    }
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push_str("...");
    }
    format!("`{shown}`")
}
