//! Appends to a history file while the run goes on.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    sync::Mutex,
};

use super::Entry;

/// Appends entries to a file. Shared by all clients of a run.
///
/// A line is handed to the kernel before [`HistoryWriter::append`] returns: the history outlives a crash of the run, and an
/// invocation that was appended before its request was sent cannot be missing while its effect is seen.
#[derive(Debug)]
pub struct HistoryWriter {
    file: Mutex<BufWriter<File>>,
}

impl HistoryWriter {
    /// Makes the file; one that exists already is refused, it is another run's evidence.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Self {
            file: Mutex::new(BufWriter::new(file)),
        })
    }

    /// Adds one line.
    pub fn append(&self, entry: &Entry) -> io::Result<()> {
        self.append_all(std::slice::from_ref(entry))
    }

    /// Adds lines in one write: for the witness, which has thousands a second.
    pub fn append_all(&self, entries: &[Entry]) -> io::Result<()> {
        let mut lines = vec![];
        for entry in entries {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        let mut file = self
            .file
            .lock()
            .map_err(|_| io::Error::other("a writer panicked"))?;
        file.write_all(&lines)?;
        file.flush()
    }

    /// Has everything on disk; for the end of a run.
    pub fn sync(&self) -> io::Result<()> {
        let mut file = self
            .file
            .lock()
            .map_err(|_| io::Error::other("a writer panicked"))?;
        file.flush()?;
        file.get_ref().sync_all()
    }
}
