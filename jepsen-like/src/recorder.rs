//! The run's clock and its history file, shared by everybody who has something to write.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

#[cfg(test)]
use crate::history::Medium;
use crate::history::{Call, Entry, HistoryWriter, Moment, Outcome, Reply, Rest};

/// Writes the history of one run. The first failure to write is kept for [`Recorder::finish`] and is to end the run; what the file does not
/// take until then stays in memory, for a history with holes judges nothing.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    writer: HistoryWriter,
    operations: AtomicU64,
    processes: AtomicU64,
    has_failed: AtomicBool,
    failure: Mutex<Option<io::Error>>,
}

impl Recorder {
    /// Makes the history file; the run's time begins.
    pub fn create(path: &Path) -> io::Result<Arc<Self>> {
        Ok(Self::of(HistoryWriter::create(path)?))
    }

    /// As `create`, onto something else than a new file.
    #[cfg(test)]
    pub(crate) fn onto(medium: impl Medium + 'static) -> Arc<Self> {
        Self::of(HistoryWriter::onto(medium))
    }

    fn of(writer: HistoryWriter) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            writer,
            operations: AtomicU64::new(0),
            processes: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        })
    }

    pub fn now(&self) -> Moment {
        Moment::after(self.began.elapsed())
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    /// A number for a client: it has one operation under way at a time.
    pub fn new_process(&self) -> u64 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    /// Before the request is sent. Returns the operation's id.
    pub fn invoke(&self, process: u64, node: &str, call: Call) -> u64 {
        let id = self.operations.fetch_add(1, Ordering::Relaxed);
        self.append(&Entry::Invoke {
            id,
            process,
            node: Some(node.to_owned()),
            at: self.now(),
            call,
        });
        id
    }

    pub fn complete(
        &self,
        id: u64,
        outcome: Outcome,
        reply: Option<Reply>,
        reason: Option<String>,
    ) {
        self.append(&Entry::Complete {
            id,
            at: self.now(),
            outcome,
            reply,
            reason,
        });
    }

    pub fn append(&self, entry: &Entry) {
        self.append_all(std::slice::from_ref(entry));
    }

    pub fn append_all(&self, entries: &[Entry]) {
        if let Err(error) = self.writer.append_all(entries) {
            self.has_failed.store(true, Ordering::Relaxed);
            let mut failure = self.failure.lock().unwrap_or_else(|e| e.into_inner());
            failure.get_or_insert(error);
        }
    }

    /// Something could not be written: the run is to end.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Has everything on disk. What the file did not take, and the first failure to write: with one the history is whole all the same, by what is
    /// returned. Nothing is to be appended afterwards.
    pub fn finish(&self) -> (Rest, Option<io::Error>) {
        let mut failure = self.failure.lock().unwrap_or_else(|e| e.into_inner());
        let failure = failure.take().or_else(|| self.writer.sync().err());
        match self.writer.take_rest() {
            Ok(rest) => (rest, failure),
            Err(error) => (Rest::default(), failure.or(Some(error))),
        }
    }
}
