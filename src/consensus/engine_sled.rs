//! The engine on sled: a tree that is one file that grows, and a journal in front of it.
//!
//! sled's `flush` is no barrier on Linux: it ends in `sync_file_range`, which neither empties the disk's cache nor makes
//! the file's new extents known. After it we `fdatasync` the file ourselves. That is two waits for the disk and two changes of
//! threads, so it is not done for each write: a write goes into the [`Journal`], durably, and that is what is waited for. The tree
//! gets it afterwards, when nobody waits, when somebody reads, or when the journal begins anew; its own barrier follows when some
//! hundred of them are in it. What is too large for the journal goes into the tree at once.
//!
//! A page of sled's tree that outgrows a quarter of a segment (128 KiB) is written to a file of its own under `blobs/`,
//! and each such file and its directory would need an fsync too. We make none instead: a record is cut into chunks of at
//! most 4 KiB, so that the 17 values after which a page is split always fit. One file then holds everything, one
//! `fdatasync` is the whole barrier, and large records survive like small ones. The rejected alternative (fsync of every
//! new blob) also depends on sled's order of deleting blobs, which nobody promises.
//!
//! sled reuses the space of old pages once it believes the new ones to be safe, which it does without a barrier: after two
//! more segments, 1 MiB. It writes several bytes for each of ours, so a barrier is made, even inside one write, before what
//! it wrote since the last one can have reached that.
//!
//! Keys: those of entries (`tree_entries`), `m | key (1)`, and `g` for the generations of the journal that the tree has.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use rand::RngExt;
use tempfile::TempDir;

use super::{
    engine::{Engine, EngineError, Fault, MetadataKey, Operation, Subject, Verb},
    journal::{self, Journal, JournalError},
    tree_entries::{Assembly, CHUNK, Run, entries_end, entries_of_run, entry_key, split_entry_key},
};
use crate::defect::{self, Defect};

/// Bytes sled writes for one of ours, and for each value besides: measured at 5 to 7, and 1.5 KiB; page splits and the
/// cleaning of old segments are in it.
const COST_OF_BYTE: usize = 7;
const COST_OF_VALUE: usize = 2048;
/// Bytes sled may have written after which a barrier is made.
const UNBARRIERED: usize = 1024 * 1024;
/// The same while nobody waits for it.
const SETTLED: usize = UNBARRIERED / 2;
/// Operations, and octets of them, that the tree may lack once nobody waits: enough that of the many numbers that are put under the
/// same key only one goes into it, and so few that what waits behind them waits a millisecond or two.
const BEHIND_OPERATIONS: usize = 128;
const BEHIND_BYTES: usize = 64 * 1024;
/// How many generations of the journal are wholly in the tree (8, big endian).
const GENERATIONS: &[u8] = b"g";
/// Bytes collected before they are handed to sled.
const BATCH: usize = 64 * 1024;
/// sled's page cache; the log store keeps its own cache of recent entries.
const CACHE: u64 = 32 * 1024 * 1024;

/// All that sled's file of settings ever holds: ours are constant, and so is its version (=0.34.7). The last four octets are
/// a checksum.
const SETTINGS: &[u8] =
    b"segment_size: 524288\nuse_compression: false\nversion: 0.34\n\x76\x19\x51\xc1";

/// How a write is made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Barrier {
    #[default]
    Durable,
    /// sled's `flush` alone: what the power-loss test must catch. No released program can choose it.
    #[cfg(test)]
    FlushOnly,
}

/// A log in a directory of its own.
pub struct SledEngine {
    directory: PathBuf,
    /// Always there but in `drop`.
    db: Option<sled::Db>,
    file: File,
    /// Locked before `behind` where both are.
    ahead: Mutex<Ahead>,
    behind: Mutex<Behind>,
    barrier: Barrier,
    /// The tree has no entry from this index on; the highest there is while that is not known.
    end: AtomicU64,
    unbarriered: AtomicUsize,
    failed: AtomicBool,
    /// Removed with the engine. The file says by its lock that it is in use.
    _scratch: Option<(TempDir, File)>,
}

/// What goes in front of the tree.
struct Ahead {
    journal: Journal,
    /// Written, and not durable.
    waiting: Vec<Operation>,
}

/// What is durable in the journal, and not in the tree yet: at most what the journal holds.
#[derive(Default)]
struct Behind {
    operations: Vec<Operation>,
    bytes: usize,
    /// Some of it did not get into the tree, nor is it here any more.
    is_lost: bool,
}

