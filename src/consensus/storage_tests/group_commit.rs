//! One barrier for all that waits, nothing acknowledged before it, everything in order.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use openraft::storage::RaftLogStorage;
use proptest::prelude::*;
use tokio::sync::oneshot::error::TryRecvError;

use super::{all_entries, begin_append, entry, log_id, vote};
use crate::consensus::{
    engine::{Engine, EngineError, MetadataKey, Operation},
    engine_memory::MemoryEngine,
    log_store::LogStore,
    storage::{Storage, StorageOptions},
};

/// Notes what is written.
#[derive(Default)]
struct WatchedEngine {
    memory: MemoryEngine,
    written: Mutex<Vec<Operation>>,
}

impl Engine for WatchedEngine {
    fn write(&self, operations: &[Operation]) -> Result<(), EngineError> {
        self.written.lock().unwrap().extend_from_slice(operations);
        self.memory.write(operations)
    }

    fn barrier(&self) -> Result<(), EngineError> {
        self.memory.barrier()
    }

    fn read(&self, range: Range<u64>, max: usize) -> Result<Vec<(u64, Bytes)>, EngineError> {
        self.memory.read(range, max)
    }

    fn metadata(&self, key: MetadataKey) -> Result<Option<Bytes>, EngineError> {
        self.memory.metadata(key)
    }

    fn place(&self) -> String {
        self.memory.place()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_shares_one_barrier_and_keeps_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(WatchedEngine::default());
    let (mut log, _machine, _handles) =
        Storage::open_on(dir.path(), StorageOptions::default(), engine.clone()).unwrap();
    engine.written.lock().unwrap().clear();
    let barriers = engine.memory.barriers();

    engine.memory.hold(true);
    let mut first = begin_append(&mut log, vec![entry(1, 0, 10)]).await;
    until(|| !engine.written.lock().unwrap().is_empty());
    let mut others = Vec::new();
    for index in 1..10 {
        others.push(begin_append(&mut log, vec![entry(1, index, 10)]).await);
    }
    let mut voter = log.clone();
    let voting = tokio::spawn(async move { voter.save_vote(&vote(2)).await });

    assert_eq!(first.try_recv().unwrap_err(), TryRecvError::Empty);
    assert!(others.iter_mut().all(|o| o.try_recv().is_err()));
    assert_eq!(all_entries(&mut log).await.len(), 10, "readable at once");

    engine.memory.hold(false);
    first.await.unwrap().unwrap();
    for other in others {
        other.await.unwrap().unwrap();
    }
    voting.await.unwrap().unwrap();

    let made = engine.memory.barriers() - barriers;
    assert!((2..=3).contains(&made), "{made} barriers");
    let written = engine.written.lock().unwrap();
    let indexes: Vec<_> = written
        .iter()
        .filter_map(|operation| match operation {
            Operation::Append { index, .. } => Some(*index),
            _ => None,
        })
        .collect();
    assert_eq!(indexes, (0..10).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_committed_index_is_stored_without_anybody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(MemoryEngine::new());
    let open = |engine| Storage::open_on(dir.path(), StorageOptions::default(), engine).unwrap();
    let (mut log, _machine, _handles) = open(engine.clone());
    super::append(&mut log, vec![entry(1, 0, 10), entry(1, 1, 10)])
        .await
        .unwrap();
    log.save_committed(Some(log_id(1, 1))).await.unwrap();
    let stored = || {
        let key = MetadataKey::Committed;
        let after = engine.lose_power(0);
        after.metadata(key).unwrap().is_some()
    };
    until(stored);
    let (mut again, _machine, handles) = open(Arc::new(engine.lose_power(0)));
    assert_eq!(again.read_committed().await.unwrap(), Some(log_id(1, 1)));
    assert_eq!(handles.recovered.committed, Some(log_id(1, 1)));
}

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come true in 10 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What openraft may ask of the log.
#[derive(Clone, Debug)]
enum Step {
    Append {
        count: u64,
        size: usize,
    },
    /// Keeps this share of what is uncommitted.
    Truncate {
        keep: u64,
    },
    Vote,
    Commit,
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..5u64, prop_oneof![0..200usize, 5000..20_000usize])
            .prop_map(|(count, size)| Step::Append { count, size }),
        1 => (0..4u64).prop_map(|keep| Step::Truncate { keep }),
        1 => Just(Step::Vote),
        1 => Just(Step::Commit),
        2 => Just(Step::Wait),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Power goes at any time, with any prefix of the unflushed writes on disk: nothing acknowledged is missing.
    #[test]
    fn nothing_acknowledged_is_lost_with_the_power(steps in steps(), survivors in 0..50usize) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        runtime.block_on(lose_power_after(steps, survivors));
    }
}

