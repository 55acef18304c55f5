//! What carries out the machine's actions: sockets to the kernel's addresses, its fence and its devices.
//!
//! It decides nothing about who may hold. It refuses one thing by itself: where a fence has to stand, no address is put on a
//! device whose fence was not read back, as that device is now.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use nix::errno::Errno;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{
    address_work::{Known, Step, Work},
    announce::{Announcer, Mac, announcement},
    arp_settings,
    connections::{
        Connection,
        looks::{Look, Looks, Pace},
    },
    driver::FenceWish,
    failing::Again,
    fence::{
        Ensured, Fence, FenceError,
        chance::{Carrying, Chance, Passing, Port},
        ruleset::Ruleset,
        socket::TableWatch,
    },
    interface::{self, Change, Changes, Device, InterfaceError, Interfaces, VALID_FOR},
    machine::{Fencing, SERVE_LASTS, Target},
    renewals::Renewals,
};
use crate::model::{label::Label, vip::VipPeers};

/// Between attempts to open the change socket again after it failed.
const WATCH_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Between attempts to make a fence that could not be made.
const FENCE_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Between attempts to open the socket for announcements.
const ANNOUNCER_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How long an address that is added, or several that are taken off, are waited for before they take their time beside the rest. The kernel
/// answers within microseconds, unless another program holds its lock; and permissions are renewed every few tens of milliseconds.
const AT_ONCE: Duration = Duration::from_millis(5);
/// For how long it counts which connections were left at a VIP that was let go: longer than between two looks while it is served. The
/// same addresses and ports may be those of a connection of another holder later.
const LEFT_LASTS: Duration = SERVE_LASTS;

/// What somebody did, or what came of what was begun.
#[derive(Debug)]
pub enum HandsChange {
    Device(Change),
    /// What came of a renewal.
    Renewed(Target, Result<(), Problem>),
    /// What came of what took its time.
    Done(Done),
    /// The rules of the fence were changed, or may have been.
    Fence,
    /// A look at the connections has ended.
    Looked(Look),
}

/// What came of adding an address, or of taking some off their devices.
#[derive(Debug)]
pub enum Done {
    Added(Target, Result<(), Problem>),
    /// Of each, whether there was something to remove.
    Removed(Vec<(Target, Result<bool, Problem>)>),
}

/// Why connections through a VIP that was given away are not kept.
#[derive(Debug)]
pub enum Unserved {
    /// It cannot be done.
    Problem(Problem),
    /// The stand-in has no frames to answer.
    StandIn,
}

/// Waits for an instant, if there is one.
async fn sleep_until_past(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// Why an action could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error("interface {0} is mapped to no device: add it to [interfaces] in node.toml")]
    Unmapped(Label),
    #[error(
        "not permitted to announce VIPs: this process has no CAP_NET_RAW; run it as root, or grant the capability \
         (AmbientCapabilities= in the systemd unit)"
    )]
    MayNotAnnounce,
    #[error(
        "cannot open a packet socket to announce VIPs: {0}; trying again every {ANNOUNCER_AGAIN_AFTER:?}"
    )]
    NoAnnouncer(#[source] io::Error),
    #[error("cannot announce on {device}: {source}")]
    Announce { device: String, source: io::Error },
    /// The kernel says the same of both: `ENOBUFS`.
    #[error(
        "an announcement on {device} was dropped: the fence's permission had just ended, or the device's queue is full; \
         the next one follows by itself"
    )]
    AnnouncementDropped { device: String },
    #[error(transparent)]
    Fence(#[from] FenceError),
    #[error("the fence does not stand on {device} yet")]
    NotFenced { device: String },
    #[error("the device {device} was made anew, and has lost its addresses")]
    OtherDevice { device: String },
    #[error("{0} is no loopback address: a local cluster without privileges can hold no other")]
    NotLoopback(IpAddr),
}

impl Problem {
    /// When to look again at what keeps an address from its device, though the device and the fence are as they should be; none: it is
    /// another problem.
    pub fn in_the_way(&self) -> Option<Again> {
        match self {
            Problem::Interface(
                InterfaceError::Taken { .. } | InterfaceError::Ipv6Disabled { .. },
            ) => Some(Again::Look),
            Problem::Interface(InterfaceError::NotPermitted { .. }) => Some(Again::Never),
            Problem::Interface(
                InterfaceError::Kernel { .. }
                | InterfaceError::Timeout { .. }
                | InterfaceError::Open(_),
            ) => Some(Again::Later),
            Problem::Interface(InterfaceError::NoDevice { .. })
            | Problem::Unmapped(_)
            | Problem::MayNotAnnounce
            | Problem::NoAnnouncer(_)
            | Problem::Announce { .. }
            | Problem::AnnouncementDropped { .. }
            | Problem::Fence(_)
            | Problem::NotFenced { .. }
            | Problem::OtherDevice { .. }
            | Problem::NotLoopback(_) => None,
        }
    }
}

/// What carries out the actions.
#[derive(Debug)]
pub enum Hands {
    Kernel(Box<Kernel>),
    StandIn,
}

impl Hands {
    /// `owned`: the rules of the fence are to belong to this process, where the kernel can do that.
    pub fn kernel(interfaces: BTreeMap<Label, String>, fence: FenceWish, owned: bool) -> Self {
        Self::Kernel(Box::new(Kernel::new(interfaces, Guard::new(fence, owned))))
    }

    /// Whether the host has the address for itself, so that it is neither fenced nor added nor removed, whatever the state says.
    pub fn is_the_hosts(&self, address: IpAddr) -> bool {
        match self {
            Hands::Kernel(_) => address.is_loopback(),
            Hands::StandIn => false,
        }
    }

    /// When to call `open_announcer` and `keep_fence` again though nothing happened.
    pub fn due(&self) -> Option<Instant> {
        match self {
            Hands::Kernel(kernel) => {
                let both = [kernel.guard.due, kernel.announcer_due];
                both.into_iter().flatten().min()
            }
            Hands::StandIn => None,
        }
    }

    /// Opens what announcements leave by, unless it is open or was tried lately.
    pub fn open_announcer(&mut self) {
        if let Hands::Kernel(kernel) = self {
            kernel.open_announcer(Instant::now());
        }
    }

