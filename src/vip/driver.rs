//! Carries out what the machine decides, on a thread of its own, and reports what is held.
//!
//! A thread with a runtime of its own, because a withdrawal that waits behind somebody else's work is late: nothing here waits
//! for a disk, a lock or another task. The lease is looked at once more, through the machine, right before every kernel call
//! and every frame. An address that is added or taken off takes its time where another program holds the kernel's lock; meanwhile
//! permissions are renewed, and an addition is given up when the lease is over. A node that may not change addresses (no
//! CAP_NET_ADMIN) says so in its status, holds nothing and goes on.
//!
//! `stop` withdraws everything first; dropping the driver does the same without waiting. If the process dies or is stopped, the
//! fence lets nothing pass once the lease is over, the kernel takes the addresses away (`interface::VALID_FOR`), and the next start
//! sweeps what is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use futures::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};

use super::{
    announce::Mac,
    connections::looks::Look,
    failing::Failing,
    fence::ruleset::Ruleset,
    first_look::{FirstLooks, MayLook},
    hands::{Done, Hands, HandsChange, Problem, Unserved},
    interface::{Change, InterfaceError},
    lookout::{Lookout, LookoutTiming, Outlook, Sight, Watched},
    machine::{Action, Event, Fencing, Machine, Phase, Target, Timing},
    neighbour::mac_text,
    notify::{Notice, Notifier, NotifyCommand, Turn},
};
use crate::{
    model::{
        label::Label,
        leadership::Leadership,
        node::NodeId,
        snapshot::Snapshot,
        vip::{UnclaimedVips, VipFacts, VipPeers},
    },
    priority::prefer_this_thread,
};

/// How long `stop` goes on trying to remove an address that the kernel will not let go.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// Actions that are carried out before their answers are judged together, and changes that are taken in together: what follows from them is
/// looked at for every VIP, so that each by itself would make a thousand VIPs cost a million looks.
const BATCH: usize = 64;

/// What holding a VIP means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The address is put on a device and announced.
    #[default]
    Kernel,
    /// The VIP is a loopback address, which every process has: no device is touched, the holder alone binds it. For the
    /// unprivileged local cluster.
    LoopbackStandIn,
}

/// Whether VIPs are held behind a fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FenceWish {
    /// Without a fence this node holds nothing.
    #[default]
    Required,
    /// Where it can be had.
    IfPossible,
    /// Not at all: for trying what becomes of a VIP then.
    Off,
}

/// How this node holds VIPs.
#[derive(Clone, Debug, Default)]
pub struct VipConfig {
    pub mode: Mode,
    pub fence: FenceWish,
    /// The rules belong to nobody, as they have to on kernels before 6.9: for trying what becomes of them then.
    pub unowned_fence: bool,
    /// Run when a VIP is claimed or released.
    pub notify: Option<NotifyCommand>,
    /// The device behind each logical interface name.
    pub interfaces: BTreeMap<Label, String>,
    pub timing: Timing,
    /// What the other members say of their VIPs; none: there are none.
    pub peers: Option<watch::Receiver<VipPeers>>,
    /// Own addresses of this node on which services answer.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Addresses without which this node is no member: they are never taken for VIPs here, whatever the state says. A fence in front
    /// of them would keep the node from hearing that the VIP is gone.
    pub needed: BTreeSet<IpAddr>,
    /// Addresses in the clients' network that answer as long as it is reached.
    pub reachable: BTreeSet<IpAddr>,
    /// What other hosts are to be looked for with.
    pub lookout: LookoutTiming,
}

/// What keeps others from hearing this node when its lease has lapsed and its process cannot act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fence {
    /// Nothing but the expiry of the address.
    #[default]
    None,
    /// Rules in the kernel that let frames about the VIP pass only while the lease lasts.
    Kernel,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fence::None => "none",
            Fence::Kernel => "kernel",
        })
    }
}

/// A VIP as it stands on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipStatus {
    pub address: IpAddr,
    pub interface: Label,
    /// None when `node.toml` maps the interface to no device.
    pub device: Option<String>,
    pub held: bool,
    /// When this node took it, by the wall clock.
    pub since: Option<SystemTime>,
    pub fence: Fence,
    /// What keeps it from being held or announced, in a sentence for the operator.
    pub problem: Option<String>,
    /// What is wrong with the device: this node could serve nobody through it.
    pub device_problem: Option<String>,
    /// Why the fence does not stand there, though it has to.
    pub fence_problem: Option<String>,
    /// Why it cannot be announced there.
    pub announce_problem: Option<String>,
    /// Why this node could not put it on the device for a second or more, and still could not.
    pub add_problem: Option<String>,
    /// The Ethernet address of a foreign host that uses this address too.
    pub conflict: Option<Mac>,
}

