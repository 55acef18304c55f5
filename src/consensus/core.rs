//! What every part of the handle shares, and the parts of it that both local callers and peers use: proposing to this
//! node's openraft, the read index, the node's report about itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use openraft::{
    RaftMetrics, ReadPolicy, ServerState, TokioInstant,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, Fatal, LinearizableReadError, RaftError},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Timing,
    damping::Damping,
    disk::DiskWatch,
    fitness::{Fitness, Unfit},
    forward::Forwarder,
    gate::VoteGate,
    health::StorageHealth,
    leaderless::Leaderless,
    leadership::{Grant, LeaseBook, Standing},
    log_store::LogEnd,
    messages::{
        GrantRequest, LowSpace, NodeState, PeerReport, ProposalRefused, Proposed, ReadIndex,
    },
    network::{PeerLinks, Target},
    probe::Probe,
    promise::{self, Ledger, Promise},
    publication::Publication,
    recovery::{Patience, Recovery},
    service::Certificates,
    space::{self, VoterDisk},
    types::{EncodedCommand, Peer, Raft, TypeConfig},
};
use crate::{
    defect::{self, Defect},
    model::{
        leadership::Leadership,
        node::{ClusterId, NodeId},
        vip::{UnclaimedVips, VipFacts, VipPeers},
    },
    wire::command::MAX_ENTRY,
};

/// Commands that may wait for their commit at one time on this node.
pub const MAX_PROPOSALS: usize = 4096;

/// How long a question to a peer may have been under way when its answer comes.
const ASKED: Duration = Duration::from_secs(1);

/// Pause before a proposal or a read that found no leader is tried again, when nothing tells of one earlier.
pub const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Reports of peers and state hashes that are compared.
pub(super) type Metrics = RaftMetrics<TypeConfig>;

