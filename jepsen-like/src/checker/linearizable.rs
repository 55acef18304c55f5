//! Registers: linearizable reads, writes and compare-and-sets of each key.
//!
//! A history is linearizable if that of each key is (Herlihy & Wing: the property is local), so each is searched alone.

use std::collections::{BTreeMap, HashMap};

use super::{
    Finding, Verdict, planned,
    register::{self, Action, Limits, Linearizability, Step, Stuck},
};
use crate::{
    history::{Call, History, Operation, Outcome, Reply},
    workload::Workload,
};

const NAME: &str = "linearizability";
/// Registers that are named of those that are undecided.
const NAMED: usize = 5;
/// Those that write registers, or what is judged like one.
const WORKLOADS: &[Workload] = &[Workload::Register, Workload::Zones, Workload::Acme];

/// Judges every register of a run. Registers start without a value.
pub fn check(history: &History, limits: &Limits<'_>) -> Verdict {
    let mut keys: BTreeMap<&str, Key<'_>> = BTreeMap::new();
    for operation in &history.operations {
        if let Some(key) = register_key(&operation.call) {
            keys.entry(key).or_default().add(operation);
        }
    }
    let mut findings = vec![];
    let mut undecided = vec![];
    for (name, key) in &keys {
        (limits.begin)();
        match register::check(&key.steps, 0, limits) {
            Linearizability::Linearizable => {}
            Linearizability::Violation(stuck) => findings.push(key.finding(name, &stuck)),
            Linearizability::Undecided => undecided.push(*name),
        }
    }
    let operations: usize = keys.values().map(|key| key.steps.len()).sum();
    let summary = format!("{operations} operations on {} registers", keys.len());
    let undecided = (!undecided.is_empty())
        .then(|| format!("undecided within the limits: {}", shortened(&undecided)))
        .or_else(|| planned::unjudged(&history.run, WORKLOADS, operations, "operations"));
    Verdict::of(NAME, summary, findings)
        .unless_undecided(undecided)
        .exercised_by(operations)
}

/// The first of some names, and how many there are beyond.
fn shortened(names: &[&str]) -> String {
    let (named, more) = names.split_at(names.len().min(NAMED));
    match more.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn register_key(call: &Call) -> Option<&str> {
    match call {
        Call::Read { key } | Call::Write { key, .. } | Call::CompareAndSet { key, .. } => Some(key),
        _ => None,
    }
}

/// Whether a compare-and-set failed because the register held another value than the expected one. One that was refused for any other reason
/// saw nothing of it.
///
/// The words are those of the state machine, which decides it in the order of the log (`Precondition::Rrset` of `pontoon::state`). A test
/// asks it for them.
pub(super) fn has_seen_another(operation: &Operation, expected: Option<&String>) -> bool {
    let reason = operation.reason.as_deref().unwrap_or_default();
    let Some((object, problem)) = reason.rsplit_once(": ") else {
        return false;
    };
    let is_of_rrset = object.starts_with("record ") || object.contains(": record ");
    is_of_rrset
        && match problem {
            "it is not the set that was expected" => true,
            "it does not exist" => expected.is_some(),
            "it exists" => expected.is_none(),
            _ => false,
        }
}

/// The operations on one register.
struct Key<'a> {
    operations: Vec<&'a Operation>,
    steps: Vec<Step>,
    /// Values by number; 0 is no value.
    values: Vec<Option<&'a str>>,
    numbers: HashMap<Option<&'a str>, u32>,
}

impl Default for Key<'_> {
    fn default() -> Self {
        Self {
            operations: vec![],
            steps: vec![],
            values: vec![None],
            numbers: HashMap::from([(None, 0)]),
        }
    }
}

impl<'a> Key<'a> {
    fn value(&mut self, value: &'a Option<String>) -> u32 {
        let value = value.as_deref();
        let next = self.values.len() as u32; // far fewer values than lines of the file
        *self.numbers.entry(value).or_insert_with(|| {
            self.values.push(value);
            next
        })
    }

    fn add(&mut self, operation: &'a Operation) {
        let action = match (&operation.call, &operation.reply, operation.outcome) {
            (
                Call::CompareAndSet {
                    expected, value, ..
                },
                _,
                Outcome::Fail,
            ) if has_seen_another(operation, expected.as_ref()) => Action::Refused {
                expected: self.value(expected),
                new: self.value(value),
            },
            (_, _, Outcome::Fail) => Action::Nothing,
            (Call::Read { .. }, Some(Reply::Value(value)), Outcome::Ok) => {
                Action::Read(Some(self.value(value)))
            }
            (Call::Write { value, .. }, _, _) => Action::Write(self.value(value)),
            (
                Call::CompareAndSet {
                    expected, value, ..
                },
                _,
                _,
            ) => Action::CompareAndSet {
                expected: self.value(expected),
                new: self.value(value),
            },
            _ => Action::Read(None),
        };
        let has_looked = operation.is_ok() || matches!(action, Action::Refused { .. });
        let completed = operation.completed.filter(|_| has_looked);
        self.steps.push(Step {
            operation: self.operations.len(),
            invoked: operation.invoked.0,
            completed: completed.map(|moment| moment.0),
            action,
        });
        self.operations.push(operation);
    }

