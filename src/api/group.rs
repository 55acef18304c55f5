//! What the API asks of consensus and of the node it runs in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::transport::Channel;

use crate::{
    config::reserved::Reserved,
    model::{
        name::Name,
        network::Network,
        node::{Member, NodeId},
        rrset::RecordType,
    },
    state::{
        State,
        command::{Command, RequestId},
        outcome::Outcome,
    },
    wire::error::{Failure, FailureCode},
};

/// The Raft group this node belongs to.
#[tonic::async_trait]
pub trait Group: Send + Sync + 'static {
    /// Commits a command through the leader, wherever it is, and waits until this node's state shows it.
    ///
    /// # Errors
    /// `NoLeader` when nothing was proposed, `UnknownOutcome` when that cannot be told.
    async fn propose(&self, command: Command, deadline: Instant) -> Result<Outcome, Failure>;

    /// Waits until this node's state holds everything that had been acknowledged anywhere before the call.
    async fn catch_up(&self, deadline: Instant) -> Result<(), Failure>;

    /// The newest state that is durable here, and its log index.
    fn applied(&self) -> Applied;

    /// The newest state that is durable here.
    fn state(&self) -> Arc<State> {
        self.applied().state
    }

    /// Waits for a state newer than `revision`; none when the node stops.
    async fn applied_after(&self, revision: u64) -> Option<Applied>;

    /// Who leads and who follows, as far as this node knows.
    fn standing(&self) -> Standing;

    /// Why this node's state is the cluster's no longer (it was removed, or its log is lost), so that nothing may be told of it; none: it is.
    fn gone(&self) -> Option<Failure>;

    /// Waits until `gone` says why.
    async fn until_gone(&self) -> Failure;

    /// Hands leadership to `to`, or to the best voter, and waits until it leads.
    ///
    /// # Errors
    /// `NoLeader` when nothing was begun, `UnknownOutcome` when that cannot be told; the same holds for the two below.
    async fn transfer(&self, to: Option<NodeId>, deadline: Instant) -> Result<NodeId, Failure>;

    /// Makes a learner a voter; false when it was one.
    async fn promote(&self, id: NodeId, deadline: Instant) -> Result<bool, Failure>;

    /// Ends the membership of a node; false when it was no member. Refused when the quorum would be lost. This node itself also when it
    /// was removed before, whatever `gone` says.
    async fn remove(&self, id: NodeId, deadline: Instant) -> Result<bool, Failure>;
}

/// A state and the log index it is of, taken as one: whoever compares states compares them at one index.
#[derive(Clone, Debug)]
pub struct Applied {
    pub index: u64,
    pub state: Arc<State>,
}

/// This node's place in its Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub id: NodeId,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// `leader`, `follower`, `candidate`, `learner`, `starting` or `failed`.
    pub role: &'static str,
    pub voters: BTreeSet<NodeId>,
    /// It serves state that it recovered without a leader.
    pub stale: bool,
    /// Why consensus does not work here; empty: it does.
    pub problem: String,
    /// Why this node is unfit to hold VIPs; empty: it is fit.
    pub unfit: String,
    /// For how long this node refuses to elect another, at present; zero: not known.
    pub refusal: Duration,
    /// What a flush of its log typically takes; zero: not known.
    pub flush: Duration,
}

/// The node around the API.
#[tonic::async_trait]
pub trait NodeControl: Send + Sync + 'static {
    /// The group; none while this machine has no identity, or consensus has not started.
    fn group(&self) -> Option<Arc<dyn Group>>;

    /// Why there is no group: what is said to whoever asks for it then.
    fn outside(&self) -> Failure {
        no_group()
    }

    /// What this node does now.
    fn report(&self) -> NodeReport;

    /// Fingerprint of the authority that signed this node's certificate; none without TLS.
    fn authority_fingerprint(&self) -> Option<String>;

    /// The networks in which this node itself has an address, by the logical name of their interface.
    fn networks(&self) -> BTreeMap<String, BTreeSet<Network>> {
        BTreeMap::new()
    }

    /// The addresses that no listener may have on this node.
    fn reserved(&self) -> Reserved;

    /// A channel to the API of another member.
    fn channel(&self, member: &Member) -> Channel;

    /// Reads logging settings and certificates again.
    async fn reload(&self) -> Result<Reloaded, Failure>;

    /// Counters and gauges of the DNS service.
    fn dns_counters(&self) -> Vec<(String, u64)>;

    /// Takes entries out of the cache, and says how many.
    fn dns_flush(&self, what: &FlushScope) -> u64;

    /// Asks this node's own DNS service as a local client would.
    async fn dns_query(&self, name: &Name, rtype: RecordType) -> Result<DnsAnswer, Failure>;

    /// Stops this process in order, having left the cluster.
    fn stop(&self);
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    pub name: String,
    pub pid: u32,
    pub raft_address: Option<SocketAddr>,
    pub api_address: Option<SocketAddr>,
    /// Why it does not serve; empty: DNS answers and every listener is bound.
    pub not_serving: Vec<String>,
    pub held_vips: Vec<HeldVip>,
    /// The VIPs that no fence stands for on this node, held or not.
    pub unfenced_vips: Vec<IpAddr>,
    pub backends: Vec<BackendVerdict>,
    pub listeners: Vec<ListenerReport>,
    /// What needs a person, the gravest first: of what repeats, the first few and how many more there are.
    pub alarms: Vec<String>,
    /// Own addresses on which listeners answer.
    pub service_addresses: Vec<IpAddr>,
    /// Logical names of interfaces that it maps to devices.
    pub interfaces: Vec<String>,
    /// Addresses that somebody else has put on its devices, each with such a device: it can hold none of them as a VIP.
    pub occupied: BTreeMap<IpAddr, String>,
}

/// A virtual address this node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldVip {
    pub address: IpAddr,
    /// `kernel`, `none` or `loopback`.
    pub fence: String,
}

/// What this node makes of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendVerdict {
    pub pool: String,
    pub backend: String,
    pub health: BackendHealth,
    /// Connections to it now.
    pub connections: u64,
    /// Why it is down, or what went wrong of late; may be empty.
    pub problem: String,
    /// For how long the verdict has stood.
    pub since: Duration,
}

/// Verdict of the health checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendHealth {
    /// No verdict yet.
    Unknown,
    Up,
    Down,
    /// The pool has no health check.
    Unchecked,
}

/// What this node makes of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerReport {
    pub listener: String,
    pub bound: Vec<SocketAddr>,
    /// Why some address is not bound; empty: all are.
    pub problem: String,
    /// Connections now.
    pub connections: u64,
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    pub applied: Vec<String>,
    pub needs_restart: Vec<String>,
}

/// What to take out of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlushScope {
    All,
    Name(Name),
    /// The name and everything below it.
    Subtree(Name),
}

/// An answer of this node's DNS service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsAnswer {
    /// The DNS message.
    pub message: Vec<u8>,
    /// `zone`, `cache`, `forwarder`, `built-in` or `refused`.
    pub source: String,
}

/// A request id for a command that the API itself makes.
pub fn random_request() -> RequestId {
    use rand::RngExt;
    RequestId(rand::rng().random())
}

/// What is said while this machine has been no member yet.
pub fn no_group() -> Failure {
    Failure::new(
        FailureCode::NotReady,
        "node",
        "belongs to no cluster yet",
        "run `pontoon cluster init` for a new cluster, or `pontoon cluster join` with a token of an existing one",
    )
}