    /// Makes the fence what `wanted` says for the devices that there are.
    pub fn keep_fence(&mut self, wanted: impl FnOnce(BTreeSet<String>) -> Ruleset) {
        if let Hands::Kernel(kernel) = self {
            let indices = kernel.indices();
            // A device that has its name from another one may be without the rules of that one.
            let another = |(name, index)| indices.get(name).is_some_and(|now| now != index);
            if kernel.fenced.iter().any(another) {
                kernel.guard.doubt();
            }
            kernel.fenced = indices;
            let devices = kernel.fenced.keys().cloned().collect();
            kernel.guard.keep(&wanted(devices));
        }
    }

    /// Reads the rules; if they are not whole, the fence counts as down until `keep_fence` has restored it.
    pub fn fence_is_damaged(&mut self) -> bool {
        match self {
            Hands::Kernel(kernel) => kernel.guard.is_damaged(),
            Hands::StandIn => false,
        }
    }

    /// How it stands with the fence on each interface.
    pub fn fencing(&self) -> Vec<(Label, Fencing)> {
        match self {
            Hands::Kernel(kernel) => kernel.fencing(),
            Hands::StandIn => vec![],
        }
    }

    /// Lets the frames of these pass until the lease is over.
    pub fn permit(
        &mut self,
        targets: &BTreeSet<Target>,
        lease_until: Instant,
    ) -> Result<(), Problem> {
        match self {
            Hands::Kernel(kernel) => kernel.guard.permit(targets, lease_until),
            Hands::StandIn => Ok(()),
        }
    }

    /// Lets the frames of these pass no more. Returns those of which it is not known, and why.
    pub fn silence(&mut self, targets: &[Target]) -> Vec<(Target, Problem)> {
        match self {
            Hands::Kernel(kernel) => kernel.guard.forbid(targets),
            Hands::StandIn => vec![],
        }
    }

    /// What would keep a VIP from being held on an interface, in a sentence for the operator.
    pub fn obstacle(&self, interface: &Label) -> Option<String> {
        match self {
            Hands::Kernel(kernel) => kernel.obstacle(interface),
            Hands::StandIn => None,
        }
    }

    /// What is wrong with the device behind an interface: this node could serve nobody through it.
    pub fn device_problem(&self, interface: &Label) -> Option<String> {
        match self {
            Hands::Kernel(kernel) => kernel.device_problem(interface),
            Hands::StandIn => None,
        }
    }

    /// What is wrong with each device.
    pub fn device_problems(&self) -> BTreeMap<Label, String> {
        match self {
            Hands::Kernel(kernel) => {
                let problem = |i: &Label| Some((i.clone(), kernel.device_problem(i)?));
                kernel.names.keys().filter_map(problem).collect()
            }
            Hands::StandIn => BTreeMap::new(),
        }
    }

    /// Why the fence does not stand on it, though it has to.
    pub fn fence_problem(&self, interface: &Label) -> Option<String> {
        match self {
            Hands::Kernel(kernel) => kernel.fence_problem(interface),
            Hands::StandIn => None,
        }
    }

    /// Why a VIP there cannot be announced: its clients would go on sending to the holder before.
    pub fn announce_problem(&self, interface: &Label) -> Option<String> {
        match self {
            Hands::Kernel(kernel) => kernel.announce_problem(interface),
            Hands::StandIn => None,
        }
    }

    /// The device behind an interface, if frames can be sent there.
    pub fn port(&self, interface: &Label) -> Option<Port> {
        match self {
            Hands::Kernel(kernel) => kernel.port(interface),
            Hands::StandIn => None,
        }
    }

    /// Learns which devices there are.
    pub async fn look(&mut self) {
        if let Hands::Kernel(kernel) = self {
            kernel.look_at_all().await;
        }
    }

    pub async fn sweep(&mut self) {
        if let Hands::Kernel(kernel) = self {
            kernel.sweep().await;
        }
    }

    /// Puts it on its device. None: it takes its time, and `change` tells what came of it, unless `give_up_adding` comes before.
    pub async fn add(&mut self, target: &Target) -> Option<Done> {
        let outcome = match self {
            Hands::Kernel(kernel) => return kernel.add(target).await,
            Hands::StandIn if target.address.is_loopback() => Ok(()),
            Hands::StandIn => Err(Problem::NotLoopback(target.address)),
        };
        Some(Done::Added(target.clone(), outcome))
    }

    /// Adds what takes its time no further. What the kernel was asked for is for `remove` to take back.
    pub fn give_up_adding(&mut self) {
        if let Hands::Kernel(kernel) = self {
            kernel.work = None;
        }
    }

    /// Begins to put off the expiry. `change` tells what came of it, unless `remove` takes it back; none is told here then.
    pub fn begin_renewal(&mut self, target: &Target) -> Option<Result<(), Problem>> {
        match self {
            Hands::Kernel(kernel) => kernel.begin_renewal(target).err().map(Err),
            Hands::StandIn => Some(Ok(())),
        }
    }

    /// Looks, and changes nothing: whether something is found that would keep `add` from succeeding.
    pub async fn may_add(&mut self, target: &Target) -> Result<(), Problem> {
        match self {
            Hands::Kernel(kernel) => kernel.may_add(target).await,
            Hands::StandIn => Ok(()),
        }
    }

    /// Takes them off their devices, once nobody hears them any more, but for the addresses `heard` by another device of this node. None: it
    /// takes its time, and `change` tells what came of it. Not while something is added.
    pub async fn remove(&mut self, targets: &[Target], heard: &BTreeSet<IpAddr>) -> Option<Done> {
        match self {
            Hands::Kernel(kernel) => kernel.remove(targets, heard).await,
            Hands::StandIn => {
                let was_held = |t: &Target| (t.clone(), Ok(t.address.is_loopback()));
                Some(Done::Removed(targets.iter().map(was_held).collect()))
            }
        }
    }

    /// Answers for VIPs on behalf of their holder, for a moment. Of those that were served before, `see` tells later whether there is
    /// a connection left. Returns those that are not served, and why.
    pub async fn serve(
        &mut self,
        targets: Vec<Target>,
        peers: &VipPeers,
    ) -> Vec<(Target, Unserved)> {
        match self {
            Hands::Kernel(kernel) => {
                let failed = kernel.serve(targets, peers).await.into_iter();
                failed.map(|(t, p)| (t, Unserved::Problem(p))).collect()
            }
            Hands::StandIn => targets
                .into_iter()
                .map(|t| (t, Unserved::StandIn))
                .collect(),
        }
    }

