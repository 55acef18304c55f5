//! The VIP driver with real devices: a holder and a neighbour, each in a network namespace, on one segment.
//!
//! Needs root; says `skipped` without, and fails where `CI=true`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use jepsen_like::{
    hold::{INTERFACE, config_on, leading, snapshot_with, unfenced_on},
    lab::{self, Lab, namespace::Namespace, network},
    waiting::{Ends, wait_until},
    witness::Witness,
};
use pontoon::{
    model::{
        leadership::Leadership,
        node::NodeId,
        snapshot::Snapshot,
        vip::{VipFacts, VipPeers},
    },
    vip::{
        VipConfig, VipDriver,
        announce::{announcement, gratuitous_arp},
        interface::VALID_FOR,
        lookout::LookoutTiming,
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;

const LONG: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(5);

fn vip4() -> IpAddr {
    network::ipv4(100).into()
}

fn vip6() -> IpAddr {
    network::ipv6(100).into()
}

/// A node that is nothing but its VIP driver, in the namespace of a host.
struct Node {
    leadership: watch::Sender<Leadership>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    driver: VipDriver,
}

impl Node {
    fn start(host: &Namespace, vips: &[IpAddr]) -> Self {
        Self::start_on(host, network::DEVICE, vips)
    }

    fn start_on(host: &Namespace, device: &str, vips: &[IpAddr]) -> Self {
        Self::start_with(host, config_on(device), vips)
    }

    fn unfenced(host: &Namespace, vips: &[IpAddr]) -> Self {
        Self::start_with(host, unfenced_on(network::DEVICE), vips)
    }

    fn start_with(host: &Namespace, config: VipConfig, vips: &[IpAddr]) -> Self {
        let (leadership, leadership_receiver) = watch::channel(Leadership::default());
        let (snapshots, snapshots_receiver) = watch::channel(snapshot_with(vips));
        let start = || VipDriver::start(config, leadership_receiver, snapshots_receiver);
        Self {
            leadership,
            snapshots,
            driver: host.enter(start).unwrap().unwrap(),
        }
    }

    fn lead(&self, term: u64, lease: Duration) {
        self.leadership.send_replace(leading(term, lease));
    }

    fn follow(&self, term: u64) {
        self.leadership.send_replace(Leadership {
            term,
            ..Leadership::default()
        });
    }

    fn holds(&self) -> bool {
        let status = self.driver.status().borrow().clone();
        status.iter().all(|vip| vip.held)
    }

    fn problem(&self) -> Option<String> {
        let status = self.driver.status().borrow().clone();
        status.into_iter().find_map(|vip| vip.problem)
    }

    fn stop(self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(self.driver.stop());
    }
}

/// The line of `ip address` about an address on a host, with its lifetimes.
fn shown(host: &Namespace, address: IpAddr) -> Option<String> {
    let listed = host.ip(&["-o", "address", "show"]).unwrap();
    let prefix = if address.is_ipv4() { 32 } else { 128 };
    let wanted = format!(" {address}/{prefix} ");
    listed
        .lines()
        .find(|line| line.contains(&wanted))
        .map(ToOwned::to_owned)
}

fn has(host: &Namespace, address: IpAddr) -> bool {
    shown(host, address).is_some()
}

/// A holder's and a neighbour's host.
fn two_hosts() -> Option<Lab> {
    if !lab::available() {
        return None;
    }
    let mut lab = Lab::create().unwrap();
    lab.add_host("n1", 11).unwrap();
    lab.add_host("client", 200).unwrap();
    Some(lab)
}

fn mac_of(host: &Namespace) -> [u8; 6] {
    let shown = host.ip(&["-o", "link", "show", network::DEVICE]).unwrap();
    let mac = shown.split("link/ether ").nth(1).unwrap();
    let octets: Vec<u8> = mac
        .split_whitespace()
        .next()
        .unwrap()
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16).unwrap())
        .collect();
    octets.try_into().unwrap()
}

/// Whether a datagram from `client` arrives at a socket that `host` has on `address`.
fn reaches(client: &Namespace, host: &Namespace, address: IpAddr) -> bool {
    let receiver = host
        .enter(|| UdpSocket::bind((address, 0)))
        .unwrap()
        .unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let to = receiver.local_addr().unwrap();
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let sender = client.enter(|| UdpSocket::bind(any)).unwrap().unwrap();
    sender.send_to(b"hello", to).unwrap();
    receiver.recv(&mut [0; 16]).is_ok()
}

