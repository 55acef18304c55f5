//! Network namespaces for tests.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs the test on a thread in a new namespace with a veth pair `eth0`, `eth1`. Says `skipped` without root.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            crate::skipped::skip(format!("cannot make a network namespace: {error}"));
            return;
        }
        sh(
            "ip link add eth0 type veth peer name eth1 && ip link set eth0 up && ip link set eth1 up",
        );
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The same for a test that waits, on a runtime of one thread.
pub fn in_namespace_async(test: impl AsyncFnOnce() + Send + 'static) {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
}

pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn fails(script: &str) -> bool {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    !output.status.success()
}
