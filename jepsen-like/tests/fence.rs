//! The fence with real devices and a real neighbour: what is heard of a node whose process is stopped, whose rules are flushed, whose
//! lease lapses.
//!
//! Needs root; says `skipped` without, and fails where `CI=true`.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use jepsen_like::{
    hold::{config_on, leading, snapshot_with},
    lab::{self, Lab, namespace::Namespace, network},
    waiting::{Ends, wait_until},
    witness::Witness,
};
use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{setsockopt, sockopt::RcvBufForce},
    },
    unistd::Pid,
};
use pontoon::{
    model::{label::Label, leadership::Leadership, snapshot::Snapshot, vip::Vip},
    vip::{Fence, FenceWish, VipConfig, VipDriver, fence, interface::VALID_FOR},
};
use tokio::sync::watch;

const LONG: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(5);
/// The lease of `jepsen-like hold`.
const LEASE: Duration = Duration::from_millis(300);

fn vip4() -> IpAddr {
    network::ipv4(100).into()
}

fn vip6() -> IpAddr {
    network::ipv6(100).into()
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

fn has(host: &Namespace, address: IpAddr) -> bool {
    let listed = host.ip(&["-o", "address", "show"]).unwrap();
    listed.contains(&format!(" {address}/"))
}

/// The Ethernet address of a host, as text.
fn mac_of(host: &Namespace) -> String {
    let shown = host.ip(&["-o", "link", "show", network::DEVICE]).unwrap();
    let (_, rest) = shown.split_once("link/ether ").unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

fn table(host: &Namespace) -> Option<String> {
    let listed = host.output("nft", &["list", "ruleset"]).unwrap();
    listed
        .contains("table netdev pontoon_fence")
        .then_some(listed)
}

/// A node that is nothing but its VIP driver.
struct Node {
    leadership: watch::Sender<Leadership>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    driver: VipDriver,
}

impl Node {
    fn start(host: &Namespace, vips: &[IpAddr]) -> Self {
        Self::start_with(host, config_on(network::DEVICE), snapshot_with(vips))
    }

    fn start_with(host: &Namespace, config: VipConfig, snapshot: Arc<Snapshot>) -> Self {
        let (leadership, leadership_receiver) = watch::channel(Leadership::default());
        let (snapshots, snapshots_receiver) = watch::channel(snapshot);
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

    fn holds(&self, vips: &[IpAddr]) -> bool {
        *self.driver.held().borrow() == vips.iter().copied().collect()
    }

    fn problem(&self) -> Option<String> {
        let status = self.driver.status().borrow().clone();
        status.into_iter().find_map(|vip| vip.problem)
    }

    fn fence(&self) -> Option<Fence> {
        let status = self.driver.status().borrow().clone();
        status.first().map(|vip| vip.fence)
    }

    fn stop(self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(self.driver.stop());
    }
}

/// Something that answers on a host: a UDP socket on an address, echoing from that address.
struct Echo {
    socket: UdpSocket,
}

impl Echo {
    fn on(host: &Namespace, address: IpAddr) -> Self {
        let bind = || UdpSocket::bind((address, 0));
        let socket = host.enter(bind).unwrap().unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        Self { socket }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }
}

/// Sends a datagram from `client` and says whether `echo` got it and whether the answer came back.
fn exchange(client: &Namespace, echo: &Echo) -> (bool, bool) {
    let any = if echo.address().is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let sender = client.enter(|| UdpSocket::bind(any)).unwrap().unwrap();
    sender
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    sender.send_to(b"hello", echo.address()).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = match echo.socket.recv_from(&mut buffer) {
        Ok(got) => got,
        Err(_) => return (false, false),
    };
    let _ = echo.socket.send_to(&buffer[..length], from);
    (true, sender.recv(&mut buffer).is_ok())
}

/// Asks who has an address, past every cache; whether anybody answered within 200 ms.
fn is_resolved(client: &Namespace, address: IpAddr) -> bool {
    let text = address.to_string();
    let _ = client.ip(&["neighbour", "del", &text, "dev", network::DEVICE]); // not there: as well
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let witness = Witness::on(client).unwrap();
    let sender = client.enter(|| UdpSocket::bind(any)).unwrap().unwrap();
    sender.send_to(b"?", (address, 9)).unwrap();
    let answer = |frame: &[u8]| match address {
        // An ARP reply from the address, or a neighbour advertisement for it.
        IpAddr::V4(ip) => {
            frame.get(12..14) == Some(&[8, 6])
                && frame.get(20..22) == Some(&[0, 2])
                && frame.get(28..32) == Some(&ip.octets())
        }
        IpAddr::V6(ip) => {
            frame.get(12..14) == Some(&[0x86, 0xdd])
                && frame.get(54) == Some(&136)
                && frame.get(62..78) == Some(&ip.octets())
        }
    };
    witness.frame(Duration::from_millis(200), answer).is_some()
}

/// A holder in a process of its own.
struct Holder(Child);

impl Holder {
    fn start(host: &Namespace, vips: &[IpAddr]) -> Self {
        let mut command = host.command(env!("CARGO_BIN_EXE_jepsen-like")).unwrap();
        command.args(["hold", "--device", network::DEVICE]);
        for vip in vips {
            command.args(["--address", &vip.to_string()]);
        }
        Self(command.stdout(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().try_into().unwrap());
        kill(pid, signal).unwrap();
    }

    /// Returns when the process does not run any more.
    fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.0.id());
        wait_until("stopped", SOON, || {
            let text = std::fs::read_to_string(&stat).unwrap();
            text.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('T'))
        });
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stopped_process_falls_silent_within_its_lease() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    for round in 0..3 {
        let holder = Holder::start(host, &[vip4(), vip6()]);
        wait_until("both answer", SOON, || {
            is_resolved(client, vip4()) && is_resolved(client, vip6())
        });
        // Whatever listens on the address is another process here, and goes on: as a kernel answers for one.
        let echoes = [Echo::on(host, vip4()), Echo::on(host, vip6())];
        for echo in &echoes {
            assert_eq!(exchange(client, echo), (true, true));
        }
        holder.pause();
        std::thread::sleep(LEASE);
        for vip in [vip4(), vip6()] {
            assert!(has(host, vip), "round {round}: it is still on the device");
            assert!(
                !is_resolved(client, vip),
                "round {round}: {vip} answers ARP or ND"
            );
        }
        // A neighbour that remembers the node gets nothing either; and nothing leaves from the address.
        let mac = mac_of(host);
        for (echo, vip) in echoes.iter().zip([vip4(), vip6()]) {
            let entry = [
                "neighbour",
                "replace",
                &vip.to_string(),
                "lladdr",
                &mac,
                "dev",
                network::DEVICE,
                "nud",
                "permanent",
            ];
            client.ip(&entry).unwrap();
            assert_eq!(
                exchange(client, echo),
                (false, false),
                "round {round}: {vip} takes packets"
            );
            let witness = Witness::on(client).unwrap();
            let to: SocketAddr = match vip {
                IpAddr::V4(_) => (network::ipv4(200), 9).into(),
                IpAddr::V6(_) => (network::ipv6(200), 9).into(),
            };
            let _ = echo.socket.send_to(b"queued", to); // a drop may be told to the sender, or not
            let queued = |frame: &[u8]| frame.windows(6).any(|part| part == b"queued");
            assert!(
                witness.frame(Duration::from_millis(60), queued).is_none(),
                "round {round}: packets leave from {vip}"
            );
            client
                .ip(&["neighbour", "del", &vip.to_string(), "dev", network::DEVICE])
                .unwrap();
        }
        // Resumed, it renews its lease (this one's always is) and answers again.
        holder.signal(Signal::SIGCONT);
        wait_until("it answers again", SOON, || {
            is_resolved(client, vip4()) && is_resolved(client, vip6())
        });
    }
}

#[test]
fn a_killed_process_falls_silent_and_its_fence_stays() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let mut holder = Holder::start(host, &[vip4()]);
    wait_until("it answers", SOON, || is_resolved(client, vip4()));
    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    std::thread::sleep(LEASE);
    assert!(has(host, vip4()), "left behind");
    assert!(!is_resolved(client, vip4()));
    assert!(table(host).is_some(), "the fence stays");
    let gone = VALID_FOR + Duration::from_millis(1500); // the kernel looks about once a second
    wait_until("the backstop takes the address", gone, || {
        !has(host, vip4())
    });

    // It goes only when it is told to.
    assert!(host.enter(fence::uninstall).unwrap().unwrap());
    assert!(table(host).is_none());
    assert!(!host.enter(fence::uninstall).unwrap().unwrap());
}

#[test]
fn a_lapsed_lease_leaves_the_address_silent_until_it_is_renewed() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let node = Node::start(host, &[vip4(), vip6()]);
    node.lead(1, LONG);
    wait_until("held", SOON, || node.holds(&[vip4(), vip6()]));
    assert_eq!(node.fence(), Some(Fence::Kernel));
    assert!(is_resolved(client, vip4()) && is_resolved(client, vip6()));

    node.lead(1, Duration::from_millis(200));
    wait_until("lapsed", SOON, || node.holds(&[]));
    let silent_until = Instant::now() + VALID_FOR + Duration::from_millis(1500);
    while Instant::now() < silent_until {
        assert!(
            has(host, vip4()) && has(host, vip6()),
            "it stays, and its expiry is put off"
        );
        assert!(!is_resolved(client, vip4()) && !is_resolved(client, vip6()));
    }
    assert_eq!(*node.driver.released().borrow(), 0, "it may be heard again");

    node.lead(1, LONG);
    let took = wait_until("held again", SOON, || node.holds(&[vip4(), vip6()]));
    assert!(took < Duration::from_millis(100), "took {took:?}");
    assert!(is_resolved(client, vip4()) && is_resolved(client, vip6()));

    node.leadership.send_replace(Leadership {
        term: 2,
        ..Leadership::default()
    });
    wait_until("a higher term takes it off", SOON, || {
        !has(host, vip4()) && !has(host, vip6())
    });
}

