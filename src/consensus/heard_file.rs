//! When a leader was last heard, by the wall clock, kept over restarts: a node that was switched off for long and comes
//! back alone must not serve what it has as if no time had passed.
//!
//! Written once a minute at most, durable on return. The wall clock may be wrong: a moment that lies in the future, or
//! before there was this program, says nothing. What it says is used at the start alone; while the process runs, the
//! monotonic clock counts, so that setting the clock ends no service.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How often it is written while a leader is heard.
pub const WRITE_EVERY: Duration = Duration::from_secs(60);
/// The first of January 2020 in seconds since 1970: a clock that shows an earlier time was never set.
const NEVER_SET: u64 = 1_577_836_800;

/// The file.
#[derive(Clone, Debug)]
pub struct HeardFile {
    path: PathBuf,
}

impl HeardFile {
    pub fn in_dir(directory: &Path) -> Self {
        Self {
            path: directory.join("heard"),
        }
    }

    /// The moment it holds; none when there is none that can be read.
    pub fn read(&self) -> Option<SystemTime> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %self.path.display(), %error, "when a leader was last heard is not known");
                }
                return None;
            }
        };
        let seconds = text.trim().parse().ok()?;
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// Durable on return. Blocks.
    pub fn write(&self, heard: SystemTime) -> io::Result<()> {
        let since = heard.duration_since(UNIX_EPOCH).unwrap_or_default();
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        writeln!(file, "{}", since.as_secs())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        match self.path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// For how long no leader had been heard when the process started; none while the clock is known to be wrong.
pub fn absence(heard: Option<SystemTime>, at_start: SystemTime) -> Option<Duration> {
    let Some(heard) = heard.filter(|heard| is_set(*heard)) else {
        return Some(Duration::ZERO);
    };
    match is_set(at_start) {
        true => at_start.duration_since(heard).ok(),
        false => None,
    }
}

fn is_set(time: SystemTime) -> bool {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() >= NEVER_SET
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn absence_is_told_where_the_clock_can_be_believed() {
        let now = 1_800_000_000;
        let days = |n: u64| n * 86_400;
        let secs = Duration::from_secs;
        for (heard, start, expected) in [
            (None, now, Some(secs(0))),
            (Some(now - 5), now, Some(secs(5))),
            (Some(now - days(8)), now, Some(secs(days(8)))),
            // Set back since, or set forward when it was written: asked again until it has passed.
            (Some(now + 1), now, None),
            (Some(now), days(1), None),
            // Written by a clock that was never set.
            (Some(days(2)), now, Some(secs(0))),
        ] {
            let told = absence(heard.map(at), at(start));
            assert_eq!(told, expected, "{heard:?} {start}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = HeardFile::in_dir(dir.path());
        assert_eq!(file.read(), None);
        for seconds in [1_800_000_000, 1_800_000_060] {
            file.write(at(seconds)).expect("written");
            assert_eq!(file.read(), Some(at(seconds)));
        }
        fs::write(dir.path().join("heard"), "garbled").expect("written");
        assert_eq!(file.read(), None);
    }
}