/// This node's part of the group.
pub struct Core {
    pub id: NodeId,
    pub cluster: ClusterId,
    pub peer: Peer,
    /// How this node counts time at present.
    pub(super) timing: watch::Sender<Timing>,
    /// What this node promised to the leader it heard last.
    pub(super) promise: Mutex<Promise>,
    pub(super) ledger: Ledger,
    /// Set in tests: the timing then is not that of the log.
    pub(super) fixed_timing: bool,
    pub patience: Patience,
    pub certificates: Certificates,
    pub started: Instant,
    /// The highest feature level that this program knows.
    pub(super) feature_level: u32,
    pub gate: VoteGate,
    pub raft: Raft,
    pub(super) log_end: LogEnd,
    pub links: Arc<PeerLinks>,
    pub(super) forwarder: Forwarder,
    pub publication: Publication,
    pub health: watch::Receiver<StorageHealth>,
    pub(super) leases: Mutex<LeaseBook>,
    pub(super) leadership: watch::Sender<Leadership>,
    /// The leader alone. openraft's reports change with every entry; whoever waits for a leader must not wake that often.
    pub(super) leader: watch::Sender<Option<NodeId>>,
    pub(super) recovery: watch::Sender<Recovery>,
    /// Whether the disk takes a write now.
    pub(super) probe: Probe,
    /// Whether it has taken those that were made lately.
    pub(super) disk: DiskWatch,
    /// The last term for which the VIP reported that it holds nothing any more.
    pub(super) released: watch::Sender<u64>,
    pub(super) heard: Mutex<Option<Instant>>,
    /// Set when a peer said, or the state says, that this node was removed.
    pub(super) removed: watch::Sender<bool>,
    /// Set when the cluster turns out to count on entries that this node does not have.
    pub(super) log_lost: watch::Sender<bool>,
    /// openraft says nothing more: it has ended, and if it did not say how, by a panic.
    pub(super) is_mute: AtomicBool,
    pub(super) peers: Mutex<Peers>,
    pub(super) proposals: Semaphore,
    /// What this node says of its VIPs.
    pub(super) vip_facts: Mutex<VipFacts>,
    /// VIPs that this node holds as the first one since they were added, and the revision at which each was.
    pub(super) vip_claims: Mutex<UnclaimedVips>,
    /// What this node last said of its fitness to hold VIPs.
    pub(super) fitness: Mutex<Fitness>,
    /// What the others say of theirs.
    pub(super) vip_peers: watch::Sender<VipPeers>,
    /// Leases that were granted to this node.
    pub(super) grants: AtomicU64,
    /// The last offer of a lease: its number, who made it in which term, when it arrived.
    pub(super) offered: Mutex<Option<Offered>>,
    /// One change of the group at a time on this node.
    pub(super) changing: Arc<tokio::sync::Mutex<()>>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// An offer of a lease.
#[derive(Clone, Copy, Debug)]
pub struct Offered {
    pub number: u64,
    pub by: NodeId,
    pub term: u64,
    pub at: Instant,
}

/// What the peers last said of themselves, and what came of comparing it.
#[derive(Debug, Default)]
pub struct Peers {
    pub reports: BTreeMap<NodeId, Heard>,
    /// Hashes of this node's own state at the indexes at which it looked, the newest last.
    pub own_hashes: std::collections::VecDeque<(u64, [u8; 16])>,
    /// Nodes whose state differed from ours at the same index, and that index.
    pub diverged: BTreeMap<NodeId, u64>,
    /// How often the others became unfit to hold VIPs.
    pub damping: Damping,
    /// When a lease was granted to this node last.
    pub granted: Option<Instant>,
    /// To whom leadership could not be given, and when that was tried last.
    pub declined: BTreeMap<NodeId, Instant>,
}

/// A peer's last answer.
#[derive(Clone, Debug)]
pub struct Heard {
    pub report: Option<PeerReport>,
    /// When the last answer came.
    pub at: Option<Instant>,
    /// Why the last question brought none.
    pub problem: Option<String>,
}

/// For how long others are chosen before a node to which leadership could not be given.
const PASSED_OVER: Duration = Duration::from_secs(5);

impl Peers {
    /// For how much longer others are chosen before it; zero: leadership was not offered to it in vain.
    pub fn declined_for(&self, id: NodeId, now: Instant) -> Duration {
        let ago = self
            .declined
            .get(&id)
            .map(|at| now.saturating_duration_since(*at));
        ago.map_or(Duration::ZERO, |ago| PASSED_OVER.saturating_sub(ago))
    }
}

impl Core {
    /// What openraft says of itself. Of a panic it says nothing any more.
    pub(super) fn metrics(&self) -> Metrics {
        let mut metrics = self.raft.metrics().borrow_watched().clone();
        if metrics.running_state.is_ok() && self.is_mute.load(Ordering::Acquire) {
            metrics.running_state = Err(Fatal::Panicked);
        }
        metrics
    }

    /// A snapshot that is being installed may be the end before the log says so.
    pub(super) fn last_log_index(&self) -> Option<u64> {
        let reported = self.raft.metrics().borrow_watched().last_log_index;
        reported.max(self.log_end.last_index())
    }

    /// A leader spoke just now.
    pub(super) fn heard_leader(&self) {
        *lock(&self.heard) = Some(Instant::now());
    }

    pub(super) fn standing(&self, metrics: &Metrics) -> Standing {
        let applied = self.publication.state();
        Standing {
            applied_term: applied.log_id.map(|id| id.committed_leader_id().term),
            release: applied.state.vip_release(),
            refusal: self.smallest_refusal(metrics),
            ..standing(metrics, self.health.borrow().failure.is_none())
        }
    }

    /// How this node counts time at present.
    pub(super) fn timing(&self) -> Timing {
        *self.timing.borrow()
    }

    /// Promises the leader of `term`, whose message has just arrived, to elect nobody else for a time. One of a term that is
    /// over is promised nothing.
    pub(super) fn promise(&self, term: u64) {
        let current = self.raft.metrics().borrow_watched().current_term;
        if term >= current {
            // Looked up under the lock: what is stated last is what was promised last.
            let mut promise = lock(&self.promise);
            promise.renew(Instant::now(), self.links.refusal());
        }
    }

