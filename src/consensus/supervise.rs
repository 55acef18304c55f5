//! The tasks of consensus on this node: leadership signal, recovery, asking peers how they are, keeping the group as the
//! state wants it, snapshots. All end with the stop token and are waited for by `Consensus::shutdown`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use futures::stream::{FuturesUnordered, StreamExt};
use openraft::{ServerState, async_runtime::watch::WatchReceiver, errors::Fatal};
use tokio::sync::watch;

use super::{
    administer::{NotDone, has_begun, lag_of},
    core::{Core, Heard, Metrics, lock},
    disk,
    election::{self, Attempts, Seen},
    features,
    heard_file::{HeardFile, WRITE_EVERY, absence},
    membership::{Group, Readiness},
    messages::PeerReport,
    network::{CallError, Rpc, Target},
    recovery::{Evidence, LastHeard, Recovery, Reminder, StopReason, judge},
    succession::{Heirs, Mover, Why},
    types::Vote,
};
use crate::{
    model::node::NodeId,
    state::{command::Change as StateChange, outcome::Outcome},
};

/// How often peers are asked how they are.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A peer that has not answered by then is called silent.
const ASK_LIMIT: Duration = Duration::from_millis(800);
/// How long a hand-over waits for what its target says of itself.
const ASK_AGAIN_LIMIT: Duration = Duration::from_millis(250);
/// How often the leader looks whether the group is as the state wants it.
const STEP_EVERY: Duration = Duration::from_millis(200);
/// How often a leader that is short of space tries to hand over.
const MAKE_WAY_EVERY: Duration = Duration::from_secs(60);
/// Between two tries to let another lead, as writes wait for the leader's disk.
const GIVE_WAY_EVERY: Duration = Duration::from_secs(2);
/// One change of the group, from its proposal to its commit.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// A learner this close to the leader counts as caught up.
const CAUGHT_UP_LAG: u64 = 500;
/// How often it is looked whether a leader was heard, to keep the moment.
const LOOK_FOR_LEADER: Duration = Duration::from_secs(1);
/// How far apart recovery is judged at least.
const JUDGE_APART: Duration = Duration::from_millis(10);
/// Shortest time between two extensions of the lease: under load every entry's acknowledgement is one.
const LEASES_APART: Duration = Duration::from_millis(10);
/// How often recovery is judged when nothing happens.
const JUDGE_EVERY: Duration = Duration::from_millis(200);

/// Starts all tasks.
pub(super) fn start(
    core: &Arc<Core>,
    snapshot_due: watch::Receiver<u64>,
    purgeable: watch::Receiver<Option<u64>>,
    heard: HeardFile,
) {
    let before = heard.read();
    spawn(core, |core| async move { watch_leadership(&core).await });
    spawn(core, |core| async move { send_heartbeats(&core).await });
    spawn(core, |core| async move { campaign(&core).await });
    spawn(core, |core| async move { follow_profile(&core).await });
    spawn(core, |core| async move { recover(&core, before).await });
    spawn(core, |core| async move { note_heard(&core, heard).await });
    spawn(core, |core| async move { ask_peers(&core).await });
    spawn(core, |core| async move { watch_disk(&core).await });
    spawn(core, |core| async move { keep_group(&core).await });
    spawn(core, |core| async move {
        take_snapshots(&core, snapshot_due).await
    });
    spawn(
        core,
        |core| async move { purge_log(&core, purgeable).await },
    );
}

fn spawn<F, Fut>(core: &Arc<Core>, task: F)
where
    F: FnOnce(Arc<Core>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let stop = core.stop.clone();
    let task = task(Arc::clone(core));
    // Each task only reads and sends latest values, or makes calls that may be cut short at any point.
    core.tasks.spawn(async move {
        tokio::select! {
            () = task => {}
            () = stop.cancelled() => {}
        }
    });
}

