//! Changing the group: handing leadership over, adding, promoting and removing nodes.
//!
//! Every change is made by the leader; other nodes forward to it. All are idempotent, and what a leader leaves half done
//! the next one finishes (`supervise` follows the state's list of members). Leadership is never handed over bare: the
//! lease is given up first, and the hand-over waits until nobody relies on it any more.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use openraft::{
    ChangeMembers, ServerState,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};

use super::{
    Consensus,
    core::{Core, Metrics, lock},
    fitness::Unfit,
    leaderless::Leaderless,
    membership::{Group, MAX_VOTERS, Step},
    messages::{
        AdministerRequest, Administered, Change, ChangeRefused, GrantRequest, GroupChange, Offer,
        ProposalRefused, Proposed,
    },
    network::{CallError, Rpc, Target},
    propose::{ProposeError, wait_ms},
    succession::{Candidate, Heirs, Mover, Seen, Why, best, best_fit},
    types::{EncodedCommand, Peer},
};
use crate::{
    defect::{self, Defect},
    model::{node::NodeId, vip::VipFacts},
    state::{
        command::{Change as StateChange, Command, RequestId, UnixMillis},
        outcome::{Outcome, RefusalKind},
    },
    wire,
};

/// A node this many entries behind is still fit to lead: it gets them within the hand-over.
const FIT_LAG: u64 = 1000;

/// How long a refusal that may pass is held back, and how often it is looked at again.
const SECOND_LOOK: Duration = Duration::from_millis(1500);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long the answer of a successor is waited for.
const HEIR_LIMIT: Duration = Duration::from_millis(500);
/// How long a successor may take to have the hand-over on its disk.
const WRITTEN_WITHIN: Duration = Duration::from_secs(1);
/// An offer that is older is made again: a tenth of its age is taken off the grant.
const OFFER_LASTS: Duration = Duration::from_millis(300);
/// How long a hand-over may take once the lease is given up. The others elect somebody soon after if it fails.
const HAND_OVER: Duration = Duration::from_secs(5);
/// Silence of all others after which a leader waits for no successor. Well above what a busy machine causes.
const DESERTED: Duration = Duration::from_secs(3);

/// Writes that have waited for so long are worth an unfit leader.
const ANYBODY_AFTER: Duration = Duration::from_secs(30);

/// Who takes over, and has answered an offer.
#[derive(Clone, Copy, Debug)]
struct Heir {
    at: Target,
    term: u64,
    /// What it calls the time that it noted.
    noted: u64,
    /// When it had noted it for certain, by this node's clock.
    noted_by: Instant,
}

/// The group was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdministerError {
    #[error(transparent)]
    Refused(#[from] ChangeRefused),
    #[error(
        "no leader took the change in time: {why}; {next}",
        why = .0, next = .0.what_next("try again when a majority is up")
    )]
    NoLeader(Leaderless),
    /// The same command again is harmless and tells.
    #[error(
        "the change was begun and has not ended in time: {problem}; run the command again, or look at the status"
    )]
    Unfinished { problem: String },
    #[error("this node changes nothing: {problem}; use another node")]
    Ended { problem: String },
}

impl Consensus {
    /// Hands leadership to `to`, or to the voter that is best off. Returns the leader then.
    ///
    /// # Errors
    /// When that node is not fit to lead.
    pub async fn transfer(
        &self,
        to: Option<NodeId>,
        deadline: Instant,
    ) -> Result<NodeId, AdministerError> {
        let Some(to) = to else {
            let from = self.core.first_leader(deadline).await?;
            return self.take_from(from, false, deadline).await;
        };
        self.core
            .administer(GroupChange::Transfer { to }, deadline)
            .await?;
        let settled = |leader: Option<NodeId>| leader == Some(to);
        self.new_leader(settled, deadline).await
    }

    /// As `transfer` to whom is best off, but to nobody that says of itself that it is unfit to hold the VIPs, or is starting.
    ///
    /// # Errors
    /// When no other voter is fit, answers and has caught up, as far as the leader heard.
    pub async fn move_on(&self, deadline: Instant) -> Result<NodeId, AdministerError> {
        let from = self.core.first_leader(deadline).await?;
        self.take_from(from, true, deadline).await
    }

    /// Has another lead than this node: the voter that is best off, or who leads already.
    ///
    /// # Errors
    /// When there is no other voter that answers and has caught up.
    pub async fn step_down(&self, deadline: Instant) -> Result<NodeId, AdministerError> {
        self.take_from(self.core.id, false, deadline).await
    }

    async fn take_from(
        &self,
        from: NodeId,
        only_fit: bool,
        deadline: Instant,
    ) -> Result<NodeId, AdministerError> {
        self.core
            .administer(GroupChange::MoveOn { from, only_fit }, deadline)
            .await?;
        let settled = |leader: Option<NodeId>| leader.is_some_and(|leader| leader != from);
        self.new_leader(settled, deadline).await
    }

    async fn new_leader(
        &self,
        settled: impl Fn(Option<NodeId>) -> bool,
        deadline: Instant,
    ) -> Result<NodeId, AdministerError> {
        let leader = self.core.wait_leader(settled, deadline).await;
        leader.ok_or_else(|| {
            let attempt = "this node has not heard of the new leader";
            let why = self.core.leaderless(Leaderless::Attempt(attempt.into()));
            AdministerError::Unfinished {
                problem: why.to_string(),
            }
        })
    }

    /// Lets a node follow the log, without a vote. A node that the state names as a member is added without this.
    ///
    /// # Errors
    /// When the node is known under another address or was removed.
    pub async fn add_learner(
        &self,
        id: NodeId,
        peer: Peer,
        deadline: Instant,
    ) -> Result<Change, AdministerError> {
        self.core
            .administer(GroupChange::AddLearner { id, peer }, deadline)
            .await
    }