impl SledEngine {
    /// Opens the log in `directory`, or makes one. On return all of its files are known to their directories for good.
    pub fn open(directory: &Path, barrier: Barrier) -> Result<Self, EngineError> {
        let fail = |trouble: Trouble| trouble.error(Verb::Open, Subject::Log, directory);
        fs::create_dir_all(directory).map_err(|e| fail(e.into()))?;
        remove_unfinished(directory).map_err(|e| fail(e.into()))?;
        check_settings(directory).map_err(fail)?;
        let open = || {
            let config = sled::Config::new().path(directory);
            let config = config.flush_every_ms(None).cache_capacity(CACHE);
            Ok(config.open()?)
        };
        let db = guarded(open).map_err(|trouble| fail(trouble.met_at_open()))?;
        let found = guarded(|| open_journal(&db, directory)).map_err(fail)?;
        let file = sync_files(directory).map_err(|e| fail(e.into()))?;
        let engine = Self {
            directory: directory.to_owned(),
            db: Some(db),
            file,
            ahead: Mutex::new(Ahead {
                journal: found.journal,
                waiting: Vec::new(),
            }),
            behind: Mutex::default(),
            barrier,
            end: AtomicU64::new(u64::MAX),
            unbarriered: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            _scratch: None,
        };
        engine.apply(&found.operations)?;
        engine.close_generation(&mut engine.ahead())?;
        Ok(engine)
    }

    /// Opens a copy of the log in memory, to read what is in it: sled writes when it opens a log, and a full disk lets it
    /// not. Nothing reaches the disk.
    pub fn open_copy(directory: &Path) -> Result<Self, EngineError> {
        let fail = |trouble: Trouble| trouble.error(Verb::Open, Subject::Log, directory);
        let copy = copy_to_memory(directory).map_err(|e| fail(e.into()))?;
        let mut engine = Self::open(copy.0.path(), Barrier::Durable)?;
        engine._scratch = Some(copy);
        Ok(engine)
    }

    /// Runs something that changes the database. After one failure all others fail: sled cannot say what it wrote.
    fn change(
        &self,
        verb: Verb,
        work: impl FnOnce(&sled::Db) -> Result<(), Trouble>,
    ) -> Result<(), EngineError> {
        let result = match &self.db {
            Some(db) if !self.failed.load(Ordering::Acquire) => guarded(|| work(db)),
            _ => Err(Trouble::ended()),
        };
        result.map_err(|trouble| {
            self.failed.store(true, Ordering::Release);
            trouble.error(verb, Subject::Log, &self.directory)
        })
    }

    fn look<T>(
        &self,
        subject: Subject,
        work: impl FnOnce(&sled::Db) -> Result<T, Trouble>,
    ) -> Result<T, EngineError> {
        let db = self.db.as_ref().ok_or_else(Trouble::ended);
        db.and_then(|db| guarded(|| work(db)))
            .map_err(|trouble| trouble.error(Verb::Read, subject, &self.directory))
    }

    fn add(&self, pending: &mut Pending, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        pending.bytes += key.len() + value.len();
        pending.changes.push((key.into(), Some(value.into())));
        self.pass_on(pending, BATCH)
    }

    fn append(&self, pending: &mut Pending, index: u64, record: &Bytes) -> Result<(), EngineError> {
        let count = record.len().div_ceil(CHUNK).max(1);
        let count = u32::try_from(count).map_err(|_| {
            let subject = Subject::Entries(index..index.saturating_add(1));
            Trouble::other("it is too large").error(Verb::Write, subject, &self.directory)
        })?;
        for (chunk, bytes) in (0u32..).zip(record.chunks(CHUNK)).skip(1) {
            self.add(pending, &entry_key(index, chunk), bytes)?;
        }
        let mut head = BytesMut::with_capacity(4 + CHUNK.min(record.len()));
        head.put_u32(count);
        head.put_slice(record.get(..CHUNK).unwrap_or(record));
        self.add(pending, &entry_key(index, 0), &head)
    }