#[test]
fn the_holder_has_the_address_and_tells_its_neighbours() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let mac = mac_of(host);
    let witness = Witness::on(client).unwrap();
    let node = Node::start(host, &[vip4(), vip6()]);
    node.lead(1, LONG);
    for vip in [vip4(), vip6()] {
        let expected = announcement(vip, mac);
        let seen = witness.frame(SOON, |frame| frame == expected);
        assert!(seen.is_some(), "{vip} was not announced");
        let line = shown(host, vip).expect("announced, so it is there");
        assert!(line.contains("preferred_lft 0sec"), "{line}");
        let short = (1..=3).any(|s| line.contains(&format!(" valid_lft {s}sec")));
        assert!(short, "expires by itself: {line}");
        assert!(!line.contains("tentative"), "{line}");
    }
    // The address answers the neighbour, and is renewed well past its lifetime.
    for vip in [vip4(), vip6()] {
        assert!(reaches(client, host, vip), "{vip} is not reached");
    }
    let renewed = Instant::now() + VALID_FOR + Duration::from_millis(500);
    while Instant::now() < renewed {
        assert!(has(host, vip4()) && has(host, vip6()));
        std::thread::sleep(Duration::from_millis(100));
    }
    // New outgoing traffic does not leave from it.
    let route = host
        .ip(&["route", "get", &network::ipv4(200).to_string()])
        .unwrap();
    assert!(
        route.contains(&format!("src {}", network::ipv4(11))),
        "{route}"
    );

    node.stop();
    assert!(
        !has(host, vip4()) && !has(host, vip6()),
        "stop withdraws first"
    );
}

#[test]
fn without_a_fence_the_address_goes_with_the_lease_and_with_a_higher_term() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let node = Node::unfenced(host, &[vip4()]);
    node.lead(1, Duration::from_millis(400));
    let lapse = node.leadership.borrow().lease_until.unwrap();
    wait_until("held", SOON, || has(host, vip4()));
    wait_until("withdrawn", SOON, || !has(host, vip4()));
    let seen_gone = Instant::now();
    assert!(
        seen_gone < lapse + Duration::from_millis(50), // looking takes a process
        "it was still there {:?} after the lease had lapsed",
        seen_gone - lapse
    );
    let mac = mac_of(host);
    let witness = Witness::on(client).unwrap();
    let vip = network::ipv4(100);
    let silent = witness.count(Duration::from_millis(300), |frame| {
        frame == gratuitous_arp(vip, mac)
    });
    assert_eq!(silent, 0, "nothing is announced without a lease");

    node.lead(1, LONG);
    wait_until("held again", SOON, || has(host, vip4()));
    node.follow(2);
    wait_until("withdrawn", SOON, || !has(host, vip4()));
}

#[test]
fn a_vip_that_leaves_the_snapshot_leaves_the_device() {
    let Some(lab) = two_hosts() else { return };
    let host = lab.host("n1").unwrap();
    let node = Node::start(host, &[vip4(), vip6()]);
    node.lead(1, LONG);
    wait_until("held", SOON, || has(host, vip4()) && has(host, vip6()));
    node.snapshots.send_replace(snapshot_with(&[vip6()]));
    wait_until("withdrawn", SOON, || !has(host, vip4()));
    assert!(has(host, vip6()));
    assert_eq!(*node.driver.held().borrow(), [vip6()].into());
}

#[test]
fn an_address_deleted_by_somebody_else_is_back_within_100_ms() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let node = Node::start(host, &[vip4(), vip6()]);
    node.lead(1, LONG);
    wait_until("held", SOON, || has(host, vip4()) && has(host, vip6()));
    let mac = mac_of(host);
    for (vip, prefix) in [(vip4(), 32), (vip6(), 128)] {
        let text = format!("{vip}/{prefix}");
        host.ip(&["address", "delete", &text, "dev", network::DEVICE])
            .unwrap();
        // Sees no announcement from before the deletion, and perhaps not the first after it; there is a burst.
        let witness = Witness::on(client).unwrap();
        let soon = Duration::from_millis(100);
        wait_until("the address is back", soon, || has(host, vip));
        let expected = announcement(vip, mac);
        let seen = witness.frame(soon, |frame| frame == expected);
        assert!(seen.is_some(), "{vip} was not announced anew");
    }
}

