//! The replicated state as openraft's state machine.
//!
//! It applies committed entries to `state::State`, in memory; what survives a restart is the log and the snapshot files.
//! Decoding and applying a large command happens away from the asynchronous threads, as does packing a snapshot, which
//! works on a clone that shares structure with the state and so never stops apply.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    entry::RaftEntry,
    storage::{EntryResponder, RaftStateMachine},
};
use tokio::{sync::watch, task::JoinSet};

use super::{
    features::expect_known,
    health::StorageHealth,
    publication::{Answer, AppliedState, Publication},
    snapshot_file::{Blank, Loaded, SnapshotError, SnapshotFiles},
    types::{
        EncodedCommand, Entry, LogId, Response, Snapshot, SnapshotData, SnapshotMeta,
        StoredMembership, TypeConfig,
    },
};
use crate::{
    state::{
        State,
        command::{Change, Command},
        outcome::{Outcome, Refusal, RefusalKind},
    },
    wire,
};

/// Commands above this size are applied on a thread that may block.
const LARGE: usize = 64 * 1024;
/// Records whose removal may take longer than a task of consensus should.
const MANY: u64 = 5000;
/// How long others may still hold a state that was replaced.
const OTHERS_LET_GO: Duration = Duration::from_secs(2);
/// Between attempts to open files while there are none left.
const OPEN_AGAIN: Duration = Duration::from_millis(250);
/// Attempts of which one is told of: one a minute.
const TELL_OF_WANT_EVERY: u64 = 240;
/// Entries applied after which what there is so far is published.
const PUBLISH_EVERY: usize = 1024;

/// The state machine of this node.
pub struct MachineStore {
    applied: Applied,
    files: SnapshotFiles,
    publication: Publication,
    due: SnapshotDue,
    health: watch::Receiver<StorageHealth>,
    /// The highest feature level that this program knows.
    known_level: u32,
    /// Set by a job that found no room for its snapshot.
    put_off: Arc<AtomicBool>,
    /// Those that free replaced states.
    freeing: JoinSet<io::Result<()>>,
}

/// What a snapshot holds: cheap to clone.
#[derive(Clone, Default)]
struct Applied {
    last: Option<LogId>,
    membership: StoredMembership,
    state: Arc<State>,
}

impl Applied {
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
        }
    }

    fn published(&self) -> AppliedState {
        AppliedState {
            log_id: self.last,
            state: self.state.clone(),
        }
    }
}

impl From<Loaded> for Applied {
    fn from(loaded: Loaded) -> Self {
        Self {
            last: loaded.meta.last_log_id,
            membership: loaded.meta.last_membership,
            state: Arc::new(loaded.state),
        }
    }
}

/// What applying an entry again after a restart costs, in octets. Entries are stored compressed, records some twenty to one:
/// by what they take on disk, a log that takes many seconds to apply would look short.
fn replay_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(command) => wire::command::unpacked_len(&command.0),
        EntryPayload::Blank | EntryPayload::Membership(_) => 64,
    }
}

/// Decides when the log has grown so much that a snapshot pays.
#[derive(Debug)]
pub(super) struct SnapshotDue {
    limit: Growth,
    since_snapshot: Growth,
    /// The same when the last snapshot was begun.
    before: Growth,
    ask_at: Growth,
    asked: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Growth {
    pub bytes: u64,
    pub entries: u64,
}

impl SnapshotDue {
    pub fn new(limit: Growth) -> Self {
        Self {
            limit,
            since_snapshot: Growth::default(),
            before: Growth::default(),
            ask_at: limit,
            asked: watch::Sender::new(0),
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.asked.subscribe()
    }

    fn count(&mut self, bytes: usize) {
        self.since_snapshot.bytes += bytes as u64;
        self.since_snapshot.entries += 1;
    }

    /// Asks for a snapshot when one is due, and again at every further half of a limit until one is begun.
    fn ask(&mut self) {
        let now = self.since_snapshot;
        if now.bytes >= self.ask_at.bytes || now.entries >= self.ask_at.entries {
            self.ask_later();
            self.asked.send_modify(|asked| *asked += 1);
        }
    }

    fn begun(&mut self) {
        self.before = std::mem::take(&mut self.since_snapshot);
        self.ask_at = self.limit;
    }

    /// The snapshot that was begun last was not written: it is asked for again after half of a limit more.
    fn put_off(&mut self) {
        let now = self.since_snapshot;
        self.since_snapshot = Growth {
            bytes: now.bytes.saturating_add(self.before.bytes),
            entries: now.entries.saturating_add(self.before.entries),
        };
        self.ask_later();
    }

    fn ask_later(&mut self) {
        let now = self.since_snapshot;
        self.ask_at = Growth {
            bytes: now.bytes.saturating_add(self.limit.bytes / 2 + 1),
            entries: now.entries.saturating_add(self.limit.entries / 2 + 1),
        };
    }
}

impl MachineStore {
    pub(super) fn new(
        loaded: Option<Loaded>,
        files: SnapshotFiles,
        publication: Publication,
        due: SnapshotDue,
        health: watch::Receiver<StorageHealth>,
        known_level: u32,
    ) -> Self {
        Self {
            applied: loaded.map(Applied::from).unwrap_or_default(),
            files,
            publication,
            due,
            health,
            known_level,
            put_off: Arc::default(),
            freeing: JoinSet::new(),
        }
    }
}

impl MachineStore {
    async fn apply_entry(&mut self, entry: Entry) -> io::Result<Response> {
        self.due.count(replay_bytes(&entry));
        let id = entry.log_id();
        let outcome = match entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Membership(membership) => {
                self.applied.membership = StoredMembership::new(Some(id), membership);
                None
            }
            EntryPayload::Normal(command) => Some(self.apply_command(id.index, command).await?),
        };
        // From here on it may not know what it is to apply: what it had before stays published.
        expect_known(self.applied.state.feature_level(), self.known_level)
            .map_err(io::Error::other)?;
        self.applied.last = Some(id);
        Ok(Response(outcome))
    }

