//! The log and the vote, as openraft wants them, over an engine.
//!
//! Entries are readable as soon as `append` returns and acknowledged once they are durable. The newest ones are kept in
//! memory: replication and apply hardly ever read the disk. All writes go through one thread (`writer`), in order.
//!
//! The log is cut off at the front in two steps. openraft names the index up to which it needs no entries; they vanish
//! from its sight. They leave the disk only up to the *older* kept snapshot, so that a garbled newer one can be replaced
//! by replaying the log. A restart shows openraft what is really there.

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use bytes::Bytes;
use futures::{Stream, stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    engine::{Engine, EngineError, MetadataKey, Operation},
    record::{self, Identity},
    snapshot_file::SnapshotFiles,
    types::{Entry, LogId, TypeConfig, Vote},
    writer::{Completion, Queue, Request},
};
use crate::defect::{self, Defect};

/// Bytes read from disk or handed to replication at a time; a larger entry goes alone.
const READ: usize = 1024 * 1024;
/// The queue's room is counted in units of this many bytes.
const ROOM_UNIT: usize = 1024;

/// The log of this node. Clones are the same log.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<dyn Engine>,
    view: Arc<Mutex<View>>,
    queue: Arc<Queue>,
    room: Arc<Semaphore>,
    room_units: u32,
    snapshots: SnapshotFiles,
    writer: Option<JoinHandle<()>>,
}

/// What the log holds, as its readers see it.
#[derive(Debug)]
pub(super) struct View {
    /// Up to here entries are out of sight.
    pub purged: Option<LogId>,
    /// Up to here they are out of the engine too.
    pub removed: Option<LogId>,
    /// Index of the first entry in sight, if there is one.
    first: u64,
    /// The last entry, or `purged`.
    pub last: Option<LogId>,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    /// The newest entries, without gaps up to `last`: all that the engine may not have yet, and more.
    recent: VecDeque<Recent>,
    recent_bytes: usize,
    recent_limit: usize,
    /// Last index the engine has.
    written: Option<u64>,
    /// Counts truncations, so that a reader notices one.
    truncations: u64,
}

#[derive(Debug)]
struct Recent {
    entry: Entry,
    bytes: usize,
}

/// Where the log ends, for those who only want to know that.
#[derive(Clone, Debug)]
pub struct LogEnd(Arc<Mutex<View>>);

impl LogEnd {
    /// Index of the last entry, or of the snapshot that took its place. Never behind what this node has acknowledged,
    /// unlike openraft's metrics: those are reported once in a round of its loop.
    pub fn last_index(&self) -> Option<u64> {
        lock(&self.0).last_index()
    }
}

