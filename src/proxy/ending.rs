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
    /// Silence in both directions for the listener's idle timeout.
    IdleTimeout,
    /// Silence for the linger time after one side had closed.
    LingerTimeout,
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
        Self::LingerTimeout,
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
            Self::LingerTimeout => "linger_timeout",
            Self::NoBackend => "no_backend",
            Self::ConnectFailed => "connect_failed",
            Self::NoResources => "no_resources",
            Self::Ended => "ended",
        }
    }

    /// Whether the sockets are reset instead of closed: what was sent may be incomplete, and a peer that sees an
    /// orderly end would take it for all there is.
    pub fn resets(self) -> bool {
        !matches!(
            self,
            Self::Completed | Self::IdleTimeout | Self::LingerTimeout
        )
    }
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
    fn running_out_of_descriptors_is_no_fault_of_the_backend() {
        assert!(lacks_resources(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!lacks_resources(&io::Error::from_raw_os_error(
            libc::ECONNREFUSED
        )));
        assert!(!lacks_resources(&io::ErrorKind::TimedOut.into()));
    }
}
