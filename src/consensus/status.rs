//! The cluster as this node sees it.

use std::net::SocketAddr;

use super::{
    Consensus,
    administer::lag_of,
    core::{Core, Heard, Metrics, Peers, lock},
    messages::{NodeState, PeerReport},
    recovery::Recovery,
    types::Peer,
};
use crate::model::node::{ClusterId, NodeId};

/// The cluster, seen from one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    pub cluster: ClusterId,
    /// The node that tells this.
    pub answered_by: NodeId,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// Revision of this node's state.
    pub revision: u64,
    /// Log index of this node's state.
    pub applied: u64,
    pub recovery: Recovery,
    /// Sorted by id.
    pub nodes: Vec<NodeStatus>,
    /// What needs a person.
    pub alarms: Vec<String>,
}

/// One node of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    pub id: NodeId,
    pub name: String,
    pub role: MemberRole,
    pub state: NodeState,
    pub raft_address: SocketAddr,
    pub api_address: SocketAddr,
    /// Log index applied there.
    pub applied: Option<u64>,
    /// Log entries behind the newest that this node knows of.
    pub lag: Option<u64>,
    /// The hash of its state, and the log index at which it was taken.
    pub state_hash: Option<(u64, [u8; 16])>,
    pub stale: bool,
    pub pid: Option<u32>,
    pub version: String,
    /// Why it is not well; empty: it is.
    pub problem: String,
    /// Why it is unfit to hold VIPs; empty: it is fit, or that is not known.
    pub unfit: String,
}

/// What a node does in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    Voter,
    Learner,
}

impl Consensus {
    /// How the cluster is, from this node's own knowledge: it needs no leader, and asks nobody.
    pub fn status(&self) -> ClusterStatus {
        self.core.status()
    }
}

impl Core {
    fn status(&self) -> ClusterStatus {
        let own = self.report();
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let peers = lock(&self.peers);
        let mut nodes: Vec<NodeStatus> = membership
            .nodes()
            .map(|(id, peer)| {
                let (id, role) = (NodeId(*id), role(&metrics, *id));
                match id == self.id {
                    true => described(id, peer, role, &own),
                    false => peer_status(id, peer, role, peers.reports.get(&id)),
                }
            })
            .collect();
        if nodes.is_empty() {
            nodes.push(described(self.id, &self.peer, MemberRole::Learner, &own));
        }
        set_lags(&mut nodes, &metrics);
        let alarms = alarms(&nodes, &peers);
        ClusterStatus {
            cluster: self.cluster.clone(),
            answered_by: self.id,
            leader: own.leader,
            term: own.term,
            revision: own.revision,
            applied: own.applied,
            recovery: *self.recovery.borrow(),
            nodes,
            alarms,
        }
    }
}

fn role(metrics: &Metrics, id: u64) -> MemberRole {
    let mut voters = metrics.membership_config.voter_ids();
    match voters.any(|voter| voter == id) {
        true => MemberRole::Voter,
        false => MemberRole::Learner,
    }
}

fn described(id: NodeId, peer: &Peer, role: MemberRole, report: &PeerReport) -> NodeStatus {
    NodeStatus {
        id,
        name: peer.name.clone(),
        role,
        state: report.state,
        raft_address: peer.raft_address,
        api_address: peer.api_address,
        applied: Some(report.applied),
        lag: None,
        state_hash: Some((report.applied, report.state_hash)),
        stale: report.stale,
        pid: Some(report.pid),
        version: report.version.clone(),
        problem: report.problem.clone().unwrap_or_default(),
        unfit: report.unfit.clone().unwrap_or_default(),
    }
}

fn peer_status(id: NodeId, peer: &Peer, role: MemberRole, heard: Option<&Heard>) -> NodeStatus {
    if let Some(report) = heard.and_then(Heard::fresh_report) {
        return described(id, peer, role, report);
    }
    let problem = heard.and_then(|heard| heard.problem.clone());
    NodeStatus {
        id,
        name: peer.name.clone(),
        role,
        state: NodeState::Unreachable,
        raft_address: peer.raft_address,
        api_address: peer.api_address,
        applied: None,
        lag: None,
        state_hash: None,
        stale: false,
        pid: None,
        version: String::new(),
        problem: problem.unwrap_or_else(|| "it has not answered yet".into()),
        unfit: String::new(),
    }
}

/// A leader knows what its followers have; others go by what was reported.
fn set_lags(nodes: &mut [NodeStatus], metrics: &Metrics) {
    let newest = nodes.iter().filter_map(|node| node.applied).max();
    for node in nodes {
        let reported = newest
            .zip(node.applied)
            .map(|(newest, at)| newest.saturating_sub(at));
        node.lag = lag_of(metrics, node.id)
            .filter(|_| metrics.replication.is_some())
            .or(reported);
    }
}

fn alarms(nodes: &[NodeStatus], peers: &Peers) -> Vec<String> {
    let diverged = peers.diverged.iter().map(|(id, index)| {
        format!("the state of node {id} differs from this node's at log index {index}: remove the wrong one and join it anew")
    });
    let unwell = nodes
        .iter()
        .filter(|node| !node.problem.is_empty() && !node.unfit.contains(&node.problem))
        .map(|node| format!("node {}: {}", node.id, node.problem));
    let unfit = nodes
        .iter()
        .filter(|node| !node.unfit.is_empty())
        .map(|node| format!("node {} is unfit to hold the VIPs: {}", node.id, node.unfit));
    diverged.chain(unwell).chain(unfit).collect()
}
