//! Lines to the local syslog daemon (RFC 5424) over its unix socket.

use std::{
    io::{self, Write},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process,
};

use tracing::Level;

/// Where syslog daemons listen.
pub(super) const SOCKET: &str = "/dev/log";
/// Facility `daemon` (RFC 5424 section 6.2.1).
const FACILITY: u8 = 3;
const MAX_MESSAGE: usize = 8 << 10;

/// Sends each line that is written to it as one message, connecting again when the daemon was restarted.
pub(super) struct Syslog {
    path: PathBuf,
    socket: UnixDatagram,
}

impl Syslog {
    pub(super) fn connect(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let socket = UnixDatagram::unbound()?;
        socket.connect(&path)?;
        Ok(Self { path, socket })
    }
}

impl Write for Syslog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let message = &line[..line.len().min(MAX_MESSAGE)];
        if self.socket.send(message).is_err() {
            *self = Self::connect(self.path.clone())?;
            self.socket.send(message)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What stands before a line of this level: priority, version, and the fields of RFC 5424 section 6 left to the daemon.
pub(super) fn header(level: Level) -> String {
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    format!(
        "<{}>1 - - pontoon {} - - ",
        FACILITY * 8 + severity,
        process::id()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reaches_the_daemon_also_after_its_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).expect("bound");
        let mut syslog = Syslog::connect(&path).expect("connected");
        let mut buffer = [0; 64];
        syslog.write_all(b"<30>1 one").expect("sent");
        assert_eq!(
            daemon
                .recv(&mut buffer)
                .map(|n| buffer[..n].to_vec())
                .expect("received"),
            b"<30>1 one"
        );
        drop(daemon);
        std::fs::remove_file(&path).expect("removed");
        let daemon = UnixDatagram::bind(&path).expect("bound again");
        syslog.write_all(b"<30>1 two").expect("sent");
        assert_eq!(
            daemon
                .recv(&mut buffer)
                .map(|n| buffer[..n].to_vec())
                .expect("received"),
            b"<30>1 two"
        );
    }

    #[test]
    fn levels_become_severities() {
        assert!(header(Level::ERROR).starts_with("<27>1 "));
        assert!(header(Level::INFO).starts_with("<30>1 "));
    }
}