#[test]
fn a_link_that_comes_back_is_announced_on_and_a_late_device_is_used() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let node = Node::start(host, &[vip4(), vip6()]);
    node.lead(1, LONG);
    wait_until("held", SOON, || has(host, vip4()) && has(host, vip6()));
    // Past the burst: what is seen now is due to the carrier.
    std::thread::sleep(Duration::from_millis(1500));
    lab.network().unplug("n1").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let witness = Witness::on(client).unwrap();
    lab.network().plug("n1").unwrap();
    let expected = announcement(vip4(), mac_of(host));
    let burst = witness.count(Duration::from_millis(400), |frame| frame == expected);
    assert!(
        burst >= 3,
        "{burst} announcements after the carrier came back"
    );

    // Taking the device down flushes its IPv6 addresses.
    host.ip(&["link", "set", network::DEVICE, "down"]).unwrap();
    host.ip(&["link", "set", network::DEVICE, "up"]).unwrap();
    wait_until("both are back", SOON, || {
        has(host, vip4()) && has(host, vip6())
    });

    node.stop(); // a network namespace has one fence, with one owner
    let late = Node::start_on(host, "late0", &[network::ipv4(101).into()]);
    late.lead(1, LONG);
    wait_until("the problem is told", SOON, || {
        late.problem()
            .is_some_and(|text| text.contains("no device named \"late0\""))
    });
    std::thread::sleep(Duration::from_millis(700)); // the next try of its own would come much later
    host.ip(&[
        "link", "add", "late0", "type", "veth", "peer", "name", "late1",
    ])
    .unwrap();
    host.ip(&["link", "set", "late1", "up"]).unwrap();
    host.ip(&["link", "set", "late0", "up"]).unwrap();
    let took = wait_until("held on the late device", SOON, || {
        has(host, network::ipv4(101).into())
    });
    assert!(took < Duration::from_millis(200), "took {took:?}");
    assert_eq!(late.problem(), None);
}

