//! Events to journald over its unix socket, in its own protocol: one datagram for each event, with the event's fields as
//! fields of the entry (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
//!
//! [`Entries`] encodes where the event happens and puts the entry into the log's queue; [`Journald`] sends from the writer
//! thread. Spans are not told: the program makes none.

use std::{
    fmt,
    io::{self, Write},
    path::Path,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::{Layer, layer::Context};

use super::daemon::Daemon;

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
const IDENTIFIER: &str = "pontoon";
/// Octets of one entry; the rest of a longer one is cut off. A datagram may have some 200 KiB.
const MAX_ENTRY: usize = 64 << 10;
/// What a field takes beside its name and its value: two line ends and the length.
const FRAME: usize = 10;

/// Puts each event into the queue as one entry.
pub(super) struct Entries {
    queue: NonBlocking,
}

impl Entries {
    pub(super) fn new(queue: NonBlocking) -> Self {
        Self { queue }
    }
}

impl<S: Subscriber> Layer<S> for Entries {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // The queue counts what it has no room for, and never fails.
        let _ = self.queue.clone().write_all(&Entry::of(event).0);
    }
}

/// An entry as journald reads it: `NAME`, line end, length of the value (8 octets, little endian), value, line end, for
/// each field.
#[derive(Debug, Default)]
struct Entry(Vec<u8>);

impl Entry {
    fn of(event: &Event<'_>) -> Self {
        let meta = event.metadata();
        let mut entry = Self::default();
        entry.put("PRIORITY", &[priority(*meta.level())]);
        entry.put("SYSLOG_IDENTIFIER", IDENTIFIER.as_bytes());
        entry.put("TARGET", meta.target().as_bytes());
        if let Some(file) = meta.file() {
            entry.put("CODE_FILE", file.as_bytes());
        }
        if let Some(line) = meta.line() {
            entry.put("CODE_LINE", line.to_string().as_bytes());
        }
        event.record(&mut entry);
        entry
    }

    /// Adds a field, cut to the room that is left.
    fn put(&mut self, name: &str, value: &[u8]) {
        let Some(room) = MAX_ENTRY.checked_sub(self.0.len() + name.len() + FRAME) else {
            return;
        };
        let value = &value[..value.len().min(room)];
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0
            .extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(&name_of(field.name()), value.as_bytes());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(&name_of(field.name()), format!("{value:?}").as_bytes());
    }
}

/// The name of an event's field in the journal. `F_` keeps it apart from those that mean something to journald, which takes
/// capital letters, digits and `_`.
fn name_of(field: &str) -> String {
    match field {
        "message" => "MESSAGE".to_owned(),
        _ => {
            let kept = field
                .chars()
                .map(|c| if c == '.' { '_' } else { c })
                .filter(|c| c.is_ascii_alphanumeric() || *c == '_');
            format!("F_{}", kept.collect::<String>().to_ascii_uppercase())
        }
    }
}

/// The severities of syslog for our levels, the same for both daemons.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => b'3',
        Level::WARN => b'4',
        Level::INFO => b'6',
        _ => b'7',
    }
}

/// Sends each entry that is written to it. While there is no journald, entries go to standard error as text: they are lost
/// to the journal, not to the operator.
pub(super) struct Journald<W = io::Stderr> {
    daemon: Daemon,
    instead: W,
}

impl Journald {
    /// Connects if journald is there now, and says why when it is not.
    pub(super) fn open(path: &Path) -> (Self, Option<io::Error>) {
        Journald::with(path, io::stderr())
    }
}

impl<W: Write> Journald<W> {
    pub(super) fn with(path: &Path, instead: W) -> (Self, Option<io::Error>) {
        let (daemon, problem) = Daemon::open(path);
        (Self { daemon, instead }, problem)
    }
}

impl<W: Write> Write for Journald<W> {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        if self.daemon.send(entry).is_err() {
            self.instead.write_all(readable(entry).as_bytes())?;
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An entry of ours as a line of text: what is to be read by people.
fn readable(mut entry: &[u8]) -> String {
    let mut line = String::new();
    while let Some((name, value, rest)) = first_field(entry) {
        entry = rest;
        let value = String::from_utf8_lossy(value);
        let name = String::from_utf8_lossy(name);
        match &*name {
            "PRIORITY" => line.push_str(&format!("<{value}>")),
            "TARGET" => line.push_str(&format!(" {value}:")),
            "MESSAGE" => line.push_str(&format!(" {value}")),
            _ => {
                if let Some(field) = name.strip_prefix("F_") {
                    line.push_str(&format!(" {}={value}", field.to_ascii_lowercase()));
                }
            }
        }
    }
    line.push('\n');
    line
}

/// Name, value and what follows.
fn first_field(entry: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let end = entry.iter().position(|octet| *octet == b'\n')?;
    let (name, rest) = entry.split_at_checked(end)?;
    let (length, rest) = rest.get(1..)?.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (value, rest) = rest.split_at_checked(length)?;
    Some((name, value, rest.get(1..)?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use proptest::prelude::*;

    use super::*;

    fn entry(fields: &[(&str, &[u8])]) -> Vec<u8> {
        let mut entry = Entry::default();
        for (name, value) in fields {
            entry.put(name, value);
        }
        entry.0
    }

    #[test]
    fn a_field_is_written_as_journald_reads_it() {
        let written = entry(&[("MESSAGE", b"two\nlines")]);
        assert_eq!(written, b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n");
        for (field, name) in [
            ("message", "MESSAGE"),
            ("backend", "F_BACKEND"),
            ("r#type", "F_RTYPE"),
            ("log.target", "F_LOG_TARGET"),
        ] {
            assert_eq!(name_of(field), name);
        }
    }

    #[test]
    fn an_entry_reaches_journald_also_after_its_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let (mut journald, problem) = Journald::with(&path, Vec::new());
        assert_eq!(problem.map(|p| p.kind()), Some(io::ErrorKind::NotFound));
        let fields: [(&str, &[u8]); 5] = [
            ("PRIORITY", b"4"),
            ("TARGET", b"pontoon::x"),
            ("CODE_LINE", b"7"),
            ("MESSAGE", b"hello"),
            ("F_POOL", b"web"),
        ];
        let entry = entry(&fields);
        journald.write_all(&entry).expect("written");
        assert_eq!(journald.instead, b"<4> pontoon::x: hello pool=web\n");
        let daemon = UnixDatagram::bind(&path).expect("bound");
        journald.write_all(&entry).expect("sent");
        let mut buffer = [0; 500];
        let length = daemon.recv(&mut buffer).expect("received");
        assert_eq!(&buffer[..length], entry);
    }

    proptest! {
        #[test]
        fn an_entry_keeps_to_its_bound_and_is_read_back(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 0..5)) {
            let fields: Vec<(&str, &[u8])> = values.iter().map(|value| ("F_X", &value[..])).collect();
            let written = entry(&fields);
            prop_assert!(written.len() <= MAX_ENTRY);
            let mut rest = &written[..];
            for (_, value) in fields {
                let Some((name, found, after)) = first_field(rest) else { break };
                prop_assert_eq!(name, b"F_X");
                prop_assert!(value.starts_with(found));
                rest = after;
            }
            prop_assert!(rest.is_empty());
        }
    }
}
