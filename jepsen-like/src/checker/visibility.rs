//! Visibility: what was acknowledged shows at every place that is asked, and what was deleted no longer does. A node that lags while faults
//! happen is what the cluster is made for; one that still does long after them lags for ever, and nothing else sees that its DNS does.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Finding, Verdict,
    calm::{self, Calm},
    planned, set_aside,
};
use crate::{
    history::{Call, History, Moment, Operation, Outcome, Reply},
    workload::{Workload, zones},
};

/// From the acknowledgement of a change until every place shows it, in peace. 10 s: it takes milliseconds, and a node that is starved of its
/// processor for seconds on a busy machine is none that lags.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Those that look for what they changed.
const WORKLOADS: &[Workload] = &[Workload::Acme];

/// A look that is due shows what the last acknowledged change of its key left. Due is one that began [`PATIENCE`] after the acknowledgement and
/// the recovery bound after the last fault, and that ended before the next fault began: while a fault is in force, or was a moment ago, nothing is judged.
///
/// Nor is anything where the value is not known for certain: a change that was under way with the last one, or is of unknown outcome, may
/// come before or after it. An answer that is marked stale may be old, and no answer at all is an outage (`recovery`).
pub fn check(history: &History) -> Verdict {
    let recovery = Duration::from_millis(history.run.recovery_bound_ms);
    let calms = calm::calms(history, calm::last_look(history));
    let (mut shown, mut owed, mut peaceful) = (BTreeSet::new(), 0, 0);
    let mut late: BTreeMap<(u64, &str), Look<'_>> = BTreeMap::new();
    for (key, of_key) in by_key(&history.operations) {
        for look in &of_key.looks {
            let Some(change) = of_key.left_before(look) else {
                continue;
            };
            let place = look.operation.node.as_deref().unwrap_or_default();
            let is_due = is_due(&calms, recovery, change.completed_at, look);
            owed += usize::from(is_due);
            let is_shown = look.value == change.value;
            peaceful += usize::from(is_shown && is_in_peace(&calms, recovery, look));
            if is_shown {
                shown.insert((key, change.operation.id, place));
            } else if is_due {
                late.entry((change.operation.id, place)).or_insert(Look {
                    change: Some(change),
                    ..*look
                });
            }
        }
    }
    let mut findings: Vec<Finding> = late.values().filter_map(Look::finding).collect();
    let summary = format!(
        "{} changes seen at a place, {peaceful} looks in peace that showed one, {owed} looks for one that was due",
        shown.len()
    );
    let seen = shown.len() + owed;
    // The fault that made a node lag may have been open still.
    let reason = set_aside(history, &mut findings, |_| false)
        .or_else(|| planned::unjudged(&history.run, WORKLOADS, seen, "looks"));
    Verdict::of("visibility", summary, findings)
        .unless_undecided(reason)
        // What was seen while faults explain everything could not have been a finding.
        .exercised_by(peaceful + owed)
}

fn is_due(calms: &[Calm], recovery: Duration, acknowledged: Moment, look: &Look<'_>) -> bool {
    calm_of(calms, look).is_some_and(|calm| {
        look.operation.invoked >= calm::due(calm.from, recovery, acknowledged, PATIENCE)
    })
}

fn is_in_peace(calms: &[Calm], recovery: Duration, look: &Look<'_>) -> bool {
    let begins = |calm: &Calm| calm.from.later(recovery);
    calm_of(calms, look).is_some_and(|calm| look.operation.invoked >= begins(calm))
}

/// The calm that nothing of this look was outside of.
fn calm_of<'a>(calms: &'a [Calm], look: &Look<'_>) -> Option<&'a Calm> {
    let (from, to) = (look.operation.invoked, look.until);
    let after = calms.partition_point(|calm| calm.from <= from);
    let calm = after.checked_sub(1).and_then(|place| calms.get(place))?;
    calm.covers(from, to).then_some(calm)
}

/// A change that was acknowledged.
#[derive(Clone, Copy)]
struct Change<'a> {
    operation: &'a Operation,
    completed_at: Moment,
    value: Option<&'a str>,
}

/// A DNS answer of one place.
#[derive(Clone, Copy)]
struct Look<'a> {
    operation: &'a Operation,
    until: Moment,
    value: Option<&'a str>,
    /// What it should have shown, where it did not.
    change: Option<Change<'a>>,
}

impl Look<'_> {
    fn finding(&self) -> Option<Finding> {
        let change = self.change?;
        let kind = match change.value {
            Some(_) => "not shown",
            None => "still shown",
        };
        let text = format!(
            "{:?} after it was acknowledged, with no fault to explain it: {}; {}",
            self.operation.invoked.since(change.completed_at),
            change.operation,
            self.operation
        );
        let operations = [change.operation, self.operation];
        Some(Finding::about(kind, text, operations))
    }
}