    /// Removes keys in the order of `keys`.
    fn remove(
        &self,
        pending: &mut Pending,
        keys: impl Fn(&sled::Db) -> Box<dyn Iterator<Item = sled::Result<sled::IVec>>>,
    ) -> Result<(), EngineError> {
        // What is pending must be visible to the search.
        self.pass_on(pending, 0)?;
        let Some(db) = &self.db else { return Ok(()) };
        let fail = |trouble: Trouble| trouble.error(Verb::Read, Subject::Log, &self.directory);
        let mut keys = guarded(|| Ok(keys(db))).map_err(fail)?;
        while let Some(key) = guarded(|| Ok(keys.next().transpose()?)).map_err(fail)? {
            pending.bytes += key.len();
            pending.changes.push((key, None));
            self.pass_on(pending, BATCH)?;
        }
        self.pass_on(pending, 0)
    }

    /// Hands the pending changes to sled once they are larger than `limit`, and makes a barrier when one is due.
    ///
    /// One by one: what sled recovers is a prefix of what it was given, and every prefix of ours is sound. Its own batches
    /// lose the order, and cost a write and a wait of their own.
    fn pass_on(&self, pending: &mut Pending, limit: usize) -> Result<(), EngineError> {
        let values = pending.changes.len();
        if pending.bytes <= limit && values <= limit / 256 {
            return Ok(());
        }
        let pending = std::mem::take(pending);
        let cost = pending.bytes * COST_OF_BYTE + values * COST_OF_VALUE;
        if self.unbarriered.fetch_add(cost, Ordering::AcqRel) + cost > UNBARRIERED {
            self.flush()?;
            self.unbarriered.store(cost, Ordering::Release);
        }
        self.change(Verb::Write, |db| {
            for (key, value) in pending.changes {
                match value {
                    Some(value) => db.insert(key, value)?,
                    None => db.remove(key)?,
                };
            }
            Ok(())
        })
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn behind(&self) -> MutexGuard<'_, Behind> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the tree what it lacks of the journal.
    fn catch_up(&self) -> Result<(), EngineError> {
        // Held meanwhile: who reads must find all of it.
        let mut behind = self.behind();
        if behind.is_lost {
            return Err(Trouble::ended().error(Verb::Write, Subject::Log, &self.directory));
        }
        if behind.operations.is_empty() {
            return Ok(());
        }
        // Unless all of it gets there the journal is all that has it: the next start does it again.
        behind.is_lost = true;
        let operations = std::mem::take(&mut behind.operations);
        let done = self.apply(&last_puts_alone(operations));
        match done {
            Ok(()) => *behind = Behind::default(),
            Err(_) => self.failed.store(true, Ordering::Release),
        }
        done
    }

    /// Whether a barrier waits for the disk.
    fn is_durable(&self) -> bool {
        match self.barrier {
            Barrier::Durable => !defect::is(Defect::BarrierWithoutFsync),
            #[cfg(test)]
            Barrier::FlushOnly => false,
        }
    }

    /// Makes the tree have everything, durably, while the journal's generation goes on.
    #[cfg(test)]
    pub fn spill(&self) {
        self.catch_up().unwrap();
        self.flush().unwrap();
    }

    #[cfg(test)]
    pub fn tree(&self) -> &sled::Db {
        self.db.as_ref().unwrap()
    }

    /// Makes everything that the tree was given durable.
    fn flush(&self) -> Result<(), EngineError> {
        self.change(Verb::Flush, |db| {
            db.flush()?;
            match self.is_durable() {
                true => Ok(self.file.sync_data()?),
                false => Ok(()),
            }
        })?;
        self.unbarriered.store(0, Ordering::Release);
        Ok(())
    }

    /// Makes the tree durable, and with it that it has all of the journal, which begins anew.
    fn close_generation(&self, ahead: &mut Ahead) -> Result<(), EngineError> {
        self.catch_up()?;
        let generation = ahead.journal.generation();
        self.change(Verb::Write, |db| {
            db.insert(GENERATIONS, &generation.to_be_bytes())?;
            Ok(())
        })?;
        self.flush()?;
        ahead.journal.restart();
        Ok(())
    }

    /// Into the journal, durably; the tree gets it later.
    fn write_ahead(
        &self,
        ahead: &mut Ahead,
        operations: Vec<Operation>,
    ) -> Result<(), EngineError> {
        let body = journal::encode(&operations);
        if !ahead.journal.has_room(body.len()) {
            self.close_generation(ahead)?;
        }
        self.change(Verb::Flush, |_| {
            Ok(ahead.journal.append(&body, self.is_durable())?)
        })?;
        let mut behind = self.behind();
        behind.bytes += body.len();
        behind.operations.extend(operations);
        Ok(())
    }

    /// Into the tree alone. The journal must have nothing that could be done again after it.
    fn write_at_once(
        &self,
        ahead: &mut Ahead,
        operations: &[Operation],
    ) -> Result<(), EngineError> {
        if !ahead.journal.is_empty() {
            self.close_generation(ahead)?;
        }
        self.apply(operations)?;
        self.flush()
    }

    /// Changes the tree.
    fn apply(&self, operations: &[Operation]) -> Result<(), EngineError> {
        let mut pending = Pending::default();
        let mut run = Run::default();
        for operation in operations {
            match operation {
                Operation::Append { index, record } => {
                    if run.is_empty() || !run.takes(*index, record) {
                        self.put_run(&mut pending, &mut run)?;
                        // The journal done again brings entries as they were before others took their place, and runs cut otherwise:
                        // of two that overlap a truncation would cut only one.
                        self.end_at(&mut pending, *index)?;
                    }
                    match Run::is_for(record) {
                        true => run.push(*index, record),
                        false => self.append(&mut pending, *index, record)?,
                    }
                    self.end.store(index.saturating_add(1), Ordering::Release);
                }
                // What it says may be of the entries before it.
                Operation::Put { key, record } => {
                    self.put_run(&mut pending, &mut run)?;
                    self.add(&mut pending, &metadata_key(*key), record)?;
                }
                Operation::Truncate { from } => {
                    self.put_run(&mut pending, &mut run)?;
                    self.end_at(&mut pending, *from)?;
                }
                Operation::Purge { through } => {
                    self.put_run(&mut pending, &mut run)?;
                    self.purge(&mut pending, *through)?;
                }
            }
        }
        self.put_run(&mut pending, &mut run)?;
        self.pass_on(&mut pending, 0)
    }

    fn put_run(&self, pending: &mut Pending, run: &mut Run) -> Result<(), EngineError> {
        if run.is_empty() {
            return Ok(());
        }
        let (key, value) = run.take();
        self.add(pending, &key, &value)
    }

    /// Removes what is there from `index` on, the last one first.
    fn end_at(&self, pending: &mut Pending, index: u64) -> Result<(), EngineError> {
        if index >= self.end.load(Ordering::Acquire) {
            return Ok(());
        }
        let range = entry_key(index, 0)..entries_end();
        self.remove(pending, move |db| {
            Box::new(heads_first(db.range(range.clone()).keys().rev()))
        })?;
        if let Some(before) = self.run_across(index)? {
            let (key, value) = run_of(before.range(..index)).take();
            self.add(pending, &key, &value)?;
        }
        self.end.store(index, Ordering::Release);
        Ok(())
    }

    /// Removes what is there up to and including `through`, the first one first.
    fn purge(&self, pending: &mut Pending, through: u64) -> Result<(), EngineError> {
        self.pass_on(pending, 0)?;
        let next = through.saturating_add(1);
        if let Some(across) = self.run_across(next)? {
            let (key, value) = run_of(across.range(next..)).take();
            self.add(pending, &key, &value)?;
        }
        let range = entry_key(0, 0)..=entry_key(through, u32::MAX);
        self.remove(pending, move |db| Box::new(db.range(range.clone()).keys()))
    }

    /// The entries of the run that holds the one before `index` and the one at `index`, if there is one.
    fn run_across(&self, index: u64) -> Result<Option<BTreeMap<u64, Bytes>>, EngineError> {
        let subject = Subject::Entries(index..index.saturating_add(1));
        self.look(subject, |db| {
            let Some(item) = db.range(entry_key(0, 0)..entry_key(index, 0)).next_back() else {
                return Ok(None);
            };
            let (key, value) = item?;
            let Some((first, 0)) = split_entry_key(&key) else {
                return Ok(None);
            };
            let Some(entries) = entries_of_run(first, &value) else {
                return Ok(None);
            };
            let entries = entries.map_err(Trouble::corrupt)?.into_iter();
            let entries: BTreeMap<_, _> = entries
                .map(|(at, record)| (at, Bytes::copy_from_slice(record)))
                .collect();
            Ok(Some(entries).filter(|entries| entries.contains_key(&index)))
        })
    }
}

impl Engine for SledEngine {
    fn write(&self, operations: &[Operation]) -> Result<(), EngineError> {
        // Nothing may be in the tree that is not in the journal: doing the journal again would not end at a prefix.
        self.ahead().waiting.extend_from_slice(operations);
        Ok(())
    }

