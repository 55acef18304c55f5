//! A switch in userspace: frames between two hosts that come late, or not at all, each direction for itself.
//!
//! It stands beside the bridge, which goes on carrying everything else: the bridge drops what goes from one port to the other of a
//! direction with a rule, and a thread of ours takes those frames off the one port and puts them out at the other in its own time.
//! So a run without such a rule has no process of ours in its way. Frames of one direction never overtake each other.
//!
//! Frames are taken and given with the kernel's offload header: what the hosts left to the hardware (checksums, segments of up to
//! 64 KiB) stays undone, as it would on the bridge.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
        sockopt::RcvBufForce,
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{LabError, namespace::Namespace};
use crate::arp::{self, Mac, parse_mac};

/// The bridge's table of ours.
const TABLE: &str = "jepsen_switch";
/// What waits, in octets of all directions together; beyond, frames are lost as in any switch.
const WAITING: usize = 64 << 20;
/// The kernel's queue of each port.
const RECEIVE: usize = 8 << 20;
/// The offload header in front of each frame: `struct virtio_net_hdr`.
const OFFLOAD: usize = 10;
/// The longest frame with its offload header.
const LONGEST: usize = OFFLOAD + 14 + (64 << 10);
/// How often the thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// What happens to the frames of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The host that sends.
    pub from: String,
    /// The host that receives.
    pub to: String,
    /// On the way for so long.
    pub delay: Duration,
    /// ... give or take this, drawn evenly for each frame; at most the delay.
    pub jitter: Duration,
    /// So many of a hundred frames are lost.
    pub loss_percent: u8,
}

/// One direction with what is on its way. Knows no clock and no socket.
#[derive(Debug)]
struct Direction {
    rule: Rule,
    draws: StdRng,
    waiting: VecDeque<(Instant, Vec<u8>)>,
}

impl Direction {
    fn new(rule: Rule, seed: u64) -> Self {
        Self {
            rule,
            draws: StdRng::seed_from_u64(seed),
            waiting: VecDeque::new(),
        }
    }

    /// Takes a frame; false if it is lost.
    fn take(&mut self, now: Instant, frame: &[u8]) -> bool {
        if self.draws.random_range(0..100) < self.rule.loss_percent {
            return false;
        }
        let Rule { delay, jitter, .. } = self.rule;
        let least = delay.saturating_sub(jitter);
        let late = least + (delay + jitter - least).mul_f64(self.draws.random_range(0.0..=1.0));
        let due = now + late;
        // Behind what went before.
        let due = self.waiting.back().map_or(due, |(last, _)| due.max(*last));
        self.waiting.push_back((due, frame.to_vec()));
        true
    }

    /// The next frame that has arrived by now.
    fn give(&mut self, now: Instant) -> Option<Vec<u8>> {
        let is_due = |(due, _): &mut (Instant, Vec<u8>)| *due <= now;
        self.waiting.pop_front_if(is_due).map(|(_, frame)| frame)
    }

    fn next_due(&self) -> Option<Instant> {
        self.waiting.front().map(|(due, _)| *due)
    }
}

/// Whether a frame (without its offload header) is for the host with this address.
fn is_for(frame: &[u8], mac: Mac) -> bool {
    frame
        .first_chunk::<6>()
        .is_some_and(|to| *to == mac || to[0] & 1 == 1)
}

/// How many frames passed, and how many were lost: drawn, or for want of space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub lost: u64,
}

/// Rules in force. Dropping it puts out what is still on its way and gives the directions back to the bridge.
#[derive(Debug)]
pub struct Switch {
    bridge: Arc<Namespace>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counters {
    is_over: AtomicBool,
    passed: AtomicU64,
    lost: AtomicU64,
}

impl Switch {
    /// Why there can be none here; None when there can.
    pub fn missing() -> Option<String> {
        let probe = super::LabName::next().namespace("probe");
        let tried = Namespace::create(probe).and_then(|host| {
            host.output("nft", &["add table bridge t; add chain bridge t f { type filter hook forward priority 0; }"])
        });
        tried
            .err()
            .map(|error| format!("nft has no rules for bridges here: {error}"))
    }