    /// A look that has ended by now, which `change` does not tell of then.
    pub fn look_that_ended(&mut self) -> Option<Look> {
        match self {
            Hands::Kernel(kernel) => kernel.looked().now_or_never(),
            Hands::StandIn => None,
        }
    }

    /// What is served that this look tells of, and whether there is a connection left.
    pub fn see(&mut self, look: &Look) -> Vec<(Target, bool)> {
        match self {
            Hands::Kernel(kernel) => kernel.see(look),
            Hands::StandIn => vec![],
        }
    }

    /// What is being served, until it has ended.
    pub fn served(&self) -> impl Iterator<Item = Target> + use<'_> {
        let served = match self {
            Hands::Kernel(kernel) => Some(&kernel.served),
            Hands::StandIn => None,
        };
        served.into_iter().flat_map(BTreeMap::keys).cloned()
    }

    /// Whether connections of an earlier holder are passed on to it.
    pub fn relays(&self, vip: IpAddr) -> bool {
        match self {
            Hands::Kernel(kernel) => {
                let chance = kernel.chance.as_ref();
                chance.is_some_and(|chance| chance.passing().old_holders.contains_key(&vip))
            }
            Hands::StandIn => false,
        }
    }

    pub async fn end_serve(&mut self, target: &Target) {
        if let Hands::Kernel(kernel) = self {
            kernel.end_serve(target).await;
        }
    }

    /// Passes on what belongs to connections of the old holder of these VIPs, whose Ethernet address stands beside each; not what
    /// comes from `members`. `interfaces`: those that VIPs are on.
    pub fn keep_chance(
        &mut self,
        old_holders: &BTreeMap<Target, Mac>,
        interfaces: &BTreeSet<Label>,
        members: BTreeSet<Mac>,
    ) {
        if let Hands::Kernel(kernel) = self {
            kernel.keep_chance(old_holders, interfaces, members);
        }
    }

    /// The Ethernet address of the device behind each logical interface.
    pub fn macs(&self) -> BTreeMap<String, Mac> {
        match self {
            Hands::Kernel(kernel) => kernel
                .devices
                .iter()
                .filter_map(|(interface, device)| Some((interface.to_string(), device.mac?)))
                .collect(),
            Hands::StandIn => BTreeMap::new(),
        }
    }

    pub fn announce(&mut self, target: &Target) -> Result<(), Problem> {
        match self {
            Hands::Kernel(kernel) => kernel.announce(target),
            Hands::StandIn => Ok(()),
        }
    }

    /// The next change on the devices; never, in the stand-in.
    pub async fn change(&mut self) -> HandsChange {
        match self {
            Hands::Kernel(kernel) => kernel.change().await,
            Hands::StandIn => std::future::pending().await,
        }
    }

    /// The interfaces that became ready by a change, and whether there are other devices than the fence was made for.
    pub async fn readied_by(&mut self, change: &Change) -> (Vec<Label>, bool) {
        match self {
            Hands::Kernel(kernel) => {
                let ready = kernel.readied_by(change).await;
                (ready, kernel.indices() != kernel.fenced)
            }
            Hands::StandIn => (vec![], false),
        }
    }

    /// Those of these whose addresses of ours are not on their devices any more.
    pub async fn lost(&mut self, targets: Vec<Target>) -> Vec<Target> {
        match self {
            Hands::Kernel(kernel) => kernel.lost(targets).await,
            Hands::StandIn => vec![],
        }
    }

    /// Nothing that is asked of the kernel's addresses is done until what is returned is dropped, as while another program holds its lock.
    #[cfg(test)]
    pub fn block(&mut self) -> std::sync::mpsc::Sender<()> {
        match self {
            Hands::Kernel(kernel) => kernel.interfaces().expect("a socket").block(),
            Hands::StandIn => unreachable!("it asks the kernel for nothing"),
        }
    }

    pub fn device_of(&self, interface: &Label) -> Option<String> {
        match self {
            Hands::Kernel(kernel) => kernel.names.get(interface).cloned(),
            Hands::StandIn => Some("lo".to_owned()),
        }
    }
}

/// Sockets to the kernel, opened when first needed and again after a failure.
#[derive(Debug)]
pub struct Kernel {
    /// The device behind each logical interface.
    names: BTreeMap<Label, String>,
    /// The same, as last seen.
    devices: BTreeMap<Label, Device>,
    interfaces: Option<Arc<Interfaces>>,
    renewals: Renewals<Result<(), Problem>>,
    /// What is added or taken off at the moment.
    work: Option<Work>,
    watch: DeviceWatch,
    guard: Guard,
    /// The devices that the fence was last made for.
    fenced: BTreeMap<String, u32>,
    announcer: Option<Announcer>,
    open_announcer: fn() -> io::Result<Announcer>,
    /// Why there is none.
    no_announcer: Option<Problem>,
    /// When to try again to open one.
    announcer_due: Option<Instant>,
    /// The last look at the host's addresses.
    addresses: Option<Known>,
    /// What was added and not removed, and the device it was added to: a device may be given another index or name.
    ours: BTreeMap<Target, Device>,
    /// VIPs on `lo`, which this node serves on behalf of their holder, and since when.
    served: BTreeMap<Target, Instant>,
    /// For what packets of connections wait for.
    looks: Looks,
    /// At what is served, again and again.
    idle_looks: Looks,
    chance: Option<Chance>,
    /// VIPs that were let go, or fell silent, and the connections of theirs that may still end here, as far as was looked since.
    let_go: BTreeMap<IpAddr, Option<Left>>,
    /// What was wrong with it, when it was said last.
    no_chance: Option<String>,
}

/// What was left of the connections at a VIP.
#[derive(Debug)]
struct Left {
    seen: Instant,
    connections: Vec<Connection>,
    /// Whether there were any that the look before had not found, since the VIP was let go; none: there was one look. Where the
    /// present holder can remember no more, new ones begin here.
    grew: Option<bool>,
}

impl Left {
    fn after(before: Option<&Self>, seen: Instant, connections: Vec<Connection>) -> Self {
        let grew = |before: &Self| {
            let known: BTreeSet<_> = before.connections.iter().collect();
            before.grew == Some(true) || connections.iter().any(|one| !known.contains(one))
        };
        Self {
            seen,
            grew: before.map(grew),
            connections,
        }
    }

    /// The connections, where they are known to be all.
    fn known(&self, now: Instant) -> Option<&[Connection]> {
        let fresh = now.saturating_duration_since(self.seen) < LEFT_LASTS;
        (self.grew == Some(false) && fresh).then_some(&self.connections)
    }
}

