//! Whether the group has the disk space to take more entries.
//!
//! A full disk costs its node its part in consensus. A minority of full disks is like a minority of lost nodes: the others
//! go on, and status raises an alarm. Once a quorum could no longer be had without a voter that is short of space,
//! proposals are refused while everything still works: removing what takes the space is then all that is left to do.

use super::messages::LowSpace;
use crate::{
    model::node::NodeId,
    state::command::{Change, Command},
};

/// A voter and its disk, as the leader knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoterDisk {
    pub id: NodeId,
    /// It answers, and its storage works.
    pub takes_part: bool,
    /// Its disk is below its watermark.
    pub low: Option<LowSpace>,
}

/// The voter for whose sake proposals are to be refused: no quorum can be had without one that is short of space.
pub fn short_of_space(voters: &[VoterDisk]) -> Option<(NodeId, LowSpace)> {
    let quorum = voters.len() / 2 + 1;
    let taking_part = || voters.iter().filter(|voter| voter.takes_part);
    let roomy = taking_part().filter(|voter| voter.low.is_none()).count();
    if roomy >= quorum {
        return None;
    }
    taking_part().find_map(|voter| Some((voter.id, voter.low?)))
}

/// Whether a command helps when space is short: it only takes things away, or a member out of the cluster, or lets the VIPs go on
/// with a node that has space.
pub fn helps(command: &Command) -> bool {
    command.changes.iter().all(|change| {
        matches!(
            change,
            Change::RetireMember { .. }
                | Change::ReleaseVips { .. }
                | Change::TakeVips { .. }
                | Change::ClaimVips { .. }
                | Change::SetPreference { .. }
                | Change::DeleteZone { .. }
                | Change::DeleteRecords { .. }
                | Change::DeleteName { .. }
                | Change::DeletePool { .. }
                | Change::RemoveBackend { .. }
                | Change::SetBackend { .. }
                | Change::DeleteListener { .. }
                | Change::DeleteVip { .. }
                | Change::DeleteForwarder { .. }
                | Change::DeleteToken { .. }
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: LowSpace = LowSpace {
        free_bytes: 1,
        watermark: 2,
    };

    /// `r` has room, `l` is low, `x` takes no part, `X` takes none and was low.
    fn voters(text: &str) -> Vec<VoterDisk> {
        let voter = |(at, letter): (usize, char)| VoterDisk {
            id: NodeId(at as u64 + 1),
            takes_part: matches!(letter, 'r' | 'l'),
            low: matches!(letter, 'l' | 'X').then_some(LOW),
        };
        text.chars().enumerate().map(voter).collect()
    }

    #[test]
    fn vips_and_leadership_may_move_to_a_node_that_has_space() {
        use crate::state::command::{RequestId, UnixMillis};
        let of = |changes| Command {
            request: RequestId(1),
            born: 0,
            proposed_at: UnixMillis(0),
            author: "a".into(),
            preconditions: vec![],
            changes,
        };
        let release = Change::ReleaseVips {
            to: NodeId(2),
            term: 1,
        };
        let level = Change::SetFeatureLevel { level: 1 };
        assert!(helps(&of(vec![
            release.clone(),
            Change::TakeVips { term: 1 }
        ])));
        assert!(!helps(&of(vec![release, level])));
    }

    #[test]
    fn a_minority_of_full_disks_stops_nobody() {
        for (group, refused_for) in [
            ("rrr", None),
            ("rrl", None),
            ("lrr", None),
            ("rll", Some(2)),
            ("lll", Some(1)),
            // A node that is gone has no say, whatever its disk was like.
            ("rrX", None),
            ("rrrX", None),
            // Without the one that is low there would be no quorum.
            ("rlx", Some(2)),
            ("rXx", None),
            ("rrllr", None),
            ("rrlxl", Some(3)),
            ("l", Some(1)),
            ("r", None),
        ] {
            let found = short_of_space(&voters(group)).map(|(id, _)| id.0);
            assert_eq!(found, refused_for, "{group}");
        }
    }
}