    /// Puts rules into force between hosts whose ports are in `bridge`, under the hosts' names. The seed decides what is lost.
    pub fn start(
        bridge: &Arc<Namespace>,
        hosts: &BTreeMap<String, String>,
        rules: &[Rule],
        seed: u64,
    ) -> Result<Self, LabError> {
        let ports = Ports::open(bridge, hosts, rules)?;
        bridge.output("nft", &[&table(rules)])?;
        let counters = Arc::new(Counters::default());
        let mut switch = Self {
            bridge: bridge.clone(),
            counters: counters.clone(),
            thread: None,
        };
        let directions = (rules.iter().cloned().enumerate())
            .map(|(number, rule)| Direction::new(rule, seed.wrapping_add(number as u64)))
            .collect();
        let work = Work {
            ports,
            directions,
            octets: 0,
            counters,
        };
        let thread = std::thread::Builder::new()
            .name("switch".to_owned())
            .spawn(move || work.run())
            .map_err(|source| LabError::Start {
                command: "switch".to_owned(),
                source,
            })?;
        switch.thread = Some(thread);
        Ok(switch)
    }

    pub fn counts(&self) -> Counts {
        Counts {
            passed: self.counters.passed.load(Ordering::Relaxed),
            lost: self.counters.lost.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.counters.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let text = format!("delete table bridge {TABLE}");
        if let Err(error) = self.bridge.output("nft", &[&text]) {
            tracing::warn!(%error, "the bridge does not get its frames back");
        }
    }
}

/// The bridge leaves these directions to us.
fn table(rules: &[Rule]) -> String {
    let mut text = format!(
        "add table bridge {TABLE}; \
         add chain bridge {TABLE} forward {{ type filter hook forward priority 0; policy accept; }}; "
    );
    for Rule { from, to, .. } in rules {
        text +=
            &format!("add rule bridge {TABLE} forward iifname \"{from}\" oifname \"{to}\" drop; ");
    }
    text
}

/// The ports of hosts that take part.
#[derive(Debug)]
struct Ports {
    /// By the host that sends: its port, where its frames are taken.
    sources: BTreeMap<String, OwnedFd>,
    /// By the host that receives: its port's number and its Ethernet address.
    sinks: BTreeMap<String, (u32, Mac)>,
    out: OwnedFd,
}

impl Ports {
    fn open(
        bridge: &Namespace,
        hosts: &BTreeMap<String, String>,
        rules: &[Rule],
    ) -> Result<Self, LabError> {
        let mut sinks = BTreeMap::new();
        for host in rules.iter().map(|rule| &rule.to).collect::<BTreeSet<_>>() {
            let mac = hosts.get(host).and_then(|mac| parse_mac(mac));
            let mac = mac.ok_or_else(|| LabError::NoHost(host.clone()))?;
            let port = arp::device_index(bridge, host)?;
            sinks.insert(host.clone(), (port, mac));
        }
        let mut sources = BTreeMap::new();
        for host in rules.iter().map(|rule| &rule.from).collect::<BTreeSet<_>>() {
            let port = arp::device_index(bridge, host)?;
            sources.insert(host.clone(), open(bridge, Some(port))?);
        }
        Ok(Self {
            sources,
            sinks,
            out: open(bridge, None)?,
        })
    }
}

/// A packet socket with offload headers: on a port, or to send only.
fn open(bridge: &Namespace, port: Option<u32>) -> Result<OwnedFd, LabError> {
    let open = || {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Bound to no protocol it receives nothing.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        set(&socket, libc::PACKET_VNET_HDR, 1)?;
        if let Some(port) = port {
            set(&socket, libc::PACKET_IGNORE_OUTGOING, 1)?;
            setsockopt(&socket, RcvBufForce, &RECEIVE)?;
            let address = arp::packet_address(port, SockProtocol::EthAll as i32 as u16);
            #[expect(unsafe_code, reason = "nix binds no packet sockets")]
            // SAFETY: the address outlives the call and is as long as stated.
            let bound = unsafe {
                libc::bind(
                    socket.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of::<libc::sockaddr_ll>() as u32,
                )
            };
            Errno::result(bound)?;
        }
        Ok::<_, Errno>(socket)
    };
    bridge.enter(open)?.map_err(|error| LabError::Enter {
        namespace: bridge.name().to_owned(),
        source: error.into(),
    })
}

fn set(socket: &OwnedFd, option: i32, value: i32) -> nix::Result<()> {
    #[expect(unsafe_code, reason = "nix does not know these options")]
    // SAFETY: the value outlives the call and is as long as stated.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    Errno::result(done).map(drop)
}

/// The thread's own.
struct Work {
    ports: Ports,
    directions: Vec<Direction>,
    /// What waits.
    octets: usize,
    counters: Arc<Counters>,
}

impl Work {
    fn run(mut self) {
        let mut buffer = vec![0; LONGEST];
        // What came before the bridge left it to us has been passed by the bridge.
        for socket in self.ports.sources.values() {
            while receive(socket, &mut buffer).is_some() {}
        }
        while !self.counters.is_over.load(Ordering::Relaxed) {
            self.wait();
            let sources: Vec<String> = self.ports.sources.keys().cloned().collect();
            for host in &sources {
                // A bounded share each, so that none starves the others.
                for _ in 0..256 {
                    let Some(socket) = self.ports.sources.get(host) else {
                        break;
                    };
                    let Some(length) = receive(socket, &mut buffer) else {
                        break;
                    };
                    self.take(host, buffer.get(..length).unwrap_or_default());
                }
            }
            self.give(Instant::now());
        }
        self.give(Instant::now() + Duration::from_secs(3600));
    }