    /// What an answer to a leader states: see `Promise::stated`.
    pub(super) fn stated(&self) -> Duration {
        lock(&self.promise).stated()
    }

    /// For how much longer this node votes for nobody: it promised so to a leader, or leads and was acknowledged lately.
    pub(super) fn refuses_for(&self, now: Instant) -> Option<Duration> {
        let promised = lock(&self.promise).left(now);
        let metrics = self.metrics();
        let seen = standing(&metrics, true);
        let as_leader = seen
            .quorum_acked
            .filter(|_| seen.leading && !seen.sole_voter)
            .and_then(|at| (at + self.links.refusal()).checked_duration_since(now));
        promised.max(as_leader.filter(|left| !left.is_zero()))
    }

    /// What a lease may be counted from: see `promise`.
    fn smallest_refusal(&self, metrics: &Metrics) -> Option<Duration> {
        let own = self.links.refusal();
        let quorum_acked = metrics.last_quorum_acked.map(|at| instant(at.into_inner()));
        let Some(quorum_acked) = quorum_acked else {
            return Some(own).filter(|own| !own.is_zero());
        };
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let acked = metrics.heartbeat.iter().flatten();
        let others = acked.filter(|(id, _)| **id != self.id.0 && voters.contains(*id));
        let answers = others.map(|(id, at)| {
            let at = at.map(|at| instant(at.into_inner()));
            (at, self.links.promised(NodeId(*id)))
        });
        promise::smallest_refusal(own, quorum_acked, answers)
    }

    /// Brings the leadership signal up to date with what openraft reports.
    pub(super) fn observe(&self, metrics: &Metrics) {
        let standing = self.standing(metrics);
        let mut leases = lock(&self.leases);
        let seen = leases.observe(&standing, Instant::now());
        // Sent under the lock: a signal must not overtake an abdication.
        self.leadership.send_if_modified(|last| {
            let news = *last != seen;
            *last = seen;
            news
        });
        self.leader.send_if_modified(|last| {
            let news = *last != seen.leader;
            *last = seen.leader;
            news
        });
    }

    /// The peer to ask for what only a leader can do; none while no leader is known, or this node is it.
    pub(super) fn target_of(&self, id: NodeId) -> Option<Target> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let address = metrics
            .membership_config
            .get_node(&id.0)
            .map(|peer| peer.raft_address);
        let address = address.or_else(|| self.members()?.get(&id).map(|peer| peer.raft_address));
        Some(Target {
            id,
            address: address?,
        })
    }

    /// The leader that this node follows, or itself; none when consensus has ended here.
    pub(super) fn leader(&self) -> Option<NodeId> {
        *self.leader.borrow()
    }

    /// The leader, as long as there is a sign of life: this node heard it within the last two election timeouts, or is it
    /// and was acknowledged by a quorum within them. `leader` names one that fell silent too, since it may still answer.
    pub(super) fn present_leader(&self) -> Option<NodeId> {
        let leader = self.leader()?;
        let heard = self.heard_at(&self.metrics())?;
        (heard.elapsed() < self.timing().election_timeout_max * 2).then_some(leader)
    }

    /// Why no leader did what this node was asked for, after the last attempt.
    pub(super) fn leaderless(&self, attempt: Leaderless) -> Leaderless {
        let hears_leader = self.present_leader().is_some();
        attempt.or_own_disk(self.id, hears_leader, self.disk.busy_for())
    }

    /// When this node last heard a leader, or as one was acknowledged by a quorum.
    pub(super) fn heard_at(&self, metrics: &Metrics) -> Option<Instant> {
        let by_others = *lock(&self.heard);
        let standing = self.standing(metrics);
        let as_leader = match standing.leading && standing.running {
            true if standing.sole_voter => Some(Instant::now()),
            true => standing.quorum_acked,
            false => None,
        };
        by_others.max(as_leader)
    }

    /// Members by the replicated state; none while it names none.
    pub(super) fn members(&self) -> Option<BTreeMap<NodeId, Peer>> {
        let state = self.publication.state().state;
        super::roster::members(&state)
    }

