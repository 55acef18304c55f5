//! Whether the disk of the log takes a write now. Who is to lead has to write its vote there first.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// A write that ended so lately says the same as another one.
const FRESH: Duration = Duration::from_secs(1);

/// The file that is written to find out. Clones share what came of it.
#[derive(Clone, Debug)]
pub struct Probe {
    path: PathBuf,
    writes: Arc<watch::Sender<Writes>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Writes {
    /// When the one began that is under way.
    began: Option<Instant>,
    /// When the last one ended.
    ended: Option<Instant>,
}

impl Probe {
    pub fn in_dir(directory: &Path) -> Self {
        Self {
            path: directory.join("probe"),
            writes: Arc::default(),
        }
    }

    /// Whether a write ends within `limit`, or did a moment ago. How it ends does not matter: a full disk answers.
    pub async fn answers_within(&self, limit: Duration) -> bool {
        let asked = Instant::now();
        let mut writes = self.writes.subscribe();
        let last = writes.borrow().ended;
        if last.is_some_and(|at| asked.saturating_duration_since(at) < FRESH) {
            return true;
        }
        self.write();
        let ended = writes.wait_for(|writes| writes.ended.is_some_and(|at| at >= asked));
        matches!(tokio::time::timeout(limit, ended).await, Ok(Ok(_)))
    }

    /// Begins a write, unless one is under way: of writes to a disk that hangs one is enough, for each keeps a thread. To be called on
    /// a runtime.
    pub fn write(&self) {
        let begins = self.writes.send_if_modified(|writes| {
            let is_idle = writes.began.is_none();
            writes.began.get_or_insert_with(Instant::now);
            is_idle
        });
        if !begins {
            return;
        }
        let probe = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = write(&probe.path) {
                tracing::debug!(%error, path = %probe.path.display(), "the disk answers a probe with an error");
            }
            probe.writes.send_replace(Writes {
                began: None,
                ended: Some(Instant::now()),
            });
        });
    }

    /// How long the write that is under way has taken so far.
    pub fn busy_for(&self) -> Option<Duration> {
        self.writes.borrow().began.map(|began| began.elapsed())
    }
}

fn write(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    // In place, as the log is written: what the file system has to write beside it is least.
    let is_new = file.metadata()?.len() == 0;
    file.write_all(b"\n")?;
    match is_new {
        true => file.sync_all(),
        false => file.sync_data(),
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::CString, os::unix::ffi::OsStrExt};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_disk_that_takes_a_write_answers_and_so_does_one_that_refuses_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Probe::in_dir(dir.path()).answers_within(LIMIT).await);
        assert!(dir.path().join("probe").exists());
        let absent = Probe::in_dir(&dir.path().join("absent"));
        assert!(absent.answers_within(LIMIT).await);
    }

    #[tokio::test]
    async fn a_write_that_does_not_end_is_no_answer_until_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let probe = Probe::in_dir(dir.path());
        // Opening it waits for somebody who reads.
        let path = CString::new(dir.path().join("probe").as_os_str().as_bytes()).unwrap();
        nix::unistd::mkfifo(path.as_c_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(probe.busy_for(), None);
        for _ in 0..2 {
            assert!(!probe.answers_within(Duration::from_millis(20)).await);
        }
        assert!(probe.busy_for() >= Some(Duration::from_millis(40)));
        let reader = tokio::task::spawn_blocking({
            let path = dir.path().join("probe");
            move || std::fs::read(path)
        });
        reader.await.unwrap().unwrap();
        assert!(probe.answers_within(LIMIT).await);
        assert_eq!(probe.busy_for(), None);
    }

    /// One may be under way already that ends in time.
    #[tokio::test]
    async fn whoever_asks_while_a_write_is_under_way_waits_for_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let probe = Probe::in_dir(dir.path());
        let asked = (0..3).map(|_| probe.answers_within(LIMIT));
        assert_eq!(futures::future::join_all(asked).await, [true; 3]);
    }
}
