//! How a process of a node ended, and whether what was done to it explains that.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use nix::sys::signal::Signal;

/// What was done to a process before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing: it ended by itself.
    Alone,
    /// SIGKILL.
    Killed,
    /// SIGTERM, or its node was told to leave.
    Asked,
}

impl Ending {
    /// What is wrong with this end, in words; none if it is explained: by SIGKILL after SIGKILL, with success after it was asked to end.
    pub fn unexpected(self, status: ExitStatus) -> Option<String> {
        match self {
            Self::Alone => Some(status.to_string()),
            Self::Killed if status.signal() == Some(Signal::SIGKILL as i32) => None,
            Self::Killed => Some(format!("{status}, before it was killed")),
            Self::Asked if status.success() => None,
            Self::Asked => Some(format!("{status}, asked to end by SIGTERM or to leave")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_explained_by_what_was_done_or_found() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        let by = |signal: Signal| ExitStatus::from_raw(signal as i32);
        let explained = |ending: Ending, status| ending.unexpected(status).is_none();
        let all = [
            (exited(0), [false, false, true]),
            (exited(1), [false, false, false]),
            (by(Signal::SIGKILL), [false, true, false]),
            (by(Signal::SIGTERM), [false, false, false]),
            (by(Signal::SIGABRT), [false, false, false]),
        ];
        for (status, expected) in all {
            let endings = [Ending::Alone, Ending::Killed, Ending::Asked];
            let seen = endings.map(|ending| explained(ending, status));
            assert_eq!(seen, expected, "{status}");
        }
        let told = Ending::Asked.unexpected(exited(1)).unwrap();
        assert!(told.contains("exit status: 1") && told.contains("SIGTERM"));
    }
}
