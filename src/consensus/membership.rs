//! Decisions about membership: whom to add, promote and remove, and what must not be removed.
//!
//! The replicated state says who is a member; the membership of the Raft group follows it, one step at a time, on whoever
//! leads. That finishes a change which a leader left half done, and makes every command harmless when it is run again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use super::types::Peer;
use crate::model::node::NodeId;

/// With more voters every write waits for more disks, and nothing is gained.
pub const MAX_VOTERS: usize = 5;

/// How long a learner has to be caught up and answering before it becomes a voter.
pub const PROMOTION_AFTER: Duration = Duration::from_millis(1000);

/// The Raft group and the state's members, as the leader sees them.
#[derive(Clone, Debug, Default)]
pub struct Group {
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// A change of voters is half done.
    pub joint: bool,
    /// Members by the state; none when the state does not name any.
    pub members: Option<BTreeMap<NodeId, Peer>>,
    /// Nodes that answered lately, this one included.
    pub alive: BTreeSet<NodeId>,
    /// Since when a learner has been caught up and answering.
    pub ready_since: BTreeMap<NodeId, Instant>,
}

/// The next change of the Raft group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Complete a change of voters.
    Finish,
    /// Give leadership away: this node is no member any more.
    StepAside,
    Remove(NodeId),
    AddLearner(NodeId, Peer),
    Promote(NodeId),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finish => write!(f, "complete the change of voters"),
            Self::StepAside => write!(f, "give leadership away"),
            Self::Remove(id) => write!(f, "remove node {id}"),
            Self::AddLearner(id, peer) => {
                write!(f, "add node {id} ({}) as a learner", peer.raft_address)
            }
            Self::Promote(id) => write!(f, "promote node {id}"),
        }
    }
}

impl Group {
    /// What `me`, the leader, does next.
    pub fn next_step(&self, me: NodeId, now: Instant) -> Option<Step> {
        if self.joint {
            return Some(Step::Finish);
        }
        let departed = self.departed(me);
        // One that may not go yet keeps nobody from coming, who may be what it waits for.
        let may_go = |step: &Step| match step {
            Step::Remove(id) => self.check_removal(*id).is_ok(),
            _ => true,
        };
        (departed.clone().filter(may_go))
            .or_else(|| self.newcomer())
            .or_else(|| self.ripe(now).map(Step::Promote))
            .or(departed)
    }

    fn departed(&self, me: NodeId) -> Option<Step> {
        let members = self.members.as_ref().filter(|m| !m.is_empty())?;
        let mut gone = self.nodes().filter(|id| !members.contains_key(id));
        let first = gone.next()?;
        let other = if first == me {
            gone.next()
        } else {
            Some(first)
        };
        Some(other.map_or(Step::StepAside, Step::Remove))
    }

    fn newcomer(&self) -> Option<Step> {
        let members = self.members.as_ref()?;
        let (id, peer) = members.iter().find(|(id, _)| !self.contains(**id))?;
        Some(Step::AddLearner(*id, peer.clone()))
    }

    fn ripe(&self, now: Instant) -> Option<NodeId> {
        if self.voters.len() >= MAX_VOTERS {
            return None;
        }
        let waited = |since: &Instant| now.saturating_duration_since(*since) >= PROMOTION_AFTER;
        let ready = |id: &NodeId| self.ready_since.get(id).is_some_and(waited);
        self.learners.iter().copied().find(ready)
    }

    pub fn contains(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.learners.contains(&id)
    }

    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.voters.iter().chain(&self.learners).copied()
    }

    /// Whether `id` may be removed without losing the quorum.
    ///
    /// A voter that the state names no more ends soon, whether it answers now or not. Where its removal was left half done it is not counted on,
    /// and both have to go from the group as it is: a majority of that has to stay. A voter that is itself not counted on takes nobody's
    /// quorum with it: it may go if a majority of the rest answers.
    ///
    /// # Errors
    /// In words for the operator, when it may not.
    pub fn check_removal(&self, id: NodeId) -> Result<(), RemovalRefused> {
        if !self.voters.contains(&id) {
            return Ok(());
        }
        let left: BTreeSet<NodeId> = self.voters.iter().copied().filter(|v| *v != id).collect();
        if left.is_empty() {
            return Err(RemovalRefused::LastVoter { id });
        }
        let counts = |voter: &NodeId| self.alive.contains(voter) && self.stays(*voter);
        if !counts(&id) && left.intersection(&self.alive).count() >= majority(left.len()) {
            return Ok(());
        }
        let is_settled = left.iter().all(|voter| self.stays(*voter));
        let voters = if is_settled {
            left.len()
        } else {
            self.voters.len()
        };
        let (answering, silent): (Vec<NodeId>, Vec<NodeId>) = left.into_iter().partition(counts);
        let alive = answering.len();
        if alive < majority(voters) {
            return Err(RemovalRefused::QuorumLost {
                id,
                voters,
                alive,
                silent,
            });
        }
        Ok(())
    }

    /// Whether the state names this node, as far as it names any.
    fn stays(&self, id: NodeId) -> bool {
        let members = self.members.as_ref().filter(|members| !members.is_empty());
        members.is_none_or(|members| members.contains_key(&id))
    }
}

