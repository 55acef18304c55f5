//! Real loss of power, as near as one machine allows: a writer on a file system in a file is stopped at some instant, the
//! file is copied, the copy is mounted, and what the writer was told to be durable must be in it.
//!
//! The kernel's caches above the file are lost that way; whatever a barrier did not push into the file is gone. The same
//! test with a barrier that is sled's `flush` alone must fail, or it would prove nothing.
//!
//! The writer is this test binary, started again with the test `writer` and a directory in its environment.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use openraft::storage::RaftLogStorage;

use super::{LoopDisk, all_entries, begin_append, entry, log_id, no_loop_files, vote};
use crate::consensus::{
    engine_sled::Barrier,
    journal,
    storage::{Storage, StorageOptions},
};

const DIRECTORY: &str = "PONTOON_TEST_POWER_LOSS_DIRECTORY";
const ACKNOWLEDGED: &str = "PONTOON_TEST_POWER_LOSS_ACKNOWLEDGED";
const BARRIER: &str = "PONTOON_TEST_POWER_LOSS_BARRIER";
const ROUNDS: u32 = 5;
/// Entries in flight at a time.
const GROUP: u64 = 8;

/// Every fourth entry is larger than sled would keep in a page. One in each second group goes past the journal into the tree,
/// whose own barrier has to hold then; what comes after it is in the journal, and makes nothing of it durable.
fn size(index: u64) -> usize {
    match index % 16 {
        0 | 8 => 40_000,
        4 | 12 => 9_000,
        10 => journal::LARGEST + 40_000,
        _ => 300,
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    if let Some(reason) = no_loop_files() {
        return crate::skipped::skip(reason);
    }
    for round in 0..ROUNDS {
        let loss = lose_power("durable", round);
        assert_eq!(loss, Ok(()), "round {round}");
    }
}

#[test]
fn the_same_test_catches_a_barrier_that_does_not_hold() {
    if let Some(reason) = no_loop_files() {
        return crate::skipped::skip(reason);
    }
    let caught = (0..ROUNDS).any(|round| lose_power("flush", round).is_err());
    assert!(
        caught,
        "flush alone lost nothing: this test proves nothing here"
    );
}

/// A process that is killed at any time, also while it starts, loses nothing and starts again.
#[test]
fn killed_again_and_again_it_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let acknowledged = dir.path().join("acknowledged");
    let mut promised = 0;
    for round in 0..20u64 {
        let mut writer = start_writer(&data, &acknowledged, "durable");
        // Every third one is left to acknowledge something; the others are killed at odd moments of their start.
        let enough = promised + u64::from(round % 3 == 0) * 10;
        let early = Instant::now() + Duration::from_millis(round * 7 % 60);
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < early || count(&acknowledged) < enough {
            assert!(Instant::now() < deadline, "the writer is too slow");
            let ended = writer.0.try_wait().unwrap();
            assert!(ended.is_none(), "the writer ended in round {round}");
            thread::sleep(Duration::from_millis(1));
        }
        writer.0.kill().unwrap();
        writer.0.wait().unwrap();
        promised = promised.max(count(&acknowledged));
        assert_eq!(recover(&data, promised), Ok(()), "round {round}");
    }
    assert!(promised >= 60, "{promised}");
}

/// One round; the error says what was lost.
fn lose_power(barrier: &str, round: u32) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let frozen = dir.path().join("frozen");
    let acknowledged = dir.path().join("acknowledged");
    let disk = LoopDisk::make(&image, 256, &dir.path().join("disk"));
    let mut writer = start_writer(&disk.mount.join("data"), &acknowledged, barrier);

    let wanted = 40 + u64::from(round) * 37;
    let deadline = Instant::now() + Duration::from_secs(60);
    while count(&acknowledged) < wanted {
        assert!(Instant::now() < deadline, "the writer is too slow");
        assert!(writer.0.try_wait().unwrap().is_none(), "the writer ended");
        thread::sleep(Duration::from_millis(1));
    }
    let pid = Pid::from_raw(i32::try_from(writer.0.id()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    // Counted before the power goes: at least these were acknowledged.
    let promised = count(&acknowledged);
    super::run(
        "cp",
        &["--sparse=always", super::path(&image), super::path(&frozen)],
    );
    drop(writer);
    drop(disk);

    let after = LoopDisk::attach(&frozen, &dir.path().join("after"));
    let found = recover(&after.mount.join("data"), promised);
    drop(after);
    found
}

/// Opens what is left and looks for everything promised.
fn recover(directory: &Path, promised: u64) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = StorageOptions::default();
        let (mut log, _machine, handles) =
            Storage::open(directory, options).map_err(|e| e.to_string())?;
        let entries = all_entries(&mut log).await;
        let found = entries.len() as u64;
        if found < promised {
            return Err(format!("{found} entries found, {promised} acknowledged"));
        }
        for (index, found) in (0..).zip(&entries) {
            if *found != entry(1, index, size(index)) {
                return Err(format!("entry {index} is another one"));
            }
        }
        let blobs = fs::read_dir(directory.join("log/blobs")).unwrap().count();
        assert_eq!(blobs, 0, "a value became a file of its own");
        drop((log, handles));
        Ok(())
    })
}

struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_writer(directory: &Path, acknowledged: &Path, barrier: &str) -> Writer {
    let this = std::env::current_exe().unwrap();
    let test = concat!(module_path!(), "::writer");
    let test = test.split_once("::").unwrap().1;
    let child = Command::new(this)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(ACKNOWLEDGED, acknowledged)
        .env(BARRIER, barrier)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Writer(child.unwrap())
}

/// How many entries the writer was told to be durable.
fn count(acknowledged: &Path) -> u64 {
    let bytes = fs::read(acknowledged).unwrap_or_default();
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

/// The writer's own process: appends without end, and notes elsewhere how many entries were acknowledged.
#[test]
#[ignore = "started by the tests above"]
fn writer() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let barrier = match std::env::var(BARRIER).unwrap().as_str() {
        "flush" => Barrier::FlushOnly,
        _ => Barrier::Durable,
    };
    let note = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(std::env::var_os(ACKNOWLEDGED).unwrap())
        .unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = StorageOptions::default();
        let (mut log, _machine, _handles) =
            Storage::open_with(&directory, options, barrier).unwrap();
        log.save_vote(&vote(1)).await.unwrap();
        let mut next = all_entries(&mut log).await.len() as u64;
        loop {
            let mut group = Vec::new();
            for index in next..next + GROUP {
                group.push(begin_append(&mut log, vec![entry(1, index, size(index))]).await);
            }
            for done in group {
                done.await.unwrap().unwrap();
                next += 1;
                note.write_all_at(&u64::to_le_bytes(next), 0).unwrap();
            }
            // What is purged makes sled use its space again, while it is being copied.
            log.save_committed(Some(log_id(1, next - 1))).await.unwrap();
        }
    });
}
