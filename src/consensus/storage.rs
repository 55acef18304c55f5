//! Opens a node's data directory and joins its parts: log, snapshots, watermark, ballast, writer and monitor.
//!
//! `log/` is the engine's, `snapshots/` holds the snapshot files, `watermark` what must not be taken back, `ballast` some
//! space for bad times. Opening checks every stored byte: a directory that does not hold all that this node acknowledged
//! is refused, because a node that forgets breaks the cluster.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    disk::DiskWatch,
    engine::{Engine, EngineError, Fault},
    engine_sled::{Barrier, SledEngine},
    features::{TooOld, expect_known},
    health::{self, Ballast, HealthReport, Monitor, StorageHealth},
    heard_file::HeardFile,
    log_store::{CorruptLog, LogStore, View, lock},
    machine_store::{Growth, MachineStore, SnapshotDue},
    probe::Probe,
    publication::{AppliedState, Publication, States},
    snapshot_file::{Loaded, SnapshotError, SnapshotFiles},
    types::LogId,
    watermark::{self, Watermark, WatermarkFile},
    writer::{LogFigures, Queue, Writer, give_up},
};
use crate::{
    model::snapshot::Snapshot, priority::prefer_this_thread, state::cluster::FEATURE_LEVEL,
};

/// An opened data directory: what openraft is given, and what the rest of the node holds.
pub type Opened = (LogStore, MachineStore, StorageHandles);

/// Opening of the storage.
#[derive(Debug)]
pub struct Storage;

/// Limits. The defaults suit a node with a million records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageOptions {
    /// Free bytes below which the node counts as short of space (`space`). None: a twentieth of the file system, 2 MiB to 64 MiB.
    pub low_space: Option<u64>,
    /// Size of the ballast file. None: a fiftieth of the file system, 2 MiB to 16 MiB.
    pub ballast: Option<u64>,
    /// Bytes of commands, unpacked, after which a snapshot is asked for: a restart applies at most these again, and the one
    /// command that passed the limit. 16 MiB are some 300,000 records, about two seconds.
    pub snapshot_log_bytes: u64,
    /// Log entries after which a snapshot is asked for.
    pub snapshot_log_entries: u64,
    /// Bytes of recent entries kept in memory.
    pub recent_bytes: usize,
    /// Bytes of entries that may wait to be written.
    pub queue_bytes: usize,
    /// The highest feature level that this program knows.
    pub feature_level: u32,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self {
            low_space: None,
            ballast: None,
            snapshot_log_bytes: 16 << 20,
            snapshot_log_entries: 50_000,
            recent_bytes: 16 << 20,
            queue_bytes: 64 << 20,
            feature_level: FEATURE_LEVEL,
        }
    }
}

/// What the rest of the node holds of the storage.
pub struct StorageHandles {
    /// What the servers serve: none until `publication.start()`.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The whole state for the API, durable here; not held back.
    pub states: States,
    pub health: watch::Receiver<StorageHealth>,
    /// Changes when a snapshot should be built: `raft.trigger().snapshot()`. openraft's own policy counts entries only.
    pub snapshot_due: watch::Receiver<u64>,
    /// Changes when log entries up to this index serve nobody on this node: `raft.trigger().purge_log(..)`. openraft's own
    /// policy keeps a number of entries, however large.
    pub purgeable: watch::Receiver<Option<u64>>,
    pub publication: Publication,
    pub recovered: Recovered,
    /// When a leader was last heard.
    pub heard: HeardFile,
    /// Whether the disk takes writes.
    pub probe: Probe,
    /// The highest feature level that this program knows.
    pub feature_level: u32,
    queue: Arc<Queue>,
    report: HealthReport,
    _monitor: Monitor,
}

impl StorageHandles {
    /// What was written so far, and what waits to be.
    pub fn log_figures(&self) -> LogFigures {
        self.queue.figures()
    }

    /// Whether the disk takes what is written to it.
    pub(super) fn disk(&self) -> DiskWatch {
        DiskWatch::new(Arc::clone(&self.queue), self.probe.clone())
    }

    /// Ends writing for good: this node takes no part in consensus, and serves what it has.
    pub(super) fn give_up(&self, reason: &str) {
        give_up(&self.queue, &self.publication, &self.report, reason);
    }
}

