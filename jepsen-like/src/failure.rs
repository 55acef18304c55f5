//! What could not be done, in the form in which every command says it: words for people, one JSON object for programs, an exit code.

use std::{fmt, io, path::Path};

use serde::Serialize;

use crate::{
    history::HistoryError,
    lab::{LabError, program::NamedBy},
    run::{RunError, Unwritten},
};

/// Why a command did not do what it was told to, or not to its end. In JSON it is `{object, problem, hint, code}`, as of `pontoon`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What it is about: an option, a file, the laboratory.
    pub object: String,
    /// What was wrong with it.
    pub problem: String,
    /// What to do next.
    pub hint: String,
    pub code: Code,
}

/// The `code` of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The arguments are wrong, or what the environment says in the place of one.
    Usage,
    /// A history cannot be read.
    Unreadable,
    /// This machine or user lacks what is needed.
    Unsupported,
    /// A file, or what is written for whoever called, did not get to where it goes.
    Unwritten,
    /// The laboratory itself failed, which says nothing of the cluster.
    Laboratory,
    /// It was told to end before it was done.
    Interrupted,
}

impl Code {
    /// 2: the arguments, or the files that they name. 3: the laboratory could not do it. Never 1, which is a finding.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage | Self::Unreadable => 2,
            Self::Unsupported | Self::Unwritten | Self::Laboratory | Self::Interrupted => 3,
        }
    }
}

impl Failure {
    pub fn new(
        code: Code,
        object: impl ToString,
        problem: impl ToString,
        hint: impl ToString,
    ) -> Self {
        Self {
            object: object.to_string(),
            problem: problem.to_string(),
            hint: hint.to_string(),
            code,
        }
    }

    /// A fault of the machine for which no command has other words.
    pub fn of_machine(object: &str, error: impl fmt::Display) -> Self {
        let hint =
            "see to the machine, and run it again; `jepsen-like clean` removes what a lab left";
        Self::new(Code::Laboratory, object, error, hint)
    }

    /// A command line that `clap` refused.
    pub fn usage(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let problem: Vec<&str> = text
            .lines()
            .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let problem = problem.join(" ");
        let problem = problem.strip_prefix("error: ").unwrap_or(&problem);
        let hint = "`jepsen-like --help` and `jepsen-like COMMAND --help` show what is expected";
        Self::new(Code::Usage, "command line", problem, hint)
    }

    /// What was found could not be told on stdout.
    pub fn untold(error: &io::Error) -> Self {
        let hint = "make room where it goes, or send it elsewhere; what the command did is done";
        let problem = format!("cannot be written: {error}");
        Self::new(Code::Unwritten, "standard output", problem, hint)
    }

    /// Both as one: this one in detail, the other behind its problem.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.problem += &format!("; and {}: {}", other.object, other.problem);
        self
    }

    /// Files that could not be written; the first in detail. None: there are none.
    pub fn of_unwritten(files: &[Unwritten]) -> Option<Self> {
        let (first, others) = files.split_first()?;
        let mut failure = Self::from(first);
        if !others.is_empty() {
            let names = others.iter().map(|file| file.path.display().to_string());
            let names: Vec<_> = names.collect();
            failure.problem += &format!("; nor can {}", names.join(", "));
        }
        Some(failure)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            object,
            problem,
            hint,
            ..
        } = self;
        write!(f, "{object}: {problem}\nhint: {hint}")
    }
}

impl From<&Unwritten> for Failure {
    fn from(Unwritten { path, source }: &Unwritten) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "make room there, or name a directory on another disk: --out DIR"
            }
            _ => "name a directory that can be written to: --out DIR",
        };
        let problem = format!("cannot be written: {source}");
        Self::new(Code::Unwritten, file(path), problem, hint)
    }
}

fn file(path: &Path) -> String {
    format!("file {}", path.display())
}

impl From<&HistoryError> for Failure {
    fn from(error: &HistoryError) -> Self {
        let hint = "give a history.jsonl of a run, or histories of registers, one a line";
        Self::new(Code::Unreadable, error.object(), error.problem(), hint)
    }
}

impl From<HistoryError> for Failure {
    fn from(error: HistoryError) -> Self {
        (&error).into()
    }
}

