//! Planned moves of a real VIP between real nodes: no connection through it is lost, and a client hardly notices.
//!
//! Needs root; says `skipped` without, and fails where `CI=true`.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use jepsen_like::{
    lab::{
        self, LabError,
        cluster::{BACKEND, Cluster, NAME, Options, dns_at, vip4, vip6, wait_for},
        namespace::Namespace,
        network,
    },
    probe::Prober,
    traffic::{self, Traffic},
};
use nix::sys::signal::{Signal, kill};
use pontoon::model::timing::Timing;

/// Far above what is measured: a test is no benchmark, and CI's machine is busy.
const BOUND: Duration = Duration::from_secs(10);
const ECHO: u16 = 7007;
/// Connections at a time. Issue targets are measured with a thousand; a test on two cores makes fewer.
const CONNECTIONS: usize = 200;
/// `[proxy] drain` of nodes that are stopped: long enough to see what becomes of connections before it is over.
const DRAIN: Duration = Duration::from_secs(20);

/// A cluster with an echo service behind its VIP, which answers.
struct Service {
    cluster: Cluster,
    client: Arc<Namespace>,
    at: SocketAddr,
}

impl Service {
    /// On a VIP, with nodes that have these further sections in their configuration; None where there can be no lab.
    fn start(vip: IpAddr, configuration: &str) -> Option<Self> {
        if !lab::available() {
            return None;
        }
        let options = Options {
            configuration: configuration.to_owned(),
            ..Options::default()
        };
        let cluster = Cluster::start_with(&options).unwrap_or_else(|error| panic!("{error}"));
        let backend_host = cluster.lab().host(BACKEND).unwrap();
        let backend = SocketAddr::new(backend_address(&cluster), ECHO);
        let listener = backend_host.enter(|| TcpListener::bind(backend)).unwrap();
        traffic::serve_echo(listener.unwrap());
        let leader = cluster.leader().unwrap();
        let site = traffic::echo_site(ECHO, backend);
        leader.client().propose(&site, BOUND).unwrap();
        let service = Self {
            client: Arc::clone(cluster.client()),
            at: SocketAddr::new(vip, ECHO),
            cluster,
        };
        let connect = || TcpStream::connect_timeout(&service.at, Duration::from_millis(300));
        wait_for("the listener on the VIP", BOUND, || {
            Ok(service.client.enter(connect)?.ok().map(drop))
        })
        .unwrap_or_else(|error| panic!("{}", service.cluster.with_logs(error)));
        Some(service)
    }

    fn holder(&self) -> String {
        self.cluster.wait_for_holder().unwrap().name().to_owned()
    }

    /// Waits until another node than `former` holds the VIPs.
    fn wait_for_holder_after(&self, former: &str) -> String {
        wait_for("another holder", BOUND, || {
            let now = self.holder();
            Ok((now != former).then_some(now))
        })
        .unwrap_or_else(|error| panic!("{}", self.cluster.with_logs(error)))
    }

    fn connect(&self, count: usize) -> Traffic {
        let traffic = Traffic::start(&self.client, self.at, count).unwrap();
        traffic.wait_for_exchanges(2).unwrap();
        traffic
    }

    /// Ends what is connected, of which nothing may have been lost.
    fn expect_alive(&self, what: &str, traffic: Traffic) {
        let lost = traffic.finish();
        if let Some(first) = lost.first() {
            let error = LabError::Waited {
                what: format!(
                    "an end of all connections ({what}: {} lost, {first:?})",
                    lost.len()
                ),
                seconds: BOUND.as_secs(),
            };
            panic!("connections were lost: {}", self.cluster.with_logs(error));
        }
    }
}

#[test]
fn a_planned_move_loses_no_connection() {
    expect_a_move_loses_nothing(vip4());
}

#[test]
fn a_planned_move_loses_no_connection_over_ipv6() {
    expect_a_move_loses_nothing(vip6());
}

fn expect_a_move_loses_nothing(vip: IpAddr) {
    let Some(service) = Service::start(vip, "") else {
        return;
    };
    let first = service.holder();
    let name_server = dns_at(vip);
    let every = Duration::from_millis(2);
    let prober = Prober::dns(&service.client, name_server, NAME, every).unwrap();
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();
    let old = service.connect(CONNECTIONS);

    let from = Instant::now();
    let leader = service.cluster.leader().unwrap();
    let transferred = leader.client().transfer(BOUND);
    transferred.unwrap_or_else(|error| panic!("{error}"));
    let moved = service.wait_for_holder_after(&first);
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();
    old.wait_for_exchanges(4).unwrap();
    let new = service.connect(CONNECTIONS / 10);
    new.wait_for_exchanges(4).unwrap();

    let (_, gap) = prober.longest_gap_since(from);
    println!("moved from {first} to {moved}, longest gap {gap:?}");
    service.expect_alive("from before", old);
    service.expect_alive("from after", new);
    assert!(gap < BOUND, "{gap:?}");
}