#[test]
fn an_established_session_survives_a_lapse_on_the_same_node() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let node = Node::start(host, &[vip4()]);
    node.lead(1, LONG);
    wait_until("held", SOON, || node.holds(&[vip4()]));
    let listen = || std::net::TcpListener::bind((vip4(), 0));
    let listener = host.enter(listen).unwrap().unwrap();
    let to = listener.local_addr().unwrap();
    let mut near = client
        .enter(|| std::net::TcpStream::connect(to))
        .unwrap()
        .unwrap();
    let (mut far, _) = listener.accept().unwrap();
    node.lead(1, Duration::from_millis(100));
    wait_until("lapsed", SOON, || node.holds(&[]));
    std::io::Write::write_all(&mut near, b"during").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    node.lead(1, LONG);
    let mut buffer = [0; 6];
    far.set_read_timeout(Some(SOON)).unwrap();
    std::io::Read::read_exact(&mut far, &mut buffer).unwrap();
    assert_eq!(&buffer, b"during");
}

#[test]
fn rules_flushed_by_somebody_else_are_restored_and_the_vip_is_held_again() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let node = Node::start(host, &[vip4(), vip6()]);
    node.lead(1, LONG);
    wait_until("held", SOON, || node.holds(&[vip4(), vip6()]));
    host.output("nft", &["flush", "ruleset"]).unwrap();
    let took = wait_until("the fence stands and the VIPs are held", SOON, || {
        table(host).is_some() && node.holds(&[vip4(), vip6()])
    });
    assert!(took < Duration::from_millis(100), "took {took:?}");
    assert!(is_resolved(client, vip4()) && is_resolved(client, vip6()));
}

