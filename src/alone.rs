//! Tests of what belongs to the whole process, such as its files: each runs itself again as a process of its own.

use std::{fs::File, process::Command};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Set in the process of its own.
const ALONE: &str = "PONTOON_TEST_ALONE";
/// Files that a process of its own may have open.
const FILES: u64 = 256;

/// Does `body` in a process of its own, for `test`, which calls this and is named by its path in the crate; it must pass there.
pub fn run_alone(test: &str, body: impl Future<Output = ()>) {
    if !is_alone(test) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(body);
}

/// Whether this is the process of its own. If not, runs `test` in one.
fn is_alone(test: &str) -> bool {
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
