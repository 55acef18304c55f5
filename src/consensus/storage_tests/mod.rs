//! The storage under test, on disk and in memory: openraft's own suite, group commit, failures, garbled data, loss of power.
//!
//! They live in the library, not under `tests/`, because one of them needs a barrier that does not hold, which no released
//! program must be able to choose.

mod cut_tree;
mod disk_full;
mod failures;
mod garbled;
mod group_commit;
mod power_loss;
mod suite;
mod write_ahead;

use std::{net::SocketAddr, path::Path, process::Command};

use bytes::Bytes;
use openraft::{
    EntryPayload,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
    vote::RaftLeaderId,
};
use tokio::sync::oneshot;

use super::{
    log_store::LogStore,
    types::{EncodedCommand, Entry, LogId, Peer, TypeConfig, Vote},
};

type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;

/// openraft's suite makes members of nothing.
impl Default for Peer {
    fn default() -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            name: String::new(),
            raft_address: nowhere,
            api_address: nowhere,
        }
    }
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, 1).to_committed(), index)
}

fn vote(term: u64) -> Vote {
    <Vote as openraft::vote::RaftVote>::from_leader_id(LeaderId::new(term, 1), false)
}

/// An entry whose contents follow from its place.
fn entry(term: u64, index: u64, size: usize) -> Entry {
    let byte = (index % 251) as u8;
    let payload = EncodedCommand(Bytes::from(vec![byte; size]));
    Entry::new(log_id(term, index), EntryPayload::Normal(payload))
}

type Acknowledgement = oneshot::Receiver<Result<(), std::io::Error>>;

/// Appends without waiting.
async fn begin_append(log: &mut LogStore, entries: Vec<Entry>) -> Acknowledgement {
    let (sender, receiver) = TypeConfig::oneshot();
    // Its error comes through the channel too.
    let _ = log.append(entries, IOFlushed::signal(sender)).await;
    receiver
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) -> std::io::Result<()> {
    begin_append(log, entries).await.await.unwrap()
}

async fn all_entries(log: &mut LogStore) -> Vec<Entry> {
    use openraft::RaftLogReader;
    log.try_get_log_entries(..).await.unwrap()
}

/// A file system of its own on a file, as root.
struct LoopDisk {
    mount: std::path::PathBuf,
    device: String,
}

impl LoopDisk {
    /// Mounts the file system in `image` at `mount`.
    fn attach(image: &Path, mount: &Path) -> Self {
        std::fs::create_dir_all(mount).unwrap();
        let device = run("losetup", &["-f", "--show", path(image)]);
        let disk = Self {
            mount: mount.to_owned(),
            device: device.trim().to_owned(),
        };
        run("mount", &[&disk.device, path(mount)]);
        disk
    }

    /// Makes an ext4 of `mib` MiB.
    fn make(image: &Path, mib: u64, mount: &Path) -> Self {
        let file = std::fs::File::create(image).unwrap();
        file.set_len(mib << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", path(image)]);
        Self::attach(image, mount)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let quietly = |program: &str, argument: &str| {
            let _ = Command::new(program).arg(argument).output();
        };
        quietly("umount", path(&self.mount));
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Why a test with a loop file cannot run here; none when it can.
fn no_loop_files() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("it mounts a loop file, which needs root".to_owned());
    }
    for program in ["losetup", "mkfs.ext4", "mount", "umount"] {
        if Command::new(program).arg("--version").output().is_err() {
            return Some(format!("{program} is not installed"));
        }
    }
    match Command::new("losetup").arg("-f").output() {
        Ok(output) if output.status.success() => None,
        _ => Some("there are no loop devices here".to_owned()),
    }
}
