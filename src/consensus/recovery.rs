//! Whether this node's state may be served, and how fresh it is known to be.
//!
//! After a start the node waits for a leader to confirm its log. Without one it serves, after a while, what it had itself,
//! marked stale. A node that has no state yet serves nothing, and one that was removed, or heard no leader for very long,
//! stops.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// How this node's state stands to that of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing may be served yet.
    Recovering,
    /// A leader confirmed the state, and still speaks.
    Current,
    /// No leader confirms the state, or none has spoken for a while: newer state may exist.
    Stale,
    /// The state may be served no longer.
    Stopped(StopReason),
}

/// Why a node has stopped serving for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The cluster has removed this node.
    Removed,
    /// No leader was heard for `max_stale`.
    TooStale,
    /// Its log is gone, though the cluster counts on what was in it.
    LogLost,
}

impl Recovery {
    /// Whether the state is to be served.
    pub fn serves(self) -> bool {
        matches!(self, Self::Current | Self::Stale)
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "this node was removed from the cluster; join it anew under a new id",
            Self::TooStale => {
                "no leader was heard for longer than max_stale; reconnect the node to its cluster"
            },
            Self::LogLost => {
                "the log of this node is gone, though the cluster counts on it: remove the node, empty its data directory and join it anew; it gets a new id"
            }
        })
    }
}

/// The waits of recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long a start waits for a leader, and a running node for a word of it, before the state counts as stale.
    pub recovery_wait: Duration,
    /// How long stale state may be served.
    pub max_stale: Duration,
}