/// What was found at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last log id, of an entry or of the snapshot that took its place. None: this node is new.
    pub last: Option<LogId>,
    /// The last log id known to be committed: openraft applies the log up to it before anything else.
    pub committed: Option<LogId>,
    /// The last log id whose state was served here before. With a quorum nothing older is served again.
    pub published: Option<LogId>,
    /// The last log id of the snapshot that was loaded.
    pub snapshot: Option<LogId>,
}

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        verb: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the log in {place} is in use by another process: stop that one first")]
    Busy { place: String },
    #[error("no space left to open the log in {place}: free some, then start this node again")]
    NoSpace { place: String },
    #[error(
        "the log in {place} is corrupt: {problem}. What this node acknowledged may be lost, so it must not take part under \
         its id again: remove it from the cluster, empty its data directory and join anew; it gets a new id"
    )]
    Corrupt { place: String, problem: String },
    #[error("{0}")]
    Engine(EngineError),
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    #[error("{0}")]
    TooOld(#[from] TooOld),
}

impl Storage {
    /// Opens or makes the data directory. Blocks: reads and checks all of it.
    pub fn open(directory: &Path, options: StorageOptions) -> Result<Opened, OpenError> {
        Self::open_with(directory, options, Barrier::Durable)
    }

    pub(super) fn open_with(
        directory: &Path,
        options: StorageOptions,
        barrier: Barrier,
    ) -> Result<Opened, OpenError> {
        make_directory(directory)?;
        let reserve = Reserve::of(directory, &options)?;
        reserve.give_up_if_needed();
        match Self::open_for_writing(directory, options.clone(), barrier, &reserve) {
            Err(OpenError::NoSpace { .. }) => Self::open_to_read(directory, options, &reserve),
            opened => opened,
        }
    }

    fn open_for_writing(
        directory: &Path,
        options: StorageOptions,
        barrier: Barrier,
        reserve: &Reserve,
    ) -> Result<Opened, OpenError> {
        let engine = open_log(&directory.join("log"), barrier)?;
        let found = Found {
            engine: Arc::new(engine),
            watermark: Some(Promised::read(directory)?),
            failure: None,
        };
        let opened = Self::assemble(directory, options, found, reserve)?;
        let held = reserve.ballast.hold(reserve.low_space.saturating_mul(2));
        if let Err(e) = held {
            tracing::warn!(error = %e, "no ballast file is held");
        }
        Ok(opened)
    }

    /// As `open` does it when there is no space left at all.
    #[cfg(test)]
    pub(super) fn open_without_space(
        directory: &Path,
        options: StorageOptions,
    ) -> Result<Opened, OpenError> {
        let reserve = Reserve::of(directory, &options)?;
        Self::open_to_read(directory, options, &reserve)
    }

    /// Without space there is no vote and no write, but what is stored can be served.
    fn open_to_read(
        directory: &Path,
        options: StorageOptions,
        reserve: &Reserve,
    ) -> Result<Opened, OpenError> {
        let log = directory.join("log");
        let engine = SledEngine::open_copy(&log).map_err(|e| engine_error(e, &log))?;
        let place = log.display().to_string();
        let found = Found {
            engine: Arc::new(engine),
            watermark: Some(Promised::read(directory)?),
            failure: Some(OpenError::NoSpace { place }.to_string()),
        };
        Self::assemble(directory, options, found, reserve)
    }

    /// The same over an engine of the caller's; snapshots go to `directory`.
    pub fn open_on(
        directory: &Path,
        options: StorageOptions,
        engine: Arc<dyn Engine>,
    ) -> Result<Opened, OpenError> {
        let reserve = Reserve::of(directory, &options)?;
        let found = Found {
            engine,
            watermark: None,
            failure: None,
        };
        Self::assemble(directory, options, found, &reserve)
    }