impl Kernel {
    fn new(names: BTreeMap<Label, String>, guard: Guard) -> Self {
        Self {
            names,
            devices: BTreeMap::new(),
            interfaces: None,
            renewals: Renewals::default(),
            work: None,
            watch: DeviceWatch::default(),
            fenced: BTreeMap::new(),
            guard,
            announcer: None,
            open_announcer: Announcer::open,
            no_announcer: None,
            announcer_due: None,
            addresses: None,
            ours: BTreeMap::new(),
            served: BTreeMap::new(),
            looks: Looks::new(Pace::Soon),
            idle_looks: Looks::new(Pace::Idle),
            chance: None,
            let_go: BTreeMap::new(),
            no_chance: None,
        }
    }

    /// One permission for all, and one look at the device of each interface.
    async fn serve(&mut self, targets: Vec<Target>, peers: &VipPeers) -> Vec<(Target, Problem)> {
        let (mut failed, mut begun, mut ready) = (vec![], vec![], BTreeSet::new());
        let is_new = |target: &&Target| !self.served.contains_key(*target);
        let new: Vec<IpAddr> = targets.iter().filter(is_new).map(|t| t.address).collect();
        let mut foreign = self.foreign_on_loopback(&new).await;
        for target in targets {
            if let Some(problem) = foreign.remove(&target.address) {
                failed.push((target, problem.into()));
                continue;
            }
            if !ready.contains(&target.interface) {
                match self.look_up(&target.interface).await {
                    Ok(device) => {
                        let mut served = self.served.keys();
                        if !served.any(|other| other.interface == target.interface) {
                            // While a VIP is on `lo`, the host neither answers ARP for it on the device nor names it as sender.
                            arp_settings::make_strict(&device.name);
                        }
                        ready.insert(target.interface.clone());
                    }
                    Err(problem) => {
                        failed.push((target, problem));
                        continue;
                    }
                }
            }
            match self.served.entry(target.clone()) {
                // At first there is no time to look.
                Entry::Vacant(entry) => drop(entry.insert(Instant::now())),
                Entry::Occupied(_) => self.idle_looks.ask([target.address]),
            }
            begun.push(target);
        }
        let vips: BTreeSet<IpAddr> = begun.iter().map(|t| t.address).collect();
        let (macs, own) = (peers.macs(), peers.own_addresses());
        let permit = |guard: &mut Guard, vips: &BTreeSet<IpAddr>| match vips.is_empty() {
            true => Ok(()),
            false => guard.permit_serving(vips, &macs, &own),
        };
        // If not together, then each alone, and each with what is wrong.
        let together = permit(&mut self.guard, &vips).is_ok();
        for target in begun {
            let permitted = match together {
                true => Ok(()),
                false => permit(&mut self.guard, &[target.address].into()),
            };
            let outcome = match permitted {
                Ok(()) => self.put_on_loopback(&target).await,
                Err(problem) => Err(problem),
            };
            failed.extend(outcome.err().map(|problem| (target, problem)));
        }
        failed
    }

    /// The next look that has ended. Dropping the future loses nothing.
    async fn looked(&mut self) -> Look {
        tokio::select! {
            look = self.looks.next() => look,
            look = self.idle_looks.next() => look,
        }
    }

    fn see(&mut self, look: &Look) -> Vec<(Target, bool)> {
        if let Some(chance) = &mut self.chance {
            chance.see(look);
        }
        let busy: BTreeSet<IpAddr> = match &look.found {
            Ok(found) => found.iter().map(|(_, own)| own.ip()).collect(),
            Err(error) => {
                warn!(%error, "it is not known which connections there are through the VIPs that are served; all are served on");
                look.vips.clone()
            }
        };
        // One that is served only since says nothing of what came before.
        let told = |(target, since): &(&Target, &Instant)| {
            look.begun >= **since && look.vips.contains(&target.address)
        };
        let served = self.served.iter().filter(told);
        let seen: Vec<_> = served
            .map(|(target, _)| (target.clone(), busy.contains(&target.address)))
            .collect();
        for (target, busy) in &seen {
            let vip = target.address;
            match &look.found {
                _ if !busy => drop(self.let_go.remove(&vip)),
                Ok(found) => {
                    let left = found.iter().filter(|(_, own)| own.ip() == vip);
                    let before = self.let_go.get(&vip).and_then(Option::as_ref);
                    let left = Left::after(before, look.begun, left.copied().collect());
                    self.let_go.insert(vip, Some(left));
                }
                Err(_) => {}
            }
        }
        seen
    }

    /// Which of these the host has on `lo` for itself: renewed, such a one would be taken for ours, and taken away at the end.
    async fn foreign_on_loopback(&mut self, vips: &[IpAddr]) -> BTreeMap<IpAddr, InterfaceError> {
        if vips.is_empty() {
            return BTreeMap::new();
        }
        match self.known().await {
            Ok(known) => {
                let foreign = |vip| known.addresses.expect_not_foreign(vip, &loopback()).err();
                let vips = vips.iter();
                vips.filter_map(|vip| Some((*vip, foreign(*vip)?)))
                    .collect()
            }
            Err(error) => {
                warn!(%error, "whether the host has the addresses of VIPs on lo is not known");
                BTreeMap::new()
            }
        }
    }

    async fn put_on_loopback(&mut self, target: &Target) -> Result<(), Problem> {
        let interfaces = self.interfaces()?;
        Ok(interfaces.renew(target.address, &loopback()).await?)
    }

