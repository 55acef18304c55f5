//! Replication: openraft behind our own words.
//!
//! `Consensus` is the handle the rest of the node holds. Behind it: `types` (what openraft is instantiated with), the log
//! and state machine on disk (`storage` and below), the peer links (`network` calls, `service` answers), the deciding
//! parts (`gate`, `leadership`, `recovery`, `membership`) and the tasks that act on them (`supervise`). Commands go in,
//! outcomes, state and leadership come out; what a zone or a pool is, nobody here knows.
//!
//! It owns its tasks and the peer connections; `shutdown` ends them. It never stops the servers: they go on from the last
//! snapshot when consensus has ended.

pub mod administer;
mod append_stream;
mod canvass;
pub mod core;
pub mod damping;
pub mod disk;
pub mod election;
pub mod engine;
pub mod engine_memory;
pub mod engine_sled;
pub mod features;
pub mod fitness;
mod flushes;
mod forward;
pub mod gate;
pub mod health;
pub mod heard_file;
mod journal;
pub mod leaderless;
pub mod leadership;
pub mod log_store;
pub mod machine_store;
pub mod membership;
pub mod messages;
pub mod metrics;
pub mod network;
#[cfg(test)]
mod plaintext;
mod probe;
pub mod promise;
pub mod propose;
pub mod publication;
mod record;
pub mod recovery;
pub mod rescue;
mod roster;
pub mod service;
pub mod snapshot_file;
pub mod space;
pub mod status;
pub mod storage;
#[cfg(test)]
mod storage_tests;
pub mod succession;
mod supervise;
#[cfg(test)]
mod tests;
mod tree_entries;
pub mod types;
pub mod watermark;
pub mod writer;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use openraft::{
    Config, SnapshotPolicy, StepDownPolicy,
    errors::{InitializeError, RaftError},
    storage::RaftLogStorage,
};
use pontoon_proto::v1::raft_server::RaftServer;
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    administer::NotDone,
    core::{Core, MAX_PROPOSALS},
    fitness::Fitness,
    forward::Forwarder,
    gate::{LogAtStart, VoteGate},
    leaderless::Leaderless,
    leadership::LeaseBook,
    log_store::LogStore,
    machine_store::MachineStore,
    network::{Identity, Network, PeerLinks},
    promise::Ledger,
    publication::States,
    service::{RaftService, SenderSilence},
    storage::{StorageHandles, takes_no_writes},
    types::{Peer, Raft},
};
pub use self::{
    fitness::Findings,
    messages::{Change, ChangeRefused, NodeState, ProposalRefused},
    network::PeerConnector,
    propose::{ProposeError, ReadError},
    recovery::{Patience, Recovery, StopReason},
    service::Certificates,
    status::{ClusterStatus, MemberRole, NodeStatus},
};
pub use crate::model::timing::Timing;
use crate::{
    model::{
        leadership::Leadership,
        node::{ClusterId, NodeId},
        snapshot::Snapshot,
        timing::SHORTEST_REFUSAL,
        vip::{UnclaimedVips, VipFacts, VipPeers},
    },
    state::{State, command::Command, outcome::Outcome},
};

/// What consensus needs to know of this node.
pub struct ConsensusConfig {
    pub id: NodeId,
    pub cluster: ClusterId,
    /// This node's name and addresses, as other members will know them.
    pub peer: Peer,
    /// A timing of its own, for tests; none: that of the log.
    pub timing: Option<Timing>,
    /// Where the longest promise to a leader is written down.
    pub ledger: Ledger,
    pub patience: Patience,
    pub connector: Arc<dyn PeerConnector>,
    pub certificates: Certificates,
    /// Log entries kept behind a snapshot for followers that lag; `LOG_KEPT` unless a test says otherwise.
    pub log_kept: u64,
}

/// Log entries kept behind a snapshot. A follower that lacks more gets the snapshot, which is a second's work; a single
/// entry may be large.
pub const LOG_KEPT: u64 = 500;