    fn barrier(&self) -> Result<(), EngineError> {
        let mut ahead = self.ahead();
        let operations = std::mem::take(&mut ahead.waiting);
        if operations.is_empty() {
            return self.change(Verb::Flush, |_| Ok(()));
        }
        let size: usize = operations.iter().map(Operation::size).sum();
        match size <= journal::LARGEST {
            true => self.write_ahead(&mut ahead, operations),
            false => self.write_at_once(&mut ahead, &operations),
        }
    }

    fn settle(&self) -> Result<(), EngineError> {
        let is_far_behind = {
            let behind = self.behind();
            behind.operations.len() >= BEHIND_OPERATIONS || behind.bytes >= BEHIND_BYTES
        };
        if is_far_behind {
            self.catch_up()?;
        }
        match self.unbarriered.load(Ordering::Acquire) > SETTLED {
            true => self.close_generation(&mut self.ahead()),
            false => Ok(()),
        }
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<(u64, Bytes)>, EngineError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        self.catch_up()?;
        let subject = Subject::Entries(range.clone());
        self.look(subject, |db| {
            let mut entries = Assembly::new(range.clone(), max_bytes);
            // A run may begin before the first entry that is wanted.
            let first = entry_key(range.start, 0);
            let before = db.range(entry_key(0, 0)..=first).next_back().transpose()?;
            let from = before.map_or(sled::IVec::from(&first), |(key, _)| key);
            for item in db.range(from..sled::IVec::from(&entry_key(range.end, 0))) {
                let (key, value) = item?;
                let (index, chunk) = split_entry_key(&key)
                    .ok_or_else(|| Trouble::corrupt("a key of another form"))?;
                if chunk == 0 && entries.is_full() {
                    break;
                }
                entries
                    .add(index, chunk, &value)
                    .map_err(Trouble::corrupt)?;
            }
            entries.finish().map_err(Trouble::corrupt)
        })
    }