    /// Makes a learner a voter, without waiting until it has proven itself.
    ///
    /// # Errors
    /// When it is no member, silent, or there are enough voters.
    pub async fn promote(&self, id: NodeId, deadline: Instant) -> Result<Change, AdministerError> {
        self.core
            .administer(GroupChange::Promote { id }, deadline)
            .await
    }

    /// Removes a node for ever. A leader hands over first.
    ///
    /// # Errors
    /// When it never was a member, or the quorum would be lost.
    pub async fn remove(&self, id: NodeId, deadline: Instant) -> Result<Change, AdministerError> {
        self.core
            .administer(GroupChange::Remove { id }, deadline)
            .await
    }

    /// Removes this node for ever. One that was removed before, by whomever, has nothing left to do.
    ///
    /// # Errors
    /// As `remove`.
    pub async fn leave(&self, deadline: Instant) -> Result<Change, AdministerError> {
        match self.remove(self.core.id, deadline).await {
            Ok(change) => {
                self.core.removed.send_replace(true);
                Ok(change)
            }
            // Perhaps by this call, whose answer was lost.
            Err(_) if *self.core.removed.borrow() => Ok(Change::Unneeded),
            Err(error) => Err(error),
        }
    }
}

impl Core {
    /// The leader, or the next one while there is none.
    async fn first_leader(&self, deadline: Instant) -> Result<NodeId, AdministerError> {
        loop {
            if let Some(problem) = self.ended() {
                return Err(AdministerError::Ended { problem });
            }
            if let Some(leader) = self.present_leader() {
                return Ok(leader);
            }
            if !self.pause(deadline).await {
                let why = self.leaderless(Leaderless::Unknown);
                return Err(AdministerError::NoLeader(why));
            }
        }
    }

    /// Has the leader, wherever it is, make a change.
    pub(super) async fn administer(
        self: &Arc<Self>,
        change: GroupChange,
        deadline: Instant,
    ) -> Result<Change, AdministerError> {
        let mut attempt = Leaderless::Unknown;
        // Why a leader may have begun the change, though its answer did not come.
        let mut perhaps: Option<String> = None;
        let mut first_asked: Option<NodeId> = None;
        loop {
            if let Some(problem) = self.ended() {
                return Err(AdministerError::Ended { problem });
            }
            // One that has fallen silent is not asked: the change would wait for nothing, and its outcome be unknown.
            let leader = self.present_leader();
            first_asked = first_asked.or(leader);
            let answer = match leader {
                None => Administered::NotLeading { leader: None },
                Some(leader) if leader == self.id => {
                    self.administer_here(change.clone(), deadline).await
                }
                Some(leader) => {
                    let request = AdministerRequest {
                        change: change.clone(),
                        wait_ms: wait_ms(deadline),
                    };
                    let answer = self.ask(leader, Rpc::Administer, &request, deadline).await;
                    answer.unwrap_or_else(|error| {
                        match error {
                            CallError::NoAnswer { .. } => perhaps = Some(error.to_string()),
                            _ => attempt = Leaderless::Attempt(error.to_string()),
                        }
                        Administered::NotLeading { leader: None }
                    })
                }
            };
            match answer {
                Administered::Done(change) => return Ok(change),
                Administered::Refused(refused) => {
                    let moved = leader.filter(|_| leader != first_asked);
                    let refused = refused_by(&change, moved, refused);
                    return Err(refused_after(perhaps, refused));
                }
                Administered::Unfinished(problem) => {
                    return Err(AdministerError::Unfinished { problem });
                }
                Administered::NotLeading { .. } => {}
            }
            if !self.pause(deadline).await {
                return Err(match perhaps {
                    Some(problem) => AdministerError::Unfinished { problem },
                    None => AdministerError::NoLeader(self.leaderless(attempt)),
                });
            }
        }
    }

    /// Makes a change if this node leads. What is begun goes on to its end though whoever asked for it goes away: half of a
    /// hand-over leaves the VIPs with nobody. It ends with consensus on this node.
    pub(super) async fn administer_here(
        self: &Arc<Self>,
        change: GroupChange,
        deadline: Instant,
    ) -> Administered {
        let changing = Arc::clone(&self.changing).lock_owned();
        let Ok(one_at_a_time) = tokio::time::timeout_at(deadline.into(), changing).await else {
            return Administered::Refused(ChangeRefused::Busy);
        };
        let core = Arc::clone(self);
        let making = self.tasks.spawn(async move {
            let _one_at_a_time = one_at_a_time;
            tokio::select! {
                made = core.make(change, deadline) => made,
                () = core.stop.cancelled() => Administered::Unfinished("consensus ends on this node".into()),
            }
        });
        making
            .await
            .unwrap_or_else(|panic| Administered::Unfinished(panic.to_string()))
    }

    async fn make(&self, change: GroupChange, deadline: Instant) -> Administered {
        let result = match change {
            GroupChange::Transfer { to } => self.transfer_here(Heirs::Named(to), deadline).await,
            GroupChange::MoveOn { from, only_fit } => {
                self.move_on_here(from, only_fit, deadline).await
            }
            GroupChange::AddLearner { id, peer } => self.add_learner_here(id, peer, deadline).await,
            GroupChange::Promote { id } => self.promote_here(id, deadline).await,
            GroupChange::Remove { id } => self.remove_here(id, deadline).await,
        };
        match result {
            Ok(change) => Administered::Done(change),
            Err(NotDone::NotLeading) => Administered::NotLeading {
                leader: self.leader(),
            },
            Err(NotDone::Refused(refused)) => Administered::Refused(refused),
            Err(NotDone::Unfinished(problem)) => Administered::Unfinished(problem),
        }
    }

