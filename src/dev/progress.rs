//! Saying why the cluster is not ready yet: a wait without a word looks like a hang.

use std::time::Duration;

use tokio::time::Instant;

/// A start that takes longer says what it waits for.
const QUIET: Duration = Duration::from_secs(3);
/// How often the same is said again.
const REPEAT: Duration = Duration::from_secs(15);

/// One wait for the cluster, with its deadline and what was last said of it.
pub(super) struct Progress {
    began: Instant,
    deadline: Instant,
    /// The obstacle of the moment.
    obstacle: String,
    said: Option<(Instant, String)>,
}

impl Progress {
    pub(super) fn new(now: Instant, patience: Duration) -> Self {
        Self {
            began: now,
            deadline: now + patience,
            obstacle: "no node was asked yet".to_owned(),
            said: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// What the wait ended with.
    pub(super) fn obstacle(&self) -> String {
        self.obstacle.clone()
    }

    /// Notes what stands in the way, and says it on standard error when it is time to.
    pub(super) fn note(&mut self, obstacle: String) {
        self.obstacle = obstacle;
        if let Some(line) = self.line(Instant::now()) {
            eprintln!("{line}");
        }
    }

    /// What is to be said now, if anything.
    fn line(&mut self, now: Instant) -> Option<String> {
        let waited = now.saturating_duration_since(self.began);
        let due = match &self.said {
            None => waited >= QUIET,
            Some((at, said)) => {
                let since = now.saturating_duration_since(*at);
                since >= REPEAT || (since >= QUIET && *said != self.obstacle)
            }
        };
        if !due {
            return None;
        }
        self.said = Some((now, self.obstacle.clone()));
        Some(format!(
            "not ready after {} s: {}",
            waited.as_secs(),
            self.obstacle
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_start_says_nothing_and_a_slow_one_what_it_waits_for() {
        let began = Instant::now();
        let mut progress = Progress::new(began, Duration::from_secs(60));
        // (seconds since the start, the obstacle then, what is said)
        let steps = [
            (0, "a", None),
            (2, "a", None),
            (3, "a", Some("not ready after 3 s: a")),
            (4, "b", None),
            (6, "b", Some("not ready after 6 s: b")),
            (15, "b", None),
            (21, "b", Some("not ready after 21 s: b")),
        ];
        for (seconds, obstacle, expected) in steps {
            progress.obstacle = obstacle.to_owned();
            let said = progress.line(began + Duration::from_secs(seconds));
            assert_eq!(said.as_deref(), expected, "after {seconds} s");
        }
    }
}