/// The driver could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VipError {
    #[error("cannot start the thread that holds VIPs: {0}")]
    Thread(#[source] io::Error),
    #[error("cannot start the thread that looks out for other hosts: {0}")]
    Lookout(#[source] io::Error),
    #[error("cannot start the thread that runs the notify command: {0}")]
    Notify(#[source] io::Error),
}

/// The running driver. `stop` it; dropping it withdraws too, but does not wait.
#[derive(Debug)]
pub struct VipDriver {
    status: watch::Receiver<Vec<VipStatus>>,
    held: watch::Receiver<BTreeSet<IpAddr>>,
    released: watch::Receiver<u64>,
    facts: watch::Receiver<VipFacts>,
    claims: watch::Receiver<UnclaimedVips>,
    pulse: Pulse,
    lookout: watch::Receiver<Outlook>,
    withdrawn: CancellationToken,
    stop: DropGuard,
    end: DropGuard,
    ended: CancellationToken,
    thread: JoinHandle<()>,
    notified: Notified,
}

/// The runs of the notify command that are not over yet.
#[derive(Debug)]
pub struct Notified(Option<CancellationToken>);

impl Notified {
    /// Waits until the last one has ended, but not longer than this.
    pub async fn wait(self, at_most: Duration) {
        if let Some(done) = self.0
            && tokio::time::timeout(at_most, done.cancelled())
                .await
                .is_err()
        {
            warn!("the notify command still runs after {at_most:?}");
        }
    }
}

impl VipDriver {
    /// Starts the thread. It first removes what an earlier process left on the devices, then follows the channels.
    ///
    /// Devices are those of the network namespace of the calling thread.
    pub fn start(
        config: VipConfig,
        leadership: watch::Receiver<Leadership>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Result<Self, VipError> {
        let (status_sender, status) = watch::channel(Vec::new());
        let (held_sender, held) = watch::channel(BTreeSet::new());
        let (released_sender, released) = watch::channel(0);
        let (facts_sender, facts) = watch::channel(VipFacts::default());
        let (claims_sender, claims) = watch::channel(UnclaimedVips::new());
        let (asked_sender, asked) = watch::channel(0);
        let (beat_sender, beat) = watch::channel(0);
        let (sight_sender, sight) = watch::channel(Sight::default());
        let lookout = match config.mode {
            Mode::Kernel => Lookout::start(config.lookout, config.reachable.clone(), sight),
            Mode::LoopbackStandIn => Ok(Lookout::none()),
        };
        let lookout = lookout.map_err(VipError::Lookout)?;
        let outlook = lookout.outlook();
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let (end, withdrawn) = (CancellationToken::new(), CancellationToken::new());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(VipError::Thread)?;
        let orders = Orders {
            stop: stop.clone(),
            end: end.clone(),
            withdrawn: withdrawn.clone(),
        };
        let over = ended.clone().drop_guard();
        let (notifier, notified) = match config.notify.clone() {
            Some(command) => Notifier::start(command)
                .map(|(notifier, done)| (Some(notifier), Some(done)))
                .map_err(VipError::Notify)?,
            None => (None, None),
        };
        let run = move || {
            let _over = over; // also when this panics
            prefer_this_thread();
            runtime.block_on(async {
                let reports = Reports {
                    status: status_sender,
                    held: held_sender,
                    released: released_sender,
                    facts: facts_sender,
                    claims: claims_sender,
                    beat: beat_sender,
                    sight: sight_sender,
                };
                let driver = Driver::new(config, leadership, reports, notifier, lookout, asked);
                driver.run(snapshots, orders).await;
            });
        };
        let thread = std::thread::Builder::new()
            .name("vip".to_owned())
            .spawn(run)
            .map_err(VipError::Thread)?;
        Ok(Self {
            status,
            held,
            released,
            facts,
            claims,
            pulse: Pulse {
                asked: asked_sender,
                beat,
            },
            lookout: outlook,
            withdrawn,
            stop: stop.drop_guard(),
            end: end.drop_guard(),
            ended,
            thread,
            notified: Notified(notified),
        })
    }

    /// Every VIP of the snapshot.
    pub fn status(&self) -> watch::Receiver<Vec<VipStatus>> {
        self.status.clone()
    }

    /// The VIPs that this node holds now. One is listed only after it is on its device, and no more before it is taken off.
    pub fn held(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.held.clone()
    }

    /// The last term under whose lease VIPs were held and are held no longer; 0 before there is one. Whoever waits to hand
    /// leadership over need not wait for the lease to lapse then.
    pub fn released(&self) -> watch::Receiver<u64> {
        self.released.clone()
    }

    /// What the other members are to know.
    pub fn facts(&self) -> watch::Receiver<VipFacts> {
        self.facts.clone()
    }

    /// The VIPs that this node holds, and that no member held since they were added.
    pub fn claims(&self) -> watch::Receiver<UnclaimedVips> {
        self.claims.clone()
    }

    /// Whether the thread lives.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// What is seen of other hosts on the segments of the VIPs.
    pub fn outlook(&self) -> watch::Receiver<Outlook> {
        self.lookout.clone()
    }

    /// Withdraws every VIP and claims none any more. Connections through those that were given away by plan are served on, until
    /// `Withdrawn::end`. Returns when done, at the latest after `STOP_WITHIN` and a second.
    pub async fn withdraw(self) -> Withdrawn {
        drop(self.stop);
        let patience = STOP_WITHIN + Duration::from_secs(1);
        let done = async {
            tokio::select! {
                () = self.withdrawn.cancelled() => {}
                () = self.ended.cancelled() => {}
            }
        };
        if tokio::time::timeout(patience, done).await.is_err() {
            error!("VIPs were not withdrawn within {patience:?}: the kernel drops their addresses");
        }
        Withdrawn {
            end: self.end,
            ended: self.ended,
            thread: self.thread,
            notified: self.notified,
        }
    }

    /// Withdraws every VIP, then ends. Returns when done, at the latest after twice `STOP_WITHIN` and a second.
    pub async fn stop(self) -> Notified {
        self.withdraw().await.end().await
    }
}

/// Asks the thread of a driver whether it lives.
#[derive(Clone, Debug)]
pub struct Pulse {
    asked: watch::Sender<u64>,
    beat: watch::Receiver<u64>,
}

impl Pulse {
    /// Whether it answers within this time.
    pub async fn beats(&mut self, within: Duration) -> bool {
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked = asked.wrapping_add(1);
            number = *asked;
        });
        let answered = self.beat.wait_for(|beat| *beat >= number);
        matches!(tokio::time::timeout(within, answered).await, Ok(Ok(_)))
    }
}

/// A driver that holds nothing any more, and serves what is left of connections.
#[derive(Debug)]
pub struct Withdrawn {
    end: DropGuard,
    ended: CancellationToken,
    thread: JoinHandle<()>,
    notified: Notified,
}

impl Withdrawn {
    /// Serves nothing any more, then ends.
    pub async fn end(self) -> Notified {
        drop(self.end);
        let patience = STOP_WITHIN + Duration::from_secs(1);
        match tokio::time::timeout(patience, self.ended.cancelled()).await {
            Ok(()) if self.thread.join().is_err() => error!("the thread that holds VIPs panicked"),
            Ok(()) => {}
            Err(_) => error!("the thread that holds VIPs has not ended within {patience:?}"),
        }
        self.notified
    }
}

/// What a driver is told from outside, and tells.
struct Orders {
    stop: CancellationToken,
    end: CancellationToken,
    withdrawn: CancellationToken,
}

/// The task.
struct Driver {
    machine: Machine,
    hands: Hands,
    /// What the hands are at, since it takes its time; the machine is held up.
    pending: Option<Pending>,
    leadership: watch::Receiver<Leadership>,
    reports: Reports,
    /// What keeps a VIP from being held, or from being withdrawn.
    problems: Problems,
    /// What keeps it from being announced.
    announcing: Problems,
    /// What cannot be put on its device.
    failing: Failing,
    /// What is wrong with the device of an interface, as last told.
    device_problems: BTreeMap<Label, String>,
    /// When each holding began, by both clocks.
    since: BTreeMap<Target, (Instant, SystemTime)>,
    /// VIPs of the snapshot.
    configured: BTreeSet<Target>,
    /// What the fence was last to be made for.
    fenced: BTreeSet<IpAddr>,
    /// What the machine was told of the fence.
    told: BTreeMap<Label, Fencing>,
    notifier: Option<Notifier>,
    peers: Option<watch::Receiver<VipPeers>>,
    own_addresses: BTreeSet<IpAddr>,
    needed: BTreeSet<IpAddr>,
    /// VIPs of the state that are among `needed`, as last told.
    refused: BTreeSet<IpAddr>,
    lookout: Lookout,
    asked: watch::Receiver<u64>,
    /// Who holds the VIPs while this node does not, as far as it heard last.
    holder: Option<NodeId>,
    /// VIPs that no member held yet: it is looked whether a foreign host has them.
    first_looks: FirstLooks,
    /// The same as the state knows them.
    unclaimed: UnclaimedVips,
}

/// What takes its time.
enum Pending {
    Add(Target),
    Remove,
}

/// What others may know.
struct Reports {
    status: watch::Sender<Vec<VipStatus>>,
    held: watch::Sender<BTreeSet<IpAddr>>,
    released: watch::Sender<u64>,
    facts: watch::Sender<VipFacts>,
    claims: watch::Sender<UnclaimedVips>,
    beat: watch::Sender<u64>,
    sight: watch::Sender<Sight>,
}

/// What woke the task.
enum Wake {
    Stop,
    End,
    Peers,
    Leadership,
    LeadershipEnded,
    Snapshot,
    SnapshotsEnded,
    Deadline,
    /// What could not be made, the fence or the socket for announcements, is to be tried again.
    TryAgain,
    Change(HandsChange),
    /// Somebody asks whether this thread lives.
    Asked,
    /// Something was seen of another host.
    Outlook,
}

impl Driver {
    fn new(
        config: VipConfig,
        leadership: watch::Receiver<Leadership>,
        reports: Reports,
        notifier: Option<Notifier>,
        lookout: Lookout,
        asked: watch::Receiver<u64>,
    ) -> Self {
        let (owned, interfaces) = (!config.unowned_fence, config.interfaces);
        let (hands, unless_told) = match (config.mode, config.fence) {
            (Mode::LoopbackStandIn, _) => (Hands::StandIn, Fencing::Unfenced),
            (Mode::Kernel, FenceWish::Off) => (
                Hands::kernel(interfaces, config.fence, owned),
                Fencing::Unfenced,
            ),
            (Mode::Kernel, FenceWish::Required | FenceWish::IfPossible) => (
                Hands::kernel(interfaces, config.fence, owned),
                Fencing::Down,
            ),
        };
        Self {
            machine: Machine::new(config.timing, unless_told),
            hands,
            pending: None,
            leadership,
            reports,
            problems: Problems::default(),
            announcing: Problems::default(),
            failing: Failing::default(),
            device_problems: BTreeMap::new(),
            since: BTreeMap::new(),
            configured: BTreeSet::new(),
            fenced: BTreeSet::new(),
            told: BTreeMap::new(),
            notifier,
            peers: config.peers,
            own_addresses: config.own_addresses,
            needed: config.needed,
            refused: BTreeSet::new(),
            lookout,
            asked,
            holder: None,
            first_looks: FirstLooks::default(),
            unclaimed: UnclaimedVips::new(),
        }
    }

    async fn run(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>, orders: Orders) {
        // The fence first: an address that an earlier process left is then unheard before it is gone.
        self.configured = self.take_configured(&mut snapshots);
        self.hands.look().await;
        self.hands.open_announcer();
        self.keep_fence().await;
        self.hands.sweep().await;
        self.first_looks.begin(&self.to_look_for(&self.configured));
        self.look_first().await;
        let (mut leadership_open, mut snapshots_open) = (true, true);
        let mut give_up_at = None;
        let mut ending = false;
        self.handle(Event::Configured(self.configured.clone()))
            .await;
        self.leadership.mark_changed();
        loop {
            if let Some(at) = give_up_at {
                let withdrawn = self.machine.is_withdrawn() || Instant::now() >= at;
                if withdrawn {
                    orders.withdrawn.cancel();
                }
                if withdrawn && ending {
                    break;
                }
            }
            let waiting = give_up_at.filter(|_| !orders.withdrawn.is_cancelled());
            let claims = self.machine.entitled(Instant::now());
            let deadlines = [
                self.machine.next_deadline(Instant::now()),
                waiting,
                self.first_looks.next_deadline(Instant::now()),
                self.failing.next_deadline(claims),
            ];
            let deadline = deadlines.into_iter().flatten().min();
            let hands_due = self.hands.due();
            // Every branch may be dropped: each waits for a condition that is still there the next time.
            let wake = tokio::select! {
                biased;
                () = orders.stop.cancelled(), if give_up_at.is_none() => Wake::Stop,
                () = orders.end.cancelled(), if !ending && give_up_at.is_some() => Wake::End,
                changed = self.leadership.changed(), if leadership_open => {
                    changed.map_or(Wake::LeadershipEnded, |()| Wake::Leadership)
                }
                () = sleep_until(deadline) => Wake::Deadline,
                change = self.hands.change() => Wake::Change(change),
                changed = snapshots.changed(), if snapshots_open => {
                    changed.map_or(Wake::SnapshotsEnded, |()| Wake::Snapshot)
                }
                () = sleep_until(hands_due) => Wake::TryAgain,
                () = changed(&mut self.peers) => Wake::Peers,
                Ok(()) = self.asked.changed() => Wake::Asked,
                () = self.lookout.changed() => Wake::Outlook,
            };
            match wake {
                Wake::Stop => {
                    give_up_at = Some(Instant::now() + STOP_WITHIN);
                    self.handle(Event::Stop).await;
                }
                Wake::End => {
                    ending = true;
                    self.handle(Event::End).await;
                }
                Wake::Asked => {
                    let number = *self.asked.borrow_and_update();
                    self.reports.beat.send_replace(number);
                }
                Wake::Outlook => self.handle_outlook(),
                Wake::Peers => {
                    self.keep_chance();
                    self.publish();
                }
                Wake::Leadership => {
                    let event = Event::Leadership(*self.leadership.borrow_and_update());
                    self.handle(event).await;
                }
                // Whoever knew of a lease is gone, and with it the lease.
                Wake::LeadershipEnded => {
                    leadership_open = false;
                    let leadership = Leadership {
                        lease_until: None,
                        ..*self.leadership.borrow()
                    };
                    self.handle(Event::Leadership(leadership)).await;
                }
                Wake::Snapshot => {
                    let targets = self.take_configured(&mut snapshots);
                    self.handle_configured(targets).await
                }
                Wake::SnapshotsEnded => snapshots_open = false,
                Wake::Deadline => self.handle(Event::Deadline).await,
                Wake::TryAgain => {
                    self.hands.open_announcer();
                    self.keep_fence().await;
                }
                Wake::Change(change) => {
                    let changes = self.changes_after(change);
                    self.handle_changes(changes).await;
                }
            }
            // Whatever woke the task: the time may be over.
            self.look_first().await;
            self.look_at_failures().await;
            self.unfence_what_is_gone().await;
        }
    }

    /// The VIPs of the state but for those that this node cannot do without, or that are every host's own.
    fn take_configured(
        &mut self,
        snapshots: &mut watch::Receiver<Arc<Snapshot>>,
    ) -> BTreeSet<Target> {
        let snapshot = snapshots.borrow_and_update().clone();
        let is_own = |ip: IpAddr| self.needed.contains(&ip) || self.hands.is_the_hosts(ip);
        let (own, vips): (Vec<_>, Vec<_>) =
            (snapshot.vips.values()).partition(|vip| is_own(vip.address));
        let own: BTreeSet<IpAddr> = own.into_iter().map(|vip| vip.address).collect();
        for vip in own.difference(&self.refused) {
            error!(%vip, "this node needs this address itself and takes it for no VIP: remove the VIP");
        }
        self.refused = own;
        let unclaimed = snapshot.unclaimed_vips.iter();
        self.unclaimed = unclaimed.map(|(address, at)| (*address, *at)).collect();
        vips.into_iter().map(Target::from).collect()
    }

    /// Those of `targets` that no member held, and when they were added.
    fn to_look_for(&self, targets: &BTreeSet<Target>) -> BTreeMap<Target, u64> {
        // One that goes to another interface is not new, if this node holds it.
        let held: BTreeSet<IpAddr> = self.since.keys().map(|target| target.address).collect();
        let others = targets.iter().filter(|t| !held.contains(&t.address));
        others
            .filter_map(|t| Some((t.clone(), *self.unclaimed.get(&t.address)?)))
            .collect()
    }

    /// A VIP is in the fence before it is claimed, and until it is withdrawn.
    async fn handle_configured(&mut self, targets: BTreeSet<Target>) {
        // Before the machine knows of them: it would claim them.
        let new = self.to_look_for(&targets);
        self.first_looks.begin(&new);
        self.look_first().await;
        self.configured.extend(targets.iter().cloned());
        self.keep_fence().await;
        self.configured.clone_from(&targets);
        self.handle(Event::Configured(targets)).await;
        // Not before the machine knows that it is gone: it would claim it.
        self.first_looks.forget_unless(&new);
        self.keep_fence().await;
    }

    /// A VIP that no member held is claimed when nobody speaks for it for a moment.
    async fn look_first(&mut self) {
        if self.first_looks.is_empty() && self.machine.withheld().is_empty() {
            return;
        }
        let now = Instant::now();
        let may_look = match (self.machine.entitled(now), self.lookout.sees()) {
            (false, _) => MayLook::NotYet,
            (true, true) => MayLook::Yes,
            (true, false) => MayLook::Never,
        };
        let lookout = &self.lookout;
        let is_spoken_for = |target: &Target| lookout.is_spoken_for(target);
        let news = self.first_looks.observe(may_look, is_spoken_for, now);
        let withheld = self.first_looks.withheld();
        if self.machine.withheld() != &withheld {
            self.handle(Event::Withheld(withheld)).await;
        }
        if news {
            self.publish();
        }
    }

    /// What could not be put on its device while this node led is looked at again while it does not.
    async fn look_at_failures(&mut self) {
        if self.failing.is_empty() {
            return;
        }
        let now = Instant::now();
        let claims = self.machine.entitled(now);
        let machine = &self.machine;
        let known = |target: &Target| machine.phase(target).is_some();
        for target in self.failing.observe(known, claims, now) {
            let looked = self.hands.may_add(&target).await;
            match looked.map_err(|problem| (problem.in_the_way(), problem)) {
                Err((Some(again), problem)) => {
                    self.failing.found(&target, problem.to_string(), again)
                }
                Ok(()) | Err((None, _)) => {
                    info!(vip = %target.address, interface = %target.interface, "nothing keeps the VIP from its device any more");
                    self.failing.solved(&target);
                    self.problems.solved(&target);
                }
            }
        }
        self.publish();
    }

    /// Makes the fence what it has to be, and tells the machine where it stands.
    async fn keep_fence(&mut self) {
        let vips = self.to_fence();
        self.fenced.clone_from(&vips);
        let wanted = |devices| Ruleset { vips, devices };
        self.hands.keep_fence(wanted);
        self.tell_fencing().await;
    }

    /// What is configured, or may be on a device still.
    fn to_fence(&self) -> BTreeSet<IpAddr> {
        let mut vips: BTreeSet<IpAddr> = self.configured.iter().map(|t| t.address).collect();
        vips.extend(self.machine.phases().filter_map(|(target, phase)| {
            let off = matches!(phase, Phase::Withdrawn { .. });
            (!off).then_some(target.address)
        }));
        vips
    }

    /// An address that is no VIP any more, and took its time to go, may be used for something else.
    async fn unfence_what_is_gone(&mut self) {
        if self.fenced.len() > self.configured.len() && self.fenced != self.to_fence() {
            self.keep_fence().await;
        }
    }

    async fn tell_fencing(&mut self) {
        for (interface, fencing) in self.hands.fencing() {
            if self.told.insert(interface.clone(), fencing) != Some(fencing) {
                self.handle(Event::Fenced(interface, fencing)).await;
            }
        }
        self.publish();
    }

    /// Somebody changed the rules, or may have. If they are not whole: what is held is withdrawn, then the rules are restored, and
    /// only then it is claimed again.
    async fn handle_fence_change(&mut self) {
        if !self.hands.fence_is_damaged() {
            return;
        }
        warn!(
            "the rules of the fence were changed by somebody else; withdrawing the VIPs and restoring the rules"
        );
        let since = Instant::now();
        self.tell_fencing().await;
        self.keep_fence().await;
        if self
            .told
            .values()
            .any(|fencing| *fencing == Fencing::Standing)
        {
            info!(took = ?since.elapsed(), "the fence stands again");
        }
    }

    /// Feeds the machine, and does what it says until it has nothing left to say.
    async fn handle(&mut self, event: Event) {
        self.handle_all([event]).await;
    }

    async fn handle_all(&mut self, events: impl IntoIterator<Item = Event>) {
        self.machine.handle_all(events, Instant::now());
        while self.do_next().await {}
    }

    /// Carries out what the machine says, `BATCH` actions at most, and tells it what came of them. Whether there was anything. Every
    /// action looks at the lease by itself: what was taken back meanwhile is not done.
    async fn do_next(&mut self) -> bool {
        self.look_at_the_lease();
        self.give_up_what_was_taken_back();
        // Before others hear that a VIP was let go.
        self.keep_chance();
        // However much there is to do: what is for a VIP whose connections are looked at is held up until then.
        while let Some(look) = self.hands.look_that_ended() {
            let seen = self.seen(&look);
            self.machine.handle_all(seen, Instant::now());
        }
        self.publish();
        let entitled = self.machine.entitled(Instant::now());
        let (mut answers, mut done) = (vec![], 0);
        while done < BATCH {
            let has_news = self.leadership.has_changed().unwrap_or(false);
            if has_news || self.machine.entitled(Instant::now()) != entitled {
                break; // the machine sees that first
            }
            let actions = self.machine.poll_alike(BATCH);
            if actions.is_empty() {
                break;
            }
            done += actions.len();
            answers.extend(self.carry_out_all(actions).await);
            // Nobody hears what is not permitted: it need not be announced.
            if matches!(answers.last(), Some(Event::PermitFailed(_))) {
                break;
            }
        }
        if done > 0 {
            self.machine.handle_all(answers, Instant::now());
        }
        done > 0 || self.machine.has_actions()
    }

    /// Lets the machine see the newest leadership and the time: it takes back what is no longer permitted.
    fn look_at_the_lease(&mut self) {
        let event = match self.leadership.has_changed() {
            Ok(true) => Event::Leadership(*self.leadership.borrow_and_update()),
            Ok(false) | Err(_) => Event::Deadline,
        };
        self.machine.handle(event, Instant::now());
    }

    /// What was taken back while it is added is added no further; the `Remove` behind it gives the answer.
    fn give_up_what_was_taken_back(&mut self) {
        if let Some(Pending::Add(target)) = &self.pending
            && self.machine.phase(target) != Some(Phase::Adding)
        {
            self.hands.give_up_adding();
            self.go_on();
        }
    }

    fn hold_up(&mut self, pending: Pending) {
        self.pending = Some(pending);
        self.machine.hold_up();
    }

    fn go_on(&mut self) {
        self.pending = None;
        self.machine.go_on();
    }

    async fn carry_out_all(&mut self, actions: Vec<Action>) -> Vec<Event> {
        let (mut removed, mut served, mut answers) = (vec![], vec![], vec![]);
        let mut silenced = vec![];
        for action in actions {
            match action {
                Action::Silence(target) => silenced.push(target),
                Action::Remove(target) => removed.push(target),
                Action::Serve(target) => served.push(target),
                Action::Add(target) => answers.extend(self.add(target).await),
                other => answers.extend(self.carry_out(other).await),
            }
        }
        if !silenced.is_empty() {
            self.silence(&silenced);
        }
        if !removed.is_empty() {
            answers.extend(self.remove(&removed).await);
        }
        if !served.is_empty() {
            answers.extend(self.serve(served).await);
        }
        answers
    }

    /// Does it, unless it was taken back meanwhile; then a `Remove` stands behind it in the queue and gives the answer.
    async fn carry_out(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Renew(target) => {
                if self.machine.may_renew(&target, Instant::now()) {
                    let outcome = self.hands.begin_renewal(&target)?;
                    Some(self.added(target, outcome))
                } else {
                    None
                }
            }
            Action::Permit {
                mut targets,
                lease_until,
            } => {
                let now = Instant::now();
                targets.retain(|target| self.machine.may_permit(target, now));
                Some(self.permit(targets, lease_until))
            }
            // By `carry_out_all`.
            Action::Add(_) | Action::Silence(_) | Action::Remove(_) | Action::Serve(_) => None,
            Action::EndServe(target) => {
                self.hands.end_serve(&target).await;
                info!(vip = %target.address, "no connection through the VIP is served any more");
                None
            }
            Action::Announce(target) => {
                if self.machine.may_announce(&target, Instant::now()) {
                    match self.hands.announce(&target) {
                        Ok(()) => self.announcing.solved(&target),
                        Err(problem) => self.announcing.note(&target, &problem),
                    }
                }
                None
            }
        }
    }

    /// Defends what is held against hosts that use it too, and tells of them.
    fn handle_outlook(&mut self) {
        for target in self.lookout.to_defend() {
            if self.machine.may_announce(&target, Instant::now())
                && let Err(problem) = self.hands.announce(&target)
            {
                self.announcing.note(&target, &problem);
            }
        }
        self.publish();
    }

    /// What the lookout has to know.
    fn sight(&self) -> Sight {
        let peers = self.known_peers();
        let targets = self.machine.phases().filter_map(|(target, phase)| {
            let port = self.hands.port(&target.interface)?;
            let held = matches!(phase, Phase::Held { .. });
            let is_new = self.first_looks.is_looking(target);
            Some((target.clone(), Watched { port, held, is_new }))
        });
        Sight {
            targets: targets.collect(),
            members: peers.macs(),
            neighbours: peers.service_addresses(),
        }
    }

    fn silence(&mut self, targets: &[Target]) {
        for (target, problem) in self.hands.silence(targets) {
            self.problems.note(&target, &problem); // the permission ends by itself now
        }
        for target in targets {
            if matches!(self.machine.phase(target), Some(Phase::Silent { .. })) {
                let why = self.machine.reason(target, Instant::now()).as_str();
                info!(vip = %target.address, interface = %target.interface, why, "VIP silent");
            }
        }
    }

    async fn serve(&mut self, mut targets: Vec<Target>) -> Vec<Event> {
        targets.retain(|target| self.machine.may_serve(target));
        let peers = self.known_peers();
        let mut answers = vec![];
        for (target, why) in self.hands.serve(targets, &peers).await {
            if let Unserved::Problem(problem) = why {
                warn!(vip = %target.address, %problem, "connections through the VIP are not kept");
            }
            let relays = false;
            answers.push(Event::Quiet { target, relays });
        }
        answers
    }

    /// What a look at the connections tells of what is served.
    fn seen(&mut self, look: &Look) -> Vec<Event> {
        let seen = self.hands.see(look).into_iter();
        let told = seen.map(|(target, busy)| match busy {
            true => Event::Busy(target),
            false => Event::Quiet {
                relays: self.hands.relays(target.address),
                target,
            },
        });
        told.collect()
    }

    fn known_peers(&self) -> VipPeers {
        let peers = self.peers.as_ref();
        peers.map_or_else(VipPeers::default, |peers| peers.borrow().clone())
    }

    /// Has the connections of the old holder passed on to it, before this node is heard, for as long as there are any. A node that
    /// serves its own for the present holder does the same with what that one passes on to it, for the holder before.
    fn keep_chance(&mut self) {
        let entitled = self.machine.entitled(Instant::now());
        let here = self.machine.phases().filter(|(_, phase)| match phase {
            // Behind the closed fence nothing comes here.
            Phase::Withdrawn { .. } | Phase::Stuck { .. } => false,
            Phase::Adding | Phase::Permitting { .. } => entitled,
            // A lease that has just lapsed or was given up changes nothing: the fence may be open for milliseconds yet, and what comes
            // through would be answered with a reset.
            Phase::Silent { .. } | Phase::Held { .. } | Phase::Removing => true,
        });
        let mut moved: BTreeSet<Target> = here.map(|(target, _)| target.clone()).collect();
        let peers = self.known_peers();
        if moved.is_empty() {
            let leadership = *self.leadership.borrow();
            // While a leader is being elected, the one before may still hold; by a planned move it does. So it may while this node
            // leads and does not hold yet.
            let other = leadership.leader.filter(|id| peers.facts.contains_key(id));
            self.holder = leadership.heir.or(other).or(self.holder);
        } else {
            self.holder = None;
        }
        // What the hands still serve, though it is to end: it comes through until it has.
        moved.extend(self.hands.served());
        // Of every VIP: what is passed on for one need not be made anew because another has nothing to be passed on any more.
        let known = self.machine.phases().map(|(target, _)| target);
        let interfaces = known.chain(&moved).map(|t| t.interface.clone()).collect();
        let old_holders = moved
            .into_iter()
            .filter_map(|target| {
                let mac = peers.old_holder(target.address, &target.interface, self.holder)?;
                Some((target, mac))
            })
            .collect();
        let members = peers.macs_without(self.holder);
        self.hands.keep_chance(&old_holders, &interfaces, members);
    }

    /// Does it, unless it was taken back meanwhile; then a `Remove` stands behind it in the queue and gives the answer.
    async fn add(&mut self, target: Target) -> Vec<Event> {
        if !self.machine.may_add(&target, Instant::now()) {
            return vec![];
        }
        match self.hands.add(&target).await {
            Some(done) => self.answers_to(done),
            None => {
                self.hold_up(Pending::Add(target));
                vec![]
            }
        }
    }

    /// What the machine is told of an addition or removal that has ended.
    fn answers_to(&mut self, done: Done) -> Vec<Event> {
        match done {
            Done::Added(target, outcome) => {
                if outcome.is_ok() {
                    let term = self.leadership.borrow().term;
                    info!(vip = %target.address, interface = %target.interface, term, "VIP taken");
                }
                vec![self.added(target, outcome)]
            }
            Done::Removed(outcomes) => {
                let outcomes = outcomes.into_iter();
                outcomes
                    .map(|(t, outcome)| self.removed(t, outcome))
                    .collect()
            }
        }
    }

    /// What took its time has ended.
    async fn handle_done(&mut self, done: Done) {
        self.go_on();
        let answers = self.answers_to(done);
        self.handle_all(answers).await;
    }

    fn permit(&mut self, targets: BTreeSet<Target>, lease_until: Instant) -> Event {
        match self.hands.permit(&targets, lease_until) {
            Ok(()) => Event::Permitted(targets),
            Err(problem) => {
                for target in &targets {
                    self.problems.note(target, &problem);
                }
                Event::PermitFailed(targets)
            }
        }
    }

    fn added(&mut self, target: Target, outcome: Result<(), Problem>) -> Event {
        match outcome {
            Ok(()) => {
                self.problems.solved(&target);
                self.failing.solved(&target);
                Event::Added(target)
            }
            Err(problem) => {
                self.problems.note(&target, &problem);
                match problem.in_the_way() {
                    Some(again) => {
                        let (text, now) = (problem.to_string(), Instant::now());
                        self.failing.failed(&target, text, again, now);
                    }
                    // Other checks see that.
                    None => self.failing.solved(&target),
                }
                Event::AddFailed(target)
            }
        }
    }

    async fn remove(&mut self, targets: &[Target]) -> Vec<Event> {
        // A permission is one for all devices: that of a VIP that is heard on another one stays.
        let phases = self.machine.phases();
        let is_heard = |phase| matches!(phase, Phase::Permitting { .. } | Phase::Held { .. });
        let heard = phases.filter(|(_, phase)| is_heard(*phase));
        let heard = heard.map(|(target, _)| target.address).collect();
        match self.hands.remove(targets, &heard).await {
            Some(done) => self.answers_to(done),
            None => {
                self.hold_up(Pending::Remove);
                vec![]
            }
        }
    }

    fn removed(&mut self, target: Target, outcome: Result<bool, Problem>) -> Event {
        match outcome {
            Ok(was_ours) => {
                if was_ours {
                    let why = self.machine.reason(&target, Instant::now()).as_str();
                    info!(vip = %target.address, interface = %target.interface, why, "VIP withdrawn");
                }
                Event::Removed(target)
            }
            Err(problem) => {
                self.problems.note(&target, &problem);
                Event::RemoveFailed(target)
            }
        }
    }

    /// A change and those that wait behind it.
    fn changes_after(&mut self, first: HandsChange) -> Vec<HandsChange> {
        let mut changes = vec![first];
        while changes.len() < BATCH
            && let Some(next) = self.hands.change().now_or_never()
        {
            changes.push(next);
        }
        changes
    }

    async fn handle_changes(&mut self, changes: Vec<HandsChange>) {
        let (mut fence, mut devices, mut renewals) = (false, vec![], vec![]);
        let (mut seen, mut done) = (vec![], None);
        for change in changes {
            match change {
                HandsChange::Looked(look) => seen.extend(self.seen(&look)),
                HandsChange::Fence => fence = true,
                HandsChange::Device(change) => devices.push(change),
                HandsChange::Renewed(target, outcome) => renewals.push((target, outcome)),
                HandsChange::Done(one) => done = Some(one), // nothing else is begun before it is taken in
            }
        }
        // First: what comes next may give up what has ended.
        if let Some(done) = done {
            self.handle_done(done).await;
        }
        if fence {
            self.handle_fence_change().await;
        }
        // What is gone since is seen as it is now.
        if !renewals.is_empty() {
            self.handle_renewals(renewals).await;
        }
        if !devices.is_empty() {
            self.handle_device_changes(&devices).await;
        }
        if !seen.is_empty() {
            self.handle_all(seen).await;
        }
    }

    async fn handle_device_changes(&mut self, changes: &[Change]) {
        let mut ready = BTreeSet::new();
        for change in changes {
            let (readied, changed) = self.hands.readied_by(change).await;
            ready.extend(readied);
            // Each by itself: what went and came back just as it was has lost its rules all the same.
            if changed {
                self.keep_fence().await;
                self.keep_chance();
            }
        }
        self.tell_of_devices();
        let lost = self.hands.lost(self.maybe_gone(changes)).await;
        let renews = self.machine.entitled(Instant::now());
        for target in &lost {
            let (vip, interface) = (&target.address, &target.interface);
            match renews {
                true => warn!(%vip, %interface, "VIP was taken off the device by somebody else"),
                // As where this process stood still.
                false => info!(%vip, %interface, "VIP is off the device: it was not renewed"),
            }
        }
        let missing = lost.into_iter().map(Event::Missing);
        let ready = ready.into_iter().map(Event::LinkReady);
        self.handle_all(missing.chain(ready)).await;
    }

    async fn handle_renewals(&mut self, renewals: Vec<(Target, Result<(), Problem>)>) {
        let mut events = vec![];
        for (target, outcome) in renewals {
            match outcome {
                // The kernel has the request and may come to it yet. If it does not in time, the address expires, and is missed.
                Err(problem @ Problem::Interface(InterfaceError::Timeout { .. })) => {
                    self.problems.note(&target, &problem);
                }
                outcome => events.push(self.added(target, outcome)),
            }
        }
        self.handle_all(events).await;
    }

    /// Says which devices are usable no more, and which are again.
    fn tell_of_devices(&mut self) {
        let now = self.hands.device_problems();
        for (interface, problem) in &now {
            if self.device_problems.get(interface) != Some(problem) {
                warn!(%interface, problem, "VIPs cannot be held there");
            }
        }
        for interface in self.device_problems.keys() {
            if !now.contains_key(interface) {
                info!(%interface, "the device is usable");
            }
        }
        self.device_problems = now;
    }

    /// The VIPs that are held as far as the machine knows, and that the changes may have taken away.
    fn maybe_gone(&self, changes: &[Change]) -> Vec<Target> {
        let mut any = false;
        let mut gone = BTreeSet::new();
        for change in changes {
            match change {
                Change::AddressGone { address, .. } => {
                    gone.insert(*address);
                }
                Change::Overrun => any = true,
                Change::Device(_) | Change::DeviceGone(_) => {}
            }
        }
        let affected = |target: &Target| any || gone.contains(&target.address);
        self.machine
            .phases()
            .filter(|(target, phase)| {
                let there = matches!(
                    phase,
                    Phase::Held { .. } | Phase::Permitting { .. } | Phase::Silent { .. }
                );
                there && affected(target)
            })
            .map(|(target, _)| target.clone())
            .collect()
    }

    /// Reports, if anything changed.
    fn publish(&mut self) {
        let held = self.held_since();
        let (machine, claims) = (&self.machine, self.machine.claims());
        self.problems
            .forget_unless(|target| lasts(machine.phase(target), claims));
        self.announcing
            .forget_unless(|target| matches!(machine.phase(target), Some(Phase::Held { .. })));
        let ended = |target: &Target, since: &Instant| held.get(target) != Some(since);
        for (target, _) in self.since.iter().filter(|(t, (since, _))| ended(t, since)) {
            self.notify(Turn::Release, target);
        }
        self.since
            .retain(|target, (since, _)| !ended(target, since));
        for (target, since) in held {
            if !self.since.contains_key(&target) {
                self.notify(Turn::Claim, &target);
                self.since.insert(target, (since, SystemTime::now()));
            }
        }
        // Before what is held: whoever hears of that finds it in the status.
        let status = self
            .machine
            .phases()
            .map(|(target, _)| self.status_of(target))
            .collect();
        self.reports
            .status
            .send_if_modified(|old| replace(old, status));
        let addresses: BTreeSet<_> = self.since.keys().map(|target| target.address).collect();
        self.reports
            .held
            .send_if_modified(|old| replace(old, addresses.clone()));
        let facts = VipFacts {
            macs: self.hands.macs(),
            serving: self.machine.carrying().map(|t| t.address).collect(),
            addresses: self.own_addresses.clone(),
        };
        let held = |(address, _): &(&IpAddr, &u64)| addresses.contains(address);
        let claims = self.unclaimed.iter().filter(held);
        let claims = claims.map(|(address, at)| (*address, *at)).collect();
        self.reports
            .claims
            .send_if_modified(|old| replace(old, claims));
        let sight = self.sight();
        self.reports
            .sight
            .send_if_modified(|old| replace(old, sight));
        self.reports
            .facts
            .send_if_modified(|old| replace(old, facts));
        if let Some(term) = self.machine.released() {
            self.reports
                .released
                .send_if_modified(|old| replace(old, term));
        }
    }

    fn notify(&self, turn: Turn, target: &Target) {
        if let Some(notifier) = &self.notifier {
            notifier.send(Notice {
                turn,
                address: target.address,
                interface: target.interface.clone(),
                device: self.hands.device_of(&target.interface),
                term: self.leadership.borrow().term,
            });
        }
    }

    fn held_since(&self) -> BTreeMap<Target, Instant> {
        self.machine
            .phases()
            .filter_map(|(target, phase)| match phase {
                Phase::Held { since, .. } => Some((target.clone(), since)),
                _ => None,
            })
            .collect()
    }

    /// Why a VIP is not claimed though nothing else hinders it.
    fn withheld_from(&self, target: &Target) -> Option<String> {
        if !self.first_looks.is_looking(target) {
            return None;
        }
        let Some(mac) = self.lookout.conflict(target) else {
            let looked = "not taken yet: it is looked whether a foreign host has this address, for a second, since no member has held the VIP so far";
            return Some(looked.to_owned());
        };
        let host = mac_text(mac);
        Some(format!(
            "not taken: the host {host} has this address; choose another, or take it from that host"
        ))
    }

    fn status_of(&self, target: &Target) -> VipStatus {
        let since = self.since.get(target).map(|(_, wall)| *wall);
        let device = self.hands.device_of(&target.interface);
        let fence = match self.told.get(&target.interface) {
            Some(Fencing::Standing) => Fence::Kernel,
            Some(Fencing::Unfenced | Fencing::Down) | None => Fence::None,
        };
        VipStatus {
            address: target.address,
            interface: target.interface.clone(),
            held: since.is_some(),
            since,
            fence,
            problem: self
                .problems
                .of(target)
                .or_else(|| self.announcing.of(target))
                .or_else(|| self.failing.problem(target).map(str::to_owned))
                .or_else(|| self.withheld_from(target))
                // Told before this node leads: then it would be too late to find out.
                .or_else(|| self.hands.obstacle(&target.interface)),
            device_problem: self.hands.device_problem(&target.interface),
            fence_problem: self.hands.fence_problem(&target.interface),
            announce_problem: self.hands.announce_problem(&target.interface),
            add_problem: self.failing.problem(target).map(str::to_owned),
            conflict: self.lookout.conflict(target),
            device,
        }
    }
}