    /// Whether `id` was a member and is one no longer. A node that the Raft group still counts is heard until the group
    /// has let it go.
    pub(super) fn is_retired(&self, id: NodeId) -> bool {
        let state = self.publication.state().state;
        if !state.is_retired(id) {
            return false;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_node(&id.0).is_none()
    }

    /// Ids of the nodes a leader heard from within the last second, itself included.
    pub(super) fn alive(&self, metrics: &Metrics) -> BTreeSet<NodeId> {
        const LATELY: Duration = Duration::from_secs(1);
        let followers = metrics
            .heartbeat
            .iter()
            .flatten()
            .map(|(id, _)| NodeId(*id));
        followers
            .filter(|id| self.silence(metrics, *id).is_some_and(|s| s < LATELY))
            .chain([self.id])
            .collect()
    }

    /// For how long a follower has acknowledged nothing; none when it never has.
    pub(super) fn silence(&self, metrics: &Metrics, id: NodeId) -> Option<Duration> {
        let mut heartbeats = metrics.heartbeat.iter().flatten();
        let (_, at) = heartbeats.find(|(follower, _)| **follower == id.0)?;
        at.map(|at| instant(at.into_inner()).elapsed())
    }

    /// Waits until the state after log entry `index` is durable here and given to the servers.
    pub(super) async fn wait_applied(
        &self,
        index: u64,
        deadline: Instant,
    ) -> Result<(), NotInTime> {
        let mut states = self.publication.states();
        let mut snapshots = self.publication.snapshots();
        let wait = async {
            let reached = |applied: &super::publication::AppliedState| {
                applied.log_id.is_some_and(|id| id.index >= index)
            };
            let applied = states.wait_for(reached).await.map_err(|_| NotInTime)?;
            let revision = applied.state.snapshot().revision;
            let served = |snapshot: &Option<Arc<crate::model::snapshot::Snapshot>>| {
                snapshot.as_ref().is_none_or(|s| s.revision >= revision)
            };
            snapshots.wait_for(served).await.map_err(|_| NotInTime)?;
            Ok(())
        };
        let stopped = self.stop.cancelled();
        tokio::select! {
            done = tokio::time::timeout_at(deadline.into(), wait) => done.unwrap_or(Err(NotInTime)),
            () = stopped => Err(NotInTime),
        }
    }

    /// Puts a command into the log if this node leads, and waits for it to be applied.
    pub(super) async fn propose_here(
        &self,
        command: EncodedCommand,
        deadline: Instant,
    ) -> Proposed {
        if command.0.len() > MAX_ENTRY {
            return Proposed::Refused(ProposalRefused::TooLarge {
                bytes: command.0.len(),
                limit: MAX_ENTRY,
            });
        }
        if self.leader() != Some(self.id) {
            return Proposed::NotTaken {
                leader: self.leader(),
            };
        }
        if let Some(refused) = self.short_of_space(&command) {
            return Proposed::Refused(refused);
        }
        let Ok(_permit) = self.proposals.try_acquire() else {
            return Proposed::Refused(ProposalRefused::Overloaded {
                in_flight: MAX_PROPOSALS,
            });
        };
        if defect::is(Defect::AcknowledgeBeforeCommit) {
            return self.acknowledge_early(command);
        }
        let write = self.raft.client_write(command);
        match tokio::time::timeout_at(deadline.into(), write).await {
            Err(_) => Proposed::Perhaps("it was not committed in time".into()),
            Ok(Ok(written)) => match written.data.0 {
                Some(outcome) => Proposed::Done {
                    index: written.log_id.index,
                    outcome,
                },
                None => Proposed::Perhaps("the log entry held no command".into()),
            },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Proposed::NotTaken {
                    leader: forward.leader_id.map(NodeId),
                }
            }
            Ok(Err(error)) => Proposed::Perhaps(error.to_string()),
        }
    }

