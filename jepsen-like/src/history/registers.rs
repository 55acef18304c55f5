//! Recorded histories of one compare-and-set register, one JSON object a line: `id` and `events`, each
//! `[process, kind, function, value]` in real-time order.
//!
//! A completion repeats the value of its invocation, or has none, but for that of a read. Where it failed or is of unknown outcome other
//! words may stand in its place (`:timed-out`). A process whose operation ended in `info` is not used again.
//!
//! `kind` is `invoke`, `ok`, `fail` or `info`; `function` is `read`, `write` or `cas`, each with or without a colon before it; a value is text as
//! recorded (`nil`, `3`, `[2 4]`) or the same as JSON, and may be left out, which is nil. The register starts as nil. A `cas` that fails and repeats
//! its value saw another than it expected; of one that fails for another reason no more is known than that it did nothing. What a process named
//! `nemesis` does is no operation. Other fields, such as the known verdict, are not looked at.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;

use crate::checker::register::{Action, Step};

/// The history of one register.
#[derive(Clone, Debug)]
pub struct RegisterHistory {
    /// As the file names it: a number or a text.
    pub id: Value,
    /// In order of invocation; times count events.
    pub steps: Vec<Step>,
    /// The text of each value that the steps speak of; the first is the initial one.
    pub values: Vec<String>,
    /// For each step, the process that made it.
    pub processes: Vec<String>,
}

#[derive(Deserialize)]
struct Line {
    id: Value,
    events: Vec<Vec<Value>>,
}

/// Reads one line; the error is what is wrong with it.
pub fn parse(line: &str) -> Result<RegisterHistory, String> {
    let line: Line = serde_json::from_str(line)
        .map_err(|error| format!("not a history of a register: {error}"))?;
    let mut reading = Reading::default();
    reading.value("nil");
    for (number, members) in line.events.iter().enumerate() {
        let read = reading.take(number as u64, members);
        read.map_err(|problem| format!("event {}: {problem}", number + 1))?;
    }
    Ok(RegisterHistory {
        id: line.id,
        steps: reading.steps,
        values: reading.values,
        processes: reading.processes,
    })
}

/// A JSON value as it would have been recorded: `null` is `nil`, `[2, 4]` is `[2 4]`.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::String(text) => text.trim().to_owned(),
        Value::Array(members) => {
            let members: Vec<_> = members.iter().map(text).collect();
            format!("[{}]", members.join(" "))
        }
        other => other.to_string(),
    }
}

struct Event<'a> {
    number: u64,
    process: String,
    function: &'a str,
    value: String,
}

/// Whether a completion has a value that has to be that of its invocation: what failed may say why instead.
fn must_repeat(event: &Event<'_>, kind: &str) -> bool {
    match (event.function, kind) {
        ("write" | "cas", "ok") => event.value != "nil",
        ("cas", "fail") => event.value.starts_with('['),
        _ => false,
    }
}

/// A keyword of Clojure is written with a colon before it.
fn keyword(value: &Value) -> Result<&str, String> {
    let word = value.as_str().map(|word| word.trim_start_matches(':'));
    word.ok_or_else(|| format!("{value} is no word"))
}

/// Whether two values are the same, whatever stands between the two of a `cas`.
fn is_same(one: &str, other: &str) -> bool {
    one == other || (one.starts_with('[') && words(one).eq(words(other)))
}

/// The values of a `cas`, which are in brackets.
fn words(value: &str) -> impl Iterator<Item = &str> {
    let inner = value
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let words = inner.unwrap_or_default().split([' ', ',']);
    words.filter(|word| !word.is_empty())
}

/// The steps of a history as far as it has been read.
#[derive(Default)]
struct Reading {
    steps: Vec<Step>,
    processes: Vec<String>,
    values: Vec<String>,
    numbers: HashMap<String, u32>,
    /// The step that each process has under way, and the value it was invoked with.
    pending: HashMap<String, (usize, String)>,
    /// Processes that had an operation of unknown outcome.
    gone: HashSet<String>,
}

