//! The one thread that writes the log.
//!
//! It owns the order: requests are taken from a queue, all that wait at once, written as one batch, made durable by one
//! barrier, and completed in the order they came (group commit). The committed and the published index ride along with
//! the next batch, or are written after a short idle time; nobody waits for them.
//!
//! After the first error nothing is written any more and every request, waiting or new, is answered with it. It stops
//! when the queue is closed and empty.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use openraft::storage::IOFlushed;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    engine::{Engine, MetadataKey, Operation},
    flushes::Flushes,
    health::HealthReport,
    publication::Publication,
    record::{self, Identity},
    types::{LogId, TypeConfig, Vote},
    watermark::{Watermark, WatermarkFile},
};

/// Bytes of one batch: what an entry may have to wait for at most.
const BATCH: usize = 1024 * 1024;
/// Idle time after which the committed and published indexes are made durable by a barrier of their own.
const LAZY: Duration = Duration::from_millis(20);
/// Longest age of the stored published index under load.
const LAZY_UNDER_LOAD: Duration = Duration::from_millis(500);
/// How often the writer looks around when nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// Something to write, and whom to tell.
pub(super) struct Request {
    pub operations: Vec<Operation>,
    /// Set when the operations store this vote.
    pub vote: Option<Vote>,
    pub completion: Completion,
    /// Room in the queue, given back when the request is done.
    pub room: Option<OwnedSemaphorePermit>,
}

pub(super) enum Completion {
    Flushed(IOFlushed<TypeConfig>),
    Signal(oneshot::Sender<io::Result<()>>),
    Nobody,
}

impl Completion {
    fn complete(self, result: Result<(), &str>) {
        let result = result.map_err(|reason| io::Error::other(reason.to_owned()));
        match self {
            Self::Flushed(callback) => callback.io_completed(result),
            Self::Signal(sender) => drop(sender.send(result)), // The waiting side may have been cancelled.
            Self::Nobody => {}
        }
    }
}

/// What waits to be written.
#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Waiting>,
    changed: Condvar,
}

/// What the writer did, and what waits for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFigures {
    /// Bytes of the requests that wait.
    pub waiting_bytes: usize,
    /// Bytes that may wait.
    pub limit_bytes: usize,
    /// Batches written, each with one barrier.
    pub writes: u64,
    pub written_bytes: u64,
    /// Time that all of them took.
    pub spent: Duration,
    /// Time that the last one took.
    pub last: Duration,
    /// Of small batches alone.
    flushes: Flushes,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    figures: LogFigures,
    /// Told by openraft, not yet stored.
    committed: Option<LogId>,
    /// Those of the batch being written, so that a hang can be reported to them.
    in_flight: Vec<Completion>,
    busy_since: Option<Instant>,
    failure: Option<String>,
    closed: bool,
}

/// What the writer does next.
enum Work {
    Batch(Vec<Request>, Option<LogId>),
    Lazy(Option<LogId>),
    Stop,
}

impl Request {
    /// Bytes of its operations.
    fn size(&self) -> usize {
        self.operations.iter().map(Operation::size).sum()
    }
}

impl Queue {
    /// A queue in which `limit_bytes` may wait. Whoever submits keeps to it; it is stated here for the figures.
    pub fn new(limit_bytes: usize) -> Self {
        let queue = Self::default();
        queue.waiting().figures.limit_bytes = limit_bytes;
        queue
    }

    /// Puts a request at the end; it is completed, at once if the storage has failed.
    pub fn submit(&self, request: Request) -> io::Result<()> {
        let mut waiting = self.waiting();
        if let Some(failure) = waiting.failure.clone() {
            drop(waiting);
            request.completion.complete(Err(&failure));
            return Err(io::Error::other(failure));
        }
        waiting.figures.waiting_bytes += request.size();
        waiting.requests.push_back(request);
        drop(waiting);
        self.changed.notify_all();
        Ok(())
    }

    /// Stores `committed` when there is occasion to.
    pub fn note_committed(&self, committed: LogId) {
        let mut waiting = self.waiting();
        let idle = waiting.requests.is_empty() && waiting.committed.is_none();
        waiting.committed = Some(committed);
        drop(waiting);
        if idle {
            self.changed.notify_all();
        }
    }