    /// What `Defect::AcknowledgeBeforeCommit` does: says what would come of the command, and does not wait for it.
    fn acknowledge_early(&self, command: EncodedCommand) -> Proposed {
        let applied = self.publication.state();
        let index = applied.log_id.map_or(0, |id| id.index);
        let Ok(decoded) = crate::wire::command::decode(&command.0) else {
            return Proposed::Perhaps("the command cannot be read".into());
        };
        let outcome = (*applied.state).clone().apply(index + 1, &decoded);
        let raft = self.raft.clone();
        self.tasks
            .spawn(async move { drop(raft.client_write(command).await) });
        Proposed::Done { index, outcome }
    }

    /// Why no quorum has room for the command, unless it makes some.
    fn short_of_space(&self, command: &EncodedCommand) -> Option<ProposalRefused> {
        let (node, low) = space::short_of_space(&self.voter_disks())?;
        let helps = crate::wire::command::decode(&command.0).is_ok_and(|c| space::helps(&c));
        (!helps).then_some(ProposalRefused::LowSpace {
            node,
            free_bytes: low.free_bytes,
            watermark: low.watermark,
        })
    }

    fn voter_disks(&self) -> Vec<VoterDisk> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters = metrics.membership_config.voter_ids().map(NodeId);
        let peers = lock(&self.peers);
        voters
            .map(|id| match id == self.id {
                true => VoterDisk {
                    id,
                    takes_part: true,
                    low: self.own_low_space(),
                },
                false => peers.disk_of(id),
            })
            .collect()
    }

    /// Whether this node's disk is short of space while another voter's is not.
    pub(super) fn others_have_more_room(&self) -> bool {
        let disks = self.voter_disks();
        self.own_low_space().is_some()
            && disks
                .iter()
                .any(|voter| voter.takes_part && voter.low.is_none())
    }

    fn own_low_space(&self) -> Option<LowSpace> {
        let health = self.health.borrow();
        let free_bytes = health.free_bytes?;
        health.low_space().then_some(LowSpace {
            free_bytes,
            watermark: health.watermark,
        })
    }

    /// The index that a linearizable read waits for, if this node leads.
    pub(super) async fn read_index_here(&self, deadline: Instant) -> ReadIndex {
        // openraft would log an error for each.
        if self.raft.metrics().borrow_watched().running_state.is_err() {
            return ReadIndex::NotLeading { leader: None };
        }
        let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        match tokio::time::timeout_at(deadline.into(), linearizer).await {
            Ok(Ok(linearizer)) => ReadIndex::Index(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                ReadIndex::NotLeading {
                    leader: forward.leader_id.map(NodeId),
                }
            }
            _ => ReadIndex::NotLeading { leader: None },
        }
    }

    /// Notes the time at which the leader of `term` offered its lease.
    pub(super) fn note_offer(&self, by: NodeId, term: u64) -> u64 {
        let offered = Offered {
            number: rand::random(),
            by,
            term,
            at: Instant::now(),
        };
        *lock(&self.offered) = Some(offered);
        offered.number
    }

    /// Takes what is left of the lease of the leader that this node follows. Whether it did.
    pub(super) fn take_grant(&self, by: NodeId, grant: GrantRequest) -> bool {
        let offered = lock(&self.offered).take();
        let Some(offered) = offered.filter(|offered| {
            (offered.number, offered.by, offered.term) == (grant.noted, by, grant.term)
        }) else {
            return false;
        };
        let metrics = self.metrics();
        if metrics.current_term != grant.term || metrics.current_leader != Some(by.0) {
            return false;
        }
        let Some(until) = offered.at.checked_add(grant.lasts) else {
            return false; // no lease is that long
        };
        {
            let mut peers = lock(&self.peers);
            peers.granted = Some(Instant::now());
        }
        // Where the old holder is must be known before the right to hold is.
        self.vip_peers.send_modify(|peers| {
            self.grants.fetch_add(1, Ordering::AcqRel);
            let before = grant.givers.into_iter();
            let before = before.filter(|id| *id != self.id && *id != by);
            peers.givers = [by].into_iter().chain(before).collect();
            peers.facts.insert(by, grant.facts);
            // Which of the two heard of a node later is not known: it counts as serving what either says.
            for (id, facts) in grant.others {
                if id != self.id && id != by {
                    let known = peers.facts.entry(id).or_insert_with(|| facts.clone());
                    known.serving.extend(facts.serving);
                }
            }
        });
        lock(&self.leases).take_grant(
            Grant {
                term: grant.term,
                until,
            },
            metrics.current_term,
        );
        self.observe(&metrics);
        tracing::info!(%by, term = grant.term, lasts = ?grant.lasts, "the lease of the VIPs was granted");
        true
    }

    /// Passes on what the members say of their VIPs.
    pub(super) fn publish_vip_peers(&self) {
        let grants = self.grants.load(Ordering::Acquire);
        let members = self.members().unwrap_or_default();
        let known = self.vip_peers.borrow().clone();
        let facts = self.vip_facts_of_peers(&known);
        let addresses = members
            .values()
            .flat_map(|peer| [peer.raft_address.ip(), peer.api_address.ip()])
            .collect();
        self.vip_peers.send_if_modified(|known| {
            // What was asked before a grant that came meanwhile does not take its place.
            if self.grants.load(Ordering::Acquire) != grants {
                return false;
            }
            let news = VipPeers {
                facts,
                addresses,
                givers: known.givers.clone(),
            };
            let differs = *known != news;
            *known = news;
            differs
        });
    }

    /// What those that answer say of their VIPs, or what is known of them where that is newer.
    fn vip_facts_of_peers(&self, known: &VipPeers) -> BTreeMap<NodeId, VipFacts> {
        // Who was removed is answered no more, and may still serve what comes through the VIPs that it gave away.
        if *self.removed.borrow() {
            return known.facts.clone();
        }
        let peers = lock(&self.peers);
        let fresh = peers.reports.iter().filter_map(|(id, heard)| {
            let facts = &heard.fresh_report()?.vips;
            // An answer from before the grant says nothing newer than the grant did.
            let is_old = (peers.granted).is_some_and(|at| heard.at.is_none_or(|h| h < at + ASKED));
            let kept = known.facts.get(id).filter(|_| is_old);
            Some((*id, kept.unwrap_or(facts).clone()))
        });
        fresh.collect()
    }

    /// What this node says of itself when it is to be given the VIPs; none: it is fit.
    pub(super) fn why_unfit(&self) -> Option<Unfit> {
        let is_recovering = *self.recovery.borrow() == Recovery::Recovering;
        match is_recovering || self.is_starting() {
            true => Some(Unfit::Starting),
            false => lock(&self.fitness)
                .takes_none(Instant::now())
                .map(Unfit::Because),
        }
    }

    /// Why this node is unfit to hold VIPs; none: it is fit, is starting, or nobody checks.
    pub(super) fn unfit(&self) -> Option<String> {
        lock(&self.fitness).unfit(Instant::now())
    }

    /// Its services are still to be started: it could hold nothing.
    pub(super) fn is_starting(&self) -> bool {
        lock(&self.fitness).is_starting()
    }

    /// Whether one of these nodes said lately that it is fit to hold VIPs.
    pub(super) fn is_any_fit(&self, ids: impl IntoIterator<Item = NodeId>) -> bool {
        let peers = lock(&self.peers);
        ids.into_iter().any(|id| peers.is_fit(id))
    }

    /// What this node says of itself.
    pub(super) fn report(&self) -> PeerReport {
        let metrics = self.metrics();
        let applied = self.publication.state();
        let index = applied.log_id.map_or(0, |id| id.index);
        let hash = applied.state.hash();
        lock(&self.peers).note_own(index, hash);
        let recovery = *self.recovery.borrow();
        PeerReport {
            id: self.id,
            term: metrics.current_term,
            // Of the same term: what is told of the leader may lag behind the term.
            leader: self
                .present_leader()
                .filter(|id| metrics.current_leader == Some(id.0)),
            state: self.state(&metrics, recovery),
            applied: index,
            revision: applied.state.snapshot().revision,
            state_hash: hash,
            stale: recovery == Recovery::Stale,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            feature_level: self.feature_level,
            problem: self.problem(&metrics, recovery),
            low_space: self.own_low_space(),
            vips: lock(&self.vip_facts).clone(),
            unfit: self.unfit(),
        }
    }

    fn state(&self, metrics: &Metrics, recovery: Recovery) -> NodeState {
        if self.health.borrow().failure.is_some() || metrics.running_state.is_err() {
            return NodeState::Failed;
        }
        match recovery {
            Recovery::Recovering => return NodeState::Starting,
            Recovery::Stopped(_) => return NodeState::Failed,
            Recovery::Current | Recovery::Stale => {}
        }
        match metrics.state {
            // Without a quorum it asks to be followed, and leads nobody.
            ServerState::Leader if self.present_leader().is_none() => NodeState::Candidate,
            ServerState::Leader => NodeState::Leader,
            // It has its state, and nobody is served from it yet.
            ServerState::Follower if self.is_starting() => NodeState::Starting,
            ServerState::Follower => NodeState::Follower,
            ServerState::Candidate => NodeState::Candidate,
            ServerState::Learner => NodeState::Learner,
            ServerState::Shutdown => NodeState::Failed,
        }
    }

    pub(super) fn problem(&self, metrics: &Metrics, recovery: Recovery) -> Option<String> {
        let health = self.health.borrow();
        if let Some(failure) = &health.failure {
            return Some(format!(
                "storage failed, the node left consensus and goes on serving: {failure}; make space or replace the disk, then restart the node"
            ));
        }
        if let Recovery::Stopped(reason) = recovery {
            return Some(reason.to_string());
        }
        if let Err(fatal) = &metrics.running_state {
            return Some(format!("consensus has ended: {fatal}; restart the node"));
        }
        if let Some(problem) = self.disk.problem() {
            return Some(problem);
        }
        health.low_space().then(|| {
            format!(
                "{} bytes free, below the watermark of {}: free some, or this node leaves consensus when the disk is full",
                health.free_bytes.unwrap_or(0),
                health.watermark
            )
        })
    }
}

