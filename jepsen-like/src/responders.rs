//! The witness of the VIPs: asks who has them every 5 ms from a host of its own, and sees at the switch's ports which request reached
//! which node when, and who answered.
//!
//! An answer is charged to the node and the instant at which its request left the switch towards that node, by the kernel's own time of the
//! frame: exact to microseconds however late this process runs. It counts when it leaves its node, whatever becomes of it then: on its way it
//! may be held up until its slot has asked anew.

use std::{
    collections::BTreeMap,
    io::IoSliceMut,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    cmsg_space,
    sys::{
        socket::{
            ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt,
            sockopt::{RcvBufForce, ReceiveTimeout, ReceiveTimestampns},
        },
        time::{TimeSpec, TimeVal, TimeValLike},
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    arp::{self, Flow, Mac, Told},
    history::{Answer, Entry, Moment, Responder},
    lab::{LabError, namespace::Namespace, network::DEVICE},
    observe::Board,
    recorder::Recorder,
};

/// Between two questions for each VIP.
const INTERVAL: Duration = Duration::from_millis(5);
/// Requests that wait for their answer; beyond, the oldest are forgotten.
const WAITING: usize = 4096;
/// How often the offset of the two clocks is taken.
const ALIGN: Duration = Duration::from_secs(1);
/// Answers that are written together.
const BATCH: usize = 64;

/// What the witness knows of its surroundings.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub vip4: Ipv4Addr,
    pub vip6: Ipv6Addr,
    pub nodes: BTreeMap<Mac, String>,
}

/// Which port of the switch a frame was seen at, and on its way to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// On its way to the host with this MAC.
    To(Mac),
    /// Come from it.
    From(Mac),
}

/// Puts requests and answers together. Knows no clock and no socket.
#[derive(Debug)]
pub struct Tracker {
    around: Surroundings,
    witness: Mac,
    /// When each slot's latest question reached each node.
    asked: BTreeMap<(bool, u8, Mac), Moment>,
    /// When the witness sent it.
    sent: BTreeMap<(bool, u8), Moment>,
    /// Which node took a request of a client, and when.
    taken: BTreeMap<Flow, (Mac, Moment)>,
}

impl Tracker {
    pub fn new(around: Surroundings, witness: Mac) -> Self {
        Self {
            around,
            witness,
            asked: BTreeMap::new(),
            sent: BTreeMap::new(),
            taken: BTreeMap::new(),
        }
    }

    /// A frame was seen at a port; the answer that it is, if it is one.
    pub fn see(&mut self, at: Moment, port: Port, frame: &[u8]) -> Option<Answer> {
        let frame = arp::read(frame, self.around.vip4, self.around.vip6)?;
        match (frame.told, port) {
            (Told::Asks { is_six, slot }, Port::From(_)) => {
                self.sent.insert((is_six, slot), at);
                None
            }
            (Told::Asks { is_six, slot }, Port::To(mac)) => {
                self.asked.insert((is_six, slot, mac), at);
                None
            }
            (Told::Answers { is_six, slot }, port) if self.is_first_seen(port, frame.from) => {
                let reached = self.asked.get(&(is_six, slot, frame.from));
                let (earliest, latest) = match reached {
                    Some(reached) => (*reached, *reached),
                    None => (*self.sent.get(&(is_six, slot))?, at),
                };
                let kind = if is_six { "nd" } else { "arp" };
                Some(self.answer(frame.from, is_six, earliest, latest, kind))
            }
            // Straight from a client, to the node that takes it; what one member passes on to another is not.
            (Told::Request(flow), Port::To(mac)) => {
                let nodes = &self.around.nodes;
                if mac == frame.to && nodes.contains_key(&mac) && !nodes.contains_key(&frame.from) {
                    if self.taken.len() >= WAITING {
                        self.taken.pop_first();
                    }
                    self.taken.insert(flow, (mac, at));
                }
                None
            }
            (Told::Reply(flow), Port::From(_)) => {
                let (mac, reached) = self.taken.remove(&flow)?;
                let kind = if flow.is_tcp { "tcp" } else { "dns" };
                Some(self.answer(mac, false, reached, reached, kind))
            }
            _ => None,
        }
    }