/// Passes what openraft reports on as leadership and lease: a change of the leader at once, acknowledgements that extend
/// the lease `LEASES_APART`.
async fn watch_leadership(core: &Core) {
    let mut metrics = core.raft.metrics();
    let mut leader = core.raft.server_metrics();
    let mut health = core.health.clone();
    loop {
        leader.borrow_and_update();
        let now = metrics.borrow_and_update().clone();
        core.observe(&now);
        core.links
            .set_voters(now.membership_config.voter_ids().map(NodeId).collect());
        let news = async {
            // A sole voter's lease has no acknowledgements to run from: it is renewed by the clock.
            let clock = tokio::time::sleep(core.timing().heartbeat);
            let acknowledged = async {
                tokio::time::sleep(LEASES_APART).await;
                metrics.changed().await
            };
            // What a dropped branch saw is looked at next.
            tokio::select! {
                changed = leader.changed() => changed.is_ok(),
                changed = acknowledged => changed.is_ok(),
                changed = health.changed() => changed.is_ok(),
                () = clock => true,
            }
        };
        if !news.await {
            core.observe(&core.metrics());
            return;
        }
    }
}

/// By how many ranks a node that is unfit to hold VIPs, or is starting, lets others go first, if one of them said lately that it is fit: enough for
/// each of them to ask twice. When nobody is, it leads all the same.
fn waits_for_the_fit(core: &Core, metrics: &Metrics, leader: Option<NodeId>) -> u32 {
    let voters: BTreeSet<NodeId> = metrics.membership_config.voter_ids().map(NodeId).collect();
    let count = u32::try_from(voters.len()).unwrap_or(u32::MAX);
    let others = voters.into_iter();
    let others = others.filter(|v| *v != core.id && Some(*v) != leader);
    let is_unfit = core.is_starting() || core.unfit().is_some();
    match is_unfit && core.is_any_fit(others) {
        true => count.saturating_mul(2),
        false => 0,
    }
}