impl Heard {
    /// An answer older than this says nothing about now.
    const FRESH: Duration = Duration::from_secs(3);

    /// What the peer said, if that was lately.
    pub fn fresh_report(&self) -> Option<&PeerReport> {
        let fresh = self.at.is_some_and(|at| at.elapsed() < Self::FRESH);
        self.report.as_ref().filter(|_| fresh)
    }
}

impl Peers {
    /// One that was not asked yet is taken to be well.
    fn disk_of(&self, id: NodeId) -> VoterDisk {
        let heard = self.reports.get(&id);
        let report = heard.and_then(Heard::fresh_report);
        VoterDisk {
            id,
            takes_part: match report {
                Some(report) => report.state != NodeState::Failed,
                None => heard.is_none_or(|heard| heard.at.is_none() && heard.problem.is_none()),
            },
            low: report.and_then(|report| report.low_space),
        }
    }

    /// Why a node is unfit to hold VIPs, by what it said lately.
    pub fn unfit(&self, id: NodeId) -> Option<Unfit> {
        let heard = self.reports.get(&id);
        heard.and_then(Heard::fresh_report)?.why_unfit()
    }

    /// What it said lately is not that it is unfit.
    pub fn is_fit(&self, id: NodeId) -> bool {
        let heard = self.reports.get(&id);
        heard
            .and_then(Heard::fresh_report)
            .is_some_and(|report| report.why_unfit().is_none())
    }

