//! Whether the machine keeps up: a thread that asks for next to nothing, and notes how late it is run.
//!
//! What nodes do in time depends on it: a lease is renewed by several threads in turn, each of which has to be run first. The thread has the
//! priority of the nodes and sleeps as most of theirs do, so that it is served as well as any of them, or better. It ends within one step of
//! being cancelled.

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    history::{Entry, Lateness},
    recorder::Recorder,
};

const STEP: Duration = Duration::from_millis(5);
/// How often the worst is written down.
const WRITTEN: Duration = Duration::from_secs(1);

/// Looks until cancelled.
pub fn start(recorder: Arc<Recorder>, end: CancellationToken) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut written = Instant::now();
        let mut worst = Duration::ZERO;
        while !end.is_cancelled() {
            let slept = Instant::now();
            std::thread::sleep(STEP);
            worst = worst.max(slept.elapsed().saturating_sub(STEP));
            if written.elapsed() >= WRITTEN {
                recorder.append(&Entry::Lateness(Lateness {
                    at: recorder.now(),
                    worst_us: worst.as_micros().try_into().unwrap_or(u64::MAX),
                }));
                (written, worst) = (Instant::now(), Duration::ZERO);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{self, Histories, Run};

    #[test]
    fn the_worst_of_each_second_is_written_until_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(history::FILE);
        let recorder = Recorder::create(&path).unwrap();
        recorder.append(&Entry::Run(Run {
            format: 1,
            ..Run::default()
        }));
        let end = CancellationToken::new();
        let canary = start(recorder.clone(), end.clone());
        let deadline = Instant::now() + Duration::from_secs(20);
        let found = loop {
            let Histories::Run(history) = history::read(&path).unwrap() else {
                panic!("not a run");
            };
            if let Some(first) = history.latenesses.first() {
                break first.clone();
            }
            assert!(Instant::now() < deadline, "nothing was written");
            std::thread::sleep(STEP);
        };
        end.cancel();
        canary.join().unwrap();
        assert!(found.at.0 >= 1_000_000_000, "{found:?}");
    }
}
