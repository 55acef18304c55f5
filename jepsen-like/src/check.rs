//! `check`: judges histories that were recorded before, and says so in words, as JSON and as an exit code.

use std::{
    cell::Cell,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use crate::{
    checker::{
        self, Bounds, Conclusion, Verdict, linearizable,
        register::{self, Action, Limits, Linearizability, Step},
    },
    history::{self, Histories, HistoryError, registers::RegisterHistory},
};

/// How to judge.
#[derive(Clone, Debug)]
pub struct Options {
    /// Longest time for the linearizability of one register.
    pub time_limit: Duration,
    /// Most configurations that the search for an order holds.
    pub configurations: usize,
    pub bounds: Bounds,
}

/// One history with what was found.
#[derive(Clone, Debug)]
pub struct Judged {
    /// As its file names it, or the file.
    pub id: serde_json::Value,
    pub conclusion: Conclusion,
    /// What was found, in words; several lines.
    pub text: String,
}

impl Judged {
    pub fn verdict(&self) -> &'static str {
        match self.conclusion {
            Conclusion::NotExercised | Conclusion::Holds => "linearizable",
            Conclusion::Undecided => "undecided",
            Conclusion::Violated => "violation",
        }
    }
}

impl Serialize for Judged {
    /// The line that `-o json` prints for a history: `id` and `verdict`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_struct("Judged", 2)?;
        line.serialize_field("id", &self.id)?;
        line.serialize_field("verdict", self.verdict())?;
        line.end()
    }
}

/// What all histories come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub holding: usize,
    pub violated: usize,
    pub undecided: usize,
    pub unreadable: usize,
}

impl Tally {
    /// 0: everything holds. 1: a violation. 2: no violation, but something could not be read. 4: no violation, but something is
    /// undecided.
    pub fn exit_code(self) -> u8 {
        match self {
            Self { violated: 1.., .. } => 1,
            Self {
                unreadable: 1.., ..
            } => 2,
            Self { undecided: 1.., .. } => 4,
            _ => 0,
        }
    }

    fn count(&mut self, conclusion: Conclusion) {
        match conclusion {
            Conclusion::NotExercised | Conclusion::Holds => self.holding += 1,
            Conclusion::Undecided => self.undecided += 1,
            Conclusion::Violated => self.violated += 1,
        }
    }
}

/// Judges all histories in the files; each is given to `report` as soon as it is known.
pub fn check(
    files: &[PathBuf],
    options: &Options,
    mut report: impl FnMut(Result<&Judged, &HistoryError>),
) -> Tally {
    let mut tally = Tally::default();
    for file in files {
        let mut judged = |result: Result<Judged, HistoryError>| match result {
            Ok(judged) => {
                tally.count(judged.conclusion);
                report(Ok(&judged));
            }
            Err(error) => {
                tally.unreadable += 1;
                report(Err(&error));
            }
        };
        match history::read(file) {
            Ok(Histories::Run(run)) => judged(Ok(judge_run(&run, file, options))),
            Ok(Histories::Registers(lines)) => lines.into_iter().for_each(|line| {
                judged(line.map(|history| judge_register(&history, options)));
            }),
            Err(error) => judged(Err(error)),
        }
    }
    tally
}

/// Decides with limits that count time for each register anew.
pub fn within<T>(
    configurations: usize,
    time_limit: Duration,
    decide: impl FnOnce(&Limits<'_>) -> T,
) -> T {
    let began = Cell::new(Instant::now());
    decide(&Limits {
        configurations,
        begin: &|| began.set(Instant::now()),
        give_up: &|| began.get().elapsed() >= time_limit,
    })
}

fn judge_run(run: &history::History, file: &Path, options: &Options) -> Judged {
    let verdicts = within(options.configurations, options.time_limit, |limits| {
        checker::check(run, &options.bounds, limits)
    });
    Judged {
        id: file.display().to_string().into(),
        conclusion: checker::conclusion(&verdicts),
        text: verdicts.iter().map(describe).collect(),
    }
}

/// A verdict as a few lines.
pub fn describe(verdict: &Verdict) -> String {
    let conclusion = match verdict.conclusion {
        Conclusion::NotExercised => "not exercised",
        Conclusion::Holds => "holds",
        Conclusion::Undecided => "UNDECIDED",
        Conclusion::Violated => "VIOLATED",
    };
    let mut text = format!("{}: {conclusion} ({})\n", verdict.checker, verdict.summary);
    for finding in &verdict.findings {
        let _ = writeln!(
            text,
            "  {}: {}",
            finding.kind,
            finding.text.replace('\n', "\n  ")
        );
    }
    if verdict.found > verdict.findings.len() {
        let _ = writeln!(
            text,
            "  and {} more",
            verdict.found - verdict.findings.len()
        );
    }
    text
}

fn judge_register(history: &RegisterHistory, options: &Options) -> Judged {
    let found = within(options.configurations, options.time_limit, |limits| {
        register::check(&history.steps, 0, limits)
    });
    let (conclusion, text) = match found {
        Linearizability::Linearizable => (Conclusion::Holds, String::new()),
        Linearizability::Undecided => (
            Conclusion::Undecided,
            "undecided within the limits\n".to_owned(),
        ),
        Linearizability::Violation(stuck) => {
            let value = |number: u32| value(history, number);
            let operation = |step: usize| operation(history, step);
            let text = linearizable::explain(&stuck, value, operation) + "\n";
            (Conclusion::Violated, text)
        }
    };
    Judged {
        id: history.id.clone(),
        conclusion,
        text,
    }
}

fn value(history: &RegisterHistory, number: u32) -> String {
    history
        .values
        .get(number as usize)
        .cloned()
        .unwrap_or_default()
}

/// An operation with the events that it lasts from and to, counted from 1.
fn operation(history: &RegisterHistory, step: usize) -> String {
    let (
        Some(Step {
            invoked,
            completed,
            action,
            ..
        }),
        Some(process),
    ) = (history.steps.get(step), history.processes.get(step))
    else {
        return String::new();
    };
    let value = |number: u32| value(history, number);
    let what = match *action {
        Action::Read(Some(seen)) => format!("read -> {}", value(seen)),
        Action::Read(None) => "read".to_owned(),
        Action::Write(new) => format!("write {}", value(new)),
        Action::CompareAndSet { expected, new } => {
            format!("cas [{} {}]", value(expected), value(new))
        }
        Action::Refused { expected, new } => {
            format!("cas [{} {}] failed", value(expected), value(new))
        }
        Action::Nothing => "failed".to_owned(),
    };
    let until = match completed {
        Some(completed) => format!("events {} to {}", invoked + 1, completed + 1),
        None => format!("event {}, outcome unknown", invoked + 1),
    };
    format!("{what} (process {process}, {until})")
}