/// A stored entry or number is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum CorruptLog {
    #[error("entry {index}: {problem}")]
    Entry { index: u64, problem: String },
    #[error("the stored {what}: {problem}")]
    Metadata { what: &'static str, problem: String },
    #[error("{0}")]
    Engine(#[from] EngineError),
}

impl View {
    /// Reads and checks everything the engine holds.
    pub fn recover(engine: &dyn Engine, recent_limit: usize) -> Result<Self, CorruptLog> {
        let removed: Option<LogId> = stored(engine, MetadataKey::Purged, "purged index")?;
        let mut view = Self {
            purged: removed,
            removed,
            first: 0,
            last: removed,
            vote: stored(engine, MetadataKey::Vote, "vote")?,
            committed: stored(engine, MetadataKey::Committed, "committed index")?,
            recent: VecDeque::new(),
            recent_bytes: 0,
            recent_limit,
            written: None,
            truncations: 0,
        };
        loop {
            let next = view.next_index();
            let records = engine.read(next..u64::MAX, READ)?;
            if records.is_empty() {
                return Ok(view);
            }
            for (index, record) in records {
                view.recover_entry(index, &record)?;
            }
        }
    }

    fn recover_entry(&mut self, index: u64, record: &Bytes) -> Result<(), CorruptLog> {
        let corrupt = |index, problem: String| Err(CorruptLog::Entry { index, problem });
        let expected = self.next_index();
        if index != expected {
            return corrupt(
                expected,
                format!("missing, although entry {index} is there"),
            );
        }
        let entry = match decode_entry(index, record) {
            Ok(entry) => entry,
            Err(problem) => return corrupt(index, problem),
        };
        if Some(entry.log_id()) < self.last {
            return corrupt(index, "of an earlier term than the one before".to_owned());
        }
        self.push(entry, record.len());
        self.written = Some(index);
        self.forget();
        Ok(())
    }

    /// Removes what an interrupted write or purge left in the engine.
    pub fn clean(&self, engine: &dyn Engine) -> Result<(), EngineError> {
        let from = self.next_index();
        let mut leftovers = vec![Operation::Truncate { from }];
        if let Some(removed) = self.removed {
            let through = removed.index;
            leftovers.push(Operation::Purge { through });
        }
        engine.write(&leftovers)?;
        engine.barrier()
    }

    /// Nothing was ever stored: neither a vote nor an entry.
    pub fn is_blank(&self) -> bool {
        self.vote.is_none() && self.last.is_none() && self.committed.is_none()
    }

    pub fn last_index(&self) -> Option<u64> {
        self.last.map(|id| id.index)
    }

    fn next_index(&self) -> u64 {
        self.last_index().map_or(0, |index| index.saturating_add(1))
    }

    fn push(&mut self, entry: Entry, bytes: usize) {
        if self.last == self.purged {
            self.first = entry.log_id.index;
        }
        self.last = Some(entry.log_id());
        self.recent.push_back(Recent { entry, bytes });
        self.recent_bytes += bytes;
    }

    /// Keeps the newest entries within the limit, and those the engine does not have.
    fn forget(&mut self) {
        while self.recent_bytes > self.recent_limit
            && let Some(first) = self.recent.front()
            && Some(first.entry.log_id.index) <= self.written
        {
            self.recent_bytes -= first.bytes;
            self.recent.pop_front();
        }
    }

    fn truncate(&mut self, from: u64) {
        while let Some(last) = self.recent.back()
            && last.entry.log_id.index >= from
        {
            self.recent_bytes -= last.bytes;
            self.recent.pop_back();
        }
        self.written = self.written.min(from.checked_sub(1));
        self.truncations += 1;
    }

    fn purge(&mut self, id: LogId) {
        while let Some(first) = self.recent.front()
            && first.entry.log_id.index <= id.index
        {
            self.recent_bytes -= first.bytes;
            self.recent.pop_front();
        }
        self.purged = self.purged.max(Some(id));
        self.first = self.first.max(id.index.saturating_add(1));
        self.last = self.last.max(self.purged);
    }

    /// The engine has everything up to `last`, after that many truncations.
    pub fn written(&mut self, last: Option<u64>, truncations: u64) {
        if truncations == self.truncations {
            self.written = last;
            self.forget();
        }
    }

    /// The part of `range` that is in the log, split into what to read from the engine and what is at hand.
    fn plan(&self, range: &Range<u64>) -> Plan {
        let start = range.start.max(self.first);
        let end = range.end.min(self.next_index()).max(start);
        let at_hand = self.recent.front().map_or(end, |r| r.entry.log_id.index);
        let split = at_hand.clamp(start, end);
        let skip = usize::try_from(split.saturating_sub(at_hand)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut recent = Vec::new();
        for cached in self.recent.iter().skip(skip) {
            if cached.entry.log_id.index >= end || bytes > READ {
                break;
            }
            bytes += cached.bytes;
            recent.push(cached.entry.clone());
        }
        Plan {
            stored: start..split,
            recent,
            truncations: self.truncations,
            purged: self.purged,
        }
    }
}

struct Plan {
    stored: Range<u64>,
    recent: Vec<Entry>,
    truncations: u64,
    purged: Option<LogId>,
}

impl LogStore {
    pub(super) fn new(
        engine: Arc<dyn Engine>,
        view: Arc<Mutex<View>>,
        queue: Arc<Queue>,
        queue_bytes: usize,
        snapshots: SnapshotFiles,
        writer: JoinHandle<()>,
    ) -> Self {
        let room_units = u32::try_from(queue_bytes / ROOM_UNIT).unwrap_or(u32::MAX >> 3);
        let room_units = room_units.clamp(1, u32::MAX >> 3);
        let room = Arc::new(Semaphore::new(room_units as usize));
        let writer = Some(writer);
        Self {
            shared: Arc::new(Shared {
                engine,
                view,
                queue,
                room,
                room_units,
                snapshots,
                writer,
            }),
        }
    }

    pub fn end(&self) -> LogEnd {
        LogEnd(Arc::clone(&self.shared.view))
    }

    /// Entries from `range.start` on: at least one if there is one, then as many as fit in `READ` bytes.
    async fn read_some(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        loop {
            let plan = self.view().plan(&range);
            if plan.stored.is_empty() {
                return Ok(plan.recent);
            }
            let entries = self.read_stored(plan.stored.clone()).await;
            let (changed, purged) = {
                let view = self.view();
                let changed = view.truncations != plan.truncations;
                (changed, view.purged != plan.purged)
            };
            match entries {
                Ok(entries) if !changed && !entries.is_empty() => return Ok(entries),
                _ if changed || purged => continue,
                Ok(_) => {
                    let index = plan.stored.start;
                    return Err(io::Error::other(format!("log entry {index} is missing")));
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Reads from the engine, away from the asynchronous threads.
    async fn read_stored(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        let engine = self.shared.engine.clone();
        let read = move || {
            let mut expected = range.start;
            let mut entries = Vec::new();
            for (index, record) in engine.read(range, READ).map_err(io::Error::other)? {
                if index != expected {
                    // The front is being purged, or an entry is gone; who asks again will learn which.
                    break;
                }
                expected = index.saturating_add(1);
                let entry = decode_entry(index, &record)
                    .map_err(|problem| io::Error::other(format!("log entry {index}: {problem}")))?;
                entries.push(entry);
            }
            Ok(entries)
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(io::Error::other)?
    }

    async fn read_all(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        let mut all = self.read_some(range.clone()).await?;
        while let Some(last) = all.last() {
            let more = self
                .read_some(last.log_id.index.saturating_add(1)..range.end)
                .await?;
            if more.is_empty() {
                break;
            }
            all.extend(more);
        }
        Ok(all)
    }

    /// Waits for room in the queue. A request larger than the whole queue waits until it is empty.
    async fn room(&self, operations: &[Operation]) -> io::Result<OwnedSemaphorePermit> {
        let bytes: usize = operations.iter().map(Operation::size).sum();
        let units = u32::try_from(bytes.div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX);
        let units = units.clamp(1, self.shared.room_units);
        let room = self.shared.room.clone().acquire_many_owned(units).await;
        room.map_err(io::Error::other)
    }

    async fn submit(&self, operations: Vec<Operation>, completion: Completion) -> io::Result<()> {
        let room = Some(self.room(&operations).await?);
        self.shared.queue.submit(Request {
            operations,
            vote: None,
            completion,
            room,
        })
    }

    /// The last log id that may leave the disk when openraft needs nothing up to `purged`.
    async fn removable(&self, purged: LogId) -> io::Result<Option<LogId>> {
        let (last, removed) = {
            let view = self.view();
            (view.last, view.removed)
        };
        if last < Some(purged) {
            return Ok(Some(purged)); // A snapshot took the place of the whole log.
        }
        let Some(floor) = self.shared.snapshots.floor() else {
            return Ok(None);
        };
        let floor = floor.min(purged.index);
        if removed.is_some_and(|removed| removed.index >= floor) {
            return Ok(None);
        }
        if floor == purged.index {
            return Ok(Some(purged));
        }
        let entry = self.read_stored(floor..floor.saturating_add(1)).await?;
        Ok(entry.first().map(|entry| entry.log_id()))
    }

    fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.shared.view)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read_all(half_open(&range)).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.view().vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read_some(start..end).await
    }

    /// Reads piece by piece: what is applied may be more than should be in memory at once.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let pieces = stream::unfold(
            (self.clone(), half_open(&range)),
            |(store, range)| async move {
                if range.is_empty() {
                    return None;
                }
                let read = store.read_some(range.clone()).await;
                let rest = match &read {
                    Ok(entries) => entries.last()?.log_id.index.saturating_add(1)..range.end,
                    Err(_) => range.end..range.end,
                };
                let items: Vec<_> = match read {
                    Ok(entries) => entries.into_iter().map(Ok).collect(),
                    Err(e) => vec![Err(e)],
                };
                Some((stream::iter(items), (store, rest)))
            },
        );
        futures::StreamExt::flatten(Box::pin(pieces))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let view = self.view();
        Ok(LogState {
            last_purged_log_id: view.purged,
            last_log_id: view.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        if defect::is(Defect::VoteNotPersisted) {
            self.view().vote = Some(*vote);
            return Ok(());
        }
        let key = MetadataKey::Vote;
        let operations = vec![put(key, vote)?];
        let (sender, done) = oneshot::channel();
        let room = Some(self.room(&operations).await?);
        self.shared.queue.submit(Request {
            operations,
            vote: Some(*vote),
            completion: Completion::Signal(sender),
            room,
        })?;
        done.await.map_err(io::Error::other)??;
        self.view().vote = Some(*vote);
        Ok(())
    }

    /// Stored with the next batch or soon after: a restart may find an older one, and hears the rest from the leader.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.view().committed = Some(committed);
            self.shared.queue.note_committed(committed);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.view().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut operations = Vec::new();
        let mut sized = Vec::new();
        for entry in entries {
            let index = entry.log_id.index;
            let record = record::seal(Identity::Entry(index), &entry).map_err(io::Error::other)?;
            sized.push((entry, record.len()));
            operations.push(Operation::Append { index, record });
        }
        let room = Some(self.room(&operations).await?);
        {
            let mut view = self.view();
            for (entry, bytes) in sized {
                view.push(entry, bytes);
            }
        }
        self.shared.queue.submit(Request {
            operations,
            vote: None,
            completion: Completion::Flushed(callback),
            room,
        })
    }

    /// Durable before any entry that is appended afterwards.
    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |id| id.index.saturating_add(1));
        {
            let mut view = self.view();
            if from >= view.next_index() {
                return Ok(());
            }
            view.truncate(from);
            view.last = last.max(view.purged);
        }
        self.submit(vec![Operation::Truncate { from }], Completion::Nobody)
            .await
    }

    async fn purge(&mut self, id: LogId) -> Result<(), io::Error> {
        let removable = self.removable(id).await?;
        self.view().purge(id);
        let Some(removable) = removable else {
            return Ok(());
        };
        self.view().removed = Some(removable);
        // The number first: entries that are still there below it are leftovers.
        let operations = vec![
            put(MetadataKey::Purged, &removable)?,
            Operation::Purge {
                through: removable.index,
            },
        ];
        self.submit(operations, Completion::Nobody).await
    }
}

impl Drop for Shared {
    /// Ends the writer after what it has to do, so that the log can be opened again at once.
    fn drop(&mut self) {
        self.queue.close();
        if self.queue.busy_for().is_some() && self.queue.has_failed() {
            return; // It hangs; nobody shall hang with it.
        }
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the log writer panicked");
        }
    }
}

fn decode_entry(index: u64, record: &[u8]) -> Result<Entry, String> {
    let entry: Entry = record::open(Identity::Entry(index), record).map_err(|e| e.to_string())?;
    if entry.log_id.index != index {
        return Err(format!("it says it is entry {}", entry.log_id.index));
    }
    Ok(entry)
}

fn stored<T: DeserializeOwned>(
    engine: &dyn Engine,
    key: MetadataKey,
    what: &'static str,
) -> Result<Option<T>, CorruptLog> {
    let Some(record) = engine.metadata(key)? else {
        return Ok(None);
    };
    match record::open(Identity::Metadata(key), &record) {
        Ok(value) => Ok(Some(value)),
        Err(e) => Err(CorruptLog::Metadata {
            what,
            problem: e.to_string(),
        }),
    }
}

fn put<T: Serialize>(key: MetadataKey, value: &T) -> io::Result<Operation> {
    let record = record::seal(Identity::Metadata(key), value).map_err(io::Error::other)?;
    Ok(Operation::Put { key, record })
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
