//! Garbled and missing data: never half used, always named.

use std::{fs, path::Path, sync::Arc};

use openraft::{
    EntryPayload, RaftSnapshotBuilder,
    entry::RaftEntry,
    storage::{RaftLogStorage, RaftStateMachine},
};

use super::{all_entries, append, entry, log_id, vote};
use crate::consensus::{
    engine_memory::MemoryEngine,
    log_store::LogStore,
    machine_store::MachineStore,
    storage::{Storage, StorageHandles, StorageOptions},
    types::Entry,
};

type Opened = (LogStore, MachineStore, StorageHandles);

fn open(dir: &Path) -> Result<Opened, String> {
    Storage::open(dir, StorageOptions::default()).map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbled_or_missing_entry_is_named_at_start() {
    type Harm = fn(&MemoryEngine);
    let harms: [(Harm, &str); 5] = [
        (
            |e| e.garble(3, |bytes| bytes[20] ^= 1),
            "entry 3: its checksum",
        ),
        (|e| e.garble(3, |bytes| bytes[0] = 9), "entry 3: version 9"),
        (
            |e| e.garble(3, |bytes| bytes.truncate(3)),
            "entry 3: cut off",
        ),
        (|e| e.forget(3), "entry 3: missing"),
        (|e| e.forget(0), "entry 0: missing"),
    ];
    for (harm, named) in harms {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(MemoryEngine::new());
        let (mut log, machine, handles) =
            Storage::open_on(dir.path(), StorageOptions::default(), engine.clone()).unwrap();
        append(&mut log, (0..6).map(|i| entry(1, i, 50)).collect())
            .await
            .unwrap();
        drop((log, machine, handles));
        harm(&engine);
        let Err(error) = Storage::open_on(dir.path(), StorageOptions::default(), engine) else {
            panic!("opened, although {named}");
        };
        let error = error.to_string();
        assert!(error.contains(named), "{error}");
        assert!(error.contains("join anew"), "{error}");
    }
}

/// Wherever the file of the log is garbled, the node either has everything it acknowledged or does not start.
#[tokio::test(flavor = "multi_thread")]
async fn a_garbled_log_file_never_loses_acknowledged_entries_silently() {
    const ENTRIES: u64 = 60;
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    {
        let (mut log, mut machine, handles) = open(&whole).unwrap();
        log.save_vote(&vote(7)).await.unwrap();
        for index in 0..ENTRIES {
            append(&mut log, vec![entry(7, index, 3000)]).await.unwrap();
        }
        let items: Vec<_> = (0..ENTRIES)
            .map(|i| Ok((entry(7, i, 3000), None)))
            .collect();
        machine.apply(futures::stream::iter(items)).await.unwrap();
        handles.publication.start();
    }
    for (file, places) in [("log/db", 40), ("log/journal", 20)] {
        let length = fs::metadata(whole.join(file)).unwrap().len();
        let mut refused = 0;
        for at in (0..length).step_by(usize::try_from(length / places).unwrap()) {
            let copy = dir.path().join("copy");
            copy_directory(&whole, &copy);
            let mut bytes = fs::read(copy.join(file)).unwrap();
            for byte in bytes.iter_mut().skip(usize::try_from(at).unwrap()).take(16) {
                *byte = !*byte;
            }
            fs::write(copy.join(file), bytes).unwrap();
            match open(&copy) {
                Ok((mut log, machine, handles)) => {
                    let found = all_entries(&mut log).await;
                    assert_eq!(found.len() as u64, ENTRIES, "{file} garbled at {at}");
                    drop((log, machine, handles));
                }
                Err(error) => {
                    let what = format!("{file} garbled at {at}: {error}");
                    assert!(error.contains("join anew"), "{what}");
                    assert!(!error.contains("panicked"), "{what}");
                    refused += 1;
                }
            }
            fs::remove_dir_all(&copy).unwrap();
        }
        assert!(refused > 0, "no garbling of {file} was noticed");
    }
}

/// What sled itself would say of it speaks of versions, settings and bugs.
#[tokio::test(flavor = "multi_thread")]
async fn a_garbled_file_of_settings_is_named() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut log, _machine, _handles) = open(dir.path()).unwrap();
        append(&mut log, vec![entry(1, 0, 10)]).await.unwrap();
    }
    let path = dir.path().join("log/conf");
    let whole = fs::read(&path).unwrap();
    let mut harms = vec![b"x".repeat(9), b"garbage ".repeat(100), vec![0xff; 60]];
    harms.extend((0..whole.len()).map(|at| {
        let mut harmed = whole.clone();
        harmed[at] ^= 1;
        harmed
    }));
    for harm in harms {
        fs::write(&path, &harm).unwrap();
        let Err(error) = open(dir.path()) else {
            panic!("opened with {harm:?}");
        };
        let log = dir.path().join("log").display().to_string();
        for told in [log.as_str(), "its file conf", "join anew"] {
            assert!(error.contains(told), "{error}");
        }
    }
    // It holds nothing of ours: without it, it is written again.
    fs::remove_file(&path).unwrap();
    let (mut log, _machine, _handles) = open(dir.path()).unwrap();
    assert_eq!(all_entries(&mut log).await, [entry(1, 0, 10)]);
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_an_earlier_form_is_not_called_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let path = dir.path().join("log/journal");
    let mut bytes = fs::read(&path).unwrap();
    bytes[..4].copy_from_slice(b"pjr1");
    fs::write(&path, bytes).unwrap();
    let Err(error) = open(dir.path()) else {
        panic!("opened with a journal of another form");
    };
    assert!(error.contains("of an earlier form"), "{error}");
    assert!(!error.contains("corrupt"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_was_taken_away_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    fs::remove_file(dir.path().join("log/journal")).unwrap();
    let Err(error) = open(dir.path()) else {
        panic!("opened without the journal");
    };
    assert!(
        error.contains("the journal is missing") && error.contains("join anew"),
        "{error}"
    );
}

/// What the journal holds then may be all that is left of acknowledged writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_whose_tree_was_taken_away_is_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut log, _machine, _handles) = open(dir.path()).unwrap();
        append(&mut log, vec![entry(1, 0, 10)]).await.unwrap();
    }
    let log = dir.path().join("log");
    let journal = fs::read(log.join("journal")).unwrap();
    for file in fs::read_dir(&log).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name == "db" || name.starts_with("snap.") {
            fs::remove_file(path).unwrap();
        }
    }
    let Err(error) = open(dir.path()) else {
        panic!("opened without the tree");
    };
    assert!(
        error.contains("its tree is empty") && error.contains("join anew"),
        "{error}"
    );
    assert!(fs::read(log.join("journal")).unwrap() == journal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_taken_away_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut log, _machine, _handles) = open(dir.path()).unwrap();
        log.save_vote(&vote(3)).await.unwrap();
    }
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    let Err(error) = open(dir.path()) else {
        panic!("opened without the log");
    };
    assert!(
        error.contains("lost a vote") && error.contains("join anew"),
        "{error}"
    );
}

