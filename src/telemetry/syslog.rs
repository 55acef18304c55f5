//! Lines to the local syslog daemon over its unix socket, as the C library's syslog(3) writes them: priority, local time,
//! tag and process id (RFC 3164 section 4.1 without the host name). That is what those who listen at `/dev/log` expect.
//!
//! The one unsafe call here is localtime_r(3): nothing else knows the machine's time zone.

#![allow(unsafe_code)]

use std::{
    io::{self, Write},
    mem,
    path::Path,
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use tracing::Level;

use super::daemon::Daemon;

/// Where syslog daemons listen.
pub(super) const SOCKET: &str = "/dev/log";
/// Facility `daemon` (RFC 5424 section 6.2.1).
const FACILITY: u8 = 3;
const TAG: &str = "pontoon";
/// Octets of one message; the rest of a longer one is cut off.
const MAX_MESSAGE: usize = 8 << 10;
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Sends each line that is written to it as one message. While there is no daemon, lines go to standard error: they are
/// lost to the daemon, not to the operator.
pub(super) struct Syslog<W = io::Stderr> {
    daemon: Daemon,
    instead: W,
}

impl Syslog {
    /// Connects if there is a daemon now, and says why when there is none.
    pub(super) fn open(path: &Path) -> (Self, Option<io::Error>) {
        Syslog::with(path, io::stderr())
    }
}

impl<W: Write> Syslog<W> {
    pub(super) fn with(path: &Path, instead: W) -> (Self, Option<io::Error>) {
        let (daemon, problem) = Daemon::open(path);
        (Self { daemon, instead }, problem)
    }
}

impl<W: Write> Write for Syslog<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let message = &line[..line.len().min(MAX_MESSAGE)];
        if self.daemon.send(message).is_err() {
            self.instead.write_all(message)?;
            self.instead.write_all(b"\n")?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What stands before a line of this level, written now.
pub(super) fn header(level: Level) -> String {
    header_at(level, &local_time())
}

fn header_at(level: Level, time: &str) -> String {
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    let priority = FACILITY * 8 + severity;
    format!("<{priority}>{time} {TAG}[{}]: ", process::id())
}

/// `Mmm dd hh:mm:ss` of now, in the machine's time zone.
fn local_time() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    let seconds = libc::time_t::try_from(seconds).unwrap_or(0);
    // SAFETY: a tm is numbers and a pointer that only the C library follows, for which zero is a value.
    let mut parts: libc::tm = unsafe { mem::zeroed() };
    // SAFETY: both pointers are to values of this function; the call keeps neither.
    unsafe { libc::localtime_r(&raw const seconds, &raw mut parts) };
    stamp(&parts)
}

fn stamp(parts: &libc::tm) -> String {
    let month = usize::try_from(parts.tm_mon).ok();
    let month = month.and_then(|month| MONTHS.get(month)).unwrap_or(&"Jan");
    let libc::tm {
        tm_mday: day,
        tm_hour: hour,
        tm_min: minute,
        tm_sec: second,
        ..
    } = parts;
    format!("{month} {day:>2} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn received(daemon: &UnixDatagram) -> Vec<u8> {
        let mut buffer = [0; 64];
        let length = daemon.recv(&mut buffer).expect("received");
        buffer[..length].to_vec()
    }

    #[test]
    fn a_line_reaches_the_daemon_also_after_its_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).expect("bound");
        let (mut syslog, problem) = Syslog::with(&path, Vec::new());
        assert!(problem.is_none());
        syslog.write_all(b"<30>one").expect("sent");
        assert_eq!(received(&daemon), b"<30>one");
        drop(daemon);
        std::fs::remove_file(&path).expect("removed");
        syslog.write_all(b"<30>meanwhile").expect("written");
        let daemon = UnixDatagram::bind(&path).expect("bound again");
        syslog.write_all(b"<30>two").expect("sent");
        assert_eq!(received(&daemon), b"<30>two");
        assert_eq!(syslog.instead, b"<30>meanwhile\n");
    }

    #[test]
    fn without_a_daemon_lines_go_to_standard_error() {
        let (mut syslog, problem) = Syslog::with(Path::new("/nonexistent/log"), Vec::new());
        assert_eq!(problem.map(|p| p.kind()), Some(io::ErrorKind::NotFound));
        syslog.write_all(b"<30>line").expect("written");
        assert_eq!(syslog.instead, b"<30>line\n");
    }

    #[test]
    fn a_line_begins_as_the_c_library_begins_it() {
        let id = process::id();
        let time = "Nov  2 03:04:05";
        let expected = [
            (Level::ERROR, 27),
            (Level::WARN, 28),
            (Level::INFO, 30),
            (Level::DEBUG, 31),
            (Level::TRACE, 31),
        ];
        for (level, priority) in expected {
            let header = header_at(level, time);
            assert_eq!(
                header,
                format!("<{priority}>Nov  2 03:04:05 pontoon[{id}]: ")
            );
        }
        // SAFETY: a tm is numbers and a pointer, for which zero is a value.
        let mut parts: libc::tm = unsafe { mem::zeroed() };
        parts.tm_mon = 10;
        parts.tm_mday = 2;
        (parts.tm_hour, parts.tm_min, parts.tm_sec) = (3, 4, 5);
        assert_eq!(stamp(&parts), time);
        assert_eq!(local_time().len(), time.len());
    }
}
