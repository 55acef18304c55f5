//! Looks out for other hosts on the segments of the VIPs: foreign ones that use a VIP too, and those that show that the clients' side
//! is reached. `neighbour` judges.
//!
//! A thread of its own, with two packet sockets that the kernel filters: a storm of ARP must not delay the thread that holds VIPs. It
//! changes nothing and announces nothing; what is to be defended is for the driver to announce, which looks at the lease. It asks
//! by frames that name no address of this node. Ends when the value is dropped.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{LinkAddr, SockaddrStorage, recvfrom},
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    announce::{Announcer, Mac},
    fence::chance::Port,
    machine::Target,
    neighbour::{Conflicts, mac_text, question, spoken},
    reach::{Asked, Reach},
};
use crate::model::{
    label::Label,
    network::{Network, is_link_local},
};

/// Longest wait for a frame: how late an order to stop, a VIP or a verdict may be.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Frames taken between two looks at the rest.
const BATCH: usize = 256;
const FRAME: usize = 256;
/// Between tries to open sockets that could not be opened.
const OPEN_AGAIN: Duration = Duration::from_secs(10);
/// The same where this process may not: only a change from outside could help.
const MAY_AGAIN: Duration = Duration::from_secs(3600);

const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;

/// When it asks, and how long silence may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookoutTiming {
    /// Between two questions to each of those that show whether the clients' side is reached.
    pub ask_every: Duration,
    /// Silence of all of them after which it counts as cut off.
    pub patience: Duration,
    /// Between two questions for a VIP that this node holds. One is asked when it is taken, beside the announcements.
    pub probe_every: Duration,
    /// Between two questions for a VIP that is about to be claimed for the first time.
    pub first_probes: Duration,
    /// A conflict that is older raises an alarm. A member's new Ethernet address is known within a second.
    pub confirm: Duration,
    /// An alarm ends when its host was not heard for so long.
    pub lasts: Duration,
}

impl Default for LookoutTiming {
    fn default() -> Self {
        Self {
            ask_every: Duration::from_millis(900),
            patience: Duration::from_millis(2800),
            probe_every: Duration::from_secs(8),
            first_probes: Duration::from_millis(250),
            confirm: Duration::from_secs(2),
            lasts: Duration::from_secs(30),
        }
    }
}

/// A VIP on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    pub port: Port,
    /// This node holds it.
    pub held: bool,
    /// It is about to be claimed for the first time.
    pub is_new: bool,
}

/// What it has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    pub targets: BTreeMap<Target, Watched>,
    /// Ethernet addresses of other members.
    pub members: BTreeSet<Mac>,
    /// Their own addresses.
    pub neighbours: BTreeSet<IpAddr>,
}

/// What it sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// VIPs that a foreign host uses too, and its Ethernet address.
    pub conflicts: BTreeMap<Target, Mac>,
    /// How often each VIP was to be defended so far.
    pub defences: BTreeMap<Target, u64>,
    /// VIPs that a foreign host spoke for lately, whether that raises an alarm yet or not.
    pub spoken_for: BTreeSet<Target>,
    /// Why the clients' side of an interface counts as cut off.
    pub cut_off: BTreeMap<Label, String>,
}

/// The running thread, and what it sees.
#[derive(Debug)]
pub struct Lookout {
    outlook: watch::Receiver<Outlook>,
    defended: BTreeMap<Target, u64>,
    stop: Arc<AtomicBool>,
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Lookout {
    /// Watches the devices of the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there can be no further thread. Without the privilege it sees nothing, says so in the log, and tries again.
    pub fn start(
        timing: LookoutTiming,
        named: BTreeSet<IpAddr>,
        sight: watch::Receiver<Sight>,
    ) -> io::Result<Self> {
        let (sender, outlook) = watch::channel(Outlook::default());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let now = Instant::now();
        let mut eyes = Eyes {
            timing,
            named,
            sight,
            outlook: sender,
            conflicts: Conflicts::new(timing.confirm, timing.lasts),
            reach: Reach::new(timing.patience),
            networks: BTreeMap::new(),
            members: BTreeSet::new(),
            sockets: None,
            open_at: now,
            blind: None,
            ask_at: now,
            probed: BTreeMap::new(),
        };
        std::thread::Builder::new()
            .name("vip-lookout".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    eyes.look();
                }
            })?;
        Ok(Self {
            outlook,
            defended: BTreeMap::new(),
            stop,
        })
    }

    /// One that sees nothing.
    pub fn none() -> Self {
        Self {
            outlook: watch::channel(Outlook::default()).1,
            defended: BTreeMap::new(),
            stop: Arc::default(),
        }
    }

    pub fn outlook(&self) -> watch::Receiver<Outlook> {
        self.outlook.clone()
    }

    /// Returns when something else is seen; never, where nothing can be. Dropping the future loses nothing.
    pub async fn changed(&mut self) {
        if self.outlook.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// VIPs that are to be announced once, since this was last called.
    pub fn to_defend(&mut self) -> Vec<Target> {
        let defences = self.outlook.borrow_and_update().defences.clone();
        let news = defences
            .iter()
            .filter(|(target, number)| self.defended.get(*target) != Some(*number));
        let targets = news.map(|(target, _)| target.clone()).collect();
        self.defended = defences;
        targets
    }

    /// Whether a foreign host spoke for a VIP lately.
    pub fn is_spoken_for(&self, target: &Target) -> bool {
        self.outlook.borrow().spoken_for.contains(target)
    }

    /// Whether it sees anything at all.
    pub fn sees(&self) -> bool {
        self.outlook.has_changed().is_ok()
    }

    /// The foreign host that uses a VIP too.
    pub fn conflict(&self, target: &Target) -> Option<Mac> {
        self.outlook.borrow().conflicts.get(target).copied()
    }
}