/// What was done to one key, and what was seen of it.
#[derive(Default)]
struct OfKey<'a> {
    /// But for those that certainly changed nothing.
    changes: Vec<&'a Operation>,
    looks: Vec<Look<'a>>,
}

impl<'a> OfKey<'a> {
    /// The change that alone decides what this look has to show, if one does.
    fn left_before(&self, look: &Look<'_>) -> Option<Change<'a>> {
        let acknowledged = |one: &&&Operation| {
            one.is_ok() && one.completed.is_some_and(|at| at <= look.operation.invoked)
        };
        let last = (self.changes.iter().filter(acknowledged)).max_by_key(|one| one.completed)?;
        let is_certain = self.changes.iter().all(|other| {
            let is_before = other.is_ok() && other.precedes(last);
            other.id == last.id || is_before || other.invoked >= look.until
        });
        Some(Change {
            operation: last,
            completed_at: last.completed?,
            value: left_by(&last.call)?,
        })
        .filter(|_| is_certain)
    }
}

/// What a change leaves. None: it is no change of a register.
fn left_by(call: &Call) -> Option<Option<&str>> {
    match call {
        Call::Write { value, .. } | Call::CompareAndSet { value, .. } => Some(value.as_deref()),
        _ => None,
    }
}

fn by_key(operations: &[Operation]) -> BTreeMap<&str, OfKey<'_>> {
    let mut keys: BTreeMap<&str, OfKey<'_>> = BTreeMap::new();
    let may_matter = |one: &&Operation| one.outcome != Outcome::Fail;
    for operation in operations.iter().filter(may_matter) {
        match &operation.call {
            // Of a zone the serial is asked.
            Call::Write { key, .. } | Call::CompareAndSet { key, .. } | Call::Lookup { key }
                if zones::is_apex(key) => {}
            Call::Write { key, .. } | Call::CompareAndSet { key, .. } => {
                keys.entry(key).or_default().changes.push(operation);
            }
            Call::Lookup { key } => {
                let look = look(operation);
                keys.entry(key).or_default().looks.extend(look);
            }
            _ => {}
        }
    }
    keys
}