    /// Whether an answer for the witness is seen at this port for the first time: a node's as it leaves the node, a stranger's, whose port is
    /// not known, as it arrives.
    fn is_first_seen(&self, port: Port, from: Mac) -> bool {
        match (port, self.around.nodes.contains_key(&from)) {
            (Port::From(mac), true) => mac == from,
            (Port::To(mac), false) => mac == self.witness,
            _ => false,
        }
    }

    fn answer(
        &self,
        mac: Mac,
        is_six: bool,
        earliest: Moment,
        latest: Moment,
        kind: &str,
    ) -> Answer {
        let by = match self.around.nodes.get(&mac) {
            Some(node) => Responder::Node(node.clone()),
            None => Responder::Stranger(arp::mac_text(mac)),
        };
        Answer {
            vip: match is_six {
                true => self.around.vip6.to_string(),
                false => self.around.vip4.to_string(),
            },
            by,
            earliest,
            latest,
            kind: kind.to_owned(),
        }
    }
}

/// The witness at work, until its token is cancelled; join it then.
#[derive(Debug)]
pub struct Watching {
    threads: Vec<JoinHandle<()>>,
}

impl Watching {
    /// Asks from `witness`, and listens in `switch`, where each port has its host's name; `hosts` are these names with their MACs.
    pub fn start(
        witness: &Namespace,
        switch: &Namespace,
        hosts: &[(String, Mac)],
        around: Surroundings,
        board: Arc<Board>,
        recorder: Arc<Recorder>,
        end: CancellationToken,
    ) -> Result<Self, LabError> {
        let mac = arp::parse_mac(&witness.mac(DEVICE)?).ok_or(LabError::NoNode)?;
        let mut ports = BTreeMap::new();
        for (name, mac) in hosts {
            ports.insert(arp::device_index(switch, name)? as usize, *mac);
        }
        let listening = listening_socket(switch)?;
        let asking = (
            arp::packet_socket(witness)?,
            arp::device_index(witness, DEVICE)?,
        );
        let (vip4, vip6) = (around.vip4, around.vip6);
        let ending = end.clone();
        let asker = std::thread::spawn(move || ask(&asking, mac, (vip4, vip6), &ending));
        let listener = Listener {
            socket: listening,
            ports,
            tracker: Tracker::new(around, mac),
            board,
            recorder,
        };
        let listener = std::thread::spawn(move || listener.run(&end));
        Ok(Self {
            threads: vec![asker, listener],
        })
    }

    /// After the token was cancelled.
    pub fn join(self) {
        for thread in self.threads {
            let _ = thread.join(); // its panic has been printed
        }
    }
}

