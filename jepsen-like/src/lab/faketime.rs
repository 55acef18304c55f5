//! What libfaketime leaves in shared memory: a semaphore and a page for each process, which one that is killed does not take away.

use std::{fs, io, path::Path};

use nix::unistd::Pid;

const SHARED_MEMORY: &str = "/dev/shm";

/// Takes away what libfaketime made for a process of ours that has ended, or is being killed.
pub(super) fn forget(process: Pid) {
    forget_in(Path::new(SHARED_MEMORY), process);
}

fn forget_in(directory: &Path, process: Pid) {
    for name in ["sem.faketime_sem_", "faketime_shm_"] {
        let file = directory.join(format!("{name}{process}"));
        match fs::remove_file(&file) {
            Ok(()) => {}
            // It took them away itself, or had none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "cannot be taken away");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_for_a_process_goes_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let names = [
            "sem.faketime_sem_12",
            "faketime_shm_12",
            "sem.faketime_sem_123",
            "faketime_shm_1",
        ];
        for name in names {
            fs::write(directory.path().join(name), "").unwrap();
        }
        forget_in(directory.path(), Pid::from_raw(12));
        forget_in(directory.path(), Pid::from_raw(77));
        let is_there = names.map(|name| directory.path().join(name).exists());
        assert_eq!(is_there, [false, false, true, true]);
    }
}
