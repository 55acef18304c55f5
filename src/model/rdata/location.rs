//! Locations (RFC 1876): latitude, longitude, altitude and precisions, in 16 octets.

use std::fmt::{self, Write};

use super::{text::Fault, token::Token, write::big_endian};

const OCTETS: usize = 16;
/// Thousandths of a second of arc in 90 degrees.
const QUARTER: i64 = 90 * 3_600_000;
/// Where coordinates are zero: 2^31.
const EQUATOR: i64 = 1 << 31;
/// Centimetres below the ellipsoid at which altitudes start.
const LOWEST: i64 = 10_000_000;
/// Defaults of size, horizontal and vertical precision, in centimetres.
const PRECISIONS: [u64; 3] = [100, 1_000_000, 1_000];

pub(super) fn check(octets: &[u8]) -> Result<usize, String> {
    let Some((location, _)) = octets.split_first_chunk::<OCTETS>() else {
        return Err(format!("expected {OCTETS} octets"));
    };
    if location[0] != 0 {
        return Err(format!("version {}: expected 0", location[0]));
    }
    if !location[1..4].iter().all(|p| is_precision(*p)) {
        return Err(
            "a precision: expected a digit and a power of ten in the halves of an octet".to_owned(),
        );
    }
    let coordinate = |at: usize| i64::from(big_endian(&location[at..at + 4])) - EQUATOR;
    if coordinate(4).abs() > QUARTER || coordinate(8).abs() > 2 * QUARTER {
        return Err("expected a latitude within 90 and a longitude within 180 degrees".to_owned());
    }
    Ok(OCTETS)
}

/// A precision is a digit and a power of ten; zero has one spelling.
fn is_precision(octet: u8) -> bool {
    let (base, exponent) = (octet >> 4, octet & 0x0f);
    octet == 0 || ((1..=9).contains(&base) && exponent <= 9)
}

pub(super) fn read(words: &[Token<'_>], out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut reader = Reader { words, at: 0 };
    let latitude = reader.angle("latitude", 90, ["N", "S"])?;
    let longitude = reader.angle("longitude", 180, ["E", "W"])?;
    let altitude = reader.altitude()?;
    let mut precisions = PRECISIONS;
    for precision in &mut precisions {
        if let Some(text) = reader.next() {
            *precision = metres(text)
                .and_then(|cm| u64::try_from(cm).ok())
                .filter(|cm| *cm <= 9_000_000_000)
                .ok_or_else(|| reader.fault("a precision from 0 to 90000000.00m"))?;
        }
    }
    if reader.next().is_some() {
        return Err(reader.fault("the location to end"));
    }
    out.push(0);
    out.extend(precisions.map(precision_octet));
    out.extend_from_slice(&latitude.to_be_bytes());
    out.extend_from_slice(&longitude.to_be_bytes());
    out.extend_from_slice(&altitude.to_be_bytes());
    Ok(())
}

struct Reader<'t, 'a> {
    words: &'t [Token<'a>],
    at: usize,
}

