//! Does faults and undoes them.
//!
//! One thread does both, in the order of their times: two faults that are open at once never wait for each other.
//! It also owns the node processes: one that ended though no fault had ended it is noted and started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Kind, Lane, done::Done, ending::Ending, schedule::Planned, targets};
use crate::{
    arp::{self, Mac},
    history::{Breakdown, Entry, Fault, Moment, Notice, NoticeKind, Skip, Unhealed},
    lab::{
        LabError,
        cluster::{BACKEND, CLIENT, Cluster, Node, host_number, vip4, wait_for},
        freeze::Frozen,
        namespace::Namespace,
        network::{self, DEVICE},
        switch::Switch,
    },
    observe::Board,
    recorder::Recorder,
    workload::api::Failed,
};

/// The host of the witness.
pub const WITNESS: &str = "witness";
/// The profile of a cluster that was told no other.
const USUAL_PROFILE: &str = "lan";
/// The table of ours that drops frames on a node's host.
const TABLE: &str = "jepsen";
const TICK: Duration = Duration::from_millis(20);
/// A change of membership may have to wait for the cluster to be well again.
const PATIENCE: Duration = Duration::from_secs(90);
/// A node whose files were damaged is given so long to recover by itself.
const REVIVAL: Duration = Duration::from_secs(30);
/// Between a fault that was healed and the next.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two steps of a clock that runs wrong.
const CLOCK_STEP: Duration = Duration::from_millis(250);
/// A move whose answer was lost shows by then, if it was made.
const SHOWN: Duration = Duration::from_secs(3);
/// For one call that may be made again.
const CALL: Duration = Duration::from_secs(5);
/// Between two starts of a process that ends by itself.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Hosts outside the cluster.
#[derive(Debug)]
pub struct Outside {
    pub witness: Arc<Namespace>,
    pub thief: Arc<Namespace>,
}

/// An open fault.
#[derive(Debug)]
struct Open {
    kind: Kind,
    heal_at: Duration,
    /// What cannot be healed by then is a finding, and ends the run.
    heal_by: Duration,
    fault: Fault,
    undo: Undo,
}

/// How a fault is taken back.
#[derive(Debug)]
enum Undo {
    Nothing,
    Start(Vec<String>),
    Resume(String),
    Filters(Vec<String>),
    Plug(String),
    SetUp(String),
    ReleaseAddress,
    /// The node that joined leaves again.
    Unjoin(String),
    /// A wiped node joins.
    Admit(String),
    EmptyDisk(String),
    ResumeDisk(String),
    /// Started, or replaced if its files are too damaged.
    Revive(Vec<String>),
    ResetClock(String),
    /// A clock that goes wrong more and more.
    ResetSkew(Skew),
    /// Held only to be dropped.
    Thaw(Frozen),
    Unswitch(Switch),
    /// The usual timing profile is set again.
    ResetProfile,
}

/// A wall clock that runs at a rate of its own.
///
/// libfaketime can do rates, but then it stretches every wait of the process as well, those by the monotonic clock too (and fails some of
/// them): no wall clock ever did that. So its offset is moved in small steps.
#[derive(Debug)]
struct Skew {
    node: String,
    /// 1 is right.
    rate: f64,
    since: Instant,
    moved: Instant,
}

impl Skew {
    /// How far it is off, in seconds.
    fn offset(&self, now: Instant) -> f64 {
        (self.rate - 1.0) * now.saturating_duration_since(self.since).as_secs_f64()
    }
}

/// Injects faults into a cluster.
#[derive(Debug)]
pub struct Nemesis<'a> {
    cluster: &'a mut Cluster,
    outside: Outside,
    macs: BTreeMap<String, String>,
    /// What cannot be done here, and why.
    missing: BTreeMap<Kind, String>,
    board: Arc<Board>,
    recorder: Arc<Recorder>,
    open: Vec<Open>,
    /// The fault that is being injected or healed.
    at_work: Option<Fault>,
    /// Faults that are open and not undone by this nemesis, but by who began them.
    scripted: Vec<Fault>,
    not_before: BTreeMap<String, Instant>,
    /// Nodes whose files were damaged: however they end is the fault's doing.
    damaged: BTreeSet<String>,
    /// When the last fault was healed.
    healed: Option<Instant>,
}

