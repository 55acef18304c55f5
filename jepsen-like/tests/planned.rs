//! Planned moves of a real VIP between real nodes: no connection through it is lost, and a client hardly notices.
//!
//! Needs root; says `skipped` without, and fails where `CI=true`.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use jepsen_like::{
    lab::{
        self, LabError,
        cluster::{BACKEND, Cluster, NAME, dns_at, vip4, wait_for},
        network,
    },
    probe::Prober,
    traffic::{self, Traffic},
};

/// Far above what is measured: a test is no benchmark, and CI's machine is busy.
const BOUND: Duration = Duration::from_secs(10);
const ECHO: u16 = 7007;
/// Connections at a time. Issue targets are measured with a thousand; a test on two cores makes fewer.
const CONNECTIONS: usize = 200;

fn holder(cluster: &Cluster) -> String {
    cluster.wait_for_holder().unwrap().name().to_owned()
}

#[test]
fn a_planned_move_loses_no_connection() {
    if !lab::available() {
        return;
    }
    let cluster = Cluster::start(3).unwrap_or_else(|error| panic!("{error}"));
    let backend_host = cluster.lab().host(BACKEND).unwrap();
    let backend_ip = backend_address(&cluster);
    let backend = SocketAddr::new(backend_ip, ECHO);
    let listener = backend_host.enter(|| TcpListener::bind(backend)).unwrap();
    traffic::serve_echo(listener.unwrap());
    let leader = cluster.leader().unwrap();
    let site = traffic::echo_site(ECHO, backend);
    leader.client().propose(&site, BOUND).unwrap();
    let client = cluster.client().clone();
    let service = SocketAddr::new(vip4(), ECHO);
    let first = holder(&cluster);
    wait_for("the listener on the VIP", BOUND, || {
        let tried =
            client.enter(|| TcpStream::connect_timeout(&service, Duration::from_millis(300)))?;
        Ok(tried.is_ok().then_some(()))
    })
    .unwrap_or_else(|error| panic!("{}", cluster.with_logs(error)));
    let prober = Prober::dns(&client, dns_at(vip4()), NAME, Duration::from_millis(2)).unwrap();
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();
    let old = Traffic::start(&client, service, CONNECTIONS).unwrap();
    old.wait_for_exchanges(2).unwrap();

    let from = Instant::now();
    let leader = cluster.leader().unwrap();
    leader
        .client()
        .transfer(BOUND)
        .unwrap_or_else(|error| panic!("{error}"));
    let moved = wait_for("another holder", BOUND, || {
        let now = holder(&cluster);
        Ok((now != first).then_some(now))
    })
    .unwrap_or_else(|error| panic!("{}", cluster.with_logs(error)));
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();
    old.wait_for_exchanges(4).unwrap();
    let new = Traffic::start(&client, service, CONNECTIONS / 10).unwrap();
    new.wait_for_exchanges(4).unwrap();

    let (_, gap) = prober.longest_gap_since(from);
    let lost = old.finish();
    let lost_new = new.finish();
    println!(
        "moved from {first} to {moved}: {} of {CONNECTIONS} connections lost, longest gap {gap:?}",
        lost.len()
    );
    if !lost.is_empty() || !lost_new.is_empty() {
        let error = LabError::Waited {
            what: format!(
                "an end of all connections (old {:?}, new {lost_new:?})",
                lost.first()
            ),
            seconds: BOUND.as_secs(),
        };
        panic!("connections were lost: {}", cluster.with_logs(error));
    }
    assert!(gap < BOUND, "{gap:?}");
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