impl Reading {
    fn value(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.values.len() as u32; // one a word of a line, and a line is at most 256 MiB
        self.values.push(text.to_owned());
        self.numbers.insert(text.to_owned(), number);
        number
    }

    fn take(&mut self, number: u64, members: &[Value]) -> Result<(), String> {
        let (process, kind, function, value) = match members {
            [process, kind, function] => (process, kind, function, &Value::Null),
            [process, kind, function, value] => (process, kind, function, value),
            _ => return Err("it is not [process, kind, function, value]".to_owned()),
        };
        let process = text(process);
        if process.trim_start_matches(':') == "nemesis" {
            return Ok(());
        }
        let event = Event {
            number,
            process,
            function: keyword(function)?,
            value: text(value),
        };
        match keyword(kind)? {
            "invoke" => self.invoke(&event),
            kind @ ("ok" | "fail" | "info") => self.complete(&event, kind),
            kind => Err(format!("{kind:?} is not invoke, ok, fail or info")),
        }
    }

    fn invoke(&mut self, event: &Event<'_>) -> Result<(), String> {
        let action = match event.function {
            "read" => Action::Read(None),
            "write" => Action::Write(self.value(&event.value)),
            "cas" => self.compare_and_set(&event.value)?,
            other => return Err(format!("{other:?} is not read, write or cas")),
        };
        let process = &event.process;
        if self.gone.contains(process) {
            return Err(format!(
                "process {process} is used again after an operation of unknown outcome"
            ));
        }
        let step = self.steps.len();
        let begun = (step, event.value.clone());
        if self.pending.insert(process.clone(), begun).is_some() {
            return Err(format!(
                "process {process} invokes while it has an operation under way"
            ));
        }
        self.processes.push(event.process.clone());
        self.steps.push(Step {
            operation: step,
            invoked: event.number,
            completed: None,
            action,
        });
        Ok(())
    }

    fn compare_and_set(&mut self, value: &str) -> Result<Action, String> {
        let mut words = words(value);
        match (words.next(), words.next(), words.next()) {
            (Some(expected), Some(new), None) => Ok(Action::CompareAndSet {
                expected: self.value(expected),
                new: self.value(new),
            }),
            _ => Err(format!(
                "{value:?} is not the value of a cas: [EXPECTED NEW]"
            )),
        }
    }

    fn complete(&mut self, event: &Event<'_>, kind: &str) -> Result<(), String> {
        let Some((index, begun)) = self.pending.remove(&event.process) else {
            return Err(format!(
                "process {} completes and has no operation under way",
                event.process
            ));
        };
        let read = match event.function {
            "read" if kind == "ok" => Some(self.value(&event.value)),
            _ => None,
        };
        let Some(step) = self.steps.get_mut(index) else {
            return Err("an operation without invocation".to_owned());
        };
        if step.action.function() != event.function {
            return Err(format!(
                "process {} completes a {} and had invoked a {}",
                event.process,
                event.function,
                step.action.function()
            ));
        }
        if must_repeat(event, kind) && !is_same(&begun, &event.value) {
            return Err(format!(
                "process {} completes a {} of {} and had invoked one of {begun}",
                event.process, event.function, event.value
            ));
        }
        if kind == "info" {
            self.gone.insert(event.process.clone());
        }
        match kind {
            "ok" => step.completed = Some(event.number),
            "fail" => match step.action {
                Action::CompareAndSet { expected, new } if is_same(&begun, &event.value) => {
                    step.action = Action::Refused { expected, new };
                    step.completed = Some(event.number);
                }
                _ => step.action = Action::Nothing,
            },
            _ => {}
        }
        if let Some(value) = read {
            step.action = Action::Read(Some(value));
        }
        Ok(())
    }
}