    pub fn close(&self) {
        self.waiting().closed = true;
        self.changed.notify_all();
    }

    /// Nothing is written from now on; whoever waits is told. The first reason stays.
    fn fail(&self, reason: &str) {
        let mut waiting = self.waiting();
        let reason = waiting.failure.get_or_insert(reason.to_owned()).clone();
        let mut completions = std::mem::take(&mut waiting.in_flight);
        completions.extend(waiting.requests.drain(..).map(|r| r.completion));
        waiting.committed = None;
        waiting.figures.waiting_bytes = 0;
        drop(waiting);
        for completion in completions {
            completion.complete(Err(&reason));
        }
        self.changed.notify_all();
    }

    /// How long the batch in work has taken so far.
    pub fn busy_for(&self) -> Option<Duration> {
        self.waiting().busy_since.map(|since| since.elapsed())
    }

    /// The same, if somebody waits for what is written.
    pub fn holds_up_for(&self) -> Option<Duration> {
        let waiting = self.waiting();
        let is_waited_for = !(waiting.requests.is_empty() && waiting.in_flight.is_empty());
        let since = waiting.busy_since.filter(|_| is_waited_for);
        since.map(|since| since.elapsed())
    }

    pub fn figures(&self) -> LogFigures {
        self.waiting().figures
    }

    pub fn has_failed(&self) -> bool {
        self.waiting().failure.is_some()
    }

