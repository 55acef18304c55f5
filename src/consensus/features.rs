//! Which kinds of command the cluster may use: those that the program of every member knows. Pure.
//!
//! The state holds a feature level, which never falls. The leader raises it when all members run a program that knows more;
//! a program that knows less than the state asks for takes no part.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::node::NodeId;

/// The level that the cluster can be raised to from `present`: what every member knows, learners too. None while one of them
/// says nothing, and when it is not above `present`.
///
/// `known`: the highest level that a node's program knows, of those that told it lately.
pub fn level_to_raise_to(
    present: u32,
    members: &BTreeSet<NodeId>,
    known: &BTreeMap<NodeId, u32>,
) -> Option<u32> {
    let levels = members.iter().map(|id| known.get(id).copied());
    let levels: Vec<u32> = levels.collect::<Option<_>>()?;
    levels.into_iter().min().filter(|level| *level > present)
}

/// The cluster uses kinds of command that this program does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster is at feature level {level}, and this program (version {version}) knows {known} at most: install the release \
     that the other members run, then start this node again",
    version = env!("CARGO_PKG_VERSION")
)]
pub struct TooOld {
    pub level: u32,
    pub known: u32,
}

/// That a program that knows `known` may take part in a cluster at `level`.
pub fn expect_known(level: u32, known: u32) -> Result<(), TooOld> {
    match level <= known {
        true => Ok(()),
        false => Err(TooOld { level, known }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// (present, members, what nodes know, raised to)
    type Case = (u32, &'static [u64], &'static [(u64, u32)], Option<u32>);

    #[test]
    fn the_cluster_is_raised_to_what_every_member_knows() {
        let cases: [Case; 9] = [
            (1, &[1, 2, 3], &[(1, 1), (2, 1), (3, 1)], None),
            (1, &[1, 2, 3], &[(1, 2), (2, 2), (3, 2)], Some(2)),
            (1, &[1, 2, 3], &[(1, 2), (2, 2), (3, 1)], None),
            (1, &[1, 2, 3], &[(1, 2), (2, 2)], None),
            (1, &[1, 2, 3], &[(1, 4), (2, 3), (3, 5)], Some(3)),
            (3, &[1, 2, 3], &[(1, 4), (2, 3), (3, 5)], None),
            (3, &[1, 2], &[(1, 2), (2, 2)], None),
            (1, &[1], &[(1, 2), (9, 1)], Some(2)),
            (1, &[], &[(1, 2)], None),
        ];
        for (present, members, known, raised) in cases {
            let ids = members.iter().map(|id| NodeId(*id)).collect();
            let levels = known.iter().map(|(id, level)| (NodeId(*id), *level));
            let to = level_to_raise_to(present, &ids, &levels.collect());
            assert_eq!(
                to, raised,
                "from {present} of {members:?}, knowing {known:?}"
            );
        }
    }

    #[test]
    fn a_program_knows_its_own_level_and_those_below() {
        assert_eq!(expect_known(1, 1), Ok(()));
        assert_eq!(expect_known(1, 2), Ok(()));
        let refused = expect_known(3, 2).expect_err("unknown");
        assert!(
            refused.to_string().contains("at feature level 3"),
            "{refused}"
        );
    }

    proptest! {
        #[test]
        fn no_member_is_asked_for_what_it_does_not_know(
            present in 0u32..4,
            members in prop::collection::btree_set(1u64..7, 0..6),
            known in prop::collection::btree_map(1u64..7, 0u32..6, 0..7),
        ) {
            let members: BTreeSet<NodeId> = members.into_iter().map(NodeId).collect();
            let known: BTreeMap<NodeId, u32> = known.into_iter().map(|(id, level)| (NodeId(id), level)).collect();
            if let Some(level) = level_to_raise_to(present, &members, &known) {
                prop_assert!(level > present);
                for id in &members {
                    prop_assert!(known.get(id).is_some_and(|own| *own >= level));
                    prop_assert_eq!(expect_known(level, known[id]), Ok(()));
                }
            }
        }
    }
}
