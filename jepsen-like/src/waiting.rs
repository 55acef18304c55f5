//! Waiting for what is about to happen, with a clock that stands while the machine does something else, and telling those who wait that it
//! is over.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Between looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Waits until `condition` holds, and says how long that took, less what this thread overslept between its looks: when that is much,
/// other tests or other guests of the host had the processors, and what is waited for had none either.
///
/// Panics if it does not come about `within` this time.
pub fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    let mut overslept = Duration::ZERO;
    while !condition() {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        let asleep = Instant::now();
        std::thread::sleep(LOOK_EVERY);
        overslept += asleep.elapsed().saturating_sub(LOOK_EVERY);
    }
    start.elapsed().saturating_sub(overslept)
}

/// Says so when it goes, by a panic too: who waits for it goes on.
#[derive(Debug)]
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