impl Default for Patience {
    /// Five seconds cover an election after a power cut of all nodes; a week is what SOA expire values commonly are.
    fn default() -> Self {
        Self {
            recovery_wait: Duration::from_secs(5),
            max_stale: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// What is known when recovery is judged.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    pub started: Instant,
    /// For how long no leader had been heard when it started.
    pub absent: Duration,
    /// A leader confirmed the log that was found at start, and it has been applied.
    pub confirmed: bool,
    /// The node has state of its own.
    pub has_state: bool,
    /// When a leader was last heard; for a leader, when a quorum last answered.
    pub heard: Option<Instant>,
    pub removed: bool,
    pub log_lost: bool,
}

/// Judges the state at `now`.
pub fn judge(evidence: &Evidence, patience: Patience, now: Instant) -> Recovery {
    if evidence.removed {
        return Recovery::Stopped(StopReason::Removed);
    }
    if evidence.log_lost {
        return Recovery::Stopped(StopReason::LogLost);
    }
    let silence = match evidence.heard {
        Some(heard) => now.saturating_duration_since(heard),
        None => now
            .saturating_duration_since(evidence.started)
            .saturating_add(evidence.absent),
    };
    if evidence.confirmed {
        return aged(silence, patience);
    }
    let waited = now.saturating_duration_since(evidence.started);
    if !evidence.has_state || waited < patience.recovery_wait {
        return Recovery::Recovering;
    }
    match aged(silence, patience) {
        Recovery::Stopped(reason) => Recovery::Stopped(reason),
        _ => Recovery::Stale,
    }
}

/// The newest sign of a leader: that one was heard, or that a quorum acknowledged this node as one. Who gives leadership up was
/// confirmed until then, though it has not heard the next leader yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastHeard(Option<Instant>);

impl LastHeard {
    /// Takes in what is known now, be it less than before, and returns the newest sign.
    pub fn note(&mut self, heard: Option<Instant>) -> Option<Instant> {
        self.0 = self.0.max(heard);
        self.0
    }
}

/// Reminds the operator of a node that has nothing to serve and still waits for a leader to give it state.
#[derive(Clone, Copy, Debug)]
pub struct Reminder {
    next: Instant,
}

impl Reminder {
    /// Between two reminders.
    const EVERY: Duration = Duration::from_secs(30);

    pub fn new(started: Instant, patience: Patience) -> Self {
        Self {
            next: started + patience.recovery_wait,
        }
    }

    /// Whether it is time to say so.
    pub fn is_due(&mut self, recovery: Recovery, now: Instant) -> bool {
        if recovery != Recovery::Recovering || now < self.next {
            return false;
        }
        self.next = now + Self::EVERY;
        true
    }
}

fn aged(silence: Duration, patience: Patience) -> Recovery {
    if silence >= patience.max_stale {
        Recovery::Stopped(StopReason::TooStale)
    } else if silence >= patience.recovery_wait {
        Recovery::Stale
    } else {
        Recovery::Current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_before_the_start_counts_until_a_leader_is_heard() {
        let start = Instant::now();
        let patience = Patience {
            recovery_wait: Duration::from_secs(5),
            max_stale: Duration::from_secs(100),
        };
        let too_stale = Recovery::Stopped(StopReason::TooStale);
        // (absent before the start, heard at, now, verdict)
        for (absent, heard, now, verdict) in [
            (200, None, 4, Recovery::Recovering),
            (200, None, 5, too_stale),
            (94, None, 5, Recovery::Stale),
            (94, None, 6, too_stale),
            (200, Some(6), 7, Recovery::Stale),
        ] {
            let evidence = Evidence {
                started: start,
                absent: Duration::from_secs(absent),
                confirmed: false,
                has_state: true,
                heard: heard.map(|s| start + Duration::from_secs(s)),
                removed: false,
                log_lost: false,
            };
            let judged = judge(&evidence, patience, start + Duration::from_secs(now));
            assert_eq!(judged, verdict, "{absent} s before, at {now}");
        }
    }

    #[test]
    fn who_led_until_a_moment_ago_is_not_stale_though_it_has_heard_no_other_yet() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut last = LastHeard::default();
        // (what a leader was heard of, or it was acknowledged as one; now; verdict)
        for (heard, now, verdict) in [
            (None, 1, Recovery::Current),
            (None, 6, Recovery::Stale),
            (Some(100), 100, Recovery::Current),
            // It leads no more, and had never heard another, or long before.
            (None, 101, Recovery::Current),
            (Some(7), 101, Recovery::Current),
            (None, 105, Recovery::Stale),
            (Some(105), 105, Recovery::Current),
        ] {
            let evidence = Evidence {
                started: start,
                absent: Duration::ZERO,
                confirmed: true,
                has_state: true,
                heard: last.note(heard.map(at)),
                removed: false,
                log_lost: false,
            };
            let judged = judge(&evidence, Patience::default(), at(now));
            assert_eq!(judged, verdict, "{heard:?} at {now}");
        }
    }

    #[test]
    fn who_waits_without_state_says_so_after_a_while_and_now_and_then() {
        let start = Instant::now();
        let patience = Patience::default();
        let mut reminder = Reminder::new(start, patience);
        // (seconds after the start, verdict, said)
        for (at, recovery, said) in [
            (1, Recovery::Recovering, false),
            (5, Recovery::Recovering, true),
            (6, Recovery::Recovering, false),
            (34, Recovery::Recovering, false),
            (35, Recovery::Recovering, true),
            (70, Recovery::Current, false),
            (71, Recovery::Stopped(StopReason::LogLost), false),
        ] {
            let now = start + Duration::from_secs(at);
            assert_eq!(reminder.is_due(recovery, now), said, "{at}");
        }
    }

    #[test]
    fn every_case() {
        let start = Instant::now();
        let patience = Patience {
            recovery_wait: Duration::from_secs(5),
            max_stale: Duration::from_secs(100),
        };
        let secs = |s| start + Duration::from_secs(s);
        let stopped = Recovery::Stopped;
        // (confirmed, has state, heard at, removed, now, verdict)
        let cases = [
            (false, true, None, false, 0, Recovery::Recovering),
            (false, true, None, false, 4, Recovery::Recovering),
            (false, true, None, false, 5, Recovery::Stale),
            (false, false, None, false, 5, Recovery::Recovering),
            (false, false, None, false, 1000, Recovery::Recovering),
            (false, true, Some(6), false, 7, Recovery::Stale),
            (false, true, None, false, 100, stopped(StopReason::TooStale)),
            (true, true, Some(1), false, 2, Recovery::Current),
            (true, true, Some(1), false, 6, Recovery::Stale),
            (
                true,
                true,
                Some(1),
                false,
                101,
                stopped(StopReason::TooStale),
            ),
            (true, true, Some(90), false, 92, Recovery::Current),
            (true, true, Some(1), true, 2, stopped(StopReason::Removed)),
            (false, false, None, true, 0, stopped(StopReason::Removed)),
        ];
        for (confirmed, has_state, heard, removed, now, verdict) in cases {
            let evidence = Evidence {
                started: start,
                absent: Duration::ZERO,
                confirmed,
                has_state,
                heard: heard.map(secs),
                removed,
                log_lost: false,
            };
            assert_eq!(
                judge(&evidence, patience, secs(now)),
                verdict,
                "{evidence:?} at {now}"
            );
        }
    }
}