/// What is wrong with each VIP. A problem is logged once, not at every attempt.
#[derive(Default)]
struct Problems(BTreeMap<Target, String>);

impl Problems {
    fn note(&mut self, target: &Target, problem: &Problem) {
        let text = problem.to_string();
        if self.0.get(target) != Some(&text) {
            error!(vip = %target.address, interface = %target.interface, problem = %text, "VIP trouble");
            self.0.insert(target.clone(), text);
        }
    }

    fn solved(&mut self, target: &Target) {
        self.0.remove(target);
    }

    fn forget_unless(&mut self, known: impl Fn(&Target) -> bool) {
        self.0.retain(|target, _| known(target));
    }

    fn of(&self, target: &Target) -> Option<String> {
        self.0.get(target).cloned()
    }
}

/// Whether a problem of holding a VIP goes on: not where the VIP was let go. `claims`: this node is to hold VIPs, and tries again.
fn lasts(phase: Option<Phase>, claims: bool) -> bool {
    match phase {
        None => false,
        Some(Phase::Withdrawn { .. }) => claims,
        Some(
            Phase::Adding
            | Phase::Permitting { .. }
            | Phase::Silent { .. }
            | Phase::Held { .. }
            | Phase::Removing
            | Phase::Stuck { .. },
        ) => true,
    }
}

/// Waits for news, if any can come.
async fn changed(peers: &mut Option<watch::Receiver<VipPeers>>) {
    if let Some(open) = peers
        && open.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let differs = *old != new;
    *old = new;
    differs
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
