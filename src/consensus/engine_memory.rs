//! An engine in memory that fails on demand: the disk of the storage tests.
//!
//! It keeps what was made durable apart from what was only written. A loss of power takes the second away, but for a
//! prefix that happened to reach the disk: just what a real disk may do.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::engine::{Engine, EngineError, Fault, MetadataKey, Operation, Subject, Verb};

#[derive(Default)]
pub struct MemoryEngine {
    disk: Mutex<Disk>,
    held: Mutex<bool>,
    let_go: Condvar,
}

#[derive(Default)]
struct Disk {
    durable: Contents,
    visible: Contents,
    /// Written since the last barrier.
    unflushed: VecDeque<Operation>,
    /// Operations and barriers so far.
    steps: u64,
    fail_at: Option<u64>,
    failed: bool,
    barriers: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Contents {
    entries: BTreeMap<u64, Bytes>,
    metadata: BTreeMap<MetadataKey, Bytes>,
}

impl MemoryEngine {
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the `step`th operation or barrier from now on fail (0: the next), and all after it. A write that fails in its
    /// middle has written what came before.
    pub fn fail_after(&self, steps: u64) {
        let mut disk = self.disk();
        disk.fail_at = Some(disk.steps + steps);
    }

    /// While it is held, no barrier ends, as on a disk that hangs.
    pub fn hold(&self, held: bool) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
        self.let_go.notify_all();
    }

    /// What is found after a loss of power: everything durable, and the first `survivors` of the unflushed operations.
    /// The engine itself goes on as it was.
    pub fn lose_power(&self, survivors: usize) -> Self {
        let disk = self.disk();
        let mut found = disk.durable.clone();
        for operation in disk.unflushed.iter().take(survivors) {
            found.apply(operation);
        }
        Self {
            disk: Mutex::new(Disk {
                durable: found.clone(),
                visible: found,
                ..Disk::default()
            }),
            ..Self::default()
        }
    }

    /// Operations not yet made durable.
    pub fn unflushed(&self) -> usize {
        self.disk().unflushed.len()
    }

    /// Barriers made so far.
    pub fn barriers(&self) -> u64 {
        self.disk().barriers
    }

    /// Replaces the stored bytes of an entry, as a bad disk would.
    pub fn garble(&self, index: u64, change: impl Fn(&mut Vec<u8>)) {
        let mut disk = self.disk();
        let disk = &mut *disk;
        for contents in [&mut disk.durable, &mut disk.visible] {
            if let Some(record) = contents.entries.get_mut(&index) {
                let mut bytes = record.to_vec();
                change(&mut bytes);
                *record = bytes.into();
            }
        }
    }

    /// Loses an entry, as a bad disk would.
    pub fn forget(&self, index: u64) {
        let mut disk = self.disk();
        disk.durable.entries.remove(&index);
        disk.visible.entries.remove(&index);
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    fn step(&mut self, verb: Verb) -> Result<(), EngineError> {
        self.failed |= self.fail_at.is_some_and(|at| self.steps >= at);
        self.steps += 1;
        if self.failed {
            return Err(EngineError {
                verb,
                subject: Subject::Log,
                place: "memory".to_owned(),
                fault: Fault::Other,
                reason: "this failure was asked for".to_owned(),
            });
        }
        Ok(())
    }
}

impl Contents {
    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Append { index, record } => {
                self.entries.split_off(index);
                self.entries.insert(*index, record.clone());
            }
            Operation::Truncate { from } => {
                self.entries.split_off(from);
            }
            Operation::Purge { through } => self.entries.retain(|index, _| index > through),
            Operation::Put { key, record } => {
                self.metadata.insert(*key, record.clone());
            }
        }
    }
}

impl Engine for MemoryEngine {
    fn write(&self, operations: &[Operation]) -> Result<(), EngineError> {
        let mut disk = self.disk();
        for operation in operations {
            disk.step(Verb::Write)?;
            disk.visible.apply(operation);
            disk.unflushed.push_back(operation.clone());
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), EngineError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.let_go.wait_while(held, |held| *held));
        let mut disk = self.disk();
        disk.step(Verb::Flush)?;
        let disk = &mut *disk;
        for operation in disk.unflushed.drain(..) {
            disk.durable.apply(&operation);
        }
        disk.barriers += 1;
        Ok(())
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<(u64, Bytes)>, EngineError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let disk = self.disk();
        let mut bytes = 0;
        let enough = |(_, record): &(&u64, &Bytes)| {
            let go_on = bytes <= max_bytes;
            bytes += record.len();
            go_on
        };
        let found = disk.visible.entries.range(range).take_while(enough);
        Ok(found
            .map(|(index, record)| (*index, record.clone()))
            .collect())
    }

    fn metadata(&self, key: MetadataKey) -> Result<Option<Bytes>, EngineError> {
        Ok(self.disk().visible.metadata.get(&key).cloned())
    }

    fn place(&self) -> String {
        "memory".to_owned()
    }
}
