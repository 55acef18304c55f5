//! Whether the disk of the log takes a write now. Who is to lead has to write its vote there first.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A write that ended so lately says the same as another one.
const FRESH: Duration = Duration::from_secs(1);

/// The file that is written to find out.
#[derive(Clone, Debug)]
pub struct Probe {
    path: PathBuf,
    last: Arc<Mutex<Last>>,
}

#[derive(Debug, Default)]
struct Last {
    is_under_way: bool,
    ended: Option<Instant>,
}

impl Probe {
    pub fn in_dir(directory: &Path) -> Self {
        Self {
            path: directory.join("probe"),
            last: Arc::default(),
        }
    }

    /// Whether a write ends within `limit`, or did a moment ago. How it ends does not matter: a full disk answers.
    pub async fn answers_within(&self, limit: Duration) -> bool {
        let ended = |probe: &Self| probe.last().ended.is_some_and(|at| at.elapsed() < FRESH);
        if ended(self) {
            return true;
        }
        // Of writes to a disk that hangs one is enough: each keeps a thread.
        if std::mem::replace(&mut self.last().is_under_way, true) {
            return false;
        }
        let probe = self.clone();
        let writing = tokio::task::spawn_blocking(move || {
            if let Err(error) = write(&probe.path) {
                tracing::debug!(%error, path = %probe.path.display(), "the disk answers a probe with an error");
            }
            *probe.last() = Last {
                is_under_way: false,
                ended: Some(Instant::now()),
            };
        });
        matches!(tokio::time::timeout(limit, writing).await, Ok(Ok(())))
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(b"\n")?;
    file.sync_all()
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
        for _ in 0..2 {
            assert!(!probe.answers_within(Duration::from_millis(20)).await);
        }
        let reader = tokio::task::spawn_blocking({
            let path = dir.path().join("probe");
            move || std::fs::read(path)
        });
        reader.await.unwrap().unwrap();
        while !probe.answers_within(LIMIT).await {
            tokio::task::yield_now().await;
        }
    }
}
