//! Times of RRSIG records (RFC 4034 section 3.2): seconds since 1970 modulo 2^32, written `YYYYMMDDHHmmSS` in UTC.

use std::fmt;

/// Reads 14 digits, or up to 10 digits of seconds.
pub(super) fn parse(text: &[u8]) -> Option<u32> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    if text.len() != 14 {
        return text.parse().ok();
    }
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(8, 10)?, part(10, 12)?, part(12, 14)?);
    let known = (1..=12).contains(&month) && hour < 24 && minute < 60 && second < 60;
    let days = days_since_1970(year, month, day);
    // A day that does not exist, such as the 31st of April, comes back as another date.
    if !known || civil_of_days(days) != (year, month, day) {
        return None;
    }
    u32::try_from(days * 86_400 + hour * 3_600 + minute * 60 + second).ok()
}

/// Writes 14 digits, taking the time to lie between 1970 and 2106.
pub(super) fn write(seconds: u32, out: &mut impl fmt::Write) -> fmt::Result {
    let seconds = i64::from(seconds);
    let (year, month, day) = civil_of_days(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    write!(
        out,
        "{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}"
    )
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so that the leap day is the last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    year * 365 + leap_days + day_of_year - 719_468
}

/// The date of a day counted from 1970-01-01.
fn civil_of_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seconds: u32) -> String {
        let mut out = String::new();
        write(seconds, &mut out).expect("strings take everything");
        out
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "19700101000000"),
            (951_782_399, "20000228235959"),
            (951_782_400, "20000229000000"),
            (1_081_539_377, "20040409193617"),
            (u32::MAX, "21060207062815"),
        ] {
            assert_eq!(text(seconds), expected);
            assert_eq!(parse(expected.as_bytes()), Some(seconds));
        }
    }

    #[test]
    fn every_day_reads_back() {
        for day in 0..49_710u32 {
            assert_eq!(parse(text(day * 86_400).as_bytes()), Some(day * 86_400));
        }
    }

    #[test]
    fn impossible_times_are_refused() {
        for bad in [
            "20230229000000",
            "20230431000000",
            "20231301000000",
            "20230101240000",
            "20230101006000",
            "21060207062816",
            "19691231235959",
            "4294967296",
            "",
            "-1",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