impl<'a> Reader<'_, 'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        // What is no plain word is no part of a location; an empty text fits nowhere.
        Some(match std::str::from_utf8(word.text) {
            Ok(text) if !word.quoted => text,
            _ => "",
        })
    }

    /// The word last taken is wrong, or there was none left.
    fn fault(&self, expected: &str) -> Fault {
        Fault::at(
            self.at.saturating_sub(1),
            format!("location: expected {expected}"),
        )
    }

    /// `degrees [minutes [seconds]] hemisphere` as its number on the wire.
    fn angle(&mut self, name: &str, most: i64, hemispheres: [&str; 2]) -> Result<u32, Fault> {
        let [positive, negative] = hemispheres;
        let expected = format!(
            "a {name} as degrees [minutes [seconds]] {positive}|{negative}, at most {most} degrees"
        );
        let mut parts = [0i64; 3];
        // Thousandths of a second in a degree, a minute, a second.
        let units = [(3_600_000, most), (60_000, 59), (1, 59_999)];
        for index in 0..=3 {
            let text = self.next().unwrap_or_default();
            let sign = match text {
                _ if index == 0 => None,
                t if t.eq_ignore_ascii_case(positive) => Some(1),
                t if t.eq_ignore_ascii_case(negative) => Some(-1),
                _ => None,
            };
            if let Some(sign) = sign {
                let angle: i64 = parts
                    .iter()
                    .zip(units)
                    .map(|(part, (unit, _))| part * unit)
                    .sum();
                return u32::try_from(EQUATOR + sign * angle)
                    .ok()
                    .filter(|_| angle <= most * 3_600_000)
                    .ok_or_else(|| self.fault(&expected));
            }
            let fraction = if index == 2 { 3 } else { 0 };
            parts[index.min(2)] = decimal(text, fraction)
                .filter(|n| index < 3 && *n <= units[index].1)
                .ok_or_else(|| self.fault(&expected))?;
        }
        Err(self.fault(&expected))
    }

    fn altitude(&mut self) -> Result<u32, Fault> {
        let text = self.next().unwrap_or_default();
        metres(text)
            .and_then(|cm| u32::try_from(cm + LOWEST).ok())
            .ok_or_else(|| self.fault("an altitude from -100000.00m to 42849672.95m"))
    }
}

/// A length in metres, with up to two decimals and an optional `m`, as centimetres.
fn metres(text: &str) -> Option<i64> {
    let number = text.strip_suffix(['m', 'M']).unwrap_or(text);
    match number.strip_prefix('-') {
        Some(positive) => decimal(positive, 2).map(|cm| -cm),
        None => decimal(number.strip_prefix('+').unwrap_or(number), 2),
    }
}

/// A decimal number with up to `places` decimals, times ten to the power of `places`.
fn decimal(text: &str, places: usize) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 10 || fraction.len() > places {
        return None;
    }
    if !digits(whole) || !digits(fraction) || (places == 0 && text.contains('.')) {
        return None;
    }
    format!("{whole}{fraction:0<places$}").parse().ok()
}

/// A digit and a power of ten; what does not fit is rounded down, as RFC 1876 appendix A does.
fn precision_octet(centimetres: u64) -> u8 {
    let (mut base, mut exponent) = (centimetres, 0);
    while base > 9 {
        base /= 10;
        exponent += 1;
    }
    if base == 0 {
        0
    } else {
        (base as u8) << 4 | exponent
    }
}

/// Writes well-formed data.
pub(super) fn write(octets: &[u8], out: &mut impl Write) -> fmt::Result {
    let (head, numbers) = octets.split_at_checked(4).ok_or(fmt::Error)?;
    let mut numbers = numbers.chunks(4).map(|n| i64::from(big_endian(n)));
    let mut number = || numbers.next().ok_or(fmt::Error);
    write_angle(number()? - EQUATOR, ["N", "S"], out)?;
    write_angle(number()? - EQUATOR, ["E", "W"], out)?;
    write_metres(number()? - LOWEST, out)?;
    for precision in head.get(1..).unwrap_or_default() {
        let base = i64::from(precision >> 4);
        out.write_char(' ')?;
        write_metres(base * 10i64.pow(u32::from(precision & 0x0f)), out)?;
    }
    Ok(())
}

fn write_angle(angle: i64, hemispheres: [&str; 2], out: &mut impl Write) -> fmt::Result {
    let hemisphere = hemispheres[usize::from(angle < 0)];
    let (whole, thousandths) = (angle.abs() / 1_000, angle.abs() % 1_000);
    let (degrees, minutes, seconds) = (whole / 3_600, whole / 60 % 60, whole % 60);
    write!(
        out,
        "{degrees} {minutes} {seconds}.{thousandths:03} {hemisphere} "
    )
}

fn write_metres(centimetres: i64, out: &mut impl Write) -> fmt::Result {
    let sign = if centimetres < 0 { "-" } else { "" };
    let (metres, rest) = (centimetres.abs() / 100, centimetres.abs() % 100);
    write!(out, "{sign}{metres}.{rest:02}m")
}