impl From<&LabError> for Failure {
    fn from(error: &LabError) -> Self {
        match error {
            LabError::Missing(reason) => Self::new(
                Code::Unsupported,
                "laboratory",
                format!("none can be made here: {reason}"),
                "run it as root, with ip and bridge (iproute2) installed; `list` and `check` need neither",
            ),
            LabError::Unusable(unusable) => Self::new(
                match unusable.named_by {
                    NamedBy::Variable | NamedBy::Option => Code::Usage,
                    // Whoever called has named nothing wrong.
                    NamedBy::Built => Code::Laboratory,
                },
                unusable.named_by.name(),
                format!("{} {}", unusable.program.display(), unusable.problem),
                unusable.named_by.hint(),
            ),
            LabError::Program(said) => Self::new(
                Code::Laboratory,
                "program of the nodes",
                format!("cannot be built: {said}"),
                "see to what cargo says; or name a program that is built: PONTOON_BIN=FILE",
            ),
            other => Self::of_machine("laboratory", other),
        }
    }
}

impl From<LabError> for Failure {
    fn from(error: LabError) -> Self {
        (&error).into()
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let usage = |object: &str, hint: &str| Self::new(Code::Usage, object, &error, hint);
        match &error {
            RunError::Lab(error) => error.into(),
            RunError::File(unwritten) => unwritten.into(),
            RunError::History(error) => Self {
                // It was written by this run: whoever called has named nothing wrong.
                code: Code::Laboratory,
                hint: "see to the disk of --out, or name a directory on another one".to_owned(),
                ..Self::from(error)
            },
            RunError::Replay(_) | RunError::OfSelfTest(_) | RunError::NoTime => {
                usage("history", "give the history of a run of this version")
            }
            RunError::Taken(_) | RunError::NoDirectory(_) => {
                usage("--out", "name a directory that no run has written to")
            }
            RunError::TooShort { .. } => usage(
                "--time",
                "give more time, another --seed, or --nemesis none",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::program::Unusable;

    #[test]
    fn no_failure_passes_for_a_finding_and_each_says_what_to_do() {
        let unwritten = |name: &str| Unwritten {
            path: name.into(),
            source: io::ErrorKind::StorageFull.into(),
        };
        let short = RunError::TooShort {
            given: 1,
            seed: 7,
            needed: 9,
        };
        for (failure, exit, object) in [
            (
                Failure::from(LabError::Missing("no root".into())),
                3,
                "laboratory",
            ),
            (LabError::NoNode.into(), 3, "laboratory"),
            (
                LabError::Program("no cargo".into()).into(),
                3,
                "program of the nodes",
            ),
            (RunError::File(unwritten("here")).into(), 3, "file here"),
            (RunError::Taken("here".into()).into(), 2, "--out"),
            (RunError::NoDirectory("here".into()).into(), 2, "--out"),
            (short.into(), 2, "--time"),
            (RunError::NoTime.into(), 2, "history"),
            (
                HistoryError::Empty { file: "-".into() }.into(),
                2,
                "standard input",
            ),
            (
                RunError::History(HistoryError::Empty { file: "x".into() }).into(),
                3,
                "x",
            ),
            (
                Failure::untold(&io::ErrorKind::StorageFull.into()),
                3,
                "standard output",
            ),
        ] {
            assert_eq!(failure.code.exit_code(), exit, "{failure:?}");
            assert_eq!(failure.object, object, "{failure:?}");
            assert!(
                !failure.hint.is_empty() && !failure.problem.is_empty(),
                "{failure:?}"
            );
        }
        assert_eq!(Failure::of_unwritten(&[]), None);
        let several = Failure::of_unwritten(&[unwritten("a"), unwritten("b"), unwritten("c")]);
        let several = several.unwrap();
        assert_eq!(several.object, "file a");
        assert!(several.problem.ends_with("; nor can b, c"), "{several}");
    }

    #[test]
    fn a_program_is_a_wrong_argument_only_where_it_was_named() {
        for (named_by, exit) in [
            (NamedBy::Variable, 2),
            (NamedBy::Option, 2),
            (NamedBy::Built, 3),
        ] {
            let unusable = Unusable {
                named_by,
                program: "target/pontoon".into(),
                problem: "is not executable".into(),
            };
            let failure = Failure::from(LabError::Unusable(unusable));
            assert_eq!(failure.code.exit_code(), exit, "{failure:?}");
        }
    }

    #[test]
    fn a_failure_is_one_object() {
        let failure = Failure::new(Code::Unwritten, "file x", "no room", "make room");
        assert_eq!(
            serde_json::to_string(&failure).unwrap(),
            r#"{"object":"file x","problem":"no room","hint":"make room","code":"unwritten"}"#
        );
    }
}
