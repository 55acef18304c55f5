//! What nodes ask of each other beside the protocol of openraft. Encoded by postcard: a change of shape raises
//! `network::PROTOCOL`.

use std::{collections::BTreeMap, time::Duration};

use super::{
    membership::RemovalRefused,
    types::{EncodedCommand, Peer},
};
use crate::{
    model::{node::NodeId, vip::VipFacts},
    state::outcome::Outcome,
};

/// A command for the leader.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ProposeRequest {
    pub command: EncodedCommand,
    /// How long the sender waits.
    pub wait_ms: u64,
}

/// A command on the stream to the leader. A message holds several.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ForwardedCommand {
    /// Its own on the stream.
    pub number: u64,
    pub request: ProposeRequest,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ForwardedOutcome {
    pub number: u64,
    pub proposed: Proposed,
}

/// What became of a proposal on the node that took it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Proposed {
    /// Committed by a majority and applied on that node.
    Done { index: u64, outcome: Outcome },
    /// Certainly not in the log: that node does not lead, or may not write now.
    NotTaken { leader: Option<NodeId> },
    /// Certainly not in the log, and it is no use to ask again soon.
    Refused(ProposalRefused),
    /// Perhaps in the log.
    Perhaps(String),
}

/// Why a leader takes no proposal, though it leads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum ProposalRefused {
    #[error(
        "the disk of node {node} has only {free_bytes} bytes free, below its watermark of {watermark}: free some space there"
    )]
    LowSpace {
        node: NodeId,
        free_bytes: u64,
        watermark: u64,
    },
    #[error(
        "{in_flight} commands are being written already: send fewer at once, or try again later"
    )]
    Overloaded { in_flight: usize },
    #[error("the command takes {bytes} bytes in the log, more than the limit of {limit}: split it")]
    TooLarge { bytes: usize, limit: usize },
}

/// Asks for the index that a linearizable read waits for.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct ReadIndexRequest {
    pub wait_ms: u64,
}

/// The answer to it.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub enum ReadIndex {
    /// Everything acknowledged before the question lies at or below this index.
    Index(u64),
    /// That node does not lead, or cannot tell.
    NotLeading { leader: Option<NodeId> },
}

/// Asks a node to note the time, before it is granted a lease. The answer is a number for the time it noted.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Offer {
    pub term: u64,
    /// One that is unfit to hold the VIPs declines.
    pub only_fit: bool,
}

/// Grants what is left of the leader's lease, counted from the time that was noted.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct GrantRequest {
    pub term: u64,
    pub noted: u64,
    pub lasts: Duration,
    /// What the leader goes on serving.
    pub facts: VipFacts,
    /// What it knows of the others: earlier holders may serve connections still.
    pub others: BTreeMap<NodeId, VipFacts>,
    /// Who held before it, the last one first.
    pub givers: Vec<NodeId>,
}

/// Asks the leader to change the group.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct AdministerRequest {
    pub change: GroupChange,
    pub wait_ms: u64,
}

/// A change of the group.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum GroupChange {
    Transfer {
        to: NodeId,
    },
    /// Leadership is taken from a node, for the best of the other voters. Where another leads already, nothing is to be done: the
    /// same request may be made of several leaders, one after the other.
    MoveOn {
        from: NodeId,
        /// One that is unfit to hold the VIPs does not get it.
        only_fit: bool,
    },
    AddLearner {
        id: NodeId,
        peer: Peer,
    },
    Promote {
        id: NodeId,
    },
    Remove {
        id: NodeId,
    },
}

/// How a change of the group ended.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Administered {
    Done(Change),
    /// Not this node's business: it does not lead.
    NotLeading {
        leader: Option<NodeId>,
    },
    Refused(ChangeRefused),
    /// Begun, not finished in time. The leader goes on with it.
    Unfinished(String),
}

/// Whether anything had to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Change {
    Made,
    /// It was so before.
    Unneeded,
}