#[test]
fn rules_that_nobody_owns_are_restored_within_100_ms() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let config = VipConfig {
        unowned_fence: true, // as on kernels before 6.9
        ..config_on(network::DEVICE)
    };
    let node = Node::start_with(host, config, snapshot_with(&[vip4(), vip6()]));
    node.lead(1, LONG);
    for damage in [
        &["flush", "ruleset"][..],
        &["delete", "table", "netdev", "pontoon_fence"],
        &["flush", "chain", "netdev", "pontoon_fence", "egress"],
    ] {
        wait_until("held", SOON, || node.holds(&[vip4(), vip6()]));
        let mut status = node.driver.held();
        status.mark_unchanged();
        host.output("nft", damage).unwrap();
        let since = Instant::now();
        wait_until("released", SOON, || status.has_changed().unwrap());
        wait_until("held again", SOON, || node.holds(&[vip4(), vip6()]));
        let took = since.elapsed();
        assert!(
            took < Duration::from_millis(100),
            "{damage:?}: took {took:?}"
        );
        assert!(table(host).unwrap().contains("hook egress"));
        assert!(is_resolved(client, vip4()) && is_resolved(client, vip6()));
    }
    node.stop();
    assert!(table(host).is_some(), "it stays after the end of its maker");
}

#[test]
fn a_node_that_never_led_is_fenced_and_a_removed_vip_leaves_the_fence() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let node = Node::start(host, &[vip4()]);
    wait_until("the fence stands", SOON, || table(host).is_some());
    // An address that somebody put there by mistake is not heard.
    let text = format!("{}/32", vip4());
    host.ip(&["address", "add", &text, "dev", network::DEVICE])
        .unwrap();
    assert!(!is_resolved(client, vip4()));
    node.snapshots.send_replace(snapshot_with(&[]));
    wait_until("no VIP any more", SOON, || is_resolved(client, vip4()));
    node.stop();
}