/// Has the leader send its heartbeats. One that gave leadership up sends none: it keeps nobody from being elected.
async fn send_heartbeats(core: &Core) {
    let mut next = Instant::now();
    loop {
        tokio::time::sleep_until(next.into()).await;
        let metrics = core.metrics();
        let standing = core.standing(&metrics);
        let (timing, now) = (core.timing(), Instant::now());
        next = (next + election::heartbeat_every(&timing, standing.refusal)).max(now);
        if !standing.leading {
            continue;
        }
        let (elected_at, abdicated) = {
            let mut leases = lock(&core.leases);
            leases.observe(&standing, now);
            (
                leases.elected_at(standing.term),
                leases.has_abdicated(standing.term),
            )
        };
        let answered = standing.quorum_acked.max(elected_at).unwrap_or(now);
        let unanswered = now.saturating_duration_since(answered);
        let sends = standing.sole_voter || election::may_heartbeat(unanswered, &timing);
        if sends && !abdicated && core.raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}

/// Asks to be elected when no leader is heard any more.
async fn campaign(core: &Core) {
    /// How long a change of the group or of the timing may stay unnoticed here.
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    let mut attempts = Attempts::default();
    let mut votes = Votes::default();
    let mut leader = None;
    loop {
        let metrics = core.metrics();
        let standing = core.standing(&metrics);
        let now = Instant::now();
        leader = standing.leader.or(leader);
        let promised_until = lock(&core.promise).until();
        let seen = Seen {
            timing: core.timing(),
            opens_at: core.gate.opens_at(),
            heard: core.heard_at(&metrics),
            promised_until,
            voted: votes.observe(&metrics, now),
            rank: rank(&metrics, core.id, leader) + waits_for_the_fit(core, &metrics, leader),
            alone: standing.sole_voter,
        };
        let due = attempts.due(&seen);
        let me = core.id.0;
        let may = !standing.leading && metrics.membership_config.voter_ids().any(|id| id == me);
        if may && due <= now && core.last_log_index().is_some() {
            attempts.made(now);
            if core.raft.trigger().elect(true).await.is_err() {
                return;
            }
        }
        let next = due.max(now + Duration::from_millis(5));
        tokio::time::sleep_until(next.min(now + LOOK_EVERY).into()).await;
    }
}

/// When this node last gave its vote, as far as it looked.
#[derive(Default)]
struct Votes {
    last: Option<Vote>,
    given: Option<Instant>,
}

impl Votes {
    fn observe(&mut self, metrics: &Metrics, now: Instant) -> Option<Instant> {
        let vote = Some(metrics.vote);
        // The first look finds what an earlier process voted.
        if self.last.is_some() && self.last != vote && !metrics.vote.is_committed() {
            self.given = Some(now);
        }
        self.last = vote;
        self.given
    }
}

/// This node's place among the voters that may follow the leader that fell silent.
fn rank(metrics: &Metrics, id: NodeId, leader: Option<NodeId>) -> u32 {
    let others = metrics.membership_config.voter_ids().map(NodeId);
    let before: BTreeSet<NodeId> = others.filter(|v| *v < id && Some(*v) != leader).collect();
    u32::try_from(before.len()).unwrap_or(u32::MAX)
}

/// Counts time as the log says. A longer promise is written down before it is made, a shorter one when the longer has ended.
async fn follow_profile(core: &Core) {
    const AGAIN: Duration = Duration::from_secs(1);
    let mut states = core.publication.states();
    let mut shorter = core.ledger.read().map(|promised| {
        let present = core.timing().election_timeout_max;
        (Instant::now() + promised * 2, present)
    });
    if core.fixed_timing {
        return;
    }
    loop {
        let wanted = states.newest_seen().state.profile().timing();
        let present = core.timing();
        if wanted != present {
            let (from, to) = (present.election_timeout_max, wanted.election_timeout_max);
            if to > from && !write_down(core, to).await {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            shorter = (to < from).then(|| (Instant::now() + from * 2, to));
            core.timing.send_replace(wanted);
            core.links.set_refusal(to);
            tracing::info!(?wanted, "the timing of the cluster has changed");
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = sleep_until(shorter.map(|(at, _)| at)) => {
                if let Some((_, refusal)) = shorter.take() {
                    write_down(core, refusal).await;
                }
            }
        }
    }
}

async fn write_down(core: &Core, refusal: Duration) -> bool {
    let ledger = core.ledger.clone();
    let written = tokio::task::spawn_blocking(move || ledger.write(refusal)).await;
    match written {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::error!(%error, "the promise to leaders cannot be written down");
            false
        }
        Err(_) => false,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn recover(core: &Core, heard_before: Option<SystemTime>) {
    let mut metrics = core.raft.metrics();
    let mut removed = core.removed.subscribe();
    let mut log_lost = core.log_lost.subscribe();
    let mut confirmed = false;
    let mut absent = None;
    let mut heard = LastHeard::default();
    let mut reminder = Reminder::new(core.started, core.patience);
    loop {
        // A clock that is wrong at the start may be set later. Once it is believed, what it says next does not count.
        absent = absent.or_else(|| {
            let start = SystemTime::now().checked_sub(core.started.elapsed())?;
            absence(heard_before, start)
        });
        let seen = metrics.borrow_watched().clone();
        confirmed = confirmed || is_confirmed(core, &seen);
        let evidence = Evidence {
            started: core.started,
            absent: absent.unwrap_or_default(),
            confirmed,
            has_state: core.publication.state().log_id.is_some(),
            heard: heard.note(core.heard_at(&seen)),
            removed: *removed.borrow(),
            log_lost: *log_lost.borrow(),
        };
        let now = Instant::now();
        let recovery = judge(&evidence, core.patience, now);
        enter(core, recovery);
        if core.leader().is_none() && reminder.is_due(recovery, now) {
            tracing::warn!(
                waits = ?core.started.elapsed(),
                "this node has no state and serves nothing until a leader gives it one: look whether a majority of the others runs and \
                 reaches this node; if its data was lost, remove the node and join it anew"
            );
        }
        // openraft reports with every entry; nobody needs this that often.
        tokio::time::sleep(JUDGE_APART).await;
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() {
                // openraft has ended; time alone decides from here.
                if !core.is_mute.swap(true, Ordering::AcqRel) && core.metrics().running_state == Err(Fatal::Panicked) {
                    tracing::error!("consensus has panicked on this node: it goes on serving what it has; restart it, and report the panic above");
                }
                tokio::time::sleep(JUDGE_EVERY).await;
            },
            _ = removed.changed() => {}
            _ = log_lost.changed() => {}
            () = tokio::time::sleep(JUDGE_EVERY) => {}
        }
    }
}

/// Keeps the moment at which a leader was last heard, for the next start.
async fn note_heard(core: &Core, file: HeardFile) {
    let mut written: Option<Instant> = None;
    loop {
        let heard = core.heard_at(&core.metrics());
        let news = heard.filter(|heard| written.is_none_or(|at| *heard >= at + WRITE_EVERY));
        if let Some(heard) = news {
            let moment = SystemTime::now().checked_sub(heard.elapsed());
            let file = file.clone();
            let write = move || moment.map_or(Ok(()), |moment| file.write(moment));
            match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "when a leader was last heard is not kept for the next start")
                }
                Err(_) => return,
            }
            written = Some(heard);
        }
        tokio::time::sleep(LOOK_FOR_LEADER).await;
    }
}