    fn assemble(
        directory: &Path,
        options: StorageOptions,
        found: Found,
        reserve: &Reserve,
    ) -> Result<Opened, OpenError> {
        let Found {
            engine,
            watermark,
            failure,
        } = found;
        let (files, loaded) = SnapshotFiles::open(&directory.join("snapshots"))?;
        let known = options.feature_level;
        if let Some(loaded) = &loaded {
            expect_known(loaded.state.feature_level(), known)?;
        }
        let corrupt = |problem: String| OpenError::Corrupt {
            place: engine.place(),
            problem,
        };
        let view = View::recover(engine.as_ref(), options.recent_bytes);
        let mut view = view.map_err(|e| match e {
            CorruptLog::Engine(e) => engine_error(e, directory),
            e => corrupt(e.to_string()),
        })?;
        let snapshot = loaded.as_ref().and_then(|loaded| loaded.meta.last_log_id);
        let is_blank = view.is_blank() && snapshot.is_none();
        let promised = match &watermark {
            Some(file) => file.watermark(is_blank).map_err(corrupt)?,
            None => Watermark::default(),
        };
        let recovered = reconcile(&view, snapshot, &promised).map_err(corrupt)?;
        view.committed = recovered.committed;
        view.clean(engine.as_ref())
            .map_err(|e| engine_error(e, directory))?;

        let applied = loaded.as_ref().map(published_of).unwrap_or_default();
        let publication = Publication::new(applied, view.last_index());
        let health = HealthReport::new(reserve.low_space);
        let durable = view.last_index();
        let (watermark, failure) = match watermark.filter(|_| failure.is_none()) {
            None => (None, failure),
            Some(file) => match file.go_on() {
                Err(OpenError::File { source, path, .. }) if takes_no_writes(&source) => {
                    let problem = format!(
                        "cannot write {}: {source}; free space, then start this node again",
                        path.display()
                    );
                    (None, Some(problem))
                }
                opened => (Some(opened?), None),
            },
        };
        let view = Arc::new(Mutex::new(view));
        let queue = Arc::new(Queue::new(options.queue_bytes));
        if let Some(failure) = failure {
            give_up(&queue, &publication, &health, &failure);
        }
        let told = view.clone();
        let writer = Writer {
            engine: engine.clone(),
            queue: queue.clone(),
            publication: publication.clone(),
            health: health.clone(),
            watermark,
            durable,
            committed: None,
            truncations: 0,
            written: Box::new(move |last, truncations| lock(&told).written(last, truncations)),
        };
        let spawning = |e| file_error("start the writer of", directory, e);
        let writer = thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || {
                prefer_this_thread();
                writer.run();
            })
            .map_err(spawning)?;
        let monitor = Monitor::start(directory.to_owned(), health.clone());
        let log = LogStore::new(
            engine,
            view,
            queue.clone(),
            options.queue_bytes,
            files.clone(),
            writer,
        );
        let due = SnapshotDue::new(Growth {
            bytes: options.snapshot_log_bytes,
            entries: options.snapshot_log_entries,
        });
        let handles = StorageHandles {
            snapshots: publication.snapshots(),
            states: publication.states(),
            health: health.subscribe(),
            snapshot_due: due.subscribe(),
            purgeable: files.floors(),
            publication: publication.clone(),
            recovered,
            heard: HeardFile::in_dir(directory),
            probe: Probe::in_dir(directory),
            feature_level: options.feature_level,
            queue,
            report: health.clone(),
            _monitor: monitor.map_err(spawning)?,
        };
        let health = health.subscribe();
        let machine = MachineStore::new(loaded, files, publication, due, health, known);
        Ok((log, machine, handles))
    }
}

/// What lies in a data directory, before it has been checked.
struct Found {
    engine: Arc<dyn Engine>,
    /// None where the log itself is not on disk.
    watermark: Option<Promised>,
    /// Why nothing may be written, from the start.
    failure: Option<String>,
}

/// The watermark file as it was found.
struct Promised {
    path: PathBuf,
    found: watermark::Found,
}

impl Promised {
    fn read(directory: &Path) -> Result<Self, OpenError> {
        let path = watermark_path(directory);
        let found = watermark::Found::read(&path).map_err(|e| file_error("read", &path, e))?;
        Ok(Self { path, found })
    }

    /// What the log must hold. Without the file a log that holds anything must not be believed: what it lacks at its end
    /// would not be missed.
    fn watermark(&self, is_blank: bool) -> Result<Watermark, String> {
        match self.found.watermark() {
            Ok(watermark) => Ok(watermark.clone()),
            Err(_) if is_blank => Ok(Watermark::default()),
            Err(how) => Err(format!(
                "{} is {how}, so what the log should hold is not known",
                self.path.display()
            )),
        }
    }

    fn go_on(&self) -> Result<WatermarkFile, OpenError> {
        if matches!(self.found, watermark::Found::Whole { both: false, .. }) {
            let path = self.path.display();
            tracing::warn!(%path, "one of the two copies in it was not whole, as after a loss of power; it is written again");
        }
        WatermarkFile::go_on(&self.path, &self.found)
            .map_err(|e| file_error("write", &self.path, e))
    }
}

/// Whether the file system takes nothing more, while what it has can be read.
pub(super) fn takes_no_writes(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(
        error.kind(),
        StorageFull | QuotaExceeded | ReadOnlyFilesystem
    )
}