/// Why the group is not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum ChangeRefused {
    #[error("node {0} is no member")]
    NotMember(NodeId),
    #[error("node {0} was removed from the cluster, and ids are never used again: join it anew")]
    Retired(NodeId),
    #[error("node {0} is a learner: promote it first")]
    Learner(NodeId),
    #[error("node {0} has not answered lately: start it, or choose another")]
    Silent(NodeId),
    #[error("node {id} is unfit to hold the VIPs: {problem}; choose another, or mend it")]
    Unfit { id: NodeId, problem: String },
    #[error("node {0} is starting, and serves nothing yet: wait until it does")]
    Starting(NodeId),
    #[error("node {id} is {lag} log entries behind: wait until it has caught up")]
    Behind { id: NodeId, lag: u64 },
    #[error("there is no other voter that answers and has caught up")]
    NoSuccessor,
    #[error("node {0} is the only voter: nobody else can lead")]
    OnlyVoter(NodeId),
    #[error(
        "there are {0} voters already, which is the limit; node stays a learner, which serves all the same"
    )]
    EnoughVoters(usize),
    #[error(
        "node {id} is a member under another address; an address is changed by removing and joining"
    )]
    OtherAddress { id: NodeId },
    #[error(transparent)]
    Quorum(#[from] RemovalRefused),
    #[error("no other voter is fit to hold the VIPs ({problems}); mend one, then move them")]
    NobodyFit { problems: String },
    #[error(
        "no other voter can take the VIPs at present ({problems}); wait until one that is fit answers and has caught up"
    )]
    NoneReady { problems: String },
    #[error(
        "nothing was handed over, as node {id} declined: {problem}; choose another, or try again when that is over"
    )]
    Declined { id: NodeId, problem: String },
    #[error(
        "nothing was handed over, as node {0} did not have it on its disk in time; choose another, or see to that disk and its link"
    )]
    NotWritten(NodeId),
    #[error(
        "nothing was handed over, as the disk of node {id}, which leads, has not answered for {}; see to that disk, or stop that node: \
         the others elect a leader then",
        in_tenths(*.silent_ms)
    )]
    OwnDisk { id: NodeId, silent_ms: u64 },
    #[error(
        "nothing was handed over, as a majority does not answer node {0}, which leads: it has no lease to give; try again when a \
         majority is up"
    )]
    NoLease(NodeId),
    #[error(
        "nothing was handed over, as node {id} did not answer: {problem}; choose another, or try again"
    )]
    NotOffered { id: NodeId, problem: String },
    #[error(
        "nothing was begun, as another change of the group is under way; try again when that has ended"
    )]
    Busy,
    #[error(
        "leadership went to node {leader}, not to node {to}{why}; look at the status, and move it again"
    )]
    WentTo {
        to: NodeId,
        leader: NodeId,
        /// What is known of the reason, after a colon; may be empty.
        why: String,
    },
}

fn in_tenths(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

impl ChangeRefused {
    /// The node that was to lead cannot, for the time being; nothing was given up.
    pub fn is_of_heir(&self) -> bool {
        matches!(
            self,
            Self::Declined { .. } | Self::NotWritten(_) | Self::NotOffered { .. }
        )
    }

    /// Whether the obstacle may be gone in a moment: a leader that was just elected has not heard from everybody yet.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Silent(_)
                | Self::Starting(_)
                | Self::NoneReady { .. }
                | Self::Behind { .. }
                | Self::NoSuccessor
                | Self::Quorum(RemovalRefused::QuorumLost { .. })
        )
    }
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PeerReport {
    pub id: NodeId,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub state: NodeState,
    /// Log index applied and durable there.
    pub applied: u64,
    pub revision: u64,
    /// Hash of the state after `applied`.
    pub state_hash: [u8; 16],
    pub stale: bool,
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// The highest feature level that the program knows.
    pub feature_level: u32,
    /// Why it is not well.
    pub problem: Option<String>,
    pub low_space: Option<LowSpace>,
    pub vips: VipFacts,
    /// Why it is unfit to hold VIPs.
    pub unfit: Option<String>,
}

/// A disk with too little space for new entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LowSpace {
    pub free_bytes: u64,
    pub watermark: u64,
}

/// What a node does in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum NodeState {
    Leader,
    Follower,
    Candidate,
    Learner,
    /// It has not recovered its state yet.
    Starting,
    /// Its disk failed, or it may serve no longer.
    Failed,
    /// It did not answer.
    Unreachable,
}

impl NodeState {
    /// The word in status and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Starting => "starting",
            Self::Failed => "failed",
            Self::Unreachable => "unreachable",
        }
    }
}
