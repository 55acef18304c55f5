//! Why a client's connection ended. Deciding code.

use std::{fmt, io};

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
    /// This node had no file descriptors or memory left.
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

/// Whether a failure of a socket call speaks of this node's limits and not of the peer.
pub fn lacks_resources(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    )
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

    #[test]
    fn running_out_of_descriptors_is_no_fault_of_the_backend() {
        assert!(lacks_resources(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!lacks_resources(&io::Error::from_raw_os_error(
            libc::ECONNREFUSED
        )));
        assert!(!lacks_resources(&io::ErrorKind::TimedOut.into()));
    }
}