/// A connection through the VIP to its holder, and an exchange over it. Panics with what is tried if it does not come about.
fn connection_through(host: &Namespace, client: &Namespace) -> impl FnMut(&str) + use<> {
    let at = std::net::SocketAddr::new(vip4(), 7007);
    let bind = || std::net::TcpListener::bind(at);
    let listener = host.enter(bind).unwrap().unwrap();
    let connect = || std::net::TcpStream::connect_timeout(&at, SOON);
    let mut asks = client.enter(connect).unwrap().unwrap();
    let (mut answers, _) = listener.accept().unwrap();
    asks.set_read_timeout(Some(SOON)).unwrap();
    answers.set_read_timeout(Some(SOON)).unwrap();
    move |what| {
        let mut came = [0];
        let done = (asks.write_all(&[7]))
            .and_then(|()| answers.read_exact(&mut came))
            .and_then(|()| answers.write_all(&came))
            .and_then(|()| asks.read_exact(&mut came));
        done.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

/// What n1 knows after n2 gave it the VIP, and still serves the connections from before.
fn gave_to_n1(n2: &Namespace) -> VipPeers {
    VipPeers {
        facts: [(
            NodeId(2),
            VipFacts {
                macs: [(INTERFACE.to_owned(), mac_of(n2))].into(),
                serving: [vip4()].into(),
                addresses: Default::default(),
            },
        )]
        .into(),
        addresses: [network::ipv4(11), network::ipv4(12)]
            .map(IpAddr::from)
            .into(),
        givers: vec![NodeId(2)],
    }
}

/// A node that has heard this of the others, and hears what is sent.
fn node_beside(host: &Namespace, peers: VipPeers) -> (Node, watch::Sender<VipPeers>) {
    let (sender, receiver) = watch::channel(peers);
    let config = VipConfig {
        peers: Some(receiver),
        ..config_on(network::DEVICE)
    };
    (Node::start_with(host, config, &[vip4()]), sender)
}

/// A segment with the ACK flag alone, of a connection to the VIP that this host knows nothing of.
fn segment_of_another(from: Ipv4Addr, to: Ipv4Addr) -> [u8; 20] {
    const PORTS: [u8; 4] = [0, 77, 0, 77];
    let mut segment = [0; 20];
    segment[..4].copy_from_slice(&PORTS);
    segment[12..14].copy_from_slice(&[5 << 4, ACK]);
    let mut sum = u32::from(6u8) + segment.len() as u32;
    let ends = [from.octets(), to.octets()].concat();
    for pair in ends.chunks(2).chain(segment.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    segment[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    segment
}

const ACK: u8 = 0x10;
const RST: u8 = 0x04;

/// From its first moment here to its last, what belongs to the old holder's connections is passed on, and never reset.
#[test]
fn what_belongs_to_the_old_holder_is_not_reset_while_the_vip_goes() {
    let Some(mut lab) = two_hosts() else { return };
    lab.add_host("n2", 12).unwrap();
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let (node, _peers) = node_beside(host, gave_to_n1(lab.host("n2").unwrap()));
    let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP));
    let socket = client.enter(raw).unwrap().unwrap();
    let segment = segment_of_another(network::ipv4(200), network::ipv4(100));
    let to = std::net::SocketAddr::new(vip4(), 0).into();
    let answers = socket.try_clone().unwrap();
    answers
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let over = AtomicBool::new(false);
    let (mut sent, mut resets) = (0, vec![]);
    std::thread::scope(|scope| {
        let floods = || {
            while !over.load(Relaxed) {
                // Nobody may be there to be found: not every one can be sent.
                sent += u32::from(socket.send_to(&segment, &to).is_ok());
                // Some in each millisecond: the other tests need a processor too.
                std::thread::sleep(Duration::from_micros(50));
            }
        };
        scope.spawn(floods);
        let listens = || {
            let mut answer = [0; 64];
            while !over.load(Relaxed) {
                let came = (&answers).read(&mut answer).unwrap_or_default();
                // Behind an IP header without options.
                if came >= 40 && answer[33] & RST != 0 {
                    resets.push(Instant::now());
                }
            }
        };
        scope.spawn(listens);
        let _ends = Ends(&over);
        for term in 1..=10 {
            node.lead(term, LONG);
            wait_until("the VIP", SOON, || node.holds());
            std::thread::sleep(Duration::from_millis(20)); // under load
            let heir = Some(NodeId(2));
            let leads = leading(term, LONG);
            node.leadership.send_replace(Leadership { heir, ..leads });
            node.leadership.send_replace(Leadership {
                heir,
                given_up: true,
                lease_until: None,
                ..leads
            });
            wait_until("withdrawn", SOON, || !has(host, vip4()));
        }
    });
    node.stop();
    assert!(sent > 1000, "only {sent} segments could be sent");
    assert!(resets.is_empty(), "{} of {sent} were reset", resets.len());
}

/// A connection that began at the new holder is not passed on to the old one, whatever becomes of the lease.
#[test]
fn a_lease_that_lapses_and_comes_back_keeps_the_connections_made_under_it() {
    let Some(mut lab) = two_hosts() else { return };
    lab.add_host("n2", 12).unwrap();
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let (node, _peers) = node_beside(host, gave_to_n1(lab.host("n2").unwrap()));
    node.lead(1, LONG);
    wait_until("the address", SOON, || has(host, vip4()));
    let mut exchange = connection_through(host, client);
    exchange("at first");
    for round in 0..3 {
        node.lead(1, Duration::ZERO);
        wait_until("silence", SOON, || !node.holds());
        assert_eq!(passed_on(host), 1);
        node.lead(1, LONG);
        wait_until("the VIP again", SOON, || node.holds());
        exchange(&format!("after lapse {round}"));
    }
    node.stop();
}

/// How many elements a set of the table of second chances has.
fn elements(host: &Namespace, kind: &str, name: &str) -> usize {
    let arguments = ["-j", "list", kind, "netdev", "pontoon_second_chance", name];
    let text = host.output("nft", &arguments).unwrap();
    let listed: serde_json::Value = serde_json::from_str(&text).unwrap();
    let set = listed["nftables"].as_array().unwrap().last().unwrap();
    set[kind]["elem"].as_array().map_or(0, Vec::len)
}

/// How many IPv4 VIPs have an old holder that connections are passed on to.
fn passed_on(host: &Namespace) -> usize {
    elements(host, "map", "old_holders4")
}

/// Taking a table away takes the kernel long, and would fall into the next planned move.
#[test]
fn when_nothing_is_passed_on_any_more_the_table_is_emptied_and_serves_the_next_time() {
    let Some(mut lab) = two_hosts() else { return };
    lab.add_host("n2", 12).unwrap();
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let from_n2 = gave_to_n1(lab.host("n2").unwrap());
    let (node, peers) = node_beside(host, from_n2.clone());
    node.lead(1, LONG);
    wait_until("the address", SOON, || has(host, vip4()));
    let mut exchange = connection_through(host, client);
    exchange("at first");
    for round in 0..2 {
        wait_until("passing on", SOON, || passed_on(host) == 1);
        exchange(&format!("passing on, round {round}"));
        assert_eq!(elements(host, "set", "mine4"), 1);
        peers.send_replace(VipPeers::default());
        wait_until("nothing to pass on", SOON, || passed_on(host) == 0);
        for set in ["mine4", "moved4", "members"] {
            assert_eq!(elements(host, "set", set), 0, "{set}");
        }
        exchange(&format!("nothing to pass on, round {round}"));
        peers.send_replace(from_n2.clone());
    }
    node.stop();
}

/// A node that was elected hears from the one before only when it asks it the next time.
#[test]
fn what_began_before_the_old_holder_was_heard_of_is_kept() {
    let Some(mut lab) = two_hosts() else { return };
    lab.add_host("n2", 12).unwrap();
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let (node, peers) = node_beside(host, VipPeers::default());
    node.lead(1, LONG);
    wait_until("the address", SOON, || has(host, vip4()));
    let mut exchange = connection_through(host, client);
    exchange("at first");
    peers.send_replace(gave_to_n1(lab.host("n2").unwrap()));
    wait_until("the table", SOON, || {
        let tables = host.output("nft", &["list", "tables"]).unwrap();
        tables.contains("pontoon_second_chance")
    });
    exchange("after the old holder was heard of");
    node.stop();
}

#[test]
fn a_foreign_host_with_the_address_is_told_and_defended_against_until_it_is_gone() {
    let Some(mut lab) = two_hosts() else { return };
    lab.add_host("thief", 220).unwrap();
    let (host, thief) = (lab.host("n1").unwrap(), lab.host("thief").unwrap());
    let client = lab.host("client").unwrap();
    let config = VipConfig {
        lookout: LookoutTiming {
            probe_every: Duration::from_millis(200),
            confirm: Duration::from_millis(300),
            lasts: Duration::from_millis(1000),
            ..LookoutTiming::default()
        },
        ..config_on(network::DEVICE)
    };
    let node = Node::start_with(host, config, &[vip4(), vip6()]);
    node.lead(1, LONG);
    wait_until("held", SOON, || has(host, vip4()) && has(host, vip6()));
    let conflict = |vip: IpAddr| {
        let status = node.driver.status().borrow().clone();
        status
            .iter()
            .find(|s| s.address == vip)
            .and_then(|s| s.conflict)
    };
    std::thread::sleep(Duration::from_millis(1500)); // past the burst of announcements
    assert_eq!((conflict(vip4()), conflict(vip6())), (None, None));
    let mac = mac_of(host);
    for (vip, prefix) in [(vip4(), "32"), (vip6(), "128")] {
        let witness = Witness::on(client).unwrap();
        let text = format!("{vip}/{prefix}");
        let mut add = vec!["address", "add", &text, "dev", network::DEVICE];
        if vip.is_ipv6() {
            add.push("nodad");
        }
        thief.ip(&add).unwrap();
        wait_until("the thief is told", SOON, || {
            conflict(vip) == Some(mac_of(thief))
        });
        let expected = announcement(vip, mac);
        let defended = witness.frame(SOON, |frame| frame == expected);
        assert!(defended.is_some(), "{vip} is not defended");
        thief
            .ip(&["address", "delete", &text, "dev", network::DEVICE])
            .unwrap();
        wait_until("the thief is forgotten", SOON, || conflict(vip).is_none());
    }
    assert!(
        node.driver.held().borrow().contains(&vip4()),
        "it is held all the same"
    );
}

#[test]
fn a_vip_that_nobody_held_is_left_to_the_foreign_host_that_has_it_whoever_leads() {
    let Some(mut lab) = two_hosts() else { return };
    lab.add_host("n2", 12).unwrap();
    lab.add_host("thief", 220).unwrap();
    let thief = lab.host("thief").unwrap();
    let text = format!("{}/32", vip4());
    let take = |verb: &str| {
        let order = ["address", verb, &text, "dev", network::DEVICE];
        thief.ip(&order).unwrap()
    };
    take("add");
    let unclaimed = Snapshot {
        unclaimed_vips: [(vip4(), 7_u64)].into_iter().collect(),
        ..(*snapshot_with(&[vip4()])).clone()
    };
    let nodes = ["n1", "n2"].map(|name| {
        let host = lab.host(name).unwrap();
        let config = VipConfig {
            lookout: LookoutTiming {
                confirm: Duration::from_millis(300),
                lasts: Duration::from_millis(1000),
                ..LookoutTiming::default()
            },
            ..config_on(network::DEVICE)
        };
        let node = Node::start_with(host, config, &[]);
        node.snapshots.send_replace(Arc::new(unclaimed.clone()));
        (host, node)
    });
    let refused = |node: &Node| {
        let problem = node.problem().unwrap_or_default();
        problem.contains("not taken: the host")
    };
    for (term, (host, node)) in (1..).zip(&nodes) {
        node.lead(term, LONG);
        wait_until("it is left to the thief", SOON, || refused(node));
        assert!(!has(host, vip4()) && node.driver.claims().borrow().is_empty());
        if term == 1 {
            node.follow(2);
            wait_until("it is no matter of its own any more", SOON, || {
                node.problem().is_none()
            });
        }
    }
    let [(_, first), (host, second)] = &nodes;
    take("delete");
    wait_until("it is taken", SOON, || has(host, vip4()));
    wait_until("the state can be told", SOON, || {
        second.driver.claims().borrow().get(&vip4()) == Some(&7)
    });

    // Claimed, it is taken over at once, whatever else there is.
    let claimed = snapshot_with(&[vip4()]);
    for (_, node) in &nodes {
        node.snapshots.send_replace(Arc::clone(&claimed));
    }
    second.follow(3);
    wait_until("it is let go", SOON, || !has(host, vip4()));
    take("add");
    first.lead(3, LONG);
    wait_until("it is taken over", SOON, || first.holds());
}

#[test]
fn an_operators_address_is_neither_used_nor_removed() {
    let Some(lab) = two_hosts() else { return };
    let host = lab.host("n1").unwrap();
    let theirs = format!("{}/32", vip4());
    host.ip(&["address", "add", &theirs, "dev", network::DEVICE])
        .unwrap();
    let node = Node::start(host, &[vip4()]);
    node.lead(1, LONG);
    wait_until("the problem is told", SOON, || {
        node.problem()
            .is_some_and(|text| text.contains("put there by somebody else"))
    });
    assert!(node.driver.held().borrow().is_empty());
    node.follow(2);
    node.stop();
    assert!(has(host, vip4()), "it is not ours to remove");
}

/// A holder in a process of its own.
struct Holder(Child);

impl Holder {
    fn start(mut command: Command) -> Self {
        command
            .args(["hold", "--device", network::DEVICE])
            .args(["--address", &vip4().to_string()])
            .args(["--address", &vip6().to_string()])
            .stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn in_namespace(host: &Namespace) -> Self {
        Self::start(host.command(env!("CARGO_BIN_EXE_jepsen-like")).unwrap())
    }

    /// The first line of its output that contains `part`.
    fn line_with(&mut self, part: &str) -> String {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        lines
            .map_while(Result::ok)
            .find(|line| line.contains(part))
            .expect("the line comes")
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn the_kernel_removes_the_address_of_a_killed_process() {
    let Some(lab) = two_hosts() else { return };
    let host = lab.host("n1").unwrap();
    let holder = Holder::in_namespace(host);
    wait_until("held", SOON, || has(host, vip4()) && has(host, vip6()));
    holder.kill();
    let gone = VALID_FOR + Duration::from_millis(1500); // the kernel looks about once a second
    wait_until("expired", gone, || !has(host, vip4()) && !has(host, vip6()));
}

#[test]
fn a_start_sweeps_what_a_killed_process_left() {
    let Some(lab) = two_hosts() else { return };
    let host = lab.host("n1").unwrap();
    let own = network::ipv4(11).to_string();
    let holder = Holder::in_namespace(host);
    wait_until("held", SOON, || has(host, vip4()) && has(host, vip6()));
    holder.kill();
    assert!(has(host, vip4()), "left behind");
    let killed = Instant::now();
    let _follower = Node::start(host, &[]);
    wait_until("swept", SOON, || !has(host, vip4()) && !has(host, vip6()));
    assert!(
        killed.elapsed() < Duration::from_millis(1500),
        "swept, not expired"
    );
    assert!(
        host.ip(&["address", "show"]).unwrap().contains(&own),
        "own addresses stay"
    );
}

#[test]
fn without_the_privilege_nothing_is_held_and_the_reason_is_told() {
    let Some(lab) = two_hosts() else { return };
    let host = lab.host("n1").unwrap();
    let mut command = host.command("setpriv").unwrap();
    command.args([
        "--bounding-set",
        "-net_admin",
        env!("CARGO_BIN_EXE_jepsen-like"),
    ]);
    let mut holder = Holder::start(command);
    let line = holder.line_with("CAP_NET_ADMIN");
    assert!(line.contains("not held"), "{line}");
    assert!(!has(host, vip4()));
    holder.kill();
}