    /// Hands leadership to whoever is best off, when no other change of the group is under way.
    pub(super) async fn hand_over(&self, deadline: Instant) -> Result<Change, NotDone> {
        let changing = tokio::time::timeout_at(deadline.into(), self.changing.lock()).await;
        let Ok(_one_at_a_time) = changing else {
            return Err(ChangeRefused::Busy.into());
        };
        self.transfer_here(Heirs::Any, deadline).await
    }

    pub(super) fn leading(&self) -> Result<Metrics, NotDone> {
        let metrics = self.metrics();
        let leads =
            metrics.state == ServerState::Leader && metrics.current_leader == Some(self.id.0);
        leads.then_some(metrics).ok_or(NotDone::NotLeading)
    }

    /// Leadership is transferred in a term in which the lease was given up, and in no later one: the votes of a transfer pass the promise that a
    /// lease relies on.
    fn still_leading(&self, term: u64) -> Result<(), NotDone> {
        match self.leading()?.current_term == term {
            true => Ok(()),
            false => Err(NotDone::NotLeading),
        }
    }

    /// Gives leadership to another if `from` is this node: who asked may have been answered too late, or by nobody, and asks the
    /// next leader, from which it wants nothing.
    async fn move_on_here(
        &self,
        from: NodeId,
        only_fit: bool,
        deadline: Instant,
    ) -> Result<Change, NotDone> {
        self.leading()?;
        if from != self.id {
            return Ok(Change::Unneeded);
        }
        let heirs = match only_fit {
            true => Heirs::Fit,
            false => Heirs::Any,
        };
        self.transfer_here(heirs, deadline).await
    }

    /// For who has `changing`.
    pub(super) async fn transfer_here(
        &self,
        heirs: Heirs,
        deadline: Instant,
    ) -> Result<Change, NotDone> {
        if heirs.named() == Some(self.id) {
            self.leading()?;
            return Ok(Change::Unneeded);
        }
        let heir = self.vips_to_heir(heirs, deadline).await?;
        let (to, term) = (heir.at.id, heir.term);
        self.still_leading(term)?;
        tracing::info!(%to, term, "handing leadership over");
        let ended = |fatal: openraft::errors::Fatal<_>| NotDone::Unfinished(fatal.to_string());
        self.raft
            .trigger()
            .transfer_leader(to.0)
            .await
            .map_err(ended)?;
        let until = deadline.min(Instant::now() + HAND_OVER);
        let another = |leader: Option<NodeId>| leader.is_some_and(|l| l != self.id);
        let leads_again =
            |metrics: &Metrics| metrics.current_term > term && metrics.state == ServerState::Leader;
        let waiting = self.raft.wait(Some(HAND_OVER));
        let leader = tokio::select! {
            leader = self.wait_leader(another, until) => leader,
            // None took over, and the others elected this one once more.
            Ok(_) = waiting.metrics(leads_again, "this node leads again") => {
                let (leader, why) = (self.id, String::new());
                return Err(ChangeRefused::WentTo { to, leader, why }.into());
            }
            () = self.deserted() => {
                return Err(NotDone::Unfinished("no other node answers any more".into()));
            }
        };
        match leader {
            Some(leader) if leader == to || heirs.are_several() => Ok(Change::Made),
            Some(leader) => {
                let why = String::new();
                Err(ChangeRefused::WentTo { to, leader, why }.into())
            }
            None => Err(NotDone::Unfinished(format!(
                "node {to} has not taken over yet"
            ))),
        }
    }

    /// Lets another lead, as writes wait for the disk of this node: one that would be elected, and whose own disk answers. Nothing is
    /// given up before such a one is known. It cannot be written down who may have the VIPs, so they come back, and connections
    /// through them end, as after a failure.
    pub(super) async fn give_way(&self, deadline: Instant) -> Result<NodeId, NotDone> {
        let changing = tokio::time::timeout_at(deadline.into(), self.changing.lock()).await;
        let Ok(_one_at_a_time) = changing else {
            return Err(ChangeRefused::Busy.into());
        };
        let metrics = self.leading()?;
        let term = metrics.current_term;
        // Without VIPs nobody need be fit to hold them. In the end one that is not is no worse than this node, and can write.
        let has_vips = !self.publication.state().state.snapshot().vips.is_empty();
        let has_waited = self.disk.holds_up_for() >= Some(ANYBODY_AFTER);
        let only_fit = has_vips && !has_waited;
        let heirs = match only_fit {
            true => Heirs::Fit,
            false => Heirs::Any,
        };
        let to = self.successor(&metrics, &self.group(&metrics), heirs)?;
        let at = self.target_of(to).ok_or_else(|| self.no_member(to))?;
        let offer = Offer { term, only_fit };
        if let Err(error) = self.offer(at, offer, deadline).await {
            self.note_declined(to);
            let problem = error.to_string();
            return Err(match error {
                CallError::Refused { problem, .. } => ChangeRefused::Declined { id: to, problem },
                _ => ChangeRefused::NotOffered { id: to, problem },
            }
            .into());
        }
        // Meanwhile the disk may answer again.
        if !self.disk.holds_up_writes() {
            return Ok(self.id);
        }
        self.give_up_lease(term).await;
        self.still_leading(term)?;
        let ended = |fatal: openraft::errors::Fatal<_>| NotDone::Unfinished(fatal.to_string());
        let trigger = self.raft.trigger();
        trigger.transfer_leader(to.0).await.map_err(ended)?;
        let another = |leader: Option<NodeId>| leader.is_some_and(|l| l != self.id);
        let until = deadline.min(Instant::now() + HAND_OVER);
        self.wait_leader(another, until).await.ok_or_else(|| {
            NotDone::Unfinished("this node leads no more, and has not heard who does".into())
        })
    }