fn look(operation: &Operation) -> Option<Look<'_>> {
    match &operation.reply {
        Some(Reply::Dns {
            value,
            serial: None,
            stale: false,
            ..
        }) if operation.is_ok() => Some(Look {
            operation,
            until: operation.completed?,
            value: value.as_deref(),
            change: None,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::{Conclusion, fixture::*},
        history::Fault,
    };

    const SECOND: u64 = 1_000_000_000;
    const KEY: &str = "_acme-challenge.h7.acme.test.";

    fn written(id: u64, at: u64) -> Operation {
        let call = write(KEY, "token-7");
        ok(id, at * SECOND, at * SECOND + 1, call, committed(id))
    }

    fn deleted(id: u64, at: u64) -> Operation {
        let call = Call::Write {
            key: KEY.into(),
            value: None,
        };
        ok(id, at * SECOND, at * SECOND + 1, call, committed(id))
    }

    fn looked(id: u64, place: &str, at: u64, value: Option<&str>) -> Operation {
        let mut look = look_up(id, place, at * SECOND);
        look.call = Call::Lookup { key: KEY.into() };
        look.reply = Some(Reply::Dns {
            node: None,
            value: value.map(str::to_owned),
            serial: None,
            stale: false,
        });
        look
    }

    /// A second after the run's beginning n1 and n2 are up; the recovery bound is 20 s.
    fn history(faults: Vec<Fault>, operations: Vec<Operation>) -> History {
        let mut history = tried(faults, operations);
        history.run = planned(&[Workload::Acme]);
        history.run.recovery_bound_ms = 20_000;
        history
    }

    fn pause(began: u64, healed: u64) -> Fault {
        fault("pause", "n2", began * SECOND, healed * SECOND, false)
    }

    /// Written at 30 s, shown at n1, and at n2 not by 50 s.
    fn never_shown() -> Vec<Operation> {
        let mut operations = vec![written(1, 30), looked(2, "n1", 31, Some("token-7"))];
        operations.extend((31..=50).map(|at| looked(at, "n2", at, None)));
        operations
    }

    #[test]
    fn a_record_that_a_node_never_shows_is_found_with_its_operations() {
        let verdict = check(&history(vec![], never_shown()));
        assert_eq!(kinds(&verdict), ["not shown"], "{verdict:?}");
        // The first look that was due, and what it should have shown.
        assert_eq!(verdict.findings[0].operations, [1, 41]);
        assert!(verdict.findings[0].text.contains("at n2"), "{verdict:?}");
        let prompt = vec![written(1, 30), looked(2, "n2", 31, Some("token-7"))];
        let verdict = check(&history(vec![], prompt));
        assert_eq!(verdict.conclusion, Conclusion::Holds);
        assert_eq!(
            verdict.summary,
            "1 changes seen at a place, 1 looks in peace that showed one, 0 looks for one that was due"
        );
        // Late, and within the patience that each change has.
        let mut slow = vec![written(1, 30)];
        slow.extend((31..40).map(|at| looked(at, "n2", at, None)));
        slow.push(looked(40, "n2", 41, Some("token-7")));
        let verdict = check(&history(vec![], slow));
        assert_eq!(verdict.conclusion, Conclusion::Holds, "{verdict:?}");
    }

    #[test]
    fn while_a_fault_is_in_force_or_was_a_moment_ago_nothing_is_judged() {
        // At n1 it was seen in peace only where the fault began later.
        for (faults, expected) in [
            // On the node, from before the write; it is paused, and another fault is elsewhere.
            (vec![pause(25, 60)], Conclusion::NotExercised),
            (
                vec![
                    pause(25, 60),
                    fault("kill", "n1", 26 * SECOND, 27 * SECOND, true),
                ],
                Conclusion::NotExercised,
            ),
            // On another node, begun when the record was due.
            (
                vec![fault("kill", "n1", 40 * SECOND, 60 * SECOND, true)],
                Conclusion::Holds,
            ),
            // Over, and the cluster may be about to recover still.
            (vec![pause(25, 31)], Conclusion::NotExercised),
        ] {
            let verdict = check(&history(faults.clone(), never_shown()));
            assert_eq!(verdict.conclusion, expected, "{faults:?}");
        }
        // Long over.
        let verdict = check(&history(vec![pause(25, 29)], never_shown()));
        assert_eq!(kinds(&verdict), ["not shown"]);
        // What was cut off may have had a fault that would have been written later.
        let mut cut = history(vec![], never_shown());
        cut.is_cut_off = true;
        assert_eq!(check(&cut).conclusion, Conclusion::Undecided);
    }

    #[test]
    fn a_deleted_record_that_is_still_shown_is_found() {
        let judged = |last: u64, value| {
            let mut operations = vec![written(1, 30), deleted(2, 33)];
            operations.extend((34..=last).map(|at| looked(at, "n2", at, value)));
            check(&history(vec![], operations))
        };
        let shown = judged(50, Some("token-7"));
        assert_eq!(kinds(&shown), ["still shown"]);
        assert_eq!(shown.findings[0].operations, [2, 44]);
        let early = judged(42, Some("token-7"));
        assert!(early.findings.is_empty(), "not due yet: {early:?}");
        assert_eq!(judged(50, None).conclusion, Conclusion::Holds);
    }

    #[test]
    fn what_may_have_been_changed_otherwise_is_not_judged() {
        let call = || write(KEY, "token-7");
        let unknown = |id, at: u64| unknown(id, at * SECOND, at * SECOND + 1, call());
        let judged = |change: Operation, further: Operation| {
            let mut operations = never_shown();
            operations[0] = change;
            operations.push(further);
            check(&history(vec![], operations))
        };
        let read = || ok(99, 0, 1, read("x"), value("1"));
        // Of unknown outcome, before the write or after it; a deletion that is under way.
        for (change, further) in [
            (unknown(1, 30), read()),
            (written(1, 30), unknown(99, 29)),
            (written(1, 30), unknown(99, 32)),
            (written(1, 30), deleted(99, 35)),
        ] {
            let verdict = judged(change, further);
            assert!(verdict.findings.is_empty(), "{verdict:?}");
        }
        // One that failed changed nothing, one that comes later explains nothing.
        for further in [
            failed(99, 29 * SECOND, 29 * SECOND + 1, call()),
            deleted(99, 60),
        ] {
            let verdict = judged(written(1, 30), further);
            assert_eq!(kinds(&verdict), ["not shown"]);
        }
    }

    #[test]
    fn what_is_marked_stale_may_be_old() {
        let mut operations = never_shown();
        for look in &mut operations {
            if let Some(Reply::Dns { stale, .. }) = &mut look.reply {
                *stale = true;
            }
        }
        let verdict = check(&history(vec![], operations));
        assert_eq!(verdict.conclusion, Conclusion::Undecided, "{verdict:?}");
        let mut none = history(vec![], vec![]);
        none.run.workloads = [Workload::Set.to_string()].into();
        assert_eq!(check(&none).conclusion, Conclusion::NotExercised);
    }
}