async fn lose_power_after(steps: Vec<Step>, survivors: usize) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(MemoryEngine::new());
    let open = |engine| Storage::open_on(dir.path(), StorageOptions::default(), engine).unwrap();
    let (mut log, _machine, _handles) = open(engine.clone());
    let mut model = Model::default();
    for step in steps {
        model.take(&mut log, step).await;
    }

    // First what has been acknowledged, then the power: an acknowledgement in between only makes the disk hold more.
    model.note_acknowledged();
    let found = Arc::new(engine.lose_power(survivors));
    let (mut log, _machine, _handles) = open(found);
    let entries = all_entries(&mut log).await;
    for (index, term) in model.acknowledged {
        let position = usize::try_from(index).unwrap();
        let found = entries.get(position).map(|e| (e.log_id, e.clone()));
        let Some((id, stored)) = found else {
            panic!("entry {index} of term {term} was acknowledged and is gone");
        };
        // A later term may have replaced it: that truncation reached the disk and was never acknowledged itself.
        if id == log_id(term, index) {
            assert_eq!(stored, entry(term, index, payload(&stored)));
        } else {
            assert!(id > log_id(term, index) && model.replaced.contains(&index));
        }
    }
    use openraft::RaftLogReader;
    assert!(log.read_vote().await.unwrap() >= model.voted.map(vote));
}

fn payload(entry: &crate::consensus::types::Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(command) => command.0.len(),
        _ => 0,
    }
}

/// What the log should hold.
#[derive(Default)]
struct Model {
    term: u64,
    next: u64,
    committed: u64,
    pending: Vec<(Vec<(u64, u64)>, super::Acknowledgement)>,
    acknowledged: std::collections::BTreeMap<u64, u64>,
    replaced: std::collections::BTreeSet<u64>,
    voted: Option<u64>,
}

impl Model {
    async fn take(&mut self, log: &mut LogStore, step: Step) {
        match step {
            Step::Append { count, size } => {
                let places: Vec<_> = (self.next..self.next + count)
                    .map(|i| (i, self.term))
                    .collect();
                let entries = places.iter().map(|(i, t)| entry(*t, *i, size)).collect();
                self.next += count;
                let done = begin_append(log, entries).await;
                self.pending.push((places, done));
            }
            Step::Truncate { keep } => {
                self.note_acknowledged();
                let from = self.committed + (self.next - self.committed) * keep / 4;
                let last = from.checked_sub(1);
                let term = |index| self.acknowledged.get(&index).copied().unwrap_or_default();
                let last = last.map(|index| log_id(term(index), index));
                log.truncate_after(last).await.unwrap();
                self.replaced.extend(from..self.next);
                self.acknowledged.split_off(&from);
                for (places, _) in &mut self.pending {
                    places.retain(|(index, _)| *index < from);
                }
                self.next = from;
                self.term += 1;
            }
            Step::Vote => {
                self.term += 1;
                log.save_vote(&vote(self.term)).await.unwrap();
                self.voted = Some(self.term);
            }
            Step::Commit => {
                self.wait().await;
                self.committed = self.next;
                let last = self.acknowledged.last_key_value();
                let id = last.map(|(index, term)| log_id(*term, *index));
                log.save_committed(id).await.unwrap();
            }
            Step::Wait => self.wait().await,
        }
    }

    async fn wait(&mut self) {
        for (places, done) in std::mem::take(&mut self.pending) {
            done.await.unwrap().unwrap();
            self.acknowledged.extend(places);
        }
    }

    fn note_acknowledged(&mut self) {
        for (places, mut done) in std::mem::take(&mut self.pending) {
            match done.try_recv() {
                Ok(result) => {
                    result.unwrap();
                    self.acknowledged.extend(places);
                }
                Err(_) => self.pending.push((places, done)),
            }
        }
    }
}

/// Ends at each step of two batches. The entry that is called committed while the first waits is in the second.
#[tokio::test(flavor = "multi_thread")]
async fn the_committed_index_is_not_stored_before_the_entry_that_it_names() {
    for steps in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let open = |engine| Storage::open_on(dir.path(), StorageOptions::default(), engine);
        let engine = Arc::new(MemoryEngine::new());
        let (mut log, machine, handles) = open(engine.clone()).unwrap();
        engine.hold(true);
        let mut done = vec![begin_append(&mut log, vec![entry(1, 0, 10)]).await];
        until(|| engine.unflushed() > 0);
        for index in 1..4 {
            // Two of them fill a batch.
            done.push(begin_append(&mut log, vec![entry(1, index, 600_000)]).await);
        }
        log.save_committed(Some(log_id(1, 3))).await.unwrap();
        engine.fail_after(steps);
        engine.hold(false);
        let mut whole = true;
        for done in done {
            whole &= done.await.unwrap().is_ok();
        }
        assert_eq!(whole, steps >= 7, "{steps}");
        drop((log, machine, handles));
        if let Err(error) = open(Arc::new(engine.lose_power(0))) {
            panic!("after {steps} steps: {error}");
        }
    }
}