/// A VIP on the device that may not be there.
fn late() -> IpAddr {
    [10, 99, 0, 1].into()
}

fn on(address: IpAddr, interface: &str) -> (IpAddr, Vip) {
    let interface = interface.parse().unwrap();
    (address, Vip { address, interface })
}

/// Maps `vip` to the device that every host has, and `back` to `back0.7`.
fn config_of_two_devices() -> VipConfig {
    let device = |label: &str, name: &str| (label.parse::<Label>().unwrap(), name.to_owned());
    VipConfig {
        interfaces: [device("vip", network::DEVICE), device("back", "back0.7")].into(),
        ..VipConfig::default()
    }
}

fn make_late_device(host: &Namespace) {
    host.ip(&[
        "link", "add", "back0.7", "type", "veth", "peer", "name", "back1",
    ])
    .unwrap();
    host.ip(&["link", "set", "back1", "up"]).unwrap();
    host.ip(&["link", "set", "back0.7", "up"]).unwrap();
}

#[test]
fn nothing_is_lost_on_one_device_while_another_comes_and_goes() {
    const EVERY: Duration = Duration::from_micros(200);
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let snapshot = Snapshot {
        vips: [on(vip4(), "vip"), on(late(), "back")]
            .into_iter()
            .collect(),
        ..Snapshot::default()
    };
    let node = Node::start_with(host, config_of_two_devices(), Arc::new(snapshot));
    node.lead(1, LONG);
    wait_until("held", SOON, || node.holds(&[vip4()]));
    let echo = Echo::on(host, vip4());
    setsockopt(&echo.socket, RcvBufForce, &(16 << 20)).unwrap();
    let sender = client.enter(|| UdpSocket::bind("0.0.0.0:0"));
    let sender = sender.unwrap().unwrap();
    sender.connect(echo.address()).unwrap();
    let over = AtomicBool::new(false);
    let (mut sent, mut came) = (0u32, 0u32);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                sender.send(b"?").unwrap();
                sent += 1;
                std::thread::sleep(EVERY);
            }
        });
        let _ends = Ends(&over);
        for _ in 0..20 {
            make_late_device(host);
            wait_until("held there too", SOON, || node.holds(&[vip4(), late()]));
            host.ip(&["link", "delete", "back0.7"]).unwrap();
            wait_until("not held there", SOON, || node.holds(&[vip4()]));
        }
    });
    let mut buffer = [0; 8];
    while came < sent && echo.socket.recv(&mut buffer).is_ok() {
        came += 1;
    }
    assert_eq!((sent - came, sent > 100), (0, true), "lost of {sent}");
    node.stop();
}

