//! Whether a node would be elected if leadership were handed over to it now.
//!
//! A leader lets the VIPs go before its successor is elected. One whom the leader reaches and too few others do, or which does not reach
//! them, would take the VIPs and lose them a moment later, with all that lives through them. So the successor finds out before it
//! takes the offer: it asks the voters, over the connections on which it asks for votes. Those that a cut link has ended are made
//! anew by that.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};

use super::{
    core::Core,
    membership::majority,
    network::{CallError, Rpc, Target},
};
use crate::model::node::NodeId;

/// How long the voters are waited for: as long as an election may take, within these.
const LIMITS: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(1)];

/// Whether those who give their votes are enough: a majority of each of the configurations of voters that count at present
/// (the Raft dissertation, section 4.3).
fn is_elected(votes: &BTreeSet<NodeId>, configurations: &[BTreeSet<NodeId>]) -> bool {
    let enough =
        |voters: &BTreeSet<NodeId>| voters.intersection(votes).count() >= majority(voters.len());
    configurations.iter().all(enough)
}

impl Core {
    /// Asks the voters until enough of them would elect this node.
    ///
    /// # Errors
    /// When they are too few: who would, and why others would not.
    pub(super) async fn canvass(&self) -> Result<(), String> {
        let configurations = self.configurations();
        let voters: BTreeSet<NodeId> = configurations.iter().flatten().copied().collect();
        let mut votes = BTreeSet::from([self.id]);
        let mut silent: Vec<NodeId> = vec![];
        let mut problems = vec![];
        let mut asking = FuturesUnordered::new();
        for id in voters.iter().filter(|id| **id != self.id) {
            match self.target_of(*id) {
                Some(at) => asking.push(self.asked(at)),
                None => silent.push(*id),
            }
        }
        while !is_elected(&votes, &configurations) {
            match asking.next().await {
                Some((id, Ok(()))) => drop(votes.insert(id)),
                Some((_, Err(CallError::Refused { to, problem, .. }))) => {
                    problems.push(format!("node {to} refused: {problem}"));
                }
                Some((id, Err(_))) => silent.push(id),
                None => {
                    problems.extend(
                        silent
                            .iter()
                            .map(|id| format!("node {id} does not answer it")),
                    );
                    return Err(format!(
                        "node {} would get {} of {} votes: {}",
                        self.id,
                        votes.intersection(&voters).count(),
                        voters.len(),
                        problems.join("; ")
                    ));
                }
            }
        }
        Ok(())
    }

    async fn asked(&self, at: Target) -> (NodeId, Result<(), CallError>) {
        let limit = self.canvass_limit();
        (at.id, self.links.call(at, Rpc::Canvass, &(), limit).await)
    }

    /// How long the voters are waited for.
    pub(super) fn canvass_limit(&self) -> Duration {
        let [shortest, longest] = LIMITS;
        let election = self.timing().election_timeout_min;
        election.clamp(shortest, longest)
    }

    fn configurations(&self) -> Vec<BTreeSet<NodeId>> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters = |ids: &BTreeSet<u64>| ids.iter().copied().map(NodeId).collect();
        membership.get_joint_config().iter().map(voters).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_of_each_configuration_elects() {
        let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        // (votes, configurations, elected)
        let cases = [
            (nodes(&[1]), vec![nodes(&[1])], true),
            (nodes(&[1]), vec![nodes(&[1, 2])], false),
            (nodes(&[1]), vec![nodes(&[1, 2, 3])], false),
            (nodes(&[1, 3]), vec![nodes(&[1, 2, 3])], true),
            (nodes(&[1, 9, 8]), vec![nodes(&[1, 2, 3])], false),
            (nodes(&[1, 2]), vec![nodes(&[1, 2, 3, 4, 5])], false),
            (nodes(&[1, 2, 5]), vec![nodes(&[1, 2, 3, 4, 5])], true),
            (
                nodes(&[1, 2]),
                vec![nodes(&[1, 2, 3]), nodes(&[1, 4, 5])],
                false,
            ),
            (
                nodes(&[1, 2, 4]),
                vec![nodes(&[1, 2, 3]), nodes(&[1, 4, 5])],
                true,
            ),
        ];
        for (votes, configurations, elected) in cases {
            assert_eq!(
                is_elected(&votes, &configurations),
                elected,
                "{votes:?} of {configurations:?}"
            );
        }
    }
}