/// Consensus cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("consensus timing: {0}")]
    Timing(#[from] openraft::ConfigError),
    #[error("the promise to leaders cannot be written down: {0}")]
    Promise(#[source] std::io::Error),
    #[error("the log cannot be read: {0}")]
    Log(#[from] std::io::Error),
    #[error("the stored log and state cannot be loaded: {0}")]
    Storage(String),
}

/// A cluster cannot be made of this node.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("node {0} belongs to a cluster already")]
    AlreadyMember(NodeId),
    #[error("consensus has ended on this node: {0}")]
    Ended(String),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// This node's part of the group. Clones are the same part.
#[derive(Clone)]
pub struct Consensus {
    core: Arc<Core>,
    /// Kept for its lifetime: it watches the disk.
    storage: Arc<StorageHandles>,
}

impl Consensus {
    /// Starts this node's part: recovers the log and state, and takes part in the group as soon as `raft_server` is
    /// reachable at the address that the members know. Serving may begin when `recovery` says so.
    ///
    /// # Errors
    /// When the stored log cannot be loaded.
    pub async fn start(
        config: ConsensusConfig,
        storage: (LogStore, MachineStore, StorageHandles),
    ) -> Result<Self, StartError> {
        let (mut log, machine, handles) = storage;
        let log_at_start = match log.get_log_state().await?.last_log_id {
            None => LogAtStart::Empty,
            Some(_) => LogAtStart::Present,
        };
        let log_end = log.end();
        let started = Instant::now();
        let of_log = handles.publication.state().state.profile();
        let timing = config.timing.unwrap_or(of_log.timing());
        let refusal = timing.election_timeout_max;
        let promised = config.ledger.read().unwrap_or(refusal).max(refusal);
        // One without space takes no part in consensus: it promises nothing, and is to serve what it has.
        if handles.health.borrow().failure.is_none() {
            match config.ledger.keep(promised) {
                Err(error) if takes_no_writes(&error) => handles.give_up(&format!(
                    "the promise to leaders cannot be written down: {error}; free space, then start this node again"
                )),
                kept => kept.map_err(StartError::Promise)?,
            }
        }
        let me = Identity {
            cluster: config.cluster.clone(),
            id: config.id,
        };
        let raft_config = Arc::new(raft_config(&config).validate()?);
        let links = Arc::new(PeerLinks::new(me, config.connector));
        links.set_refusal(refusal);
        let network = Network {
            links: Arc::clone(&links),
        };
        let raft = Raft::build(config.id.0, raft_config, network, log, machine).await;
        let raft = raft.map_err(|fatal| StartError::Storage(fatal.to_string()))?;
        let gate = VoteGate::new(started, promised, log_at_start);
        // `supervise` does both, at a pace that may change.
        raft.runtime_config().elect(false);
        raft.runtime_config().heartbeat(false);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let forwarder = Forwarder::new(Arc::clone(&links), tasks.clone(), stop.clone());
        let core = Arc::new(Core {
            id: config.id,
            cluster: config.cluster,
            peer: config.peer,
            timing: watch::Sender::new(timing),
            promise: Default::default(),
            ledger: config.ledger,
            fixed_timing: config.timing.is_some(),
            patience: config.patience,
            certificates: config.certificates,
            started,
            feature_level: handles.feature_level,
            gate,
            raft: raft.clone(),
            log_end,
            links,
            forwarder,
            publication: handles.publication.clone(),
            health: handles.health.clone(),
            leases: LeaseBook::new(config.id).into(),
            leadership: watch::Sender::new(Leadership::default()),
            leader: watch::Sender::new(None),
            recovery: watch::Sender::new(Recovery::Recovering),
            released: watch::Sender::new(0),
            heard: None.into(),
            probe: handles.probe.clone(),
            disk: handles.disk(),
            removed: watch::Sender::new(false),
            log_lost: watch::Sender::new(false),
            is_mute: false.into(),
            peers: Default::default(),
            proposals: Semaphore::new(MAX_PROPOSALS),
            vip_facts: Default::default(),
            vip_claims: Default::default(),
            fitness: Default::default(),
            vip_peers: watch::Sender::new(VipPeers::default()),
            grants: Default::default(),
            offered: Default::default(),
            changing: Default::default(),
            stop,
            tasks,
        });
        raft.run();
        supervise::start(
            &core,
            handles.snapshot_due.clone(),
            handles.purgeable.clone(),
            handles.heard.clone(),
        );
        Ok(Self {
            core,
            storage: Arc::new(handles),
        })
    }

    /// The service that peers call, for the node's gRPC server on its Raft address.
    pub fn raft_server(&self) -> RaftServer<RaftService> {
        RaftService::server(Arc::clone(&self.core), SenderSilence::default())
    }

    /// Makes a cluster of this node alone and proposes `first`, which names the cluster and its first member. Running it
    /// again with the same command is harmless.
    ///
    /// # Errors
    /// When this node already belongs to a cluster with other members, or `first` was not applied in time.
    pub async fn initialize(
        &self,
        first: Command,
        deadline: Instant,
    ) -> Result<Outcome, InitError> {
        let only = BTreeMap::from([(self.core.id.0, self.core.peer.clone())]);
        match self.core.raft.initialize(only).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                let metrics = self.core.metrics();
                let nodes: Vec<u64> = metrics
                    .membership_config
                    .nodes()
                    .map(|(id, _)| *id)
                    .collect();
                if nodes != [self.core.id.0] {
                    return Err(InitError::AlreadyMember(self.core.id));
                }
            }
            Err(error) => return Err(InitError::Ended(error.to_string())),
        }
        Ok(self.propose(first, deadline).await?)
    }

    /// What the servers serve; none before recovery has ended. The latest value counts.
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.core.publication.snapshots()
    }

    /// The state with everything that is not for the servers, as this node has it.
    pub fn state(&self) -> Arc<State> {
        self.core.publication.state().state
    }

    /// The states as they are published.
    pub fn states(&self) -> States {
        self.core.publication.states()
    }

    /// This node's standing, and the lease under which it may hold VIPs.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.core.leadership.subscribe()
    }

    /// Whether the state may be served, and how fresh it is.
    pub fn recovery(&self) -> watch::Receiver<Recovery> {
        self.core.recovery.subscribe()
    }

    /// How the disk is.
    pub fn health(&self) -> watch::Receiver<health::StorageHealth> {
        self.storage.health.clone()
    }

    /// Whether the disk takes what is written to it.
    pub fn disk(&self) -> disk::DiskWatch {
        self.core.disk.clone()
    }

    /// What the log has written, and what waits to be.
    pub fn log_figures(&self) -> writer::LogFigures {
        self.storage.log_figures()
    }

    /// How this node counts time at present.
    pub fn timing(&self) -> Timing {
        self.core.timing()
    }

    /// Proposals that wait for their commit on this node, and how many may.
    pub fn proposals(&self) -> (usize, usize) {
        let free = self.core.proposals.available_permits();
        (MAX_PROPOSALS.saturating_sub(free), MAX_PROPOSALS)
    }

    /// To be called when the VIPs that were held under the lease of `term` are held no longer: a hand-over then need not
    /// wait for the lease to lapse.
    pub fn acknowledge_release(&self, term: u64) {
        self.core.released.send_if_modified(|released| {
            let news = term > *released;
            *released = (*released).max(term);
            news
        });
    }

    /// Why this node hears no leader, as far as it knows.
    pub fn why_leaderless(&self) -> Leaderless {
        self.core.leaderless(Leaderless::Unknown)
    }

    /// Which VIPs this node holds that no member held since they were added, and the revision at which each was: the leader has the
    /// state remember that they are claimed.
    pub fn claim_vips(&self, claims: UnclaimedVips) {
        *core::lock(&self.core.vip_claims) = claims;
    }

    /// What the other members say of the VIPs on their devices. The latest value counts.
    pub fn vip_peers(&self) -> watch::Receiver<VipPeers> {
        self.core.vip_peers.subscribe()
    }

    /// What the other members are to know of the VIPs on this node.
    pub fn tell_of_vips(&self, facts: VipFacts) {
        *core::lock(&self.core.vip_facts) = facts;
    }

    /// Says what the checks of this node found. To be said again within `FITNESS_LASTS`, or the node counts as unfit; one that never
    /// says anything counts as fit.
    pub fn tell_fitness(&self, found: Findings) {
        let at = Instant::now();
        *core::lock(&self.core.fitness) = Fitness::Checked { at, found };
    }

    /// Says that this node has still to start what it serves: until something else is said, nobody gives it the VIPs.
    pub fn tell_starting(&self) {
        *core::lock(&self.core.fitness) = Fitness::Starting;
    }

    /// Says why nothing is served here: until something else is said, the node is unfit to hold VIPs.
    pub fn tell_stopped(&self, why: String) {
        *core::lock(&self.core.fitness) = Fitness::Stopped(why);
    }

    pub fn id(&self) -> NodeId {
        self.core.id
    }

    pub fn cluster(&self) -> &ClusterId {
        &self.core.cluster
    }

    /// The leader that this node follows, or itself. It may have fallen silent.
    pub fn leader(&self) -> Option<NodeId> {
        self.core.leader()
    }

    /// The leader that gave a sign of life within the last two election timeouts.
    pub fn present_leader(&self) -> Option<NodeId> {
        self.core.present_leader()
    }

    /// Hands leadership over if this node has it, ends consensus on this node and waits for its tasks. What is served
    /// stays readable.
    pub async fn shutdown(&self, deadline: Instant) {
        if self.core.present_leader() == Some(self.core.id) {
            match self.core.hand_over(deadline).await {
                Ok(_) => tracing::info!("leadership handed over before the stop"),
                // There is nobody to hand it to.
                Err(NotDone::Refused(ChangeRefused::OnlyVoter(_))) => {}
                Err(problem) => {
                    tracing::info!(%problem, "leadership was not handed over before the stop");
                    // Of one that was begun the next leader would wait for another's lease.
                    supervise::settle_release(&self.core).await;
                }
            }
        }
        self.halt().await;
    }

    /// Stops leading though nobody took over, for a node that stops: from now on it holds nothing, and is no leader that the others
    /// hear, so they elect one of them. False: there is nobody else who votes.
    pub fn resign(&self) -> bool {
        let metrics = self.core.metrics();
        if self.core.standing(&metrics).sole_voter {
            return false;
        }
        core::lock(&self.core.leases).abdicate(metrics.current_term);
        self.core.observe(&metrics);
        true
    }

    /// Ends without handing leadership over: the other voters end too, or there are none.
    pub async fn halt(&self) {
        self.core.stop.cancel();
        if let Err(error) = self.core.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not end cleanly");
        }
        self.core.end_leadership();
        self.core.tasks.close();
        self.core.tasks.wait().await;
    }
}