#[test]
fn a_vip_that_goes_to_another_interface_is_claimed_there_at_once() {
    let Some(lab) = two_hosts() else { return };
    let host = lab.host("n1").unwrap();
    make_late_device(host);
    let on_one = |interface| {
        let vips = [on(vip4(), interface)].into_iter().collect();
        Arc::new(Snapshot {
            vips,
            ..Snapshot::default()
        })
    };
    let node = Node::start_with(host, config_of_two_devices(), on_one("vip"));
    node.lead(1, LONG);
    let has_on = |device: &str| {
        let listed = host.ip(&["-o", "address", "show", "dev", device]).unwrap();
        listed.contains(&format!(" {}/", vip4()))
    };
    wait_until("held", SOON, || {
        node.holds(&[vip4()]) && has_on(network::DEVICE)
    });
    node.snapshots.send_replace(on_one("back"));
    // A VIP that nobody held is looked for on its segment for a second first.
    let took = wait_until("held there", SOON, || {
        has_on("back0.7") && !has_on(network::DEVICE)
    });
    assert!(took < Duration::from_millis(500), "took {took:?}");
    node.stop();
}

#[test]
fn several_vips_on_several_interfaces_and_one_that_appears_late() {
    let Some(lab) = two_hosts() else { return };
    let (host, client) = (lab.host("n1").unwrap(), lab.host("client").unwrap());
    let snapshot = Snapshot {
        vips: [
            on(vip4(), "vip"),
            on(vip6(), "vip"),
            on(network::ipv4(101).into(), "vip"),
            on(late(), "back"),
        ]
        .into_iter()
        .collect(),
        ..Snapshot::default()
    };
    let node = Node::start_with(host, config_of_two_devices(), Arc::new(snapshot));
    node.lead(1, LONG);
    let first = [vip4(), vip6(), network::ipv4(101).into()];
    wait_until("held where there is a device", SOON, || node.holds(&first));
    wait_until("the problem is told", SOON, || {
        node.problem()
            .is_some_and(|text| text.contains("no device named \"back0.7\""))
    });
    make_late_device(host);
    let all = [first[0], first[1], first[2], late()];
    let took = wait_until("held on the late device", SOON, || node.holds(&all));
    assert!(took < Duration::from_millis(100), "took {took:?}");
    assert!(table(host).unwrap().contains("back0.7"));
    assert!(is_resolved(client, vip4()) && is_resolved(client, network::ipv4(101).into()));

    // The device goes and comes back, under another index.
    host.ip(&["link", "delete", "back0.7"]).unwrap();
    wait_until("not held there", SOON, || node.holds(&first));
    assert!(is_resolved(client, vip4()), "others are not disturbed");
    make_late_device(host);
    wait_until("held again", SOON, || node.holds(&all));
    assert!(is_resolved(client, vip4()));
}

#[test]
fn without_a_fence_nothing_is_held_unless_that_is_allowed() {
    let Some(lab) = two_hosts() else { return };
    let host = lab.host("n1").unwrap();
    // Another process has the fence of this network namespace.
    let first = Node::start(host, &[vip4()]);
    wait_until("the fence stands", SOON, || table(host).is_some());
    let second = Node::start(host, &[vip4()]);
    second.lead(1, LONG);
    wait_until("the problem is told", SOON, || {
        second
            .problem()
            .is_some_and(|text| text.contains("belongs to another process"))
    });
    assert_eq!(second.fence(), Some(Fence::None));
    assert!(second.holds(&[]) && !has(host, vip4()));
    first.stop();
    wait_until("it takes the fence over", SOON, || second.holds(&[vip4()]));
    second.stop();

    let config = VipConfig {
        fence: FenceWish::Off,
        ..config_on(network::DEVICE)
    };
    let unfenced = Node::start_with(host, config, snapshot_with(&[network::ipv4(101).into()]));
    unfenced.lead(1, LONG);
    wait_until("held", SOON, || {
        unfenced.holds(&[network::ipv4(101).into()])
    });
    assert_eq!(unfenced.fence(), Some(Fence::None));
}
