//! A full disk: what was acknowledged stays, the failure is reported, and with some space the log opens again.

use std::{fs, io::Write, path::Path, time::Duration};

use openraft::{RaftLogReader, storage::RaftLogStorage};

use super::{LoopDisk, all_entries, append, entry, log_id, no_loop_files, vote};
use crate::consensus::storage::{Storage, StorageOptions};

fn options() -> StorageOptions {
    StorageOptions {
        low_space: Some(3 << 20),
        ballast: Some(2 << 20),
        ..StorageOptions::default()
    }
}

/// Takes all the space there is.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    // Fails when the space ran out under it, which is what is wanted.
    let _ = file.sync_all();
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_entries_survive_a_full_disk() {
    if let Some(reason) = no_loop_files() {
        return crate::skipped::skip(reason);
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = LoopDisk::make(&dir.path().join("image"), 24, &dir.path().join("disk"));
    let data = disk.mount.join("data");
    let filler = disk.mount.join("filler");

    let acknowledged = {
        let (mut log, _machine, mut handles) = Storage::open(&data, options()).unwrap();
        assert!(handles.health.borrow().is_good());
        fs::write(&filler, vec![1; 4 << 20]).unwrap();
        let mut acknowledged = 0;
        let failed = loop {
            let one = append(&mut log, vec![entry(1, acknowledged, 20_000)]);
            match tokio::time::timeout(Duration::from_secs(90), one).await {
                Ok(Ok(())) => acknowledged += 1,
                Ok(Err(error)) => break error.to_string(),
                Err(_) => panic!("the log hangs on a full disk"),
            }
            assert!(acknowledged < 10_000, "the disk is never full");
        };
        assert!(acknowledged > 50, "{acknowledged}");
        let reported = handles.health.wait_for(|health| health.failure.is_some());
        let reported = reported.await.unwrap().failure.clone();
        assert!(failed.contains(&reported.unwrap()), "{failed}");
        let low = handles.health.wait_for(|health| health.low_space());
        tokio::time::timeout(Duration::from_secs(10), low)
            .await
            .unwrap()
            .unwrap();
        assert!(
            append(&mut log, vec![entry(1, acknowledged, 10)])
                .await
                .is_err()
        );
        acknowledged
    };

    // No space was made: the ballast lets the log be opened, and the node knows that it is short of space.
    {
        let (mut log, _machine, handles) = Storage::open(&data, options()).unwrap();
        assert!(handles.health.borrow().low_space());
        assert!(all_entries(&mut log).await.len() as u64 >= acknowledged);
    }

    // The last of the space is gone too. What is stored can be read. Whether the log can still be opened for writing is up to
    // the blocks that it has: a few entries may fit into the last one, and then none is acknowledged any more.
    let last = disk.mount.join("last");
    fill(&last);
    let acknowledged = {
        let (mut log, _machine, handles) = Storage::open(&data, options()).unwrap();
        let mut stored = all_entries(&mut log).await.len() as u64;
        assert!(stored >= acknowledged);
        while append(&mut log, vec![entry(1, stored, 20_000)])
            .await
            .is_ok()
        {
            stored += 1;
            assert!(stored < 10_000, "the disk is never full");
        }
        let failure = handles.health.borrow().failure.clone().unwrap();
        assert!(
            failure.to_lowercase().contains("no space left"),
            "{failure}"
        );
        assert!(log.save_vote(&vote(9)).await.is_err());
        stored
    };

    fs::remove_file(&last).unwrap();
    fs::remove_file(&filler).unwrap();
    let (mut log, _machine, handles) = Storage::open(&data, options()).unwrap();
    assert!(
        handles.health.borrow().is_good(),
        "{:?}",
        handles.health.borrow()
    );
    let entries = all_entries(&mut log).await;
    assert!(entries.len() as u64 >= acknowledged);
    for (index, found) in (0..).zip(&entries) {
        assert_eq!(*found, entry(1, index, 20_000));
    }
    let next = entries.len() as u64;
    append(&mut log, vec![entry(1, next, 20_000)])
        .await
        .unwrap();
    log.save_committed(Some(log_id(1, next))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_opened_to_be_read_shows_all_and_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut log, _machine, _handles) = Storage::open(dir.path(), options()).unwrap();
        let entries = (0..20).map(|index| entry(1, index, 500)).collect();
        append(&mut log, entries).await.unwrap();
        log.save_vote(&vote(7)).await.unwrap();
    }
    {
        let (mut log, _machine, handles) =
            Storage::open_without_space(dir.path(), options()).unwrap();
        let failure = handles.health.borrow().failure.clone().unwrap();
        assert!(failure.contains("no space left"), "{failure}");
        assert_eq!(all_entries(&mut log).await.len(), 20);
        assert!(append(&mut log, vec![entry(1, 20, 10)]).await.is_err());
        assert!(log.save_vote(&vote(9)).await.is_err());
    }
    let (mut log, _machine, handles) = Storage::open(dir.path(), options()).unwrap();
    assert!(handles.health.borrow().failure.is_none());
    assert_eq!(all_entries(&mut log).await.len(), 20);
    assert_eq!(log.read_vote().await.unwrap(), Some(vote(7)));
}