    /// Until a frame comes, or one is due.
    fn wait(&self) {
        let due = self.directions.iter().filter_map(Direction::next_due).min();
        let left = due.map_or(LOOK, |due| {
            due.saturating_duration_since(Instant::now()).min(LOOK)
        });
        let sources = self.ports.sources.values();
        let mut polled: Vec<_> = sources
            .map(|socket| libc::pollfd {
                fd: socket.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        let left = libc::timespec {
            tv_sec: 0, // LOOK is less
            tv_nsec: left.subsec_nanos().into(),
        };
        #[expect(unsafe_code, reason = "nix is built without poll")]
        // SAFETY: list and time outlive the call; the list is as long as stated. Interrupted, it returns: as well.
        unsafe {
            libc::ppoll(
                polled.as_mut_ptr(),
                polled.len() as libc::nfds_t,
                &raw const left,
                std::ptr::null(),
            );
        }
    }

    fn take(&mut self, from: &str, taken: &[u8]) {
        let Some(frame) = taken.get(OFFLOAD..) else {
            return;
        };
        let now = Instant::now();
        for direction in &mut self.directions {
            let sink = self.ports.sinks.get(&direction.rule.to);
            let is_its = sink.is_some_and(|(_, mac)| is_for(frame, *mac));
            if direction.rule.from != from || !is_its {
                continue;
            }
            let has_space = self.octets + taken.len() <= WAITING;
            match has_space && direction.take(now, taken) {
                true => self.octets += taken.len(),
                false => drop(self.counters.lost.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }

    fn give(&mut self, now: Instant) {
        for direction in &mut self.directions {
            let Some((port, _)) = self.ports.sinks.get(&direction.rule.to) else {
                continue;
            };
            while let Some(frame) = direction.give(now) {
                self.octets = self.octets.saturating_sub(frame.len());
                let counter = match send(&self.ports.out, *port, &frame) {
                    Ok(()) => &self.counters.passed,
                    Err(error) => {
                        tracing::debug!(%error, "the port took no frame");
                        &self.counters.lost
                    }
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    recv(socket.as_raw_fd(), buffer, MsgFlags::empty()).ok()
}

fn send(socket: &OwnedFd, port: u32, frame: &[u8]) -> io::Result<()> {
    let protocol = frame.get(OFFLOAD + 12..).and_then(<[u8]>::first_chunk::<2>);
    let address = arp::packet_address(
        port,
        protocol.map_or(0, |octets| u16::from_ne_bytes(*octets)),
    );
    arp::send_to(socket, &address, frame)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn direction(delay_ms: u64, jitter_ms: u64, loss_percent: u8) -> Direction {
        let rule = Rule {
            from: "n1".into(),
            to: "n2".into(),
            delay: Duration::from_millis(delay_ms),
            jitter: Duration::from_millis(jitter_ms),
            loss_percent,
        };
        Direction::new(rule, 7)
    }

    #[test]
    fn a_frame_comes_when_it_is_due() {
        let (began, mut line) = (Instant::now(), direction(50, 0, 0));
        let at = |ms| began + Duration::from_millis(ms);
        assert!(line.take(began, b"a") && line.take(at(10), b"b"));
        assert_eq!((line.next_due(), line.give(at(49))), (Some(at(50)), None));
        assert_eq!(line.give(at(50)), Some(b"a".to_vec()));
        assert_eq!(
            (line.give(at(59)), line.give(at(61))),
            (None, Some(b"b".to_vec()))
        );
        assert_eq!(line.next_due(), None);
    }

    #[test]
    fn so_many_of_a_hundred_are_lost() {
        let taken = |percent| {
            let mut line = direction(0, 0, percent);
            (0..10_000)
                .filter(|_| line.take(Instant::now(), b"x"))
                .count()
        };
        assert_eq!((taken(0), taken(100)), (10_000, 0));
        assert!((6700..7300).contains(&taken(30)), "{}", taken(30));
    }

    #[test]
    fn frames_for_a_host_are_its_own_and_those_for_everybody() {
        let mac = [2, 0, 0, 0, 0, 1];
        assert!(is_for(&[2, 0, 0, 0, 0, 1, 9, 9], mac));
        assert!(is_for(&[0xff; 14], mac));
        assert!(is_for(&[0x33, 0x33, 0, 0, 0, 1], mac));
        assert!(!is_for(&[2, 0, 0, 0, 0, 2], mac));
        assert!(!is_for(&[2, 0], mac));
    }

    #[test]
    fn the_bridge_leaves_just_these_directions() {
        let text = table(&[direction(1, 0, 0).rule]);
        assert_eq!(text.matches("drop").count(), 1);
        assert!(text.contains("iifname \"n1\" oifname \"n2\" drop"));
    }

    proptest! {
        #[test]
        fn nothing_is_early_or_overtakes(delay in 0u64..200, jitter in 0u64..200, gaps in prop::collection::vec(0u64..50, 1..40)) {
            let (began, mut line) = (Instant::now(), direction(delay, jitter, 0));
            let mut now = began;
            for (number, gap) in gaps.iter().enumerate() {
                now += Duration::from_millis(*gap);
                prop_assert!(line.take(now, &[number as u8]));
                let (due, _) = line.waiting.back().unwrap();
                prop_assert!(*due >= now + Duration::from_millis(delay.saturating_sub(jitter)));
            }
            // No later than the last sent and the longest way.
            let end = now + Duration::from_millis(delay + jitter) + Duration::from_nanos(1);
            for number in 0..gaps.len() {
                prop_assert_eq!(line.give(end), Some(vec![number as u8]));
            }
            prop_assert_eq!(line.give(end), None);
        }
    }
}