/// What the thread has.
struct Eyes {
    timing: LookoutTiming,
    named: BTreeSet<IpAddr>,
    sight: watch::Receiver<Sight>,
    outlook: watch::Sender<Outlook>,
    conflicts: Conflicts,
    reach: Reach,
    /// The networks of each interface, as last looked at.
    networks: BTreeMap<Label, BTreeSet<Network>>,
    /// Every Ethernet address that a member was ever known by: one that is paused is still none of a foreign host.
    members: BTreeSet<Mac>,
    sockets: Option<Sockets>,
    open_at: Instant,
    /// Why it sees nothing, as last told.
    blind: Option<String>,
    ask_at: Instant,
    /// When each VIP that this node holds was last asked for.
    probed: BTreeMap<Target, Instant>,
}

impl Eyes {
    /// Takes in what comes, for at most `LOOK_EVERY`.
    fn look(&mut self) {
        let sight = self.sight.borrow_and_update().clone();
        self.members.extend(&sight.members);
        let interfaces = sight.targets.keys().map(|t| t.interface.clone());
        self.reach.watch(&interfaces.collect(), Instant::now());
        if sight.targets.is_empty() || !self.open() {
            std::thread::sleep(LOOK_EVERY);
        } else {
            self.ask(&sight);
            self.probe(&sight);
            self.listen(&sight);
        }
        self.tell(&sight);
    }

    fn open(&mut self) -> bool {
        let now = Instant::now();
        if self.sockets.is_none() && now >= self.open_at {
            self.open_at = now + OPEN_AGAIN;
            match Sockets::open() {
                Ok(sockets) => {
                    self.reach = Reach::new(self.timing.patience);
                    self.sockets = Some(sockets);
                    self.blind = None;
                }
                Err(error) => {
                    let (problem, again_after) = blindness(&error);
                    self.open_at = now + again_after;
                    if self.blind.as_ref() != Some(&problem) {
                        warn!(problem, "cannot look out for foreign hosts that use a VIP");
                        self.blind = Some(problem);
                    }
                }
            }
        }
        self.sockets.is_some()
    }

    /// Asks those that show whether the clients' side is reached.
    fn ask(&mut self, sight: &Sight) {
        let now = Instant::now();
        if now < self.ask_at {
            return;
        }
        self.ask_at = now + self.timing.ask_every;
        self.networks = networks_of(sight);
        let ports: BTreeSet<&Port> = sight.targets.values().map(|w| &w.port).collect();
        for port in ports {
            for address in self.named.union(&sight.neighbours) {
                self.send(*address, port);
            }
        }
    }

    /// Asks whether anybody else has what this node holds, or is about to claim for the first time.
    fn probe(&mut self, sight: &Sight) {
        let now = Instant::now();
        self.probed
            .retain(|target, _| sight.targets.get(target).is_some_and(is_probed));
        for (target, watched) in sight.targets.iter().filter(|(_, w)| is_probed(w)) {
            let every = match watched.held {
                true => self.timing.probe_every,
                false => self.timing.first_probes,
            };
            let due = self.probed.get(target).is_none_or(|at| now >= *at + every);
            if due {
                self.probed.insert(target.clone(), now);
                self.send(target.address, &watched.port);
            }
        }
    }

    /// A frame that is lost, as on a device that is down, is asked for again.
    fn send(&self, address: IpAddr, port: &Port) {
        if let Some(sockets) = &self.sockets {
            let _ = sockets
                .sender
                .send(&question(address, port.mac), port.index);
        }
    }