    fn next(&self) -> Work {
        let mut waiting = self.waiting();
        let mut deadline = Instant::now() + TICK;
        let mut lazy = false;
        loop {
            if waiting.failure.is_some() && waiting.closed {
                return Work::Stop;
            }
            if waiting.failure.is_none() {
                if !waiting.requests.is_empty() {
                    return waiting.take_batch();
                }
                if waiting.closed {
                    return match waiting.committed.take() {
                        None => Work::Stop,
                        committed => Work::Lazy(committed),
                    };
                }
                if waiting.committed.is_some() && !lazy {
                    lazy = true;
                    deadline = Instant::now() + LAZY;
                }
                if Instant::now() >= deadline {
                    return Work::Lazy(waiting.committed.take());
                }
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            let rest = if rest.is_zero() { TICK } else { rest };
            waiting = match self.changed.wait_timeout(waiting, rest) {
                Ok((waiting, _)) => waiting,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogFigures {
    /// What one flush of the disk typically took of late; none before there were enough to go by.
    pub fn flush(&self) -> Option<Duration> {
        self.flushes.typical()
    }

    /// The same, if that was within the last minute.
    pub fn fresh_flush(&self, now: Instant) -> Option<Duration> {
        self.flushes.typical_lately(now)
    }

    /// Whether a small batch was flushed after that; `None`: ever.
    pub(super) fn flushed_after(&self, then: Option<Instant>) -> bool {
        self.flushes.is_newer_than(then)
    }

    /// How long ago the last flush ended; none: there was none yet.
    pub(super) fn since_flush(&self) -> Option<Duration> {
        self.flushes.since_newest()
    }

    fn count(&mut self, bytes: usize, took: Duration, now: Instant) {
        /// Of a larger batch most of the time is its writing.
        const LARGEST: usize = 64 * 1024;
        self.writes += 1;
        self.written_bytes += bytes as u64;
        self.spent += took;
        self.last = took;
        if bytes <= LARGEST {
            self.flushes.note(took, now);
        }
    }
}

impl Waiting {
    fn take_batch(&mut self) -> Work {
        let mut bytes = 0;
        let mut batch = Vec::new();
        while bytes < BATCH
            && let Some(request) = self.requests.pop_front()
        {
            bytes += request.size();
            batch.push(request);
        }
        self.figures.waiting_bytes = self.figures.waiting_bytes.saturating_sub(bytes);
        Work::Batch(batch, self.committed.take())
    }
}

/// The thread's own things.
pub(super) struct Writer {
    pub engine: Arc<dyn Engine>,
    pub queue: Arc<Queue>,
    pub publication: Publication,
    pub health: HealthReport,
    /// None where the log itself is not on disk.
    pub watermark: Option<WatermarkFile>,
    /// Last durable log index.
    pub durable: Option<u64>,
    /// What is to be stored once the entry that it names is.
    pub committed: Option<LogId>,
    /// Truncations written so far.
    pub truncations: u64,
    /// Told of what the engine holds, so that caches may forget it: the last index, and `truncations`.
    pub written: Box<dyn Fn(Option<u64>, u64) + Send>,
}

impl Writer {
    pub fn run(mut self) {
        let mut stored_at = Instant::now();
        loop {
            match self.queue.next() {
                Work::Stop => break,
                Work::Batch(batch, committed) => {
                    self.write_batch(batch, committed);
                    self.settle();
                    if stored_at.elapsed() < LAZY_UNDER_LOAD {
                        continue;
                    }
                }
                Work::Lazy(committed) => {
                    self.write_committed(committed);
                    self.settle();
                }
            }
            self.store_published();
            stored_at = Instant::now();
        }
        self.store_published();
    }

    fn write_batch(&mut self, batch: Vec<Request>, committed: Option<LogId>) {
        let mut operations = Vec::new();
        let mut vote = None;
        let mut completions = Vec::new();
        let mut rooms = Vec::new();
        for request in batch {
            operations.extend(request.operations);
            vote = request.vote.or(vote);
            completions.push(request.completion);
            rooms.push(request.room);
        }
        let bytes = operations.iter().map(Operation::size).sum::<usize>();
        self.begin(completions);
        let written = self.write(operations, committed, vote);
        self.end(written, bytes);
        drop(rooms);
    }

    fn write_committed(&mut self, committed: Option<LogId>) {
        if committed.is_some() {
            self.begin(Vec::new());
            let written = self.write(Vec::new(), committed, None);
            self.end(written, 0);
        }
    }

    fn begin(&self, completions: Vec<Completion>) {
        let mut waiting = self.queue.waiting();
        waiting.in_flight = completions;
        waiting.busy_since = Some(Instant::now());
    }

    fn end(&self, written: Result<(), String>, bytes: usize) {
        let mut waiting = self.queue.waiting();
        if let Some(began) = waiting.busy_since.take() {
            let now = Instant::now();
            waiting
                .figures
                .count(bytes, now.saturating_duration_since(began), now);
        }
        if let Err(reason) = written {
            drop(waiting);
            return self.fail(&reason);
        }
        // Empty if the storage was given up for hanging in the meantime.
        let completions = std::mem::take(&mut waiting.in_flight);
        let given_up = waiting.failure.is_some();
        drop(waiting);
        if !given_up {
            self.publication.log_durable(self.durable);
        }
        for completion in completions {
            completion.complete(Ok(()));
        }
    }

    fn write(
        &mut self,
        mut operations: Vec<Operation>,
        committed: Option<LogId>,
        vote: Option<Vote>,
    ) -> Result<(), String> {
        let last = last_after(self.durable, &operations);
        self.committed = committed.or(self.committed.take());
        // An entry that waits for the next batch is not durable with this one.
        if let Some(committed) = self.committed.take_if(|it| Some(it.index) <= last) {
            let key = MetadataKey::Committed;
            let record = record::seal(Identity::Metadata(key), &committed);
            let record = record.map_err(|e| e.to_string())?;
            operations.push(Operation::Put { key, record });
        }
        self.engine.write(&operations).map_err(|e| e.to_string())?;
        self.engine.barrier().map_err(|e| e.to_string())?;
        let truncated = |operation: &&Operation| matches!(operation, Operation::Truncate { .. });
        self.truncations += operations.iter().filter(truncated).count() as u64;
        (self.written)(last, self.truncations);
        self.durable = last;
        match vote {
            Some(vote) => self.store_watermark(Some(vote)),
            None => Ok(()),
        }
    }

    /// What no request waits for, though the next ones may.
    fn settle(&mut self) {
        if self.queue.has_failed() {
            return;
        }
        self.begin(Vec::new());
        let settled = self.engine.settle().map_err(|e| e.to_string());
        self.queue.waiting().busy_since = None;
        if let Err(reason) = settled {
            self.fail(&reason);
        }
    }

    fn store_published(&mut self) {
        if self.queue.has_failed() {
            return;
        }
        self.begin(Vec::new());
        let stored = self.store_watermark(None);
        self.queue.waiting().busy_since = None;
        if let Err(reason) = stored {
            self.fail(&reason);
        }
    }

    fn store_watermark(&mut self, vote: Option<Vote>) -> Result<(), String> {
        let Some(file) = &mut self.watermark else {
            return Ok(());
        };
        let wanted = Watermark {
            vote: vote.or(file.current().vote),
            published: self.publication.published().max(file.current().published),
        };
        if wanted == *file.current() {
            return Ok(());
        }
        file.write(wanted)
            .map_err(|e| format!("cannot write {}: {e}", file.path().display()))
    }

    fn fail(&self, reason: &str) {
        give_up(&self.queue, &self.publication, &self.health, reason);
    }
}

/// Ends writing for good. Whoever is told that a write failed finds it in the health report already.
pub(super) fn give_up(
    queue: &Queue,
    publication: &Publication,
    health: &HealthReport,
    reason: &str,
) {
    health.failed(reason);
    publication.abandon();
    queue.fail(reason);
}

/// The last index of a log that ended at `last`, after the operations.
fn last_after(last: Option<u64>, operations: &[Operation]) -> Option<u64> {
    operations
        .iter()
        .fold(last, |last, operation| match operation {
            Operation::Append { index, .. } => Some(*index),
            Operation::Truncate { from } => last.min(from.checked_sub(1)),
            Operation::Purge { .. } | Operation::Put { .. } => last,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_flush_is_what_small_batches_took_lately() {
        let start = Instant::now();
        let mut figures = LogFigures::default();
        let ms = Duration::from_millis;
        figures.count(40 << 20, ms(1600), start);
        for _ in 0..7 {
            figures.count(100, ms(2), start);
        }
        assert_eq!(figures.flush(), None, "too few to go by");
        figures.count(100, ms(2), start);
        assert_eq!(figures.flush(), Some(ms(2)));
        // One that hangs is told by another alarm, and says nothing of the next.
        figures.count(100, ms(20_000), start);
        assert_eq!(figures.flush(), Some(ms(2)));
        for _ in 0..100 {
            figures.count(100, ms(100), start);
        }
        assert_eq!(figures.flush(), Some(ms(100)));
        assert_eq!(figures.fresh_flush(start + ms(60_001)), None);
        assert!(figures.fresh_flush(start + ms(60_000)).is_some());
    }

    #[test]
    fn a_write_that_nobody_waits_for_holds_nobody_up() {
        let queue = Queue::new(0);
        queue.waiting().busy_since = Some(Instant::now());
        assert!(queue.busy_for().is_some());
        assert_eq!(queue.holds_up_for(), None);
        let request = Request {
            operations: vec![],
            vote: None,
            completion: Completion::Nobody,
            room: None,
        };
        queue.submit(request).unwrap();
        assert!(queue.holds_up_for().is_some());
        queue.waiting().busy_since = None;
        assert_eq!(queue.holds_up_for(), None);
    }

    #[test]
    fn the_last_index_follows_the_operations_in_order() {
        let append = |index| Operation::Append {
            index,
            record: Bytes::new(),
        };
        let truncate = |from| Operation::Truncate { from };
        let purge = Operation::Purge { through: 3 };
        for (before, operations, after) in [
            (None, vec![], None),
            (None, vec![append(0), append(1)], Some(1)),
            (Some(9), vec![truncate(5)], Some(4)),
            (Some(9), vec![truncate(5), append(5)], Some(5)),
            (Some(9), vec![truncate(0)], None),
            (Some(9), vec![truncate(12)], Some(9)),
            (Some(9), vec![purge], Some(9)),
        ] {
            assert_eq!(last_after(before, &operations), after, "{operations:?}");
        }
    }
}
