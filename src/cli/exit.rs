//! Exit codes, and failures that the command line itself finds.

use std::{io, path::Path};

use clap::error::{ContextKind, ContextValue};

use crate::{
    model::quoted::quoted,
    state::outcome::Refusal,
    wire::error::{Failure, FailureCode},
};

/// Most faults that are shown of one file.
const MOST_LINES: usize = 500;

/// Wrong usage.
pub const USAGE: u8 = 2;

/// An exit code: 1 refused or failed, 2 wrong usage, 3 no leader or unreachable, 4 outcome unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(pub u8);

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.0.into()
    }
}

/// The exit code of a failure.
pub fn code_of(failure: &Failure) -> Exit {
    Exit(match failure.code {
        FailureCode::Usage => USAGE,
        FailureCode::NoLeader | FailureCode::Unreachable => 3,
        FailureCode::UnknownOutcome => 4,
        FailureCode::Invalid
        | FailureCode::NotFound
        | FailureCode::AlreadyExists
        | FailureCode::PreconditionFailed
        | FailureCode::Conflict
        | FailureCode::LimitExceeded
        | FailureCode::FeatureLevel
        | FailureCode::Unauthenticated
        | FailureCode::PermissionDenied
        | FailureCode::Overloaded
        | FailureCode::NotReady
        | FailureCode::Unsupported
        | FailureCode::Internal => 1,
    })
}

/// What our own reader of a value says of it, behind the argument that it was given for. `clap` would repeat the value in front
/// of that; none: its own words are all there is.
pub fn wrong_value(error: &clap::Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let value = text(ContextKind::InvalidValue)?;
    let argument = text(ContextKind::InvalidArg)?;
    let said = std::error::Error::source(error)?.to_string();
    let repeats = said.contains(&quoted(value).to_string()) || said.starts_with(value);
    repeats.then(|| format!("{argument}: {said}"))
}

/// A command line that `clap` refused.
pub fn usage(error: &clap::Error) -> Failure {
    let text = wrong_value(error).unwrap_or_else(|| error.render().to_string());
    let problem: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let problem = problem.join(" ");
    let problem = problem.strip_prefix("error: ").unwrap_or(&problem);
    Failure::new(
        FailureCode::Usage,
        "command line",
        problem,
        "`pontoon --help` and `pontoon COMMAND --help` show what is expected",
    )
}

/// An argument whose form is wrong in a way that `clap` does not see.
pub fn wrong_argument(
    object: impl ToString,
    problem: impl ToString,
    hint: impl ToString,
) -> Failure {
    Failure::new(FailureCode::Usage, object, problem, hint)
}

/// What the rules of the state say of words that no state makes right.
pub fn never_right(refusal: Refusal) -> Failure {
    Failure {
        code: FailureCode::Usage,
        ..refusal.into()
    }
}

/// A value that can never be right, found before a node was asked.
pub fn invalid(object: impl ToString, problem: impl ToString, hint: impl ToString) -> Failure {
    Failure::new(FailureCode::Invalid, object, problem, hint)
}

/// A file that cannot be read or written.
pub fn file(path: &Path, error: &io::Error) -> Failure {
    let (code, hint) = match error.kind() {
        io::ErrorKind::NotFound => (FailureCode::NotFound, "check the path"),
        io::ErrorKind::PermissionDenied => (
            FailureCode::PermissionDenied,
            "check whose file it is, or run this as another user",
        ),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (FailureCode::Internal, "make room and run it again")
        }
        _ => (
            FailureCode::Invalid,
            "name a file that can be read or written",
        ),
    };
    Failure::new(code, file_object(path), error, hint)
}

/// A file whose contents, or kind, are not what is needed.
pub fn unusable(path: &Path, problem: impl ToString, hint: impl ToString) -> Failure {
    Failure::new(FailureCode::Invalid, file_object(path), problem, hint)
}

/// How messages call a file: `-` is stdin.
pub fn source(path: &Path) -> String {
    match path == Path::new("-") {
        true => "stdin".to_owned(),
        false => path.display().to_string(),
    }
}

fn file_object(path: &Path) -> String {
    match path == Path::new("-") {
        true => source(path),
        false => format!("file {}", source(path)),
    }
}

/// Several things that are wrong with a file, a line each.
pub fn faulty(path: &Path, faults: &[String], hint: &str) -> Failure {
    unusable(path, lines(faults), hint)
}

/// One fault as it is; several, a line each, below their number.
pub fn lines(faults: &[String]) -> String {
    lines_of(faults, faults.len())
}