    async fn apply_command(&mut self, index: u64, command: EncodedCommand) -> io::Result<Outcome> {
        if command.0.len() >= LARGE {
            let mut state = self.applied.state.clone();
            let work = move || {
                let outcome = match decode(index, &command) {
                    Ok(command) => Arc::make_mut(&mut state).apply(index, &command),
                    Err(outcome) => outcome,
                };
                (state, outcome)
            };
            let (state, outcome) = blocking(work).await?;
            let before = std::mem::replace(&mut self.applied.state, state);
            self.free_later(before);
            return Ok(outcome);
        }
        let command = match decode(index, &command) {
            Ok(command) => command,
            Err(outcome) => return Ok(outcome),
        };
        // Held only where it may be needed: what two states share is copied when one of them changes.
        let before = may_remove_many(&command).then(|| self.applied.state.clone());
        let outcome = Arc::make_mut(&mut self.applied.state).apply(index, &command);
        let left = self.applied.state.totals().records;
        if let Some(before) = before
            && left.saturating_add(MANY) < before.totals().records
        {
            self.free_later(before);
        }
        Ok(outcome)
    }

    /// Frees a state away from the asynchronous threads, after its other holders have let go of it: a large zone's end takes
    /// longer than a heartbeat may wait.
    fn free_later(&mut self, state: Arc<State>) {
        while self.freeing.try_join_next().is_some() {}
        self.freeing.spawn(async move {
            tokio::time::sleep(OTHERS_LET_GO).await;
            blocking(move || drop(state)).await
        });
    }

    fn publish(&self, answers: Vec<Answer>) {
        self.publication.offer(self.applied.published(), answers);
    }

