//! A moment as people and programs read it: RFC 3339 in UTC, to the second.

use std::time::{SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// `millis`: since 1970.
pub fn moment(millis: u64) -> String {
    let seconds = i64::try_from(millis / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{millis} ms since 1970"))
}

/// The same of a reading of the clock; one before 1970 counts as 1970.
pub fn moment_of(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    moment(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_are_rfc_3339() {
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
        assert_eq!(moment(1_700_000_000_123), "2023-11-14T22:13:20Z");
        assert!(moment(u64::MAX).contains("1970"));
        let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(moment_of(at), "2023-11-14T22:13:20Z");
    }
}