    fn listen(&mut self, sight: &Sight) {
        let Some(sockets) = &self.sockets else { return };
        let frames = match sockets.wait() {
            Ok(frames) => frames,
            Err(error) => {
                warn!(%error, "cannot hear other hosts on the VIPs' networks; opening the sockets again");
                self.sockets = None;
                return;
            }
        };
        let now = Instant::now();
        for (device, frame) in frames {
            let Some(spoken) = spoken(&frame) else {
                continue;
            };
            let mut watched = sight.targets.values();
            if watched.any(|w| w.port.mac == spoken.mac) {
                continue; // another device of this node on the same segment
            }
            let mut here = sight.targets.iter().filter(|(_, w)| w.port.index == device);
            if self.named.contains(&spoken.address) || sight.neighbours.contains(&spoken.address) {
                let interfaces: BTreeSet<&Label> =
                    here.clone().map(|(t, _)| &t.interface).collect();
                for interface in interfaces {
                    self.reach.hear(interface, spoken.address, now);
                }
            }
            let claimed = here.find(|(target, _)| target.address == spoken.address);
            let Some((target, watched)) = claimed else {
                continue;
            };
            let foreign = !self.members.contains(&spoken.mac);
            if foreign && self.conflicts.hear(target, spoken.mac, watched.held, now) {
                self.outlook.send_modify(|outlook| {
                    *outlook.defences.entry(target.clone()).or_default() += 1;
                });
            }
        }
    }

    fn tell(&mut self, sight: &Sight) {
        let now = Instant::now();
        let known = |target: &Target| sight.targets.contains_key(target);
        self.conflicts.forget(known, &self.members, now);
        let conflicts = self.conflicts.alarms(now);
        let spoken_for = self.conflicts.targets();
        let asked = Asked {
            named: &self.named,
            members: &sight.neighbours,
            networks: &self.networks,
        };
        let cut_off = match self.sockets.is_some() {
            true => self.reach.problems(asked, now),
            false => BTreeMap::new(),
        };
        self.outlook.send_if_modified(|outlook| {
            log_turns(&outlook.conflicts, &conflicts);
            let news = outlook.conflicts != conflicts
                || outlook.cut_off != cut_off
                || outlook.spoken_for != spoken_for;
            outlook.defences.retain(|target, _| known(target));
            (outlook.conflicts, outlook.cut_off) = (conflicts, cut_off);
            outlook.spoken_for = spoken_for;
            news
        });
    }
}

/// The networks in which this node itself has an address, by device. What cannot be looked up is none.
pub fn networks_by_device() -> BTreeMap<String, BTreeSet<Network>> {
    let Ok(addresses) = nix::ifaddrs::getifaddrs() else {
        return BTreeMap::new();
    };
    let mut by_device: BTreeMap<String, BTreeSet<Network>> = BTreeMap::new();
    for one in addresses {
        let address = one.address.as_ref().and_then(ip_of);
        let mask = one.netmask.as_ref().and_then(ip_of);
        if let (Some(address), Some(mask)) = (address, mask)
            && let Some(network) = network_of(address, mask)
        {
            let known = by_device.entry(one.interface_name).or_default();
            known.insert(network);
        }
    }
    by_device
}

/// Those on the interfaces of VIPs.
fn networks_of(sight: &Sight) -> BTreeMap<Label, BTreeSet<Network>> {
    let by_device = networks_by_device();
    let targets = sight.targets.iter();
    targets
        .filter_map(|(target, watched)| {
            let networks = by_device.get(&watched.port.name)?;
            Some((target.interface.clone(), networks.clone()))
        })
        .collect()
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

/// None for an address that has no neighbours, as a VIP, and for a link-local one: every interface has these.
fn network_of(address: IpAddr, mask: IpAddr) -> Option<Network> {
    let (network, prefix, longest): (IpAddr, u32, u32) = match (address, mask) {
        (IpAddr::V4(address), IpAddr::V4(mask)) => {
            let (address, mask) = (address.to_bits(), mask.to_bits());
            let network = Ipv4Addr::from(address & mask);
            (network.into(), mask.leading_ones(), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(mask)) => {
            let (address, mask) = (address.to_bits(), mask.to_bits());
            let network = Ipv6Addr::from(address & mask);
            (network.into(), mask.leading_ones(), 128)
        }
        _ => return None,
    };
    let has_neighbours = prefix < longest && !is_link_local(address);
    let network = Network::new(network, u8::try_from(prefix).ok()?);
    network.filter(|_| has_neighbours)
}

/// Why nothing is seen after the sockets could not be opened, and when to try again.
fn blindness(error: &io::Error) -> (String, Duration) {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let problem = format!(
                "{error}: this process has no CAP_NET_RAW; run it as root, or grant the capability (AmbientCapabilities= in the \
                 systemd unit)"
            );
            (problem, MAY_AGAIN)
        }
        _ => (
            format!("{error}; trying again every {OPEN_AGAIN:?}"),
            OPEN_AGAIN,
        ),
    }
}