/// Without the watermark nobody knows what the log should hold: a tail that is gone with it would not be missed.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_its_watermark_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node");
    {
        let (mut log, _machine, _handles) = open(&node).unwrap();
        log.save_vote(&vote(3)).await.unwrap();
        append(&mut log, vec![entry(3, 0, 10)]).await.unwrap();
    }
    let path = node.join("watermark");
    let whole = fs::read(&path).unwrap();
    let inverted: Vec<u8> = whole.iter().map(|byte| !byte).collect();
    for (harm, how) in [
        (None, "missing"),
        (Some(vec![]), "missing"),
        (Some(vec![0; whole.len()]), "garbled"),
        (Some(inverted), "garbled"),
        (Some(whole[..3].to_vec()), "garbled"),
    ] {
        match &harm {
            None => fs::remove_file(&path).unwrap(),
            Some(bytes) => fs::write(&path, bytes).unwrap(),
        }
        // Twice: being refused writes no new one.
        for _ in 0..2 {
            let Err(error) = open(&node) else {
                panic!("opened with {harm:?}");
            };
            let named = format!("{} is {how}", path.display());
            assert!(
                error.contains(&named) && error.contains("join anew"),
                "{error}"
            );
        }
        assert_eq!(fs::read(&path).ok(), harm, "left as it was");
    }
    // Power loss while it is written leaves one of its two copies.
    let mut torn = whole;
    torn[4096..].fill(0);
    fs::write(&path, torn).unwrap();
    let (mut log, _machine, _handles) = open(&node).unwrap();
    assert_eq!(all_entries(&mut log).await, [entry(3, 0, 10)]);
}

/// A snapshot is as much a reason to miss the watermark as a log is.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_without_log_and_watermark_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut log, mut machine, _handles) = open(dir.path()).unwrap();
        grow(&mut log, &mut machine, 0).await;
    }
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    fs::remove_file(dir.path().join("watermark")).unwrap();
    let Err(error) = open(dir.path()) else {
        panic!("opened without log and watermark");
    };
    assert!(error.contains("watermark is missing"), "{error}");
}

/// A node killed while it was starting starts again.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_start_left_behind_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("log.unfinished/blobs")).unwrap();
    fs::write(dir.path().join("log.unfinished/conf"), b"").unwrap();
    fs::write(dir.path().join("watermark"), b"").unwrap();
    {
        let (mut log, _machine, _handles) = open(dir.path()).unwrap();
        append(&mut log, vec![entry(1, 0, 10)]).await.unwrap();
    }
    assert!(!dir.path().join("log.unfinished").exists());
    let half = dir.path().join("log/snap.7FFFFFFFFFFFFFFF.generating");
    fs::write(&half, b"half").unwrap();
    let (mut log, _machine, _handles) = open(dir.path()).unwrap();
    assert_eq!(all_entries(&mut log).await, [entry(1, 0, 10)]);
}

fn blank(index: u64) -> Entry {
    Entry::new(log_id(1, index), EntryPayload::Blank)
}