/// How many of `voters` decide.
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Why a voter may not be removed now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum RemovalRefused {
    #[error(
        "node {id} is the only voter: without it the cluster ends; stop it for good instead, or let another node join and become a voter first"
    )]
    LastVoter { id: NodeId },
    #[error(
        "without node {id} only {alive} of {voters} voters would answer, which is no majority: nothing could be written any more; bring back or remove {} first", list(.silent)
    )]
    QuorumLost {
        id: NodeId,
        voters: usize,
        alive: usize,
        silent: Vec<NodeId>,
    },
}

fn list(nodes: &[NodeId]) -> String {
    let names: Vec<String> = nodes.iter().map(|id| format!("node {id}")).collect();
    names.join(", ")
}

/// Follows which learners are caught up and answering.
#[derive(Debug, Default)]
pub struct Readiness(BTreeMap<NodeId, Instant>);

impl Readiness {
    /// Takes in who is ready now; whoever was not ready once starts again.
    pub fn observe(
        &mut self,
        ready: &BTreeSet<NodeId>,
        now: Instant,
    ) -> &BTreeMap<NodeId, Instant> {
        self.0.retain(|id, _| ready.contains(id));
        for id in ready {
            self.0.entry(*id).or_insert(now);
        }
        &self.0
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod course;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn peer(id: u64) -> Peer {
        Peer {
            name: format!("n{id}"),
            raft_address: "127.0.0.1:1".parse().unwrap(),
            api_address: "127.0.0.1:2".parse().unwrap(),
        }
    }

    fn members(ids: &[u64]) -> Option<BTreeMap<NodeId, Peer>> {
        Some(ids.iter().map(|id| (NodeId(*id), peer(*id))).collect())
    }

    #[test]
    fn the_group_follows_the_state_one_step_at_a_time() {
        let now = Instant::now();
        let long_ago = now.checked_sub(PROMOTION_AFTER).unwrap();
        let ready = |id, since| BTreeMap::from([(NodeId(id), since)]);
        let group = |voters: &[u64], learners: &[u64], state: &[u64]| Group {
            voters: ids(voters),
            learners: ids(learners),
            members: members(state),
            ..Group::default()
        };
        let cases = [
            (group(&[1, 2, 3], &[], &[1, 2, 3]), None),
            (
                Group {
                    joint: true,
                    ..group(&[1, 2], &[], &[1])
                },
                Some(Step::Finish),
            ),
            (
                group(&[1, 2, 3], &[], &[1, 2]),
                Some(Step::Remove(NodeId(3))),
            ),
            (group(&[1, 2], &[4], &[1, 2]), Some(Step::Remove(NodeId(4)))),
            (group(&[1, 2], &[], &[2]), Some(Step::StepAside)),
            (group(&[1, 2, 3], &[], &[2]), Some(Step::Remove(NodeId(3)))),
            (
                group(&[1], &[], &[1, 2]),
                Some(Step::AddLearner(NodeId(2), peer(2))),
            ),
            (
                Group {
                    ready_since: ready(2, now),
                    ..group(&[1], &[2], &[1, 2])
                },
                None,
            ),
            (
                Group {
                    ready_since: ready(2, long_ago),
                    ..group(&[1], &[2], &[1, 2])
                },
                Some(Step::Promote(NodeId(2))),
            ),
            (
                Group {
                    ready_since: ready(6, long_ago),
                    ..group(&[1, 2, 3, 4, 5], &[6], &[1, 2, 3, 4, 5, 6])
                },
                None,
            ),
            (group(&[1], &[], &[]), None),
            (
                Group {
                    members: None,
                    ..group(&[1, 2], &[], &[])
                },
                None,
            ),
        ];
        for (group, step) in cases {
            assert_eq!(group.next_step(NodeId(1), now), step, "{group:?}");
        }
    }

    #[test]
    fn a_removal_that_loses_the_quorum_is_refused() {
        // (voters, alive, removed, allowed)
        let cases: [(&[u64], &[u64], u64, bool); 9] = [
            (&[1, 2, 3], &[1, 2, 3], 3, true),
            (&[1, 2, 3], &[1, 2], 3, true),
            (&[1, 2, 3], &[1, 2], 2, false),
            (&[1, 2], &[1, 2], 2, true),
            (&[1, 2], &[1], 2, true),
            (&[1], &[1], 1, false),
            (&[1, 2, 3, 4, 5], &[1, 2, 3], 3, false),
            (&[1, 2, 3, 4, 5], &[1, 2, 3], 5, true),
            (&[1, 2, 3], &[1], 9, true),
        ];
        for (voters, alive, removed, allowed) in cases {
            let group = Group {
                voters: ids(voters),
                alive: ids(alive),
                ..Group::default()
            };
            let verdict = group.check_removal(NodeId(removed));
            assert_eq!(
                verdict.is_ok(),
                allowed,
                "{voters:?} {alive:?} -{removed}: {verdict:?}"
            );
        }
    }

    #[test]
    fn a_voter_whose_removal_is_half_done_is_not_counted_on() {
        let group = |state: &[u64]| Group {
            voters: ids(&[1, 2, 3]),
            alive: ids(&[1, 2, 3]),
            members: members(state),
            ..Group::default()
        };
        assert_eq!(group(&[1, 2, 3]).check_removal(NodeId(2)), Ok(()));
        // Node 3 ends as soon as it hears that it is no member: without 2 there would be one of the three that have to agree.
        let refused = group(&[1, 2]).check_removal(NodeId(2)).unwrap_err();
        let text = refused.to_string();
        assert!(
            text.contains("remove node 3") && text.contains("1 of 3"),
            "{text}"
        );
        assert_eq!(group(&[1, 2]).check_removal(NodeId(3)), Ok(()));
    }

    /// The leader that was removing node 3 died for good, and with it node 2 is to go.
    #[test]
    fn a_dead_voter_goes_though_a_removal_is_half_done() {
        let mut group = Group {
            voters: ids(&[1, 2, 3]),
            alive: ids(&[1, 3]),
            members: members(&[1, 2, 4]),
            ..Group::default()
        };
        assert!(group.check_removal(NodeId(3)).is_err());
        // Who may not go yet keeps nobody from coming.
        let step = group.next_step(NodeId(1), Instant::now());
        assert!(
            matches!(step, Some(Step::AddLearner(NodeId(4), _))),
            "{step:?}"
        );
        assert_eq!(group.check_removal(NodeId(2)), Ok(()));
        group.voters = ids(&[1, 3]);
        group.members = members(&[1]);
        let step = group.next_step(NodeId(1), Instant::now());
        assert_eq!(step, Some(Step::Remove(NodeId(3))));
        assert_eq!(group.check_removal(NodeId(3)), Ok(()));
    }

    #[test]
    fn a_refusal_names_who_is_missing() {
        let group = Group {
            voters: ids(&[1, 2, 3]),
            alive: ids(&[1, 2]),
            ..Group::default()
        };
        let text = group.check_removal(NodeId(2)).unwrap_err().to_string();
        assert!(text.contains("node 3") && text.contains("1 of 2"), "{text}");
    }

    #[test]
    fn readiness_starts_again_after_a_lapse() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut readiness = Readiness::default();
        readiness.observe(&ids(&[4]), at(0));
        assert_eq!(readiness.observe(&ids(&[4, 5]), at(10))[&NodeId(4)], at(0));
        readiness.observe(&ids(&[5]), at(20));
        assert_eq!(readiness.observe(&ids(&[4, 5]), at(30))[&NodeId(4)], at(30));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// From any mismatch, carrying out the steps ends with the group equal to the state, and no step repeats for ever.
        #[test]
        fn steps_lead_to_the_state(
            voters in proptest::collection::btree_set(1u64..8, 1..6),
            learners in proptest::collection::btree_set(1u64..8, 0..4),
            state in proptest::collection::btree_set(1u64..8, 1..7),
            joint: bool,
        ) {
            let voters: BTreeSet<NodeId> = voters.into_iter().map(NodeId).collect();
            let me = *voters.first().unwrap();
            let mut wanted = members(&state.into_iter().collect::<Vec<_>>()).unwrap();
            wanted.insert(me, peer(me.0));
            let learners = learners.into_iter().map(NodeId).filter(|id| !voters.contains(id)).collect();
            let mut group = Group { voters, learners, joint, members: Some(wanted.clone()), ..Group::default() };
            for _ in 0..32 {
                match group.next_step(me, Instant::now()) {
                    None => break,
                    Some(Step::Finish) => group.joint = false,
                    Some(Step::Remove(id)) => {
                        prop_assert!(id != me);
                        group.voters.remove(&id);
                        group.learners.remove(&id);
                    }
                    Some(Step::AddLearner(id, _)) => { group.learners.insert(id); }
                    Some(step) => prop_assert!(false, "{step:?}"),
                }
            }
            prop_assert_eq!(group.nodes().collect::<BTreeSet<_>>(), wanted.keys().copied().collect());
        }
    }
}
