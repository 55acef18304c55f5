//! Carries out what the machine decides, on a thread of its own, and reports what is held.
//!
//! A thread with a runtime of its own, because a withdrawal that waits behind somebody else's work is late: nothing here waits
//! for a disk, a lock or another task. The lease is looked at once more, through the machine, right before every kernel call
//! and every frame. A node that may not change addresses (no CAP_NET_ADMIN) says so in its status, holds nothing and goes on.
//!
//! `stop` withdraws everything first; dropping the driver does the same without waiting. If the process dies, the kernel
//! takes the addresses away (`interface::VALID_FOR`), and the next start sweeps what is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};

use super::{
    announce::{Announcer, announcement},
    interface::{Change, Changes, Device, InterfaceError, Interfaces},
    machine::{Action, Event, Machine, Phase, Target, Timing},
};
use crate::model::{label::Label, leadership::Leadership, snapshot::Snapshot};

/// How long `stop` goes on trying to remove an address that the kernel will not let go.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// Between attempts to open the change socket again after it failed.
const WATCH_AGAIN_AFTER: Duration = Duration::from_secs(1);

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

/// How this node holds VIPs.
#[derive(Clone, Debug, Default)]
pub struct VipConfig {
    pub mode: Mode,
    /// The device behind each logical interface name.
    pub interfaces: BTreeMap<Label, String>,
    pub timing: Timing,
}

/// What keeps others from hearing this node when its lease has lapsed and its process cannot act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fence {
    /// Nothing but the expiry of the address.
    #[default]
    None,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fence::None => "none",
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
}

/// The driver could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VipError {
    #[error("cannot start the thread that holds VIPs: {0}")]
    Thread(#[source] io::Error),
}