/// Whether a leader has confirmed all of the log found here, and it is applied and published.
fn is_confirmed(core: &Core, metrics: &Metrics) -> bool {
    let (Some(committed), last) = (metrics.cluster_committed, metrics.last_log_index) else {
        return false;
    };
    let applied = core.publication.state().log_id.map(|id| id.index);
    Some(committed.index) >= last && applied >= Some(committed.index)
}

fn enter(core: &Core, next: Recovery) {
    let last = *core.recovery.borrow();
    if last == next {
        return;
    }
    if next.serves() {
        core.publication.start(); // Only the first time does anything.
    }
    match next {
        Recovery::Current => tracing::info!("the state is confirmed by a leader"),
        Recovery::Stale => tracing::warn!("no leader confirms the state: it is served as stale"),
        // Somebody wanted it so: it is news, not a fault.
        Recovery::Stopped(reason @ StopReason::Removed) => {
            tracing::warn!(%reason, "this node serves no longer")
        }
        Recovery::Stopped(reason) => tracing::error!(%reason, "this node may serve no longer"),
        Recovery::Recovering => tracing::info!("waiting for a leader"),
    }
    core.recovery.send_replace(next);
}

/// Sees to it that a disk that hangs is noticed, and tells of it once.
async fn watch_disk(core: &Core) {
    let mut tick = tokio::time::interval(disk::LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut hangs = false;
    loop {
        tick.tick().await;
        core.disk.look();
        let problem = core.disk.problem();
        match (hangs, &problem) {
            (false, Some(problem)) => {
                tracing::error!(problem, "the disk of this node hangs: see to it")
            }
            (true, None) => tracing::info!("the disk answers again"),
            _ => {}
        }
        hangs = problem.is_some();
    }
}

/// Asks every other node how it is, again and again.
async fn ask_peers(core: &Core) {
    let mut tick = tokio::time::interval(ASK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut targets = vec![];
    loop {
        tick.tick().await;
        // This node's own hash, to compare the answers with.
        let _ = core.report();
        targets = to_ask(core, targets);
        forget(core, &targets);
        let mut answers: FuturesUnordered<_> = targets
            .iter()
            .map(|&target| async move {
                let answer = core
                    .links
                    .call::<_, PeerReport>(target, Rpc::Status, &(), ASK_LIMIT);
                (target.id, answer.await)
            })
            .collect();
        while let Some((id, answer)) = answers.next().await {
            note(core, id, answer);
        }
        core.publish_vip_peers();
    }
}

fn note(core: &Core, id: NodeId, answer: Result<PeerReport, CallError>) {
    match answer {
        Ok(report) if report.id == id => lock(&core.peers).note_report(report, Instant::now()),
        Ok(report) => {
            lock(&core.peers).note_silence(id, format!("node {} answers in its place", report.id))
        }
        Err(error) => {
            if matches!(error, CallError::Refused { removed: true, .. })
                && core.removed.send_if_modified(set)
            {
                tracing::warn!(%error, "a peer says that this node was removed");
            }
            lock(&core.peers).note_silence(id, error.to_string());
        }
    }
}

fn set(flag: &mut bool) -> bool {
    !std::mem::replace(flag, true)
}

fn others(core: &Core) -> Vec<Target> {
    let metrics = core.metrics();
    let nodes = metrics.membership_config.nodes();
    nodes
        .filter(|(id, _)| **id != core.id.0)
        .map(|(id, peer)| Target {
            id: NodeId(*id),
            address: peer.raft_address,
        })
        .collect()
}

/// The other members, and those that were and still serve connections through VIPs that they gave away when they left.
fn to_ask(core: &Core, asked_before: Vec<Target>) -> Vec<Target> {
    let mut targets = others(core);
    let members: BTreeSet<NodeId> = targets.iter().map(|target| target.id).collect();
    // By what was heard last, be it with a grant.
    let known = core.vip_peers.borrow();
    let serves = |id: &NodeId| {
        known
            .facts
            .get(id)
            .is_some_and(|facts| !facts.serving.is_empty())
    };
    let left = asked_before.into_iter();
    targets.extend(left.filter(|t| !members.contains(&t.id) && serves(&t.id)));
    targets
}

/// Drops what is kept about nodes that are no longer asked.
fn forget(core: &Core, targets: &[Target]) {
    let known: BTreeSet<NodeId> = targets.iter().map(|target| target.id).collect();
    let mut peers = lock(&core.peers);
    peers.reports.retain(|id, _| known.contains(id));
    peers.diverged.retain(|id, _| known.contains(id));
    peers.damping.retain(|id| known.contains(&id));
    drop(peers);
    core.links.retain(|id| known.contains(&id));
}

/// On the leader: brings the group closer to the state's members, one step at a time. On every node: notices when it is
/// no member itself.
async fn keep_group(core: &Core) {
    let mut readiness = Readiness::default();
    let mut made_way: Option<Instant> = None;
    let mut gave_way: Option<Instant> = None;
    let mut kept_leading: Option<String> = None;
    let mut mover = Mover::default();
    let mut tick = tokio::time::interval(STEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if core.is_retired(core.id) {
            core.removed.send_if_modified(set);
        }
        let metrics = core.metrics();
        let leads = metrics.state == ServerState::Leader && core.standing(&metrics).running;
        if !leads {
            readiness.clear();
            mover.clear();
            continue;
        }
        mover.lead_in(metrics.current_term);
        settle_release(core).await;
        settle_claims(core).await;
        let now = Instant::now();
        let lately = made_way.is_some_and(|at| now < at + MAKE_WAY_EVERY);
        if !lately && core.others_have_more_room() {
            made_way = Some(now);
            make_way(core).await;
            continue;
        }
        let lately = gave_way.is_some_and(|at| now < at + GIVE_WAY_EVERY);
        let is_to_give_way = core.is_to_give_way(metrics.current_term);
        kept_leading = kept_leading.filter(|_| is_to_give_way);
        if !lately && is_to_give_way {
            gave_way = Some(now);
            give_way(core, &mut kept_leading).await;
            continue;
        }
        let mut group = core.group(&metrics);
        if let Some((to, why)) = core.hand_over_due(&mut mover, &metrics, &group, now) {
            match is_unfit_too(core, to).await {
                true => mover.choose_again(),
                false if give_away(core, to, why).await => {}
                false => mover.choose_again(),
            }
            continue;
        }
        if let Some(level) = level_to_raise_to(core, &group) {
            raise_level(core, level).await;
        }
        let ready = ready_learners(&metrics, &group.learners, &group.alive);
        group.ready_since = readiness.observe(&ready, now).clone();
        let Some(step) = group.next_step(core.id, now) else {
            continue;
        };
        let taken = core.take_step(step.clone(), &group, now + STEP_LIMIT).await;
        if let Err(problem) = taken {
            tracing::warn!(
                %step,
                %problem,
                "the group is not as the state wants it yet"
            );
            // The same obstacle will be there for a while.
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// A leader with a lease of its own says so after a hand-over: the next leader then need not wait. So it does after one of its
/// own that was begun and given up.
pub(super) async fn settle_release(core: &Core) {
    // Looked at under the lock: of a hand-over that is under way the release has to stay.
    let Ok(_one_at_a_time) = core.changing.try_lock() else {
        return;
    };
    let standing = core.standing(&core.metrics());
    let is_over = lock(&core.leases).is_release_over(&standing, Instant::now());
    if !is_over {
        return;
    }
    let change = StateChange::TakeVips {
        term: standing.term,
    };
    if let Err(problem) = core
        .commit_change(change, Instant::now() + STEP_LIMIT)
        .await
    {
        tracing::debug!(%problem, "the hand-over is not settled yet");
    }
}

/// A leader that holds VIPs as the first one has the state remember it: whoever leads next takes them without a first look.
async fn settle_claims(core: &Core) {
    let claims = lock(&core.vip_claims).clone();
    let vips: Vec<_> = {
        let published = core.publication.state();
        let unclaimed = &published.state.snapshot().unclaimed_vips;
        let is_new = |(address, added_at): &(_, u64)| unclaimed.get(address) == Some(added_at);
        claims.into_iter().filter(is_new).collect()
    };
    if vips.is_empty() {
        return;
    }
    let change = StateChange::ClaimVips { vips };
    if let Err(problem) = core
        .commit_change(change, Instant::now() + STEP_LIMIT)
        .await
    {
        tracing::debug!(%problem, "the state does not know yet that VIPs were claimed");
    }
}

/// The feature level that all members know: those of the state, and those that are in the group still.
fn level_to_raise_to(core: &Core, group: &Group) -> Option<u32> {
    let named = group.members.as_ref().filter(|named| !named.is_empty())?;
    let members: BTreeSet<NodeId> = named.keys().copied().chain(group.nodes()).collect();
    let mut known: BTreeMap<NodeId, u32> = {
        let peers = lock(&core.peers);
        let reports = peers.reports.values().filter_map(Heard::fresh_report);
        reports
            .map(|report| (report.id, report.feature_level))
            .collect()
    };
    known.insert(core.id, core.feature_level);
    let present = core.publication.state().state.feature_level();
    features::level_to_raise_to(present, &members, &known)
}

/// Lets the cluster use what every member knows. What keeps it from being committed now is tried again.
async fn raise_level(core: &Core, level: u32) {
    let change = StateChange::SetFeatureLevel { level };
    let deadline = Instant::now() + STEP_LIMIT;
    match core.commit_change(change, deadline).await {
        Ok((_, Outcome::Applied(_))) => {
            tracing::info!(
                level,
                "every member knows this feature level: the cluster uses it"
            )
        }
        Ok((_, outcome)) => tracing::debug!(level, ?outcome, "the feature level is not raised yet"),
        Err(problem) => tracing::debug!(level, %problem, "the feature level is not raised yet"),
    }
}

/// A leader whose disk is about to be full hands over while it still can.
async fn make_way(core: &Core) {
    tracing::warn!("little space is left on the disk of the leader: handing leadership over");
    if let Err(problem) = core.hand_over(Instant::now() + STEP_LIMIT).await {
        tracing::warn!(%problem, "leadership was not handed over");
    }
}

/// A leader for whose disk writes wait lets another lead. `told`: why it could not, as last logged.
async fn give_way(core: &Core, told: &mut Option<String>) {
    let why = match core.give_way(Instant::now() + STEP_LIMIT).await {
        Ok(leader) if leader == core.id => return tracing::info!("the disk answers again"),
        Ok(leader) => {
            return tracing::error!(%leader, "writes waited for the disk of this node: another node leads");
        }
        Err(NotDone::NotLeading) => return tracing::info!("this node leads no more"),
        Err(NotDone::Refused(why)) => format!("no other node was found to lead: {why}"),
        Err(problem) => format!(
            "leadership was given up, and this node hears the next leader once its disk answers: {problem}"
        ),
    };
    if told.as_ref() != Some(&why) {
        tracing::warn!(why, "writes wait for the disk of the leader");
        *told = Some(why);
    }
}

/// Whether the node that is to get the VIPs says now that it is unfit. What it said last may be a second old: where all become unfit at
/// one moment, each would give them to one of which it does not know that yet. One that does not answer is for the hand-over to find.
async fn is_unfit_too(core: &Core, to: NodeId) -> bool {
    let Some(target) = core.target_of(to) else {
        return false;
    };
    let answer = core
        .links
        .call::<_, PeerReport>(target, Rpc::Status, &(), ASK_AGAIN_LIMIT)
        .await;
    if answer.is_err() {
        return false;
    }
    note(core, to, answer);
    match lock(&core.peers).unfit(to) {
        Some(unfit) => {
            tracing::warn!(%to, %unfit, "the VIPs stay: the node that was to get them is unfit, too");
            true
        }
        None => false,
    }
}

/// A leader that is unfit, or not where the VIPs are to be, hands over. False: the other node could not take them.
async fn give_away(core: &Core, to: NodeId, why: Why) -> bool {
    let problem = core.unfit().unwrap_or_default();
    tracing::warn!(%to, %why, problem, "handing leadership and the VIPs over");
    let deadline = Instant::now() + STEP_LIMIT;
    let changing = tokio::time::timeout_at(deadline.into(), core.changing.lock()).await;
    let Ok(_one_at_a_time) = changing else {
        tracing::warn!(%to, "leadership was not handed over: another change of the group is under way");
        return true;
    };
    loop {
        match core.transfer_here(Heirs::Chosen(to), deadline).await {
            Ok(_) => return true,
            // openraft takes entries only while a quorum has answered a moment ago: on a busy machine that comes and goes.
            Err(NotDone::NotLeading) if core.leading().is_ok() && core.pause(deadline).await => {}
            Err(problem) => {
                tracing::warn!(%to, %problem, "leadership was not handed over");
                return !matches!(problem, NotDone::Refused(refused) if refused.is_of_heir());
            }
        }
    }
}

/// Learners that answer and are close to this leader. In a young cluster one that has nothing at all is close too.
fn ready_learners(
    metrics: &Metrics,
    learners: &BTreeSet<NodeId>,
    alive: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let close = |id: &NodeId| lag_of(metrics, *id).is_some_and(|lag| lag <= CAUGHT_UP_LAG);
    learners
        .intersection(alive)
        .copied()
        .filter(|id| close(id) && has_begun(metrics, *id))
        .collect()
}

/// Has a snapshot made whenever the state machine's store asks for one.
async fn take_snapshots(core: &Core, mut due: watch::Receiver<u64>) {
    while due.changed().await.is_ok() {
        if let Err(fatal) = core.raft.trigger().snapshot().await {
            tracing::debug!(%fatal, "no snapshot: consensus has ended");
            return;
        }
    }
}

/// Gives up log entries that both kept snapshots cover, however few they are.
async fn purge_log(core: &Core, mut purgeable: watch::Receiver<Option<u64>>) {
    while purgeable.changed().await.is_ok() {
        let Some(index) = *purgeable.borrow_and_update() else {
            continue;
        };
        if let Err(fatal) = core.raft.trigger().purge_log(index).await {
            tracing::debug!(%fatal, "nothing is purged: consensus has ended");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::consensus::types::LogId;

    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;

    #[test]
    fn a_learner_without_any_entry_is_not_ready_however_young_the_cluster() {
        let log_id = |index| LogId::new(LeaderId::new(1, 1).to_committed(), index);
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let metrics = Metrics {
            last_log_index: Some(600),
            replication: Some(
                [
                    (1, Some(log_id(600))),
                    (4, None),
                    (5, Some(log_id(0))),
                    (6, Some(log_id(100))),
                    (7, Some(log_id(590))),
                    (8, Some(log_id(590))),
                ]
                .into(),
            ),
            ..Metrics::new_initial(1)
        };
        let learners = ids(&[4, 5, 6, 7, 8, 9]);
        let alive = ids(&[1, 4, 5, 6, 7, 9]);
        assert_eq!(ready_learners(&metrics, &learners, &alive), ids(&[6, 7]));
        let young = Metrics {
            last_log_index: Some(230),
            ..metrics
        };
        assert_eq!(ready_learners(&young, &learners, &alive), ids(&[5, 6, 7]));
    }
}