    /// Writes to `blank`, or to what it opens itself.
    fn snapshot_job(&mut self, blank: Option<Blank>) -> SnapshotJob {
        self.due.begun();
        SnapshotJob {
            applied: self.applied.clone(),
            files: self.files.clone(),
            blank,
            reserve: self.health.borrow().watermark,
            put_off: Arc::clone(&self.put_off),
        }
    }
}

/// Whether what a command takes away may be more than the records it names.
fn may_remove_many(command: &Command) -> bool {
    let is_of_whole_zone = |change: &Change| {
        matches!(
            change,
            Change::ReplaceZone { .. } | Change::DeleteZone { .. } | Change::RollbackZone { .. }
        )
    };
    command.changes.iter().any(is_of_whole_zone)
}

/// Bytes that are no command to this program are refused, on every node that runs it alike.
fn decode(index: u64, command: &EncodedCommand) -> Result<Command, Outcome> {
    wire::command::decode(&command.0).map_err(|e| {
        Outcome::Refused(Refusal::new(
            RefusalKind::FeatureLevel,
            format!("log entry {index}"),
            e,
            "it was proposed by another version of this program: run the same one on all nodes",
        ))
    })
}

impl RaftStateMachine<TypeConfig> for MachineStore {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotJob;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    /// Publishes before it answers: whoever gets an answer finds the change on this node.
    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        let mut unpublished = 0;
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let response = self.apply_entry(entry).await?;
            answers.extend(responder.map(|responder| (responder, response)));
            unpublished += 1;
            if unpublished == PUBLISH_EVERY {
                self.publish(std::mem::take(&mut answers));
                unpublished = 0;
            }
        }
        self.publish(answers);
        if self.put_off.swap(false, Ordering::AcqRel) {
            self.due.put_off();
        }
        self.due.ask();
        Ok(())
    }

    /// Puts a snapshot off while space is short: writing one needs some, and there is nothing to gain from a full disk. Likewise
    /// while there are no files for it: what it needs is opened here, since a job that fails ends consensus. It is asked for
    /// again when the log has grown by half of a limit more.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotJob> {
        if !force && !self.health.borrow().is_good() {
            tracing::warn!("snapshot put off: there is little space left");
            return None;
        }
        let files = self.files.clone();
        match blocking(move || files.blank()).await {
            Ok(Err(error)) if error.is_want() => {
                tracing::warn!(%error, "snapshot put off: raise the limit on open files");
                None
            }
            // Whatever else is wrong, the job runs into it, and says so.
            opened => Some(self.snapshot_job(opened.ok().and_then(Result::ok))),
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotJob {
        self.snapshot_job(None)
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let files = self.files.clone();
        let blanks = once_there_are_files(move || files.blanks()).await?;
        let files = self.files.clone();
        let loaded = blocking(move || files.install(blanks, &snapshot))
            .await?
            .map_err(io::Error::other)?;
        if loaded.meta != *meta {
            let problem = format!("the snapshot holds {}, not {meta}", loaded.meta);
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        expect_known(loaded.state.feature_level(), self.known_level).map_err(io::Error::other)?;
        self.applied = loaded.into();
        self.due.begun();
        self.publication
            .snapshot_durable(self.applied.last.map(|id| id.index));
        self.publish(Vec::new());
        Ok(())
    }

    /// A file that went bad while the node ran is replaced by a new one: the state is at hand. So it is packed without a file where there
    /// is none left to read one with; waiting would hold up every write of a leader.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let files = self.files.clone();
        match blocking(move || files.current()).await? {
            Ok(None) => Ok(None),
            Ok(Some((meta, snapshot))) => Ok(Some(Snapshot { meta, snapshot })),
            Err(e @ SnapshotError::Garbled { .. }) => {
                tracing::error!(error = %e, "written anew");
                let files = self.files.clone();
                let blank = once_there_are_files(move || files.blank()).await?;
                match self.snapshot_job(Some(blank)).write().await? {
                    Some(written) => Ok(Some(written)),
                    None => pack(self.applied.clone(), self.files.clone())
                        .await
                        .map(Some),
                }
            }
            Err(error) if error.is_want() => {
                tracing::warn!(%error, "the snapshot is packed from memory: raise the limit on open files");
                let files = self.files.clone();
                pack(self.applied.clone(), files).await.map(Some)
            }
            Err(e) => Err(io::Error::other(e)),
        }
    }
}

/// Packs the state as it was when the job was made.
pub struct SnapshotJob {
    applied: Applied,
    files: SnapshotFiles,
    blank: Option<Blank>,
    /// Octets of the disk that it leaves free.
    reserve: u64,
    put_off: Arc<AtomicBool>,
}

