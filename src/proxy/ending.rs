//! Why a client's connection ended. Deciding code.

use std::fmt;

/// Why a client's connection ended; every accepted connection ends in exactly one of these ways and is counted under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Both sides closed in order.
    Completed,
    /// The client reset the connection or vanished.
    ClientReset,
    /// The backend reset the connection or vanished.
    BackendReset,
    /// Silence in both directions for the listener's idle timeout, with nothing owed to anybody.
    IdleTimeout,
    /// The same silence, with something still owed: what a side did not take, or the rest of an answer.
    Stalled,
    /// The pool had no backend that may take a connection.
    NoBackend,
    /// Every backend tried refused or did not answer in time.
    ConnectFailed,
    /// This node had no file descriptors, memory or ports left.
    NoResources,
    /// Ended by an operator: backend disabled or removed, listener removed, node stopped.
    Ended,
}

impl Ending {
    pub const ALL: [Self; 9] = [
        Self::Completed,
        Self::ClientReset,
        Self::BackendReset,
        Self::IdleTimeout,
        Self::Stalled,
        Self::NoBackend,
        Self::ConnectFailed,
        Self::NoResources,
        Self::Ended,
    ];

    /// The word used in logs and as a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::IdleTimeout => "idle_timeout",
            Self::Stalled => "stalled",
            Self::NoBackend => "no_backend",
            Self::ConnectFailed => "connect_failed",
            Self::NoResources => "no_resources",
            Self::Ended => "ended",
        }
    }

    /// Whether the sockets are reset instead of closed: what was sent may be incomplete, and a peer that sees an
    /// orderly end would take it for all there is.
    pub fn resets(self) -> bool {
        !matches!(self, Self::Completed | Self::IdleTimeout)
    }

    /// What the end of a connection is in which nothing has moved for the idle timeout.
    ///
    /// Once the backend has said that its answer is over, the end is in order: the last of that answer may still lie in
    /// the kernel's buffer, and a reset would destroy it. While neither side has closed and nothing is in hand, nobody is
    /// known to wait for anything, and the end is in order as well, as it is with HAProxy.
    pub fn of_silence(from_client: Progress, to_client: Progress) -> Self {
        use Progress::{Ended, Holding, Open};
        match (from_client, to_client) {
            (Holding, _) | (_, Holding) => Self::Stalled,
            (_, Ended) | (Open, Open) => Self::IdleTimeout,
            _ => Self::Stalled,
        }
    }
}

/// How a connection ended, and how far the answer to its client had come by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    pub ending: Ending,
    pub answer: Progress,
}

impl Closing {
    /// Of a connection that ended before anything was relayed, or in the middle of it.
    pub fn without_answer(ending: Ending) -> Self {
        Self {
            ending,
            answer: Progress::Open,
        }
    }

    /// Whether the client's socket is reset.
    ///
    /// A client that was told the end of the answer has it all, whatever became of its own words: a backend may answer early
    /// and close. A reset would destroy what of that answer still lies in the kernel's buffers.
    pub fn resets_client(self) -> bool {
        self.ending.resets() && self.answer != Progress::Ended
    }
}

/// How far one direction of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything read was handed on, and more may come.
    Open,
    /// What was read waits for the destination to take it.
    Holding,
    /// The source has closed, and the destination knows.
    Ended,
    /// The destination takes nothing any more.
    Refused,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_has_its_own_word_and_place() {
        let words: std::collections::BTreeSet<_> = Ending::ALL.iter().map(|e| e.as_str()).collect();
        assert_eq!(words.len(), Ending::ALL.len());
        for (place, ending) in Ending::ALL.iter().enumerate() {
            assert_eq!(*ending as usize, place);
        }
    }

    #[test]
    fn a_client_that_has_its_whole_answer_is_never_reset() {
        use Progress::{Ended, Holding, Open, Refused};
        for ending in Ending::ALL {
            let resets = |answer| Closing { ending, answer }.resets_client();
            assert!(!resets(Ended), "{ending}");
            assert_eq!([Open, Holding, Refused].map(resets), [ending.resets(); 3]);
        }
    }

    #[test]
    fn silence_ends_in_order_only_when_nothing_is_owed() {
        use Progress::{Ended, Holding, Open, Refused};
        for from_client in [Open, Holding, Ended, Refused] {
            for to_client in [Open, Holding, Ended, Refused] {
                let in_order = [
                    (Open, Open),
                    (Open, Ended),
                    (Ended, Ended),
                    // The backend has answered without hearing the client out.
                    (Refused, Ended),
                ];
                let ending = Ending::of_silence(from_client, to_client);
                let expected = !in_order.contains(&(from_client, to_client));
                assert_eq!(ending.resets(), expected, "{from_client:?} {to_client:?}");
            }
        }
    }
}
