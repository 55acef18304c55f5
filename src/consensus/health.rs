//! How the storage is doing, for status, metrics and the decision to refuse proposals.
//!
//! The space left on the file system is watched here. A disk that hangs is for `disk` to tell: it ends nothing, for it may answer again, and
//! where all nodes' disks are one, nobody would be left. A ballast file holds some
//! space back: a full disk must still allow the log to be opened and compacted, so it is given up at the start of a node
//! that finds too little.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use nix::sys::statvfs::statvfs;
use tokio::sync::watch;

/// How often space and progress are looked at. A disk takes hundreds of megabytes a second, and what is above the watermark goes fast.
const INTERVAL: Duration = Duration::from_millis(200);

/// The state of a node's storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageHealth {
    /// Bytes free on the file system of the data directory; none when they cannot be told.
    pub free_bytes: Option<u64>,
    /// Free bytes below which this node counts as short of space (`space`).
    pub watermark: u64,
    /// Why the log takes no more writes. Consensus has ended on this node until it is restarted; what it serves goes on.
    pub failure: Option<String>,
}

impl StorageHealth {
    /// Too little space for new entries: proposals are to be refused.
    pub fn low_space(&self) -> bool {
        self.free_bytes.is_some_and(|free| free < self.watermark)
    }

    pub fn is_good(&self) -> bool {
        self.failure.is_none() && !self.low_space()
    }
}

/// The sending side. Clones share the report.
#[derive(Clone)]
pub(super) struct HealthReport(Arc<watch::Sender<StorageHealth>>);

impl HealthReport {
    pub fn new(watermark: u64) -> Self {
        Self(Arc::new(watch::Sender::new(StorageHealth {
            watermark,
            ..StorageHealth::default()
        })))
    }

    pub fn subscribe(&self) -> watch::Receiver<StorageHealth> {
        self.0.subscribe()
    }

    /// Told once; the first reason stays.
    pub fn failed(&self, reason: &str) {
        let news = self.0.send_if_modified(|health| {
            let news = health.failure.is_none();
            health.failure.get_or_insert_with(|| reason.to_owned());
            news
        });
        if news {
            tracing::error!(
                reason,
                "storage failed: this node leaves consensus until it is restarted, and goes on serving"
            );
        }
    }

    fn free(&self, free: Option<u64>) {
        self.0.send_if_modified(|health| {
            let was_low = health.low_space();
            let news = health.free_bytes != free;
            health.free_bytes = free;
            match (was_low, health.low_space()) {
                (false, true) => tracing::warn!(free, "little space left on the disk of the log"),
                (true, false) => tracing::info!(free, "there is enough space again"),
                _ => {}
            }
            news
        });
    }
}

/// Bytes an ordinary user may still use on the file system of `path`, and its size.
pub(super) fn space(path: &Path) -> io::Result<(u64, u64)> {
    let stat = statvfs(path)?;
    let block = stat.fragment_size();
    Ok((
        stat.blocks_available().saturating_mul(block),
        stat.blocks().saturating_mul(block),
    ))
}

/// The file that holds space back.
pub(super) struct Ballast {
    path: PathBuf,
    size: u64,
}

impl Ballast {
    pub fn new(path: PathBuf, size: u64) -> Self {
        Self { path, size }
    }

    /// Gives its space up.
    pub fn release(&self) {
        if fs::remove_file(&self.path).is_ok() {
            tracing::warn!(file = %self.path.display(), "little space left: the ballast file was given up");
        }
    }

    /// Takes its space, unless that leaves less than `margin` bytes.
    pub fn hold(&self, margin: u64) -> io::Result<()> {
        let (free, _) = space(self.path.parent().unwrap_or(&self.path))?;
        let there = fs::metadata(&self.path).is_ok_and(|file| file.len() == self.size);
        if there || free < self.size.saturating_add(margin) {
            return Ok(());
        }
        let file = File::create(&self.path)?;
        // Really allocated: a file of holes would hold nothing back.
        nix::fcntl::posix_fallocate(
            &file,
            0,
            i64::try_from(self.size).map_err(io::Error::other)?,
        )?;
        file.sync_all()
    }
}

/// Watches space on a thread of its own, until it is dropped.
pub(super) struct Monitor {
    _stop: mpsc::Sender<()>,
}

impl Monitor {
    pub fn start(directory: PathBuf, health: HealthReport) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        health.free(space(&directory).ok().map(|(free, _)| free));
        thread::Builder::new()
            .name("storage-watch".to_owned())
            .spawn(move || {
                while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(INTERVAL) {
                    health.free(space(&directory).ok().map(|(free, _)| free));
                }
            })?;
        Ok(Self { _stop: stop })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_below_the_watermark_is_low() {
        let health = |free| StorageHealth {
            free_bytes: free,
            watermark: 100,
            failure: None,
        };
        assert!(!health(None).low_space());
        assert!(!health(Some(100)).low_space());
        assert!(health(Some(99)).low_space());
    }

    #[test]
    fn the_first_failure_stays() {
        let report = HealthReport::new(0);
        report.failed("first");
        report.failed("second");
        assert_eq!(
            report.subscribe().borrow().failure.as_deref(),
            Some("first")
        );
    }

    #[test]
    fn ballast_takes_space_only_where_there_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ballast");
        let ballast = Ballast::new(path.clone(), 1 << 20);
        ballast.hold(u64::MAX).unwrap();
        assert!(!path.exists());
        ballast.hold(0).unwrap();
        let held = fs::metadata(&path).unwrap();
        assert!(std::os::unix::fs::MetadataExt::blocks(&held) * 512 >= 1 << 20);
        ballast.release();
        assert!(!path.exists());
    }
}
