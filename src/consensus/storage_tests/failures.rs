//! A storage that fails ends consensus on its node, and nothing else: no panic, no false acknowledgement, state goes on.

use std::sync::Arc;

use openraft::{
    entry::RaftEntry,
    storage::{RaftLogStorage, RaftStateMachine},
};

use super::{all_entries, append, entry, log_id, vote};
use crate::consensus::{
    engine_memory::MemoryEngine,
    storage::{Storage, StorageOptions},
    types::Entry,
};

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failure_nothing_is_acknowledged_and_all_acknowledged_is_there() {
    for steps in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(MemoryEngine::new());
        let (mut log, _machine, handles) =
            Storage::open_on(dir.path(), StorageOptions::default(), engine.clone()).unwrap();
        engine.fail_after(steps);
        let mut acknowledged = 0;
        let mut failed = false;
        for index in 0..8 {
            match append(&mut log, vec![entry(1, index, 100)]).await {
                Ok(()) => {
                    assert!(!failed, "acknowledged after a failure");
                    acknowledged = index + 1;
                }
                Err(_) => failed = true,
            }
        }
        assert!(failed, "{steps}");
        assert!(log.save_vote(&vote(2)).await.is_err());
        let health = handles.health.borrow().clone();
        let reason = health.failure.clone().unwrap_or_default();
        assert!(reason.contains("memory"), "{health:?}");
        assert!(!health.is_good());

        let found = Arc::new(engine.lose_power(0));
        let (mut log, _machine, _handles) =
            Storage::open_on(dir.path(), StorageOptions::default(), found).unwrap();
        assert!(all_entries(&mut log).await.len() as u64 >= acknowledged);
    }
}

fn blank(index: u64) -> Entry {
    Entry::new(log_id(1, index), openraft::EntryPayload::Blank)
}

async fn apply(machine: &mut impl RaftStateMachineOfUs, entries: impl IntoIterator<Item = Entry>) {
    let items: Vec<_> = entries.into_iter().map(|e| Ok((e, None))).collect();
    machine.apply(futures::stream::iter(items)).await.unwrap();
}

trait RaftStateMachineOfUs: RaftStateMachine<crate::consensus::types::TypeConfig> {}
impl<T: RaftStateMachine<crate::consensus::types::TypeConfig>> RaftStateMachineOfUs for T {}

#[tokio::test(flavor = "multi_thread")]
async fn state_is_shown_only_once_it_is_durable_and_recovery_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(MemoryEngine::new());
    let (mut log, mut machine, handles) =
        Storage::open_on(dir.path(), StorageOptions::default(), engine.clone()).unwrap();
    let shown = || handles.states.newest().log_id;

    // The others have committed two entries of which this node has stored one.
    append(&mut log, vec![blank(0)]).await.unwrap();
    apply(&mut machine, [blank(0)]).await;
    assert_eq!(shown(), Some(log_id(1, 0)));
    apply(&mut machine, [blank(1)]).await;
    assert_eq!(shown(), Some(log_id(1, 0)));
    append(&mut log, vec![blank(1)]).await.unwrap();
    assert_eq!(shown(), Some(log_id(1, 1)));

    assert!(handles.snapshots.borrow().is_none(), "not recovered yet");
    handles.publication.start();
    assert!(handles.snapshots.borrow().is_some());
    assert_eq!(handles.publication.published(), Some(log_id(1, 1)));

    engine.fail_after(0);
    assert!(append(&mut log, vec![blank(2)]).await.is_err());
    apply(&mut machine, [blank(2)]).await;
    assert_eq!(shown(), Some(log_id(1, 1)), "never durable, never shown");
    assert!(handles.snapshots.borrow().is_some(), "the servers go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_same_directory_needs_no_waiting() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let (mut log, _machine, _handles) =
            Storage::open(dir.path(), StorageOptions::default()).unwrap();
        assert_eq!(all_entries(&mut log).await.len() as u64, round);
        append(&mut log, vec![entry(1, round, 10_000)])
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_opening_says_that_the_log_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Storage::open(dir.path(), StorageOptions::default()).unwrap();
    let Err(error) = Storage::open(dir.path(), StorageOptions::default()) else {
        panic!("opened twice");
    };
    assert!(
        error.to_string().contains("in use by another process"),
        "{error}"
    );
}