    async fn end_serve(&mut self, target: &Target) {
        if self.served.remove(target).is_none() {
            return;
        }
        if let Err(problem) = self.guard.forbid_serving(&[target.address].into()) {
            warn!(vip = %target.address, %problem, "serving ends by itself");
        }
        let removed = match self.interfaces() {
            Ok(interfaces) => interfaces.remove(target.address, &loopback()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            warn!(vip = %target.address, %error, "the address on lo goes by itself");
        }
        if !self.served.keys().any(|t| t.interface == target.interface)
            && let Some(device) = self.names.get(&target.interface).cloned()
        {
            arp_settings::restore(&device);
        }
    }

    fn keep_chance(
        &mut self,
        old_holders: &BTreeMap<Target, Mac>,
        interfaces: &BTreeSet<Label>,
        members: BTreeSet<Mac>,
    ) {
        let devices = interfaces
            .iter()
            .filter_map(|interface| self.port(interface));
        let passing = Passing {
            ports: devices.collect(),
            old_holders: old_holders
                .iter()
                .map(|(t, mac)| (t.address, *mac))
                .collect(),
            members,
        };
        if let Err(error) = self.pass_on(&passing) {
            let text = error.to_string();
            if self.no_chance.as_ref() != Some(&text) {
                warn!(problem = %text, "connections through the old holder of a VIP are lost");
                self.no_chance = Some(text);
            }
        }
    }

    fn pass_on(&mut self, passing: &Passing) -> Result<(), FenceError> {
        if passing.is_empty() {
            return match &mut self.chance {
                Some(chance) if !chance.passing().old_holders.is_empty() => {
                    info!("nothing is passed on to an old holder any more");
                    for vip in chance.passing().old_holders.keys() {
                        self.let_go.entry(*vip).or_default();
                    }
                    chance.pause(&passing.ports)
                }
                Some(chance) => {
                    chance.follow(&passing.ports);
                    Ok(())
                }
                None => Ok(()),
            };
        }
        let says_so = |chance: &Chance| chance.passing() == passing && !chance.is_due();
        if self.chance.as_ref().is_some_and(says_so) {
            return Ok(());
        }
        // One that is to be taken only now has none.
        let now = Instant::now();
        let known = |left: &Option<Left>| Some(left.as_ref()?.known(now)?.to_vec());
        let let_go = self.let_go.iter();
        let mut carrying: Carrying = let_go.map(|(vip, left)| (*vip, known(left))).collect();
        for target in self.served.keys() {
            carrying.entry(target.address).or_default();
        }
        for target in self.ours.keys() {
            carrying.insert(target.address, None);
        }
        match &mut self.chance {
            Some(chance) => chance.update(passing, &carrying)?,
            None => self.chance = Some(Chance::begin(passing, &carrying)?),
        }
        let waits_for = self.chance.as_ref().map(Chance::waits_for);
        self.looks.ask(waits_for.unwrap_or_default());
        self.no_chance = None;
        info!(vips = ?passing.old_holders.keys(), "passing on what belongs to connections of the old holder");
        Ok(())
    }

    /// Removes what an earlier process left. What cannot be removed expires by itself.
    async fn sweep(&mut self) {
        arp_settings::restore_all();
        if let Err(problem) = self.sweep_device(&loopback()).await {
            warn!(%problem, "could not look for addresses that an earlier process had left on lo");
        }
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

    async fn add(&mut self, target: &Target) -> Option<Done> {
        match self.look_for(target) {
            Ok(look) => self.work = Some(look),
            Err(problem) => return Some(Done::Added(target.clone(), Err(problem))),
        }
        self.done_at_once().await
    }

    /// The first step of adding an address.
    fn look_for(&mut self, target: &Target) -> Result<Work, Problem> {
        let name = self.device_name(&target.interface)?;
        let known = self.addresses.clone();
        let interfaces = Arc::clone(self.interfaces()?);
        Ok(Work::look(target.clone(), name, known, interfaces))
    }

    /// The second, once the device and the addresses of the host are known.
    fn put(&mut self, target: &Target, device: Device, known: Known) -> Result<Work, Problem> {
        self.devices
            .entry(target.interface.clone())
            .or_insert_with(|| device.clone());
        self.expect_fence(target, &device)?;
        let free = known.addresses.expect_free(target.address);
        self.addresses = Some(known);
        free?;
        let interfaces = Arc::clone(self.interfaces()?);
        // Also one that fails half-way, or is given up: it is removed.
        self.ours.insert(target.clone(), device.clone());
        Ok(Work::add(target.clone(), device, interfaces))
    }

    /// What comes of the work, if it ends soon; else `change` tells.
    async fn done_at_once(&mut self) -> Option<Done> {
        timeout(AT_ONCE, self.done()).await.ok()
    }

    /// What comes of the work; never, where there is none. Dropping the future loses nothing.
    async fn done(&mut self) -> Done {
        loop {
            let step = ended(&mut self.work).await;
            if let Some(done) = self.take_in(step) {
                return done;
            }
        }
    }

    /// Goes on to the next step, or tells what came of the last.
    fn take_in(&mut self, step: Step) -> Option<Done> {
        self.work = None;
        let (target, outcome) = match step {
            Step::Looked(target, looked) => {
                let looked = looked.map_err(Problem::from);
                match looked.and_then(|(device, known)| self.put(&target, device, known)) {
                    Ok(work) => {
                        self.work = Some(work);
                        return None;
                    }
                    Err(problem) => (target, Err(problem)),
                }
            }
            Step::Added(target, outcome) => (target, outcome.map_err(Problem::from)),
            Step::Removed(outcomes) => return Some(self.removed(outcomes)),
        };
        if let Err(Problem::Interface(
            InterfaceError::Taken { .. } | InterfaceError::NotPermitted { .. },
        )) = &outcome
        {
            self.ours.remove(&target);
        }
        Some(Done::Added(target, outcome))
    }

    async fn may_add(&mut self, target: &Target) -> Result<(), Problem> {
        let Some(device) = self.devices.get(&target.interface).cloned() else {
            return Ok(()); // that is another problem
        };
        let known = self.known().await?;
        known.addresses.expect_free(target.address)?;
        Ok(interface::expect_enabled(target.address, &device)?)
    }

    /// The addresses of this host.
    async fn known(&mut self) -> Result<&Known, InterfaceError> {
        let before = self.addresses.take();
        let known = Known::look(before, self.interfaces()?).await?;
        Ok(self.addresses.insert(known))
    }

    /// Beside everything else: the kernel may take its time, and permissions have to be renewed meanwhile.
    fn begin_renewal(&mut self, target: &Target) -> Result<(), Problem> {
        let name = self.device_name(&target.interface)?;
        let Some(device) = self.devices.get(&target.interface).cloned() else {
            return Err(InterfaceError::NoDevice { device: name }.into());
        };
        self.expect_fence(target, &device)?;
        self.ours.insert(target.clone(), device.clone());
        let (interfaces, address) = (Arc::clone(self.interfaces()?), target.address);
        self.renewals.begin(target, async move {
            // The change that the kernel has yet to tell of: the fence was made for the device that was there before.
            if interfaces.device(&name).await?.index != device.index {
                return Err(Problem::OtherDevice { device: name });
            }
            Ok(interfaces.renew(address, &device).await?)
        });
        Ok(())
    }

    async fn remove(&mut self, targets: &[Target], heard: &BTreeSet<IpAddr>) -> Option<Done> {
        self.work = Some(self.removal(targets, heard));
        self.done_at_once().await
    }

    /// Only what we added is removed; an address somebody else put there stays.
    fn removal(&mut self, targets: &[Target], heard: &BTreeSet<IpAddr>) -> Work {
        for target in targets {
            // What it has sent already comes to the kernel first.
            self.renewals.cancel(target);
        }
        // Unheard first. If that fails, the permission ends with the lease, and the address goes all the same.
        let is_unheard = |t: &&Target| self.ours.contains_key(*t) && !heard.contains(&t.address);
        let unheard: Vec<Target> = targets.iter().filter(is_unheard).cloned().collect();
        for (target, problem) in self.guard.forbid(&unheard) {
            warn!(vip = %target.address, %problem, "the permission could not be taken back");
        }
        let (mut done, mut there) = (vec![], vec![]);
        for target in targets {
            let Some(device) = self.ours.get(target).cloned() else {
                done.push((target.clone(), Ok(false)));
                continue;
            };
            match self.interfaces() {
                Ok(interfaces) => there.push((target.clone(), device, Arc::clone(interfaces))),
                Err(error) => done.push((target.clone(), Err(error))),
            }
        }
        Work::remove(done, there)
    }

    fn removed(&mut self, outcomes: Vec<(Target, Result<bool, InterfaceError>)>) -> Done {
        for (target, outcome) in &outcomes {
            if matches!(outcome, Ok(true)) {
                self.ours.remove(target);
                self.let_go.insert(target.address, None);
            }
        }
        let outcomes = outcomes.into_iter();
        Done::Removed(
            outcomes
                .map(|(t, o)| (t, o.map_err(Problem::from)))
                .collect(),
        )
    }

    fn announce(&mut self, target: &Target) -> Result<(), Problem> {
        let Some(device) = self.devices.get(&target.interface) else {
            return Ok(()); // announced when it appears
        };
        let Some(mac) = device.mac.filter(|_| device.ready) else {
            return Ok(()); // nobody to tell; announced when the carrier is back
        };
        let Some(announcer) = &self.announcer else {
            return Ok(()); // told of by `announce_problem`; announced when there is one
        };
        let sent = announcer.send(&announcement(target.address, mac), device.index);
        sent.map_err(|error| not_announced(error, device))
    }

    fn open_announcer(&mut self, now: Instant) {
        let waits = self.announcer_due.is_some_and(|at| now < at);
        if self.announcer.is_some() || self.names.is_empty() || waits {
            return;
        }
        match (self.open_announcer)() {
            Ok(announcer) => {
                self.announcer = Some(announcer);
                (self.no_announcer, self.announcer_due) = (None, None);
            }
            Err(error) => {
                let problem = match error.kind() {
                    io::ErrorKind::PermissionDenied => Problem::MayNotAnnounce,
                    _ => Problem::NoAnnouncer(error),
                };
                let text = problem.to_string();
                if self.no_announcer.as_ref().map(ToString::to_string) != Some(text.clone()) {
                    error!(problem = %text, "this node is unfit to hold VIPs");
                }
                self.no_announcer = Some(problem);
                self.announcer_due = Some(now + ANNOUNCER_AGAIN_AFTER);
            }
        }
    }

    /// None where there is nobody to tell: on a device without Ethernet addresses.
    fn announce_problem(&self, interface: &Label) -> Option<String> {
        self.devices.get(interface)?.mac?;
        self.no_announcer.as_ref().map(ToString::to_string)
    }

    /// The next change; one that something is waiting for is never lost, at worst an overrun is reported.
    async fn change(&mut self) -> HandsChange {
        loop {
            // Each branch may be dropped: see the functions.
            let step = tokio::select! {
                change = self.watch.next() => return HandsChange::Device(change),
                () = self.guard.touched() => return HandsChange::Fence,
                (target, outcome) = self.renewals.next() => return HandsChange::Renewed(target, outcome),
                look = self.looks.next() => return HandsChange::Looked(look),
                look = self.idle_looks.next() => return HandsChange::Looked(look),
                step = ended(&mut self.work) => step,
            };
            if let Some(done) = self.take_in(step) {
                return HandsChange::Done(done);
            }
        }
    }

    /// Where a fence has to stand, the address is put on the device only if the rules on it, as it is now, were read back.
    fn expect_fence(&self, target: &Target, device: &Device) -> Result<(), Problem> {
        let known = self.devices.get(&target.interface);
        let same = known.is_some_and(|d| d.index == device.index && d.name == device.name);
        match self.guard.fencing_of(target.address, &device.name) {
            Fencing::Unfenced => Ok(()),
            Fencing::Standing if same => Ok(()),
            Fencing::Standing | Fencing::Down => Err(Problem::NotFenced {
                device: device.name.clone(),
            }),
        }
    }

    fn fencing(&self) -> Vec<(Label, Fencing)> {
        let fencing = |interface: &Label| match self.devices.get(interface) {
            Some(device) => self.guard.fencing_on(&device.name),
            None => self.guard.fencing_on_nothing(),
        };
        let names = self.names.keys();
        names.map(|i| (i.clone(), fencing(i))).collect()
    }

    fn obstacle(&self, interface: &Label) -> Option<String> {
        let device = self.device_problem(interface);
        device
            .or_else(|| self.guard.problem.clone())
            .or_else(|| self.announce_problem(interface))
    }

    fn device_problem(&self, interface: &Label) -> Option<String> {
        let Some(name) = self.names.get(interface) else {
            return Some(Problem::Unmapped(interface.clone()).to_string());
        };
        match self.devices.get(interface) {
            Some(device) if device.ready => None,
            Some(device) => Some(format!("device {} is down or has no carrier", device.name)),
            None if !self.watch.is_open() => None, // not known yet
            None => {
                let device = name.clone();
                Some(InterfaceError::NoDevice { device }.to_string())
            }
        }
    }

    fn fence_problem(&self, interface: &Label) -> Option<String> {
        let device = self.devices.get(interface)?;
        let down = self.guard.fencing_on(&device.name) == Fencing::Down;
        let problem = || {
            let why = self.guard.problem.clone();
            why.unwrap_or_else(|| format!("the fence does not stand on {}", device.name))
        };
        down.then(problem)
    }

    fn port(&self, interface: &Label) -> Option<Port> {
        let device = self.devices.get(interface)?;
        Some(Port {
            name: device.name.clone(),
            index: device.index,
            mac: device.mac?,
        })
    }

    /// Which devices there are.
    fn indices(&self) -> BTreeMap<String, u32> {
        let devices = self.devices.values();
        devices.map(|d| (d.name.clone(), d.index)).collect()
    }

    /// The logical interfaces whose device became ready, or got another Ethernet address, by the change.
    async fn readied_by(&mut self, change: &Change) -> Vec<Label> {
        match change {
            Change::Device(device) => {
                // A device that got another name is none of ours by its old one.
                self.devices
                    .retain(|_, known| known.index != device.index || known.name == device.name);
                self.names
                    .iter()
                    .filter(|(_, name)| **name == device.name)
                    .map(|(interface, _)| interface.clone())
                    .filter(|interface| {
                        is_news(
                            self.devices.insert(interface.clone(), device.clone()),
                            device,
                        )
                    })
                    .collect()
            }
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
            let device = match self.look_up(&interface).await {
                Ok(device) => device,
                Err(Problem::Interface(InterfaceError::NoDevice { .. })) => {
                    self.devices.remove(&interface);
                    continue;
                }
                Err(_) => continue,
            };
            let before = self.devices.insert(interface.clone(), device.clone());
            if before.as_ref() != Some(&device) && is_news(before, &device) {
                ready.push(interface);
            }
        }
        ready
    }

    /// Those of these whose addresses of ours are not on their devices any more. Asks the kernel, once for all: a message may be about
    /// an earlier removal of our own.
    async fn lost(&mut self, mut targets: Vec<Target>) -> Vec<Target> {
        targets.retain(|target| self.ours.contains_key(target));
        let addresses = match self.interfaces() {
            Ok(interfaces) if !targets.is_empty() => interfaces.addresses().await,
            Ok(_) | Err(_) => return vec![],
        };
        let Ok(addresses) = addresses else {
            return vec![]; // it expires, or is renewed
        };
        let is_there = |target: &Target| {
            let device = self.ours.get(target);
            device.is_some_and(|device| addresses.holds(target.address, device))
        };
        targets.retain(|target| !is_there(target));
        for target in &targets {
            self.renewals.cancel(target); // it says nothing of what is added anew
        }
        targets
    }

    /// The device behind an interface, as it is now. What is remembered of it is left alone: the change that the kernel has
    /// yet to tell of must still be news then.
    async fn look_up(&mut self, interface: &Label) -> Result<Device, Problem> {
        let name = self.device_name(interface)?;
        let device = self.interfaces()?.device(&name).await?;
        self.devices
            .entry(interface.clone())
            .or_insert_with(|| device.clone());
        Ok(device)
    }

    fn device_name(&self, interface: &Label) -> Result<String, Problem> {
        let name = self.names.get(interface).cloned();
        name.ok_or_else(|| Problem::Unmapped(interface.clone()))
    }

    fn interfaces(&mut self) -> Result<&Arc<Interfaces>, InterfaceError> {
        self.interfaces.take_if(|open| open.has_ended());
        match &mut self.interfaces {
            Some(open) => Ok(open),
            empty => Ok(empty.insert(Arc::new(Interfaces::open()?))),
        }
    }
}

/// What came of the step that is under way; never, where there is none.
async fn ended(work: &mut Option<Work>) -> Step {
    match work {
        Some(work) => work.ended().await,
        None => std::future::pending().await,
    }
}

/// The device of addresses that no frame is answered for by itself.
fn loopback() -> Device {
    Device {
        name: "lo".to_owned(),
        index: 1,
        mac: None,
        ready: true,
    }
}

/// Whether the device is usable and was not, as far as known, or must be announced anew.
fn is_news(before: Option<Device>, now: &Device) -> bool {
    now.ready
        && before.is_none_or(|before| {
            !before.ready || before.mac != now.mac || before.index != now.index
        })
}

fn not_announced(error: io::Error, device: &Device) -> Problem {
    let name = || device.name.clone();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOBUFS) => Problem::AnnouncementDropped { device: name() },
        _ => Problem::Announce {
            device: name(),
            source: error,
        },
    }
}