impl<'a> Nemesis<'a> {
    pub fn new(
        cluster: &'a mut Cluster,
        outside: Outside,
        missing: BTreeMap<Kind, String>,
        board: Arc<Board>,
        recorder: Arc<Recorder>,
    ) -> Result<Self, LabError> {
        let mut macs = BTreeMap::new();
        for node in cluster.nodes().iter().chain(cluster.spares()) {
            macs.insert(node.name().to_owned(), node.host().mac(DEVICE)?);
        }
        for host in [CLIENT, BACKEND] {
            macs.insert(host.to_owned(), cluster.lab().host(host)?.mac(DEVICE)?);
        }
        macs.insert(WITNESS.to_owned(), outside.witness.mac(DEVICE)?);
        let nemesis = Self {
            cluster,
            outside,
            macs,
            missing,
            board,
            recorder,
            open: vec![],
            at_work: None,
            scripted: vec![],
            not_before: BTreeMap::new(),
            damaged: BTreeSet::new(),
            healed: None,
        };
        nemesis.publish_processes();
        Ok(nemesis)
    }

    /// Injects and heals until all is healed, or `is_over`. Everything is healed when this returns without an error.
    pub fn run(
        &mut self,
        planned: &[Planned],
        until: Duration,
        is_over: impl Fn() -> bool,
    ) -> Result<(), LabError> {
        let mut coming = planned.iter().peekable();
        loop {
            let now = self.recorder.began().elapsed();
            let is_ending = is_over() || self.recorder.has_failed();
            self.watch_processes(true)?;
            self.move_clocks()?;
            if let Some(place) =
                (self.open.iter()).position(|open| open.heal_at <= now || is_ending)
            {
                let open = self.open.remove(place);
                self.heal(open)?;
            } else if is_ending {
                return Ok(());
            } else if now >= until && self.open.is_empty() {
                coming.for_each(|late| self.tell_of_late(late));
                return Ok(());
            } else if let Some(next) =
                coming.next_if(|next| next.at <= now && now < until && self.may_begin(next.kind))
            {
                self.begin(next)?;
            } else {
                std::thread::sleep(TICK);
            }
        }
    }

    /// A fault for which there was no time left: those before it took longer than planned.
    fn tell_of_late(&self, planned: &Planned) {
        let now = self.recorder.now();
        let fault = Fault {
            kind: planned.kind.name().into(),
            nodes: BTreeSet::new(),
            began: now,
            healed: Some(now),
            hit_leader: false,
            skipped: None,
        };
        let why = "those before it took longer than planned, and the time was over";
        let fault = Done::Nothing(why.into()).told(fault, None);
        self.recorder.append(&Entry::Fault(fault));
    }