fn ask(
    (socket, device): &(OwnedFd, u32),
    mac: Mac,
    (vip4, vip6): (Ipv4Addr, Ipv6Addr),
    end: &CancellationToken,
) {
    let mut next = Instant::now();
    for slot in (0..arp::SLOTS).cycle() {
        if end.is_cancelled() {
            return;
        }
        // What cannot be sent was not asked: nobody is charged for it.
        let _ = arp::send_on(socket, *device, &arp::question4(mac, slot, vip4));
        let _ = arp::send_on(socket, *device, &arp::question6(mac, slot, vip6));
        next = (next + INTERVAL).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn listening_socket(switch: &Namespace) -> Result<OwnedFd, LabError> {
    let socket = arp::packet_socket(switch)?;
    let prepared = setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(50))
        .and_then(|()| setsockopt(&socket, ReceiveTimestampns, &true))
        .and_then(|()| setsockopt(&socket, RcvBufForce, &(16 << 20)))
        .map_err(std::io::Error::from)
        .and_then(|()| attach_filter(&socket));
    prepared.map_err(|source| LabError::Enter {
        namespace: switch.name().to_owned(),
        source,
    })?;
    Ok(socket)
}

/// Lets through ARP, neighbour discovery, and DNS and the beginnings of TCP from and to what may be the VIP: the cluster's own
/// traffic never comes up to this process.
fn attach_filter(socket: &OwnedFd) -> std::io::Result<()> {
    let std::net::IpAddr::V4(vip) = crate::lab::cluster::vip4() else {
        return Ok(());
    };
    let program = filter(u32::from(vip));
    let list = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    #[expect(unsafe_code, reason = "nix cannot attach a filter")]
    // SAFETY: the program outlives the call, which copies it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const list).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Classic BPF: what to take of frames that may concern the VIP.
fn filter(vip: u32) -> [libc::sock_filter; 15] {
    const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
    const LOAD_OCTET: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // A jump counts the steps that it leaves out.
    [
        step(LOAD_HALF, 0, 0, 12),
        step(EQUAL, 11, 0, 0x0806), // 1: ARP: take
        step(EQUAL, 6, 0, 0x0800),  // 2: IPv4: to its addresses, 9
        step(EQUAL, 0, 10, 0x86dd), // 3: not IPv6 either: leave
        step(LOAD_OCTET, 0, 0, 20),
        step(EQUAL, 0, 8, 58), // 5: not ICMPv6: leave
        step(LOAD_OCTET, 0, 0, 54),
        step(EQUAL, 5, 0, 135), // 7: solicitation: take
        step(EQUAL, 4, 5, 136), // 8: advertisement: take, else leave
        step(LOAD_WORD, 0, 0, 30),
        step(EQUAL, 2, 0, vip), // 10: to the VIP: take
        step(LOAD_WORD, 0, 0, 26),
        step(EQUAL, 0, 1, vip), // 12: from the VIP: take, else leave
        step(RETURN, 0, 0, 256),
        step(RETURN, 0, 0, 0),
    ]
}

/// Reads frames and writes answers.
struct Listener {
    socket: OwnedFd,
    ports: BTreeMap<usize, Mac>,
    tracker: Tracker,
    board: Arc<Board>,
    recorder: Arc<Recorder>,
}

impl Listener {
    fn run(mut self, end: &CancellationToken) {
        let mut clock = Clock::aligned(&self.recorder);
        let mut entries = vec![];
        while !end.is_cancelled() {
            match self.receive(&mut clock) {
                Some(answer) => {
                    if let (Responder::Node(node), "arp") = (&answer.by, answer.kind.as_str()) {
                        self.board.set_holder(node);
                    }
                    entries.push(Entry::Answer(answer));
                }
                None if entries.len() < BATCH => continue,
                None => {}
            }
            if entries.len() >= BATCH {
                self.recorder.append_all(&entries);
                entries.clear();
            }
        }
        self.recorder.append_all(&entries);
    }

    /// The next frame; none if it is no answer, or none came.
    fn receive(&mut self, clock: &mut Clock) -> Option<Answer> {
        let mut buffer = [0; 256];
        let (length, at, from) = {
            let mut space = cmsg_space!(TimeSpec);
            let mut pieces = [IoSliceMut::new(&mut buffer)];
            let descriptor = self.socket.as_raw_fd();
            let message =
                recvmsg::<LinkAddr>(descriptor, &mut pieces, Some(&mut space), MsgFlags::empty());
            let message = message.ok()?;
            let times = message.cmsgs().ok()?;
            let mut times = times.filter_map(|control| match control {
                ControlMessageOwned::ScmTimestampns(time) => Some(time),
                _ => None,
            });
            (message.bytes, times.next()?, message.address?)
        };
        let mac = *self.ports.get(&from.ifindex())?;
        let port = match from.pkttype() {
            libc::PACKET_OUTGOING => Port::To(mac),
            _ => Port::From(mac),
        };
        let at = clock.moment(Duration::from(at), &self.recorder);
        self.tracker.see(at, port, buffer.get(..length)?)
    }
}

/// From the kernel's time of a frame (wall clock) to the run's.
struct Clock {
    /// The wall clock when the run began, as far as is known now.
    began: Duration,
    aligned: Instant,
}

impl Clock {
    fn aligned(recorder: &Recorder) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            began: wall
                .unwrap_or_default()
                .saturating_sub(recorder.began().elapsed()),
            aligned: Instant::now(),
        }
    }

    fn moment(&mut self, at: Duration, recorder: &Recorder) -> Moment {
        if self.aligned.elapsed() > ALIGN {
            *self = Self::aligned(recorder);
        }
        Moment::after(at.saturating_sub(self.began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::network;

    const WITNESS: Mac = [2, 0, 0, 0, 0, 9];
    const CLIENT: Mac = [2, 0, 0, 0, 0, 8];
    const NODES: [Mac; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

    fn tracker() -> Tracker {
        let [one, two] = NODES;
        let around = Surroundings {
            vip4: network::ipv4(100),
            vip6: network::ipv6(100),
            nodes: [(one, "n1".to_owned()), (two, "n2".to_owned())].into(),
        };
        Tracker::new(around, WITNESS)
    }

    fn answer_to(slot: u8, by: Mac) -> Vec<u8> {
        let mut frame = arp::question4(by, slot, network::ipv4(100));
        frame[21] = 2;
        frame[28..32].copy_from_slice(&network::ipv4(100).octets());
        frame[38..42].copy_from_slice(&arp::sender4(slot).octets());
        frame
    }

    fn asked(tracker: &mut Tracker, slot: u8, at: u64) {
        let frame = arp::question4(WITNESS, slot, network::ipv4(100));
        assert_eq!(tracker.see(Moment(at), Port::From(WITNESS), &frame), None);
        for (place, node) in NODES.iter().enumerate() {
            let reached = Moment(at + 1 + place as u64);
            assert_eq!(tracker.see(reached, Port::To(*node), &frame), None);
        }
    }

    #[test]
    fn an_answer_counts_for_its_node_when_the_question_reached_it() {
        let mut tracker = tracker();
        asked(&mut tracker, 3, 100);
        asked(&mut tracker, 4, 200);
        let frame = answer_to(3, NODES[1]);
        let answer = tracker.see(Moment(300), Port::From(NODES[1]), &frame);
        let answer = answer.unwrap();
        let arrived = tracker.see(Moment(301), Port::To(WITNESS), &frame);
        assert_eq!(arrived, None, "counted once, where it leaves its node");
        assert_eq!(answer.by, Responder::Node("n2".into()));
        assert_eq!((answer.earliest, answer.latest), (Moment(102), Moment(102)));
        assert_eq!(
            (answer.vip.as_str(), answer.kind.as_str()),
            ("10.77.0.100", "arp")
        );
    }

    #[test]
    fn an_answer_that_is_late_on_its_way_counts_for_the_question_it_answers() {
        let mut tracker = tracker();
        asked(&mut tracker, 3, 100);
        let frame = answer_to(3, NODES[0]);
        let left = tracker.see(Moment(110), Port::From(NODES[0]), &frame);
        // Its slot asks anew, and another node has the VIP by then.
        asked(&mut tracker, 3, 900);
        let other = answer_to(3, NODES[1]);
        let next = tracker.see(Moment(910), Port::From(NODES[1]), &other);
        let late = tracker.see(Moment(950), Port::To(WITNESS), &frame);
        let told = |answer: Option<Answer>| answer.map(|answer| (answer.by, answer.latest));
        let node = |name: &str| Responder::Node(name.to_owned());
        assert_eq!(told(left), Some((node("n1"), Moment(101))));
        assert_eq!(told(next), Some((node("n2"), Moment(902))));
        assert_eq!(told(late), None);
    }

    #[test]
    fn a_stranger_is_known_by_his_hardware() {
        let mut tracker = tracker();
        asked(&mut tracker, 0, 10);
        let frame = answer_to(0, CLIENT);
        let answer = tracker.see(Moment(90), Port::To(WITNESS), &frame).unwrap();
        assert_eq!(answer.by, Responder::Stranger("02:00:00:00:00:08".into()));
        assert_eq!((answer.earliest, answer.latest), (Moment(10), Moment(90)));
    }

    fn segment(from: Mac, to: Mac, is_reply: bool) -> Vec<u8> {
        let (client, vip) = (network::ipv4(200), network::ipv4(100));
        let mut packet = vec![0u8; 40];
        packet[0] = 0x45;
        packet[9] = 6;
        let (source, destination, ports, flags) = match is_reply {
            false => (client, vip, [0x30, 0x39, 0, 7], 0x02),
            true => (vip, client, [0, 7, 0x30, 0x39], 0x12),
        };
        packet[12..16].copy_from_slice(&source.octets());
        packet[16..20].copy_from_slice(&destination.octets());
        packet[20..24].copy_from_slice(&ports);
        packet[33] = flags;
        [&to[..], &from, &[8, 0], &packet].concat()
    }

    #[test]
    fn what_one_member_passes_on_counts_for_him() {
        let [one, two] = NODES;
        let mut tracker = tracker();
        let request = segment(CLIENT, one, false);
        assert_eq!(
            tracker.see(Moment(5), Port::To(two), &request),
            None,
            "flooded"
        );
        assert_eq!(tracker.see(Moment(6), Port::To(one), &request), None);
        let passed = segment(one, two, false);
        assert_eq!(tracker.see(Moment(7), Port::To(two), &passed), None);
        let reply = segment(two, CLIENT, true);
        let answer = tracker.see(Moment(9), Port::From(two), &reply).unwrap();
        assert_eq!(answer.by, Responder::Node("n1".into()));
        assert_eq!((answer.latest, answer.kind.as_str()), (Moment(6), "tcp"));
        assert_eq!(tracker.see(Moment(10), Port::From(two), &reply), None);
    }

    #[test]
    fn the_filter_takes_what_concerns_the_vip() {
        let program = filter(u32::from(network::ipv4(100)));
        let run = |frame: &[u8]| {
            let mut value = 0;
            let mut at = 0;
            loop {
                let step = program[at];
                let octets = |count: usize| {
                    let from = step.k as usize;
                    let octets = frame.get(from..from + count)?;
                    Some(
                        octets
                            .iter()
                            .fold(0u32, |sum, octet| sum << 8 | u32::from(*octet)),
                    )
                };
                at += 1;
                match step.code {
                    0x28 => value = octets(2).unwrap_or(0),
                    0x30 => value = octets(1).unwrap_or(0),
                    0x20 => value = octets(4).unwrap_or(0),
                    0x15 if value == step.k => at += usize::from(step.jt),
                    0x15 => at += usize::from(step.jf),
                    _ => return step.k > 0,
                }
            }
        };
        assert!(run(&arp::question4(WITNESS, 0, network::ipv4(100))));
        let mut solicitation = arp::question6(WITNESS, 0, network::ipv6(100));
        assert!(run(&solicitation));
        solicitation[54] = 136;
        assert!(run(&solicitation));
        solicitation[54] = 128;
        assert!(!run(&solicitation), "a ping");
        assert!(run(&segment(CLIENT, NODES[0], false)));
        assert!(run(&segment(NODES[0], CLIENT, true)));
        let mut other = segment(CLIENT, NODES[0], false);
        other[33] = 11; // to n1's own address
        assert!(!run(&other));
    }
}
