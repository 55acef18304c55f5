//! One process per data directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

/// How long a process that is just ending is waited for: one that was killed lets go a moment after `kill` has returned.
const ENDING: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("data directory {}: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("data directory {}: another process uses it (process {holder}); stop that one first", path.display())]
    Held { path: PathBuf, holder: String },
}

/// The right to use a data directory; given back when dropped, or when the process ends by whatever cause.
#[derive(Debug)]
pub struct DataDirLock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl DataDirLock {
    /// Makes the directory (mode 0700) when it is absent, and locks it. Blocks for up to `ENDING` while another process holds it.
    ///
    /// # Errors
    /// When another process goes on holding it, or it cannot be made.
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Directory {
            path: dir.to_owned(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed)?;
        let path = dir.join("lock");
        let options = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
        };
        let file = options().map_err(failed)?;
        match lock_within(file, ENDING) {
            Ok(mut lock) => {
                // Only for the message above: a full disk must not keep the node from starting.
                let _ = lock
                    .set_len(0)
                    .and_then(|()| writeln!(lock, "{}", std::process::id()));
                Ok(Self(lock))
            }
            Err(nix::errno::Errno::EWOULDBLOCK) => {
                let holder = fs::read_to_string(&path)
                    .unwrap_or_default()
                    .trim()
                    .to_owned();
                Err(LockError::Held {
                    path: dir.to_owned(),
                    holder,
                })
            }
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

/// `EWOULDBLOCK` when another still has it after `limit`.
fn lock_within(mut file: File, limit: Duration) -> Result<Flock<File>, nix::errno::Errno> {
    let until = Instant::now() + limit;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < until => file = again,
            Err((_, errno)) => return Err(errno),
        }
        thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_user() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        let first = DataDirLock::take(&data).expect("free");
        let error = DataDirLock::take(&data).expect_err("taken").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        DataDirLock::take(&data).expect("free again");
    }

    #[test]
    fn who_is_just_ending_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        let first = DataDirLock::take(&data).expect("free");
        thread::scope(|scope| {
            let second = scope.spawn(|| DataDirLock::take(&data));
            thread::sleep(5 * LOOK_EVERY);
            drop(first);
            second.join().expect("no panic").expect("free in the end");
        });
    }
}
