//! Whether the machine keeps up: a thread that asks for next to nothing, and notes how late it is run.
//!
//! What nodes do in time depends on it: a lease is renewed by several threads in turn, each of which has to be run first. The thread asks for the
//! place in the kernel's scheduler that nodes ask for where a lease depends on it (consensus, log and VIPs), and does next to nothing: where it
//! is late, so may they be. A thread without that place would be late on a machine that serves them well. It ends within one step of being cancelled.

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use pontoon::priority::prefer_this_thread;
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
    std::thread::spawn(move || look(&recorder, &end))
}

fn look(recorder: &Recorder, end: &CancellationToken) {
    prefer_this_thread();
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
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc};

    use super::*;
    use crate::history::{self, Histories, Run};

    /// The nice value of a thread of this process, `self` or by its number.
    fn nice(thread: &str) -> i32 {
        let file = match thread {
            "self" => "/proc/thread-self/stat".to_owned(),
            number => format!("/proc/self/task/{number}/stat"),
        };
        let stat = fs::read_to_string(file).unwrap();
        // After the name in parentheses comes field 3; the nice value is field 19 (proc(5)).
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn it_has_the_place_of_the_nodes_best_threads() {
        let preferred = std::thread::spawn(|| {
            prefer_this_thread();
            nice("self")
        });
        let best = preferred.join().unwrap();

        let directory = tempfile::tempdir().unwrap();
        let recorder = Recorder::create(&directory.path().join(history::FILE)).unwrap();
        let end = CancellationToken::new();
        let (tell, told) = mpsc::channel();
        let ending = end.clone();
        let canary = std::thread::spawn(move || {
            let me = fs::read_link("/proc/thread-self").unwrap();
            let number = me.file_name().unwrap().to_str().unwrap();
            tell.send(number.to_owned()).unwrap();
            look(&recorder, &ending);
        });
        let number = told.recv().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while nice(&number) != best {
            assert!(
                Instant::now() < deadline,
                "{} and not {best}",
                nice(&number)
            );
            std::thread::sleep(STEP);
        }
        end.cancel();
        canary.join().unwrap();
    }

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