    fn metadata(&self, key: MetadataKey) -> Result<Option<Bytes>, EngineError> {
        self.catch_up()?;
        self.look(Subject::Metadata(key), |db| {
            let value = db.get(metadata_key(key))?;
            Ok(value.map(|value| Bytes::copy_from_slice(&value)))
        })
    }

    fn place(&self) -> String {
        self.directory.display().to_string()
    }
}

impl Drop for SledEngine {
    /// sled syncs when it is dropped, and panics when that fails.
    fn drop(&mut self) {
        let db = self.db.take();
        if quietly(|| drop(db)).is_err() {
            tracing::error!(log = %self.place(), "the log was not closed cleanly");
        }
    }
}

#[derive(Default)]
struct Pending {
    /// In order; without a value the key is removed.
    changes: Vec<(sled::IVec, Option<sled::IVec>)>,
    bytes: usize,
}

/// Keys of entries, the last entry first: of each the first chunk, without which the others are leftovers, before those.
fn heads_first(
    keys: impl Iterator<Item = sled::Result<sled::IVec>>,
) -> impl Iterator<Item = sled::Result<sled::IVec>> {
    let mut begun = None;
    keys.flat_map(move |key| {
        let place = key.as_ref().ok().and_then(|key| split_entry_key(key));
        let head = match place {
            // Of more than one chunk: given before them.
            Some((index, 0)) if begun == Some(index) => return [None, None],
            Some((index, chunk)) if chunk > 0 && begun != Some(index) => {
                begun = Some(index);
                Some(Ok(sled::IVec::from(&entry_key(index, 0))))
            }
            _ => None,
        };
        [head, Some(key)]
    })
    .flatten()
}

fn run_of<'a>(entries: impl Iterator<Item = (&'a u64, &'a Bytes)>) -> Run {
    let mut run = Run::default();
    entries.for_each(|(index, record)| run.push(*index, record));
    run
}

/// The operations without those that put what a later one puts again. Entries and their removals keep their order; what is put
/// beside them is under keys of its own.
fn last_puts_alone(mut operations: Vec<Operation>) -> Vec<Operation> {
    let mut seen = Vec::new();
    operations.reverse();
    operations.retain(|operation| match operation {
        Operation::Put { key, .. } if seen.contains(key) => false,
        Operation::Put { key, .. } => {
            seen.push(*key);
            true
        }
        _ => true,
    });
    operations.reverse();
    operations
}