    /// Finds who takes over, and gives it the VIPs: another one, where several may have them, if its disk hangs.
    async fn vips_to_heir(&self, heirs: Heirs, deadline: Instant) -> Result<Heir, NotDone> {
        let until = deadline.min(Instant::now() + HAND_OVER);
        loop {
            let heir = tokio::select! {
                heir = self.find_heir(heirs, deadline) => heir?,
                () = self.deserted() => return Err(ChangeRefused::NoSuccessor.into()),
            };
            match self.hand_over_vips(heir, deadline).await {
                Ok(()) => return Ok(heir),
                Err(NotDone::Refused(ChangeRefused::NotWritten(_)))
                    if heirs.are_several() && Instant::now() < until => {}
                Err(problem) => return Err(problem),
            }
        }
    }

    /// Who takes over, and has answered: one that cannot be told where connections of this node are would end them. Nothing
    /// is given up before.
    async fn find_heir(&self, heirs: Heirs, deadline: Instant) -> Result<Heir, NotDone> {
        let until = deadline.min(Instant::now() + HAND_OVER);
        let patient_until = deadline.min(Instant::now() + SECOND_LOOK);
        let declined_until = match heirs {
            Heirs::Chosen(_) => Instant::now(),
            Heirs::Named(_) => patient_until,
            Heirs::Any | Heirs::Fit => until,
        };
        loop {
            let fit = |metrics: &Metrics, group: &Group| self.successor(metrics, group, heirs);
            let id = self.once_fit(deadline, fit).await?;
            self.wait_for_lease(deadline).await?;
            let term = self.leading()?.current_term;
            let at = self.target_of(id).ok_or_else(|| self.no_member(id))?;
            if defect::is(Defect::BareTransfer) {
                let (noted, noted_by) = (0, Instant::now());
                return Ok(Heir {
                    at,
                    term,
                    noted,
                    noted_by,
                });
            }
            let offer = Offer {
                term,
                only_fit: heirs != Heirs::Any,
            };
            let (offered, disk_answers) = tokio::join!(
                self.offer(at, offer, deadline),
                self.disk.answers_within(self.canvass_limit())
            );
            // What is handed over is an entry of the log, which this node has to write too.
            let hangs = self.disk.silent_for().is_some();
            let own_disk_until = match heirs {
                // A node that stops would leave the VIPs without a hand-over.
                Heirs::Any => until,
                _ => patient_until,
            };
            if hangs || (!disk_answers && Instant::now() >= own_disk_until) {
                return Err(self.own_disk_hangs().into());
            }
            match offered {
                Ok(_) if !disk_answers => {}
                Ok(heir) => {
                    lock(&self.peers).declined.remove(&id);
                    return Ok(heir);
                }
                Err(CallError::Refused { problem, .. }) => {
                    tracing::debug!(%id, problem, "leadership was declined");
                    self.note_declined(id);
                    if Instant::now() >= declined_until {
                        return Err(ChangeRefused::Declined { id, problem }.into());
                    }
                }
                Err(error) if Instant::now() >= until => {
                    self.note_declined(id);
                    let problem = error.to_string();
                    return Err(ChangeRefused::NotOffered { id, problem }.into());
                }
                Err(error) => {
                    tracing::debug!(%error, "the offer is made again");
                    if heirs.are_several() {
                        self.note_declined(id); // others come before it for a while
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What was begun and has not ended, with the disk of this node as the reason if that has not answered for long.
    fn or_own_disk(&self, error: NotDone) -> NotDone {
        const LONG: Duration = Duration::from_secs(1);
        let silent = self.disk.busy_for();
        match error {
            NotDone::Unfinished(problem) if silent >= LONG => {
                let (id, seconds) = (self.id, silent.as_secs());
                NotDone::Unfinished(format!(
                    "{problem}, as the disk of node {id}, which leads, has not answered for {seconds} s"
                ))
            }
            error => error,
        }
    }

    fn own_disk_hangs(&self) -> ChangeRefused {
        let silent = self.disk.busy_for().as_millis();
        ChangeRefused::OwnDisk {
            id: self.id,
            silent_ms: u64::try_from(silent).unwrap_or(u64::MAX),
        }
    }

    async fn offer(&self, at: Target, offer: Offer, deadline: Instant) -> Result<Heir, CallError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = left.min(self.canvass_limit() + HEIR_LIMIT / 2);
        let noted = self.call_heir(at, Rpc::Offer, &offer, limit).await?;
        Ok(Heir {
            at,
            term: offer.term,
            noted,
            noted_by: Instant::now(),
        })
    }

    /// Gives the VIPs to the heir, ahead of leadership: commits that it may take them, lets them go, and grants it what is
    /// left of this node's lease. From then on this node holds nothing any more in this term.
    async fn hand_over_vips(&self, heir: Heir, deadline: Instant) -> Result<(), NotDone> {
        let (to, term) = (heir.at.id, heir.term);
        if defect::is(Defect::BareTransfer) {
            return Ok(());
        }
        let deadline = deadline.min(Instant::now() + HAND_OVER);
        let release = StateChange::ReleaseVips { to, term };
        let committed = tokio::select! {
            committed = self.commit_change(release, deadline) => committed.map_err(|error| self.or_own_disk(error))?,
            () = self.deserted() => {
                return Err(NotDone::Unfinished("no other node answers any more".into()));
            }
        };
        let (index, outcome) = committed;
        if let Outcome::Refused(refusal) = outcome {
            return Err(NotDone::Unfinished(refusal.to_string()));
        }
        self.wait_applied(index, deadline)
            .await
            .map_err(|_| NotDone::Unfinished("the release was not applied in time".into()))?;
        self.wait_written(to, index, deadline).await?;
        let heir = match heir.noted_by.elapsed() < OFFER_LASTS {
            true => heir,
            false => {
                // It was fit a moment ago, and has the release on its disk.
                let offer = Offer {
                    term,
                    only_fit: false,
                };
                let offered = self.offer(heir.at, offer, deadline).await;
                offered.map_err(|error| ChangeRefused::NotOffered {
                    id: to,
                    problem: error.to_string(),
                })?
            }
        };
        // The heir noted the time before the lease is looked at here: it cannot take the grant for longer than it is.
        let lapses = self.give_up_lease(term).await;
        if let Some(left) = lapses.and_then(|at| at.checked_duration_since(heir.noted_by)) {
            let known = self.vip_peers.borrow().clone();
            let grant = GrantRequest {
                term,
                noted: heir.noted,
                // For clocks that run at different rates.
                lasts: left * 9 / 10,
                facts: VipFacts {
                    // What of these carries nothing is no longer said to be served with the next report.
                    serving: self.served_vips(),
                    ..lock(&self.vip_facts).clone()
                },
                others: known.facts,
                givers: known.givers,
            };
            let granted = self.call_heir(heir.at, Rpc::Grant, &grant, HEIR_LIMIT);
            match granted.await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::info!(%to, "the grant was not taken: the VIPs move with leadership");
                }
                Err(error) => {
                    tracing::warn!(%error, "the VIPs move with leadership: connections may be lost");
                }
            }
        }
        Ok(())
    }

    /// Waits until `heir` has the entry at `index` on its disk: one whose disk hangs cannot be elected.
    async fn wait_written(
        &self,
        heir: NodeId,
        index: u64,
        deadline: Instant,
    ) -> Result<(), NotDone> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let has_it = |metrics: &Metrics| matched(metrics, heir).is_some_and(|at| at >= index);
        let settled = |metrics: &Metrics| has_it(metrics) || metrics.state != ServerState::Leader;
        let waited = self.raft.wait(Some(limit.min(WRITTEN_WITHIN)));
        let written = waited.metrics(settled, "the heir has the release").await;
        self.leading()?;
        if written.is_ok_and(|metrics| has_it(&metrics)) {
            return Ok(());
        }
        self.note_declined(heir);
        Err(ChangeRefused::NotWritten(heir).into())
    }

    fn note_declined(&self, heir: NodeId) {
        lock(&self.peers).declined.insert(heir, Instant::now());
    }

    /// A leader that may hold nothing yet gives nothing away either: what an earlier leader granted may last.
    async fn wait_for_lease(&self, deadline: Instant) -> Result<(), NotDone> {
        let patience = self.timing().election_timeout_max * 3 + SECOND_LOOK;
        let until = deadline.min(Instant::now() + patience);
        loop {
            let standing = self.standing(&self.leading()?);
            let now = Instant::now();
            let lease = lock(&self.leases).lease(&standing, now);
            if lease.is_some_and(|until| now < until)
                || lock(&self.leases).has_abdicated(standing.term)
            {
                return Ok(());
            }
            if now >= until {
                return Err(ChangeRefused::NoLease(self.id).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn served_vips(&self) -> BTreeSet<IpAddr> {
        let state = self.publication.state().state;
        state.snapshot().vips.keys().copied().collect()
    }

    async fn call_heir<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        to: Target,
        rpc: Rpc,
        request: &Q,
        limit: Duration,
    ) -> Result<A, CallError> {
        const AGAIN_AFTER: Duration = Duration::from_millis(20);
        let began = Instant::now();
        loop {
            let left = limit.saturating_sub(began.elapsed());
            match self.links.call(to, rpc, request, left).await {
                // A connection that was lost is only noticed by who uses it next.
                Err(CallError::Unreached { .. }) if AGAIN_AFTER < left => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                answered => return answered,
            }
        }
    }

    /// Ends when this node leads and has heard from none of the others for a while: all of them are stopping too, perhaps.
    async fn deserted(&self) {
        loop {
            tokio::time::sleep(self.timing().heartbeat).await;
            let metrics = self.metrics();
            let others = metrics
                .heartbeat
                .iter()
                .flatten()
                .map(|(id, _)| NodeId(*id));
            let silent = |id| self.silence(&metrics, id).is_none_or(|s| s > DESERTED);
            if metrics.state == ServerState::Leader
                && others.filter(|id| *id != self.id).all(silent)
            {
                return;
            }
        }
    }

    /// Ends this node's lease in `term` for good, and waits until nothing relies on it: until the VIPs are reported
    /// released, or the last lease given out has lapsed. Returns the end of that lease.
    async fn give_up_lease(&self, term: u64) -> Option<Instant> {
        let lapses = lock(&self.leases).abdicate(term);
        self.observe(&self.metrics());
        let at = lapses?;
        let mut released = self.released.subscribe();
        tokio::select! {
            _ = released.wait_for(|released| *released >= term) => {}
            () = tokio::time::sleep_until(at.into()) => {}
        }
        Some(at)
    }

    /// The end of everything: no lease, no leader.
    pub(super) fn end_leadership(&self) {
        let metrics = self.metrics();
        lock(&self.leases).abdicate(metrics.current_term);
        self.leadership.send_modify(|leadership| {
            leadership.leader = None;
            leadership.lease_until = None;
        });
        self.leader.send_replace(None);
    }

    /// Judges the group by `check`, again for a moment while what it finds may pass.
    async fn once_fit<T>(
        &self,
        deadline: Instant,
        check: impl Fn(&Metrics, &Group) -> Result<T, ChangeRefused>,
    ) -> Result<T, NotDone> {
        let until = deadline.min(Instant::now() + SECOND_LOOK);
        loop {
            let metrics = self.leading()?;
            match check(&metrics, &self.group(&metrics)) {
                Ok(found) => return Ok(found),
                Err(refused) if refused.may_pass() && Instant::now() < until => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(refused) => return Err(refused.into()),
            }
        }
    }

    fn check_successor(
        &self,
        metrics: &Metrics,
        group: &Group,
        id: NodeId,
    ) -> Result<(), ChangeRefused> {
        if group.learners.contains(&id) {
            return Err(ChangeRefused::Learner(id));
        }
        if !group.voters.contains(&id) {
            return Err(self.no_member(id));
        }
        // Before its silence: what it says of itself may be the reason, such as a disk that hangs.
        match lock(&self.peers).unfit(id) {
            None => {}
            Some(Unfit::Starting) => return Err(ChangeRefused::Starting(id)),
            Some(Unfit::Because(problem)) => return Err(ChangeRefused::Unfit { id, problem }),
        }
        if !group.alive.contains(&id) {
            return Err(ChangeRefused::Silent(id));
        }
        match lag_of(metrics, id) {
            Some(lag) if lag <= FIT_LAG => Ok(()),
            lag => Err(ChangeRefused::Behind {
                id,
                lag: lag.or(metrics.last_log_index).unwrap_or(0),
            }),
        }
    }

    /// Who of `heirs` gets leadership: see `succession`.
    fn successor(
        &self,
        metrics: &Metrics,
        group: &Group,
        heirs: Heirs,
    ) -> Result<NodeId, ChangeRefused> {
        if let Some(id) = heirs.named() {
            return self.check_successor(metrics, group, id).map(|()| id);
        }
        let candidates = self.candidates(metrics, group);
        if candidates.is_empty() {
            return Err(ChangeRefused::OnlyVoter(self.id));
        }
        match heirs {
            Heirs::Fit => best_fit(&candidates).ok_or_else(|| self.no_heir(&candidates)),
            _ => best(&candidates).ok_or(ChangeRefused::NoSuccessor),
        }
    }

    /// Why none of the candidates is given the VIPs. That all say that they are unfit does not pass in a moment.
    fn no_heir(&self, candidates: &[Candidate]) -> ChangeRefused {
        let peers = lock(&self.peers);
        let (mut problems, mut may_pass) = (vec![], false);
        for Candidate { id, .. } in candidates {
            let unfit = peers.unfit(*id);
            may_pass |= !matches!(unfit, Some(Unfit::Because(_)));
            problems.push(match unfit {
                Some(unfit) => format!("node {id}: {unfit}"),
                None => format!("node {id}: it does not answer, or has not caught up"),
            });
        }
        let problems = problems.join("; ");
        match may_pass {
            true => ChangeRefused::NoneReady { problems },
            false => ChangeRefused::NobodyFit { problems },
        }
    }

    /// The other voters, as this leader sees them.
    pub(super) fn candidates(&self, metrics: &Metrics, group: &Group) -> Vec<Candidate> {
        // One that missed several heartbeats may have died just now.
        let slack = (4 * self.timing().heartbeat).as_millis().max(1);
        let now = Instant::now();
        let peers = lock(&self.peers);
        let others = group.voters.iter().filter(|id| **id != self.id);
        let candidate = |id: &NodeId| {
            let lag = lag_of(metrics, *id).filter(|lag| *lag <= FIT_LAG);
            let silence = self.silence(metrics, *id).map(|s| s.as_millis() / slack);
            Candidate {
                id: *id,
                ready: group.alive.contains(id) && lag.is_some() && silence.is_some(),
                declined: peers.declined_for(*id, now),
                fit: peers.is_fit(*id),
                damped: peers.damping.is_damped(*id, now),
                missed: silence.map_or(u64::MAX, |s| u64::try_from(s).unwrap_or(u64::MAX)),
                lag: lag.unwrap_or(u64::MAX),
            }
        };
        others.map(candidate).collect()
    }

    /// Whether writes wait for the disk of this leader, and it has not given leadership up yet.
    pub(super) fn is_to_give_way(&self, term: u64) -> bool {
        self.disk.holds_up_writes() && !lock(&self.leases).has_abdicated(term)
    }

    /// To whom this leader is to give leadership of its own accord, and why.
    pub(super) fn hand_over_due(
        &self,
        mover: &mut Mover,
        metrics: &Metrics,
        group: &Group,
        now: Instant,
    ) -> Option<(NodeId, Why)> {
        // It could not write what it hands over.
        if self.disk.silent_for().is_some() {
            return None;
        }
        let state = self.publication.state().state;
        let has_vips = !state.snapshot().vips.is_empty();
        let seen = Seen {
            me: self.id,
            fit: !has_vips || self.unfit().is_none(),
            leased: self.leadership.borrow().holds(now),
            preference: state.preference(),
            candidates: &self.candidates(metrics, group),
        };
        mover.decide(&seen, now)
    }

    fn no_member(&self, id: NodeId) -> ChangeRefused {
        match self.is_retired(id) {
            true => ChangeRefused::Retired(id),
            false => ChangeRefused::NotMember(id),
        }
    }

    async fn add_learner_here(
        &self,
        id: NodeId,
        peer: Peer,
        deadline: Instant,
    ) -> Result<Change, NotDone> {
        let metrics = self.leading()?;
        if let Some(known) = metrics.membership_config.get_node(&id.0) {
            return match *known == peer {
                true => Ok(Change::Unneeded),
                false => Err(ChangeRefused::OtherAddress { id }.into()),
            };
        }
        if self.is_retired(id) {
            return Err(ChangeRefused::Retired(id).into());
        }
        let add = ChangeMembers::AddNodes([(id.0, peer)].into());
        self.change_group(add, deadline).await
    }

    async fn promote_here(&self, id: NodeId, deadline: Instant) -> Result<Change, NotDone> {
        let needed = self
            .once_fit(deadline, |metrics, group| {
                self.check_promotion(metrics, group, id)
            })
            .await?;
        match needed {
            Change::Unneeded => Ok(Change::Unneeded),
            Change::Made => {
                self.change_group(ChangeMembers::AddVoterIds([id.0].into()), deadline)
                    .await
            }
        }
    }

    fn check_promotion(
        &self,
        metrics: &Metrics,
        group: &Group,
        id: NodeId,
    ) -> Result<Change, ChangeRefused> {
        if group.voters.contains(&id) {
            return Ok(Change::Unneeded);
        }
        if !group.learners.contains(&id) {
            return Err(self.no_member(id));
        }
        if group.voters.len() >= MAX_VOTERS {
            return Err(ChangeRefused::EnoughVoters(group.voters.len()));
        }
        if !group.alive.contains(&id) {
            return Err(ChangeRefused::Silent(id));
        }
        match has_begun(metrics, id) {
            true => Ok(Change::Made),
            false => Err(ChangeRefused::Behind {
                id,
                lag: metrics.last_log_index.unwrap_or(0),
            }),
        }
    }

    async fn remove_here(&self, id: NodeId, deadline: Instant) -> Result<Change, NotDone> {
        let metrics = self.leading()?;
        let group = self.group(&metrics);
        let in_state = group.members.as_ref().is_some_and(|m| m.contains_key(&id));
        if !group.contains(id) && !in_state {
            return match self.is_retired(id) {
                true => Ok(Change::Unneeded),
                false => Err(ChangeRefused::NotMember(id).into()),
            };
        }
        self.once_fit(deadline, |_, group| Ok(group.check_removal(id)?))
            .await?;
        if id == self.id {
            self.transfer_here(Heirs::Any, deadline).await?;
            // The next leader removes this node; whoever asked asks it.
            return Err(NotDone::NotLeading);
        }
        self.retire(id, deadline).await?;
        if group.contains(id) {
            self.change_group(removal(&group, id), deadline).await?;
        }
        Ok(Change::Made)
    }

    /// Ends a member in the state, so that its id is never used again and its removal is finished whoever leads.
    async fn retire(&self, id: NodeId, deadline: Instant) -> Result<(), NotDone> {
        let change = StateChange::RetireMember { id };
        match self.commit_change(change, deadline).await? {
            (_, Outcome::Refused(refusal)) if refusal.kind != RefusalKind::NotFound => {
                Err(NotDone::Unfinished(refusal.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Commits a change of this node's own as the leader. Returns its log index and what came of it.
    pub(super) async fn commit_change(
        &self,
        change: StateChange,
        deadline: Instant,
    ) -> Result<(u64, Outcome), NotDone> {
        let command = Command {
            request: RequestId(rand::random()),
            born: self.publication.state().state.snapshot().revision,
            proposed_at: UnixMillis(unix_millis()),
            author: format!("node-{}", self.id),
            preconditions: Vec::new(),
            changes: vec![change],
        };
        let encoded = EncodedCommand(wire::command::encode(&command));
        match self.propose_here(encoded, deadline).await {
            Proposed::Done { index, outcome } => Ok((index, outcome)),
            Proposed::NotTaken { .. } => Err(NotDone::NotLeading),
            Proposed::Refused(refused) => Err(NotDone::Unfinished(refused.to_string())),
            Proposed::Perhaps(problem) => Err(NotDone::Unfinished(problem)),
        }
    }

    /// Changes openraft's membership, waiting for one that is under way to end.
    async fn change_group(
        &self,
        change: ChangeMembers<u64, Peer>,
        deadline: Instant,
    ) -> Result<Change, NotDone> {
        loop {
            let changing = self.raft.change_membership(change.clone(), false);
            let result = tokio::time::timeout_at(deadline.into(), changing).await;
            let error = match result {
                Err(_) => return Err(NotDone::Unfinished("it was not committed in time".into())),
                Ok(Ok(_)) => return Ok(Change::Made),
                Ok(Err(error)) => error,
            };
            match error {
                // openraft takes changes only while a quorum has answered a moment ago: on a busy machine that may take a while.
                RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => {
                    let term = self.leading()?.current_term;
                    if lock(&self.leases).has_abdicated(term) || !self.pause(deadline).await {
                        return Err(NotDone::NotLeading);
                    }
                }
                RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_)
                    | ChangeMembershipError::UncommittedLeaderLog(_),
                )) => {
                    if !self.pause(deadline).await {
                        return Err(NotDone::Unfinished(
                            "another change of the group is under way".into(),
                        ));
                    }
                }
                error => return Err(NotDone::Unfinished(error.to_string())),
            }
        }
    }

    /// Takes one step towards the state's list of members.
    pub(super) async fn take_step(
        &self,
        step: Step,
        group: &Group,
        deadline: Instant,
    ) -> Result<Change, NotDone> {
        let changing = tokio::time::timeout_at(deadline.into(), self.changing.lock()).await;
        let Ok(_one_at_a_time) = changing else {
            return Err(ChangeRefused::Busy.into());
        };
        self.leading()?;
        tracing::info!(%step, "changing the group");
        match step {
            // An empty change turns a half-done one into its end.
            Step::Finish => {
                self.change_group(ChangeMembers::AddVoterIds(BTreeSet::new()), deadline)
                    .await
            }
            Step::StepAside => self.transfer_here(Heirs::Any, deadline).await,
            Step::Remove(id) => {
                group.check_removal(id).map_err(ChangeRefused::from)?;
                self.change_group(removal(group, id), deadline).await
            }
            Step::AddLearner(id, peer) => self.add_learner_here(id, peer, deadline).await,
            Step::Promote(id) => self.promote_here(id, deadline).await,
        }
    }

    /// The group as openraft and the state report it.
    pub(super) fn group(&self, metrics: &Metrics) -> Group {
        let membership = metrics.membership_config.membership();
        let configs = membership.get_joint_config();
        let voters: BTreeSet<NodeId> = configs
            .last()
            .into_iter()
            .flatten()
            .copied()
            .map(NodeId)
            .collect();
        let nodes = membership.nodes().map(|(id, _)| NodeId(*id));
        Group {
            learners: nodes.filter(|id| !voters.contains(id)).collect(),
            voters,
            joint: configs.len() > 1,
            members: self.members(),
            alive: self.alive(metrics),
            ready_since: Default::default(),
        }
    }

    /// Waits until the leader this node follows satisfies `settled`.
    pub(super) async fn wait_leader(
        &self,
        settled: impl Fn(Option<NodeId>) -> bool,
        deadline: Instant,
    ) -> Option<NodeId> {
        let mut leaders = self.leader.subscribe();
        let wait = leaders.wait_for(|leader| settled(*leader));
        let leader = tokio::time::timeout_at(deadline.into(), wait).await;
        *leader.ok()?.ok()?
    }
}

/// A refusal, where an `earlier` attempt may have begun the change: that may be under way still.
fn refused_after(earlier: Option<String>, refused: ChangeRefused) -> AdministerError {
    match earlier {
        Some(earlier) => AdministerError::Unfinished {
            problem: format!("{earlier}; asked again: {refused}"),
        },
        None => refused.into(),
    }
}

/// A refusal that a leader gave. `moved`: it is another one than was asked first, so that what was asked for may have moved leadership
/// to it, and the refusal alone would not say so.
fn refused_by(
    change: &GroupChange,
    moved: Option<NodeId>,
    refused: ChangeRefused,
) -> ChangeRefused {
    match (change, moved) {
        (GroupChange::Transfer { to }, Some(leader)) => ChangeRefused::WentTo {
            to: *to,
            leader,
            why: format!(": {refused}"),
        },
        _ => refused,
    }
}

/// How openraft is told to let a node go.
fn removal(group: &Group, id: NodeId) -> ChangeMembers<u64, Peer> {
    match group.voters.contains(&id) {
        true => ChangeMembers::RemoveVoters([id.0].into()),
        false => ChangeMembers::RemoveNodes([id.0].into()),
    }
}

/// Whether a follower has acknowledged anything to this leader. Who has not may have an empty log: as a voter it would have to take
/// that for a log that was lost, and leave for good.
pub(super) fn has_begun(metrics: &Metrics, id: NodeId) -> bool {
    let followers = metrics.replication.iter().flatten();
    let mut followers = followers.filter(|(node, _)| **node == id.0);
    followers.any(|(_, matched)| matched.is_some())
}

/// Entries a follower is behind; none while it is not known.
pub(super) fn lag_of(metrics: &Metrics, id: NodeId) -> Option<u64> {
    if id.0 == metrics.id {
        return Some(0);
    }
    let matched = matched(metrics, id)?;
    Some(metrics.last_log_index?.saturating_sub(matched))
}

/// The last entry that a follower has on its disk, as far as this leader heard.
fn matched(metrics: &Metrics, id: NodeId) -> Option<u64> {
    let matched = metrics.replication.as_ref()?.get(&id.0)?;
    Some(matched.as_ref().map_or(0, |id| id.index))
}

fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.ok()
        .and_then(|now| u64::try_from(now.as_millis()).ok())
        .unwrap_or(0)
}

/// Why a change was not made by this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    #[error("this node does not lead")]
    NotLeading,
    #[error(transparent)]
    Refused(#[from] ChangeRefused),
    #[error("it has not ended in time: {0}")]
    Unfinished(String),
}

impl From<ProposalRefused> for AdministerError {
    fn from(refused: ProposalRefused) -> Self {
        Self::Unfinished {
            problem: refused.to_string(),
        }
    }
}

impl From<ProposeError> for AdministerError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NoLeader(why) => Self::NoLeader(why),
            ProposeError::Unknown { problem } => Self::Unfinished { problem },
            ProposeError::Refused(refused) => refused.into(),
            ProposeError::Ended { problem } => Self::Ended { problem },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_nothing_for_certain_of_an_earlier_attempt() {
        let refused = || refused_after(None, ChangeRefused::Busy);
        assert_eq!(refused(), AdministerError::Refused(ChangeRefused::Busy));
        let after = refused_after(Some("node 1 gave no answer".into()), ChangeRefused::Busy);
        let AdministerError::Unfinished { problem } = after else {
            panic!("{after:?}");
        };
        assert!(problem.starts_with("node 1 gave no answer; asked again: "));
    }

    #[test]
    fn a_refusal_of_the_next_leader_says_that_leadership_has_moved() {
        let (to, next) = (NodeId(2), Some(NodeId(3)));
        let silent = ChangeRefused::Silent(to);
        let transfer = GroupChange::Transfer { to };
        assert_eq!(refused_by(&transfer, None, silent.clone()), silent);
        let told = refused_by(&transfer, next, silent.clone()).to_string();
        for part in ["went to node 3, not to node 2", "has not answered lately"] {
            assert!(told.contains(part), "{told}");
        }
        // It wants nothing of the next leader that the first would have done.
        let removal = GroupChange::Remove { id: to };
        assert_eq!(refused_by(&removal, next, silent.clone()), silent);
    }
}