/// Hears of changes of devices and addresses; opens its socket again when it fails.
#[derive(Debug, Default)]
struct DeviceWatch {
    changes: Option<Changes>,
    /// When to open `changes` again after a failure.
    again_at: Option<Instant>,
}

impl DeviceWatch {
    fn is_open(&self) -> bool {
        self.changes.is_some()
    }

    async fn next(&mut self) -> Change {
        loop {
            sleep_until_past(self.again_at).await;
            let failure = match &mut self.changes {
                Some(open) => match open.next().await {
                    Ok(change) => return change,
                    Err(error) => error.to_string(),
                },
                None => match Changes::watch() {
                    Ok(open) => {
                        self.changes = Some(open);
                        self.again_at = None;
                        return Change::Overrun; // what happened before is not known
                    }
                    Err(error) => error.to_string(),
                },
            };
            self.changes = None;
            self.again_at = Some(Instant::now() + WATCH_AGAIN_AFTER);
            warn!(problem = %failure, "cannot watch devices and addresses; trying again");
        }
    }
}

/// The fence, as this process has it or has it not.
#[derive(Debug)]
struct Guard {
    wish: FenceWish,
    owned: bool,
    fence: Option<Fence>,
    watch: Option<TableWatch>,
    /// Why there is none and will be none while this process lives.
    given_up: bool,
    /// What is wrong with it.
    problem: Option<String>,
    /// When to try again.
    due: Option<Instant>,
    /// What was made last, or tried.
    wanted: Ruleset,
    /// What is permitted, and the lease that it was permitted for.
    permitted: BTreeMap<IpAddr, Instant>,
}