    /// Goes on looking after the processes, without faults, until the time is over or `is_over`.
    pub fn rest(&mut self, during: Duration, is_over: impl Fn() -> bool) -> Result<(), LabError> {
        let end = Instant::now() + during;
        while Instant::now() < end && !is_over() {
            self.watch_processes(true)?;
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// One that took longer than planned holds up those that must not meet it.
    fn may_begin(&self, kind: Kind) -> bool {
        let is_calm = self.healed.is_none_or(|at| at.elapsed() >= PAUSE);
        let is_other = |open: &Open| {
            let lanes = [open.kind.lane(), kind.lane()];
            !lanes.contains(&Lane::Alone) && open.kind.lane() != kind.lane()
        };
        self.open.iter().all(is_other) && (is_calm || !self.open.is_empty())
    }

    pub fn cluster(&self) -> &Cluster {
        self.cluster
    }

    /// For one who does and undoes faults himself, in an order of his own.
    pub fn cluster_mut(&mut self) -> &mut Cluster {
        self.cluster
    }

    pub fn board(&self) -> &Board {
        &self.board
    }

    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// A fault that its author does, and undoes before [`Nemesis::end_scripted`].
    pub fn begin_scripted(&mut self, fault: Fault) {
        self.board.note_fault();
        self.scripted.push(fault);
    }

    /// Writes a fault of its author's own that is undone now.
    pub fn end_scripted(&mut self, fault: Fault) {
        self.scripted.retain(|open| *open != fault);
        self.tell_healed(fault);
    }

    /// Writes a fault that is healed now.
    fn tell_healed(&self, fault: Fault) {
        let now = self.recorder.now();
        self.board.note_heal(now);
        self.recorder.append(&Entry::Fault(Fault {
            healed: Some(now),
            ..fault
        }));
    }

    /// Ends a course that could not go on: writes what it was at, that what is open was never healed, and why.
    pub fn abandon(&mut self, error: &LabError) {
        if let Err(further) = self.note_ends() {
            tracing::warn!(%further, "processes that ended are not noted");
        }
        let at_work = self.at_work.take();
        let scripted = std::mem::take(&mut self.scripted);
        let cause = at_work.clone().or_else(|| scripted.last().cloned());
        let open = self.open.drain(..).map(|open| open.fault);
        let faults = at_work.into_iter().chain(scripted).chain(open);
        let mut entries: Vec<Entry> = faults.map(Entry::Fault).collect();
        let (at, text) = (self.recorder.now(), error.to_string());
        entries.push(match error.is_of_cluster() {
            true => Entry::Unhealed(Unhealed {
                at,
                text,
                fault: cause,
            }),
            false => Entry::Breakdown(Breakdown { at, text }),
        });
        self.recorder.append_all(&entries);
    }

    /// Writes which processes have ended by themselves, and leaves them so.
    pub fn note_ends(&mut self) -> Result<(), LabError> {
        self.watch_processes(false)
    }

    fn names(&self) -> Vec<String> {
        let nodes = self.cluster.nodes().iter();
        nodes.map(|node| node.name().to_owned()).collect()
    }

    /// A running node that is none of these. Who was damaged may have ended without anybody having looked yet.
    fn other(&self, than: &[String]) -> Result<String, LabError> {
        let mut running = self.cluster.nodes().iter().filter(|node| node.is_running());
        let other = running.find(|node| !than.iter().any(|name| name == node.name()));
        other
            .map(|node| node.name().to_owned())
            .ok_or(LabError::NoNode)
    }

    fn begin(&mut self, planned: &Planned) -> Result<(), LabError> {
        let leader = self.leader();
        let began = self.recorder.now();
        let mut fault = Fault {
            kind: planned.kind.name().to_owned(),
            nodes: BTreeSet::new(),
            began,
            healed: None,
            hit_leader: false,
            skipped: None,
        };
        if let Some(why) = self.missing.get(&planned.kind) {
            fault.skipped = Some(Skip::Impossible(why.clone()));
            self.recorder.append(&Entry::Fault(fault));
            return Ok(());
        }
        self.board.note_fault();
        tracing::info!(kind = %planned.kind, leader, "inject");
        self.at_work = Some(fault.clone());
        let (done, undo) = self.inject(planned, leader.as_deref())?;
        self.at_work = None;
        let fault = done.told(fault, leader.as_deref());
        if let Some(why) = &fault.skipped {
            tracing::info!(kind = %planned.kind, %why, "missed");
        }
        self.publish_processes();
        self.open.push(Open {
            kind: planned.kind,
            // From the end of the injection: one that took long lasts as long as any other.
            heal_at: self.recorder.began().elapsed() + planned.lasts,
            heal_by: self.recorder.began().elapsed() + planned.lasts + PATIENCE,
            fault,
            undo,
        });
        Ok(())
    }

    /// Waits a little for one: a fault that is to hit the leader right after another would hit nobody.
    fn leader(&mut self) -> Option<String> {
        let found = wait_for("a leader", Duration::from_secs(3), || {
            Ok(self.board.leader())
        });
        found.ok()
    }

    fn inject(
        &mut self,
        planned: &Planned,
        leader: Option<&str>,
    ) -> Result<(Done, Undo), LabError> {
        let names = self.names();
        let one = targets::node(planned, &names, leader).ok_or(LabError::NoNode)?;
        let one = one.to_owned();
        let only = Done::To([one.clone()].into());
        let all = Done::Whole {
            touched: names.iter().cloned().collect(),
        };
        let node = |cluster: &Cluster| cluster.node(&one).map(|node| node.is_running());
        let is_running = node(self.cluster)?;
        Ok(match planned.kind {
            Kind::Kill | Kind::Pause | Kind::Restart | Kind::DnsHang | Kind::Flush
                if !is_running =>
            {
                (not_running(&one), Undo::Nothing)
            }
            Kind::Kill => match self.kill(&one)? {
                true => (only, Undo::Start(vec![one])),
                false => (not_running(&one), Undo::Nothing),
            },
            Kind::KillAll => {
                let touched = self.kill_all()?;
                (Done::Whole { touched }, Undo::Start(names))
            }
            Kind::Pause => {
                self.cluster.node(&one)?.pause()?;
                (only, Undo::Resume(one))
            }
            Kind::Restart => match self.stop(&one)? {
                true => (only, Undo::Start(vec![one])),
                false => (not_running(&one), Undo::Nothing),
            },
            Kind::RollingRestart => {
                for name in targets::upgrade_order(planned, &names, leader) {
                    self.upgrade(&name)?;
                }
                (all, Undo::Nothing)
            }
            Kind::PowerLoss => {
                self.kill(&one)?;
                self.disk(&one)?.lose_power()?;
                (only, Undo::Start(vec![one]))
            }
            Kind::PowerLossAll => {
                // All end first: nobody may acknowledge what another has lost already.
                self.kill_all()?;
                for name in &names {
                    self.disk(name)?.lose_power()?;
                }
                (all, Undo::Start(names))
            }
            Kind::DnsHang => {
                let pid = self.cluster.node(&one)?.pid();
                let frozen = pid.map(|pid| Frozen::threads(pid, |name| name.starts_with("dns-")));
                match frozen {
                    Some(Ok(frozen)) => (only, Undo::Thaw(frozen)),
                    None => (not_running(&one), Undo::Nothing),
                    // It has just ended by itself, which is noted, or just begun and serves no DNS yet.
                    Some(Err(error)) if error.is_without_threads() => {
                        let why = format!("{one} has no DNS threads now");
                        (Done::Nothing(why), Undo::Nothing)
                    }
                    Some(Err(error)) => return Err(error),
                }
            }
            Kind::Transfer => (self.transfer(leader), Undo::Nothing),
            Kind::VipMove => (self.move_vips(planned, &names, leader), Undo::Nothing),
            Kind::ProfileChange => {
                let profile = targets::profile(planned);
                let done = match self.set_profile(profile) {
                    // In doubt it may be in force all the same, now or later, and nobody knows.
                    Ok(()) | Err(Failed::Perhaps(_)) => nobody(),
                    Err(Failed::Nothing(why)) => Done::Nothing(format!("refused: {why}")),
                };
                (done, Undo::ResetProfile)
            }
            Kind::PartitionLeader
            | Kind::PartitionHalves
            | Kind::PartitionRing
            | Kind::PartitionBridge
            | Kind::PartitionOneWay
            | Kind::PartitionClient => self.partition(planned, &names, leader)?,
            Kind::Loss | Kind::Delay => {
                let others = [CLIENT, BACKEND, WITNESS].map(str::to_owned);
                let (rules, hit) = targets::links(planned, &names, leader, &others);
                tracing::info!(?hit, rule = ?rules.first(), rules = rules.len(), "switch");
                let bridge = self.cluster.lab().network().switch();
                let switch = Switch::start(bridge, &self.macs, &rules, planned.draw)?;
                let done = if hit.is_empty() { all } else { Done::To(hit) };
                (done, Undo::Unswitch(switch))
            }
            Kind::Interface => {
                self.cluster.lab().network().unplug(&one)?;
                (only, Undo::Plug(one))
            }
            Kind::InterfaceDown => {
                let host = self.cluster.node(&one)?.host();
                host.ip(&["link", "set", DEVICE, "down"])?;
                (only, Undo::SetUp(one))
            }
            Kind::Flush => {
                // Never of one that does not run: its rules belong to nobody, and nobody is there to withdraw what they kept silent.
                // That is not covered (docs/operations/failover.md).
                let host = self.cluster.node(&one)?.host();
                host.output("nft", &["flush", "ruleset"])?;
                (only, Undo::Nothing)
            }
            Kind::AddressStolen => {
                self.steal_address()?;
                (nobody(), Undo::ReleaseAddress)
            }
            Kind::Join => {
                let peer = self.other(&[])?;
                let name = self.cluster.join_spare(&peer)?;
                self.publish_processes();
                self.cluster.wait_for_member(&name, PATIENCE)?;
                (Done::To([name.clone()].into()), Undo::Unjoin(name))
            }
            Kind::Leave => {
                self.leave(&one)?;
                self.cluster.node(&one)?.wipe()?;
                (only, Undo::Admit(one))
            }
            Kind::Replace => {
                self.discard(&one, &[])?;
                (only, Undo::Admit(one))
            }
            Kind::DiskFull => {
                self.disk(&one)?.fill()?;
                (only, Undo::EmptyDisk(one))
            }
            Kind::SlowDisk => {
                self.disk(&one)?.stall()?;
                (only, Undo::ResumeDisk(one))
            }
            Kind::BitFlip => {
                let hit = targets::minority(planned, &names, leader);
                for name in &hit {
                    self.note_brief(Kind::Kill, name);
                    self.kill(name)?;
                    self.damaged.insert(name.clone());
                    // Where there is no large file it was killed all the same.
                    let data = self.cluster.node(name)?.data();
                    flip_bits(&data, planned.draw).map_err(LabError::Directory)?;
                }
                let done = Done::To(hit.iter().cloned().collect());
                (done, Undo::Revive(hit))
            }
            Kind::ClockStep => {
                let day: i32 = 24 * 3600;
                let offset = StdRng::seed_from_u64(planned.draw).random_range(-day..=day);
                self.cluster.set_clock(&one, f64::from(offset))?;
                (only, Undo::ResetClock(one))
            }
            Kind::ClockSkew => {
                let now = Instant::now();
                let skew = Skew {
                    node: one,
                    rate: targets::clock_rate(planned),
                    since: now,
                    moved: now,
                };
                (only, Undo::ResetSkew(skew))
            }
        })
    }

    fn heal(&mut self, open: Open) -> Result<(), LabError> {
        tracing::info!(kind = %open.kind, "heal");
        self.at_work = Some(open.fault.clone());
        match open.undo {
            Undo::Nothing => {}
            Undo::Thaw(frozen) => drop(frozen),
            Undo::Unswitch(switch) => {
                tracing::info!(counts = ?switch.counts(), "switch");
                drop(switch);
            }
            Undo::ResetSkew(skew) => self.cluster.set_clock(&skew.node, 0.0)?,
            Undo::ResetProfile => {
                if let Err(refused) = self.set_profile(USUAL_PROFILE) {
                    self.heal_later(open, &refused)?;
                    self.at_work = None;
                    return Ok(());
                }
            }
            Undo::Start(names) => {
                for name in &names {
                    let node = self.cluster.node_mut(name)?;
                    if !node.is_running() {
                        node.start()?;
                    }
                }
            }
            Undo::Resume(name) => {
                let node = self.cluster.node(&name)?;
                if node.is_running() {
                    node.resume()?;
                }
            }
            Undo::Filters(names) => {
                for name in &names {
                    self.unfilter(name)?;
                }
            }
            Undo::SetUp(name) => {
                let number = host_number(&name)?;
                let host = self.cluster.node(&name)?.host();
                network::set_up(host, number)?;
            }
            Undo::Plug(name) => self.cluster.lab().network().plug(&name)?,
            Undo::ReleaseAddress => self.release_address()?,
            Undo::Unjoin(name) => {
                self.leave(&name)?;
                self.cluster.retire(&name)?;
            }
            Undo::Admit(name) => self.admit(&name, &[])?,
            Undo::EmptyDisk(name) => {
                self.disk(&name)?.empty()?;
                self.restart(&name)?;
            }
            Undo::ResumeDisk(name) => self.disk(&name)?.resume()?,
            Undo::Revive(names) => self.revive(&names)?,
            Undo::ResetClock(name) => self.cluster.set_clock(&name, 0.0)?,
        }
        self.publish_processes();
        self.healed = Some(Instant::now());
        self.at_work = None;
        self.tell_healed(open.fault);
        Ok(())
    }

    /// What needs a leader waits for one, while other faults are healed.
    fn heal_later(&mut self, open: Open, why: &Failed) -> Result<(), LabError> {
        let now = self.recorder.began().elapsed();
        if now > open.heal_by {
            return Err(LabError::Waited {
                what: format!("the profile {USUAL_PROFILE} again (answered last: {why})"),
                seconds: PATIENCE.as_secs(),
            });
        }
        tracing::info!(kind = %open.kind, %why, "heal later");
        std::thread::sleep(TICK);
        self.open.push(Open {
            heal_at: now + PAUSE,
            ..open
        });
        Ok(())
    }

    fn set_profile(&self, profile: &str) -> Result<(), Failed> {
        let leader = self.board.leader();
        let mut running = self.cluster.nodes().iter().filter(|node| node.is_running());
        let node = leader
            .and_then(|name| self.cluster.node(&name).ok())
            .or_else(|| running.next());
        let node = node.ok_or_else(|| Failed::Nothing("no node runs".to_owned()))?;
        Ok(node.client().set_profile(profile, CALL)?)
    }

    /// SIGTERM, end and start; done when the node is a member that keeps up.
    fn upgrade(&mut self, name: &str) -> Result<(), LabError> {
        let began = self.recorder.now();
        self.stop(name)?;
        self.cluster.node_mut(name)?.start()?;
        self.publish_processes();
        self.cluster.wait_for_member(name, PATIENCE)?;
        self.note_fault(Kind::Restart, name, began, self.recorder.now());
        Ok(())
    }

    /// Wall clocks that run wrong are moved on.
    fn move_clocks(&mut self) -> Result<(), LabError> {
        let now = Instant::now();
        for open in &mut self.open {
            if let Undo::ResetSkew(skew) = &mut open.undo
                && now.saturating_duration_since(skew.moved) >= CLOCK_STEP
            {
                skew.moved = now;
                self.cluster.set_clock(&skew.node, skew.offset(now))?;
            }
        }
        Ok(())
    }

    /// As `transfer`, to a node that is drawn.
    fn move_vips(&self, planned: &Planned, names: &[String], leader: Option<&str>) -> Done {
        let spared = Planned {
            at_leader: false,
            ..*planned
        };
        let Some(from) = self.holder_of_office(leader) else {
            return Done::Nothing(NO_LEADER.to_owned());
        };
        let Some(to) = targets::node(&spared, names, leader) else {
            return Done::Nothing("there is no other node".to_owned());
        };
        let status = match from.client().status(CALL) {
            Ok(status) => status,
            Err(error) => {
                let why = Failed::from(error);
                return Done::Nothing(format!("{} gave no status: {why}", from.name()));
            }
        };
        match status.nodes.iter().find(|node| node.name == to) {
            Some(heir) => self.moved(from, from.client().move_to(heir.id, CALL)),
            None => Done::Nothing(format!("{to} is no member to {}", from.name())),
        }
    }

    fn transfer(&self, leader: Option<&str>) -> Done {
        match self.holder_of_office(leader) {
            Some(from) => self.moved(from, from.client().transfer(CALL)),
            None => Done::Nothing(NO_LEADER.to_owned()),
        }
    }

    fn holder_of_office(&self, leader: Option<&str>) -> Option<&Node> {
        leader.and_then(|name| self.cluster.node(name).ok())
    }

    /// What a planned move from here did, by its answer; where that was lost, by who leads afterwards.
    fn moved(&self, from: &Node, answer: Result<u64, tonic::Status>) -> Done {
        let done = Done::To([from.name().to_owned()].into());
        let lost = match answer.map_err(Failed::from) {
            Ok(_) => return done,
            Err(Failed::Nothing(why)) => {
                return Done::Nothing(format!("refused by {}: {why}", from.name()));
            }
            Err(Failed::Perhaps(why)) => why,
        };
        let successor = wait_for("another leader", SHOWN, || {
            Ok(self.board.leader().filter(|leader| leader != from.name()))
        });
        match successor {
            Ok(_) => done,
            // It may have been made and undone between two looks: it counts as done, and hits nobody.
            Err(_) => {
                tracing::info!(from = from.name(), %lost, "nobody else was seen to lead after a move");
                nobody()
            }
        }
    }

    /// Kills every process; whose there were.
    fn kill_all(&mut self) -> Result<BTreeSet<String>, LabError> {
        let mut killed = BTreeSet::new();
        for name in self.names() {
            if self.kill(&name)? {
                killed.insert(name);
            }
        }
        Ok(killed)
    }

    /// SIGKILL to a node's process, and its end. False: none ran, or it had just ended by itself, which is noted.
    pub fn kill(&mut self, name: &str) -> Result<bool, LabError> {
        self.end(name, Node::kill, Ending::Killed)
    }

    /// The same by SIGTERM.
    fn stop(&mut self, name: &str) -> Result<bool, LabError> {
        self.end(name, Node::stop, Ending::Asked)
    }

    fn end(
        &mut self,
        name: &str,
        end: fn(&mut Node) -> Result<ExitStatus, LabError>,
        by: Ending,
    ) -> Result<bool, LabError> {
        let node = self.cluster.node_mut(name)?;
        if let Some(status) = node.ended() {
            self.note_end(name, Ending::Alone, status);
            return Ok(false);
        }
        if !node.is_running() {
            return Ok(false);
        }
        let status = end(node)?;
        self.note_end(name, by, status);
        Ok(true)
    }

    /// Every end of a process comes by here. One that nothing explains is a finding.
    fn note_end(&self, name: &str, by: Ending, status: ExitStatus) {
        self.board.set_pid(name, None);
        if let Some(text) = by.unexpected(status)
            && !self.damaged.contains(name)
        {
            self.recorder.append(&Entry::Notice(Notice {
                at: self.recorder.now(),
                node: name.to_owned(),
                kind: NoticeKind::UnexpectedExit,
                text,
            }));
        }
    }

    fn partition(
        &self,
        planned: &Planned,
        names: &[String],
        leader: Option<&str>,
    ) -> Result<(Done, Undo), LabError> {
        let clients = [CLIENT, WITNESS].map(str::to_owned);
        let deaf = targets::deaf(planned, names, leader, &clients);
        for (to, from) in &deaf {
            let macs: Vec<&str> = (from.iter())
                .filter_map(|name| self.macs.get(name).map(String::as_str))
                .collect();
            self.filter(to, &format!("ether saddr {{ {} }} drop", macs.join(", ")))?;
        }
        let cut = targets::cut_off(planned, &deaf);
        let done = match cut.is_empty() {
            true => Done::Whole {
                touched: targets::bereft(&deaf, names),
            },
            false => Done::To(cut),
        };
        Ok((done, Undo::Filters(deaf.into_keys().collect())))
    }

    /// Frames that match are dropped before anything else on the host sees them.
    fn filter(&self, name: &str, rule: &str) -> Result<(), LabError> {
        let text = format!(
            "add table netdev {TABLE}; \
             add chain netdev {TABLE} in {{ type filter hook ingress device \"{DEVICE}\" priority -400; policy accept; }}; \
             add rule netdev {TABLE} in {rule}"
        );
        let host = self.cluster.node(name)?.host();
        host.output("nft", &[&text]).map(drop)
    }

    fn unfilter(&self, name: &str) -> Result<(), LabError> {
        // Made first, so that one which somebody flushed is no error.
        let text = format!("add table netdev {TABLE}; delete table netdev {TABLE}");
        let host = self.cluster.node(name)?.host();
        host.output("nft", &[&text]).map(drop)
    }

    fn steal_address(&self) -> Result<(), LabError> {
        let thief = &self.outside.thief;
        thief.ip(&["address", "add", &format!("{}/32", vip4()), "dev", DEVICE])?;
        let mac: Mac = arp::parse_mac(&thief.mac(DEVICE)?).ok_or(LabError::NoNode)?;
        let std::net::IpAddr::V4(vip) = vip4() else {
            return Ok(());
        };
        arp::send(thief, DEVICE, &arp::announcement(mac, vip))
    }

    fn release_address(&self) -> Result<(), LabError> {
        let address = format!("{}/32", vip4());
        let thief = &self.outside.thief;
        thief
            .ip(&["address", "delete", &address, "dev", DEVICE])
            .map(drop)
    }

    /// By its own will; again and again while it is refused.
    fn leave(&mut self, name: &str) -> Result<(), LabError> {
        let mut ended = None;
        wait_for(&format!("the leave of {name}"), PATIENCE, || {
            let node = self.cluster.node_mut(name)?;
            // One whose answer was lost ends all the same.
            ended = node.ended();
            if ended.is_some() || !node.is_running() {
                return Ok(Some(()));
            }
            Ok(match node.client().leave(Duration::from_secs(20)) {
                Ok(()) => Some(()),
                Err(refused) => {
                    tracing::info!(name, %refused, "leave");
                    std::thread::sleep(Duration::from_millis(300));
                    None
                }
            })
        })?;
        let status = match ended {
            Some(status) => Some(status),
            None => self.cluster.node_mut(name)?.wait_end()?,
        };
        if let Some(status) = status {
            self.note_end(name, Ending::Asked, status);
        }
        Ok(())
    }

    /// Ends a node for ever, and removes it by one that is not among the `damaged`.
    fn discard(&mut self, name: &str, damaged: &[String]) -> Result<(), LabError> {
        self.kill(name)?;
        self.publish_processes();
        let by = self.other(&[damaged, &[name.to_owned()]].concat())?;
        self.cluster.remove_member(name, &by)?;
        self.cluster.node(name)?.wipe()
    }

    fn admit(&mut self, name: &str, damaged: &[String]) -> Result<(), LabError> {
        let peer = self.other(&[damaged, &[name.to_owned()]].concat())?;
        self.cluster.admit(name, &peer)?;
        self.publish_processes();
        self.cluster.wait_for_member(name, PATIENCE)
    }

    fn revive(&mut self, names: &[String]) -> Result<(), LabError> {
        for name in names {
            self.cluster.node_mut(name)?.start()?;
        }
        for name in names {
            self.recover_or_replace(name, names)?;
            self.damaged.remove(name);
        }
        Ok(())
    }

    fn recover_or_replace(&mut self, name: &str, damaged: &[String]) -> Result<(), LabError> {
        let deadline = Instant::now() + REVIVAL;
        let step = Duration::from_millis(500);
        while Instant::now() < deadline && self.cluster.node_mut(name)?.ended().is_none() {
            if self.cluster.wait_for_member(name, step).is_ok() {
                return Ok(());
            }
        }
        tracing::info!(name, "too damaged: replaced");
        self.discard(name, damaged)?;
        self.admit(name, damaged)
    }

    /// A storage error is for the life of the process: after one it is started anew.
    fn restart(&mut self, name: &str) -> Result<(), LabError> {
        self.note_brief(Kind::Restart, name);
        self.stop(name)?;
        self.cluster.node_mut(name)?.start()
    }

    /// What one fault does to sessions beyond its name.
    fn note_brief(&self, kind: Kind, name: &str) {
        let now = self.recorder.now();
        self.note_fault(kind, name, now, now.later(Fault::BRIEF));
    }

    fn note_fault(&self, kind: Kind, name: &str, began: Moment, healed: Moment) {
        self.recorder.append(&Entry::Fault(Fault {
            kind: kind.name().to_owned(),
            nodes: [name.to_owned()].into(),
            began,
            healed: Some(healed),
            hit_leader: false,
            skipped: None,
        }));
    }

    fn disk(&self, name: &str) -> Result<&crate::lab::disk::Disk, LabError> {
        let disk = self.cluster.node(name)?.disk();
        disk.ok_or_else(|| LabError::Missing(format!("{name} has no disk of its own")))
    }

    /// Notes processes that ended by themselves, and starts them again.
    fn watch_processes(&mut self, restarts: bool) -> Result<(), LabError> {
        for name in self.names() {
            let is_owned = self.open.iter().any(|open| open.undo.owns(&name));
            let node = self.cluster.node_mut(&name)?;
            if let Some(status) = node.ended() {
                self.not_before
                    .insert(name.clone(), Instant::now() + RESTART_PAUSE);
                self.note_end(&name, Ending::Alone, status);
            } else if !node.is_running() && !is_owned && restarts {
                let is_due = (self.not_before.get(&name)).is_none_or(|at| Instant::now() >= *at);
                if is_due {
                    node.start()?;
                    self.publish_processes();
                }
            }
        }
        Ok(())
    }

    /// Tells those who look at processes which there are now.
    pub fn publish_processes(&self) {
        for node in self.cluster.nodes().iter().chain(self.cluster.spares()) {
            let pid = node.pid().and_then(|pid| pid.as_raw().try_into().ok());
            self.board.set_pid(node.name(), pid);
        }
    }
}

impl Undo {
    /// Whether a process of this node that is not there is the fault's doing, to be started when it is healed. A full disk ends none:
    /// the node leaves consensus and goes on serving.
    fn owns(&self, node: &str) -> bool {
        match self {
            Self::Start(names) | Self::Revive(names) => names.iter().any(|name| name == node),
            Self::Admit(name) => name == node,
            _ => false,
        }
    }
}

const NO_LEADER: &str = "nobody leads";

/// Done to the cluster as a whole, and no node lost anything by it.
fn nobody() -> Done {
    Done::Whole {
        touched: BTreeSet::new(),
    }
}

fn not_running(node: &str) -> Done {
    Done::Nothing(format!("{node} does not run"))
}

/// Flips bits in the larger files below a directory, and says how many; which ones follows from the draw.
fn flip_bits(directory: &Path, draw: u64) -> std::io::Result<usize> {
    let mut rng = StdRng::seed_from_u64(draw);
    let mut files = files_below(directory);
    // What is small is keys and locks: damage there is found by the first look.
    files.retain(|(_, size)| *size >= 1024);
    files.sort();
    let count = rng.random_range(1..=16);
    for _ in 0..count {
        let Some(place) = (!files.is_empty()).then(|| rng.random_range(0..files.len())) else {
            return Ok(0);
        };
        let Some((path, size)) = files.get(place) else {
            return Ok(0);
        };
        let at = rng.random_range(0..*size);
        let mut file = fs::File::options().read(true).write(true).open(path)?;
        let mut octet = [0];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut octet)?;
        let [old] = octet;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&[old ^ (1 << rng.random_range(0..8))])?;
    }
    Ok(count)
}