/// Ten entries stored and applied, then a snapshot.
async fn grow(log: &mut LogStore, machine: &mut MachineStore, from: u64) {
    let entries: Vec<_> = (from..from + 10).map(blank).collect();
    append(log, entries.clone()).await.unwrap();
    let items: Vec<_> = entries.into_iter().map(|e| Ok((e, None))).collect();
    machine.apply(futures::stream::iter(items)).await.unwrap();
    log.save_committed(Some(log_id(1, from + 9))).await.unwrap();
    let mut job = machine.try_create_snapshot_builder(true).await.unwrap();
    job.build_snapshot().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbled_snapshot_is_replaced_by_the_one_before_and_the_log() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut log, mut machine, _handles) = open(dir.path()).unwrap();
        for from in [0, 10, 20] {
            grow(&mut log, &mut machine, from).await;
            log.purge(log_id(1, from + 9)).await.unwrap();
        }
        assert!(all_entries(&mut log).await.is_empty(), "out of sight");
    }
    let newest = snapshots(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    bytes.pop();
    fs::write(&newest, bytes).unwrap();

    let (mut log, mut machine, handles) = open(dir.path()).unwrap();
    assert_eq!(handles.recovered.snapshot, Some(log_id(1, 19)));
    assert_eq!(handles.recovered.committed, Some(log_id(1, 29)));
    assert_eq!(
        machine.applied_state().await.unwrap().0,
        Some(log_id(1, 19))
    );
    let entries = all_entries(&mut log).await;
    assert_eq!(entries, (20..30).map(blank).collect::<Vec<_>>());
    assert_eq!(snapshots(dir.path()).len(), 1, "set aside");
    drop((log, machine, handles));

    // With the last whole one gone too, the log does not reach back far enough.
    fs::remove_file(&snapshots(dir.path())[0]).unwrap();
    let Err(error) = open(dir.path()) else {
        panic!("opened with a part of the log missing");
    };
    assert!(error.contains("begins after entry 19"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installed_snapshot_survives_one_garbled_copy() {
    let (leader, follower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut log, mut machine, _handles) = open(leader.path()).unwrap();
    grow(&mut log, &mut machine, 0).await;
    let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
    {
        let (mut log, mut machine, handles) = open(follower.path()).unwrap();
        append(&mut log, vec![blank(0), blank(1)]).await.unwrap();
        machine
            .install_snapshot(&snapshot.meta, snapshot.snapshot.clone())
            .await
            .unwrap();
        log.purge(log_id(1, 9)).await.unwrap();
        append(&mut log, vec![blank(10)]).await.unwrap();
        assert_eq!(handles.states.newest().log_id, Some(log_id(1, 9)));
    }
    fs::write(snapshots(follower.path()).pop().unwrap(), b"garbage").unwrap();
    let (mut log, mut machine, _handles) = open(follower.path()).unwrap();
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(1, 9)));
    assert_eq!(all_entries(&mut log).await, [blank(10)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_garbled_on_its_way_changes_nothing() {
    let (leader, follower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut log, mut machine, _handles) = open(leader.path()).unwrap();
    grow(&mut log, &mut machine, 0).await;
    let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
    let (_log, mut machine, _handles) = open(follower.path()).unwrap();
    let whole = snapshot.snapshot.0.to_vec();
    for at in 0..whole.len() {
        let mut garbled = whole.clone();
        garbled[at] ^= 0x10;
        let data = crate::consensus::types::SnapshotData(garbled.into());
        assert!(crate::consensus::snapshot_file::verify(&data).is_err());
        if at % 16 == 0 {
            let refused = machine.install_snapshot(&snapshot.meta, data).await;
            assert!(refused.is_err(), "byte {at}");
        }
    }
    assert_eq!(machine.applied_state().await.unwrap().0, None);
    assert!(machine.get_current_snapshot().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_goes_bad_while_the_node_runs_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, mut machine, _handles) = open(dir.path()).unwrap();
    grow(&mut log, &mut machine, 0).await;
    fs::write(&snapshots(dir.path())[0], b"garbage").unwrap();
    let again = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(again.meta.last_log_id, Some(log_id(1, 9)));
    assert_eq!(snapshots(dir.path()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_snapshots_are_kept_and_unfinished_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut log, mut machine, _handles) = open(dir.path()).unwrap();
        for from in [0, 10, 20, 30] {
            grow(&mut log, &mut machine, from).await;
        }
    }
    assert_eq!(snapshots(dir.path()).len(), 2);
    let unfinished = dir.path().join("snapshots/0000000009-99.unfinished");
    fs::write(&unfinished, b"half").unwrap();
    let (_log, mut machine, _handles) = open(dir.path()).unwrap();
    assert!(!unfinished.exists());
    assert_eq!(
        machine.applied_state().await.unwrap().0,
        Some(log_id(1, 39))
    );
}

/// The snapshot files, oldest first.
fn snapshots(dir: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(dir.join("snapshots")).unwrap();
    let mut found: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "snapshot"));
    found.sort();
    found
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let path = file.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_directory(&path, &target);
        } else if path.file_name().is_none_or(|name| name != "ballast") {
            fs::copy(&path, &target).unwrap();
        }
    }
}