/// The running driver. `stop` it; dropping it withdraws too, but does not wait.
#[derive(Debug)]
pub struct VipDriver {
    status: watch::Receiver<Vec<VipStatus>>,
    held: watch::Receiver<BTreeSet<IpAddr>>,
    released: watch::Receiver<u64>,
    stop: DropGuard,
    ended: CancellationToken,
    thread: JoinHandle<()>,
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
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(VipError::Thread)?;
        let (stopping, end) = (stop.clone(), ended.clone().drop_guard());
        let run = move || {
            let _end = end; // also when this panics
            prefer_this_thread();
            runtime.block_on(async {
                let reports = Reports {
                    status: status_sender,
                    held: held_sender,
                    released: released_sender,
                };
                let driver = Driver::new(config, leadership, reports);
                driver.run(snapshots, stopping).await;
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
            stop: stop.drop_guard(),
            ended,
            thread,
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

    /// Withdraws every VIP, then ends. Returns when done, at the latest after `STOP_WITHIN` and a second.
    pub async fn stop(self) {
        drop(self.stop);
        let patience = STOP_WITHIN + Duration::from_secs(1);
        match tokio::time::timeout(patience, self.ended.cancelled()).await {
            Ok(()) if self.thread.join().is_err() => error!("the thread that holds VIPs panicked"),
            Ok(()) => {}
            Err(_) => error!(
                "VIPs were not withdrawn within {patience:?}: the kernel drops their addresses"
            ),
        }
    }
}

/// Asks for a better place in the scheduler: a late withdrawal costs more than anything else a busy node does late. Needs a
/// privilege; without it the margin before the lapse has to do.
#[expect(unsafe_code, reason = "a system call that nix does not offer")]
fn prefer_this_thread() {
    // SAFETY: takes three integers; on Linux 0 means the calling thread.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) };
}

/// The task.
struct Driver {
    machine: Machine,
    hands: Hands,
    leadership: watch::Receiver<Leadership>,
    reports: Reports,
    /// What keeps a VIP from being held, or from being withdrawn.
    problems: Problems,
    /// What keeps it from being announced.
    announcing: Problems,
    /// When each holding began, by both clocks.
    since: BTreeMap<Target, (Instant, SystemTime)>,
}

/// What others may know.
struct Reports {
    status: watch::Sender<Vec<VipStatus>>,
    held: watch::Sender<BTreeSet<IpAddr>>,
    released: watch::Sender<u64>,
}

/// What woke the task.
enum Wake {
    Stop,
    Leadership,
    LeadershipEnded,
    Snapshot,
    SnapshotsEnded,
    Deadline,
    Change(Change),
}

impl Driver {
    fn new(config: VipConfig, leadership: watch::Receiver<Leadership>, reports: Reports) -> Self {
        Self {
            machine: Machine::new(config.timing),
            hands: match config.mode {
                Mode::Kernel => Hands::Kernel(Kernel::new(config.interfaces)),
                Mode::LoopbackStandIn => Hands::StandIn,
            },
            leadership,
            reports,
            problems: Problems::default(),
            announcing: Problems::default(),
            since: BTreeMap::new(),
        }
    }

    async fn run(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>, stop: CancellationToken) {
        self.hands.sweep().await;
        let (mut leadership_open, mut snapshots_open) = (true, true);
        let mut give_up_at = None;
        self.handle(configured(&mut snapshots)).await;
        self.leadership.mark_changed();
        while give_up_at
            .is_none_or(|at: Instant| !self.machine.is_withdrawn() && Instant::now() < at)
        {
            let deadline = [self.machine.next_deadline(Instant::now()), give_up_at]
                .into_iter()
                .flatten()
                .min();
            // Every branch may be dropped: each waits for a condition that is still there the next time.
            let wake = tokio::select! {
                biased;
                () = stop.cancelled(), if give_up_at.is_none() => Wake::Stop,
                changed = self.leadership.changed(), if leadership_open => {
                    changed.map_or(Wake::LeadershipEnded, |()| Wake::Leadership)
                }
                () = sleep_until(deadline) => Wake::Deadline,
                change = self.hands.change() => Wake::Change(change),
                changed = snapshots.changed(), if snapshots_open => {
                    changed.map_or(Wake::SnapshotsEnded, |()| Wake::Snapshot)
                }
            };
            match wake {
                Wake::Stop => {
                    give_up_at = Some(Instant::now() + STOP_WITHIN);
                    self.handle(Event::Stop).await;
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
                Wake::Snapshot => self.handle(configured(&mut snapshots)).await,
                Wake::SnapshotsEnded => snapshots_open = false,
                Wake::Deadline => self.handle(Event::Deadline).await,
                Wake::Change(change) => self.handle_change(change).await,
            }
        }
    }

    /// Feeds the machine, and does what it says until it has nothing left to say.
    async fn handle(&mut self, event: Event) {
        self.machine.handle(event, Instant::now());
        loop {
            self.look_at_the_lease();
            self.publish();
            let Some(action) = self.machine.poll_action() else {
                break;
            };
            if let Some(answer) = self.carry_out(action).await {
                self.machine.handle(answer, Instant::now());
            }
        }
    }

    /// Lets the machine see the newest leadership and the time: it takes back what is no longer permitted.
    fn look_at_the_lease(&mut self) {
        let event = match self.leadership.has_changed() {
            Ok(true) => Event::Leadership(*self.leadership.borrow_and_update()),
            Ok(false) | Err(_) => Event::Deadline,
        };
        self.machine.handle(event, Instant::now());
    }

    /// Does it, unless it was taken back meanwhile; then a `Remove` stands behind it in the queue and gives the answer.
    async fn carry_out(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Add(target) => {
                let wanted = self.machine.phase(&target) == Some(Phase::Adding);
                if wanted && self.machine.entitled(Instant::now()) {
                    Some(self.add(target).await)
                } else {
                    None
                }
            }
            Action::Renew(target) => {
                if self.machine.may_announce(&target, Instant::now()) {
                    let outcome = self.hands.renew(&target).await;
                    Some(self.added(target, outcome))
                } else {
                    None
                }
            }
            Action::Remove(target) => Some(self.remove(target).await),
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

    async fn add(&mut self, target: Target) -> Event {
        let outcome = self.hands.add(&target).await;
        if outcome.is_ok() {
            let term = self.leadership.borrow().term;
            info!(vip = %target.address, interface = %target.interface, term, "VIP taken");
        }
        self.added(target, outcome)
    }

    fn added(&mut self, target: Target, outcome: Result<(), Problem>) -> Event {
        match outcome {
            Ok(()) => {
                self.problems.solved(&target);
                Event::Added(target)
            }
            Err(problem) => {
                self.problems.note(&target, &problem);
                Event::AddFailed(target)
            }
        }
    }

    async fn remove(&mut self, target: Target) -> Event {
        match self.hands.remove(&target).await {
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

    async fn handle_change(&mut self, change: Change) {
        for ready in self.hands.readied_by(&change).await {
            self.handle(Event::LinkReady(ready)).await;
        }
        for target in self.maybe_gone(&change) {
            if self.hands.lost(&target).await {
                warn!(vip = %target.address, interface = %target.interface, "VIP was taken off the device by somebody else");
                self.handle(Event::Missing(target)).await;
            }
        }
    }

    /// The VIPs that are held as far as the machine knows, and that the change may have taken away.
    fn maybe_gone(&self, change: &Change) -> Vec<Target> {
        let affected = |target: &Target| match change {
            Change::AddressGone { address, .. } => target.address == *address,
            Change::Overrun => true,
            Change::Device(_) | Change::DeviceGone(_) => false,
        };
        self.machine
            .phases()
            .filter(|(target, phase)| matches!(phase, Phase::Held { .. }) && affected(target))
            .map(|(target, _)| target.clone())
            .collect()
    }

    /// Reports, if anything changed.
    fn publish(&mut self) {
        let held = self.held_since();
        for problems in [&mut self.problems, &mut self.announcing] {
            problems.forget_unless(|target| self.machine.phase(target).is_some());
        }
        self.since
            .retain(|target, (since, _)| held.get(target) == Some(since));
        for (target, since) in held {
            self.since
                .entry(target)
                .or_insert_with(|| (since, SystemTime::now()));
        }
        let addresses: BTreeSet<_> = self.since.keys().map(|target| target.address).collect();
        self.reports
            .held
            .send_if_modified(|old| replace(old, addresses));
        let status = self
            .machine
            .phases()
            .map(|(target, _)| self.status_of(target))
            .collect();
        self.reports
            .status
            .send_if_modified(|old| replace(old, status));
        if let Some(term) = self.machine.released() {
            self.reports
                .released
                .send_if_modified(|old| replace(old, term));
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

    fn status_of(&self, target: &Target) -> VipStatus {
        let since = self.since.get(target).map(|(_, wall)| *wall);
        let device = self.hands.device_of(&target.interface);
        // Told before this node leads: then it would be too late to find out.
        let unmapped = || {
            let problem = Problem::Unmapped(target.interface.clone());
            device.is_none().then(|| problem.to_string())
        };
        VipStatus {
            address: target.address,
            interface: target.interface.clone(),
            held: since.is_some(),
            since,
            fence: Fence::None,
            problem: self
                .problems
                .of(target)
                .or_else(|| self.announcing.of(target))
                .or_else(unmapped),
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

fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let differs = *old != new;
    *old = new;
    differs
}

fn configured(snapshots: &mut watch::Receiver<Arc<Snapshot>>) -> Event {
    let snapshot = snapshots.borrow_and_update();
    Event::Configured(snapshot.vips.values().map(Target::from).collect())
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for an instant, if there is one.
async fn sleep_until_past(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// Why an action could not be carried out.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error("interface {0} is mapped to no device: add it to [interfaces] in node.toml")]
    Unmapped(Label),
    #[error(
        "not permitted to announce VIPs: this process has no CAP_NET_RAW; run it as root, or grant the capability \
         (AmbientCapabilities= in the systemd unit)"
    )]
    MayNotAnnounce,
    #[error("cannot announce on {device}: {source}")]
    Announce { device: String, source: io::Error },
    #[error("{0} is no loopback address: a local cluster without privileges can hold no other")]
    NotLoopback(IpAddr),
}

/// What carries out the actions.
enum Hands {
    Kernel(Kernel),
    StandIn,
}

impl Hands {
    async fn sweep(&mut self) {
        if let Hands::Kernel(kernel) = self {
            kernel.sweep().await;
        }
    }

    async fn add(&mut self, target: &Target) -> Result<(), Problem> {
        match self {
            Hands::Kernel(kernel) => kernel.add(target).await,
            Hands::StandIn if target.address.is_loopback() => Ok(()),
            Hands::StandIn => Err(Problem::NotLoopback(target.address)),
        }
    }

    async fn renew(&mut self, target: &Target) -> Result<(), Problem> {
        match self {
            Hands::Kernel(kernel) => kernel.renew(target).await,
            Hands::StandIn => Ok(()),
        }
    }

    /// Whether there was something to remove.
    async fn remove(&mut self, target: &Target) -> Result<bool, Problem> {
        match self {
            Hands::Kernel(kernel) => kernel.remove(target).await,
            Hands::StandIn => Ok(target.address.is_loopback()),
        }
    }

    fn announce(&mut self, target: &Target) -> Result<(), Problem> {
        match self {
            Hands::Kernel(kernel) => kernel.announce(target),
            Hands::StandIn => Ok(()),
        }
    }

    /// The next change on the devices; never, in the stand-in.
    async fn change(&mut self) -> Change {
        match self {
            Hands::Kernel(kernel) => kernel.change().await,
            Hands::StandIn => std::future::pending().await,
        }
    }

    async fn readied_by(&mut self, change: &Change) -> Vec<Label> {
        match self {
            Hands::Kernel(kernel) => kernel.readied_by(change).await,
            Hands::StandIn => vec![],
        }
    }

    async fn lost(&mut self, target: &Target) -> bool {
        match self {
            Hands::Kernel(kernel) => kernel.lost(target).await,
            Hands::StandIn => false,
        }
    }

    fn device_of(&self, interface: &Label) -> Option<String> {
        match self {
            Hands::Kernel(kernel) => kernel.names.get(interface).cloned(),
            Hands::StandIn => Some("lo".to_owned()),
        }
    }
}

/// Sockets to the kernel, opened when first needed and again after a failure.
struct Kernel {
    /// The device behind each logical interface.
    names: BTreeMap<Label, String>,
    /// The same, as last seen.
    devices: BTreeMap<Label, Device>,
    interfaces: Option<Interfaces>,
    changes: Option<Changes>,
    /// When to open `changes` again after a failure.
    watch_again_at: Option<Instant>,
    announcer: Option<Announcer>,
    /// What was added and not removed, and the device it was added to: a device may be given another index or name.
    ours: BTreeMap<Target, Device>,
}

impl Kernel {
    fn new(names: BTreeMap<Label, String>) -> Self {
        Self {
            names,
            devices: BTreeMap::new(),
            interfaces: None,
            changes: None,
            watch_again_at: None,
            announcer: None,
            ours: BTreeMap::new(),
        }
    }

    /// Removes what an earlier process left. What cannot be removed expires by itself.
    async fn sweep(&mut self) {
        for interface in self.names.keys().cloned().collect::<Vec<_>>() {
            let swept = match self.look_up(&interface).await {
                Ok(device) => self.sweep_device(&device).await,
                Err(problem) => Err(problem),
            };
            match swept {
                Ok(addresses) if addresses.is_empty() => {}
                Ok(addresses) => {
                    info!(%interface, ?addresses, "removed addresses that an earlier process had left")
                }
                Err(problem) => {
                    warn!(%interface, %problem, "could not look for addresses that an earlier process had left")
                }
            }
        }
    }

    async fn sweep_device(&mut self, device: &Device) -> Result<BTreeSet<IpAddr>, Problem> {
        Ok(self.interfaces()?.sweep(device).await?)
    }

    async fn add(&mut self, target: &Target) -> Result<(), Problem> {
        let device = self.look_up(&target.interface).await?;
        // Noted before it is done: an addition that fails half-way is removed.
        self.ours.insert(target.clone(), device.clone());
        let added = self.interfaces()?.add(target.address, &device).await;
        if matches!(
            added,
            Err(InterfaceError::Taken { .. } | InterfaceError::NotPermitted { .. })
        ) {
            self.ours.remove(target);
        }
        Ok(added?)
    }

    async fn renew(&mut self, target: &Target) -> Result<(), Problem> {
        let device = self.look_up(&target.interface).await?;
        self.ours.insert(target.clone(), device.clone());
        Ok(self.interfaces()?.renew(target.address, &device).await?)
    }

    /// Only what we added is removed; an address somebody else put there stays.
    async fn remove(&mut self, target: &Target) -> Result<bool, Problem> {
        let Some(device) = self.ours.get(target).cloned() else {
            return Ok(false);
        };
        self.interfaces()?.remove(target.address, &device).await?;
        self.ours.remove(target);
        Ok(true)
    }

    fn announce(&mut self, target: &Target) -> Result<(), Problem> {
        let Some(device) = self.devices.get(&target.interface) else {
            return Ok(()); // announced when it appears
        };
        let Some(mac) = device.mac.filter(|_| device.ready) else {
            return Ok(()); // nobody to tell; announced when the carrier is back
        };
        let announcer = match &self.announcer {
            Some(open) => open,
            None => self
                .announcer
                .insert(Announcer::open().map_err(|error| may_not_announce(error, device))?),
        };
        let sent = announcer.send(&announcement(target.address, mac), device.index);
        sent.map_err(|source| Problem::Announce {
            device: device.name.clone(),
            source,
        })
    }

    /// The next change; one that something is waiting for is never lost, at worst an overrun is reported.
    async fn change(&mut self) -> Change {
        loop {
            sleep_until_past(self.watch_again_at).await;
            let failure = match &mut self.changes {
                Some(open) => match open.next().await {
                    Ok(change) => return change,
                    Err(error) => error.to_string(),
                },
                None => match Changes::watch() {
                    Ok(open) => {
                        self.changes = Some(open);
                        self.watch_again_at = None;
                        return Change::Overrun; // what happened before is not known
                    }
                    Err(error) => error.to_string(),
                },
            };
            self.changes = None;
            self.watch_again_at = Some(Instant::now() + WATCH_AGAIN_AFTER);
            warn!(problem = %failure, "cannot watch devices and addresses; trying again");
        }
    }

    /// The logical interfaces whose device became ready, or got another Ethernet address, by the change.
    async fn readied_by(&mut self, change: &Change) -> Vec<Label> {
        match change {
            Change::Device(device) => self
                .names
                .iter()
                .filter(|(_, name)| **name == device.name)
                .map(|(interface, _)| interface.clone())
                .filter(|interface| {
                    is_news(
                        self.devices.insert(interface.clone(), device.clone()),
                        device,
                    )
                })
                .collect(),
            Change::DeviceGone(name) => {
                self.devices.retain(|_, device| device.name != *name);
                vec![]
            }
            Change::AddressGone { .. } => vec![],
            Change::Overrun => self.look_at_all().await,
        }
    }

    async fn look_at_all(&mut self) -> Vec<Label> {
        let mut ready = vec![];
        for interface in self.names.keys().cloned().collect::<Vec<_>>() {
            let Ok(device) = self.look_up(&interface).await else {
                continue;
            };
            let before = self.devices.insert(interface.clone(), device.clone());
            if before.as_ref() != Some(&device) && is_news(before, &device) {
                ready.push(interface);
            }
        }
        ready
    }

    /// Whether an address of ours is not on its device any more. Asks the kernel: a message may be about an earlier removal
    /// of our own.
    async fn lost(&mut self, target: &Target) -> bool {
        let Some(device) = self.ours.get(target).cloned() else {
            return false;
        };
        match self.interfaces() {
            Ok(interfaces) => matches!(interfaces.holds(target.address, &device).await, Ok(false)),
            Err(_) => false,
        }
    }

    /// The device behind an interface, as it is now. What is remembered of it is left alone: the change that the kernel has
    /// yet to tell of must still be news then.
    async fn look_up(&mut self, interface: &Label) -> Result<Device, Problem> {
        let Some(name) = self.names.get(interface).cloned() else {
            return Err(Problem::Unmapped(interface.clone()));
        };
        let device = self.interfaces()?.device(&name).await?;
        self.devices
            .entry(interface.clone())
            .or_insert_with(|| device.clone());
        Ok(device)
    }

    fn interfaces(&mut self) -> Result<&Interfaces, InterfaceError> {
        match &mut self.interfaces {
            Some(open) => Ok(open),
            empty => Ok(empty.insert(Interfaces::open()?)),
        }
    }
}

/// Whether the device is usable and was not, as far as known, or must be announced anew.
fn is_news(before: Option<Device>, now: &Device) -> bool {
    now.ready
        && before.is_none_or(|before| {
            !before.ready || before.mac != now.mac || before.index != now.index
        })
}

fn may_not_announce(error: io::Error, device: &Device) -> Problem {
    if error.kind() == io::ErrorKind::PermissionDenied {
        Problem::MayNotAnnounce
    } else {
        Problem::Announce {
            device: device.name.clone(),
            source: error,
        }
    }
}

#[cfg(test)]
mod tests;
