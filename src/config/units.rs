//! Durations and sizes as people write them.

use crate::model::quoted::quoted;
use std::time::Duration;

/// Reads `250ms`, `5s`, `3m`, `2h`, `7d`. A bare number is refused: its unit would be a guess.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || {
        format!(
            "{text} is not a duration: expected a number with ms, s, m, h or d, such as \"5s\"",
            text = quoted(text)
        )
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let unit_millis: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected()),
    };
    number
        .checked_mul(unit_millis)
        .map(Duration::from_millis)
        .ok_or_else(expected)
}

/// Writes a duration so that `parse_duration` reads it back; below a millisecond is cut off.
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, size) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ] {
        if millis >= size && millis.is_multiple_of(size) {
            return format!("{}{unit}", millis / size);
        }
    }
    format!("{millis}ms")
}

/// Reads `512`, `64KiB`, `100MiB`, `2GiB` (and `k`, `M`, `G` as short forms of those), in octets.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let expected = || {
        format!(
            "{text} is not a size: expected octets, or a number with KiB, MiB or GiB",
            text = quoted(text)
        )
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "k" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return Err(expected()),
    };
    number.checked_mul(factor).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("3 m", 180_000),
            ("7d", 604_800_000),
            ("0s", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for bad in [
            "5",
            "",
            "s",
            "-1s",
            "1.5s",
            "5 weeks",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        for text in ["250ms", "5s", "90s", "2h", "7d"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, octets) in [
            ("512", 512),
            ("64KiB", 65_536),
            ("1 MiB", 1 << 20),
            ("2G", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(octets), "{text}");
        }
        for bad in ["", "KiB", "1kb", "1.5MiB", "99999999999999999G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