/// openraft, set as Pontoon needs it. What it cannot change while it runs is set to the shortest that any timing needs, and
/// done by `promise` and `election` in front of it.
fn raft_config(config: &ConsensusConfig) -> Config {
    let shortest = u64::from(millis(SHORTEST_REFUSAL));
    Config {
        cluster_name: config.cluster.0.clone(),
        // `supervise` sends the heartbeats; this is how long one may take.
        heartbeat_interval: shortest * 2 / 3,
        // How long a request for a vote may take.
        election_timeout_min: shortest - 1,
        // Its own refusal to elect another, and for how long an acknowledged leader takes writes.
        election_timeout_max: shortest,
        // A node that was cut off must not come back with a higher term and unseat a healthy leader.
        enable_pre_vote: Some(true),
        // A restarted leader must not resume with a lease that others no longer honour.
        enable_leader_restore: Some(false),
        // Leaving and removing hand leadership over themselves, after the lease has been given up.
        removed_leader_step_down: StepDownPolicy::Never,
        // `election::may_heartbeat` does this.
        quorum_loss_probe_interval: None,
        // The state machine's store asks for snapshots, by log bytes and count.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: config.log_kept,
        max_payload_entries: 512,
        api_channel_size: Some(MAX_PROPOSALS as u64 * 2),
        backoff: "20ms, 40ms, 80ms ...250ms".to_owned(),
        ..Config::default()
    }
}

/// Whole milliseconds, as openraft and the peer protocol count.
fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
