//! Tests of what belongs to the whole process, such as its files: each runs itself again as a process of its own.

use std::{fs::File, process::Command};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Set in the process of its own.
const ALONE: &str = "PONTOON_TEST_ALONE";
/// Files that a process of its own may have open.
const FILES: u64 = 256;

/// Whether this is the process of its own. If not, runs `test`, named by its path in the crate, in one, which must pass.
pub fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().expect("a program"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .expect("a process");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}");
    false
}

/// Takes every file that this process may still open. Dropping some of them gives as many back.
pub fn take_all_files() -> Vec<File> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, FILES.min(most), most).expect("a lower limit");
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    taken
}
