//! Exit codes, and failures that the command line itself finds.

use crate::wire::error::{Failure, FailureCode};

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

/// A command line that `clap` refused.
pub fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
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

/// A value that can never be right, found before a node was asked.
pub fn invalid(object: impl ToString, problem: impl ToString, hint: impl ToString) -> Failure {
    Failure::new(FailureCode::Invalid, object, problem, hint)
}

/// A file that cannot be read or written.
pub fn file(path: &std::path::Path, error: impl ToString) -> Failure {
    let object = format!("file {}", path.display());
    Failure::new(FailureCode::Invalid, object, error, "")
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
}
