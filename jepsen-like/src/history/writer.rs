//! Appends to a history file while the run goes on, and keeps in memory what the file does not take.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    sync::Mutex,
};

use super::Entry;

/// Appends entries to a file. Shared by all clients of a run.
///
/// A line is handed to the kernel before [`HistoryWriter::append`] returns: the history outlives a crash of the run, and an
/// invocation that was appended before its request was sent cannot be missing while its effect is seen.
///
/// After the first failure nothing more is written: the file ends with its last whole line, and what comes goes to memory, which has no
/// bound. Whoever is told of the failure has to end the run; what was kept makes the history whole ([`HistoryWriter::take_rest`]).
#[derive(Debug)]
pub struct HistoryWriter {
    sink: Mutex<Sink>,
}

/// Where lines go.
pub(crate) trait Medium: Write + Send + std::fmt::Debug {
    /// Drops what is behind so many octets.
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// Has everything on disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// What of a history is not in its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// Octets at the beginning of the file that are whole lines; what is behind them is none of the history.
    pub written: u64,
    /// The lines behind those.
    pub lines: Vec<u8>,
}

#[derive(Debug)]
struct Sink {
    medium: Box<dyn Medium>,
    rest: Rest,
    is_broken: bool,
}

impl HistoryWriter {
    /// Makes the file; one that exists already is refused, it is another run's evidence.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Self::onto(file))
    }

    pub(crate) fn onto(medium: impl Medium + 'static) -> Self {
        Self {
            sink: Mutex::new(Sink {
                medium: Box::new(medium),
                rest: Rest::default(),
                is_broken: false,
            }),
        }
    }

    /// Adds one line.
    ///
    /// # Errors
    /// Once: when the file does not take it, which is in memory then.
    pub fn append(&self, entry: &Entry) -> io::Result<()> {
        self.append_all(std::slice::from_ref(entry))
    }

    /// Adds lines in one write: for the witness, which has thousands a second. Errors as of [`HistoryWriter::append`].
    pub fn append_all(&self, entries: &[Entry]) -> io::Result<()> {
        let mut lines = vec![];
        for entry in entries {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        self.with(|sink| sink.append(lines))
    }

    /// Has everything on disk; for the end of a run.
    pub fn sync(&self) -> io::Result<()> {
        self.with(|sink| sink.medium.sync())
    }

    /// What is in memory alone; nothing is added afterwards.
    pub fn take_rest(&self) -> io::Result<Rest> {
        self.with(|sink| Ok(std::mem::take(&mut sink.rest)))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Sink) -> io::Result<T>) -> io::Result<T> {
        let sink = self.sink.lock();
        let mut sink = sink.map_err(|_| io::Error::other("a writer panicked"))?;
        act(&mut sink)
    }
}

impl Sink {
    fn append(&mut self, mut lines: Vec<u8>) -> io::Result<()> {
        if self.is_broken {
            self.rest.lines.append(&mut lines);
            return Ok(());
        }
        match self.medium.write_all(&lines) {
            Ok(()) => {
                self.rest.written += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.is_broken = true;
                self.rest.lines = lines;
                if let Err(error) = self.medium.cut(self.rest.written) {
                    tracing::warn!(%error, "the history file ends within a line");
                }
                Err(error)
            }
        }
    }
}

impl Medium for File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// A file on a disk with room for so many octets.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct FullDisk {
    file: File,
    room: usize,
}

#[cfg(test)]
impl FullDisk {
    pub(crate) fn create(path: &Path, room: usize) -> Self {
        let file = File::create_new(path).expect("a new file");
        Self { file, room }
    }
}

#[cfg(test)]
impl Write for FullDisk {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let taken = octets.len().min(self.room);
        if taken == 0 && !octets.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room -= taken;
        self.file.write(octets.get(..taken).unwrap_or_default())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
impl Medium for FullDisk {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
}