fn files_below(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = vec![];
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => directories.push(entry.path()),
                Ok(metadata) => found.push((entry.path(), metadata.len())),
                Err(_) => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_whose_disk_is_full_is_not_expected_to_end() {
        let name = || "n1".to_owned();
        for undo in [
            Undo::Start(vec![name()]),
            Undo::Revive(vec![name()]),
            Undo::Admit(name()),
        ] {
            assert!(undo.owns("n1") && !undo.owns("n2"), "{undo:?}");
        }
        assert!(!Undo::EmptyDisk(name()).owns("n1"));
    }

    #[test]
    fn bits_flip_as_drawn_and_only_in_large_files() {
        let directory = tempfile::tempdir().unwrap();
        let (large, small) = (directory.path().join("db"), directory.path().join("key"));
        let flipped = |draw| {
            fs::write(&large, [0; 4096]).unwrap();
            fs::write(&small, [0; 100]).unwrap();
            assert!((1..=16).contains(&flip_bits(directory.path(), draw).unwrap()));
            assert_eq!(fs::read(&small).unwrap(), [0; 100]);
            fs::read(&large).unwrap()
        };
        assert_eq!(flipped(1), flipped(1));
        assert_ne!(flipped(1), flipped(2));
        let set: u32 = flipped(3).iter().map(|octet| octet.count_ones()).sum();
        assert!((1..=16).contains(&set));
        let none = tempfile::tempdir().unwrap();
        assert_eq!(flip_bits(none.path(), 1).unwrap(), 0);
    }
}