    fn finding(&self, key: &str, stuck: &Stuck) -> Finding {
        let operation = |step: usize| self.operations.get(step).copied();
        let shown = |step: usize| operation(step).map(ToString::to_string).unwrap_or_default();
        let text = explain(
            stuck,
            |value| match self.values.get(value as usize) {
                Some(Some(value)) => (*value).to_owned(),
                _ => "nil".to_owned(),
            },
            shown,
        );
        let writers = stuck.possible.iter().filter_map(|(_, writer)| *writer);
        let offending = writers.chain([stuck.step]).filter_map(operation);
        Finding::about("not linearizable", format!("{key}: {text}"), offending)
    }
}

/// Where a history gets stuck, in words.
pub fn explain(
    stuck: &Stuck,
    value: impl Fn(u32) -> String,
    operation: impl Fn(usize) -> String,
) -> String {
    let mut text = format!(
        "no place for {}\n  the {} operations that completed before it are linearizable; after them the register can hold",
        operation(stuck.step),
        stuck.prefix
    );
    for (possible, writer) in &stuck.possible {
        text += &match writer {
            Some(writer) => format!("\n    {}, left by {}", value(*possible), operation(*writer)),
            None => format!("\n    {}, as at the beginning", value(*possible)),
        };
    }
    if !stuck.pending.is_empty() {
        text += "\n  and these might still take effect";
    }
    for step in stuck.pending.iter().take(20) {
        text += &format!("\n    {}", operation(*step));
    }
    if stuck.pending.len() > 20 {
        text += &format!("\n    and {} more", stuck.pending.len() - 20);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Conclusion, fixture::*};

    fn judged(history: &History) -> Verdict {
        check(history, &PATIENT)
    }

    #[test]
    fn operations_in_order_hold() {
        let history = history([
            ok(0, 0, 10, write("a", "1"), committed(1)),
            ok(1, 5, 30, read("a"), value("1")),
            ok(2, 31, 40, compare_and_set("a", "1", "2"), committed(2)),
            ok(3, 41, 50, read("a"), value("2")),
            ok(4, 41, 50, read("b"), Reply::Value(None)),
        ]);
        let verdict = judged(&history);
        assert_eq!(verdict.conclusion, Conclusion::Holds, "{verdict:?}");
        assert_eq!(verdict.summary, "5 operations on 2 registers");
    }

    #[test]
    fn a_stale_read_names_itself_and_what_had_overwritten() {
        let history = history([
            ok(0, 0, 10, write("a", "1"), committed(1)),
            ok(1, 11, 20, write("a", "2"), committed(2)),
            ok(2, 21, 30, read("a"), value("1")),
            ok(3, 21, 30, read("b"), Reply::Value(None)),
        ]);
        let verdict = judged(&history);
        assert_eq!(verdict.conclusion, Conclusion::Violated);
        assert_eq!(verdict.findings[0].operations, [1, 2]);
        assert!(
            verdict.findings[0]
                .text
                .starts_with("a: no place for operation 2 ")
        );
    }

    #[test]
    fn a_lost_acknowledged_write_is_found() {
        let history = history([
            ok(0, 0, 10, write("a", "1"), committed(1)),
            ok(1, 11, 20, read("a"), Reply::Value(None)),
        ]);
        assert_eq!(judged(&history).conclusion, Conclusion::Violated);
    }

    #[test]
    fn an_unknown_write_may_take_effect_late_or_never_and_a_failed_one_never() {
        let late = |write| {
            history([
                write,
                ok(1, 11, 20, read("a"), Reply::Value(None)),
                ok(2, 100, 110, read("a"), value("1")),
            ])
        };
        let unknown = late(unknown(0, 0, 10, write("a", "1")));
        assert_eq!(judged(&unknown).conclusion, Conclusion::Holds);
        let failed = late(failed(0, 0, 10, write("a", "1")));
        assert_eq!(judged(&failed).conclusion, Conclusion::Violated);
    }

    #[test]
    fn a_compare_and_set_that_was_refused_for_the_value_saw_another() {
        let judged = |expected: Option<&str>, reason: &str| {
            let mut refused = failed(1, 11, 20, compare_and_set("a", "", "3"));
            if let Call::CompareAndSet { expected: of, .. } = &mut refused.call {
                *of = expected.map(str::to_owned);
            }
            refused.reason = Some(reason.to_owned());
            let written = ok(0, 0, 10, write("a", "1"), committed(1));
            let seen = ok(2, 21, 30, read("a"), value("1"));
            judged(&history([written, refused, seen])).conclusion
        };
        let other = "record a TXT: it is not the set that was expected";
        for (expected, reason, conclusion) in [
            (Some("1"), other, Conclusion::Violated),
            (Some("2"), other, Conclusion::Holds),
            (
                Some("1"),
                "asked again under the same request id: record a TXT: it is not the set that was expected",
                Conclusion::Violated,
            ),
            (
                Some("1"),
                "record a TXT: it does not exist",
                Conclusion::Violated,
            ),
            (None, "record a TXT: it exists", Conclusion::Holds),
            // It says nothing of the register.
            (
                Some("1"),
                "zone test.: it does not exist",
                Conclusion::Holds,
            ),
            (
                Some("1"),
                "cluster: no leader took the command in time",
                Conclusion::Holds,
            ),
            (Some("1"), "no answer", Conclusion::Holds),
        ] {
            assert_eq!(
                judged(expected, reason),
                conclusion,
                "{expected:?}: {reason}"
            );
        }
        let absent = |reason: &str| {
            let mut refused = failed(0, 0, 10, compare_and_set("a", "", "3"));
            if let Call::CompareAndSet { expected, .. } = &mut refused.call {
                *expected = None;
            }
            refused.reason = Some(reason.to_owned());
            judged_alone(refused)
        };
        assert_eq!(absent("record a TXT: it exists"), Conclusion::Violated);
        assert_eq!(absent("record a TXT: no"), Conclusion::Holds);
    }

    /// What a client is told of a compare-and-set that the state machine itself refuses, where the register holds `held`.
    fn refusal(held: Option<&str>, expected: Option<&str>) -> String {
        use pontoon::{
            state::{
                State,
                command::{Change, Command, Precondition, RequestId, UnixMillis},
                outcome::Outcome,
            },
            wire::error::Failure,
        };

        use crate::workload::{
            api::{expect_txt, set_txt},
            register::ZONE,
            site,
        };
        let key = format!("r1.{ZONE}");
        let txt = |value: &str| {
            let change = set_txt(ZONE, &key, &[value.to_owned()]);
            Change::try_from(change).unwrap()
        };
        let command = |preconditions, changes| Command {
            request: RequestId::default(),
            born: 0,
            proposed_at: UnixMillis(0),
            author: "a test".into(),
            preconditions,
            changes,
        };
        let mut state = State::default();
        let mut there = site("10.77.0.2:7".parse().unwrap());
        there.extend(held.map(txt));
        let made = state.apply(1, &command(vec![], there));
        assert!(matches!(made, Outcome::Applied(_)), "{made:?}");
        let expected = expected.map(|value| vec![value.to_owned()]);
        let condition = expect_txt(ZONE, &key, expected.as_deref());
        let condition = Precondition::try_from(condition).unwrap();
        match state.apply(2, &command(vec![condition], vec![txt("3")])) {
            Outcome::Refused(refusal) => Failure::from(refusal).to_string(),
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn the_state_machines_own_words_say_that_it_saw_another_value() {
        for (held, expected) in [(Some("1"), Some("2")), (None, Some("1")), (Some("1"), None)] {
            let mut refused = failed(0, 0, 10, compare_and_set("a", "", "3"));
            refused.reason = Some(refusal(held, expected));
            let expected = expected.map(str::to_owned);
            assert!(
                has_seen_another(&refused, expected.as_ref()),
                "{:?}, where {held:?} was held and {expected:?} expected",
                refused.reason
            );
        }
    }

    fn judged_alone(operation: Operation) -> Conclusion {
        judged(&history([operation])).conclusion
    }

    #[test]
    fn without_patience_nothing_is_claimed() {
        let limits = Limits {
            configurations: 0,
            give_up: &|| true,
            ..PATIENT
        };
        let written = |key: &str| ok(0, 0, 10, write(key, "1"), committed(1));
        let verdict = check(&history([written("a")]), &limits);
        assert_eq!(verdict.conclusion, Conclusion::Undecided, "{verdict:?}");
        assert!(verdict.summary.ends_with("limits: a"));
        let many = ["a", "b", "c", "d", "e", "f", "g"].map(written);
        let verdict = check(&history(many), &limits);
        assert!(
            verdict
                .summary
                .ends_with("limits: a, b, c, d, e and 2 more")
        );
    }

    #[test]
    fn each_register_has_a_time_of_its_own() {
        let begun = std::cell::Cell::new(0);
        let begin = || begun.set(begun.get() + 1);
        let limits = Limits {
            begin: &begin,
            ..PATIENT
        };
        let written = |key: &str| ok(0, 0, 10, write(key, "1"), committed(1));
        check(&history(["a", "b", "c"].map(written)), &limits);
        assert_eq!(begun.get(), 3);
    }
}
