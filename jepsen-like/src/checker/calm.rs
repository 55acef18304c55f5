//! Calm: the times of a run in which no fault was in force. What goes wrong there, longer after the last fault than the cluster may take to
//! recover, no fault explains.

use std::time::Duration;

use crate::history::{Fault, History, Moment};

/// A time without a fault, from the end of one to the beginning of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calm {
    /// When the last of the faults before it was healed; the beginning of the run where there was none.
    pub from: Moment,
    /// When the next fault began; the end of what was written where there was none.
    pub until: Moment,
    /// A fault came before it.
    pub is_after_fault: bool,
    /// No fault comes after it.
    pub is_last: bool,
}

impl Calm {
    /// Whether nothing of this was outside of it.
    pub fn covers(&self, from: Moment, to: Moment) -> bool {
        self.from <= from && to <= self.until
    }

    /// How much of it is later than `recovery` after the faults before.
    pub fn peace(&self, recovery: Duration) -> Duration {
        self.until.since(self.from.later(recovery))
    }
}

/// What was done to the cluster.
pub fn injected(history: &History) -> impl Iterator<Item = &Fault> {
    let faults = history.faults.iter();
    faults.filter(|fault| fault.skipped.is_none())
}

/// In order; `until` is the end of what was written. One fault that was never healed lasts for ever.
pub fn calms(history: &History, until: Moment) -> Vec<Calm> {
    let mut faults: Vec<&Fault> = injected(history).collect();
    faults.sort_by_key(|fault| fault.began);
    let mut calms = vec![];
    let (mut from, mut is_after_fault) = (Moment(0), false);
    for fault in faults {
        if from < fault.began {
            calms.push(Calm {
                from,
                until: fault.began,
                is_after_fault,
                is_last: false,
            });
        }
        from = from.max(fault.healed.unwrap_or(Moment(u64::MAX)));
        is_after_fault = true;
    }
    if from < until {
        calms.push(Calm {
            from,
            until,
            is_after_fault,
            is_last: true,
        });
    }
    calms
}

/// The last that anybody wrote down who looked at the cluster, or asked it.
pub fn last_look(history: &History) -> Moment {
    let hashes = history.hashes.iter().map(|hash| hash.at);
    let sessions = history.sessions.iter().map(|session| session.ended);
    let operations = (history.operations.iter())
        .map(|operation| operation.completed.unwrap_or(operation.invoked));
    let last = hashes.chain(sessions).chain(operations).max();
    last.unwrap_or_default()
}

/// By when something is owed that began then, in a calm from `calm` on: with patience for itself, and with what recovery from the faults before
/// may take.
pub fn due(calm: Moment, recovery: Duration, began: Moment, patience: Duration) -> Moment {
    calm.later(recovery).max(began.later(patience))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::fixture::{fault, tried};

    /// (from, until) of each.
    fn found(faults: Vec<Fault>, until: u64) -> Vec<(u64, u64)> {
        let calms = calms(&tried(faults, vec![]), Moment(until));
        assert!(calms.iter().rev().skip(1).all(|calm| !calm.is_last));
        let spans = calms.iter().map(|calm| (calm.from.0, calm.until.0));
        spans.collect()
    }

    #[test]
    fn calm_is_what_no_fault_covers() {
        let kill = |began, healed| fault("kill", "n1", began, healed, false);
        assert_eq!(found(vec![], 100), [(0, 100)]);
        assert_eq!(found(vec![kill(0, 10)], 100), [(10, 100)]);
        let apart = vec![kill(10, 20), kill(50, 60)];
        assert_eq!(found(apart, 100), [(0, 10), (20, 50), (60, 100)]);
        // One within another, one that overlaps, one right behind.
        let beside = vec![kill(10, 40), kill(20, 30), kill(35, 50), kill(50, 60)];
        assert_eq!(found(beside, 100), [(0, 10), (60, 100)]);
        assert_eq!(found(vec![kill(10, 20)], 20), [(0, 10)]);
        let endless = Fault {
            healed: None,
            ..kill(10, 0)
        };
        assert_eq!(found(vec![endless, kill(20, 30)], 100), [(0, 10)]);
        let skipped = Fault {
            skipped: Some("no tool".into()),
            ..kill(10, 20)
        };
        assert_eq!(found(vec![skipped], 100), [(0, 100)]);
    }

    #[test]
    fn peace_begins_when_recovery_must_be_over() {
        let calm = Calm {
            from: Moment(100),
            until: Moment(150),
            is_after_fault: true,
            is_last: false,
        };
        assert_eq!(calm.peace(Duration::from_nanos(20)).as_nanos(), 30);
        assert_eq!(calm.peace(Duration::from_nanos(60)).as_nanos(), 0);
        assert!(calm.covers(Moment(100), Moment(150)));
        assert!(!calm.covers(Moment(99), Moment(120)));
        assert!(!calm.covers(Moment(120), Moment(151)));
        let due = |began| {
            let (recovery, patience) = (Duration::from_nanos(20), Duration::from_nanos(5));
            due(calm.from, recovery, Moment(began), patience).0
        };
        assert_eq!([due(10), due(110), due(140)], [120, 120, 145]);
    }
}