impl SnapshotJob {
    /// None: there is no room for it, and nothing was written.
    async fn write(&mut self) -> io::Result<Option<Snapshot>> {
        let applied = self.applied.clone();
        let files = self.files.clone();
        let meta = applied.meta();
        let blank = self.blank.take();
        let reserve = self.reserve;
        let work = move || files.write_within(reserve, blank, &applied.meta(), &applied.state);
        match blocking(work).await? {
            Ok(snapshot) => {
                tracing::info!(
                    index = meta.last_log_id.map(|id| id.index),
                    bytes = snapshot.0.len(),
                    "snapshot written"
                );
                Ok(Some(Snapshot { meta, snapshot }))
            }
            Err(error) if error.is_no_room() => {
                tracing::error!(
                    %error,
                    "snapshot put off, and the log grows meanwhile: free space on the disk of data_dir, or delete what is not needed"
                );
                self.put_off.store(true, Ordering::Release);
                Ok(None)
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotJob {
    type SnapshotData = SnapshotData;

    /// Of one that was put off openraft is told as of a snapshot of nothing, which is none that it has not got: an error would end
    /// consensus here, and on all nodes at once where all have disks of one size.
    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let written = self.write().await?;
        Ok(written.unwrap_or_else(|| Snapshot {
            meta: SnapshotMeta::default(),
            snapshot: SnapshotData(Bytes::new()),
        }))
    }
}

/// A snapshot that is in no file.
async fn pack(applied: Applied, files: SnapshotFiles) -> io::Result<Snapshot> {
    let meta = applied.meta();
    let packing = move || files.pack(&applied.meta(), &applied.state);
    let snapshot = blocking(packing).await?.map_err(io::Error::other)?;
    Ok(Snapshot { meta, snapshot })
}

/// What `open` opens, tried again for as long as this node has no files left: an error would end consensus here for good, and what is
/// to be kept is still wanted when connections have ended. Other errors are the caller's.
async fn once_there_are_files<T: Send + 'static>(
    open: impl Fn() -> Result<T, SnapshotError> + Clone + Send + 'static,
) -> io::Result<T> {
    let mut attempts: u64 = 0;
    loop {
        match blocking(open.clone()).await? {
            Ok(opened) => {
                if attempts > 0 {
                    tracing::info!(attempts, "there are files for the snapshot again");
                }
                return Ok(opened);
            }
            Err(error) if error.is_want() => {
                if attempts.is_multiple_of(TELL_OF_WANT_EVERY) {
                    tracing::warn!(%error, "the snapshot waits until there are files for it, and changes behind it: raise the limit on open files");
                }
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        attempts += 1;
        // Nothing tells when another part of the process has closed some.
        tokio::time::sleep(OPEN_AGAIN).await;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_asked_for_by_bytes_and_by_entries() {
        let limit = Growth {
            bytes: 1000,
            entries: 10,
        };
        for (sizes, asked) in [
            (vec![999], 0),
            (vec![1000], 1),
            (vec![500, 500], 1),
            (vec![1000, 400], 1),
            (vec![1000, 501], 2),
            (vec![1; 9], 0),
            (vec![1; 10], 1),
            (vec![1; 16], 2),
        ] {
            let mut due = SnapshotDue::new(limit);
            for size in &sizes {
                due.count(*size);
                due.ask();
            }
            assert_eq!(*due.subscribe().borrow(), asked, "{sizes:?}");
            due.begun();
            due.ask();
            assert_eq!(*due.subscribe().borrow(), asked, "begun: {sizes:?}");
        }
        let mut due = SnapshotDue::new(limit);
        due.count(1000);
        due.ask();
        due.begun();
        due.put_off();
        for (size, asked) in [(500, 1), (1, 2), (500, 2), (1, 3)] {
            due.count(size);
            due.ask();
            assert_eq!(*due.subscribe().borrow(), asked, "put off, then {size}");
        }
    }

    #[test]
    fn a_large_command_counts_as_what_it_is_to_apply() {
        use crate::state::command::{Change, Command, RequestId, UnixMillis};
        let records = (0..5000).map(|number: u32| {
            let origin = crate::model::name::Name::root();
            let name = crate::model::name::Name::parse(&format!("r{number}.test."), &origin);
            let rtype = crate::model::rrset::RecordType::A;
            let data = number.to_be_bytes();
            let set = crate::model::rrset::Rrset::new(rtype, 300, [&data[..]]);
            (name.expect("a name"), set.expect("a set"))
        });
        let zone = crate::model::name::Name::parse("test.", &crate::model::name::Name::root());
        let command = Command {
            request: RequestId(1),
            born: 0,
            proposed_at: UnixMillis(0),
            author: "t".into(),
            preconditions: vec![],
            changes: vec![Change::ReplaceZone {
                zone: zone.expect("a name"),
                records: records.collect(),
            }],
        };
        let packed = wire::command::encode(&command);
        let bytes = wire::command::unpacked_len(&packed);
        let unpacked = wire::command::decompress(&packed[1..], 1 << 20).expect("zstd");
        assert_eq!(bytes, unpacked.len());
        assert!(bytes > 2 * packed.len(), "{bytes} of {}", packed.len());
        assert_eq!(wire::command::unpacked_len(b"\x02garbage"), 8);
        assert_eq!(wire::command::unpacked_len(b""), 0);
    }

    #[test]
    fn bytes_that_are_no_command_are_refused() {
        let command = EncodedCommand(bytes::Bytes::from_static(b"\xff\xff\xff no command"));
        let decoded = decode(7, &command);
        assert!(
            matches!(&decoded, Err(Outcome::Refused(r)) if r.kind == RefusalKind::FeatureLevel),
            "{decoded:?}"
        );
    }
}