    /// State hashes of this node that are kept for comparing.
    const KEPT: usize = 64;

    pub fn note_own(&mut self, index: u64, hash: [u8; 16]) {
        if self
            .own_hashes
            .back()
            .is_some_and(|(last, _)| *last == index)
        {
            return;
        }
        self.own_hashes.push_back((index, hash));
        while self.own_hashes.len() > Self::KEPT {
            self.own_hashes.pop_front();
        }
    }

    /// Takes in a peer's answer and compares its state with ours where both looked at the same index.
    pub fn note_report(&mut self, report: PeerReport, now: Instant) {
        let (id, index, hash) = (report.id, report.applied, report.state_hash);
        let ours = self.own_hashes.iter().find(|(at, _)| *at == index);
        if let Some((_, ours)) = ours {
            if *ours == hash {
                self.diverged.remove(&id);
            } else if self.diverged.insert(id, index).is_none() {
                tracing::error!(node = %id, index, "the state of this node differs from ours at the same log index");
            }
        }
        self.damping.observe(id, report.unfit.is_none(), now);
        let heard = Heard {
            report: Some(report),
            at: Some(now),
            problem: None,
        };
        self.reports.insert(id, heard);
    }

    /// The last question brought no answer.
    pub fn note_silence(&mut self, id: NodeId, problem: String) {
        let heard = self.reports.entry(id).or_insert(Heard {
            report: None,
            at: None,
            problem: None,
        });
        heard.problem = Some(problem);
    }
}