impl Guard {
    fn new(wish: FenceWish, owned: bool) -> Self {
        Self {
            wish,
            owned,
            fence: None,
            watch: None,
            given_up: false,
            problem: None,
            due: None,
            wanted: Ruleset::default(),
            permitted: BTreeMap::new(),
        }
    }

    fn is_off(&self) -> bool {
        self.wish == FenceWish::Off
    }

    /// Makes the rules if they are not as wanted. Where there is no device there is nothing to make.
    fn keep(&mut self, wanted: &Ruleset) {
        self.due = None;
        self.wanted = wanted.clone();
        if wanted.devices.is_empty() {
            // The chains may have gone with the last device (before Linux 6.16): one that has its name next may be without rules.
            self.doubt();
        }
        if self.is_off() || self.given_up || wanted.devices.is_empty() {
            return;
        }
        match self.make() {
            Ok(()) => {
                if self.problem.take().is_some() {
                    info!("the fence stands");
                }
            }
            Err(error) => self.note(&error),
        }
    }

    fn make(&mut self) -> Result<(), FenceError> {
        let Some(fence) = &mut self.fence else {
            let mut fence = if self.owned {
                Fence::open()?
            } else {
                Fence::open_unowned()?
            };
            let watch = fence.watch()?;
            fence.begin(&self.wanted)?;
            info!(devices = ?self.wanted.devices, "the fence stands");
            (self.fence, self.watch) = (Some(fence), Some(watch));
            return Ok(());
        };
        if self.watch.is_none() {
            // What was changed while nobody heard of it is found by reading the rules.
            self.watch = Some(fence.watch()?);
            fence.doubt();
        }
        if fence.ensure(&self.wanted)? == Ensured::Replaced {
            self.permit_again()?;
        }
        Ok(())
    }