/// As `lines`, of `all` faults, not all of which may be in `faults`.
pub fn lines_of(faults: &[String], all: usize) -> String {
    let shown = faults.iter().take(MOST_LINES);
    let more = all.saturating_sub(shown.len());
    let more = (more > 0).then(|| format!("and {more} more"));
    match faults {
        [only] if all == 1 => only.clone(),
        _ => std::iter::once(format!("{all} faults"))
            .chain(shown.cloned())
            .chain(more)
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

/// The failure with something to do next, if whoever found it knew nothing better.
pub fn advised(failure: Failure) -> Failure {
    let failure = told_once(failure);
    if !failure.hint.is_empty() {
        return failure;
    }
    let kind = failure.object.split(' ').next().unwrap_or_default();
    let hint = match (failure.code, kind) {
        (FailureCode::NotFound | FailureCode::AlreadyExists | FailureCode::Conflict, kind) => {
            shows(kind)
        }
        (FailureCode::Invalid | FailureCode::Usage, "name") => {
            "labels have 1 to 63 octets, a name at most 255; `\\.` is a dot within a label"
                .to_owned()
        }
        (FailureCode::Invalid | FailureCode::Usage, _) => {
            "`pontoon COMMAND --help` shows what is expected".to_owned()
        }
        (FailureCode::LimitExceeded, _) => "make it smaller, or split it".to_owned(),
        (FailureCode::PreconditionFailed, _) => "read the state again, and decide anew".to_owned(),
        (FailureCode::NoLeader | FailureCode::NotReady | FailureCode::Overloaded, _) => {
            "`pontoon cluster status` shows how the nodes are; try again".to_owned()
        }
        (FailureCode::Unreachable, _) => {
            "check that the node runs and that the endpoint is right".to_owned()
        }
        (FailureCode::UnknownOutcome, _) => {
            "look whether the change was made before you repeat it".to_owned()
        }
        (FailureCode::FeatureLevel | FailureCode::Unsupported, _) => {
            "upgrade the nodes that run an older program".to_owned()
        }
        (FailureCode::Unauthenticated | FailureCode::PermissionDenied, _) => {
            "give an administrator's certificate: --cert, --key and --ca".to_owned()
        }
        (FailureCode::Internal, _) => {
            "it is a fault of the program or its machine: the log of the node may say more"
                .to_owned()
        }
    };
    Failure { hint, ..failure }
}

/// Without the object, or its name, said again at the beginning of the problem.
fn told_once(failure: Failure) -> Failure {
    let name = failure.object.rsplit(' ').next().unwrap_or_default();
    let mut problem = failure.problem.as_str();
    for said in [failure.object.as_str(), name] {
        let rest = problem
            .strip_prefix(said)
            .and_then(|p| p.strip_prefix(": "));
        problem = rest.unwrap_or(problem);
    }
    Failure {
        problem: problem.to_owned(),
        ..failure
    }
}

/// The command that shows objects of a kind.
fn shows(kind: &str) -> String {
    let command = match kind {
        "zone" | "pool" | "listener" | "vip" | "forwarder" => format!("{kind} list"),
        "backend" => "pool show POOL".to_owned(),
        "record" | "name" => "record list ZONE".to_owned(),
        "join" | "token" => "cluster token list".to_owned(),
        _ => "cluster status".to_owned(),
    };
    format!("`pontoon {command}` shows what is there")
}

/// A result that could not be written to stdout.
pub fn unwritten(error: &io::Error) -> Failure {
    Failure::new(
        FailureCode::Internal,
        "output",
        format!("it could not be written: {error}"),
        "make room where it goes, or send it elsewhere; what the command did is done",
    )
}

/// A fault of this program or machine.
pub fn internal(object: impl ToString, error: impl ToString) -> Failure {
    Failure::new(FailureCode::Internal, object, error, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_exit_code() {
        for code in FailureCode::ALL {
            let exit = code_of(&Failure::new(*code, "x", "y", ""));
            let expected = match code.as_str() {
                "usage" => 2,
                "no_leader" | "unreachable" => 3,
                "unknown_outcome" => 4,
                _ => 1,
            };
            assert_eq!(exit, Exit(expected), "{code:?}");
        }
    }

    #[test]
    fn every_failure_says_what_to_do() {
        for code in FailureCode::ALL {
            for object in ["vip 192.0.2.1", "join token x", "name a..b", "x"] {
                let failure = advised(Failure::new(*code, object, "y", ""));
                assert!(!failure.hint.is_empty(), "{code:?} {object}");
            }
        }
        let kept = Failure::new(FailureCode::Invalid, "x", "y", "do this");
        assert_eq!(advised(kept.clone()), kept);
    }

    #[test]
    fn output_that_cannot_be_written_is_no_fault_of_the_program() {
        let failure = advised(unwritten(&io::ErrorKind::StorageFull.into()));
        assert!(
            failure.problem.contains("could not be written"),
            "{failure:?}"
        );
        assert!(failure.hint.contains("make room"), "{failure:?}");
        assert_eq!(code_of(&failure), Exit(1));
    }

    #[test]
    fn nothing_is_said_twice() {
        for (object, problem, told) in [
            ("join token", "join token: has no dots", "has no dots"),
            ("vip 0.0.0.0", "0.0.0.0: is no address", "is no address"),
            (
                "endpoint 127.0.0.1:1",
                "127.0.0.1:1: Connection refused",
                "Connection refused",
            ),
            ("pool web", "listener web uses it", "listener web uses it"),
            ("zone a.", "a.: a.: twice", "a.: twice"),
        ] {
            let failure = advised(Failure::new(FailureCode::Invalid, object, problem, "h"));
            assert_eq!(failure.problem, told, "{object}: {problem}");
        }
        let token = advised(Failure::new(FailureCode::NotFound, "token x", "y", ""));
        assert!(token.hint.contains("cluster token list"), "{token:?}");
    }

    #[test]
    fn faults_have_a_line_each() {
        let two = ["a".to_owned(), "b".to_owned()];
        assert_eq!(lines(&two[..1]), "a");
        assert_eq!(lines(&two), "2 faults\na\nb");
        let many = vec!["x".to_owned(); MOST_LINES + 2];
        assert!(lines(&many).ends_with("\nx\nand 2 more"));
        assert_eq!(lines_of(&two, 5), "5 faults\na\nb\nand 3 more");
        assert_eq!(lines_of(&two[..1], 2), "2 faults\na\nand 1 more");
    }
}