fn metadata_key(key: MetadataKey) -> [u8; 2] {
    [b'm', key as u8]
}

/// Why sled or the file system could not do something.
struct Trouble {
    fault: Fault,
    reason: String,
}

impl Trouble {
    fn new(fault: Fault, reason: impl ToString) -> Self {
        Self {
            fault,
            reason: reason.to_string(),
        }
    }

    fn other(reason: impl ToString) -> Self {
        Self::new(Fault::Other, reason)
    }

    fn corrupt(reason: impl ToString) -> Self {
        Self::new(Fault::Corrupt, reason)
    }

    fn ended() -> Self {
        Self::new(Fault::Ended, "an earlier write failed; restart the node")
    }

    /// sled reports a lock that is held as an ordinary error.
    fn met_at_open(mut self) -> Self {
        if self.reason.contains("could not acquire lock") {
            self.fault = Fault::Busy;
        }
        self
    }

    /// sled could make nothing of what lies in its files.
    fn unreadable() -> Self {
        Self::corrupt("its files db and snap.* are not what was written")
    }

    fn error(self, verb: Verb, subject: Subject, directory: &Path) -> EngineError {
        EngineError {
            verb,
            subject,
            place: directory.display().to_string(),
            fault: self.fault,
            reason: self.reason,
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::new(Fault::NoSpace, e)
            }
            // sled reads only what it believes to be there.
            io::ErrorKind::UnexpectedEof => Self::corrupt("its file db ends too early"),
            _ => Self::other(e),
        }
    }
}

impl From<sled::Error> for Trouble {
    fn from(e: sled::Error) -> Self {
        match e {
            sled::Error::Io(e) => e.into(),
            sled::Error::Corruption { .. }
            | sled::Error::ReportableBug(_)
            | sled::Error::Unsupported(_) => Self::unreadable(),
            e => Self::other(e),
        }
    }
}

/// Runs sled, which may panic when it meets a garbled file. Such a panic is the caller's error to tell, and nobody is shown
/// its text besides.
fn guarded<T>(work: impl FnOnce() -> Result<T, Trouble>) -> Result<T, Trouble> {
    quietly(work).unwrap_or_else(|_| Err(Trouble::unreadable()))
}

thread_local! {
    /// This thread's panics are caught and told as errors.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// `catch_unwind` without the text on standard error. Panics of other threads, and this thread's elsewhere, stay loud.
fn quietly<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match CAUGHT.get() {
            true => tracing::debug!(%panic, "the storage library panicked"),
            false => loud(panic),
        }));
    });
    let before = CAUGHT.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(before);
    done
}

