//! Withholding votes after a start.
//!
//! A voter that restarts has forgotten that it acknowledged a heartbeat a moment ago, so a vote of its own could elect a
//! second leader while the first still holds its lease. Until every lease it may have acknowledged before the restart has
//! lapsed, a node grants no vote and no pre-vote and does not campaign. A node whose log is empty has acknowledged
//! nothing and need not wait.

use std::time::{Duration, Instant};

use crate::defect::{self, Defect};

/// From when on this process may take part in elections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteGate {
    opens_at: Instant,
}

/// What the gate says at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// Closed for this much longer.
    Closed(Duration),
}

/// Whether the log held entries when the process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogAtStart {
    Empty,
    Present,
}

impl VoteGate {
    /// `election_timeout_max` is how long a voter keeps its promise to a leader; 10 % more covers clocks that run at
    /// different rates and the time between the process's start and `started`.
    pub fn new(started: Instant, election_timeout_max: Duration, log: LogAtStart) -> Self {
        let wait = match log {
            LogAtStart::Empty => Duration::ZERO,
            LogAtStart::Present if defect::is(Defect::VoteAfterRestart) => Duration::ZERO,
            LogAtStart::Present => election_timeout_max + election_timeout_max / 10,
        };
        Self {
            opens_at: started + wait,
        }
    }

    pub fn at(&self, now: Instant) -> Gate {
        match self.opens_at.checked_duration_since(now) {
            None | Some(Duration::ZERO) => Gate::Open,
            Some(left) => Gate::Closed(left),
        }
    }

    pub fn opens_at(&self) -> Instant {
        self.opens_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_are_withheld_until_every_lease_has_lapsed() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        // (log, election timeout, milliseconds since the start, verdict)
        let cases = [
            (LogAtStart::Empty, 300, 0, Gate::Open),
            (LogAtStart::Present, 300, 0, Gate::Closed(ms(330))),
            (LogAtStart::Present, 300, 300, Gate::Closed(ms(30))),
            (LogAtStart::Present, 300, 329, Gate::Closed(ms(1))),
            (LogAtStart::Present, 300, 330, Gate::Open),
            (LogAtStart::Present, 300, 86_400_000, Gate::Open),
            (LogAtStart::Present, 120, 131, Gate::Closed(ms(1))),
            (LogAtStart::Present, 120, 132, Gate::Open),
        ];
        for (log, timeout, at, verdict) in cases {
            let gate = VoteGate::new(start, ms(timeout), log);
            assert_eq!(gate.at(start + ms(at)), verdict, "{log:?} {timeout} {at}");
        }
    }

    #[test]
    fn an_open_gate_never_closes_again() {
        let start = Instant::now();
        let gate = VoteGate::new(start, Duration::from_millis(300), LogAtStart::Present);
        let mut opened = false;
        for at in 0..1000 {
            let open = gate.at(start + Duration::from_millis(at)) == Gate::Open;
            assert!(open || !opened, "closed again at {at} ms");
            opened = open;
        }
        assert!(opened);
    }
}