/// A wait ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotInTime;

/// What openraft reports that matters for the lease.
pub(super) fn standing(metrics: &Metrics, storage_good: bool) -> Standing {
    let me = metrics.id;
    let configs = metrics.membership_config.get_joint_config();
    Standing {
        term: metrics.current_term,
        leader: metrics.current_leader.map(NodeId),
        leading: metrics.state == ServerState::Leader
            && metrics.current_leader == Some(me)
            && metrics.vote.is_committed()
            && metrics.vote.leader_id().term == metrics.current_term,
        applied_term: None,
        release: None,
        refusal: None,
        quorum_acked: metrics.last_quorum_acked.map(|at| instant(at.into_inner())),
        sole_voter: configs.len() == 1
            && configs
                .iter()
                .all(|voters| voters.len() == 1 && voters.contains(&me)),
        running: storage_good && metrics.running_state.is_ok(),
    }
}

/// An instant of openraft's runtime on the standard clock, rounded down. Both count the same monotonic clock, and openraft
/// gives out only differences; the standard reading of the anchor is taken first, so that nothing comes out later than it was.
fn instant(at: TokioInstant) -> Instant {
    static ANCHOR: LazyLock<(Instant, TokioInstant)> =
        LazyLock::new(|| (Instant::now(), <TokioInstant as openraft::Instant>::now()));
    let (standard, theirs) = *ANCHOR;
    match at >= theirs {
        true => standard + (at - theirs),
        false => standard.checked_sub(theirs - at).unwrap_or(standard),
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(id: u64, applied: u64, hash: u8) -> PeerReport {
        PeerReport {
            id: NodeId(id),
            term: 1,
            leader: None,
            state: NodeState::Follower,
            applied,
            revision: applied,
            state_hash: [hash; 16],
            stale: false,
            pid: 1,
            version: String::new(),
            feature_level: 1,
            problem: None,
            low_space: None,
            vips: VipFacts::default(),
            unfit: None,
        }
    }

    #[test]
    fn states_are_compared_only_at_the_same_index() {
        let now = Instant::now();
        let mut peers = Peers::default();
        peers.note_own(10, [1; 16]);
        peers.note_own(20, [2; 16]);
        peers.note_report(report(2, 10, 1), now);
        peers.note_report(report(3, 15, 9), now);
        assert!(peers.diverged.is_empty());
        peers.note_report(report(3, 20, 9), now);
        assert_eq!(peers.diverged, BTreeMap::from([(NodeId(3), 20)]));
        peers.note_report(report(3, 20, 2), now);
        assert!(peers.diverged.is_empty());
    }

    #[test]
    fn kept_hashes_are_bounded() {
        let mut peers = Peers::default();
        for index in 0..1000 {
            peers.note_own(index, [0; 16]);
        }
        assert_eq!(peers.own_hashes.len(), Peers::KEPT);
        assert_eq!(peers.own_hashes.back().map(|h| h.0), Some(999));
    }

    #[test]
    fn a_silent_peer_keeps_its_last_report() {
        let mut peers = Peers::default();
        peers.note_report(report(2, 10, 1), Instant::now());
        peers.note_silence(NodeId(2), "connection refused".into());
        let heard = &peers.reports[&NodeId(2)];
        assert!(heard.report.is_some() && heard.problem.is_some());
    }
}