    /// After the rules were made anew: what was permitted is permitted again, for the same lease.
    fn permit_again(&mut self) -> Result<(), FenceError> {
        let Some(fence) = &mut self.fence else {
            return Ok(());
        };
        let mut by_lease: BTreeMap<Instant, BTreeSet<IpAddr>> = BTreeMap::new();
        for (address, lease_until) in &self.permitted {
            by_lease.entry(*lease_until).or_default().insert(*address);
        }
        for (lease_until, addresses) in by_lease {
            fence.permit_holding(&addresses, lease_until)?;
        }
        Ok(())
    }

    fn note(&mut self, error: &FenceError) {
        let mut text = error.to_string();
        self.given_up = error.is_final();
        if !self.given_up {
            self.due = Some(Instant::now() + FENCE_AGAIN_AFTER);
        }
        if self.wish == FenceWish::Required {
            text.push_str("; this node holds no VIP without a fence (require_fence in node.toml)");
        }
        if self.problem.as_ref() == Some(&text) {
            return;
        }
        if self.wish == FenceWish::Required || !self.given_up {
            error!(problem = %text, "no fence");
        } else {
            warn!(
                problem = %text,
                "no fence: should this process be stopped or hang while it holds a VIP, the address stays for up to {VALID_FOR:?} \
                 while another node takes it over: two holders for that time"
            );
        }
        self.problem = Some(text);
    }

    /// The rules count no more until they were read back.
    fn doubt(&mut self) {
        if let Some(fence) = &mut self.fence {
            fence.doubt();
        }
    }

    fn is_damaged(&mut self) -> bool {
        let Some(fence) = &mut self.fence else {
            return false;
        };
        let whole = fence.is_whole(&self.wanted);
        if let Err(error) = &whole {
            warn!(problem = %error, "the fence is damaged");
            fence.doubt();
            self.permitted.clear();
        }
        whole.is_err()
    }

    /// Returns when somebody may have changed the rules. Dropping the future loses nothing: see `TableWatch`.
    async fn touched(&mut self) {
        let Some(watch) = &mut self.watch else {
            return std::future::pending().await;
        };
        if let Err(error) = watch.changed().await {
            warn!(problem = %error, "cannot watch the rules of the fence; opening the socket again");
            self.watch = self.fence.as_ref().and_then(|fence| fence.watch().ok());
            if self.watch.is_none() {
                self.due = Some(Instant::now() + FENCE_AGAIN_AFTER);
            }
        }
    }

    fn fencing_on(&self, device: &str) -> Fencing {
        let stands = self.fence.as_ref().is_some_and(|f| f.stands_on(device));
        if stands {
            Fencing::Standing
        } else {
            self.fencing_on_nothing()
        }
    }

    /// Where no rules were read back.
    fn fencing_on_nothing(&self) -> Fencing {
        match self.wish {
            FenceWish::Off => Fencing::Unfenced,
            FenceWish::IfPossible if self.given_up => Fencing::Unfenced,
            FenceWish::IfPossible | FenceWish::Required => Fencing::Down,
        }
    }

    fn fencing_of(&self, address: IpAddr, device: &str) -> Fencing {
        let stands = self
            .fence
            .as_ref()
            .is_some_and(|f| f.stands_for(address, device));
        if stands {
            Fencing::Standing
        } else {
            self.fencing_on_nothing()
        }
    }

    fn permit(&mut self, targets: &BTreeSet<Target>, lease_until: Instant) -> Result<(), Problem> {
        let Some(fence) = &mut self.fence else {
            return Ok(());
        };
        let addresses: BTreeSet<IpAddr> = targets.iter().map(|t| t.address).collect();
        fence.permit_holding(&addresses, lease_until)?;
        for address in addresses {
            self.permitted.insert(address, lease_until);
        }
        Ok(())
    }

    fn permit_serving(
        &mut self,
        vips: &BTreeSet<IpAddr>,
        macs: &BTreeSet<Mac>,
        members: &BTreeSet<IpAddr>,
    ) -> Result<(), Problem> {
        match &mut self.fence {
            Some(fence) if fence.is_made() => {
                Ok(fence.permit_serving(vips, macs, members, SERVE_LASTS)?)
            }
            _ => Ok(()),
        }
    }

    fn forbid_serving(&mut self, vips: &BTreeSet<IpAddr>) -> Result<(), Problem> {
        match &mut self.fence {
            Some(fence) => Ok(fence.forbid_serving(vips)?),
            None => Ok(()),
        }
    }

    /// All together, or else each alone. Returns those that are permitted still, perhaps, and why.
    fn forbid(&mut self, targets: &[Target]) -> Vec<(Target, Problem)> {
        let vips: BTreeSet<IpAddr> = targets.iter().map(|t| t.address).collect();
        self.permitted.retain(|address, _| !vips.contains(address));
        let Some(fence) = &mut self.fence else {
            return vec![];
        };
        if vips.is_empty() || fence.forbid_holding(&vips).is_ok() {
            return vec![];
        }
        let mut failed = vec![];
        for target in targets {
            if let Err(error) = fence.forbid_holding(&[target.address].into()) {
                failed.push((target.clone(), error.into()));
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests;
