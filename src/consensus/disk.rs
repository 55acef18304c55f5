//! Whether the disk of the log takes what is written to it: a node whose disk hangs says so, and is unfit to hold VIPs.
//!
//! Where little is written a hang would show only when the node is to vote or to lead. So a small file is written every other second in
//! which the log writes nothing (`probe`). Nobody waits for that, and no more than one such write is under way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    probe::Probe,
    writer::{LogFigures, Queue},
};

/// How often it is seen to it that something is written.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A small write that takes longer is a disk that hangs. Disks that stand still for some seconds are no fault yet.
const SMALL_LIMIT: Duration = Duration::from_secs(5);
/// The same of what the log writes at once, which may be many megabytes.
const LOG_LIMIT: Duration = Duration::from_secs(10);

/// The disk of the log. Clones watch the same.
#[derive(Clone)]
pub struct DiskWatch {
    queue: Arc<Queue>,
    probe: Probe,
}

impl DiskWatch {
    pub(super) fn new(queue: Arc<Queue>, probe: Probe) -> Self {
        Self { queue, probe }
    }

    /// That the disk hangs, to follow the node in a sentence; none: it answers, as far as is known.
    pub fn problem(&self) -> Option<String> {
        let silent = self.silent_for()?;
        Some(format!(
            "its disk has not answered for {} s",
            in_steps(silent)
        ))
    }

    /// How long the disk has not answered, if that is longer than any write should take.
    pub fn silent_for(&self) -> Option<Duration> {
        silence(self.small_for(), self.queue.busy_for())
    }

    /// Whether what is written has waited for long.
    pub(super) fn holds_up_writes(&self) -> bool {
        self.holds_up_for().is_some()
    }

    /// How long that has been so.
    pub(super) fn holds_up_for(&self) -> Option<Duration> {
        let log = self.queue.holds_up_for();
        log.filter(|_| are_held_up(self.small_for(), log))
    }

    /// How long a small write has taken so far, while nothing else was written either.
    fn small_for(&self) -> Option<Duration> {
        unanswered(self.probe.busy_for(), self.queue.figures().since_flush())
    }

    /// Whether a write ends within `limit`, or one of the log did a moment ago.
    pub(super) async fn answers_within(&self, limit: Duration) -> bool {
        const LATELY: Duration = Duration::from_secs(1);
        let figures = self.queue.figures();
        let has_written = figures.flushed_after(Instant::now().checked_sub(LATELY));
        let is_at_ease = self.queue.busy_for().is_none_or(|time| time < limit);
        (has_written && is_at_ease) || self.probe.answers_within(limit).await
    }

    /// How long the oldest write has taken that has not ended.
    pub(super) fn busy_for(&self) -> Duration {
        let longest = self.probe.busy_for().max(self.queue.busy_for());
        longest.unwrap_or_default()
    }

    /// Writes something, unless the log did lately or does so now. To be called on a runtime.
    pub(super) fn look(&self) {
        if is_due(self.queue.busy_for(), &self.queue.figures(), Instant::now()) {
            self.probe.write();
        }
    }
}

/// How long a small write has taken, from the last flush of the log on: it alone may wait for what others write on the same file system.
fn unanswered(small: Option<Duration>, since_flush: Option<Duration>) -> Option<Duration> {
    small.map(|small| since_flush.map_or(small, |since| small.min(since)))
}

/// How long the disk has not answered; none: no write takes longer than it may.
fn silence(small: Option<Duration>, log: Option<Duration>) -> Option<Duration> {
    let small = small.filter(|time| *time >= SMALL_LIMIT);
    let log = log.filter(|time| *time >= LOG_LIMIT);
    small.max(log)
}

/// Whether what is written waits for longer than a large batch may take; of a disk that was silent for so long before, a moment is enough.
fn are_held_up(small: Option<Duration>, log: Option<Duration>) -> bool {
    const MOMENT: Duration = Duration::from_secs(1);
    let was_silent = small.is_some_and(|time| time >= LOG_LIMIT);
    log.is_some_and(|time| time >= LOG_LIMIT || (was_silent && time >= MOMENT))
}

/// A large batch that is under way says nothing for a while.
fn is_due(log_busy: Option<Duration>, figures: &LogFigures, now: Instant) -> bool {
    let has_written = figures.flushed_after(now.checked_sub(LOOK_EVERY));
    !has_written || log_busy.is_some_and(|time| time >= LOOK_EVERY)
}

/// Whole seconds that change seldom: several nodes tell the same alarm, which is shown once if it has the same words.
fn in_steps(silent: Duration) -> u64 {
    const STEPS: [u64; 9] = [5, 10, 20, 30, 60, 300, 900, 3600, 86_400];
    let seconds = silent.as_secs();
    let reached = STEPS.iter().take_while(|step| **step <= seconds);
    reached.last().copied().unwrap_or(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_disk_hangs_when_a_write_takes_longer_than_its_size_allows() {
        // (small write, batch of the log, silent)
        let cases = [
            (None, None, None),
            (Some(s(4)), Some(s(9)), None),
            (Some(s(5)), None, Some(s(5))),
            (Some(s(4)), Some(s(10)), Some(s(10))),
            (Some(s(12)), Some(s(9)), Some(s(12))),
            (Some(s(12)), Some(s(14)), Some(s(14))),
        ];
        for (small, log, silent) in cases {
            assert_eq!(silence(small, log), silent, "{small:?} {log:?}");
        }
    }

    #[test]
    fn a_disk_answers_as_long_as_the_log_is_written() {
        // (small write, since the last flush, unanswered)
        let cases = [
            (None, Some(s(9)), None),
            (Some(s(9)), None, Some(s(9))),
            (Some(s(9)), Some(s(1)), Some(s(1))),
            (Some(s(9)), Some(s(20)), Some(s(9))),
        ];
        for (small, since_flush, expected) in cases {
            assert_eq!(unanswered(small, since_flush), expected);
        }
    }

    #[test]
    fn writes_are_held_up_where_there_are_any() {
        // (small write, batch of the log, held up)
        let cases = [
            (None, None, false),
            (Some(s(3600)), None, false),
            (None, Some(s(9)), false),
            (None, Some(s(10)), true),
            (Some(s(9)), Some(s(9)), false),
            (Some(s(10)), Some(s(1)), true),
            (Some(s(10)), Some(Duration::from_millis(900)), false),
        ];
        for (small, log, held_up) in cases {
            assert_eq!(are_held_up(small, log), held_up, "{small:?} {log:?}");
        }
    }

    #[test]
    fn the_words_change_seldom_while_a_disk_hangs() {
        let told = [5, 9, 10, 19, 45, 59, 60, 299, 4000, 1_000_000].map(|t| in_steps(s(t)));
        assert_eq!(told, [5, 5, 10, 10, 30, 30, 60, 60, 3600, 86_400]);
    }

    #[tokio::test]
    async fn it_is_written_to_where_the_log_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let probe = Probe::in_dir(dir.path());
        let disk = DiskWatch::new(Arc::new(Queue::new(0)), probe.clone());
        disk.look();
        assert!(probe.answers_within(s(20)).await);
        assert!(dir.path().join("probe").exists());
        assert_eq!(disk.problem(), None);
    }
}