/// In `wan` a lease lasts more than two seconds: who waits for its end is told from who does not.
#[test]
fn a_holder_that_is_stopped_gives_the_vips_away_before_its_lease_is_over() {
    let Some(mut service) = Service::start(vip4(), "") else {
        return;
    };
    let first = service.holder();
    let leader = service.cluster.leader().unwrap();
    let changed = leader.client().set_profile("wan", BOUND);
    changed.unwrap_or_else(|error| panic!("{error}"));
    service.cluster.wait_until_whole().unwrap();
    let every = Duration::from_millis(2);
    let prober = Prober::dns(&service.client, dns_at(vip4()), NAME, every).unwrap();
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();

    let from = Instant::now();
    let pid = service.cluster.node(&first).unwrap().pid().unwrap();
    kill(pid, Signal::SIGTERM).unwrap();
    let next = service.wait_for_holder_after(&first);
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();
    let (_, gap) = prober.longest_gap_since(from);
    println!("given away by {first} to {next}, longest gap {gap:?}");
    let stopped = service.cluster.node_mut(&first).unwrap().wait_end();
    stopped.unwrap();
    let lease = Timing::WAN.lease();
    assert!(gap < lease * 3 / 4, "{gap:?} of a lease of {lease:?}");
}

/// Whoever of the three nodes holds the VIP: the connections made at each of the others live on there. `makes`: at which holders
/// connections are made, one after the other, before the VIP goes so many nodes further.
fn expect_all_alive_after(makes: &[(bool, usize)]) {
    let Some(service) = Service::start(vip4(), "") else {
        return;
    };
    let nodes = service.cluster.nodes().iter();
    let names: Vec<String> = nodes.map(|node| node.name().to_owned()).collect();
    let mut made = vec![];
    let mut from = service.holder();
    for (makes, step) in makes {
        if *makes {
            made.push((from.clone(), service.connect(CONNECTIONS / 5)));
        }
        let place = names.iter().position(|name| *name == from).unwrap();
        let to = names[(place + step) % names.len()].clone();
        let leader = service.cluster.node(&from).unwrap().client();
        let status = leader.status(BOUND).unwrap();
        let heir = status.nodes.iter().find(|node| node.name == to).unwrap();
        let moved = leader.move_to(heir.id, BOUND);
        moved
            .unwrap_or_else(|error| panic!("the VIPs were not moved from {from} to {to}: {error}"));
        wait_for("the next holder", BOUND, || {
            Ok((service.holder() == to).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{}", service.cluster.with_logs(error)));
        for (_, traffic) in &made {
            traffic.wait_for_exchanges(4).unwrap();
        }
        from = to;
    }
    // Beyond the time for which a node without connections relays on.
    made[0].1.wait_for_exchanges(40).unwrap();
    for (at, traffic) in made {
        traffic.wait_for_exchanges(2).unwrap();
        service.expect_alive(&format!("made at {at}"), traffic);
    }
}

#[test]
fn the_connections_of_two_earlier_holders_live_on() {
    // On twice, back to the one before, and to the first.
    expect_all_alive_after(&[(true, 1), (true, 1), (true, 2), (true, 2)]);
}

#[test]
fn a_holder_in_between_without_connections_passes_those_of_the_one_before_on() {
    expect_all_alive_after(&[(true, 1), (false, 1), (false, 2)]);
}

#[test]
fn a_holder_that_is_stopped_serves_its_connections_until_they_are_drained() {
    expect_drained(|cluster, holder| {
        let pid = cluster.node(holder).unwrap().pid().unwrap();
        kill(pid, Signal::SIGTERM).unwrap();
    });
}

#[test]
fn a_holder_that_leaves_serves_its_connections_until_they_are_drained() {
    expect_drained(|cluster, holder| {
        let left = cluster.node(holder).unwrap().client().leave(2 * BOUND);
        left.unwrap_or_else(|error| panic!("{holder} did not leave: {error}"));
    });
}

/// The holder is made to end by `ends`. The connections through the VIP that it proxies live on until `drain` is over, and new ones
/// through the next holder beyond.
fn expect_drained(ends: impl FnOnce(&Cluster, &str)) {
    let drain = format!("\n[proxy]\ndrain = \"{}s\"\n", DRAIN.as_secs());
    let Some(mut service) = Service::start(vip4(), &drain) else {
        return;
    };
    let first = service.holder();
    let old = service.connect(CONNECTIONS);

    // The drain begins later than it is asked for, never before.
    let asked = Instant::now();
    ends(&service.cluster, &first);
    let next = service.wait_for_holder_after(&first);
    let new = service.connect(CONNECTIONS / 10);
    let what = format!("connections at {first}, which gave the VIPs to {next} and drains");
    old.wait_for_exchanges(5).unwrap();
    let drained = wait_for("the end of the drain", 2 * DRAIN, || {
        let ended = old.ended();
        match asked.elapsed() {
            elapsed if elapsed >= DRAIN => Ok(Some(())),
            _ if ended == 0 => Ok(None),
            elapsed => Err(LabError::Waited {
                what: format!("{what}: {ended} ended after {elapsed:?}; an end of the drain"),
                seconds: DRAIN.as_secs(),
            }),
        }
    });
    drained.unwrap_or_else(|error| panic!("{}", service.cluster.with_logs(error)));

    let stopping = service.cluster.node_mut(&first).unwrap();
    stopping.wait_end().unwrap();
    let took = asked.elapsed();
    assert!(took < DRAIN + 2 * BOUND, "{first} ended after {took:?}");
    new.wait_for_exchanges(10).unwrap();
    service.expect_alive("made at the next holder", new);
    // Their node is gone: how they ended is not promised.
    let _ = old.finish();
}

fn backend_address(cluster: &Cluster) -> std::net::IpAddr {
    let shown = cluster.lab().host(BACKEND).unwrap();
    let shown = shown.ip(&["-br", "-4", "address"]).unwrap();
    let found = shown
        .split_whitespace()
        .filter_map(|word| word.split('/').next()?.parse::<std::net::Ipv4Addr>().ok())
        .find(|address| !address.is_loopback());
    found.unwrap_or_else(|| network::ipv4(2)).into()
}
