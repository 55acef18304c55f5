//! Why no leader did what a node was asked for: the last attempt says, unless the node's own disk keeps it from hearing any leader.
//!
//! A node whose disk hangs takes in no heartbeat behind the entries that it cannot write: the others may have a leader all the time.

use std::time::Duration;

use crate::model::node::NodeId;

/// A disk that is silent for less keeps nobody from anything.
const LONG: Duration = Duration::from_secs(1);

/// Why no leader did it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Leaderless {
    #[error("no leader is known")]
    Unknown,
    /// What became of the last attempt.
    #[error("{0}")]
    Attempt(String),
    #[error(
        "node {id}, which was asked, is cut off from the others behind its own disk, which has not answered for {} s",
        .silent.as_secs()
    )]
    OwnDisk { id: NodeId, silent: Duration },
}

impl Leaderless {
    /// The own disk of node `id` instead, if that has not answered for `silent`, and the node hears no leader.
    pub fn or_own_disk(self, id: NodeId, hears_leader: bool, silent: Duration) -> Self {
        match !hears_leader && silent >= LONG {
            true => Self::OwnDisk { id, silent },
            false => self,
        }
    }

    /// What to do next: `otherwise`, where no disk is in the way.
    pub fn what_next<'a>(&self, otherwise: &'a str) -> &'a str {
        match self {
            Self::OwnDisk { .. } => "ask another node, and see to that disk",
            Self::Unknown | Self::Attempt(_) => otherwise,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_hangs_is_named_where_it_keeps_a_node_from_hearing_a_leader() {
        let attempt = || Leaderless::Attempt("node 1 did not take it".into());
        let own_disk = |silent| Leaderless::OwnDisk {
            id: NodeId(2),
            silent,
        };
        // (hears a leader, silent, expected)
        let cases = [
            (false, Duration::ZERO, attempt()),
            (false, LONG - Duration::from_millis(1), attempt()),
            (false, LONG, own_disk(LONG)),
            (true, LONG * 60, attempt()),
        ];
        for (hears_leader, silent, expected) in cases {
            let judged = attempt().or_own_disk(NodeId(2), hears_leader, silent);
            assert_eq!(judged, expected, "{hears_leader} {silent:?}");
        }
    }

    #[test]
    fn the_node_is_named_and_another_is_to_be_asked() {
        let why = Leaderless::OwnDisk {
            id: NodeId(2),
            silent: Duration::from_millis(12_345),
        };
        let text = why.to_string();
        assert!(text.starts_with("node 2, which was asked"), "{text}");
        assert!(text.ends_with("has not answered for 12 s"), "{text}");
        let otherwise = "try again";
        assert!(why.what_next(otherwise).starts_with("ask another node"));
        assert_eq!(Leaderless::Unknown.what_next(otherwise), otherwise);
    }
}