/// sled takes a page table that it was still writing when it was killed, or ran out of space, for a garbled one.
fn remove_unfinished(directory: &Path) -> io::Result<()> {
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        if path.extension().is_some_and(|e| e == "generating") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// sled believes a garbled file of settings, or speaks of versions and upgrades. A missing or empty one it writes again.
fn check_settings(directory: &Path) -> Result<(), Trouble> {
    match fs::read(directory.join("conf")) {
        Ok(found) if found.is_empty() || found == SETTINGS => Ok(()),
        Ok(_) => Err(Trouble::corrupt("its file conf is not what was written")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Largest log that is copied into memory.
const COPY: u64 = 1 << 30;

const COPIES: &str = "/dev/shm";
const COPY_PREFIX: &str = "pontoon-log-";
/// Locked in a copy for as long as the process lives whose copy it is.
const COPY_OWNER: &str = "owner";

/// Removes the copies of processes that were killed: nobody else does, and they lie in memory.
fn sweep_copies(place: &Path) -> io::Result<()> {
    /// A copy of this age without an owner is not one that is just being made.
    const JUST_MADE: Duration = Duration::from_secs(60);
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(COPY_PREFIX) {
            continue;
        }
        let is_left = match File::open(entry.path().join(COPY_OWNER)) {
            Ok(owner) => owner.try_lock().is_ok(),
            Err(_) => {
                let made = entry.metadata()?.modified()?;
                made.elapsed().is_ok_and(|age| age > JUST_MADE)
            }
        };
        if is_left {
            fs::remove_dir_all(entry.path())?;
            tracing::info!(copy = %entry.path().display(), "a log's copy that a process had left was removed");
        }
    }
    Ok(())
}

fn copy_to_memory(directory: &Path) -> io::Result<(TempDir, File)> {
    if let Err(error) = sweep_copies(Path::new(COPIES)) {
        // Another user's, or another process was faster.
        tracing::warn!(%error, "copies of logs that were left in {COPIES} could not all be removed");
    }
    let scratch = tempfile::Builder::new()
        .prefix(COPY_PREFIX)
        .tempdir_in(COPIES)?;
    let owner = File::create_new(scratch.path().join(COPY_OWNER))?;
    owner.lock()?;
    let mut size = 0;
    for file in fs::read_dir(directory)? {
        let file = file?;
        if file.file_type()?.is_file() {
            size += file.metadata()?.len();
            if size > COPY {
                return Err(io::Error::other(
                    "the log is too large to be copied into memory",
                ));
            }
            fs::copy(file.path(), scratch.path().join(file.file_name()))?;
        }
    }
    Ok((scratch, owner))
}

fn open_journal(db: &sled::Db, directory: &Path) -> Result<journal::Found, Trouble> {
    let generations = match db.get(GENERATIONS)? {
        None => None,
        Some(value) => {
            let octets: [u8; 8] = (value.as_ref().try_into())
                .map_err(|_| Trouble::corrupt("the number of generations has another form"))?;
            Some(u64::from_be_bytes(octets))
        }
    };
    let path = directory.join("journal");
    let opened = match generations {
        Some(generations) => Journal::open(&path, generations.saturating_add(1)),
        None if !db.is_empty() => {
            return Err(Trouble::corrupt("the number of generations is missing"));
        }
        // Nothing is in the tree, and nobody was told that anything is, unless there is a journal: then none is made.
        None => Journal::make(&path, 1, rand::rng().random()),
    };
    opened.map_err(|e| match e {
        JournalError::Io(e) if e.kind() == io::ErrorKind::NotFound => {
            Trouble::corrupt("the journal is missing")
        }
        JournalError::Io(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            Trouble::corrupt("its tree is empty, though its journal is there")
        }
        JournalError::Io(e) => e.into(),
        JournalError::Corrupt(problem) => Trouble::corrupt(problem),
        JournalError::Form => Trouble::other(e),
    })
}

/// Makes the directory's files durable, names included, and returns the one that holds the log.
fn sync_files(directory: &Path) -> io::Result<File> {
    File::open(directory.join("conf"))?.sync_all()?;
    let file = File::open(directory.join("db"))?;
    file.sync_all()?;
    for folder in [Some(directory.join("blobs")), Some(directory.to_owned())]
        .into_iter()
        .chain([directory.parent().map(Path::to_owned)])
        .flatten()
    {
        if folder.as_os_str().is_empty() {
            continue;
        }
        match File::open(&folder) {
            Ok(folder) => folder.sync_all()?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_of_a_process_that_was_killed_is_removed_and_no_other() {
        let place = tempfile::tempdir().unwrap();
        let [left, used, being_made, foreign] =
            ["pontoon-log-a", "pontoon-log-b", "pontoon-log-c", "other"]
                .map(|name| place.path().join(name));
        for directory in [&left, &used, &being_made, &foreign] {
            fs::create_dir(directory).unwrap();
        }
        // The lock of a process that ends is gone.
        drop(File::create_new(left.join(COPY_OWNER)).unwrap());
        let owner = File::create_new(used.join(COPY_OWNER)).unwrap();
        owner.lock().unwrap();
        sweep_copies(place.path()).unwrap();
        assert!(!left.exists());
        assert!(used.exists() && being_made.exists() && foreign.exists());
    }

    /// What the tree is given, as keys; of what is removed, with `false`.
    fn given(mut events: sled::Subscriber) -> Vec<(Vec<u8>, bool)> {
        std::iter::from_fn(|| {
            events
                .next_timeout(std::time::Duration::from_millis(50))
                .ok()
        })
        .map(|event| {
            (
                event.key().to_vec(),
                matches!(event, sled::Event::Insert { .. }),
            )
        })
        .collect()
    }

    fn append(index: u64, size: usize) -> Operation {
        Operation::Append {
            index,
            record: vec![7; size].into(),
        }
    }

    fn durably(engine: &SledEngine, operations: &[Operation]) -> Result<(), EngineError> {
        engine.write(operations)?;
        engine.barrier()
    }

    #[test]
    fn what_bypasses_the_journal_reaches_the_tree_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(&dir.path().join("log"), Barrier::Durable).unwrap();
        let events = engine.tree().watch_prefix([]);
        let committed = Operation::Put {
            key: MetadataKey::Committed,
            record: Bytes::from_static(b"1"),
        };
        durably(
            &engine,
            &[append(0, journal::LARGEST), append(1, 5), committed],
        )
        .unwrap();
        let given = given(events);
        let at = |wanted: &[u8]| given.iter().position(|(key, _)| key == wanted).unwrap();
        assert!(at(&entry_key(1, 0)) < at(&metadata_key(MetadataKey::Committed)));
    }

    /// Ended in the middle, chunks without the first are leftovers; the first without others is an entry that cannot be read.
    #[test]
    fn a_large_entry_loses_its_first_chunk_first() {
        let dir = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(&dir.path().join("log"), Barrier::Durable).unwrap();
        let large = [append(0, 10), append(1, 4 * CHUNK), append(2, 3 * CHUNK)];
        durably(&engine, &large).unwrap();
        engine.close_generation(&mut engine.ahead()).unwrap();
        let events = engine.tree().watch_prefix([]);
        durably(
            &engine,
            &[Operation::Truncate { from: 1 }, append(1, journal::LARGEST)],
        )
        .unwrap();
        let removed: Vec<(u64, u32)> = given(events)
            .into_iter()
            .take_while(|(_, is_there)| !is_there)
            .map(|(key, _)| split_entry_key(&key).unwrap())
            .collect();
        assert_eq!(
            removed,
            [(2, 0), (2, 2), (2, 1), (1, 0), (1, 3), (1, 2), (1, 1)]
        );
    }

    #[test]
    fn what_did_not_get_into_the_tree_is_not_taken_for_done() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("log");
        let engine = SledEngine::open(&place, Barrier::Durable).unwrap();
        // A run that cannot be read, as after an error of the disk.
        let garbled = ((1_u32 << 31) | 3).to_be_bytes();
        let db = engine.tree();
        db.insert(entry_key(1, 0), &garbled).unwrap();
        let vote = Operation::Put {
            key: MetadataKey::Vote,
            record: Bytes::from_static(b"v"),
        };
        durably(&engine, &[Operation::Truncate { from: 3 }, vote]).unwrap();
        assert!(engine.read(0..9, usize::MAX).is_err());
        assert!(engine.metadata(MetadataKey::Vote).is_err());
        assert!(durably(&engine, &[Operation::Truncate { from: 9 }]).is_err());
        assert!(engine.close_generation(&mut engine.ahead()).is_err());
        // The journal has it still.
        db.remove(entry_key(1, 0)).unwrap();
        db.flush().unwrap();
        drop(engine);
        let engine = SledEngine::open(&place, Barrier::Durable).unwrap();
        assert_eq!(
            engine.metadata(MetadataKey::Vote).unwrap(),
            Some(Bytes::from_static(b"v"))
        );
    }

    #[test]
    fn runs_that_are_cut_otherwise_by_the_next_start_do_not_hide_what_comes_later() {
        let dir = tempfile::tempdir().unwrap();
        let record = |index: u64, text: &str| Operation::Append {
            index,
            record: Bytes::from(format!("{index} {text}")),
        };
        let write = |engine: &SledEngine, operations: &[Operation]| {
            engine.write(operations).unwrap();
            engine.barrier().unwrap();
        };
        let place = dir.path().join("log");
        let engine = SledEngine::open(&place, Barrier::Durable).unwrap();
        for indexes in [3..5, 5..9] {
            let entries: Vec<_> = indexes.map(|index| record(index, "first")).collect();
            write(&engine, &entries);
            // A run of its own, and on the disk, as when more than the journal holds was written.
            engine.spill();
        }
        drop(engine);
        // It does both again, as one run.
        let engine = SledEngine::open(&place, Barrier::Durable).unwrap();
        let cut = Operation::Truncate { from: 7 };
        write(&engine, &[cut, record(7, "second")]);
        let found = engine.read(0..u64::MAX, usize::MAX).unwrap();
        let first = (3..7).map(|index| (index, format!("{index} first").into()));
        let expected: Vec<(u64, Bytes)> = first.chain([(7, "7 second".into())]).collect();
        assert_eq!(found, expected);
    }
}