/// Where the watermark file of a data directory lies.
pub(super) fn watermark_path(directory: &Path) -> PathBuf {
    directory.join("watermark")
}

/// Holds what was found against what must be there.
fn reconcile(
    view: &View,
    snapshot: Option<LogId>,
    promised: &Watermark,
) -> Result<Recovered, String> {
    if view.removed.map(|id| id.index) > snapshot.map(|id| id.index) {
        return Err(format!(
            "it begins after entry {}, and no whole snapshot reaches that far",
            view.removed.map_or(0, |id| id.index)
        ));
    }
    let kept = |promised| view.vote.is_some_and(|found| found >= promised);
    if !promised.vote.is_none_or(kept) {
        return Err("it has lost a vote".to_owned());
    }
    let last = view.last.max(snapshot);
    let committed = view.committed.max(promised.published).max(snapshot);
    if committed.map(|id| id.index) > last.map(|id| id.index) {
        return Err(format!(
            "it ends at entry {}, but entry {} was there and committed",
            last.map_or("none".to_owned(), |id| id.index.to_string()),
            committed.map_or(0, |id| id.index)
        ));
    }
    Ok(Recovered {
        last,
        committed,
        published: promised.published,
        snapshot,
    })
}

/// Space kept for bad times.
struct Reserve {
    low_space: u64,
    ballast: Ballast,
    directory: PathBuf,
}

impl Reserve {
    fn of(directory: &Path, options: &StorageOptions) -> Result<Self, OpenError> {
        const MIB: u64 = 1 << 20;
        let (_, size) = health::space(directory)
            .map_err(|e| file_error("tell the free space of", directory, e))?;
        let low_space = options.low_space;
        let ballast = options.ballast;
        let size_of_ballast = ballast.unwrap_or((size / 50).clamp(2 * MIB, 16 * MIB));
        Ok(Self {
            low_space: low_space.unwrap_or((size / 20).clamp(2 * MIB, 64 * MIB)),
            ballast: Ballast::new(directory.join("ballast"), size_of_ballast),
            directory: directory.to_owned(),
        })
    }

    /// The log needs a little space to be opened.
    fn give_up_if_needed(&self) {
        if health::space(&self.directory).is_ok_and(|(free, _)| free < self.low_space) {
            self.ballast.release();
        }
    }
}

fn published_of(loaded: &Loaded) -> AppliedState {
    AppliedState {
        log_id: loaded.meta.last_log_id,
        state: Arc::new(loaded.state.clone()),
    }
}

/// Opens the log. A new one is made under another name: power loss in the middle must not leave a half one behind.
fn open_log(path: &Path, barrier: Barrier) -> Result<SledEngine, OpenError> {
    let failed = |e| engine_error(e, path);
    if !path.exists() {
        let unfinished = path.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(|e| file_error("remove", &unfinished, e))?;
        }
        drop(SledEngine::open(&unfinished, barrier).map_err(failed)?);
        fs::rename(&unfinished, path).map_err(|e| file_error("rename to", path, e))?;
    }
    open_when_let_go(path, barrier).map_err(failed)
}

/// Opens a log as soon as whoever had it last lets go of it: sled does so on a thread of its own, some time after the close. That no
/// other process uses the directory is the caller's to know.
fn open_when_let_go(path: &Path, barrier: Barrier) -> Result<SledEngine, EngineError> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let deadline = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        match SledEngine::open(path, barrier) {
            Err(e) if e.fault == Fault::Busy && Instant::now() < deadline => {
                if !told {
                    tracing::info!(log = %path.display(), "still in use, waiting for it to be let go");
                    told = true;
                }
                thread::sleep(Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

/// Only for this user: the state holds keys.
fn make_directory(directory: &Path) -> Result<(), OpenError> {
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.map_err(|e| file_error("make", directory, e))?;
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            let synced = File::open(parent).and_then(|parent| parent.sync_all());
            synced.map_err(|e| file_error("sync", parent, e))
        }
        _ => Ok(()),
    }
}

fn engine_error(e: EngineError, directory: &Path) -> OpenError {
    let place = directory.display().to_string();
    match e.fault {
        Fault::Busy => OpenError::Busy { place },
        Fault::NoSpace => OpenError::NoSpace { place },
        Fault::Corrupt => OpenError::Corrupt {
            place: e.place,
            problem: e.reason,
        },
        Fault::Ended | Fault::Other => OpenError::Engine(e),
    }
}

fn file_error(verb: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::File {
        verb,
        path: path.to_owned(),
        source,
    }
}