fn is_probed(watched: &Watched) -> bool {
    watched.held || watched.is_new
}

fn log_turns(before: &BTreeMap<Target, Mac>, now: &BTreeMap<Target, Mac>) {
    for (target, mac) in now {
        if before.get(target) != Some(mac) {
            let host = mac_text(*mac);
            warn!(vip = %target.address, interface = %target.interface, host, "a foreign host uses the address of the VIP");
        }
    }
    for target in before.keys().filter(|target| !now.contains_key(target)) {
        info!(vip = %target.address, interface = %target.interface, "the foreign host that used the address of the VIP is not heard any more");
    }
}

/// Where the frames come from. ARP and neighbour discovery only, after the fence: what it drops is no business of ours.
struct Sockets {
    arp: OwnedFd,
    discovery: OwnedFd,
    sender: Announcer,
}

impl Sockets {
    fn open() -> io::Result<Self> {
        let open = |ethertype: u16, filter: &[SockFilter]| {
            let protocol = Protocol::from(i32::from(ethertype.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
            if !filter.is_empty() {
                socket.attach_filter(filter)?;
            }
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(OwnedFd::from(socket))
        };
        Ok(Self {
            arp: open(ETH_P_ARP, &[])?,
            discovery: open(ETH_P_IPV6, &discovery_filter())?,
            sender: Announcer::open()?,
        })
    }

    /// The frames that come within `LOOK_EVERY`, at once when there are some, each with the index of its device.
    fn wait(&self) -> io::Result<Vec<(u32, Vec<u8>)>> {
        let sockets = [&self.arp, &self.discovery];
        let mut polled = sockets.map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN));
        let timeout = PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::ZERO);
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut frames = vec![];
        for socket in sockets {
            let mut buffer = [0; FRAME];
            for _ in 0..BATCH {
                match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
                    Ok((length, Some(from))) => {
                        let frame = buffer.get(..length).unwrap_or_default();
                        let device = u32::try_from(from.ifindex()).unwrap_or(0);
                        frames.push((device, frame.to_vec()));
                    }
                    Ok((_, None)) => {}
                    Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => break,
                    // A device went down; the others go on.
                    Err(nix::errno::Errno::ENETDOWN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(frames)
    }
}

/// Classic BPF: ICMPv6 of the types 135 and 136, without extension headers, which neighbour discovery has none of.
fn discovery_filter() -> [SockFilter; 7] {
    const LOAD_OCTET: u16 = 0x30;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_OCTET, 0, 0, 20), // next header
        SockFilter::new(JUMP_IF_EQUAL, 0, 4, 58),
        SockFilter::new(LOAD_OCTET, 0, 0, 54), // type
        SockFilter::new(JUMP_IF_EQUAL, 1, 0, 135),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, 136),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_neighbours_tells_its_network() {
        for (address, mask, expected) in [
            ("192.0.2.9", "255.255.255.0", Some("192.0.2.0/24")),
            ("192.0.2.9", "255.255.255.255", None),
            (
                "2001:db8::9",
                "ffff:ffff:ffff:ffff::",
                Some("2001:db8::/64"),
            ),
            (
                "2001:db8::9",
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                None,
            ),
            ("fe80::9", "ffff:ffff:ffff:ffff::", None),
            ("192.0.2.9", "ffff::", None),
        ] {
            let network = network_of(address.parse().unwrap(), mask.parse().unwrap());
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(network, expected, "{address} {mask}");
        }
    }

    #[test]
    fn it_is_blind_for_long_only_where_it_may_not_see() {
        for (errno, names_the_capability, again_after) in [
            (libc::EPERM, true, MAY_AGAIN),
            (libc::EACCES, true, MAY_AGAIN),
            (libc::EMFILE, false, OPEN_AGAIN),
            (libc::ENOBUFS, false, OPEN_AGAIN),
            (libc::EAFNOSUPPORT, false, OPEN_AGAIN),
        ] {
            let (problem, again) = blindness(&io::Error::from_raw_os_error(errno));
            assert_eq!(again, again_after, "{problem}");
            assert_eq!(
                problem.contains("CAP_NET_RAW"),
                names_the_capability,
                "{problem}"
            );
        }
    }
}
