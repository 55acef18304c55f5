//! A storage that fails ends consensus on its node, and nothing else: no panic, no false acknowledgement, state goes on.

use std::{sync::Arc, time::Duration};

use openraft::{
    RaftSnapshotBuilder,
    entry::RaftEntry,
    storage::{RaftLogStorage, RaftStateMachine},
};

use super::{all_entries, append, entry, log_id, vote};
use crate::{
    alone::{run_alone, take_all_files},
    consensus::{
        engine_memory::MemoryEngine,
        storage::{OpenError, Storage, StorageOptions},
        types::{EncodedCommand, Entry},
    },
    state::command::{Change, Command, RequestId, UnixMillis},
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

fn level(index: u64, level: u32) -> Entry {
    let command = Command {
        request: RequestId(u128::from(index)),
        born: 0,
        proposed_at: UnixMillis(0),
        author: "t".into(),
        preconditions: vec![],
        changes: vec![Change::SetFeatureLevel { level }],
    };
    let encoded = EncodedCommand(crate::wire::command::encode(&command));
    Entry::new(log_id(1, index), openraft::EntryPayload::Normal(encoded))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_takes_no_part_where_it_knows_too_little() {
    let knows = |feature_level| StorageOptions {
        feature_level,
        ..StorageOptions::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(MemoryEngine::new());
    {
        let (mut log, mut machine, handles) =
            Storage::open_on(dir.path(), knows(2), engine.clone()).unwrap();
        append(&mut log, vec![level(0, 2)]).await.unwrap();
        apply(&mut machine, [level(0, 2)]).await;
        assert_eq!(handles.publication.state().state.feature_level(), 2);
        let next = machine.apply(futures::stream::iter([Ok((level(1, 3), None))]));
        let refused = next.await.expect_err("unknown").to_string();
        assert!(refused.contains("at feature level 3"), "{refused}");
        assert_eq!(handles.publication.state().log_id, Some(log_id(1, 0)));
    }
    let (_log, mut machine, _handles) =
        Storage::open_on(dir.path(), knows(2), engine.clone()).unwrap();
    apply(&mut machine, [level(0, 2)]).await;
    let mut builder = machine.get_snapshot_builder().await;
    let made = builder.build_snapshot().await.unwrap();

    // By a snapshot from the leader, and by one's own.
    let other = tempfile::tempdir().unwrap();
    let (_log, mut machine, _handles) =
        Storage::open_on(other.path(), knows(1), Arc::new(MemoryEngine::new())).unwrap();
    let refused = machine.install_snapshot(&made.meta, made.snapshot).await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("install the release")
    );
    let opened = Storage::open_on(dir.path(), knows(1), engine);
    assert!(matches!(opened, Err(OpenError::TooOld(_))));
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

const WITHOUT_FILES: &str = "consensus::storage_tests::failures::without_files_a_snapshot_is_put_off_and_one_that_has_begun_ends_well";

/// In a process of its own, since no file is left to any of its threads.
#[test]
fn without_files_a_snapshot_is_put_off_and_one_that_has_begun_ends_well() {
    run_alone(WITHOUT_FILES, async {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(MemoryEngine::new());
        let (_log, mut machine, _handles) =
            Storage::open_on(dir.path(), StorageOptions::default(), engine).unwrap();
        apply(&mut machine, [level(0, 1)]).await;
        let mut taken = take_all_files();
        assert!(machine.try_create_snapshot_builder(true).await.is_none());

        taken.truncate(taken.len() - 2);
        let mut job = machine.try_create_snapshot_builder(true).await.unwrap();
        taken.extend(take_all_files());
        let made = job.build_snapshot().await.unwrap();
        assert_eq!(made.meta.last_log_id, Some(log_id(1, 0)));
        drop(taken);
        drop(job);
        let left: Vec<_> = std::fs::read_dir(dir.path().join("snapshots"))
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 1, "{left:?}");
        let current = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(current.snapshot.0, made.snapshot.0);
    });
}

const NEEDS_FILES: &str = "consensus::storage_tests::failures::without_files_a_snapshot_is_sent_from_memory_and_one_that_came_is_kept_later";

/// In a process of its own, since no file is left to any of its threads.
#[test]
fn without_files_a_snapshot_is_sent_from_memory_and_one_that_came_is_kept_later() {
    run_alone(NEEDS_FILES, async {
        let [leader, follower] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let open = |dir: &tempfile::TempDir| {
            let engine = Arc::new(MemoryEngine::new());
            Storage::open_on(dir.path(), StorageOptions::default(), engine).unwrap()
        };
        let (_log, mut sends, _handles) = open(&leader);
        let (_log, mut takes, handles) = open(&follower);
        apply(&mut sends, [level(0, 1)]).await;
        let mut builder = sends.get_snapshot_builder().await;
        builder.build_snapshot().await.unwrap();
        apply(&mut sends, [blank(1)]).await;

        let taken = take_all_files();
        let sent = sends.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(sent.meta.last_log_id, Some(log_id(1, 1)));
        {
            let mut keeping = std::pin::pin!(takes.install_snapshot(&sent.meta, sent.snapshot));
            let waits = tokio::time::timeout(Duration::from_millis(50), &mut keeping);
            assert!(waits.await.is_err(), "there is no file to keep it in");
            drop(taken);
            keeping.await.unwrap();
        }
        assert_eq!(handles.publication.state().log_id, Some(log_id(1, 1)));
        let kept = takes.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(kept.meta, sent.meta);
        // What is newest on the disk of the other is not what was sent.
        let on_disk = sends.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(on_disk.meta.last_log_id, Some(log_id(1, 0)));
    });
}

#[tokio::test]
async fn a_snapshot_for_which_there_is_no_room_is_put_off() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(MemoryEngine::new());
    // More than any disk has is to stay free.
    let options = StorageOptions {
        low_space: Some(1 << 60),
        ..StorageOptions::default()
    };
    let (_log, mut machine, _handles) = Storage::open_on(dir.path(), options, engine).unwrap();
    apply(&mut machine, [level(0, 1)]).await;
    let mut job = machine.try_create_snapshot_builder(true).await.unwrap();
    let made = job.build_snapshot().await.unwrap();
    assert_eq!(made.meta.last_log_id, None, "consensus goes on");
    drop(job);
    let left = std::fs::read_dir(dir.path().join("snapshots")).unwrap();
    assert_eq!(left.count(), 0, "nothing of it is left on the disk");
    assert!(machine.get_current_snapshot().await.unwrap().is_none());
}
